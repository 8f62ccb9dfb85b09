#!/usr/bin/env python3
"""Cost of the network alone: one video of 2304 steps through configs/thumos_i3d.yaml, without decoding.

    python benchmarks/bench_forward.py                              float32 and bf16 on the CPU
    python benchmarks/bench_forward.py --device cuda --json OUT     on a GPU

Prints one markdown table with seconds, G (see benchmarks/common.py), FLOPs and the share of the rate that one G reaches.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path

import torch
from common import G_FLOPS, flops_of, input_width, machine, seconds_of, unit_g

from libs.core.config import load_config
from libs.core.errors import run_main
from libs.core.schema import PRECISIONS, Config
from libs.engine.precision import set_products
from libs.modeling.model import build_model

ROOT = Path(__file__).resolve().parent.parent
REFERENCE_G = 8.3  # the first release on a CPU, float32


def measure(config: Config, precision: str, steps: int, device: torch.device, runs: int) -> dict:
    """Seconds of `runs` forward passes, and their FLOPs."""
    config = dataclasses.replace(config, test_cfg=dataclasses.replace(config.test_cfg, precision=precision))
    set_products(precision, device, config.source, "test_cfg.precision")
    torch.manual_seed(0)
    model = build_model(config).eval().to(device)
    x, mask = torch.randn(1, steps, input_width(config), device=device), torch.ones(1, steps, dtype=torch.bool, device=device)
    with torch.inference_mode():
        seconds = seconds_of(lambda: model(x, mask), device, runs)
    return {"precision": precision, "steps": steps, "flops": flops_of(config, steps), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "thumos_i3d.yaml")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, nargs="+", default=[2304])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    config, device = load_config(args.config), torch.device(args.device)
    print(machine(), flush=True)
    g = unit_g()
    rate = G_FLOPS / g
    print(f"G = {g * 1e3:.1f} ms, {rate / 1e9:.0f} GFLOP/s\n")
    print("| precision | steps | median s | quartiles s | runs | G | reference G | ratio | GFLOP | share of the rate of G |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for steps in args.steps:
        for precision in args.precisions:
            row = measure(config, precision, steps, device, args.runs)
            median, (low, _, high) = statistics.median(row["seconds"]), statistics.quantiles(row["seconds"], n=4)
            row |= {"median_s": median, "G": median / g}
            ratio = f"{REFERENCE_G} | {REFERENCE_G / row['G']:.2f}" if steps == 2304 else " | "
            print(f"| {precision} | {steps} | {median:.4f} | {low:.4f}-{high:.4f} | {args.runs} | {row['G']:.2f} | {ratio} | "
                  f"{row['flops'] / 1e9:.1f} | {row['flops'] / median / rate:.2f} |", flush=True)
            rows.append(row)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "g_seconds": g, "rows": rows}, indent=1))


if __name__ == "__main__":
    run_main(main)
