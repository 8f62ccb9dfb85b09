"""Videos that an evaluation leaves out: a text file with one video id per line.

    ids = read_excluded("wrong_annotations.txt", annotations.videos, "thumos14.json")
"""
from __future__ import annotations

import os
from collections.abc import Collection

from libs.core.errors import UserError, nearest
from libs.core.files import read_text


def read_excluded(path: str | os.PathLike, known: Collection[str], source: str) -> frozenset[str]:
    """The ids of a file; empty lines and lines that begin with # count for nothing.

    UserError for a file without any id, and for ids that `known`, the videos of the annotations `source`, lacks.
    """
    lines = (line.strip() for line in read_text(path, "list of videos to leave out").splitlines())
    ids = [line for line in lines if line and not line.startswith("#")]
    if not ids:
        raise UserError(f"{path}: names no video; write one video id per line, or leave the option out")
    if strange := [video for video in ids if video not in known]:
        some = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        raise UserError(f"{path}: {len(strange)} of {len(ids)} videos are unknown to {source} ({some})"
                        f"{nearest(strange[0], known)}; write the ids as there, or take them out")
    return frozenset(ids)
