#!/usr/bin/env python3
"""Cost of configs/thumos_i3d.yaml at full size: training steps and test videos on planted two-stream features.

    python benchmarks/full_size.py                                   stand-in annotations, generated
    python benchmarks/full_size.py --annotations thumos14.json       lengths and segments of the real THUMOS14

Prints one markdown table with seconds, G (see benchmarks/common.py) and peak memory; features are written to a temporary folder.
"""
from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import machine, peak_gib, unit_g

from libs.core.config import load_config, resolve_device
from libs.core.errors import run_main
from libs.core.schema import Config
from libs.datasets.dataset import TalDataset
from libs.datasets.loader import batches, training_loader
from libs.engine.objective import DetectionObjective
from libs.engine.predict import predict
from libs.engine.trainer import Trainer, seed_everything
from libs.modeling.model import build_model

ROOT = Path(__file__).resolve().parent.parent


def stand_in(path: Path, videos: int) -> None:
    """Annotations with the shape of THUMOS14: 30 fps, minutes of video, about 16 segments of 20 classes each."""
    rng, database = random.Random(0), {}
    for i in range(2 * videos):
        duration = min(max(rng.lognormvariate(5.0, 0.7), 30.0), 1600.0)
        entries = []
        for _ in range(max(int(duration / 13), 1)):
            start, label = rng.uniform(0, duration - 8), rng.randrange(20)
            entries.append({"segment": [start, start + rng.uniform(1, 8)], "label": f"class{label:02d}", "label_id": label})
        entries += [{"segment": [0.0, 4.0], "label": f"class{c:02d}", "label_id": c} for c in range(20) if i == 0]
        database[f"video{i:04d}"] = {"subset": "validation" if i < videos else "test", "duration": duration, "fps": 30.0,
                                     "annotations": entries}
    path.write_text(json.dumps({"version": "stand-in", "database": database}))


def prepare(folder: Path, annotations: Path | None, train: int, test: int) -> Config:
    """Full-width planted features and the configuration that reads them."""
    if annotations is None:
        annotations = folder / "annotations.json"
        stand_in(annotations, max(train, test))
    subprocess.run([sys.executable, str(ROOT / "tools" / "make_planted.py"), "--annotations", str(annotations), "--out",
                    str(folder / "data"), "--train", str(train), "--test", str(test), "--no-hash"], check=True)
    return load_config(ROOT / "configs" / "thumos_i3d.yaml", [
        f"dataset.json_file={folder / 'data/annotations/thumos14.json'}",
        f"dataset.feat_folder={folder / 'data/i3d_features'}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, default=None)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--videos", type=int, default=5, help="test videos")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        config = prepare(Path(name), args.annotations, 20, args.videos)
        device = torch.device(resolve_device(config))
        seed_everything(config.init_rand_seed)
        print(machine(), flush=True)
        g = unit_g()
        loader, sampler = training_loader(TalDataset(config, config.train_split, training=True), config)
        trainer = Trainer(DetectionObjective(build_model(config), config).to(device), config, len(sampler))
        seconds, losses = [], []
        while len(seconds) < args.steps:
            sampler.epoch = trainer.epoch
            for batch in batches(loader):
                started = time.perf_counter()
                result = trainer.step(batch.to(device))
                losses.append(result["final_loss"].item())
                seconds.append(time.perf_counter() - started)
                print(f"step {len(seconds)}: {tuple(batch.feats.shape)} loss {losses[-1]:.3f} {seconds[-1]:.2f} s", flush=True)
                if len(seconds) == args.steps:
                    break
            trainer.epoch += 1
        trainer.raise_if_not_finite()
        training_peak = peak_gib()
        test = TalDataset(config, config.val_split, training=False)
        started = time.perf_counter()
        found = predict(trainer.model, test, config, device)
        inference = (time.perf_counter() - started) / len(test)
    step = statistics.median(seconds)
    lengths = ", ".join(map(str, test.lengths()))
    print("\n| what | seconds | G | peak GiB |\n|---|---|---|---|")
    print(f"| training step, batch 2 (median of {args.steps}) | {step:.2f} | {step / g:.1f} | {training_peak:.2f} |")
    print(f"| test video, network to NMS (mean of {len(test)}; {lengths} steps; {len(found.score)} segments) | {inference:.2f} | "
          f"{inference / g:.1f} | {peak_gib():.2f} |")
    print(f"\nG = {g * 1e3:.1f} ms; loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    run_main(main)
