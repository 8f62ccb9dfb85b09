#!/usr/bin/env python3
"""Cost of data: reading one video, training samples from files, ram and device, what a step waits for, share of padding.

    python benchmarks/bench_data.py [--annotations thumos14.json] [--device cuda] [--runs 7] [--json data.json]

Planted features (2048 channels) are generated in a temporary folder; --annotations: lengths of the real THUMOS14 for the share of
padding.  Prints the machine, markdown tables (seconds, G as in benchmarks/common.py) and writes JSON.
"""
from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, device_of, machine, peak_gib, save, unit_g

from libs.core.config import load_config
from libs.core.errors import run_main
from libs.core.schema import Config
from libs.datasets.dataset import TalDataset
from libs.datasets.grid import expected_length
from libs.datasets.loading.loader import batches, training_loader
from libs.datasets.loading.padding import padding_of
from libs.datasets.synthetic.planted import Difficulty, make_video, make_world
from libs.utils.files.io import read_json, write_json_atomic

ROOT = Path(__file__).resolve().parent.parent
FPS, STRIDE, NUM_FRAMES = 30.0, 4, 16
TYPICAL, LONG = 1200, 6294  # feature vectors of a typical and of a long video of THUMOS14
REFERENCE_G = {TYPICAL: 0.4, LONG: 3.3}  # np.load and transpose: 26 and 229 ms with G = 62 ms


def database(durations: list[float], seed: int = 0) -> dict[str, Any]:
    """Training videos of these durations (s), with a segment in about every 13 seconds."""
    rng, videos = np.random.default_rng(seed), {}
    for i, duration in enumerate(durations):
        starts = rng.uniform(0, max(duration - 8, 1), max(int(duration / 13), 1))
        entries = [{"segment": [float(t), min(float(t) + 4, duration)], "label": f"c{k:02d}", "label_id": int(k)}
                   for t, k in zip(starts, rng.integers(0, 20, len(starts)), strict=True)]
        entries += [{"segment": [0.0, 4.0], "label": f"c{k:02d}", "label_id": k} for k in range(20) if i == 0]
        videos[f"v{i:04d}"] = {"subset": "validation", "duration": duration, "fps": FPS, "annotations": entries}
    return {"version": "generated", "database": videos}


