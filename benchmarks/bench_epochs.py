#!/usr/bin/env python3
"""All epochs of training on THUMOS14-sized data, as train.py runs them: reading, steps, logs and the last checkpoint.

    python benchmarks/bench_epochs.py --device cuda --json OUT          200 videos, all 35 epochs
    python benchmarks/bench_epochs.py                                   a CPU: one epoch of 20 videos, 10 steps
    python benchmarks/bench_epochs.py --device cuda --annotations thumos14.json --cache ram --bucket 0 --set opt.epochs=30

configs/thumos_i3d.yaml with loader.cache (device) and loader.bucket (16).  The clock covers everything from opening the dataset
to the saved checkpoint; features are written before.  Nothing is extrapolated: the table says how many steps were done.
"""
from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import arguments, device_of, machine, peak_gib, report, synchronize, timing, unit_g
from planted_thumos import THUMOS, VIDEOS, describe, prepare

from libs.core.config import load_config
from libs.core.errors import UserError, run_main
from libs.core.schema import PRECISIONS, Config
from libs.engine.training.fit import FitOptions, fit

CPU_EPOCHS, CPU_VIDEOS = 1, 20


def configure(path: Path, data: list[str], args: argparse.Namespace) -> Config:
    """The configuration of the run; with `--epochs` that many, at most all but one of them for warm-up."""
    chosen = [f"loader.cache={args.cache}", f"loader.bucket={args.bucket}", f"train_cfg.precision={args.precision}"]
    config = load_config(path, [*chosen, *args.set, *data])
    if args.epochs is None:
        return config
    warmup = min(config.opt.warmup_epochs, args.epochs - 1)
    lengths = [f"opt.warmup_epochs={warmup}", f"opt.epochs={args.epochs - warmup}"]
    return load_config(path, [*chosen, *args.set, *data, *lengths])


def once(config: Config, folder: Path, device: torch.device) -> dict[str, Any]:
    """Seconds of one training, its steps, and the mean loss of its first and last epoch."""
    synchronize(device)
    started = time.perf_counter()
    fit(config, folder, device, FitOptions(checkpoint_every=config.total_epochs, print_every=10**9))
    synchronize(device)
    seconds = time.perf_counter() - started
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    first, last = (statistics.mean(r["final_loss"] for r in records if r["epoch"] == e) for e in (1, config.total_epochs))
    return {"seconds": seconds, "steps": len(records), "first_loss": first, "last_loss": last}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--annotations", type=Path, default=None, help="thumos14.json, for its lengths and segments")
    parser.add_argument("--config", type=Path, default=THUMOS)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override configuration keys")
    parser.add_argument("--epochs", type=int, default=None, help=f"CUDA: all of the configuration, CPU: {CPU_EPOCHS}")
    parser.add_argument("--videos", type=int, default=None, help=f"CUDA: {VIDEOS['validation']}, CPU: {CPU_VIDEOS}")
    parser.add_argument("--precision", choices=PRECISIONS, default=None, help="CUDA: bf16, CPU: fp32")
    parser.add_argument("--cache", choices=("none", "ram", "device"), default="device", help="loader.cache")
    parser.add_argument("--bucket", type=int, default=16, help="loader.bucket")
    parser.add_argument("--runs", type=int, default=1, help="trainings from the start")
    args = parser.parse_args()
    device = device_of(args.device)
    cuda = device.type == "cuda"
    args.epochs = args.epochs if args.epochs is not None or cuda else CPU_EPOCHS
    args.videos = args.videos or (VIDEOS["validation"] if cuda else CPU_VIDEOS)
    args.precision = args.precision or ("bf16" if cuda else "fp32")
    if args.runs < 1 or (args.epochs is not None and args.epochs < 1):
        raise UserError(f"--runs {args.runs} --epochs {args.epochs}: both must be at least 1")
    print(machine(), flush=True)
    g = unit_g(args.g_runs)
    print(f"G = {g * 1e3:.1f} ms; {describe(args.annotations)}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        path, data = prepare(Path(name), args.annotations, args.videos, 1, args.config, tuple(args.set))
        config = configure(path, data, args)
        runs = [once(config, Path(name) / f"run{i}", device) for i in range(args.runs)]
    last, measured = runs[-1], timing([r["seconds"] for r in runs], g)
    row = {"videos": args.videos, "epochs": config.total_epochs, "steps": last["steps"], "precision": config.train_cfg.precision,
           "cache": config.loader.cache, "bucket": config.loader.bucket, **measured,
           "s_per_step, all included": measured["median_s"] / last["steps"], "first_loss": last["first_loss"],
           "last_loss": last["last_loss"],
           "peak_GiB": torch.cuda.max_memory_allocated(device) / 2**30 if cuda else peak_gib()}
    report(f"Training, batch {config.loader.batch_size}, from opening the data to the saved checkpoint", [row], args, g_seconds=g)


if __name__ == "__main__":
    run_main(main)
