"""Write files atomically, and read JSON files with errors that name the place."""
from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from libs.core.errors import UserError, article, shown
from libs.core.files import exists, is_folder, read_text

PairsHook = Callable[[list[tuple[str, Any]]], Any]
TEMPORARY = ".tmp"  # suffix of files being written; their names start with a dot


def write_atomic(path: str | os.PathLike, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write(binary file)` on a temporary neighbour, fsync it and rename it to `path`.

    After a crash the previous file is intact.  Raises UserError with the path if the folder is not writable or the disk is full.
    """
    path = Path(path)
    try:
        with made(path.parent), _neighbour(path) as (handle, temporary):
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or f"no space is left, or files may not be so large: {error}"  # numpy tells no more than numbers
        raise UserError(f"{path}: cannot be written ({reason}); nothing was changed: free some space "
                        "or choose another output folder") from error


@contextlib.contextmanager
def made(folder: Path, keep: bool = True) -> Iterator[list[Path]]:
    """Create a folder and its parents; yields those that were missing, the lowest first.

    After an exception, or without `keep`, those of them that are still empty are removed.
    """
    missing = list(itertools.takewhile(lambda path: not exists(path), (folder, *folder.parents)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield missing
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            remove_empty(missing)


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove these folders, in this order, up to the first that is in use."""
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return


@contextlib.contextmanager
def _neighbour(path: Path) -> Iterator[tuple[int, str]]:
    """Handle and name of a new temporary file beside `path`, which is removed unless it was renamed."""
    # at most 60 characters of the name, so that there is room beside one of 255 bytes
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:60]}.", suffix=TEMPORARY, dir=path.parent)
    try:
        yield handle, name
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def remove_leftovers(folder: Path, older_than_s: float = 0.0) -> None:
    """Remove the temporary files of killed processes that are at least `older_than_s` seconds old (0: all, even new ones)."""
    latest = time.time() - older_than_s
    for path in folder.glob(f".?*.{'[a-z0-9_]' * 8}{TEMPORARY}"):  # as tempfile names them
        with contextlib.suppress(OSError):  # already removed, or no permission
            if path.stat().st_mtime <= latest or not older_than_s:
                path.unlink()


def remove(*paths: Path) -> None:
    """Remove the files that exist; UserError for one that cannot be removed."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be removed ({error.strerror or error}), and is out of date; choose another output "
                            "folder") from error


def write_bytes_atomic(path: str | os.PathLike, content: bytes | memoryview) -> None:
    """`write_atomic` for bytes."""
    write_atomic(path, lambda file: file.write(content))


def write_text_atomic(path: str | os.PathLike, content: str) -> None:
    """`write_atomic` for text (UTF-8)."""
    write_bytes_atomic(path, content.encode("utf-8"))


def write_json_atomic(path: str | os.PathLike, value: Any, indent: int | None = 1) -> None:
    """`write_atomic` for JSON; NaN and infinity raise ValueError, since they are not valid JSON."""
    write_text_atomic(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def check_writable(path: str | os.PathLike) -> None:
    """Raise the UserError of `write_atomic` before long work, if `path` cannot be written; leaves nothing behind."""
    path = Path(path)
    if is_folder(path):
        raise UserError(f"{path}: is a folder; name a file")
    try:
        with made(path.parent, keep=False), _neighbour(path) as (handle, _):
            os.close(handle)
            with contextlib.suppress(FileNotFoundError):
                os.stat(path)  # fails for a name that is too long
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another output folder") from error


def read_json(path: str | os.PathLike, what: str, pairs_hook: PairsHook | None = None) -> Any:
    """Parsed JSON of a file; raises as `parse_json`."""
    return parse_json(read_text(path, what), str(path), what, pairs_hook)


def parse_json(text: str, source: str, what: str, pairs_hook: PairsHook | None = None) -> Any:
    """Parsed JSON; UserError names `source` and the line of a syntax error.

    Also refused: duplicate keys of an object, numbers of more than 4,300 digits, nesting beyond Python's recursion limit, and
    unpaired surrogates.  NaN and Infinity are accepted as numbers; the caller checks.  `pairs_hook` makes objects from (key,
    value) pairs and has to deal with duplicate keys itself.
    """
    try:
        with _collector_off():
            value = json.loads(text, object_pairs_hook=pairs_hook or _unique)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, line {error.lineno} column {error.colno}"
    except RecursionError:
        reason = "nested too deeply"
    except UnicodeEncodeError:
        reason = "it escapes half of a surrogate pair"
    except ValueError as error:
        reason = str(error)[:160]
    raise UserError(f"{source}: not valid JSON ({reason}); expected {article(what)}")


@contextlib.contextmanager
def _collector_off() -> Iterator[None]:
    """JSON holds no cycles, and the garbage collector, which looks at all that was made again and again, takes half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has the key {shown(twice)} twice")
    return found


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
