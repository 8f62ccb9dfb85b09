"""Ego4D Moment Queries: the official annotation files and features -> our JSON and features of clips.

    python tools/prepare_ego4d.py moments_train.json moments_val.json --out data/ego4d \
        --features slowfast=v1/slowfast8x8_r101_k400 omnivore=v1/omnivore_video_swinl

Writes OUT/annotations/ego4d.json, one entry per clip, and with --features NAME=FOLDER (<video_uid>.pt of whole videos, stride 16)
OUT/NAME_features/<clip_uid>.npy.  See docs/datasets.md.
"""
from __future__ import annotations

import argparse
import re
from pathlib import Path

from libs.core.arguments import refuse_existing, some_path
from libs.core.errors import UserError, run_main
from libs.datasets.prepare.ego4d import ANNOTATIONS, convert_ego4d, cut_features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="+", metavar="JSON", help="moments_train.json, moments_val.json (and the test file)")
    parser.add_argument("--out", type=some_path, default="data/ego4d", help="folder to write to (default: data/ego4d)")
    parser.add_argument("--features", nargs="+", default=[], metavar="NAME=FOLDER", help="features of videos to cut into clips")
    parser.add_argument("--ext", default=".pt", help="extension of these features (default: .pt)")
    parser.add_argument("--overwrite", action="store_true", help="replace the annotation file if it exists")
    args = parser.parse_args()
    sets = {}
    for item in args.features:
        name, _, folder = item.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9-]+", name) or not folder or name in sets:
            raise UserError(f"--features {item}: expected NAME=FOLDER, e.g. slowfast=v1/slowfast8x8_r101_k400, each name once")
        sets[name] = folder
    out = Path(args.out, ANNOTATIONS)
    refuse_existing(out, args.overwrite)
    document = convert_ego4d(args.source)
    content = document.content()
    for line in cut_features(document, sets, args.out, args.ext) if sets else ():
        print(line)
    document.write(out, content)
    print("\n".join([*document.summary(), f"written to {out}"]))


if __name__ == "__main__":
    run_main(main)
