"""Features packed by tools/pack_features.py: few large HDF5 files and an index, read by byte range.

    FOLDER/index.json           dtype, channels, shards, and for every video: shard, byte offset, T, checksum
    FOLDER/<subset>-00000.h5    one contiguous little-endian data set (T, C) per video, readable with any HDF5 program

Rows of a video lie one behind the other, so a crop is one range of one file: a single positioned read, without HDF5's lock and
without opening a file.  Every shard begins with a mark (its HDF5 user block) that the index repeats, so an index never reads
another shard's bytes.
"""
from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from libs.core.errors import UserError
from libs.utils.files.io import read_json

INDEX = "index.json"
FORMAT = "packed features 1"
DTYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
MARK_BYTES = 512  # the smallest user block of HDF5
BLOCK_BYTES = 16 << 20  # rows that are read at a time when they have to be converted or thinned out
REMEDY = "run tools/pack_features.py again"


class Entry(NamedTuple):
    """Where a video is: number of the shard, byte offset of its first row, T, checksum of its bytes."""

    shard: int
    offset: int
    steps: int
    digest: str


@dataclass(frozen=True)
class Shard:
    """One file of a pack: name, size and mark as they must be found, and the subset that its videos belong to."""

    file: str
    bytes: int
    mark: str
    subset: str


@dataclass(frozen=True)
class Index:
    """What index.json says."""

    folder: Path
    complete: bool
    dtype: str
    channels: int
    shards: tuple[Shard, ...]
    videos: dict[str, Entry]

    @property
    def row_bytes(self) -> int:
        return self.channels * DTYPES[self.dtype].itemsize


def digest_of(rows: Any) -> str:
    """Checksum of stored bytes: blake2b, 128 bits, hexadecimal."""
    return hashlib.blake2b(memoryview(rows).cast("B"), digest_size=16).hexdigest()


def mark_of(digests: list[str]) -> str:
    """The mark of a shard: a checksum over the checksums of its videos."""
    return hashlib.blake2b(" ".join(digests).encode(), digest_size=16).hexdigest()


def mark_block(mark: str) -> bytes:
    """The first bytes of a shard."""
    return f"{FORMAT} {mark}\n".encode().ljust(MARK_BYTES, b"\0")


def is_packed(folder: str | os.PathLike) -> bool:
    """Whether a folder holds the index of packed features."""
    return os.path.isfile(os.path.join(folder, INDEX))


def read_index(folder: str | os.PathLike) -> Index:
    """The checked index of a folder; UserError names the file and what is wrong in it."""
    path = Path(folder, INDEX)
    content = read_json(path, "index of packed features")
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {str(content['format'])[:40]!r}, this program reads {FORMAT!r}")
        shards = tuple(Shard(*(_typed(entry[k], t) for k, t in (("file", str), ("bytes", int), ("mark", str), ("subset", str))))
                       for entry in content["shards"])
        names = [s.file for s in shards]
        if bad := [n for n in names if n != os.path.basename(n) or n in ("", ".", "..") or len(n) > 255]:
            raise ValueError(f"{bad[0][:60]!r} is not the name of a file beside it")
        dtype, channels = content["dtype"], _typed(content["channels"], int)
        if dtype not in DTYPES or not 0 <= channels < 2**31:
            raise ValueError(f"no features of type {str(dtype)[:40]!r} and {channels} channels can be read")
        row = channels * DTYPES[dtype].itemsize
        videos = {}
        for name, (shard, offset, steps, digest) in content["videos"].items():
            entry = Entry(_typed(shard, int), _typed(offset, int), _typed(steps, int), _typed(digest, str))
            if not (0 <= entry.shard < len(shards) and entry.offset >= MARK_BYTES and entry.steps >= 0
                    and entry.offset + entry.steps * row <= shards[entry.shard].bytes):
                raise ValueError(f"video {name[:60]!r} lies outside its file")
            videos[name] = entry
        return Index(Path(folder), _typed(content["complete"], bool), dtype, channels, shards, videos)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: is not a whole index of packed features ({reason}); {REMEDY}") from error


