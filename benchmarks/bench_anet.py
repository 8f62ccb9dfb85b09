#!/usr/bin/env python3
"""Evaluation at the size of ActivityNet from files: proposals, class scores and annotations to mAP over 200 classes.

    python benchmarks/bench_anet.py                                      4,728 videos, 100 proposals each, generated segments
    python benchmarks/bench_anet.py --annotations anet_anno_action.json --runs 5 --json OUT

Files as eval.py and the sources of class scores write them: predictions.json with one class ("action"), {"results": {video: [200
scores]}, "class": [names]}, annotations in our layout.  Proposals jitter around the segments, the class scores name a right class
first in about 9 of 10 videos.  Rows: each file read, fusion (two classes per proposal), mAP and recall at ten tIoUs, and all of
it in a new process (`tools/evaluate.py`).  Everything runs on the CPU.
"""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, device_of, machine, peak_gib, report, seconds_of, timing, unit_g

from libs.core.errors import UserError, run_main
from libs.datasets.annotations import Annotations, load_annotations
from libs.datasets.prepare.anet import convert_activitynet
from libs.datasets.prepare.document import Document
from libs.datasets.presets import get_preset
from libs.utils.evaluation.metrics import evaluate_detections
from libs.utils.evaluation.predictions import Detections, GroundTruth, read_predictions, write_predictions
from libs.utils.evaluation.score_fusion import fuse_external_scores, load_external_scores
from libs.utils.files.io import write_json_atomic

ROOT = Path(__file__).resolve().parent.parent
SPLIT = "validation"


def generated(videos: int, classes: int) -> Document:
    """Annotations with about ActivityNet's lengths: 1.5 segments of half a minute in 2 minutes; every class occurs."""
    rng, document = np.random.default_rng(0), Document("generated", "generated")
    for i in range(videos):
        duration = float(rng.uniform(20, 215))
        document.add_video(f"{i:011d}", SPLIT, duration)
        for _ in range(1 + rng.poisson(0.5)):
            length = duration * float(rng.uniform(0.05, 0.9))
            start = float(rng.uniform(0, duration - length))
            document.add_segment(f"{i:011d}", "generated", start, start + length, f"class {i % classes:03d}")
    return document


def chosen(args: Namespace) -> Document:
    """The annotations to work on: generated, or the first `--videos` validation videos of a file (every 4th id if it has no
    subsets).  UserError when it has fewer."""
    if args.annotations is None:
        return generated(args.videos, args.classes)
    content = json.loads(Path(args.annotations).read_text(encoding="utf-8")) if Path(args.annotations).is_file() else {}
    every = None if "database" in content else 4
    document = convert_activitynet(args.annotations, "ActivityNet", "ActivityNet annotation file (JSON)", None, every)
    ids = sorted(video for video, entry in document.videos.items() if entry["subset"] == SPLIT)
    if len(ids) < args.videos:
        raise UserError(f"{args.annotations}: has {len(ids)} validation videos, but --videos is {args.videos}; choose fewer")
    keep = set(ids[:args.videos])
    document.leave_out([video for video, entry in document.videos.items() if entry["subset"] == SPLIT and video not in keep],
                       "not among the first --videos")
    return document


