#!/usr/bin/env python3
"""Tune decoding and NMS without the network, on candidates that eval.py saved.

    python eval.py ckpt/hapt_first --save-candidates
    python tools/sweep_nms.py ckpt/hapt_first
    python tools/sweep_nms.py candidates.npz --grid nms_sigma=0.3,0.4,0.5 max_seg_num=100,200 --at 0.5 --json sweep.json

The first argument is the file, or the folder of an evaluation or of a run (its last epoch).  A second one is a configuration,
whose test_cfg is the baseline, or an annotation JSON; by default both are those of the evaluation.  --set overrides keys.
The mAP of the baseline is exactly that of eval.py.
"""
from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from libs.core.arguments import refuse_source
from libs.core.config import load_config, with_overrides
from libs.core.errors import UserError, note, run_main
from libs.engine.inference.candidates import find_candidates, load_candidates
from libs.engine.inference.nms_sweep import USUAL, Sweep, parse_grid, set_line, settings_of, table
from libs.utils.files.io import check_writable, write_json_atomic
from libs.utils.progress import bar


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("candidates", type=Path, metavar="CANDIDATES",
                        help="candidates.npz of eval.py --save-candidates, or the folder of an evaluation or a run")
    parser.add_argument("data", nargs="?", type=Path, metavar="CONFIG|ANNOTATIONS", help="YAML configuration or annotation JSON")
    parser.add_argument("--grid", nargs="+", default=None, metavar="KEY=V,V", help="keys of test_cfg and the values to try, all "
                        "combinations (default: soft and hard NMS, their sigma or threshold, and voting)")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override configuration keys")
    parser.add_argument("--at", type=float, metavar="TIOU", help="choose by the mAP at this tIoU (default: the average)")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="settings that are shown (10)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every setting and its mAP here")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.jobs < 1 or args.top < 1:
        raise UserError("--jobs and --top: use a number from 1 on")
    path = find_candidates(args.candidates)
    refuse_source(args.json, path, args.data)
    candidates = load_candidates(path)
    config = candidates.config
    if args.data is not None and args.data.suffix.lower() == ".json":
        config = with_overrides(config, [f"dataset.json_file={args.data}", *args.set])
    else:
        config = with_overrides(config, args.set) if args.data is None else load_config(args.data, args.set)
    if args.json:
        check_writable(args.json)
    sweep = Sweep(candidates, config, args.at)
    settings = settings_of(config, USUAL if args.grid is None else parse_grid(args.grid))
    trials = sweep.run(settings, args.jobs, bar(len(settings), "settings", 10))
    split, best = ", ".join(config.val_split), max(trials, key=lambda t: t.value)
    print(f"{candidates.path}: {len(candidates.video_ids)} videos of {split}, {len(settings)} settings; mAP in percent, chosen "
          + ("by the average" if args.at is None else f"at tIoU {args.at:g}"))
    print(table(trials, config.test_cfg, sweep.tious, args.top))
    gain = 100 * (best.value - trials[0].value)
    print(f"best: {gain:+.2f}  {set_line(best.config, config.test_cfg)}" if gain > 0 else "best: the configured setting")
    note(f"note: these settings were chosen on {split}, so its mAP is no longer a fair estimate: report another split's"
         + (", not that of the test split you have tuned on" if "test" in config.val_split else ""))
    if args.json:
        write_json_atomic(args.json, {
            "candidates": str(candidates.path), "split": list(config.val_split), "tiou": sweep.tious.tolist(), "at": args.at,
            "best": {"set": set_line(best.config, config.test_cfg), "gain": best.value - trials[0].value},
            "trials": [{"test_cfg": dataclasses.asdict(t.config), "mAP": list(t.mAP), "value": t.value} for t in trials]})


if __name__ == "__main__":
    run_main(main)
