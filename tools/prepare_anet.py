"""ActivityNet-1.3: the official annotation file -> our JSON.

    python tools/prepare_anet.py activity_net.v1-3.min.json data/anet_1.3/annotations/anet1.3_tsp_filtered.json \
        --features data/anet_1.3/tsp_features
    python tools/prepare_anet.py anet_anno_action.json OUT --video-info video_info_new.csv      (the files that come with BMN)

With --features, videos without a feature file are left out.  See docs/datasets.md.
"""
from __future__ import annotations

import argparse

from libs.core.errors import run_main
from libs.datasets.prepare.anet import PREFIX, convert_activitynet, keep_videos_with_features
from libs.datasets.prepare.document import refuse_existing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="JSON", help="activity_net.v1-3.min.json, or anet_anno_action.json of BMN")
    parser.add_argument("out", metavar="OUT", help="annotation file to write")
    parser.add_argument("--features", metavar="FOLDER", help="feature files (a folder, or one .h5/.hdf5): keep only their videos")
    parser.add_argument("--prefix", default=PREFIX, help=f"before the id in a feature file's name (default: {PREFIX})")
    parser.add_argument("--ext", default=".npy", help="extension of the feature files (default: .npy)")
    parser.add_argument("--video-info", metavar="CSV", help="for a file without subsets: table with the columns video, subset")
    parser.add_argument("--validation-every", type=int, metavar="N", help="for a file without subsets: every N-th id validates")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args()
    out = refuse_existing(args.out, args.overwrite)
    document = convert_activitynet(args.source, "ActivityNet 1.3", "ActivityNet annotation file (JSON)", args.video_info,
                                   args.validation_every)
    if args.features:
        keep_videos_with_features(document, args.features, args.prefix, args.ext)
    document.write(out)
    print("\n".join([*document.summary(), f"written to {out}"]))


if __name__ == "__main__":
    run_main(main)
