#!/usr/bin/env python3
"""How cost grows: network against sequence length (time, memory), decoding + NMS and evaluator against their sizes.

    python benchmarks/bench_scaling.py                                       all sweeps, plot to docs/figures/scaling.svg
    python benchmarks/bench_scaling.py --device cuda --plot OUT.svg --json OUT.json
    python benchmarks/bench_scaling.py --works network --steps 576 2304 9216

Every point of the network runs in a new process (configs/thumos_i3d.yaml, full width, float32).  "exponent" is the slope
of log(cost) over log(size), fitted to all points of a sweep: 1 is linear, below 1 a fixed cost weighs in.
"""
from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, device_of, in_fresh_process, machine, markdown, memory_of, save, seconds_of, timing, unit_g
from planted_thumos import ROOT, THUMOS, answer_like_trained

from libs.core.config import load_config
from libs.core.errors import run_main
from libs.core.schema import Config
from libs.engine.inference.predict import nms_settings
from libs.modeling.decode import decode_batch
from libs.modeling.model import LevelOutputs, build_model
from libs.modeling.points import make_points
from libs.utils.evaluation.metrics import evaluate_detections
from libs.utils.evaluation.predictions import Detections, GroundTruth
from libs.utils.files.io import write_text_atomic
from libs.utils.nms.api import nms_of_batch
from libs.utils.plotting import Line, Panel, line_chart, svg

STEPS = (576, 1152, 2304, 4608, 9216, 18432, 36864)
CLASSES, CANDIDATES = (5, 20, 80, 320), (1000, 2000, 4000, 8000, 16000, 32000, 64000)
VIDEOS, PER_VIDEO = (53, 106, 212, 424, 848, 1696), (50, 100, 200, 400, 800)
TYPICAL = {"steps": 2304, "classes": 20, "candidates": 9350, "videos": 212, "per_video": 200}  # THUMOS14's
TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
WORKS = ("network", "post", "evaluator")
Row = dict[str, Any]


def network(path: Path, overrides: list[str], steps: int, name: str, runs: int) -> tuple[int, list[float]]:
    """Bytes that the peak rises above model and input, and seconds, of one video of `steps` steps through the network."""
    device, config = device_of(name), load_config(path, overrides)
    torch.manual_seed(0)
    model = build_model(config).eval().to(device)
    answer_like_trained(model, config, device, 8 * model.coarsest_stride)  # also the first call, which costs memory for good
    x, mask = torch.randn(1, steps, config.file_channels).to(device), torch.ones(1, steps, dtype=torch.bool, device=device)

    @torch.inference_mode()
    def run() -> None:
        model(x, mask)

    return memory_of(run, device).rise, seconds_of(run, device, runs, warmup=0)


