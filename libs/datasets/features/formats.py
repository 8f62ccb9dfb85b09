"""Feature file formats: open a .npy, .npz, .h5/.hdf5, .pt or .pkl file as a lazy 2-d array.

Each `open_*` is a context manager yielding an object with `shape`, `dtype` and slicing by (rows, columns).  Opening reads
the header only; slicing reads what is needed, except inside compressed .npz members (decompressed up to the last row).
"""
from __future__ import annotations

import contextlib
import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from libs.core.files import refuse_special

NPZ_KEY = "feats"
SLOWFAST = ("slow_feature", "fast_feature")
HDF5_EXTENSIONS = (".h5", ".hdf5")
VIDEO_EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".ogv", ".3gp")

MAX_VECTORS = 10_000_000  # of one video: 15 days at 30 fps and a stride of 4
MAX_RATIO = 1100  # bytes that one compressed byte can stand for (deflate: 1032)
MAX_CHUNK = 1 << 30  # bytes of an HDF5 chunk, which is unpacked whole

# raised by the readers for damaged files and files of another format
READ_ERRORS = (OSError, ValueError, EOFError, LookupError, TypeError, RuntimeError, ArithmeticError, AttributeError, MemoryError,
               AssertionError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, SyntaxError, tokenize.TokenError)


class WrongKey(Exception):
    """The file is readable but lacks the requested array; the message lists its contents."""


@contextlib.contextmanager
def open_npy(path: str, key: str) -> Iterator[Any]:
    """A memory-mapped .npy array; `key` is not used."""
    refuse_special(path, "feature file")
    yield np.lib.format.open_memmap(path, mode="r")


@contextlib.contextmanager
def open_npz(path: str, key: str) -> Iterator[Any]:
    """Array `feats` of a .npz file: memory-mapped if stored, decompressed on slicing if deflated; `key` is not used."""
    refuse_special(path, "feature file")
    with zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        if NPZ_KEY not in members:
            raise WrongKey(f"holds the arrays {_listed(members)}, not {NPZ_KEY!r}; save the features under that name")
        info = archive.getinfo(members[NPZ_KEY])
        with archive.open(info) as file:
            shape, fortran, dtype = _npy_header(file)
            header_size = file.tell()
    if info.file_size > MAX_RATIO * os.path.getsize(path):
        raise ValueError(f"{info.filename} claims {info.file_size} bytes, which so small a file cannot hold")
    if min(shape, default=0) < 0 or info.file_size < header_size + math.prod(shape) * dtype.itemsize:
        raise EOFError(f"{info.filename} is shorter than its header says")
    if info.compress_type != zipfile.ZIP_STORED:
        yield _DeflatedArray(path, info.filename, shape, fortran, dtype)
        return
    with open(path, "rb") as raw:  # the local header, whose length is not in the central directory
        raw.seek(info.header_offset + 26)
        name_size, extra_size = struct.unpack("<HH", raw.read(4))
    offset = info.header_offset + 30 + name_size + extra_size + header_size
    if math.prod(shape) == 0:
        yield np.empty(shape, dtype)
    else:
        yield np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


@contextlib.contextmanager
def open_hdf5_file(path: str, key: str) -> Iterator[Any]:
    """The dataset of a file of one video: `feats`, else `key`, else the only one."""
    with hdf5_file(path) as file:
        names = [name for name in (NPZ_KEY, key) if file.get(name, getlink=True) is not None]
        names = names or (list(file) if len(file) == 1 else [])
        if not names:
            raise WrongKey(f"holds {_listed(file)}; a file per video needs a dataset named {NPZ_KEY!r}, or only one")
        yield hdf5_dataset(file, names[0])


@contextlib.contextmanager
def open_pt(path: str, key: str) -> Iterator[Any]:
    """A tensor saved with torch.save, or the entry `feats` of a saved dict; loaded without running pickled code."""
    import torch  # here: tools that read no such file start without it

    value = _load_pt(path)
    if isinstance(value, dict):
        if NPZ_KEY not in value:
            raise WrongKey(f"holds a dict with the keys {_listed(value)}, not {NPZ_KEY!r}; save the features under that name")
        value = value[NPZ_KEY]
    if not isinstance(value, torch.Tensor):
        raise WrongKey(f"holds a {type(value).__name__}; save a tensor of shape (T, C)")
    value = value.detach()
    yield (value.float() if value.dtype == torch.bfloat16 else value).numpy()


