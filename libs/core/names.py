"""Check video ids from files: ids become parts of paths and entries of fixed-width text arrays."""
from __future__ import annotations

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
