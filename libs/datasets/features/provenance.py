"""provenance.json beside feature files: their network and their frames; written by tools/extract_features.py.

Feature vector t of a file covers frames t * stride .. t * stride + num_frames - 1 (counted at `fps`, where that is set).
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from libs.core.errors import UserError
from libs.core.files import is_file
from libs.utils.files.io import read_json

FILE_NAME = "provenance.json"


class Provenance(NamedTuple):
    """Grid of a folder of features: stride in frames, frames per vector; content: the whole file."""

    path: str
    stride: float
    num_frames: float
    content: dict[str, Any]


def read_provenance(folder: str | os.PathLike) -> Provenance | None:
    """The provenance of a folder of features, None if it has no such file.

    Raises UserError unless the file is JSON with a stride and num_frames above 0.
    """
    path = Path(folder) / FILE_NAME
    if not is_file(path):
        return None
    content = read_json(path, "provenance file")
    content = content if isinstance(content, dict) else {}
    stride, num_frames = content.get("stride"), content.get("num_frames")
    if not (_is_positive(stride) and _is_positive(num_frames)):
        raise UserError(f"{path}: stride and num_frames are {stride!r} and {num_frames!r}; expected numbers of frames above 0: "
                        "correct the file, or remove it")
    return Provenance(str(path), float(stride), float(num_frames), content)


def _is_positive(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
