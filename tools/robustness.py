#!/usr/bin/env python3
"""Evaluate checkpoints on corrupted features: mAP against severity as tables, JSON and a plot.

    python tools/robustness.py configs/demo.yaml ckpt/demo_teacher ckpt/demo_student --names teacher student
    python tools/robustness.py configs/hapt.yaml ckpt/hapt_*_seed? --names teacher teacher student student --set devices=cpu
    python tools/robustness.py configs/demo.yaml ckpt/demo_teacher --corruptions noise jitter --severities 1 3 5 --modalities rgb
    python tools/robustness.py configs/demo.yaml ckpt/demo_teacher --protocol features temporal

CONFIG sets the dataset, the subset (val_split) and inference; each checkpoint has its own network.  Checkpoints of one name are
seeds of one model: their scores are averaged, with the standard deviation.  All models see the same corruptions
(libs/datasets/corruptions.py).  Writes robustness.json and robustness.svg to <output_folder>/<config's name>_robustness/.
"""
from __future__ import annotations

import argparse
import dataclasses
from collections import Counter

import torch

from libs.core.arguments import some_path
from libs.core.config import load_config
from libs.core.devices import resolve_device
from libs.core.errors import UserError, run_main
from libs.datasets.corruptions import CORRUPTIONS, PROTOCOLS, SEVERITIES
from libs.datasets.synthetic.demo import ensure_demo_of
from libs.engine.experiments.robustness import Settings, chart, load_subjects, measure, tables
from libs.engine.runs.checkpoint import find_checkpoint
from libs.engine.runs.run_folder import run_folder
from libs.utils.files.io import write_json_atomic, write_text_atomic
from libs.utils.plotting import svg


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML configuration of the dataset and the evaluation")
    parser.add_argument("ckpts", nargs="+", metavar="CKPT", help="checkpoint files, or folders of runs (their last epoch)")
    parser.add_argument("--names", nargs="+", default=None, metavar="NAME",
                        help="one per checkpoint, equal ones are averaged (the name of the run's folder)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--protocol", nargs="+", default=["features"], choices=list(PROTOCOLS),
                       help="corruptions of whole videos, gaps in the middle of actions, or both (features)")
    which.add_argument("--corruptions", nargs="+", default=None, choices=list(CORRUPTIONS), help="which (all of the protocol)")
    parser.add_argument("--severities", nargs="+", type=int, default=list(SEVERITIES), choices=SEVERITIES, help="which (all)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the corruptions (0)")
    parser.add_argument("--modalities", nargs="+", default=None, metavar="NAME",
                        help="corrupt only these of dataset.modalities (all that a model reads)")
    parser.add_argument("--weights", choices=("ema", "raw"), default=None, help="averaged or raw weights (test_cfg.weights)")
    parser.add_argument("-o", "--output", type=some_path, default=None, metavar="FOLDER", help="where to write")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override keys of CONFIG")
    return parser.parse_args()


def names_of(ckpts: list[str], given: list[str] | None) -> list[str]:
    """The given names, else those of the run folders, followed by the file's where several lie in one folder."""
    if given is not None:
        if len(given) != len(ckpts):
            raise UserError(f"--names: {len(given)} names for {len(ckpts)} checkpoints; give one for each, equal ones for seeds")
        return given
    files = [find_checkpoint(c).resolve() for c in ckpts]
    folders = Counter(f.parent.name for f in files)
    return [f.parent.name if folders[f.parent.name] == 1 else f"{f.parent.name}/{f.name.removesuffix('.pth.tar')}" for f in files]


def main() -> None:
    args = parse()
    names = names_of(args.ckpts, args.names)
    config = load_config(args.config, args.set)
    if args.weights:
        config = dataclasses.replace(config, test_cfg=dataclasses.replace(config.test_cfg, weights=args.weights))
    device = torch.device(resolve_device(config))
    ensure_demo_of(config)
    corruptions = args.corruptions or [c for name in args.protocol for c in PROTOCOLS[name]]
    settings = Settings(tuple(dict.fromkeys(corruptions)), tuple(sorted(set(args.severities))), args.seed,
                        None if args.modalities is None else tuple(dict.fromkeys(args.modalities)))
    subjects = load_subjects(config, list(zip(names, args.ckpts, strict=True)))
    result = measure(config, subjects, settings, device, lambda line: print(line, flush=True))
    folder = args.output or run_folder(config, "robustness")
    print(f"\n{tables(result)}\n", flush=True)  # first: not lost if the folder cannot be written
    write_json_atomic(folder / "robustness.json", result)
    write_text_atomic(folder / "robustness.svg", svg(chart(result)))
    print(f"written to {folder}", flush=True)


if __name__ == "__main__":
    run_main(main)
