#!/usr/bin/env python3
"""Write a study of distillation for your own dataset: a teacher on all streams, a student that keeps some, and what to compare.

    python tools/make_study.py configs/my.yaml --keep rgb --out configs/distill/my
    python tools/run_distill.py configs/distill/my --seeds 3

CONFIG is the configuration of the teacher: ActionFormer on all streams of dataset.modalities.  OUT gets one YAML file per stage
(docs/distillation.md#your-own-data), with the recipe of configs/distill/_student.yaml and the widest student that takes the share
of the teacher's FLOPs.  Nothing is trained, and no data is read.
"""
from __future__ import annotations

import argparse

from libs.core.arguments import share, some_path
from libs.core.errors import run_main
from libs.engine.deploy.cost import count
from libs.engine.experiments.study import write_study
from libs.utils.tables import format_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=some_path, metavar="CONFIG", help="YAML configuration of the teacher")
    parser.add_argument("--keep", nargs="+", required=True, metavar="STREAM", help="streams that the student reads")
    parser.add_argument("--out", type=some_path, required=True, metavar="FOLDER", help="new folder, e.g. configs/distill/my")
    parser.add_argument("--share", type=share, default=0.25, metavar="S", help="of the teacher's FLOPs for the student (0.25)")
    args = parser.parse_args()
    stages = write_study(args.config, args.keep, args.out, args.share)
    costs = {name: count(config) for name, config in stages.items()}
    rows = [[name, ", ".join(config.model.modalities or config.dataset.modalities or ()), config.total_epochs,
             costs[name].params / 1e6, costs[name].flops / 1e9, 100 * costs[name].flops / costs["teacher"].flops]
            for name, config in stages.items()]
    print(format_table(rows, ["stage", "reads", "epochs", "parameters M", "GFLOP", "% of the teacher's"], digits=3))
    repeats = "--seeds 3" if stages["teacher"].fold is None else "--folds 1 2 3 (those that there are)"
    print(f"written to {args.out}; train and compare them with: python tools/run_distill.py {args.out} {repeats}")


if __name__ == "__main__":
    run_main(main)
