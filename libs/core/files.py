"""Read a file; every failure is a `UserError` that names the path and the expected kind of file."""
from __future__ import annotations

import os
import stat
from pathlib import Path

from libs.core.errors import UserError


def read_text(path: str | os.PathLike, what: str) -> str:
    """The UTF-8 text of a file; `what`: the expected kind of file, for the UserError if it is missing or unreadable."""
    try:
        refuse_special(path, what)
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such {what}; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder, not a {what}; name the file itself") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file ({error.reason} at byte {error.start}); expected a {what}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); expected a {what}") from error


def read_bytes(path: str | os.PathLike, what: str) -> bytes:
    """The bytes of a regular file; `what` as in `read_text`."""
    try:
        refuse_special(path, what)
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); expected a {what}") from error


def refuse_special(path: str | os.PathLike, what: str) -> None:
    """Raise UserError for a device, pipe or socket, which may never end, and OSError for a missing file."""
    kind = os.stat(path).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise UserError(f"{path}: is a device, pipe or socket; expected a {what}, as an ordinary file")
