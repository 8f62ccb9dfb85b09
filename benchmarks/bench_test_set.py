#!/usr/bin/env python3
"""The whole THUMOS14 test set from features on disk to mAP: reading, network, decoding, NMS, evaluator, as eval.py runs them.

    python benchmarks/bench_test_set.py                                          212 videos of stand-in lengths, one by one, fp32
    python benchmarks/bench_test_set.py --annotations thumos14.json --batch-sizes 1 4 --precisions fp32 bf16
    python benchmarks/bench_test_set.py --device cuda --batch-sizes 1 4 --precisions fp32 bf16 --runs 5 --json OUT

Features are written before the clock starts (the system may still hold them in memory); the clock covers opening the dataset,
`predict` and `score`.  The weights are random, with the last layers scaled so that a video has about as many candidates as with
trained ones.  "reference, reckoned" adds up what the first release takes per part (measured one by one, in G) at these lengths.
"""
from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import arguments, device_of, machine, report, synchronize, timing, unit_g
from planted_thumos import THUMOS, VIDEOS, answer_like_trained, describe, prepare
from torch import nn

from libs.core.config import load_config
from libs.core.errors import UserError, run_main
from libs.core.schema import PRECISIONS, Config
from libs.datasets.dataset import TalDataset
from libs.engine.inference.predict import predict, score
from libs.engine.runtime.precision import check_precision
from libs.modeling.model import build_model

# the first release on a CPU, float32, in G: per video up to 2304 steps, per longer one, and for all 212 videos
READING, NETWORK, POST, LONG_NETWORK, LONG_STEPS, LONG_POST, EVALUATOR = 0.4, 8.3, 0.54, 18.0, 2685, 1.75, 318.0


def reckoned(steps: Sequence[int]) -> float:
    """The reference's cost of these videos in G, the evaluator's in proportion to their number.

    The reference pads to 2304 steps; beyond them its network's cost grows in proportion to the length.
    """
    videos = sum(READING + (NETWORK + POST if n <= 2304 else LONG_NETWORK * n / LONG_STEPS + LONG_POST) for n in steps)
    return videos + EVALUATOR * len(steps) / VIDEOS["test"]


class Stopwatch:
    """Seconds inside a network's forward pass; on a GPU, where calls return at once, it counts nothing."""

    def __init__(self, model: nn.Module, device: torch.device):
        self.seconds, self._started = 0.0, 0.0
        if device.type == "cpu":
            self._hooks = model.register_forward_pre_hook(self._start), model.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._started


def once(model: nn.Module, config: Config, device: torch.device) -> dict[str, Any]:
    """Seconds of one pass over the test set and of its parts, and the steps of its videos."""
    watch = Stopwatch(model, device)
    synchronize(device)
    started = time.perf_counter()
    dataset = TalDataset(config, config.val_split, training=False)
    found = predict(model, dataset, config, device)
    predicted = time.perf_counter()
    scores = score(found, dataset)
    ended = time.perf_counter()
    return {"total": ended - started, "network": watch.seconds if device.type == "cpu" else None, "mAP": ended - predicted,
            "segments": len(found.score), "average_mAP": float(scores.average_mAP), "steps": [int(n) for n in dataset.lengths()]}


def measure(path: Path, overrides: list[str], batch_size: int, precision: str, g: float,
            args: argparse.Namespace) -> dict[str, Any]:
    """One row: `--runs` passes with one batch size and precision."""
    device = device_of(args.device)
    config = load_config(path, [*overrides, f"test_cfg.batch_size={batch_size}", f"test_cfg.precision={precision}"])
    check_precision(precision, device, config.source, "test_cfg.precision")
    torch.manual_seed(0)
    model = build_model(config).eval().to(device)
    candidates = answer_like_trained(model, config, device)
    runs = [once(model, config, device) for _ in range(args.warmup + args.runs)][args.warmup:]
    last, steps = runs[-1], runs[-1]["steps"]
    measured = timing([r["total"] for r in runs], g)
    reference = reckoned(steps) if args.config == THUMOS and not args.set and device.type == "cpu" else None
    share = {"network_%": 100 * last["network"] / last["total"] if last["network"] is not None else None,
             "mAP_%": 100 * last["mAP"] / last["total"]}
    share["reading, decoding, NMS_%"] = None if share["network_%"] is None else 100 - share["network_%"] - share["mAP_%"]
    row = {"batch_size": batch_size, "precision": precision, "videos": len(steps), "steps": sum(steps), **measured,
           "s_per_video": measured["median_s"] / len(steps), "reference_G, reckoned": reference,
           "ratio": reference and reference / measured["G"], **share, "segments": last["segments"],
           "candidates_at_2304": candidates}
    print(f"batch size {batch_size}, {precision}: {measured['median_s']:.2f} s, {measured['G']:.0f} G", flush=True)
    return row


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--annotations", type=Path, default=None, help="thumos14.json, for its lengths and segments")
    parser.add_argument("--config", type=Path, default=THUMOS)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override configuration keys")
    parser.add_argument("--videos", type=int, default=VIDEOS["test"], help="of the test set, evenly spread over its lengths")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32"])
    parser.add_argument("--runs", type=int, default=1, help="passes over the test set per row")
    parser.add_argument("--warmup", type=int, default=None, help="passes that are not counted (CPU: 0, CUDA: 1)")
    args = parser.parse_args()
    if args.videos < 1 or args.runs < 1:
        raise UserError(f"--videos {args.videos} --runs {args.runs}: both must be at least 1")
    device = device_of(args.device)
    args.warmup = args.warmup if args.warmup is not None else int(device.type == "cuda")
    print(machine(), flush=True)
    g = unit_g(args.g_runs)
    print(f"G = {g * 1e3:.1f} ms; {describe(args.annotations)}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        path, data = prepare(Path(name), args.annotations, 1, args.videos, args.config, tuple(args.set))
        rows = [measure(path, [*args.set, *data], size, precision, g, args) for precision in args.precisions
                for size in args.batch_sizes]
    report("Test set of THUMOS14, features on disk to mAP", rows, args, g_seconds=g)


if __name__ == "__main__":
    run_main(main)
