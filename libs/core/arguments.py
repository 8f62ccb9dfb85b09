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


def refuse_source(output: str | os.PathLike | None, *sources: str | os.PathLike | None) -> None:
    """Raise UserError if the file `output`, which would be replaced, is one of the files that are read; None: no file."""
    if output is None or not exists(output):
        return
    if any(source is not None and exists(source) and os.path.samefile(output, source) for source in sources):
        raise UserError(f"{output}: is read by this command and would be replaced; choose another name for the output")
