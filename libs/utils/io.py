"""Files that appear whole or not at all."""
from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from libs.core.errors import UserError
from libs.core.files import read_text


def write_atomic(path: str | os.PathLike, write: Callable[[IO[bytes]], None]) -> None:
    """Call `write(binary file)` on a temporary neighbour, fsync it and rename it to `path`.

    A crash or a full disk leaves the previous file as it was.  Raises UserError naming the path when the folder cannot be
    written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed: free some space "
                        "or choose another output folder") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def write_text_atomic(path: str | os.PathLike, content: str) -> None:
    """`write_atomic` for text (UTF-8)."""
    write_atomic(path, lambda file: file.write(content.encode("utf-8")))


def write_json_atomic(path: str | os.PathLike, value: Any, indent: int | None = 1) -> None:
    """`write_atomic` for JSON; NaN and infinity are refused (ValueError), since other readers would choke on them."""
    write_text_atomic(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def check_writable(path: str | os.PathLike) -> None:
    """Raise the UserError of `write_atomic` now, before long work, if `path` cannot be written; makes its folder."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another output folder") from error


def read_json(path: str | os.PathLike, what: str) -> Any:
    """Parsed JSON; UserError names the file and the line of a syntax error."""
    try:
        return json.loads(read_text(path, what))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error.msg}, line {error.lineno} column {error.colno}); "
                        f"expected a {what}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
