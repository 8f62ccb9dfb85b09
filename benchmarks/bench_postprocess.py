#!/usr/bin/env python3
"""Cost of post-processing: decoding and NMS with the settings of configs/thumos_i3d.yaml, on generated outputs of the network.

    python benchmarks/bench_postprocess.py                          on the CPU
    python benchmarks/bench_postprocess.py --device cuda --json OUT also on a GPU; writes the numbers as JSON

A typical video has about 9,350 candidates.  Around planted segments the points of the matching levels have high scores and
regress about the same boundaries.  Prints one markdown table with seconds and G (see benchmarks/common.py).
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from common import arguments, device_of, machine, peak_gib, report, seconds_of, timing, unit_g

from libs.core.config import load_config
from libs.core.errors import run_main
from libs.core.schema import Config
from libs.engine.inference.predict import nms_settings
from libs.modeling.decode import decode_batch
from libs.modeling.model import LevelOutputs
from libs.modeling.points import make_points
from libs.utils.nms import api as nms

ROOT = Path(__file__).resolve().parent.parent
SEGMENT_EVERY = 120  # grid steps for each planted segment: 16 s of video, as in THUMOS14


@dataclass(frozen=True)
class Case:
    """A batch of `videos` equal in length; reference_g: the first release's cost of decoding and of NMS of one such video."""

    name: str
    steps: int
    videos: int
    above: int  # scores above 0.001 per video, before the cap per level
    reference_g: tuple[float, float] | None = None


CASES = (Case("typical", 2304, 1, 19600, (0.09, 0.45)), Case("long", 6304, 1, 30000, (0.25, 1.5)),
         Case("batch of 16", 2304, 16, 19600))


def generate(case: Case, config: Config) -> LevelOutputs:
    """Outputs of the network for the videos of a case, every step valid."""
    random = torch.Generator().manual_seed(0)
    levels, classes = config.model.backbone_arch[2] + 1, config.dataset.num_classes
    strides = [config.model.scale_factor ** level for level in range(levels)]
    sizes = [case.steps // stride for stride in strides]
    points = make_points(sizes, strides, config.model.regression_range)
    videos = [_video(case, points, classes, random) for _ in range(case.videos)]
    mask = torch.ones(case.videos, len(points), dtype=torch.bool)
    return LevelOutputs(torch.stack([v[0] for v in videos]), torch.stack([v[1] for v in videos]), mask, points, tuple(sizes))


def _video(case: Case, points: torch.Tensor, classes: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (P, K) with `case.above` scores above 0.001, and offsets (P, 2)."""
    t, stride = points[:, :1], points[:, 3:]
    count = case.steps // SEGMENT_EVERY
    start = torch.rand(count, generator=random) * (case.steps - 20)
    length = 3 + torch.empty(count).exponential_(1 / 12, generator=random)  # 2 s on average
    label = torch.randint(classes, (count,), generator=random)
    distance = (t - start - length / 2) / (length / 2 + stride)
    strength = 9 * torch.exp(-distance ** 2) - (length / stride / 4).log2().abs()  # (P, N)
    logits = torch.randn(len(points), classes, generator=random) * 0.7 - 9
    logits += 0.3 * strength.max(dim=1, keepdim=True).values.clamp(min=0)  # any class is likelier inside a segment
    for i in range(count):
        logits[:, label[i]] += strength[:, i].clamp(min=0)
    just_above = torch.logit(torch.tensor(0.001, dtype=torch.float64)).float()
    logits += just_above - logits.flatten().topk(case.above + 1).values[-1]
    near = strength.argmax(dim=1)
    regressed = torch.stack([t[:, 0] - start[near], start[near] + length[near] - t[:, 0]], dim=1) / stride
    noise = torch.randn(regressed.shape, generator=random)
    stray = torch.rand(regressed.shape, generator=random) * 3
    return logits, torch.where((strength.amax(dim=1) > 0)[:, None], regressed + 0.15 * noise, stray).clamp(min=0)


def measure(case: Case, config: Config, device: torch.device, runs: int) -> list[dict]:
    """Entries for decoding, NMS and both together, seconds per video."""
    outputs = generate(case, config)
    outputs = LevelOutputs(*(t.to(device) for t in outputs[:4]), outputs.level_sizes)
    setting = nms_settings(config.test_cfg)
    found = decode_batch(outputs, config.test_cfg)
    kept = nms.nms_of_batch(found, **setting)
    print(f"{case.name}: {case.videos} x {case.steps} steps, {case.above} scores above 0.001 per video, "
          f"{len(found.scores)} candidates, {len(kept[1])} kept; {nms.implementation(device)}", flush=True)
    works = {"decode": lambda: decode_batch(outputs, config.test_cfg), "NMS": lambda: nms.nms_of_batch(found, **setting),
             "decode + NMS": lambda: nms.nms_of_batch(decode_batch(outputs, config.test_cfg), **setting)}
    reference = dict(zip(works, (*case.reference_g, sum(case.reference_g)), strict=True)) if case.reference_g else {}
    return [{"case": case.name, "work": work, "device": str(device), "candidates": len(found.scores), "videos": case.videos,
             "seconds": [s / case.videos for s in seconds_of(call, device, runs, warmup=5)], "reference_g": reference.get(work)}
            for work, call in works.items()]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "thumos_i3d.yaml")
    parser.add_argument("--runs", type=int, default=50)
    args = parser.parse_args()
    config, device = load_config(args.config), device_of(args.device)
    print(machine(), flush=True)
    g = unit_g(args.g_runs)
    print(f"G = {g * 1e3:.1f} ms; times are per video", flush=True)
    entries = [entry for case in CASES for entry in measure(case, config, device, args.runs)]
    rows = [{"case": entry["case"], "work": entry["work"], **timing(entry["seconds"], g, entry["reference_g"])}
            for entry in entries]
    report("decoding and NMS", rows, args, g_seconds=g, peak_gib=peak_gib(), entries=entries)


if __name__ == "__main__":
    run_main(main)