def outputs(config: Config, steps: int, classes: int, candidates: int, device: torch.device) -> LevelOutputs:
    """Outputs of the network with `candidates` scores above 0.001: a segment in every 120 steps that points near it regress."""
    random = torch.Generator().manual_seed(0)
    strides = [config.model.scale_factor ** level for level in range(config.model.backbone_arch[2] + 1)]
    sizes = tuple(steps // s for s in strides)
    points = make_points(sizes, strides, config.model.regression_range)
    t, stride = points[:, 0], points[:, 3]
    centre, length = 120 * (t / 120).floor() + 60, 4.0 * 2 ** (t / 120).floor().remainder(4)
    near = torch.exp(-((t - centre) / (length / 2 + stride)) ** 2) * torch.exp2(-(length / stride / 4).log2().abs())
    label = (t / 120).long() % classes
    logits = torch.randn(len(points), classes, generator=random) - 9 + near[:, None]
    logits[torch.arange(len(points)), label] += 7 * near
    logits += math.log(0.001 / 0.999) - logits.flatten().topk(candidates + 1).values[-1]
    to_ends = torch.stack([t - centre + length / 2, centre + length / 2 - t], dim=1) / stride[:, None]
    offsets = (to_ends + 0.15 * torch.randn(len(points), 2, generator=random)).clamp(min=0.05)
    mask = torch.ones(1, len(points), dtype=torch.bool)
    return LevelOutputs(*(x.to(device) for x in (logits[None], offsets[None], mask, points)), sizes)


def post(config: Config, classes: int, candidates: int, device: torch.device) -> Callable[[], object]:
    """Decoding + NMS of one video with so many candidates, no cap per level."""
    test = dataclasses.replace(config.test_cfg, pre_nms_topk=candidates, pre_nms_thresh=0.001)
    out = outputs(config, TYPICAL["steps"], classes, candidates, device)
    return lambda: nms_of_batch(decode_batch(out, test), **nms_settings(test))


def evaluator(videos: int, classes: int, per_video: int) -> Callable[[], object]:
    """mAP and recall of `videos` x `per_video` predictions, half of them near one of 15 segments per video."""
    rng = np.random.default_rng(0)
    start, label = rng.uniform(0, 200, (videos, 15)), rng.integers(0, classes, (videos, 15))
    names = np.array([f"video_{i:06d}" for i in range(videos)])
    source = rng.integers(0, 15, (videos, per_video))
    at = np.where(rng.random(source.shape) < 0.5, np.take_along_axis(start, source, 1) + rng.normal(0, 1, source.shape),
                  rng.uniform(0, 200, source.shape)).clip(0)
    guess = np.where(rng.random(source.shape) < 0.8, np.take_along_axis(label, source, 1), rng.integers(0, classes, source.shape))
    found = Detections.from_arrays(np.repeat(names, per_video), at.ravel(), at.ravel() + 5, guess.ravel(), rng.random(at.size))
    ground_truth = GroundTruth.from_arrays(np.repeat(names, 15), start.ravel(), start.ravel() + 5, label.ravel())
    return lambda: evaluate_detections(found, ground_truth, TIOUS)


def sweep_network(args: argparse.Namespace, g: float) -> list[Row]:
    """Rows of the network at every length."""
    rows = []
    for steps in args.steps:
        rise, seconds = in_fresh_process(network, args.config, args.set, steps, args.device, args.runs)
        rows.append({"work": "network", "against": "steps", "size": steps, **timing(seconds, g), "rise_GB": rise / 1e9})
        print(f"network, {steps} steps: {rows[-1]['median_s']:.3f} s, {rise / 1e9:.3f} GB", flush=True)
    return rows


def sweep(work: str, against: str, sizes: Sequence[int], make: Callable[[int], Callable[[], object]], g: float,
          args: argparse.Namespace) -> list[Row]:
    """Rows of `make(size)` at every size."""
    device = device_of(args.device)
    return [{"work": work, "against": against, "size": size, **timing(seconds_of(make(size), device, args.short_runs), g)}
            for size in sizes]


def exponents(rows: Sequence[Row]) -> list[Row]:
    """The fitted exponent of time, and of memory where it was measured, of every sweep of at least two sizes."""
    found = []
    for work, against in dict.fromkeys((r["work"], r["against"]) for r in rows):
        group = [r for r in rows if (r["work"], r["against"]) == (work, against)]
        row = {"work": work, "against": against, "from": group[0]["size"], "to": group[-1]["size"]}
        for name, column in (("time", "median_s"), ("memory", "rise_GB")):
            if len(group) > 1 and all(r.get(column, 0) > 0 for r in group):
                x, y = np.log([r["size"] for r in group]), np.log([r[column] for r in group])
                row[f"exponent of {name}"] = float(np.polyfit(x, y, 1)[0])
        found.append(row)
    return found


def chart(rows: Sequence[Row]) -> str:
    """An SVG with a panel per sweep, in powers of two of the smallest size and of its cost; the line `linear` has slope 1."""
    panels = []
    for work, against in dict.fromkeys((r["work"], r["against"]) for r in rows):
        group = [r for r in rows if (r["work"], r["against"]) == (work, against)]
        x = tuple(round(math.log2(r["size"] / group[0]["size"]), 6) for r in group)
        lines = [Line("linear", x, x)]
        for name, column in (("time", "median_s"), ("memory", "rise_GB")):
            if all(r.get(column, 0) > 0 for r in group):
                lines.append(Line(name, x, tuple(math.log2(r[column] / group[0][column]) for r in group)))
        panels.append(Panel(f"{work}: {group[0]['size']:,} to {group[-1]['size']:,} {against}", tuple(lines)))
    return svg(line_chart(panels, "Cost against size", "log2 of size / smallest size", "log2 of cost / first cost"))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--config", type=Path, default=THUMOS, help="of the network and its post-processing")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override configuration keys")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    for name, default in (("steps", STEPS), ("classes", CLASSES), ("candidates", CANDIDATES), ("videos", VIDEOS),
                          ("per-video", PER_VIDEO)):
        parser.add_argument(f"--{name}", type=int, nargs="+", default=list(default), help="sizes of that sweep")
    parser.add_argument("--runs", type=int, default=3, help="of the network at every length")
    parser.add_argument("--short-runs", type=int, default=9, help="of everything else")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "figures" / "scaling.svg", metavar="SVG")
    args = parser.parse_args()
    device, config, at = device_of(args.device), load_config(args.config, args.set), TYPICAL
    print(machine(), flush=True)
    g = unit_g(args.g_runs)
    print(f"G = {g * 1e3:.1f} ms", flush=True)
    rows: list[Row] = []
    if "network" in args.works:
        rows += sweep_network(args, g)
    if "post" in args.works:
        rows += sweep("decode + NMS", "candidates", args.candidates, lambda n: post(config, at["classes"], n, device), g, args)
        rows += sweep("decode + NMS", "classes", args.classes, lambda n: post(config, n, at["candidates"], device), g, args)
    if "evaluator" in args.works:
        rows += sweep("evaluator", "videos", args.videos, lambda n: evaluator(n, at["classes"], at["per_video"]), g, args)
        rows += sweep("evaluator", "classes", args.classes, lambda n: evaluator(at["videos"], n, at["per_video"]), g, args)
        rows += sweep("evaluator", "predictions per video", args.per_video,
                      lambda n: evaluator(at["videos"], at["classes"], n), g, args)
    for row in rows:
        if row["work"] == "evaluator":
            videos = row["size"] if row["against"] == "videos" else at["videos"]
            each = row["size"] if row["against"] == "predictions per video" else at["per_video"]
            row["predictions_per_s"] = videos * each / row["median_s"]
    fitted = exponents(rows)
    print(markdown("Cost against size", rows), markdown("Exponents", fitted), sep="\n", flush=True)
    write_text_atomic(args.plot, chart(rows))
    print(f"\nplot written to {args.plot}")
    save(args, "Cost against size", rows, exponents=fitted, g_seconds=g)


if __name__ == "__main__":
    run_main(main)
