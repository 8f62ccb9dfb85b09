"""Small configuration files for tests, and the errors that they cause."""
from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from libs.core.config import load_config
from libs.core.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PATHS = "json_file: ann.json, feat_folder: feats"


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def small(folder: Path, text: str = "") -> Path:
    return write(folder, f"dataset: {{{PATHS}}}\n{text}")


def shipped(folder: Path = CONFIGS) -> list[Path]:
    """The configurations of the repository, not those that a user has added; without git or a checkout all that are there."""
    paths = sorted(folder.rglob("*.yaml"))
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, text=True, check=False).stdout
    except OSError:
        return paths
    tracked = {folder / name for name in listed.split("\0")}
    return [path for path in paths if path in tracked] or paths


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)
