"""A small dataset with a planted signal for any configuration: real widths, stride, frame rate and number of classes.

    python tools/make_planted_for.py configs/anet_tsp.yaml --out data/planted_anet --train 64 --val 16
    python train.py data/planted_anet/anet_tsp.yaml --output trial --set opt.early_stop_epochs=1

Writes OUT/annotations.json, OUT/<feature folders>/ and OUT/<configuration>.yaml, which reads them; see
libs/datasets/synthetic/planted_config.py.
"""
from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from libs.core.arguments import some_path
from libs.core.config import load_config
from libs.core.errors import UserError, run_main
from libs.datasets.synthetic.planted import Difficulty
from libs.datasets.synthetic.planted_config import plant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML configuration")
    parser.add_argument("--out", type=some_path, required=True, help="e.g. data/planted_anet")
    parser.add_argument("--train", type=int, default=16, help="training videos (16)")
    parser.add_argument("--val", type=int, default=8, help="validation videos (8)")
    parser.add_argument("--annotations", metavar="JSON", help="take the videos from this file (default: generated ones)")
    parser.add_argument("--seconds", type=float, nargs=2, default=(60.0, 180.0), metavar=("LOW", "HIGH"),
                        help="length of generated videos (60 to 180)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hard", type=float, default=1.0, help="nuisance level (style, misses, jitter, distractors), 0 = none")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override configuration keys")
    args = parser.parse_args()
    low, high = args.seconds
    if not 2 <= low <= high < 1e5 or not 0 <= args.hard < 100:
        raise UserError(f"--seconds {low:g} {high:g} --hard {args.hard:g}: expected 2 <= LOW <= HIGH < 1e5, 0 <= HARD < 100")
    config = load_config(args.config, args.set)
    path = plant(config, args.out, args.train, args.val, args.annotations, args.seed, (low, high),
                 dataclasses.replace(Difficulty(), hard=args.hard))
    print(f"{args.train} training and {args.val} validation videos for {Path(args.config).name}: {path}")


if __name__ == "__main__":
    run_main(main)
