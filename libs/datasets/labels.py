"""Class names of a model from a file: an annotation JSON, or a plain list."""
from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from libs.core.errors import UserError
from libs.core.files import read_text
from libs.datasets.annotations import load_annotations
from libs.utils.files.io import read_json


def read_labels(path: str | os.PathLike, num_classes: int) -> dict[int, str]:
    """Class id -> name.  path: an annotation JSON; a JSON list of names or object {name: id}; or text, one name per line.

    The ids of a list are its positions, from 0.  Raises UserError naming the file when it is none of these, repeats a name, or
    does not fit `num_classes` (an annotation file may name fewer).
    """
    path, annotated = Path(path), False
    if path.suffix.lower() == ".json":
        content = read_json(path, "file of class names")
        if isinstance(content, dict) and "database" in content:
            content, annotated = load_annotations(path, allow_unlabelled=True).label_ids, True
    else:
        content = [line.strip() for line in read_text(path, "file of class names").splitlines() if line.strip()]
    if isinstance(content, list):
        pairs = list(enumerate(content))
    elif isinstance(content, dict):
        pairs = [(number, name) for name, number in content.items()]
    else:
        pairs = []
    if not pairs or not all(isinstance(name, str) and isinstance(number, int) and not isinstance(number, bool)
                            for number, name in pairs):
        raise UserError(f"{path}: holds no class names; expected an annotation JSON, a JSON list of names or {{name: id}}, or a "
                        "text file with one name per line")
    if twice := sorted(name for name, count in Counter(name for _, name in pairs).items() if count > 1):
        raise UserError(f"{path}: names {twice[0]!r} twice; every class needs a name of its own")
    names = dict(pairs)
    highest = max(names)
    if min(names) < 0 or highest >= num_classes or (not annotated and len(names) != num_classes):
        raise UserError(f"{path}: names {len(names)} classes, the highest id is {highest}; the checkpoint has {num_classes} "
                        f"classes (ids 0 to {num_classes - 1})")
    return names
