#!/usr/bin/env python3
"""Extract features of raw videos with your own video network: torch.export (.pt2) or TorchScript (.pt).

    python tools/extract_features.py videos/*.mp4 --rgb-model i3d_rgb.pt2 --num-frames 16 --stride 4 --fps 30 -o data/my/features
    python tools/extract_features.py videos/*.mp4 --rgb-model rgb.pt2 --flow-model flow.pt2 --num-frames 16 --stride 4 -o features

Writes one float32 (T, C) .npy per video (RGB channels, then flow) and provenance.json with the settings.  Finished videos are
skipped, so the same command resumes after an interruption.  Needs the extra "video": pip install -e ".[video]".
Load only networks that you trust: both formats hold programs.  docs/features.md has the details.
"""
from __future__ import annotations

import argparse

import torch

from libs.core.arguments import above_zero, count, frame_rate, some_path
from libs.core.errors import UserError, note, run_main
from libs.datasets.video.extract import ExtractSettings, extract_videos, load_streams
from libs.datasets.video.flow import METHODS


def main() -> None:
    args = parse()
    resize = args.size and tuple(args.size)
    settings = ExtractSettings(
        args.rgb_model, args.flow_model, args.stride, args.num_frames, args.fps, resize or args.resize or None, args.crop or None,
        tuple(args.mean), tuple(args.std), args.flow_method, args.batch_size, device(args.device), args.allow_truncated)
    streams = load_streams(settings)
    for stream in streams:
        print(f"{stream.name}: {stream.path} ({stream.kind}, sha256 {stream.sha256})", flush=True)
    made, skipped, failed = extract_videos(args.videos, args.output, settings, streams, args.overwrite)
    print(f"{made} videos done, {skipped} were there already; in {args.output}", flush=True)
    for line in failed[1:]:
        note(f"failed: {line}")
    if failed:
        raise UserError(failed[0] if len(failed) == 1 else f"{len(failed)} of {len(args.videos)} videos failed (the others are "
                        f"done); the first: {failed[0]}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", metavar="VIDEO", nargs="+", help="video files, or folders of them")
    parser.add_argument("-o", "--output", type=some_path, required=True, metavar="FOLDER")
    parser.add_argument("--rgb-model", metavar="FILE", help="program (B, 3, T, H, W) -> (B, C)")
    parser.add_argument("--flow-model", metavar="FILE", help="program (B, 2, T, H, W) -> (B, C)")
    parser.add_argument("--num-frames", type=count, required=True, metavar="T", help="frames of a clip")
    parser.add_argument("--stride", type=count, required=True, metavar="N", help="frames between two clips")
    parser.add_argument("--fps", type=frame_rate, metavar="F", help="take frames at this rate (default: each file's own)")
    parser.add_argument("--resize", type=whole, default=256, metavar="S", help="pixels of the shorter side; 0: as stored (256)")
    parser.add_argument("--size", type=count, nargs=2, metavar=("H", "W"), help="exact frame size, in place of --resize")
    parser.add_argument("--crop", type=whole, default=224, metavar="S", help="side of the centre crop; 0: none (224)")
    parser.add_argument("--mean", type=float, nargs=3, default=[0.5] * 3, metavar="M", help="of RGB in [0, 1] (0.5 0.5 0.5)")
    parser.add_argument("--std", type=above_zero, nargs=3, default=[0.5] * 3, metavar="S", help="of RGB in [0, 1] (0.5 0.5 0.5)")
    parser.add_argument("--flow-method", choices=METHODS, default="farneback", help="tvl1 needs opencv-contrib (farneback)")
    parser.add_argument("--batch-size", type=count, default=4, metavar="B", help="clips at a time (4)")
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda:N or auto (auto)")
    parser.add_argument("--allow-truncated", action="store_true", help="use what can be decoded of a cut video")
    parser.add_argument("--overwrite", action="store_true", help="extract all features of the folder again, with other settings")
    return parser.parse_args()


def whole(text: str) -> int:
    return count(text) if int(text) else 0


def device(name: str) -> str:
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not available here; use cpu or auto") from error
    return name


if __name__ == "__main__":
    run_main(main)
