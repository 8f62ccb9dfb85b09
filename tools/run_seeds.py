#!/usr/bin/env python3
"""Train and evaluate a configuration with several seeds; print mean and spread of the average mAP.

    python tools/run_seeds.py configs/hapt.yaml --seeds 3 --jobs 2

Each seed is a run of train.py in ckpt/<config>_<output>_seed<N>/.  Finished runs and evaluations are not repeated, interrupted
runs resume.  Both EMA and raw weights of the last epoch are evaluated.
"""
from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from libs.core.arguments import count, refuse_source, run_name
from libs.core.config import load_config
from libs.core.errors import UserError, run_main
from libs.engine.distill.teachers import with_run_name
from libs.engine.experiments.chain import StageRun
from libs.engine.experiments.launch import (
    eval_command,
    log_of,
    read_results,
    report_runs,
    run_commands,
    run_graph,
    threads_per_job,
    train_command,
)
from libs.utils.files.io import write_json_atomic

KINDS = ("ema", "raw")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML configuration")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds (3)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="seeds are S, S + 1, ... (0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="runs at the same time (1); cores are shared out")
    parser.add_argument("--output", type=run_name, default="seeds", metavar="NAME", help="name of the runs (seeds)")
    parser.add_argument("--eval-freq", type=count, default=None, metavar="N", help="keep the best checkpoint by validation mAP")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override configuration keys")
    parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write the numbers here too")
    args = parser.parse_args()
    if args.seeds < 1 or args.jobs < 1:
        raise UserError(f"--seeds {args.seeds} --jobs {args.jobs}: both must be at least 1")
    if any(text.partition("=")[0].strip() == "init_rand_seed" for text in args.set):
        raise UserError("--set init_rand_seed: every run has its own seed; use --first-seed and --seeds")
    return args


def run_of(args: argparse.Namespace, seed: int) -> StageRun:
    """The run of one seed; UserError if it was begun with another configuration."""
    name, overrides = f"{args.output}_seed{seed}", (*args.set, f"init_rand_seed={seed}")
    config = with_run_name(load_config(args.config, overrides), name)
    run = StageRun(Path(args.config).stem, seed, name, config, overrides)
    run.refuse_changes(allowed=("test_cfg.", "val_split"))  # these only concern evaluations, which are repeated
    return run


def run_seed(args: argparse.Namespace, run: StageRun) -> dict[str, dict]:
    """Train one seed and evaluate it, unless that is done; results.json of EMA and raw weights."""
    training = [] if run.trained else [train_command(args.config, run.name, run.overrides, args.eval_freq)]
    evaluations = [eval_command(args.config, run.last, kind, run.overrides) for kind in KINDS if not run.evaluated(kind)]
    run_commands([*training, *evaluations], log_of(run.folder), threads_per_job(args.jobs), f"seed {run.seed}")
    results = {kind: read_results(run.results_file(kind)) for kind in KINDS}
    print(f"seed {run.seed}: " + ", ".join(f"{kind} {100 * results[kind]['average_mAP']:.2f}" for kind in KINDS), flush=True)
    return results


def main() -> None:
    args = parse()
    refuse_source(args.json, args.config)
    seeds = list(range(args.first_seed, args.first_seed + args.seeds))
    runs = {seed: run_of(args, seed) for seed in seeds}
    results = run_graph(dict.fromkeys(seeds, ()), lambda seed: run_seed(args, runs[seed]), args.jobs, report_runs())
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
