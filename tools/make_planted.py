"""Write THUMOS14-shaped features with a planted signal for the official annotations (any width).

The signal: libs/datasets/synthetic/planted.py.

    python tools/make_planted.py --out data/planted --rgb-dim 64 --flow-dim 64 --train 40 --test 40
    python tools/make_planted.py --out data/planted_world1 --preset gap --seed 1 --rgb-dim 64 --flow-dim 64 --train 40 --test 40

A preset sets the options of the signal (--strength to --hard) that are not given.  With `classic`, the default, every seed has
the same videos; with the others a seed is a world of its own, with other features and other videos.

Writes OUT/annotations/thumos14.json (the chosen videos), OUT/i3d_features/<video>.npy, float32 (T, rgb + flow), and
OUT/planted_manifest.json (arguments, shape and sha256 of every file).
"""
from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from libs.core.arguments import some_path
from libs.core.errors import UserError, run_main
from libs.core.files import exists
from libs.datasets.annotations import Video, load_annotations
from libs.datasets.grid import expected_length
from libs.datasets.prepare.thumos import ANNOTATIONS, FEATURES, NUM_FRAMES, PLANTED, STRIDE
from libs.datasets.synthetic.planted import PRESETS, SHARED_RGB, Difficulty, make_video, make_world, pick
from libs.utils.files.io import read_json, write_text_atomic
from libs.utils.files.staging import refuse_foreign, staged
from libs.utils.progress import bar


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", default="data/thumos/" + ANNOTATIONS, help="default: data/thumos/" + ANNOTATIONS)
    parser.add_argument("--out", type=some_path, required=True, help="e.g. data/planted")
    parser.add_argument("--rgb-dim", type=int, default=1024)
    parser.add_argument("--flow-dim", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="classic",
                        help="classic: RGB far below both; gap: as published; strong_flow: flow level with both (classic)")
    parser.add_argument("--strength", type=float, help="action evidence (1)")
    parser.add_argument("--rgb-strength", type=float, help="extra factor on the RGB evidence only (preset)")
    parser.add_argument("--flow-strength", type=float, help="extra factor on the flow evidence only (preset)")
    parser.add_argument("--alike", type=int, help=f"pairs of classes that look alike in RGB, 0 to {len(SHARED_RGB)} (preset)")
    parser.add_argument("--decoys", type=float, help="share of the distractors that look like an action in RGB (preset)")
    parser.add_argument("--faint", type=float, help="share of the instances that nearly lack both streams (preset)")
    parser.add_argument("--hard", type=float, help="nuisance level (style, misses, jitter, distractors), 0 = none (1)")
    parser.add_argument("--train", type=int, default=-1, help="how many Validation-subset videos (-1: all)")
    parser.add_argument("--test", type=int, default=-1, help="how many Test-subset videos (-1: all)")
    parser.add_argument("--unlabelled", type=int, default=0,
                        help="this many further Validation-subset videos, as subset `unlabelled` (0; -1: all others)")
    parser.add_argument("--no-hash", action="store_true", help="leave the sha256 sums out of the manifest")
    args = parser.parse_args()
    if min(args.rgb_dim, args.flow_dim) < 0 or args.rgb_dim + args.flow_dim == 0:
        raise UserError(f"--rgb-dim {args.rgb_dim} --flow-dim {args.flow_dim}: widths are >= 0 and not both 0")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be >= 0")
    level = vars(PRESETS[args.preset])
    for key in level:
        if getattr(args, key) is None:
            setattr(args, key, level[key])
    for key in ("strength", "rgb_strength", "flow_strength", "hard"):
        if not 0 <= getattr(args, key) < math.inf:
            raise UserError(f"--{key.replace('_', '-')} {getattr(args, key)}: must be a finite number >= 0")
    for key in ("decoys", "faint"):
        if not 0 <= getattr(args, key) <= 1:
            raise UserError(f"--{key} {getattr(args, key)}: is a share, from 0 to 1")
    if not 0 <= args.alike <= len(SHARED_RGB):
        raise UserError(f"--alike {args.alike}: is a number of pairs of classes, from 0 to {len(SHARED_RGB)}")
    return args


