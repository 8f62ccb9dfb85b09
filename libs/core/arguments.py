"""Types of command-line arguments, and the check before an output file is overwritten."""
from __future__ import annotations

import argparse
import math
import os

from libs.core.errors import UserError
from libs.core.files import exists


def above_zero(text: str) -> float:
    """A finite number above 0 (an argparse type)."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def share(text: str) -> float:
    """A number between 0 and 1, both excluded (an argparse type)."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def refuse_existing(path: str | os.PathLike | None, overwrite: bool) -> None:
    """Raise UserError if `path` exists and `overwrite` is not set."""
    if path is not None and exists(path) and not overwrite:
        raise UserError(f"{path}: exists already; choose another name, or add --overwrite")
