#!/usr/bin/env python3
"""What a training step of a configuration takes: CPU time and memory, for the Cost line of its head.

    OMP_NUM_THREADS=1 python benchmarks/bench_configs.py configs/hapt.yaml configs/planted.yaml [--steps 3] [--record NAME]

Each configuration runs in a process of its own: steps of loader.batch_size videos, every one dataset.max_seq_len long, of noise.
CPU time adds up all threads and depends little on other programs.  Memory is the peak of the process, PyTorch and data included.
"""
from __future__ import annotations

import statistics
import time
from pathlib import Path

from common import arguments, device_of, in_fresh_process, machine, peak_gib, report
from gpu_common import ROOT, made_batch, made_trainer

from libs.core.config import load_config
from libs.core.errors import run_main


def measure(path: Path, steps: int, device: str) -> dict[str, float | int | str]:
    """The row of a configuration: median CPU time of `steps` training steps after one that is not counted."""
    config = load_config(path, [f"devices=[{device}]", *(["fold=1"] if "{fold}" in path.read_text(encoding="utf-8") else [])])
    trainer, batch = made_trainer(config), made_batch(config, device_of(device))
    seconds = []
    for _ in range(1 + steps):
        started = time.process_time()
        trainer.step(batch)
        seconds.append(time.process_time() - started)
    inside = path.resolve().is_relative_to(ROOT / "configs")
    name = path.resolve().relative_to(ROOT / "configs").with_suffix("").as_posix() if inside else path.stem
    return {"config": name, "videos": config.loader.batch_size, "length": config.dataset.max_seq_len, "runs": steps,
            "step_cpu_s": statistics.median(seconds[1:]), "peak_GiB": peak_gib()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("configs", nargs="*", type=Path, metavar="CONFIG", default=[ROOT / "configs" / "hapt.yaml"])
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="that are measured (3)")
    args = parser.parse_args()
    device_of(args.device)
    print(machine(), flush=True)
    rows = []
    for path in args.configs:
        rows.append(in_fresh_process(measure, path, args.steps, args.device))
        print(", ".join(f"{name} {x:.3g}" if isinstance(x, float) else f"{name} {x}" for name, x in rows[-1].items()), flush=True)
    report("Training steps of the configurations", rows, args, key=["config"])


if __name__ == "__main__":
    run_main(main)
