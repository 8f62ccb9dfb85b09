"""HACS Segments: the official annotation file -> our JSON.

    python tools/prepare_hacs.py HACS_segments_v1.1.1.json data/hacs/annotations/hacs.json --features data/hacs/slowfast_features

With --features, videos without a feature file are left out.  See docs/datasets.md.
"""
from __future__ import annotations

import argparse

from libs.core.arguments import refuse_existing, refuse_source
from libs.core.errors import run_main
from libs.datasets.prepare.anet import add_arguments, convert_activitynet, keep_videos_with_features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="JSON", help="HACS_segments_v1.1.1.json")
    add_arguments(parser, "")
    args = parser.parse_args()
    refuse_source(args.out, args.source)
    refuse_existing(args.out, args.overwrite)
    document = convert_activitynet(args.source, "HACS 1.1.1", "HACS Segments annotation file (JSON)")
    if args.features:
        keep_videos_with_features(document, args.features, args.prefix, args.ext)
    document.write(args.out)
    print("\n".join([*document.summary(), f"written to {args.out}"]))


if __name__ == "__main__":
    run_main(main)
