"""Write several files into a temporary folder, then move them into place together: a dataset is complete or absent.

`staged` replaces chosen entries of a folder, `staged_folder` a whole folder.  Both remove their temporary files on any
exception and turn a full disk or a missing permission into a UserError.
"""
from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from libs.core.errors import UserError
from libs.core.files import entries, exists, is_folder
from libs.utils.files.io import made


class Overtaken(Exception):
    """Another process created the folder first."""


@contextlib.contextmanager
def staged(out: Path, entries: Sequence[str], remove: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder; after the block its `entries` (relative files or folders) replace those in `out`.

    `remove`: stale entries of `out`.  Old entries are moved away in reverse order and new ones put in place in order, so if the
    last entry is a manifest, it exists only with complete data.  After an exception `out` is unchanged.  Raises UserError if
    `out` cannot be written.
    """
    out = Path(out)
    with _writing(out), made(out), _work_folder(".unfinished-", out) as work:  # in `out`: on its file system, even behind a link
        new, old = work / "new", work / "old"
        new.mkdir()
        old.mkdir()
        yield new
        _swap(out, new, old, entries, remove)


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `folder`; after the block it replaces `folder`.

    Raises UserError if it cannot be written, Overtaken if another process has created `folder` meanwhile.
    """
    folder = Path(folder)
    if exists(folder) and not is_folder(folder):
        raise UserError(f"{folder}: is a file, but a folder is to be written there; move it away or choose another folder")
    outdated = exists(folder)
    with _writing(folder), made(folder.parent), _work_folder(f".{folder.name[:60]}.unfinished-", folder.parent) as work:
        new = work / "new"
        new.mkdir()
        yield new
        if outdated:  # if another process has created it since, the rename below fails
            os.rename(folder, work / "old")
        try:
            os.rename(new, folder)
        except OSError as error:
            if exists(folder):
                raise Overtaken(str(folder)) from error
            raise


def refuse_foreign(folder: Path, ours: set[str], remedy: str) -> None:
    """Raise UserError if `folder`, which would be replaced, holds entries that are not in `ours`."""
    if exists(folder) and not is_folder(folder):
        raise UserError(f"{folder}: is a file, but a folder is to be written there; {remedy}")
    foreign = [p.name for p in entries(folder) if p.name not in ours]
    if foreign:
        raise UserError(f"{folder}: would be replaced, but it holds {len(foreign)} files of another origin "
                        f"({', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}); {remedy}")


@contextlib.contextmanager
def _work_folder(prefix: str, parent: Path) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); nothing was changed: free some space or "
                        "choose another folder") from error


def _swap(out: Path, new: Path, old: Path, entries: Sequence[str], remove: Sequence[str]) -> None:
    done: list[tuple[Path, Path]] = []  # renames so far, undone in reverse when one fails
    with contextlib.ExitStack() as folders:
        try:
            for number, entry in enumerate([*remove, *reversed(entries)]):
                if os.path.lexists(out / entry):
                    _rename(out / entry, old / str(number), done)
            for entry in entries:
                folders.enter_context(made((out / entry).parent))
                _rename(new / entry, out / entry, done)
        except BaseException:
            for source, target in reversed(done):
                with contextlib.suppress(OSError):
                    os.rename(target, source)
            raise


def _rename(source: Path, target: Path, done: list[tuple[Path, Path]]) -> None:
    os.rename(source, target)
    done.append((source, target))