def write_files(folder: Path, annotations: Annotations, per_video: int) -> None:
    """predictions.json and class_scores.json for the validation videos."""
    rng, parts, scores = np.random.default_rng(1), [], {}
    names = sorted(annotations.label_ids)
    for video in (v for v in annotations.videos.values() if v.subset == SPLIT):
        end = video.duration_s
        segments = video.segments if len(video.segments) else np.array([[0.0, end]])
        near = segments[rng.integers(0, len(segments), per_video)]
        spread = (near[:, 1:] - near[:, :1]) * rng.normal(0, 0.25, (per_video, 2))
        moved = np.sort((near + spread).clip(0, end), axis=1)
        quality = np.exp(-np.abs(spread).sum(1) / (near[:, 1] - near[:, 0])) * rng.uniform(0.7, 1, per_video)
        order = np.argsort(-quality)
        parts.append(Detections.from_arrays([video.id] * per_video, moved[order, 0], moved[order, 1], np.zeros(per_video, int),
                                            quality[order]))
        logits = rng.normal(0, 1, len(names))
        if len(video.labels):
            logits[names.index(_name(annotations, int(video.labels[0])))] += rng.normal(5.5, 2)
        scores[video.id] = (np.exp(logits) / np.exp(logits).sum()).round(6).tolist()
    write_predictions(folder / "predictions.json", Detections.concat(parts), {0: "action"})
    write_json_atomic(folder / "class_scores.json", {"results": scores, "class": names}, indent=None)


def _name(annotations: Annotations, label: int) -> str:
    return next(name for name, i in annotations.label_ids.items() if i == label)


def works(folder: Path, annotations: Annotations) -> dict[str, Callable[[], Any]]:
    """Name -> call to measure."""
    files = {name: folder / f"{name}.json" for name in ("annotations", "predictions", "class_scores")}
    found = read_predictions(files["predictions"], ignore_labels=True)
    scores = load_external_scores(files["class_scores"], annotations.label_ids)
    fused = fuse_external_scores(found, scores)
    videos = [(v.id, v.segments, v.labels) for v in annotations.videos.values() if v.subset == SPLIT]
    ground_truth, tious = GroundTruth.from_videos(videos), get_preset("anet").tious
    command = [sys.executable, str(ROOT / "tools/evaluate.py"), str(files["predictions"]), str(files["annotations"]), "--split",
               SPLIT, "--class-scores", str(files["class_scores"]), "--tiou", *map(str, tious)]
    return {"read annotations": lambda: load_annotations(files["annotations"]),
            "read predictions": lambda: read_predictions(files["predictions"], ignore_labels=True),
            "read class scores": lambda: load_external_scores(files["class_scores"], annotations.label_ids),
            "fusion": lambda: fuse_external_scores(found, scores),
            "mAP and recall": lambda: evaluate_detections(fused, ground_truth, tious),
            "all, a new process": lambda: subprocess.run(command, check=True, capture_output=True)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--annotations", default=None, help="official annotation file, unpacked (default: generated ones)")
    parser.add_argument("--videos", type=int, default=4728, help="of the validation subset (4728)")
    parser.add_argument("--per-video", type=int, default=100, help="proposals per video (100)")
    parser.add_argument("--classes", type=int, default=200, help="of generated annotations (200)")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    device_of(args.device)
    if min(args.videos, args.per_video, args.classes, args.runs) < 1:
        raise UserError("--videos, --per-video, --classes and --runs must be at least 1")
    print(machine(), flush=True)
    g = unit_g(args.g_runs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen(args).write(folder / "annotations.json")
        annotations = load_annotations(folder / "annotations.json")
        write_files(folder, annotations, args.per_video)
        sizes = {path.stem: path.stat().st_size / 1e6 for path in folder.glob("*.json")}
        measured = works(folder, annotations)
        score, alone = measured["mAP and recall"](), read_predictions(folder / "predictions.json", ignore_labels=True)
        print(f"G = {g * 1e3:.1f} ms; {args.videos} videos, {len(alone)} proposals, {score.counts['predictions']} fused "
              f"detections, {score.counts['ground_truth']} segments, {len(score.class_ids)} classes; average mAP "
              f"{100 * score.average_mAP:.2f} %", flush=True)
        rows = [{"work": work, "MB": sizes.get(work.removeprefix("read ").replace(" ", "_")),
                 **timing(seconds_of(call, None, args.runs), g)} for work, call in measured.items()]
    report("ActivityNet: files to mAP with class scores", rows, args, g_seconds=g, peak_gib=peak_gib(),
           average_mAP=score.average_mAP)


if __name__ == "__main__":
    run_main(main)
