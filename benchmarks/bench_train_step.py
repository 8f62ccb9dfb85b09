#!/usr/bin/env python3
"""Cost of a training step: configs/thumos_i3d.yaml, batch 2, videos of THUMOS14's lengths, features read from files.

    python benchmarks/bench_train_step.py                                   stand-in annotations, generated
    python benchmarks/bench_train_step.py --annotations thumos14.json       lengths and segments of the real THUMOS14
    python benchmarks/bench_train_step.py --device cuda --variants padded fp32 bucket bf16+bucket

A step is everything between two batches: waiting for data, forward, backward, clipping, AdamW, weight average.  Variants:
`padded`: every batch to 2304 steps, as published; `fp32`: as short as the outputs allow; `bucket`: loader.bucket 16 and
loader.cache; `+bf16` and `+tf32` add a precision.  Prints one markdown table with seconds and G (see benchmarks/common.py),
FLOPs of the valid steps and the share that they reach of the rate of one G, which is measured before and after each variant.
"""
from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import G_FLOPS, flops_of, machine, peak_gib, unit_g
from planted_thumos import prepare

from libs.core.config import load_config
from libs.core.errors import UserError, run_main
from libs.core.schema import Config
from libs.datasets.dataset import TalDataset
from libs.datasets.loader import batches, training_loader
from libs.engine.objective import DetectionObjective
from libs.engine.precision import set_products
from libs.engine.trainer import Trainer, seed_everything
from libs.modeling.model import build_model

REFERENCE_G = 61  # the first release on a CPU, float32, every batch padded to 2304 steps
SETTINGS = {"fp32": [], "padded": ["loader.padding=max_seq_len"], "bucket": ["loader.bucket=16", "loader.cache=device"],
            "tf32": ["train_cfg.precision=tf32"], "bf16": ["train_cfg.precision=bf16"]}


def measure(source: Path, base: list[str], variant: str, device: torch.device, steps: int, warmup: int) -> dict:
    """Seconds of `steps` training steps after `warmup` ones, and the FLOPs of their valid steps (backward: twice forward)."""
    unknown = [part for part in variant.split("+") if part not in SETTINGS]
    if unknown:
        raise UserError(f"--variants: {unknown[0]!r} is unknown; combine {', '.join(SETTINGS)} with +, e.g. bucket+bf16")
    config = load_config(source, base + [text for part in variant.split("+") for text in SETTINGS[part]])
    seed_everything(config.init_rand_seed)
    set_products(config.train_cfg.precision, device, config.source, "train_cfg.precision")
    dataset = TalDataset(config, config.train_split, training=True)
    loader, sampler = training_loader(dataset, config, pin=device.type == "cuda", device=device)
    trainer = Trainer(DetectionObjective(build_model(config), config).to(device), config, len(sampler))
    seconds, valid, computed = [], [], []
    started = time.perf_counter()
    while len(seconds) < warmup + steps:
        sampler.epoch = trainer.epoch
        for batch in batches(loader):
            trainer.step(batch.to(device))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter()
            seconds.append(now - started)
            valid.append(int(batch.mask.sum()))
            computed.append(batch.mask.numel())
            started = time.perf_counter()
            if len(seconds) == warmup + steps:
                break
        trainer.epoch += 1
    trainer.raise_if_not_finite()
    unit = flops_per_step(config)
    return {"variant": variant, "seconds": seconds[warmup:], "valid_steps": valid[warmup:], "computed_steps": computed[warmup:],
            "flops": [3 * unit * n for n in valid[warmup:]], "peak_gib": peak_gib() if device.type == "cpu"
            else torch.cuda.max_memory_allocated(device) / 2**30}


def flops_per_step(config: Config) -> float:
    """FLOPs of the forward pass per feature vector."""
    return flops_of(config, config.dataset.max_seq_len) / config.dataset.max_seq_len


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, default=None)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--variants", nargs="+", default=["padded", "fp32", "bucket"])
    parser.add_argument("--videos", type=int, default=64, help="training videos that are written (64: two pools of 16 batches)")
    parser.add_argument("--steps", type=int, default=16, help="per variant, after two that are not counted")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override configuration keys")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    device = torch.device(args.device)
    print(machine(), flush=True)
    rows, g = [], unit_g()
    with tempfile.TemporaryDirectory() as name:
        source, base = prepare(Path(name), args.annotations, args.videos, 1)
        for variant in args.variants:
            rows.append(measure(source, base + args.set, variant, device, args.steps, 2))
            before, g = g, unit_g()
            rows[-1]["g_seconds"] = (before + g) / 2
            median = statistics.median(rows[-1]["seconds"])
            print(f"{variant}: {median:.3f} s, G {before * 1e3:.1f} and {g * 1e3:.1f} ms", flush=True)
    print("\n| variant | mean s | median s | quartiles s | steps | G (mean) | reference G | ratio | padding | peak GiB | "
          "share of the rate of G |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        mean, (low, median, high) = statistics.mean(row["seconds"]), statistics.quantiles(row["seconds"], n=4)
        g = row["g_seconds"]
        row |= {"mean_s": mean, "median_s": median, "G": mean / g}
        padding = 1 - sum(row["valid_steps"]) / sum(row["computed_steps"])
        print(f"| {row['variant']} | {mean:.3f} | {median:.3f} | {low:.3f}-{high:.3f} | {len(row['seconds'])} | {row['G']:.1f} | "
              f"{REFERENCE_G} | {REFERENCE_G / row['G']:.2f} | {100 * padding:.0f} % | {row['peak_gib']:.2f} | "
              f"{statistics.mean(row['flops']) / mean * g / G_FLOPS:.2f} |")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    run_main(main)
