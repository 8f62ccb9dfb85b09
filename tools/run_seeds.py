#!/usr/bin/env python3
"""Train and evaluate a configuration with several seeds, or on several folds; print mean and spread of the average mAP.

    python tools/run_seeds.py configs/hapt.yaml --seeds 3 --jobs 2
    python tools/run_seeds.py configs/salads.yaml --seeds 1 --folds 1 2 3 4 5

Each seed is a run of train.py in ckpt/<config>_<output>_seed<N>/, with folds in ckpt/<config>_<output>_fold<K>_seed<N>/, where
{fold} in the configuration stands for the number K.  Finished runs and evaluations are not repeated, interrupted
runs resume.  Both EMA and raw weights of the last epoch are evaluated, and compared run by run (docs/comparing.md).
"""
from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from libs.core.arguments import count, refuse_source, run_name
from libs.core.errors import run_main
from libs.engine.experiments.chain import StageRun, stage_run
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
from libs.engine.experiments.paired import Evaluation, paired_line, paired_tests
from libs.engine.experiments.repeats import Repeat, add_arguments, by_unit, fold_details, repeats_of
from libs.utils.files.io import write_json_atomic

KINDS = ("ema", "raw")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML configuration")
    add_arguments(parser, seeds=3)
    parser.add_argument("--output", type=run_name, default="seeds", metavar="NAME", help="name of the runs (seeds)")
    parser.add_argument("--eval-freq", type=count, default=None, metavar="N", help="keep the best checkpoint by validation mAP")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override configuration keys")
    parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write the numbers here too")
    return parser.parse_args()


def run_of(args: argparse.Namespace, repeat: Repeat) -> StageRun:
    """The run of one fold and seed; UserError if it was begun with another configuration."""
    run = stage_run(args.config, repeat, f"{args.output}_{repeat.name()}", args.set)
    run.refuse_changes(allowed=("test_cfg.", "val_split"))  # these only concern evaluations, which are repeated
    return run


def complete(args: argparse.Namespace, run: StageRun) -> dict[str, dict]:
    """Train and evaluate a run, unless that is done; results.json of EMA and raw weights."""
    training = [] if run.trained else [train_command(args.config, run.name, run.overrides, args.eval_freq)]
    evaluations = [eval_command(args.config, run.last, kind, run.overrides) for kind in KINDS if not run.evaluated(kind)]
    run_commands([*training, *evaluations], log_of(run.folder), threads_per_job(args.jobs), str(run.repeat))
    results = {kind: read_results(run.results_file(kind)) for kind in KINDS}
    print(f"{run.repeat}: " + ", ".join(f"{kind} {100 * results[kind]['average_mAP']:.2f}" for kind in KINDS), flush=True)
    return results


def main() -> None:
    args = parse()
    refuse_source(args.json, args.config)
    repeats = repeats_of(args)
    runs = {repeat: run_of(args, repeat) for repeat in repeats}
    results = run_graph(dict.fromkeys(repeats, ()), lambda repeat: complete(args, runs[repeat]), args.jobs, report_runs())
    summary = {}
    for kind in KINDS:
        scores = {repeat: 100 * results[repeat][kind]["average_mAP"] for repeat in repeats}
        values, details = by_unit(scores), fold_details(scores)
        spread = statistics.stdev(values.values()) if len(values) > 1 else 0.0
        summary[kind] = {"average_mAP": values, "mean": statistics.mean(values.values()), "standard_deviation": spread, **details}
        inside = details.get("seed_deviation")
        more = (" over folds" if details else "") + ("" if inside is None else f", {inside:.2f} over the seeds of a fold")
        print(f"{kind}: average mAP {' '.join(f'{v:.2f}' for v in values.values())} | mean {summary[kind]['mean']:.2f}, "
              f"standard deviation {spread:.2f}{more}")
    kinds = {kind: {repeat: Evaluation(100 * results[repeat][kind]["average_mAP"], run.config, run.results_file(kind))
                    for repeat, run in runs.items()} for kind in KINDS}
    tests = paired_tests(kinds, against=KINDS[0])
    print("\n".join(map(paired_line, tests)))
    if args.json:
        write_json_atomic(args.json, {"config": args.config, "set": args.set, **summary, "paired": tests})


if __name__ == "__main__":
    run_main(main)
