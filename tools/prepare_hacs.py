"""HACS Segments: the official annotation file -> our JSON.

    python tools/prepare_hacs.py HACS_segments_v1.1.1.json data/hacs/annotations/hacs.json --features data/hacs/slowfast_features

With --features, videos without a feature file are left out.  See docs/datasets.md.
"""
from __future__ import annotations

import argparse

from libs.core.errors import run_main
from libs.datasets.prepare.anet import convert_activitynet, keep_videos_with_features
from libs.datasets.prepare.document import refuse_existing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="JSON", help="HACS_segments_v1.1.1.json")
    parser.add_argument("out", metavar="OUT", help="annotation file to write")
    parser.add_argument("--features", metavar="FOLDER", help="feature files (a folder, or one .h5/.hdf5): keep only their videos")
    parser.add_argument("--prefix", default="", help="before the id in a feature file's name (default: nothing)")
    parser.add_argument("--ext", default=".npy", help="extension of the feature files (default: .npy)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args()
    out = refuse_existing(args.out, args.overwrite)
    document = convert_activitynet(args.source, "HACS 1.1.1", "HACS Segments annotation file (JSON)")
    if args.features:
        keep_videos_with_features(document, args.features, args.prefix, args.ext)
    document.write(out)
    print("\n".join([*document.summary(), f"written to {out}"]))


if __name__ == "__main__":
    run_main(main)
