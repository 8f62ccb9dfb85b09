#!/usr/bin/env python3
"""Render short videos of a stick figure, with annotations: a dataset that starts from pixels, without any download.

    python tools/make_clips.py data/clips                                  the 40 clips of make demo-video
    python tools/make_clips.py new --training 0 --validation 1 --first 900      a clip that no training has seen

Writes FOLDER/videos/*.mp4 and FOLDER/annotations.json; clips that are there already are kept.  Needs the extra "video":
pip install -e ".[video]".  libs/datasets/synthetic/clips.py says what is in them.
"""
from __future__ import annotations

import argparse

from libs.core.arguments import some_path
from libs.core.errors import UserError, run_main
from libs.datasets.synthetic.clips import ClipsSpec, make_clips
from libs.utils.progress import bar

SECONDS = (4.0, 3600.0)  # bounds of --seconds


def main() -> None:
    default = ClipsSpec()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=some_path)
    parser.add_argument("--training", type=int, default=default.training, metavar="N", help=f"clips ({default.training})")
    parser.add_argument("--validation", type=int, default=default.validation, metavar="N", help=f"clips ({default.validation})")
    parser.add_argument("--first", type=int, default=default.first, metavar="N", help="number of the first clip (0)")
    parser.add_argument("--seed", type=int, default=default.seed, help=f"of all clips ({default.seed})")
    parser.add_argument("--seconds", type=float, nargs=2, default=default.seconds, metavar=("LOW", "HIGH"),
                        help="shortest and longest clip ({:g} to {:g})".format(*default.seconds))
    args = parser.parse_args()
    low, high = args.seconds
    if not SECONDS[0] <= low <= high <= SECONDS[1]:
        raise UserError(f"--seconds {low:g} {high:g}: expected {SECONDS[0]:g} <= LOW <= HIGH <= {SECONDS[1]:g}")
    if min(args.training, args.validation, args.first, args.seed) < 0 or not args.training + args.validation:
        raise UserError(f"--training {args.training} --validation {args.validation} --first {args.first} --seed {args.seed}: "
                        "expected whole numbers from 0 on, and at least one clip")
    spec = ClipsSpec(args.seed, args.training, args.validation, args.first, (low, high))
    made = make_clips(args.folder, spec, bar(args.training + args.validation, "clips", 10))
    print(f"{made} of {args.training + args.validation} clips written, the others were there; in {args.folder}")


if __name__ == "__main__":
    run_main(main)
