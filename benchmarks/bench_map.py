#!/usr/bin/env python3
"""Cost of mAP and recall of a whole test set, from columns in memory and from a predictions file.

    python benchmarks/bench_map.py [--runs 7] [--json map.json]

Data are generated: segments of one or two classes per video, predictions that jitter around them, the rest stray or of another
class.  Prints the machine, a markdown table (seconds, G as in benchmarks/common.py, ratio to the reference's G), and writes
JSON.  Everything here runs on the CPU; `--device` is accepted by every benchmark and changes nothing.
"""
from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import arguments, machine, peak_gib, report, seconds_of, timing, unit_g

from libs.core.errors import run_main
from libs.utils.evaluation.metrics import evaluate_detections
from libs.utils.evaluation.predictions import COLUMNS, Detections, GroundTruth, read_predictions, write_predictions
from libs.utils.evaluation.thumos_protocol import evaluate_thumos14


@dataclass(frozen=True)
class Size:
    """A dataset: videos, predictions per video, classes, mean segments per video, mean duration (s), tIoUs, reference's G."""

    name: str
    videos: int
    per_video: int
    classes: int
    segments: float
    duration_s: float
    tious: tuple[float, ...]
    reference_g: float  # measured cost of the reference's evaluator at this size (19.8 s and 187 s with G = 62 ms)


SIZES = (
    Size("THUMOS14", 212, 201, 20, 15.0, 220.0, (0.3, 0.4, 0.5, 0.6, 0.7), 318.0),
    Size("ActivityNet", 4728, 100, 200, 1.5, 120.0, tuple(np.linspace(0.5, 0.95, 10).round(2).tolist()), 3000.0),
)


def generate(size: Size) -> tuple[Detections, GroundTruth]:
    """Predictions, by video and descending score, as from inference, and the ground truth."""
    rng = np.random.default_rng(0)
    count = 1 + rng.poisson(size.segments - 1, size.videos)
    gt_video = np.repeat(np.arange(size.videos), count)
    main_class = np.arange(size.videos) % size.classes
    gt_label = np.where(rng.random(len(gt_video)) < 0.9, main_class[gt_video], rng.integers(0, size.classes, len(gt_video)))
    length = np.minimum(rng.lognormal(np.log(0.25 * size.duration_s / size.segments ** 0.5), 0.6, len(gt_video)), size.duration_s)
    start = rng.random(len(gt_video)) * (size.duration_s - length)

    total = size.videos * size.per_video
    video = np.repeat(np.arange(size.videos), size.per_video)
    source = (np.cumsum(count) - count)[video] + (rng.random(total) * count[video]).astype(int)
    near, same_class = rng.random((2, total)) < np.array([[0.7], [0.8]])
    jitter = rng.normal(0, 0.2, (2, total)) * length[source]
    stray = rng.random(total) * 0.9 * size.duration_s
    t_start = np.where(near, start[source] + jitter[0], stray).clip(0)
    t_end = np.maximum(np.where(near, (start + length)[source] + jitter[1], stray + length[source]), t_start)
    label = np.where(same_class, gt_label[source], rng.integers(0, size.classes, total))
    score = np.where(near & same_class, rng.beta(2, 4, total), rng.beta(1, 6, total))
    order = np.lexsort((-score, video))
    names = np.array([f"v_{i:011d}" for i in range(size.videos)])
    found = Detections.from_arrays(names[video], t_start[order], t_end[order], label[order], score[order])
    return found, GroundTruth.from_arrays(names[gt_video], start, start + length, gt_label)


def measure(size: Size, runs: int) -> list[dict]:
    """One entry per operation: evaluation from columns in memory, making the columns, reading each kind of file."""
    found, ground_truth = generate(size)
    columns = [getattr(found, name) for name in COLUMNS]
    score = evaluate_detections(found, ground_truth, size.tious)
    works = {"mAP and recall": lambda: evaluate_detections(found, ground_truth, size.tious),
             "official protocol": lambda: evaluate_thumos14(found, ground_truth, size.tious),
             "columns from arrays": lambda: Detections.from_arrays(*columns)}
    entries = [{"work": work, "seconds": seconds_of(call, None, runs)} for work, call in works.items()]
    entries[0] |= {"reference_g": size.reference_g, "average_mAP": score.average_mAP}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("pkl", "csv", "json"):
            path = Path(folder) / f"predictions.{kind}"
            write_predictions(path, found)
            seconds = seconds_of(lambda path=path: read_predictions(path), None, min(runs, 3))
            entries.append({"work": f"read .{kind}", "seconds": seconds})
    about = (f"{size.videos} videos, {len(found)} predictions, {len(ground_truth)} segments, {size.classes} classes, "
             f"{len(size.tious)} tIoU")
    print(f"{size.name} size: {about}; average mAP {100 * score.average_mAP:.2f} %", flush=True)
    return [{"size": size.name, "data": about, **entry} for entry in entries]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    print(machine(), flush=True)
    g = unit_g(args.g_runs)
    print(f"G = {g * 1e3:.1f} ms; the evaluator runs on the CPU", flush=True)
    entries = [entry for size in SIZES for entry in measure(size, args.runs)]
    rows = [{"size": entry["size"], "work": entry["work"], **timing(entry["seconds"], g, entry.get("reference_g"))}
            for entry in entries]
    report("mAP and recall", rows, args, g_seconds=g, peak_gib=peak_gib(), entries=entries)


if __name__ == "__main__":
    run_main(main)
