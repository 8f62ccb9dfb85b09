"""Types of command-line arguments, and the check before an output file is overwritten."""
from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

from libs.core.errors import UserError
from libs.core.files import exists
from libs.core.schema import FPS_LIMITS


def above_zero(text: str) -> float:
    """A finite number above 0 (an argparse type)."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def count(text: str) -> int:
    """A whole number above 0 (an argparse type)."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value


def frame_rate(text: str) -> float:
    """Frames per second within FPS_LIMITS (an argparse type)."""
    value, (low, high) = float(text), FPS_LIMITS
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text} frames per second: expected a number from {low:g} to {high:g}")
    return value


def run_name(text: str) -> str:
    """A part of the name of a folder (an argparse type); UserError for nothing and for a path."""
    if not text.strip() or "/" in text or os.sep in text or "\0" in text:
        raise UserError(f"--output {text!r}: is a part of the name of a folder, <output_folder>/<configuration>_NAME; give a "
                        "name without /, and set output_folder to write elsewhere")
    return text


def some_path(text: str) -> Path:
    """A path, but not '', which would be the present folder (an argparse type)."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a folder, or . for the present one")
    return Path(text)


def shard(text: str) -> tuple[int, int]:
    """I/N, part I of N parts that count from 0 (an argparse type)."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text}: expected I/N, part I of N, from 0/N to N-1/N")
    return int(part), int(parts)


def share(text: str) -> float:
    """A number between 0 and 1, both excluded (an argparse type)."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def pairs(given: Sequence[str], option: str, expected: str) -> dict[str, str]:
    """What an option says as NAME=VALUE, several times; UserError, with the form that is expected, for other texts."""
    found = [text.partition("=") for text in given]
    for text, (name, equals, value) in zip(given, found, strict=True):
        if not (name and equals and value):
            raise UserError(f"{option} {text}: expected {expected}")
    return {name: value for name, _, value in found}


def refuse_existing(path: str | os.PathLike | None, overwrite: bool) -> None:
    """Raise UserError if `path` exists and `overwrite` is not set."""
    if path is not None and exists(path) and not overwrite:
        raise UserError(f"{path}: exists already; choose another name, or add --overwrite")


def refuse_repeated(option: str, values: Sequence[object]) -> None:
    """Raise UserError if an option lists a value twice, which would count twice in averages."""
    if twice := [value for i, value in enumerate(values) if value in values[:i]]:
        raise UserError(f"{option}: {twice[0]} occurs twice and would count twice; name each once")


def refuse_same(first: str | os.PathLike | None, second: str | os.PathLike | None) -> None:
    """Raise UserError if two outputs are one file; None: no file."""
    if first is not None and second is not None and os.path.realpath(first) == os.path.realpath(second):
        raise UserError(f"{first}: would be written twice by this command; give its outputs different names")


def refuse_source(output: str | os.PathLike | None, *sources: str | os.PathLike | None) -> None:
    """Raise UserError if the file `output`, which would be replaced, is one of the files that are read; None: no file."""
    if output is None or not exists(output):
        return
    if any(source is not None and exists(source) and os.path.samefile(output, source) for source in sources):
        raise UserError(f"{output}: is read by this command and would be replaced; choose another name for the output")
