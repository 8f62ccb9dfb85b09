"""What lies at a path, and reading files; every failure is a `UserError` that names the path."""
from __future__ import annotations

import errno
import os
import shlex
import stat
from pathlib import Path

from libs.core.errors import UserError, article

GZIP = b"\x1f\x8b"  # how such files begin
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # nothing can be there


def exists(path: str | os.PathLike) -> bool:
    """Whether anything is there.  UserError, here and in the next two, without permission to look."""
    return _mode(path) != 0


def is_file(path: str | os.PathLike) -> bool:
    """Whether it is a file; False for a name that is too long, unlike `Path.is_file`."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: str | os.PathLike) -> bool:
    """Whether it is a folder."""
    return stat.S_ISDIR(_mode(path))


def entries(folder: str | os.PathLike) -> list[Path]:
    """What a folder holds, sorted; [] where there is no folder.  UserError without permission to list it."""
    try:
        return sorted(Path(folder).iterdir())
    except ValueError:  # a NUL character
        return []
    except OSError as error:
        if error.errno in ABSENT:
            return []
        raise _refused(folder, error) from error


def _mode(path: str | os.PathLike) -> int:
    try:
        return os.stat(path).st_mode
    except ValueError:  # a NUL character
        return 0
    except OSError as error:
        if error.errno in ABSENT:
            return 0
        raise _refused(path, error) from error


def _refused(path: str | os.PathLike, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be reached ({error.strerror or error}); check the permissions of it and of its folders, "
                     "or name another path")


def system_text(path: str | os.PathLike) -> str:
    """The text of a file of /proc or /sys; '' where there is none, or it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def read_text(path: str | os.PathLike, what: str) -> str:
    """The UTF-8 text of a file; `what`: the expected kind of file, for the UserError if it is missing or unreadable."""
    try:
        refuse_special(path, what)
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such {what}; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder, not {article(what)}; name the file itself") from error
    except UnicodeDecodeError as error:
        if error.object[:2] == GZIP:
            raise UserError(f"{path}: is compressed (gzip); unpack it: gunzip {shlex.quote(str(path))}") from error
        raise UserError(f"{path}: is not a text file ({error.reason} at byte {error.start}); expected {article(what)}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise _unreadable(path, what, error) from error


def read_bytes(path: str | os.PathLike, what: str) -> bytes:
    """The bytes of a regular file; `what` as in `read_text`."""
    try:
        refuse_special(path, what)
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error


def _unreadable(path: str | os.PathLike, what: str, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); expected {article(what)}")


def refuse_special(path: str | os.PathLike, what: str) -> None:
    """Raise UserError for a device, pipe or socket, which may never end, and OSError for a missing file."""
    kind = os.stat(path).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise UserError(f"{path}: is a device, pipe or socket; expected {article(what)}, as an ordinary file")
