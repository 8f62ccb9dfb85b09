"""The options and the parts of one training run."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader

from libs.datasets.dataset import TalDataset
from libs.datasets.loading.samplers import EpochSampler
from libs.engine.distill.teachers import Teacher
from libs.engine.runs.run_folder import SilentRun
from libs.engine.training.saver import Saver
from libs.engine.training.trainer import Trainer


@dataclass(frozen=True)
class FitOptions:
    """Settings from train.py's command line."""

    resume: str | None = None  # a checkpoint, 'auto' or None
    init_from: str | None = None  # a checkpoint to fine-tune from
    checkpoint_every: int = 5  # epochs
    print_every: int = 10  # iterations
    eval_every: int = 0  # epochs, 0: never
    keep: int | None = None  # the newest checkpoints of epochs, None: all
    save_minutes: float | None = None  # save inside an epoch too, when the last checkpoint is this old
    deterministic: bool = False  # an operation without a deterministic kernel is an error


@dataclass(frozen=True)
class TrainingRun:
    """The parts of one training run."""

    options: FitOptions
    train_set: TalDataset
    val_set: TalDataset | None  # None: no evaluation during training
    loader: DataLoader
    sampler: EpochSampler
    teachers: Sequence[Teacher]
    trainer: Trainer
    log: SilentRun  # a Run in the main process, which alone writes
    saver: Saver
