"""Names from files: video ids, which become parts of paths and entries of fixed-width text arrays, and labels."""
from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping

MAX_ID_CHARACTERS = 500  # one long id widens every row of a text array


def id_problem(name: object) -> str:
    """Why `name` is not a valid video id, or ''.  Refused: not text, empty, too long, NUL, a path that leaves its folder."""
    if not isinstance(name, str):
        return f"is a {type(name).__name__}, not text"
    if not name:
        return "is empty"
    if len(name) > MAX_ID_CHARACTERS:
        return f"has {len(name)} characters, at most {MAX_ID_CHARACTERS} are read"
    if "\0" in name:
        return "holds a NUL character"
    if name[0] in "/\\" or ".." in name.replace("\\", "/").split("/"):
        return "would lead out of the folder of features"
    return ""


def folded(name: str) -> str:
    """The name without differences of case, spaces and Unicode composition, for comparisons."""
    composed = unicodedata.normalize("NFC", name).casefold()
    return " ".join(unicodedata.normalize("NFC", composed).split())


def folded_label(label: str) -> str:
    """As `folded`; hyphens and underscores between words count as spaces."""
    return re.sub(r"(?<=\S)[\s_-]+(?=\S)", " ", folded(label))


def similar_labels(counts: Mapping[str, int]) -> list[list[str]]:
    """Groups of labels whose `folded_label` is the same, the most frequent spelling first; counts: label -> segments."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in sorted(counts, key=lambda label: -counts[label]):
        groups[folded_label(label)].append(label)
    return [labels for labels in groups.values() if len(labels) > 1]


def spelled(labels: list[str], counts: Mapping[str, int]) -> str:
    """'jump' (18 segments), 'Jump ' (1), for messages."""
    return ", ".join(f"{visible(label)} ({counts[label]}{'' if i else ' segments'})" for i, label in enumerate(labels))


def visible(name: str) -> str:
    """`repr` of a name, with decomposed characters escaped, since they look like composed ones."""
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)