def read_annotations(path: str) -> tuple[dict[str, Any], dict[str, Video]]:
    """The annotation document as it is, and its videos, with everything checked that the features depend on."""
    document = read_json(path, "THUMOS14 annotation file (thumos14.json; name it with --annotations)")
    annotations = load_annotations(path)
    for video in annotations.videos.values():
        if video.fps is None or not NUM_FRAMES <= video.duration_s * video.fps < math.inf:
            raise UserError(f"{path}: video {video.id!r}: its duration or fps is missing, or gives not one feature; correct it")
    if not annotations.file_ids:
        raise UserError(f"{path}: no video has annotations with a label_id; nothing can be planted")
    return document, annotations.videos


def written_before(manifest: Path) -> set[str]:
    """Names of the feature files that an earlier run listed in its manifest."""
    document = read_json(manifest, "manifest of planted features") if exists(manifest) else {}
    files = document.get("files") if isinstance(document, dict) else None
    return {f"{name}.npy" for name in files} if isinstance(files, dict) else set()


def main() -> None:
    args = parse_arguments()
    (document, all_videos), out = read_annotations(args.annotations), Path(args.out)
    database, choice = document["database"], 0 if args.preset == "classic" else args.seed
    train = pick(database, "validation", args.train, choice)
    others = {k: v for k, v in database.items() if k not in train}
    further = pick(others, "validation", args.unlabelled, choice) if args.unlabelled else []
    if args.unlabelled > 0 and len(further) < args.unlabelled:
        raise UserError(f"--unlabelled {args.unlabelled}: {args.annotations} has only {len(further)} Validation-subset videos "
                        f"beside the {len(train)} of --train; lower one of them")
    keep = train + further + pick(database, "test", args.test, choice)
    if not keep:
        raise UserError(f"{args.annotations}: --train {args.train} --test {args.test} choose no video; ask for at least one")
    if exists(out / ANNOTATIONS) and (out / ANNOTATIONS).samefile(args.annotations) and len(keep) < len(database):
        raise UserError(f"--out {out}: would replace {args.annotations} by {len(keep)} of its {len(database)} videos; "
                        "choose another folder, e.g. data/planted")
    refuse_foreign(out / FEATURES, written_before(out / PLANTED), "choose another --out, e.g. data/planted")
    classes = 1 + max(int(v.labels.max()) for v in all_videos.values() if len(v.labels))
    world = make_world(args.seed, classes, args.rgb_dim, args.flow_dim, args.alike)
    level = Difficulty(**{key: getattr(args, key) for key in vars(PRESETS[args.preset])})
    chosen, files = set(keep), {}
    with staged(out, (FEATURES, ANNOTATIONS, PLANTED)) as folder:
        (folder / FEATURES).mkdir()
        advance = bar(len(keep), "videos")
        for i, name in enumerate(keep, 1):
            video = all_videos[name]
            events = [(*times, label) for times, label in zip(video.segments.tolist(), video.labels.tolist(), strict=True)]
            steps = expected_length(video.duration_s, video.fps, STRIDE, NUM_FRAMES)
            x = make_video(world, args.seed, name, steps, events, video.fps, level)
            np.save(folder / FEATURES / f"{name}.npy", x)
            files[name] = {"shape": list(x.shape), "sha256": None if args.no_hash else hashlib.sha256(x.tobytes()).hexdigest()}
            advance(i, len(keep))
        videos = {k: {**v, "subset": "unlabelled"} if k in further else v for k, v in database.items() if k in chosen}
        subset = {"version": document.get("version", ""), "database": videos}
        write_text_atomic(folder / ANNOTATIONS, json.dumps(subset))
        shown = {k: v for k, v in vars(args).items() if k not in ("out", "annotations")}
        manifest = {"args": shown, "numpy": np.__version__, "shared_rgb": world.shared, "files": files}
        write_text_atomic(folder / PLANTED, json.dumps(manifest, indent=1))
    print(f"{len(keep)} videos, {sum(f['shape'][0] for f in files.values())} steps, written to {out}")


if __name__ == "__main__":
    run_main(main)
