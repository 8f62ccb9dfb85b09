#!/usr/bin/env python3
"""Cost of the network alone: one video of 2304 steps through configs/thumos_i3d.yaml, without decoding.

    python benchmarks/bench_forward.py                              float32 and bf16 on the CPU
    python benchmarks/bench_forward.py --device cuda --json OUT     on a GPU

Prints one markdown table with seconds, G (see benchmarks/common.py), FLOPs and the share of the rate that one G reaches.
"""
from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import torch
from common import G_FLOPS, arguments, device_of, machine, report, seconds_of, timing, unit_g

from libs.core.config import load_config
from libs.core.errors import run_main
from libs.core.schema import PRECISIONS, Config
from libs.engine.deploy.cost import count
from libs.engine.runtime.precision import check_precision, low_weights, matmul_precision
from libs.modeling.model import build_model

ROOT = Path(__file__).resolve().parent.parent
REFERENCE_G = 8.3  # the first release on a CPU, float32


def measure(config: Config, precision: str, steps: int, device: torch.device, runs: int) -> list[float]:
    """Seconds of `runs` forward passes."""
    config = dataclasses.replace(config, test_cfg=dataclasses.replace(config.test_cfg, precision=precision))
    check_precision(precision, device, config.source, "test_cfg.precision")
    torch.manual_seed(0)
    model = build_model(config).eval().to(device)
    x, mask = torch.randn(1, steps, config.model_channels, device=device), torch.ones(1, steps, dtype=torch.bool, device=device)
    with torch.inference_mode(), matmul_precision(precision), low_weights(model, precision):
        return seconds_of(lambda: model(x, mask), device, runs)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "thumos_i3d.yaml")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, nargs="+", default=[2304])
    parser.add_argument("--runs", type=int, default=10)
    args = parser.parse_args()
    config, device = load_config(args.config), device_of(args.device)
    print(machine(), flush=True)
    g = unit_g(args.g_runs)
    print(f"G = {g * 1e3:.1f} ms, {G_FLOPS / g / 1e9:.0f} GFLOP/s", flush=True)
    rows = []
    for steps, precision in itertools.product(args.steps, args.precisions):
        seconds = measure(config, precision, steps, device, args.runs)
        row = timing(seconds, g, REFERENCE_G if steps == 2304 else None)
        flops = count(config, steps).flops
        rows.append({"precision": precision, "steps": steps, **row, "GFLOP": flops / 1e9,
                     "share of the rate of G": flops / G_FLOPS / row["G"]})
    report("network", rows, args, g_seconds=g)


if __name__ == "__main__":
    run_main(main)
