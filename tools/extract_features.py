#!/usr/bin/env python3
"""Extract features of raw videos with a named extractor.

    python tools/extract_features.py videos/ features                     appearance and motion, without any weights
    python tools/extract_features.py videos/ features --extractor i3d --rgb-model rgb_imagenet.pt --flow-model flow_imagenet.pt
    python tools/extract_features.py videos/*.mp4 -o features --extractor program:network.pt2 --num-frames 16 --stride 4

Writes one float32 (T, C) .npy per video and provenance.json with the settings.  Finished videos are skipped, so the same command
resumes after an interruption; given again beside it, also on another machine or by torchrun, it does the videos that no other
process works on.  Options that are not given have the values of the extractor or its preset; an option that it does
not have is refused.  Needs the extra "video": pip install -e ".[video]".
Load only programs that you trust: they run what their author wrote.  docs/features.md has the details.
"""
from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from libs.core.arguments import above_zero, count, frame_rate, shard, some_path
from libs.core.errors import UserError, run_main
from libs.core.files import entries, is_file
from libs.datasets.features.formats import VIDEO_EXTENSIONS
from libs.datasets.video.extract import extract_videos, refuse_failed
from libs.datasets.video.extractors import create, spellings
from libs.datasets.video.extractors.base import PRECISIONS
from libs.datasets.video.extractors.i3d import CROPS, FLOW_RULES, POOLS
from libs.datasets.video.extractors.rgb_clips import RESAMPLING
from libs.datasets.video.flow import METHODS
from libs.utils.progress import no_progress

OF_THE_TOOL = ("videos", "output", "extractor", "overwrite", "size", "workers", "shard")  # the others are the extractor's


def main() -> None:
    args = parse()
    videos, output = (args.videos, args.output) if args.output else split(args.videos)
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in vars(args).items()
                if key not in OF_THE_TOOL}
    if args.size:
        settings["resize"] = tuple(args.size)
    name = args.extractor or ("program" if args.rgb_model or args.flow_model else "descriptor")
    extractor = create(name, {**settings, "device": device(args.device)})
    quiet = os.environ.get("RANK", "0") != "0"  # a process of torchrun other than the first
    for line in [] if quiet else extractor.told():
        print(line, flush=True)
    if quiet:
        extract_videos(videos, output, extractor, args.overwrite, no_progress, args.workers, args.shard)
        return  # failed videos are told by process 0, which tries them, too
    made, skipped, failed = extract_videos(videos, output, extractor, args.overwrite, None, args.workers, args.shard)
    others = " or done by other processes" if "RANK" in os.environ else ""
    print(f"{made} videos done, {skipped} were there already{others}; in {output}", flush=True)
    refuse_failed(failed.values(), made + skipped + len(failed))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", metavar="VIDEO", nargs="+", help="video files, or folders of them")
    parser.add_argument("-o", "--output", type=some_path, metavar="FOLDER", help="of the features (the last argument)")
    parser.add_argument("--extractor", metavar="NAME", help=f"one of {', '.join(spellings())} (program where networks are "
                        "named, else descriptor)")
    add = parser.add_argument_group("settings of the extractor; not given: its own").add_argument
    add("--rgb-model", metavar="FILE", help="network or weights for RGB")
    add("--flow-model", metavar="FILE", help="network or weights for flow")
    add("--num-frames", type=count, metavar="T", help="frames of a clip")
    add("--stride", type=count, metavar="N", help="frames between two clips")
    add("--fps", type=frame_rate, metavar="F", help="take frames at this rate (each file's own)")
    add("--resize", type=whole, metavar="S", help="pixels of the shorter side; 0: as stored")
    add("--size", type=count, nargs=2, metavar=("H", "W"), help="exact frame size, in place of --resize")
    add("--crop", type=whole, metavar="S", help="side of the crop; 0: none")
    add("--mean", type=float, nargs=3, metavar="M", help="of RGB in [0, 1]")
    add("--std", type=above_zero, nargs=3, metavar="S", help="of RGB in [0, 1]")
    add("--crops", choices=CROPS, help="i3d: mean over ten crops, the centre, or the whole frame squeezed")
    add("--pool", choices=POOLS, help="i3d: of a window's outputs the first, or their mean")
    add("--drop-first", action=argparse.BooleanOptionalAction, help="i3d: do not use frame 0, which has no flow")
    add("--jpeg", type=whole, metavar="Q", help="i3d: JPEG of this quality before the network; 0: none")
    add("--flow", action=argparse.BooleanOptionalAction, help="descriptor: motion, from optical flow, beside appearance")
    add("--still", type=above_zero, metavar="P", help="descriptor: flow below so many pixels counts as none")
    add("--power", type=above_zero, metavar="A", help="descriptor: of the histograms; 0.5: square root")
    add("--resampling", choices=RESAMPLING, help="torchvision, transformers: how frames are scaled")
    add("--flow-method", choices=METHODS, help="tvl1 needs opencv-contrib-python-headless")
    add("--flow-median", type=count, metavar="S", help="i3d: side of TV-L1's median filter; 1: none")
    add("--flow-bound", type=above_zero, metavar="P", help="i3d: pixels per frame at which flow is cut")
    add("--flow-rule", choices=FLOW_RULES, help="i3d: how flow becomes levels of grey")
    add("--precision", choices=PRECISIONS, help="of a network's products (fp32)")
    add("--batch-size", type=count, metavar="B", help="clips at a time (4)")
    add("--allow-truncated", action="store_true", default=None, help="use what can be decoded of a cut video")
    parser.add_argument("--workers", type=count, default=1, metavar="N", help="videos at a time, a process for each (1)")
    parser.add_argument("--shard", type=shard, default=(0, 1), metavar="I/N", help="part I (from 0) of N parts of the videos")
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda:N or auto (auto)")
    parser.add_argument("--overwrite", action="store_true", help="extract all features of the folder again, with other settings")
    return parser.parse_args()


def split(paths: list[str]) -> tuple[list[str], Path]:
    """(videos, folder of the features) without --output; UserError where the last path is a video or a folder of them."""
    *videos, last = paths
    is_video = last.lower().endswith(VIDEO_EXTENSIONS) or any(p.suffix.lower() in VIDEO_EXTENSIONS for p in entries(last))
    if not videos or not last or is_video or is_file(last):
        raise UserError(f"{last}: the folder of the features is missing; name it last, or with -o FOLDER")
    return videos, some_path(last)


def whole(text: str) -> int:
    """A whole number above 0, or 0 (an argparse type)."""
    return count(text) if int(text) else 0


def device(name: str) -> str:
    """A torch device that is there; UserError otherwise."""
    if name == "auto":
        local = int(os.environ.get("LOCAL_RANK", "0"))  # of torchrun
        return f"cuda:{local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not available here; use cpu or auto") from error
    return name


if __name__ == "__main__":
    run_main(main)
