#!/usr/bin/env python3
"""Train and evaluate a configuration with several seeds; print mean and spread of the average mAP.

    python tools/run_seeds.py configs/hapt.yaml --seeds 3 --jobs 2

Each seed is a run of train.py in ckpt/<config>_<output>_seed<N>/ and goes on where it was stopped; finished ones are reused.
Averaged (ema) and raw weights of the last epoch are both evaluated.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from libs.core.config import load_config
from libs.core.errors import UserError, run_main
from libs.engine.checkpoint import checkpoint_name
from libs.engine.evaluate import evaluation_folder
from libs.engine.run import run_folder
from libs.utils.io import write_json_atomic

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("ema", "raw")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML configuration")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds (3)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="seeds are S, S + 1, ... (0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="runs at the same time (1); cores are shared out")
    parser.add_argument("--output", default="seeds", metavar="NAME", help="name of the runs (seeds)")
    parser.add_argument("--eval-freq", type=int, default=None, metavar="N", help="keep the best checkpoint by validation mAP")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override configuration keys")
    parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write the numbers here too")
    args = parser.parse_args()
    if args.seeds < 1 or args.jobs < 1:
        raise UserError(f"--seeds {args.seeds} --jobs {args.jobs}: both must be at least 1")
    return args


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, dict]:
    """Train one seed to the end and evaluate it; results.json of both kinds of weights."""
    name, overrides = f"{args.output}_seed{seed}", [*args.set, f"init_rand_seed={seed}"]
    config = load_config(args.config, overrides)
    folder = run_folder(config, name)
    log = folder.with_name(folder.name + ".log")
    threads = str(max((os.cpu_count() or 1) // args.jobs, 1))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    extra = ["--eval-freq", str(args.eval_freq)] if args.eval_freq else []
    last = folder / checkpoint_name(config.total_epochs)
    commands = [[sys.executable, str(ROOT / "train.py"), args.config, "--output", name, "--resume", "auto", *extra,
                 "--set", *overrides]]
    commands += [[sys.executable, str(ROOT / "eval.py"), args.config, str(last), "--weights", kind, "--set", *overrides]
                 for kind in KINDS]
    with _opened(log) as file:
        for command in commands:
            if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode:
                tail = "\n  ".join(log.read_text(encoding="utf-8").splitlines()[-5:])
                raise UserError(f"seed {seed} failed, see {log}; it ends with:\n  {tail}")
    results = {kind: json.loads((evaluation_folder(last, kind) / "results.json").read_text(encoding="utf-8")) for kind in KINDS}
    print(f"seed {seed}: " + ", ".join(f"{kind} {100 * results[kind]['average_mAP']:.2f}" for kind in KINDS), flush=True)
    return results


def _opened(log: Path) -> TextIO:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return open(log, "a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{log}: cannot be written ({error.strerror}); choose another output_folder or --output") from error


def main() -> None:
    args = parse()
    seeds = list(range(args.first_seed, args.first_seed + args.seeds))
    failed = threading.Event()

    def one(seed: int) -> dict[str, dict]:
        if failed.is_set():  # what runs is waited for, nothing else begins
            raise UserError(f"seed {seed} was not begun")
        try:
            return run_seed(args, seed)
        except UserError:
            failed.set()
            raise

    with ThreadPoolExecutor(args.jobs) as pool:
        results = dict(zip(seeds, pool.map(one, seeds), strict=True))
    summary = {}
    for kind in KINDS:
        values = [100 * results[s][kind]["average_mAP"] for s in seeds]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        summary[kind] = {"average_mAP": dict(zip(map(str, seeds), values, strict=True)), "mean": statistics.mean(values),
                         "standard_deviation": spread}
        print(f"{kind}: average mAP {' '.join(f'{v:.2f}' for v in values)} | mean {summary[kind]['mean']:.2f}, "
              f"standard deviation {spread:.2f}")
    if args.json:
        write_json_atomic(args.json, {"config": args.config, "set": args.set, **summary})


if __name__ == "__main__":
    run_main(main)
