"""What the tests of distillation share: a tiny two-stream data set, teachers as files, the configuration of a student, and what
fit() makes of it before its first step.

    data, teacher, conv_teacher = distill_cases.data, distill_cases.teacher, distill_cases.conv_teacher      fixtures
    its = save_teacher(two_stream(data, tmp_path), tmp_path / "teacher.pth.tar", seed=1)                     nothing is trained
    setup = Setup(student(data, tmp_path, [teacher, its], model=RGB_ONLY))
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Data, data_config, merged, show_every_term, write_data

from libs.core.config import to_dict
from libs.core.schema import Config
from libs.datasets.dataset import TalDataset
from libs.datasets.loading.loader import batches, training_loader
from libs.engine.distill.streams import streams_to_read
from libs.engine.distill.teachers import load_teachers
from libs.engine.runs.checkpoint import save_checkpoint
from libs.engine.runtime.determinism import seed_everything
from libs.engine.training.objective import DistillationObjective
from libs.engine.training.trainer import Trainer
from libs.modeling.losses.distillation import resolve
from libs.modeling.model import build_model

CPU = torch.device("cpu")
MODALITIES = {"rgb": [0, 3], "flow": [3, 6]}
RGB_ONLY = {"modalities": ["rgb"], "hallucinator": "separable", "hallucinated": ["flow"]}
MORE = ("t1", "t3")
EVERY_TERM = {"stem": {"weight": 1.0}, "pyramid": {"weight": 1.0}, "inputs": {"weight": 1.0}}
SMALL: dict[str, Any] = {
    "dataset": {"modalities": MODALITIES, "max_seq_len": 72, "crop_ratio": None},  # the longest video has 70 steps
    "model": {"embd_dim": 8, "fpn_dim": 8, "head_dim": 8},
    "train_cfg": {"dropout": 0.0, "droppath": 0.2},
    "opt": {"epochs": 1, "warmup": False},
}


def move_more(document: dict[str, Any], annotated: bool = False) -> None:
    """The training videos MORE into a subset of their own, "more", with or without their annotations."""
    for video in MORE:
        document["database"][video]["subset"] = "more"
        if not annotated:
            del document["database"][video]["annotations"]


def two_stream(data: Data, folder: Path, **sections: Any) -> Config:
    """A model that reads all six channels, uncropped videos, one epoch."""
    return data_config(data, folder, **merged(SMALL, sections))


def save_teacher(config: Config, path: Path, seed: int = 0) -> Path:
    """A checkpoint of random weights that show every term; averaged weights from `seed`, raw ones from `seed` + 100."""
    path.parent.mkdir(parents=True, exist_ok=True)
    averaged, raw = (show_every_term(build_model(config), s).state_dict() for s in (seed, seed + 100))
    save_checkpoint(path, 1, raw, averaged, {}, {}, {"config": to_dict(config)})
    return path


def student(data: Data, folder: Path, teachers: Sequence[Path | dict[str, Any]], **sections: Any) -> Config:
    """The configuration of a student of some teachers: files, or entries of distill.teachers."""
    entries = [entry if isinstance(entry, dict) else {"checkpoint": str(entry)} for entry in teachers]
    distill = {"teachers": entries, "cache_folder": str(folder / "cache")}
    return two_stream(data, folder, **merged({"distill": distill}, sections))


def weights_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts agree in names, order and every bit."""
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


class Setup:
    """What fit() makes of a student's configuration before its first step, in evaluation mode, and the batches of the first
    epoch; `made`: teacher outputs that were computed for the cache."""

    def __init__(self, config: Config):
        seed_everything(config.init_rand_seed)
        self.config, self.settings = config, resolve(config)
        self.teachers = load_teachers(config, self.settings, CPU)
        cached = self.settings.outputs == "cache"
        self.read = config.model.modalities if cached else streams_to_read(config, [t.config for t in self.teachers])
        train_set = TalDataset(config, config.train_split, True, self.read)
        loader, sampler = training_loader(train_set, config, teachers=[t.config for t in self.teachers])
        self.model = build_model(config)
        self.objective = DistillationObjective(self.model, config, self.settings, self.teachers, self.read).eval()
        self.trainer = Trainer(self.objective, config, len(sampler))
        self.made = self.objective.teacher_outputs.prepare([v.id for v in train_set.videos], CPU) if cached else 0
        self.batches = list(batches(loader))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Annotations and features of two streams; a test that changes files copies them first."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-stream transformer of width 8."""
    folder = tmp_path_factory.mktemp("teacher")
    return save_teacher(two_stream(data, folder), folder / "transformer.pth.tar", seed=1)


@pytest.fixture(scope="module")
def conv_teacher(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-stream convolutional network of width 8."""
    folder = tmp_path_factory.mktemp("teacher")
    return save_teacher(two_stream(data, folder, model={"backbone_type": "conv"}), folder / "conv.pth.tar", seed=2)
