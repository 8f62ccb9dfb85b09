#!/usr/bin/env python3
"""Frames per second of feature extraction: the plain loop against the overlapped pipeline, on a clip made here.

    python benchmarks/bench_extract.py
    python benchmarks/bench_extract.py --cases descriptor --videos holiday.mp4 --runs 5

Plain: one clip at a time, one crop; decode, prepare the frames and run the network in turn.  Overlapped: as
tools/extract_features.py does it, in float32 and bf16.  The two alternate, run by run, so that both see the same other load; the
ratio is the median of the pairs.  Networks have random weights; those whose library cannot be imported are left out.  Without
decoding: the descriptor's work on frames in memory.  A last row: what equal values of overlapping windows could save in I3D.
"""
from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, device_of, machine, report

from libs.core.errors import UserError, note, run_main
from libs.datasets.video.decoding import read_frames
from libs.datasets.video.encoding import write_video
from libs.datasets.video.extractors import create
from libs.datasets.video.extractors.base import Extractor
from libs.datasets.video.extractors.torchvision_networks import torchvision_library
from libs.datasets.video.extractors.transformers_folder import transformers_library
from libs.datasets.video.i3d_network import ENDPOINTS, InceptionI3D
from libs.datasets.video.one_video import clips, extract_features

NETWORKS = ("r2plus1d_18", "s3d")
CASES = ("descriptor", "i3d", *NETWORKS, "videomae")
RATE, SIZE = 25, {"descriptor": (120, 160)}  # height, width of the clip; the others have I3D's 256 x 340
WINDOW, STRIDE = 16, 4


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--videos", nargs="+", default=[], metavar="FILE", help="of yours, for the descriptor")
    parser.add_argument("--frames", type=int, default=48, help="of the clip for networks; the descriptor's has ten times as many")
    parser.add_argument("--runs", type=int, default=3, help="pairs (3)")
    args = parser.parse_args()
    device_of(args.device)
    print(machine(), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in args.cases:
            frames = args.frames * (10 if case == "descriptor" else 1)
            path = clip(Path(folder, f"{case}.mp4"), frames, SIZE.get(case, (256, 340)))
            make = functools.partial(extractor_of, case, folder, args.device)
            try:
                rows.append({"case": case, **compared(path, make, args.runs)})
            except UserError as error:
                note(f"{case}: left out ({error})")
            if case == "descriptor":
                rows[-1]["cpu_fps_without_decoding"] = without_decoding(path, args.runs)
    rows += [{"case": Path(video).name, **compared(video, lambda precision: create("descriptor", {}), args.runs)}
             for video in args.videos]
    if "i3d" in args.cases:
        rows.append({"case": "equal values of windows, i3d", **reuse(args.runs)})
    report("feature extraction", rows, args, key=["case"])


def clip(path: Path, frames: int, size: tuple[int, int]) -> str:
    """A video of coarse noise that moves, and of a square that moves against it."""
    height, width = size
    noise = np.random.default_rng(0).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    picture = noise.repeat(8, 0).repeat(8, 1)[:height, :width]

    def pictures() -> Iterator[tuple[np.ndarray, Fraction]]:
        for k in range(frames):
            frame, left = np.roll(picture, k, axis=1), 3 * k % (width - 40)
            frame[40:80, left:left + 40] = 255 - frame[40:80, left:left + 40]
            yield frame, Fraction(k, RATE)

    write_video(path, pictures(), Fraction(RATE))
    return str(path)


def extractor_of(case: str, folder: str, device: str, precision: str | None) -> Extractor:
    """The extractor of a case with random weights; precision None: it has no network."""
    if case == "descriptor":
        return create("descriptor", {})
    torch.manual_seed(0)
    if case == "videomae":
        library = transformers_library()
        library.utils.logging.disable_progress_bar()
        library.VideoMAEModel(library.VideoMAEConfig()).save_pretrained(folder)  # of the base size
        Path(folder, "preprocessor_config.json").write_text("{}")  # the package's own values
        return create(f"transformers:{folder}", {"device": device, "precision": precision})
    weights = Path(folder, f"{case}.pth")
    network = InceptionI3D() if case == "i3d" else torchvision_library().models.get_model(case, weights=None)
    torch.save({k: v for k, v in network.state_dict().items() if case != "i3d" or "num_batches" not in k}, weights)
    name = "thumos-i3d-center" if case == "i3d" else f"torchvision:{case}"
    return create(name, {"rgb_model": str(weights), "device": device, "precision": precision})


def compared(path: str, make: Callable[[str | None], Extractor], runs: int) -> dict[str, Any]:
    """Frames per second of the ways through a video, and their ratios to the plain loop."""
    extractor = make(None)
    ways = {"plain": functools.partial(plain, path, extractor), "overlapped": functools.partial(overlapped, path, extractor)}
    if hasattr(extractor.settings, "precision"):
        low = make("bf16")
        ways["bf16"] = functools.partial(overlapped, path, low)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    per_core = []
    for run, (name, way) in itertools.product(range(runs + 1), ways.items()):
        wall, cpu = time.perf_counter(), time.process_time()
        frames = way()
        if run:  # the first warms up
            rates[name].append(frames / (time.perf_counter() - wall))
            if name == "overlapped":
                per_core.append(frames / (time.process_time() - cpu))
    row: dict[str, Any] = {"frames": frames, "runs": runs}
    for name, values in rates.items():
        row[f"{name}_fps"] = statistics.median(values)
        if name != "plain":
            row[f"{name}_ratio"] = statistics.median(b / a for a, b in zip(rates["plain"], values, strict=True))
    return row | {"cpu_fps": statistics.median(per_core)}


def plain(path: str, extractor: Extractor) -> int:
    """The features clip by clip, each step in turn; returns the number of frames."""
    settings = dataclasses.replace(extractor.settings, batch_size=1)
    single = copy.copy(extractor)
    single.settings = settings
    count = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal count
        for frame in read_frames(path, None, functools.partial(single.fit, path), scaling=single.scaling):
            count += 1
            yield frame

    for window in clips(single.prepare(counted(), path), settings.num_frames, settings.stride):
        single.features([window], path)
    return count


def overlapped(path: str, extractor: Extractor) -> int:
    """As tools/extract_features.py does it."""
    return extract_features(path, extractor)[1]["frames"]


def without_decoding(path: str, runs: int) -> float:
    """Frames per second and core of the descriptor, of frames in memory; by CPU time."""
    extractor, rates = create("descriptor", {}), []
    frames = list(read_frames(path, None))
    for _ in range(runs + 1):
        started = time.process_time()
        for window in clips(extractor.prepare(iter(frames), path), WINDOW, STRIDE):
            extractor.features([window], path)
        rates.append(len(frames) / (time.process_time() - started))
    return statistics.median(rates[1:])


@torch.inference_mode()
def reuse(runs: int) -> dict[str, Any]:
    """Of I3D on windows 4 frames apart: the share of time in layers with equal values, and what their reuse saves at most."""
    torch.manual_seed(0)
    network = InceptionI3D().eval()
    x = torch.randn(1, 3, WINDOW + STRIDE, 224, 224)
    first, second = x[:, :, :WINDOW], x[:, :, STRIDE:]
    seconds, equal = dict.fromkeys(ENDPOINTS, 0.0), dict.fromkeys(ENDPOINTS, 0.0)
    for _ in range(runs):
        a, b = first, second
        for name in ENDPOINTS:
            layer = network.get_submodule(name)
            a, started = layer(a), time.process_time()
            b = layer(b)
            seconds[name] += time.process_time() - started
            steps = a.shape[2]
            shift = STRIDE * steps // WINDOW  # outputs between the two windows, 0 where they do not meet
            same = [torch.equal(a[:, :, t + shift], b[:, :, t]) for t in range(steps - shift)] if shift else []
            equal[name] = sum(same) / steps
    total = sum(seconds.values())
    shared = [name for name in ENDPOINTS if equal[name]]
    return {"runs": runs, "share_of_time": sum(seconds[name] for name in shared) / total,
            "saved_at_most": sum(seconds[name] * equal[name] for name in shared) / total,
            "equal_steps": ", ".join(f"{name} {8 * equal[name]:g}/8" for name in shared)}


if __name__ == "__main__":
    run_main(main)
