#!/usr/bin/env python3
"""Make a small checkpoint for inference: one set of weights, the configuration and the class names.

    python tools/slim_checkpoint.py ckpt/distill/demo/student_first pretrained/demo_student.pth.tar

Optimizer, schedule and the other set of weights, about three quarters of a file, are left out.  The result can be evaluated,
exported, fine-tuned (--init-from), used for prediction and as a teacher; training cannot resume from it.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from libs.core.errors import UserError, run_main
from libs.core.files import exists
from libs.engine.runs.checkpoint import find_checkpoint, load_checkpoint, slim_checkpoint


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", metavar="CKPT", help="checkpoint file, or a run's folder (its last epoch)")
    parser.add_argument("output", type=Path, metavar="OUT", help="file to write, e.g. model.pth.tar")
    parser.add_argument("-epoch", "--epoch", type=int, default=None, metavar="N", help="epoch to load from a folder")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="which weights to keep (ema)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    path = find_checkpoint(args.ckpt, args.epoch)
    if exists(args.output):
        raise UserError(f"{args.output}: exists already; remove it, or choose another name")
    slim_checkpoint(load_checkpoint(path), args.weights, args.output)
    print(f"{args.output}: {args.weights} weights of {path}, {path.stat().st_size / 1e6:.2f} -> "
          f"{args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_main(main)
