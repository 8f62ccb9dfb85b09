#!/usr/bin/env python3
"""Train a model.

    python train.py configs/demo.yaml --output first
    python train.py configs/thumos_i3d.yaml --output reproduce --eval-freq 5
    python train.py configs/thumos_i3d.yaml --output reproduce --resume auto
    python train.py configs/distill/demo/student.yaml --output first
    torchrun --nproc_per_node=4 train.py configs/thumos_i3d.yaml --output four --set devices=cuda
    python train.py configs/mine.yaml --output tuned --init-from ckpt/thumos_i3d_reproduce --set opt.learning_rate=1e-5

Writes ckpt/<config>_<output>/: epoch_%03d.pth.tar, config.yaml, config.txt, metrics.jsonl, logs/ (TensorBoard), environment.json.
Ctrl-C, SIGTERM and SIGUSR1 save after the present step (interrupted.pth.tar) and end with exit code 75; --resume auto goes on
from there.  A second Ctrl-C stops at once.  More in docs/reliability.md.
"""
from __future__ import annotations

import argparse
import shlex

from libs.core.arguments import count, run_name
from libs.core.config import load_config
from libs.core.errors import run_main
from libs.datasets.features.provenance import with_extractor
from libs.datasets.synthetic.demo import ensure_demo_of
from libs.engine.distill.teachers import with_run_name
from libs.engine.runs.run_folder import run_folder
from libs.engine.runtime.world import launched
from libs.engine.training.fit import FitOptions, fit


def minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of minutes")
    return value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML configuration")
    parser.add_argument("--output", type=run_name, default="run", metavar="NAME", help="name of the run (default: run)")
    parser.add_argument("--resume", metavar="CKPT|auto", help="go on from a checkpoint; auto: from the run's last one, if any")
    parser.add_argument("--init-from", metavar="CKPT", help="start from the weights of a checkpoint (fine-tuning)")
    parser.add_argument("-c", "--ckpt-freq", type=count, default=5, metavar="FREQ", help="epochs between checkpoints (5)")
    parser.add_argument("-p", "--print-freq", type=count, default=10, metavar="FREQ", help="iterations between log lines (10)")
    parser.add_argument("--eval-freq", type=count, default=None, metavar="N", help="evaluate every N epochs (default: never)")
    parser.add_argument("--keep", type=count, default=None, metavar="N", help="keep the N newest epochs' checkpoints (all)")
    parser.add_argument("--save-minutes", type=minutes, default=None, metavar="M",
                        help="save inside an epoch too, when the last checkpoint is M minutes old")
    parser.add_argument("--deterministic", action="store_true", help="refuse operations without a deterministic kernel")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override configuration keys")
    return parser.parse_args()


def main() -> None:
    with launched() as world:
        args = parse()
        config = with_run_name(load_config(args.config, args.set), args.output)
        device = world.start(config)
        world.in_turn(lambda: ensure_demo_of(config))
        config = with_extractor(config)
        folder = run_folder(config, args.output)
        options = FitOptions(resume=args.resume, init_from=args.init_from, checkpoint_every=args.ckpt_freq,
                             print_every=args.print_freq, eval_every=args.eval_freq or 0, keep=args.keep,
                             save_minutes=args.save_minutes, deterministic=args.deterministic)
        fit(config, folder, device, options, world)
        print(f"evaluate with: {shlex.join(['python', 'eval.py', str(folder)])}")


if __name__ == "__main__":
    run_main(main)
