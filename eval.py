#!/usr/bin/env python3
"""Evaluate a checkpoint: predictions, mAP per tIoU and recall.

    python eval.py ckpt/demo_first
    python eval.py configs/thumos_i3d.yaml ckpt/thumos_i3d_reproduce -epoch 30 --weights raw
    python eval.py configs/thumos_i3d.yaml pretrained/epoch_034.pth.tar
    torchrun --nproc_per_node=4 eval.py configs/thumos_i3d.yaml ckpt/thumos_i3d_reproduce --set devices=cuda

The configuration comes from the checkpoint (or the config.yaml beside it); CONFIG replaces it, and a published checkpoint needs
one.
Writes <checkpoint's folder>/eval/<epoch>_<weights>/: predictions.json (ActivityNet format), predictions.csv,
eval_results.pkl (the published layout), results.json and environment.json; with --save-candidates also candidates.npz, for
tools/sweep_nms.py.  With other settings than the checkpoint's own the folder's name ends in the difference, e.g.
epoch_030_ema_max_seg_num=100.
"""
from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from libs.core.arguments import count, some_path
from libs.core.errors import UserError, run_main
from libs.core.files import is_folder
from libs.datasets.synthetic.demo import ensure_demo_of
from libs.engine.api import config_for
from libs.engine.inference.evaluate import evaluate_checkpoint
from libs.engine.runs.checkpoint import find_checkpoint, load_checkpoint
from libs.engine.runs.run_folder import note_better
from libs.engine.runtime.world import launched
from libs.utils.progress import bar


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="YAML configuration (default: the checkpoint's own)")
    parser.add_argument("ckpt", metavar="CKPT", help="checkpoint file, or a run's folder (its last epoch)")
    parser.add_argument("-epoch", "--epoch", type=int, default=None, metavar="N", help="epoch to load from the folder")
    parser.add_argument("-t", "--topk", type=count, default=None, metavar="TOPK", help="segments kept per video (max_seg_num)")
    parser.add_argument("--saveonly", action="store_true", help="write predictions, compute no mAP")
    parser.add_argument("--save-candidates", action="store_true", help="write what there is before NMS, for tools/sweep_nms.py")
    parser.add_argument("-p", "--print-freq", type=count, default=50, metavar="FREQ", help="videos between progress lines (50)")
    parser.add_argument("--weights", choices=("ema", "raw"), default=None, help="averaged or raw weights (test_cfg.weights)")
    parser.add_argument("--output", type=some_path, default=None, metavar="FOLDER", help="where to write (beside the checkpoint)")
    parser.add_argument("--deterministic", action="store_true", help="refuse operations without a deterministic kernel")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override configuration keys")
    return parser.parse_intermixed_args()  # options may stand between the two


def main() -> None:
    with launched() as world:
        args = parse()
        overrides = list(args.set)
        if args.topk is not None:
            overrides.append(f"test_cfg.max_seg_num={args.topk}")
        if Path(args.ckpt).suffix in (".yaml", ".yml"):
            raise UserError(f"{args.ckpt}: is a configuration; name the checkpoint, or the folder of a run, after it")
        checkpoint = load_checkpoint(find_checkpoint(args.ckpt, args.epoch))
        config = config_for(checkpoint, args.config, overrides, "CONFIG before the checkpoint")
        if args.weights:
            config = dataclasses.replace(config, test_cfg=dataclasses.replace(config.test_cfg, weights=args.weights))
        device = world.start(config)
        if world.is_main and args.epoch is None and is_folder(args.ckpt):
            note_better(checkpoint)
        world.in_turn(lambda: ensure_demo_of(config))
        evaluate_checkpoint(config, checkpoint, device, save_only=args.saveonly, output=args.output,
                            deterministic=args.deterministic,
                            progress=lambda total: bar(total, "videos", args.print_freq), save_candidates=args.save_candidates,
                            world=world)


if __name__ == "__main__":
    run_main(main)