def write(folder: Path, document: dict[str, Any], channels: int) -> list[str]:
    """Annotations and features (T, channels), planted (1 channel: zeros); the settings that read them."""
    (folder / "features").mkdir(parents=True)
    write_json_atomic(folder / "a.json", document)
    world = make_world(0, 20, channels // 2, channels - channels // 2) if channels > 1 else None
    for name, video in document["database"].items():
        steps = expected_length(video["duration"], video["fps"], STRIDE, NUM_FRAMES)
        events = [(*a["segment"], a["label_id"]) for a in video["annotations"]]
        feats = make_video(world, 0, name, steps, events, FPS, Difficulty()) if world else np.zeros((steps, 1), np.float32)
        np.save(folder / "features" / f"{name}.npy", feats)
    files = {"json_file": folder / "a.json", "feat_folder": folder / "features", "input_dim": channels}
    return [f"dataset.{key}={value}" for key, value in files.items()]


def configured(settings: list[str], *more: str) -> Config:
    return load_config(ROOT / "configs" / "thumos_i3d.yaml", [*settings, *more])


def open_dataset(config: Config) -> TalDataset:
    return TalDataset(config, config.train_split, training=True)


def forget(folder: Path) -> None:
    """Ask the system to drop the files of a folder from the page cache, so that the next read comes from the disk."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def alternated(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of each call in turn, `runs` times after one unmeasured round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(runs + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def one_video(settings: list[str], device: torch.device, runs: int) -> dict[str, list[float]]:
    """Whole videos of TYPICAL and LONG steps, into allocated memory, and a window of the long one."""
    dataset, kept = open_dataset(configured(settings)), open_dataset(configured(settings, "loader.cache=ram"))
    on_device = open_dataset(configured(settings, "loader.cache=device"))
    kept.keep()
    on_device.keep(device)
    calls: dict[str, Callable[[], object]] = {}
    for i, steps in enumerate((TYPICAL, LONG)):
        sample, path = dataset.sample(i), Path(dataset.config.dataset.feat_folder) / f"{dataset.videos[i].id}.npy"
        out, there = torch.empty(steps, dataset.channels), torch.empty(steps, dataset.channels, device=device)
        calls[f"{steps} steps: np.load and transpose, as the reference"] = lambda path=path: torch.from_numpy(
            np.ascontiguousarray(np.load(path).astype(np.float32).T))
        calls[f"{steps} steps: from the file"] = lambda s=sample, out=out: dataset.read(s, out)
        calls[f"{steps} steps: from ram"] = lambda s=sample, out=out: kept.read(s, out)
        calls[f"{steps} steps: from {device}"] = lambda s=sample, out=there: on_device.read(s, out)
    part = dataclasses.replace(sample, steps=2304)
    calls[f"2304 of {LONG} steps: from the file"] = lambda: dataset.read(part, out[:2304])
    return alternated(calls, runs)


def samples(settings: list[str], folder: Path, device: torch.device, epochs: int) -> dict[str, list[float]]:
    """Seconds per training sample (batches of 2) in the main process: loader and first epoch from the disk, later epochs."""
    seconds: dict[str, list[float]] = {}
    for cache in ("none", "ram", "device"):
        config = configured(settings, "loader.num_workers=0", f"loader.cache={cache}")
        dataset = open_dataset(config)
        forget(folder)
        for epoch in range(epochs):
            started = time.perf_counter()
            if epoch == 0:
                loader, sampler = training_loader(dataset, config, device=device)
            sampler.epoch = epoch
            for batch in batches(loader):
                batch.to(device)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            name = f"{cache}: first epoch, from the disk" if epoch == 0 else f"{cache}: later epochs"
            seconds.setdefault(name, []).append((time.perf_counter() - started) / (len(sampler) * 2))
    return seconds


def waiting(settings: list[str], device: torch.device, step_s: float, epochs: int) -> dict[str, list[float]]:
    """Seconds that each step (a sleep of `step_s`) waits for its batch, without the first step of every epoch."""
    seconds: dict[str, list[float]] = {}
    for cache, workers in (("none", 0), ("none", 2), ("ram", 2), ("device", 0)):
        config = configured(settings, f"loader.num_workers={workers}", f"loader.cache={cache}")
        loader, sampler = training_loader(open_dataset(config), config, pin=device.type == "cuda", device=device)
        found = seconds.setdefault(f"{cache}, {workers} workers", [])
        for epoch in range(epochs):
            sampler.epoch = epoch
            source, times = batches(loader), []
            while True:
                started = time.perf_counter()
                batch = next(source, None)
                if batch is None:
                    break
                batch.to(device)
                times.append(time.perf_counter() - started)
                time.sleep(step_s)
            found += times[1:]
    return seconds


def padding(settings: list[str], epochs: int) -> list[dict[str, Any]]:
    """Share of padding in training, batches of 2, by padding rule and pool."""
    rows = []
    for bucket in (None, 0, 2, 4, 8, 16, 32, 64):
        rule = "loader.padding=max_seq_len" if bucket is None else f"loader.bucket={bucket}"
        config = configured(settings, rule, "loader.num_workers=0")
        dataset, used, computed = open_dataset(config), 0, 0
        sampler = training_loader(dataset, config)[1]
        for epoch in range(epochs):
            sampler.epoch = epoch
            for batch in sampler:
                steps = [dataset.sample(i).steps for i in batch]
                used += sum(steps)
                computed += len(steps) * padding_of(config, training=True).of_batch(steps)
        rows.append({"rule": rule.replace("=", ": "), "videos": len(dataset), "padding": 1 - used / computed,
                     "steps": computed / (epochs * len(sampler) * 2)})
    return rows


def table(title: str, seconds: dict[str, list[float]], g: float) -> str:
    """Median, spread (smallest to largest) and runs of every row, in ms and G."""
    lines = [f"\n| {title} | ms | spread | G | runs |", "|---|---|---|---|---|"]
    for name, values in seconds.items():
        middle = statistics.median(values)
        lines.append(f"| {name} | {middle * 1e3:.2f} | {min(values) * 1e3:.2f} to {max(values) * 1e3:.2f} | {middle / g:.3f} | "
                     f"{len(values)} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--annotations", type=Path, help="thumos14.json, for the share of padding")
    parser.add_argument("--videos", type=int, default=16, help="training videos of the loaders")
    parser.add_argument("--channels", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--step-ms", type=float, default=100.0, help="length of the steps that wait for data")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    device, rng = device_of(args.device), np.random.default_rng(0)
    print(machine(), flush=True)
    drawn = np.clip(rng.lognormal(5.0, 0.7, 200), 30, 1600).tolist()  # seconds; close to THUMOS14
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exact = [((steps - 1) * STRIDE + NUM_FRAMES) / FPS for steps in (TYPICAL, LONG)]
        two = write(folder / "two", database(exact), args.channels)
        many = write(folder / "many", database(drawn[:args.videos]), args.channels)
        document = read_json(args.annotations, "annotation file") if args.annotations else database(drawn)
        lengths = write(folder / "lengths", document, 1)
        g = unit_g(args.g_runs)
        print(f"G = {g * 1e3:.1f} ms; the reference's reading: " + ", ".join(f"{n} steps {v} G" for n, v in REFERENCE_G.items()))
        timings = {"one video": one_video(two, device, args.runs),
                   "training sample": samples(many, folder / "many" / "features", device, args.epochs),
                   f"a step of {args.step_ms:g} ms waits": waiting(many, device, args.step_ms / 1e3, args.epochs)}
        for title, seconds in timings.items():
            print(table(title, seconds, g), flush=True)
        rows = padding(lengths, args.epochs)
    print("\n| training, batch 2 | share of padding | steps computed per video |\n|---|---|---|")
    for row in rows:
        print(f"| {row['rule']} ({row['videos']} videos) | {100 * row['padding']:.1f} % | {row['steps']:.0f} |")
    print(f"\npeak memory {peak_gib():.2f} GiB")
    save(args, "reading features", rows, g_seconds=g, seconds=timings, peak_gib=peak_gib())


if __name__ == "__main__":
    run_main(main)
