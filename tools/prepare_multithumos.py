"""MultiTHUMOS: the official text files -> our JSON.  Videos and features are those of THUMOS14.

    python tools/prepare_multithumos.py multithumos data/multithumos/annotations/multithumos.json

Durations and subsets come from thumos14.json (tools/prepare_thumos.py).  See docs/datasets.md.
"""
from __future__ import annotations

import argparse

from libs.core.arguments import refuse_existing, refuse_source
from libs.core.errors import run_main
from libs.datasets.prepare.multithumos import convert_multithumos
from libs.datasets.prepare.thumos import ANNOTATIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="FOLDER", help="the unpacked download: annotations/<Class>.txt, class_list.txt")
    parser.add_argument("out", metavar="OUT", help="annotation file to write")
    parser.add_argument("--thumos", default=f"data/thumos/{ANNOTATIONS}", metavar="JSON",
                        help=f"thumos14.json (default: data/thumos/{ANNOTATIONS})")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args()
    refuse_source(args.out, args.thumos)
    refuse_existing(args.out, args.overwrite)
    document = convert_multithumos(args.source, args.thumos)
    document.write(args.out)
    print("\n".join([*document.summary(), f"written to {args.out}"]))


if __name__ == "__main__":
    run_main(main)
