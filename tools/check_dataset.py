#!/usr/bin/env python3
"""Check a dataset before training: annotations, features, how they fit, which segments can be learned; suggest a configuration.

    python tools/check_dataset.py data/my/annotations.json data/my/features
    python tools/check_dataset.py data/my/annotations.json data/my/features --write configs/my.yaml
    python tools/check_dataset.py data/my/annotations.json data/my/features --config configs/my.yaml

Every problem is listed with its file, its place and its remedy (docs/custom_dataset.md lists the kinds).  Exit code 2 if any
is an error, else 0.
"""
from __future__ import annotations

import argparse

from libs.core.arguments import above_zero, frame_rate, refuse_existing, refuse_same, refuse_source
from libs.core.errors import EXIT_BAD_INPUT, note, run_main
from libs.core.problems import ERROR
from libs.engine.check.dataset_check import CheckOptions, check_dataset, why_no_suggestion
from libs.engine.check.report import as_dict, as_text
from libs.utils.files.io import write_json_atomic, write_text_atomic


def main() -> int:
    args = parse()
    for output in (args.write, args.json):
        refuse_source(output, args.annotations, args.config)
    refuse_same(args.write, args.json)
    refuse_existing(args.write, args.overwrite)
    options = CheckOptions(args.config, args.feat_stride, args.num_frames, args.fps, args.prefix, args.ext, not args.headers_only,
                           overrides=args.set)
    report = check_dataset(args.annotations, args.features, options)
    print(as_text(report, None if args.all else 10), flush=True)
    if args.json:
        write_json_atomic(args.json, as_dict(report))
    if args.write and report.suggestion is None:
        note(f"{args.write}: not written: {why_no_suggestion(report)}")
    elif args.write:
        write_text_atomic(args.write, report.suggestion)
        print(f"suggested configuration written to {args.write}")
    return EXIT_BAD_INPUT if report.problems.counts()[ERROR] else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", metavar="ANNOTATIONS", help="annotation JSON")
    parser.add_argument("features", metavar="FEATURES", nargs="+", help="folder of feature files, or one .h5 file; several are "
                        "joined along channels")
    parser.add_argument("--config", metavar="YAML", help="check against this configuration too")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override its keys")
    parser.add_argument("--write", metavar="YAML", help="write the suggested configuration there")
    parser.add_argument("--overwrite", action="store_true", help="--write may replace a file")
    parser.add_argument("--json", metavar="OUT", help="write the whole report as JSON")
    parser.add_argument("--all", action="store_true", help="print every finding, not only ten of a kind")
    parser.add_argument("--headers-only", action="store_true", help="do not read feature values (no check for NaN, equal or "
                        "constant files)")
    parser.add_argument("--feat-stride", type=above_zero, metavar="N", help="frames between two feature vectors")
    parser.add_argument("--num-frames", type=above_zero, metavar="N", help="frames that a feature vector sees")
    parser.add_argument("--fps", type=frame_rate, metavar="F", help="frames per second of all videos (default: each entry's fps)")
    parser.add_argument("--prefix", metavar="TEXT", help="text before the video id in file names (default: from the files)")
    parser.add_argument("--ext", metavar=".EXT", help="text after it, e.g. .npy (default: from the files)")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
