"""Shared by the parts of gpu_day.py: what a part is, a batch and a trainer to measure with, programs.

A row has `case` and numbers; `equal` says whether numbers agree that must.
"""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import spread
from planted_thumos import THUMOS, prepare

from libs.core.config import load_config
from libs.core.schema import Config
from libs.datasets.loading.batch import Batch
from libs.engine.distill.teachers import Teacher
from libs.engine.runtime.determinism import seed_everything
from libs.engine.training.objective import DetectionObjective, DistillationObjective
from libs.engine.training.trainer import Trainer
from libs.modeling.losses.distillation import resolve
from libs.modeling.model import build_model

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
TINY = ("model.embd_dim=16", "model.fpn_dim=16", "model.head_dim=16", "model.n_head=2", "dataset.max_seq_len=288")
TENSOR_CORES = 2e-2  # relative error that TF32 and bf16 may have in a loss
EXACT = 1e-4  # of float32, whose sums are taken in another order


class Day(NamedTuple):
    """What a part needs: the device, whether to keep everything tiny, a scratch folder, thumos14.json if it is there."""

    device: str
    tiny: bool
    folder: Path
    annotations: Path | None

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def config(self, name: str, *overrides: str) -> Config:
        """A configuration of configs/ on this device; `tiny`: that of the demo, narrow."""
        chosen = ("demo", TINY) if self.tiny else (name, ())
        return load_config(ROOT / "configs" / f"{chosen[0]}.yaml", [*chosen[1], f"devices=[{self.device}]", *overrides])

    def narrow(self, name: str, *overrides: str) -> Config:
        """A configuration of configs/ on this device with its own kind of network; `tiny`: narrow."""
        small = TINY if self.tiny else ()
        return load_config(ROOT / "configs" / f"{name}.yaml", [*small, f"devices=[{self.device}]", *overrides])

    def prepared(self, name: str, train: int, test: int) -> tuple[Path, list[str]]:
        """THUMOS14-shaped data of so many videos in a folder of that name: the configuration, and overrides that read them."""
        folder = self.folder / name
        folder.mkdir()
        source, small = (ROOT / "configs" / "demo.yaml", TINY) if self.tiny else (THUMOS, ())
        path, overrides = prepare(folder, None, train, test, source, small)
        return path, [*small, *overrides, f"devices=[{self.device}]"]


class Part(NamedTuple):
    """What a part finds out, the function that does it, and its time limit."""

    what: str
    run: Callable[[Day], Iterator[Row]]
    limit_s: float


class Video(NamedTuple):
    """A stand-in for `Sample` where only these are read."""

    video_id: str = "v"
    labelled: bool = True
    hidden: tuple[tuple[int, int], ...] = ()


def ms(seconds: Sequence[float]) -> float:
    """Median in milliseconds."""
    return 1e3 * spread(seconds)[1]


def program(*arguments: object, timeout: float = 240, folder: Path = ROOT, **environment: str) -> str:
    """Run a program of this repository in a folder; its standard output.  RuntimeError with the last lines when it fails."""
    found = subprocess.run([sys.executable, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=timeout,
                           env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, check=False)
    if found.returncode:
        raise RuntimeError(f"{Path(str(arguments[0])).name} ended with code {found.returncode}: {found.stderr[-600:].strip()}")
    return found.stdout


def made_batch(config: Config, device: torch.device, seed: int = 0, channels: int | None = None) -> Batch:
    """Random features of the longest length and 16 segments a video, in batches of the configuration's size.

    `channels`: those of the features; None: what the network reads.
    """
    random = torch.Generator().manual_seed(seed)
    size, steps, count = config.loader.batch_size, config.dataset.max_seq_len, 16
    start = torch.rand(size, count, generator=random) * 0.9 * steps
    segments = torch.stack([start, start + 1 + torch.rand(size, count, generator=random) * 0.09 * steps], dim=2)
    feats = torch.randn(size, steps, channels or config.model_channels, generator=random)
    labels = torch.randint(config.dataset.num_classes, (size, count), generator=random)
    return Batch(feats, torch.ones(size, steps, dtype=torch.bool), segments, labels, torch.ones(size, count, dtype=torch.bool),
                 (Video(),) * size).to(device)


def made_trainer(config: Config, teachers: Sequence[Teacher] = (), streams: tuple[str, ...] | None = None) -> Trainer:
    """A freshly initialised trainer, the same in every call; `streams`: those of the batches, where teachers read others."""
    seed_everything(0)
    model = build_model(config)
    objective = (DistillationObjective(model, config, resolve(config), teachers, streams) if teachers
                 else DetectionObjective(model, config))
    return Trainer(objective.to(config.devices[0]), config, 100)
