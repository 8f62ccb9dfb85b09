#!/usr/bin/env python3
"""Run a stored result again: does it come out within its spread?

    python tools/reproduce.py --list
    python tools/reproduce.py demo
    python tools/reproduce.py distill/hapt/student --seed 1 --data /data/hapt

NAME is a configuration in configs/ whose leading comment expects a number that was measured here; --list prints them.  Its
command is run with one seed, for a student after its teachers; finished runs are not repeated, interrupted ones resume.

Within: the 95 % prediction interval of one new run, mean +- t * s * sqrt(1 + 1 / n), with n stored seeds, their standard
deviation s and quantile .975 of Student's t (4.30 for a spread from three seeds).  Where the comment names a file for the spread,
as it must for one seed, s is pooled over the rows of that file.  One right run in twenty falls outside: then try other seeds.
Exit code 0: within, 1: outside, 2: not run.
"""
from __future__ import annotations

import argparse
import os
import shlex
import time
from pathlib import Path

from libs.core.arguments import run_name
from libs.core.config import load_config
from libs.core.errors import UserError, nearest, run_main
from libs.core.files import exists
from libs.core.schema import as_tuple
from libs.engine.experiments.chain import Chain, StageRun, load_chain, run_stages, stage_run
from libs.engine.experiments.heads import Head, all_heads
from libs.engine.experiments.repeats import Repeat
from libs.utils.tables import format_table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", metavar="NAME", help="e.g. hapt or distill/hapt/student")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the run (0)")
    parser.add_argument("--data", metavar="FOLDER", help="where the data is, in place of the folder that the head names")
    parser.add_argument("--output", type=run_name, default="reproduce", metavar="NAME", help="name of the runs (reproduce)")
    parser.add_argument("--list", action="store_true", help="print what can be run, and run nothing")
    args = parser.parse_args()
    if args.list == bool(args.name):
        raise UserError("name one configuration, or give --list alone")
    return args


def head_of(name: str) -> Head:
    """The head of a configuration with a stored result; UserError for any other name."""
    heads = all_heads()
    name = name.removeprefix("./").removeprefix("configs/").removesuffix(".yaml")
    if name not in heads:
        raise UserError(f"{name}: no such configuration in configs/{nearest(name, heads)}; --list prints them")
    if heads[name].expected.spread is None:
        raise UserError(f"{name}: nothing to compare with, its head says: {heads[name].fields['Expected']}; --list prints the "
                        "configurations with a stored result")
    if heads[name].expected.folds:
        raise UserError(f"{name}: its stored result is a mean over folds, of which one run tells little; run all of them: "
                        f"{heads[name].fields['Run']}")
    return heads[name]


def settings(head: Head, data: str | None) -> list[str]:
    """The --set values of the head's command, and the paths of the data in the folder `data`; UserError if it is not there."""
    overrides = shlex.split(head.fields["Run"].partition(" --set ")[2])
    if data is not None:
        dataset = load_config(head.path, overrides).dataset
        annotations, *features = [os.path.join(data, os.path.relpath(path, head.folder))
                                  for path in (dataset.json_file, *as_tuple(dataset.feat_folder))]
        overrides += [f"dataset.json_file={annotations}", f"dataset.feat_folder=[{','.join(features)}]"]
    config = load_config(head.path, overrides)
    missing = [path for path in (config.dataset.json_file, *as_tuple(config.dataset.feat_folder)) if not exists(path)]
    if missing and config.dataset_name != "demo":  # which generates its data
        raise UserError(f"{missing[0]}: no such file or folder; get the data: {head.fields['Data']}; or name its folder with "
                        "--data")
    return overrides


def chain_of(head: Head, seed: int, output: str, overrides: list[str]) -> tuple[Chain, StageRun]:
    """The run with this seed, and the chain that it is a part of: of itself alone if its command is not run_distill.py."""
    path, repeat = os.path.relpath(head.path), Repeat(None, seed)
    if "run_distill.py" in head.fields["Run"]:
        chain = load_chain(os.path.dirname(path), [repeat], f"{output}_seed", overrides)
        return chain, next(run for run in chain.runs.values() if run.stage == head.path.stem)
    run = stage_run(path, repeat, f"{output}_{repeat.name()}", overrides)
    return Chain(Path(path), Path(run.config.output_folder), {run.label: run}), run


def main() -> int:
    args = parse()
    if args.list:
        print_list()
        return 0
    head = head_of(args.name)
    chain, run = chain_of(head, args.seed, args.output, settings(head, args.data))
    planned = chain.plan([run.stage])
    before = [label for label, other in planned.items() if other.begun]
    start = time.monotonic()
    run_stages(chain, planned, jobs=1)
    seconds, value = time.monotonic() - start, run.average_mAP()
    expected = head.expected
    width, seeds = expected.half_width(), expected.seeds()
    within = abs(value - expected.mean) <= width
    stored = f", stored {seeds[args.seed]:.2f}" if 0 <= args.seed < len(seeds) else ""
    print(f"{args.name}: average mAP {value:.2f} (seed {args.seed}{stored}) is {'within' if within else 'OUTSIDE'} "
          f"{expected.mean:.2f} +- {width:.2f}, the 95 % interval of a run after {len(seeds)} stored; {seconds:.0f} s"
          + (f", without what was trained before: {', '.join(before)}" if before else ""))
    return 0 if within else 1


def print_list() -> None:
    rows = []
    for name, head in all_heads().items():
        if (expected := head.expected).spread is not None and not expected.folds:
            rows.append([name, expected.mean, expected.half_width(), len(expected.seeds()), head.folder, head.fields["Cost"]])
    print(format_table(rows, ["name", "average mAP", "+-", "seeds", "data", "cost"], left=("data", "cost")))


if __name__ == "__main__":
    run_main(main)
