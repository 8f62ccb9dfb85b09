"""Small configuration files for tests, and the errors that they cause."""
from __future__ import annotations

from pathlib import Path

import pytest

from libs.core.config import load_config
from libs.core.errors import UserError

PATHS = "json_file: ann.json, feat_folder: feats"


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def small(folder: Path, text: str = "") -> Path:
    return write(folder, f"dataset: {{{PATHS}}}\n{text}")


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)
