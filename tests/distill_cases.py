"""What the tests of distillation share: a tiny two-stream data set, teachers as files, and the configuration of a student.

    teacher = save_teacher(two_stream(data, tmp_path), tmp_path / "teacher.pth.tar", seed=1)     nothing is trained
    config = student(data, tmp_path, [teacher], model=RGB_ONLY)
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from helpers import Data, data_config, merged, show_every_term

from libs.core.config import to_dict
from libs.core.schema import Config
from libs.engine.checkpoint import save_checkpoint
from libs.modeling.model import build_model

MODALITIES = {"rgb": [0, 3], "flow": [3, 6]}
RGB_ONLY = {"modalities": ["rgb"], "hallucinator": "separable", "hallucinated": ["flow"]}
SMALL: dict[str, Any] = {
    "dataset": {"modalities": MODALITIES, "max_seq_len": 72, "crop_ratio": None},  # the longest video has 70 steps
    "model": {"embd_dim": 8, "fpn_dim": 8, "head_dim": 8},
    "train_cfg": {"dropout": 0.0, "droppath": 0.2},
    "opt": {"epochs": 1, "warmup": False},
}


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
