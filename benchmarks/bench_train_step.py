#!/usr/bin/env python3
"""Cost of a training step: configs/thumos_i3d.yaml, batch 2, videos of THUMOS14's lengths, features read from files.

    python benchmarks/bench_train_step.py                                   stand-in annotations, generated
    python benchmarks/bench_train_step.py --annotations thumos14.json       lengths and segments of the real THUMOS14
    python benchmarks/bench_train_step.py --device cuda --variants padded fp32 bucket bf16+bucket

A step is everything between two batches: waiting for data, forward, backward, clipping, AdamW, EMA.  Variants:
`padded`: every batch to 2304 steps, as published; `fp32`: as short as the outputs allow; `bucket`: loader.bucket 16 and
loader.cache; `+bf16` and `+tf32` add a precision, `+few` pads to multiples of 256 steps, `+graphs` replays CUDA graphs.
Prints one markdown table with seconds and G (see benchmarks/common.py), FLOPs of the valid steps and the share that they reach of
the rate of one G, which is measured before and after each variant.
"""
from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import G_FLOPS, arguments, device_of, machine, peak_gib, report, synchronize, timing, unit_g
from planted_thumos import prepare

from libs.core.config import load_config
from libs.core.errors import UserError, run_main
from libs.datasets.dataset import TalDataset
from libs.datasets.loading.loader import batches, training_loader
from libs.engine.deploy.cost import count
from libs.engine.runtime.determinism import seed_everything
from libs.engine.runtime.machine import keep_freed_memory
from libs.engine.runtime.precision import check_precision
from libs.engine.training.objective import DetectionObjective
from libs.engine.training.trainer import Trainer
from libs.modeling.model import build_model

REFERENCE_G = 61  # the first release on a CPU, float32, every batch padded to 2304 steps
SETTINGS = {"fp32": [], "padded": ["loader.padding=max_seq_len"], "bucket": ["loader.bucket=16", "loader.cache=device"],
            "tf32": ["train_cfg.precision=tf32"], "bf16": ["train_cfg.precision=bf16"], "few": ["loader.pad_multiple=256"],
            "graphs": ["train_cfg.cuda_graphs=true"]}


class Measured(NamedTuple):
    """Of every step: seconds, valid and computed feature vectors; FLOPs per feature vector; peak memory so far."""

    seconds: list[float]
    valid: list[int]
    computed: list[int]
    flops: float
    peak_gib: float


def measure(source: Path, base: list[str], variant: str, device: torch.device, steps: int, warmup: int) -> Measured:
    """`steps` training steps after `warmup` ones; FLOPs: those of the forward pass three times (backward: twice forward)."""
    unknown = [part for part in variant.split("+") if part not in SETTINGS]
    if unknown:
        raise UserError(f"--variants: {unknown[0]!r} is unknown; combine {', '.join(SETTINGS)} with +, e.g. bucket+bf16")
    config = load_config(source, base + [text for part in variant.split("+") for text in SETTINGS[part]])
    seed_everything(config.init_rand_seed)
    keep_freed_memory()
    check_precision(config.train_cfg.precision, device, config.source, "train_cfg.precision")
    dataset = TalDataset(config, config.train_split, training=True)
    loader, sampler = training_loader(dataset, config, pin=device.type == "cuda", device=device)
    trainer = Trainer(DetectionObjective(build_model(config), config).to(device), config, len(sampler))
    seconds, valid, computed = [], [], []
    started = time.perf_counter()
    while len(seconds) < warmup + steps:
        sampler.epoch = trainer.epoch
        for batch in batches(loader):
            trainer.step(batch.to(device))
            synchronize(device)
            now = time.perf_counter()
            seconds.append(now - started)
            valid.append(int(batch.mask.sum()))
            computed.append(batch.mask.numel())
            started = time.perf_counter()
            if len(seconds) == warmup + steps:
                break
        trainer.epoch += 1
    trainer.raise_if_not_finite()
    longest = config.dataset.max_seq_len
    peak = peak_gib() if device.type == "cpu" else torch.cuda.max_memory_allocated(device) / 2**30
    return Measured(seconds[warmup:], valid[warmup:], computed[warmup:], 3 * count(config, longest).flops / longest, peak)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--annotations", type=Path, default=None)
    parser.add_argument("--variants", nargs="+", default=["padded", "fp32", "bucket"])
    parser.add_argument("--videos", type=int, default=64, help="training videos that are written (64: two pools of 16 batches)")
    parser.add_argument("--steps", type=int, default=16, help="per variant, after two that are not counted")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override configuration keys")
    args = parser.parse_args()
    device = device_of(args.device)
    print(machine(), flush=True)
    rows, g = [], unit_g(args.g_runs)
    with tempfile.TemporaryDirectory() as name:
        source, base = prepare(Path(name), args.annotations, args.videos, 1)
        for variant in args.variants:
            found = measure(source, base + args.set, variant, device, args.steps, 2)
            before, g = g, unit_g(args.g_runs)
            rows.append(row_of(variant, found, (before + g) / 2))
            print(f"{variant}: {rows[-1]['median_s']:.3f} s, G {before * 1e3:.1f} and {g * 1e3:.1f} ms", flush=True)
    report("training step", rows, args)


def row_of(variant: str, found: Measured, g: float) -> dict[str, Any]:
    """Columns of a variant; steps differ in length, so G, ratio and share are those of the mean."""
    mean = statistics.mean(found.seconds)
    return {"variant": variant, "mean_s": mean, **timing(found.seconds, g), "G": mean / g, "reference_G": REFERENCE_G,
            "ratio": REFERENCE_G / (mean / g), "padding_%": 100 * (1 - sum(found.valid) / sum(found.computed)),
            "peak_GiB": found.peak_gib, "share of the rate of G": statistics.mean(found.valid) * found.flops / mean * g / G_FLOPS}


if __name__ == "__main__":
    run_main(main)
