"""ActivityNet-1.3: the official annotation file -> our JSON.

    python tools/prepare_anet.py activity_net.v1-3.min.json data/anet_1.3/annotations/anet1.3_tsp_filtered.json \
        --features data/anet_1.3/tsp_features
    python tools/prepare_anet.py anet_anno_action.json OUT --video-info video_info_new.csv      (the files that come with BMN)

With --features, videos without a feature file are left out.  See docs/datasets.md.
"""
from __future__ import annotations

import argparse

from libs.core.arguments import refuse_existing, refuse_source
from libs.core.errors import run_main
from libs.datasets.prepare.anet import PREFIX, add_arguments, convert_activitynet, keep_videos_with_features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="JSON", help="activity_net.v1-3.min.json, or anet_anno_action.json of BMN")
    add_arguments(parser, PREFIX)
    parser.add_argument("--video-info", metavar="CSV", help="for a file without subsets: table with the columns video, subset")
    parser.add_argument("--validation-every", type=int, metavar="N", help="for a file without subsets: every N-th id validates")
    args = parser.parse_args()
    refuse_source(args.out, args.source, args.video_info)
    refuse_existing(args.out, args.overwrite)
    document = convert_activitynet(args.source, "ActivityNet 1.3", "ActivityNet annotation file (JSON)", args.video_info,
                                   args.validation_every)
    if args.features:
        keep_videos_with_features(document, args.features, args.prefix, args.ext)
    document.write(args.out)
    print("\n".join([*document.summary(), f"written to {args.out}"]))


if __name__ == "__main__":
    run_main(main)
