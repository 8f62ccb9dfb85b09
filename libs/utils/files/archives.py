"""Read the files in an untrusted zip, tar (plain, gz, bz2, xz) or folder through one iterator.

`members(path)` yields every regular file with a clean relative name; `read` and `copy` get the bytes of one.  An archive with an
absolute path, a `..`, a link or a device is refused.
"""
from __future__ import annotations

import contextlib
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from libs.core.errors import UserError
from libs.core.files import exists, is_file, is_folder

MAX_MEMBER_BYTES = 2 << 30
MAX_TOTAL_BYTES = 64 << 30
MAX_MEMBERS = 200_000
MAX_FOLDER_DEPTH = 8
MAX_NAME_BYTES = 1 << 20  # of the extended headers of a tar, which tarfile reads into memory
DAMAGED = (OSError, EOFError, RuntimeError, NotImplementedError, ValueError, zlib.error, lzma.LZMAError, tarfile.TarError,
           zipfile.BadZipFile)


@dataclass(frozen=True)
class Member:
    """A regular file of an archive or folder: name with forward slashes, size in bytes, and a function that opens it.

    Use members of a tar before advancing the iterator: going back would decompress from the start.
    """

    source: Path
    name: str
    size: int
    open: Callable[[], IO[bytes]]

    @property
    def path(self) -> PurePosixPath:
        return PurePosixPath(self.name)

    @property
    def place(self) -> str:
        """'archive: name', for messages."""
        return f"{self.source}: {self.name}"


def members(path: str | os.PathLike) -> Iterator[Member]:
    """All regular files of `path`, without the metadata files of macOS (`__MACOSX`, `._*`, `.DS_Store`).

    Raises UserError for a path that does not exist or is neither archive nor folder, and for a damaged archive, unsafe entries
    and more data than the limits above.
    """
    path = Path(path)
    if is_folder(path):
        found = _folder(path)
    elif not exists(path):
        raise UserError(f"{path}: no such file or folder; check the path")
    elif _is(zipfile.is_zipfile, path):
        found = _zip(path)
    elif _is(tarfile.is_tarfile, path):
        found = _tar(path)
    else:
        raise UserError(f"{path}: neither a folder nor a zip or tar archive that can be read; was the download complete?")
    total = 0
    for count, member in enumerate(_guarded(path, found), 1):
        total += member.size
        if count > MAX_MEMBERS or total > MAX_TOTAL_BYTES or member.size > MAX_MEMBER_BYTES:
            raise UserError(f"{path}: {member.name}: unpacks to more than the limits ({MAX_MEMBERS} files, "
                            f"{MAX_MEMBER_BYTES >> 30} GiB a file, {MAX_TOTAL_BYTES >> 30} GiB in all); not the expected archive")
        if not _is_metadata(member.path):
            yield member


def read(member: Member) -> bytes:
    """All bytes of a member; UserError if they are damaged."""
    with _reading(member.place):
        with member.open() as file:
            data = file.read(member.size + 1)
        if len(data) != member.size:
            raise EOFError(f"{len(data)} bytes instead of {member.size}")
        return data


def copy(member: Member, target: Path) -> None:
    """Write a member's bytes to the file `target`; UserError for a damaged archive, OSError if `target` cannot be written."""
    left = member.size
    with open(target, "wb") as out:
        with _reading(member.place):
            source = member.open()
        with source:
            while True:
                with _reading(member.place):
                    chunk = source.read(min(1 << 20, left + 1))
                    left -= len(chunk)
                    if left < 0 or (not chunk and left):
                        raise EOFError("its size differs from the declared one")
                if not chunk:
                    return
                out.write(chunk)


@contextlib.contextmanager
def _reading(place: str) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{place}: cannot be read ({reason}); the archive is damaged or protected, fetch it again") from error


def _guarded(path: Path, found: Iterator[Member]) -> Iterator[Member]:
    while True:
        with _reading(str(path)):
            member = next(found, None)
        if member is None:
            return
        yield member


def _is(test: Callable[[Path], bool], path: Path) -> bool:
    try:
        with open(path, "rb"):
            pass
        return test(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except DAMAGED:
        return False


def _clean(path: Path, name: str) -> str:
    """The name without `./`; UserError if it would leave the target folder on any operating system."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
        raise UserError(f"{path}: holds the unsafe path {name!r}; not the expected archive, nothing was unpacked")
    return "/".join(p for p in parts if p not in ("", "."))


def _is_metadata(name: PurePosixPath) -> bool:
    return "__MACOSX" in name.parts or name.name.startswith("._") or name.name == ".DS_Store"


def _folder(root: Path) -> Iterator[Member]:
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_raise):
        depth, info = len(Path(folder).relative_to(root).parts), os.stat(folder)
        looped = (info.st_dev, info.st_ino) in seen or depth > MAX_FOLDER_DEPTH  # links may form cycles
        seen.add((info.st_dev, info.st_ino))
        folders[:] = [] if looped else sorted(folders)
        files = [] if looped else files
        for file in sorted(files):
            full = Path(folder, file)
            if is_file(full):
                yield Member(root, full.relative_to(root).as_posix(), full.stat().st_size, _opener(full))


def _raise(error: OSError) -> None:
    raise error


def _opener(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: open(path, "rb")


def _zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        for info in infos:  # check all names before yielding the first file
            _clean(path, info.filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{path}: {info.filename!r} is a link or device; not the expected archive, nothing was unpacked")
        for info in infos:
            if not info.is_dir():
                yield Member(path, _clean(path, info.filename), info.file_size, partial(archive.open, info))


class _BoundedHeader(tarfile.TarInfo):
    """Refuses large extended headers, which tarfile would read into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _BoundedHeader:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _EXTENDED and not 0 <= found.size <= MAX_NAME_BYTES:
            raise tarfile.ReadError(f"an extended header of {found.size} bytes")
        return found


_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def _tar(path: Path) -> Iterator[Member]:
    with tarfile.open(path, "r:*", tarinfo=_BoundedHeader) as archive:
        for info in archive:
            name = _clean(path, info.name)
            if not (info.isfile() or info.isdir()):
                raise UserError(f"{path}: {info.name!r} is a link or device; not the expected archive, nothing was unpacked")
            if info.isfile():
                yield Member(path, name, info.size, partial(tarfile.ExFileObject, archive, info))
