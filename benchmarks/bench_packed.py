#!/usr/bin/env python3
"""Random training crops from packed features against the same features in other files: time, files opened, size on disk.

    python benchmarks/bench_packed.py [--videos 300] [--channels 512] [--crop 512] [--folder /mnt/share] [--json packed.json]

Writes random features of T between 400 and 2400 under --folder (default: the system's temporary folder).  `warm`: files lie in
the page cache; `cold`: the system was asked to drop them before every round.  All layouts take turns in every round.
"""
from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from common import arguments, device_of, machine, report

from libs.core.errors import run_main
from libs.datasets.features.packing import Stream, pack_stream
from libs.datasets.features.store import FeatureStore


def write_layouts(folder: Path, videos: int, channels: int) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """The same features in every layout: name -> (folder or file, extension), and the video ids."""
    rng, names = np.random.default_rng(0), [f"v{i:05d}" for i in range(videos)]
    for layout in ("npy", "deflated", "h5"):
        (folder / layout).mkdir()
    for name in names:
        feats = rng.standard_normal((int(rng.integers(400, 2400)), channels)).astype(np.float32)
        np.save(folder / "npy" / f"{name}.npy", feats)
        np.savez_compressed(folder / "deflated" / f"{name}.npz", feats=feats)
        with h5py.File(folder / "h5" / f"{name}.h5", "w") as file:
            file["feats"] = feats
    stream = Stream("features", FeatureStore(str(folder / "npy")), "")
    for dtype in ("float32", "float16"):
        pack_stream(stream, {"training": names}, folder / dtype, dtype, False, lambda line: None)
    layouts = {"a .npy per video": ("npy", ".npy"), "a deflated .npz per video": ("deflated", ".npz"),
               "an .h5 per video": ("h5", ".h5"),
               "packed float32": ("float32/features.h5", ".npy"), "packed float16": ("float16/features.h5", ".npy")}
    return {name: (str(folder / place), extension) for name, (place, extension) in layouts.items()}, names


def files_of(place: str) -> list[Path]:
    return sorted(p for p in Path(place).rglob("*") if p.is_file()) if Path(place).is_dir() else [Path(place)]


def forget(place: str) -> None:
    """Ask the system to drop a layout's files from its page cache."""
    for path in files_of(place):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Opened:
    """Counts the feature files that Python, numpy and h5py open under a folder while it is entered."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self._on, self._open = str(folder), 0, False, h5py.File
        sys.addaudithook(self._event)

    def _event(self, event: str, args: tuple) -> None:
        if self._on and event == "open" and str(args[0]).startswith(self.folder):
            self.count += 1

    def during(self, call: Callable[[], object]) -> int:
        """Files opened by one call."""
        self.count, self._on = 0, True

        def counted(path: Any, *args: Any, **kwargs: Any) -> h5py.File:  # opens inside the HDF5 library raise no event
            self.count += 1
            return self._open(path, *args, **kwargs)
        h5py.File = counted
        try:
            call()
        finally:
            h5py.File, self._on = self._open, False
        return self.count


def crops(store: FeatureStore, names: list[str], lengths: list[int], crop: int, count: int, seed: int) -> list[float]:
    """Seconds of each of `count` random crops, the same for every layout."""
    rng, seconds = np.random.default_rng(seed), []
    out = np.empty((crop, store.shape(names[0])[1]), np.float32)
    for _ in range(count):
        i = int(rng.integers(len(names)))
        size = min(crop, lengths[i])
        start = int(rng.integers(0, lengths[i] - size + 1))
        began = time.perf_counter()
        store.read(names[i], slice(start, start + size), None, out[:size])
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--crop", type=int, default=512, help="feature vectors of a crop")
    parser.add_argument("--crops", type=int, default=300, help="crops per round")
    parser.add_argument("--runs", type=int, default=5, help="rounds")
    parser.add_argument("--folder", type=Path, help="where to write, e.g. a network disk")
    args = parser.parse_args()
    device_of(args.device)
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        layouts, names = write_layouts(folder, args.videos, args.channels)
        opened, rows = Opened(folder), []
        stores = {layout: FeatureStore(place, None, extension) for layout, (place, extension) in layouts.items()}
        lengths = [stores["packed float32"].length(v) for v in names]
        warm: dict[str, list[float]] = {layout: [] for layout in layouts}
        cold: dict[str, list[float]] = {layout: [] for layout in layouts}
        for seed in range(args.runs):
            for layout, (place, _) in layouts.items():
                forget(place)
                cold[layout].append(statistics.mean(crops(stores[layout], names, lengths, args.crop, args.crops, seed)))
                crops(stores[layout], names, lengths, args.crop, args.crops, seed)
                warm[layout].append(statistics.mean(crops(stores[layout], names, lengths, args.crop, args.crops, seed)))
        for layout, (place, extension) in layouts.items():
            began = time.perf_counter()
            fresh = FeatureStore(place, None, extension)
            count = opened.during(lambda fresh=fresh: [fresh.length(v) for v in names])
            looked = time.perf_counter() - began
            count += opened.during(lambda fresh=fresh: crops(fresh, names, lengths, args.crop, args.crops, 0))
            row = {"layout": layout, "files": len(files_of(place)), "MiB": sum(p.stat().st_size for p in files_of(place)) / 2**20,
                   "all lengths ms": looked * 1e3, f"opened for lengths and {args.crops} crops": count}
            for title, found in (("warm", warm[layout]), ("cold", cold[layout])):
                row |= {f"{title} ms a crop": statistics.median(found) * 1e3,
                        f"{title} spread": f"{min(found) * 1e3:.2f} to {max(found) * 1e3:.2f}"}
            rows.append(row)
    title = f"{args.videos} videos, {args.channels} channels, crops of {args.crop}, {args.runs} rounds of {args.crops}"
    report(title, rows, args)


if __name__ == "__main__":
    run_main(main)