class PackedFolder:
    """The videos of one pack; picklable, safe to share between threads and over a fork.

    Raises UserError for a damaged index, and for one whose packing has not come to its end.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.index = read_index(folder)
        if not self.index.complete:
            raise UserError(f"{Path(folder, INDEX)}: packing was not finished; {REMEDY}, it continues where it stopped")
        self._files: dict[int, IO[bytes]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "_files": {}}

    def __contains__(self, name: str) -> bool:
        return name in self.index.videos

    def open(self, name: str) -> PackedArray:
        """The lazy (T, C) array of a video, no file opened yet; KeyError for an unknown name."""
        return PackedArray(self, self.index.videos[name])

    def close(self) -> None:
        """Close the shards (they open again when needed)."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def file(self, number: int) -> IO[bytes]:
        """A shard, kept open; UserError if it is not the one that the index describes."""
        file = self._files.get(number)
        if file is None:
            opened = open_shard(self.index, number)
            file = self._files.setdefault(number, opened)
            if file is not opened:  # another thread was faster
                opened.close()
        return file


def open_shard(index: Index, number: int) -> IO[bytes]:
    """A shard, unbuffered; UserError if it is missing or is not the one that the index describes."""
    shard = index.shards[number]
    path = index.folder / shard.file
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 (the caller keeps it)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); copy the pack again, or {REMEDY}") from error
    size, start = os.fstat(file.fileno()).st_size, file.read(MARK_BYTES)
    if size != shard.bytes or start != mark_block(shard.mark):
        file.close()
        what = f"has {size} bytes instead of {shard.bytes}" if size != shard.bytes else "is of another packing"
        raise UserError(f"{path}: {what} than {INDEX} beside it; copy the pack again, or {REMEDY}")
    return file


class PackedArray:
    """Rows of one video in a shard: shape, dtype and `read_block`."""

    def __init__(self, pack: PackedFolder, entry: Entry) -> None:
        self._pack, self._entry = pack, entry
        self.shape, self.dtype = (entry.steps, pack.index.channels), DTYPES[pack.index.dtype]

    def read_block(self, out: np.ndarray, rows: slice, columns: slice) -> None:
        """out[...] = array[rows, columns] as float32; one read of the range, without a copy where nothing changes on the way.

        Raises UserError for a shard that is not the index's, EOFError when it ends before.
        """
        file, offset, row_bytes = self._pack.file(self._entry.shard), self._entry.offset, self._pack.index.row_bytes
        start, stop, step = rows.indices(self.shape[0])
        whole = columns.indices(self.shape[1]) == (0, self.shape[1], 1)
        if step == 1 and whole and out.flags.c_contiguous and out.dtype == self.dtype:
            read_range(file, out, offset + start * row_bytes)
            return
        block = max(BLOCK_BYTES // row_bytes // step, 1) * step
        for first in range(start, stop, block):
            part = np.empty((min(first + block, stop) - first, self.shape[1]), self.dtype)
            read_range(file, part, offset + first * row_bytes)
            chosen = part[::step, columns]
            done = (first - start) // step
            out[done:done + len(chosen)] = chosen


_POSITION = threading.Lock()  # where a read has to move the file's own position


def read_range(file: IO[bytes], out: np.ndarray, offset: int) -> None:
    """Fill the contiguous array `out` with the bytes from `offset` on; EOFError if the file ends before."""
    view = memoryview(out).cast("B")
    while len(view):
        if hasattr(os, "preadv"):
            count = os.preadv(file.fileno(), [view], offset)
        else:
            with _POSITION:
                file.seek(offset)
                count = file.readinto(view)
        if not count:
            raise EOFError(f"the file ends {len(view)} bytes early")
        view, offset = view[count:], offset + count


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{str(value)[:60]!r} stands where {kind.__name__} belongs")
    return value
