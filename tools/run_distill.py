#!/usr/bin/env python3
"""Run a chain of distillation: train and evaluate every stage of a folder with several seeds, and compare them in a table.

    python tools/run_distill.py configs/distill/hapt --seeds 3 --jobs 2
    python tools/run_distill.py configs/distill/hapt --stages student student_alone
    python tools/run_distill.py configs/distill/hapt --seeds 3 --table-only
    python tools/run_distill.py configs/distill/salads --folds 1 2 3 4 5

A stage is a YAML file of the folder whose name does not begin with _; it starts after the runs that its distill.teachers name.
Its commands are printed and also work alone.  Finished runs are not repeated, interrupted ones resume.
The table is printed and written to <output_folder>/table.md and table.json, with a paired test of each stage against
student_alone (the first stage, where there is none): over seeds or folds, and over the test videos.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from libs.core.arguments import refuse_source
from libs.core.errors import UserError, run_main
from libs.core.files import entries
from libs.engine.experiments.chain import load_chain, run_stages
from libs.engine.experiments.chain_table import chain_results, markdown, stage_tests, table_rows
from libs.engine.experiments.repeats import add_arguments, repeats_of
from libs.utils.files.io import write_json_atomic, write_text_atomic


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", help="folder of stages, e.g. configs/distill/hapt")
    parser.add_argument("--stages", nargs="+", default=[], metavar="S", help="only these and the teachers that they need (all)")
    add_arguments(parser, seeds=1)
    parser.add_argument("--output", default="seed", metavar="NAME", help="name of the runs, before the seed's number (seed)")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override keys of every stage")
    parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write the table's numbers here too")
    parser.add_argument("--table-only", action="store_true", help="run nothing: the table of what is there")
    args = parser.parse_args()
    if args.table_only and args.stages:
        raise UserError("--table-only --stages: the table holds every stage that has results; leave --stages out")
    return args


def main() -> None:
    args = parse()
    chain = load_chain(args.folder, repeats_of(args), args.output, args.set)
    refuse_source(args.json, *entries(args.folder))
    planned = {} if args.table_only else chain.plan(chain.select(args.stages))
    if planned:
        run_stages(chain, planned, args.jobs)
    results = chain_results(chain, planned)
    if not results:
        raise UserError(f"{chain.output_folder}: no stage of {args.folder} has results for these folds and seeds; run them "
                        "without --table-only")
    rows, tests = table_rows(results), stage_tests(results)
    content, text = {"folder": args.folder, "set": args.set, "rows": rows, "paired": tests}, markdown(rows, tests)
    print(text, end="", flush=True)  # first: not lost if a file cannot be written
    write_text_atomic(chain.output_folder / "table.md", text)
    for path in (chain.output_folder / "table.json", *([args.json] if args.json else [])):
        write_json_atomic(path, content)
    print(f"written to {chain.output_folder / 'table.md'} and table.json", flush=True)


if __name__ == "__main__":
    run_main(main)