@contextlib.contextmanager
def open_pkl(path: str, key: str) -> Iterator[Any]:
    """The tensors `slow_feature` and `fast_feature` (1, C, T) of a pickled dict, side by side: the published SlowFast features of
    HACS (SPEC_FAMILY F21)."""
    from libs.utils.files.torch_files import read_tensor_pickle

    refuse_special(path, "feature file")
    value = read_tensor_pickle(path, "feature file of HACS")
    parts = [value[name] for name in SLOWFAST if name in value] if isinstance(value, dict) else []
    if len(parts) < 2:
        held = f"a dict with the keys {_listed(value)}" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise WrongKey(f"holds {held}, not {' and '.join(SLOWFAST)}; save features of another kind as .npy, (T, C)")
    shapes = [np.shape(part) for part in parts]
    if any(len(shape) != 3 or shape[0] != 1 for shape in shapes) or shapes[0][2] != shapes[1][2]:
        raise WrongKey(f"holds features of shapes {shapes[0]} and {shapes[1]}; two of shape (1, C, T) of the same T are needed")
    yield np.concatenate([part[0] for part in parts]).T


OPENERS = {".npy": open_npy, ".npz": open_npz, ".h5": open_hdf5_file, ".hdf5": open_hdf5_file, ".pt": open_pt, ".pkl": open_pkl}


def hdf5_file(path: str) -> Any:
    """An open, read-only h5py.File; ValueError without h5py.

    Not locked: some network file systems have no locks, and forked data-loader workers would share the lock.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError("h5py is not installed: pip install h5py") from error
    refuse_special(path, "feature file")
    return h5py.File(path, "r", locking=False)


def hdf5_dataset(file: Any, key: str) -> Any:
    """Dataset `key` of an open file.

    Raises WrongKey if it is a group, lies behind a link, or keeps its values in other files; ValueError if it claims more values
    than its stored bytes can hold.
    """
    import h5py

    group, parts = file, [part for part in key.split("/") if part]
    for part in parts:  # a link may lead to any file of this machine
        if not isinstance(group, h5py.Group) or not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise WrongKey(f"{key!r} is not stored in the file itself but behind a link; store the dataset under that name")
        group = group[part]
    dataset = group
    if not isinstance(dataset, h5py.Dataset):
        raise WrongKey(f"{key!r} is a group with {_listed(dataset)}; a dataset of shape (T, C) is needed there")
    if dataset.shape is None:
        raise WrongKey(f"{key!r} is an empty dataset without a shape; a dataset of shape (T, C) is needed there")
    if dataset.is_virtual or dataset.external:
        raise WrongKey(f"{key!r} keeps its values in other files; copy them into this one")
    size, stored = math.prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if size > MAX_RATIO * stored or (dataset.chunks and math.prod(dataset.chunks) * dataset.dtype.itemsize > MAX_CHUNK):
        raise ValueError(f"the dataset claims {size} bytes in pieces that its {stored} stored bytes cannot fill")
    return dataset


def read_into(out: np.ndarray, array: Any, rows: slice, columns: slice) -> None:
    """out[...] = array[rows, columns] as float32, without an intermediate copy where the format allows."""
    if hasattr(array, "read_direct") and out.flags.c_contiguous and array.dtype == out.dtype:
        array.read_direct(out, (rows, columns))  # HDF5 converts other types too, but float16 three times slower than NumPy
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become inf, which is refused later
            out[...] = array[rows, columns]


def _load_pt(path: str) -> Any:
    from libs.utils.files.torch_files import load_plain

    for mapped in (True, False):  # files of the old, non-zip layout cannot be mapped
        try:
            return load_plain(path, mapped)
        except OSError:
            raise
        except Exception as error:  # a damaged pickle can raise nearly anything
            problem = ValueError(str(error) or type(error).__name__)
    raise problem


class _DeflatedArray:
    """An array inside a compressed zip member."""

    def __init__(self, path: str, member: str, shape: tuple[int, ...], fortran: bool, dtype: np.dtype) -> None:
        self.path, self.member, self.shape, self.fortran, self.dtype = path, member, shape, fortran, dtype

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows = index[0]
        count = self.shape[0] if self.fortran else min(rows.stop, self.shape[0])
        size = count * math.prod(self.shape[1:]) * self.dtype.itemsize
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
            _npy_header(file)
            data = file.read(size)
        if len(data) < size:
            raise EOFError(f"{self.member} ends after {len(data)} of {size} bytes")
        array = np.frombuffer(data, self.dtype).reshape((count, *self.shape[1:]), order="F" if self.fortran else "C")
        return array[index]


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"array format version {version} is not one of plain numbers")
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("holds Python objects, not numbers")
    return shape, fortran, dtype


def _listed(names: Any) -> str:
    names = [str(n) for n in names]
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "") if names else "nothing"


def format_of(extension: str) -> str | None:
    """The known format behind a file_ext such as '.npy' or '_i3d.npy'; None for others."""
    suffix = os.path.splitext("x" + extension)[1].lower()
    return suffix if suffix in OPENERS else None
