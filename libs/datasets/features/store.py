"""Feature files -> float32 arrays (T, C): find and check them, read a window and some channels.

A `FeatureStore` reads one or several folders, or .h5 files that hold a dataset per video; several are joined along channels.
A file is named prefix + video id + extension, a dataset prefix + video id.
"""
from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from libs.core.errors import UserError
from libs.core.files import exists, is_file, is_folder
from libs.datasets.features.formats import (
    HDF5_EXTENSIONS,
    MAX_VECTORS,
    OPENERS,
    READ_ERRORS,
    WrongKey,
    format_of,
    hdf5_dataset,
    hdf5_file,
    read_into,
)

Ranges = Sequence[tuple[int, int]]


class Keys(NamedTuple):
    """Configuration keys of a store, for messages: the section, and the keys of folder and width in it."""

    section: str = "dataset"
    folder: str = "feat_folder"
    width: str = "input_dim"


FEAT_FOLDER = Keys()


@dataclass(frozen=True)
class _Piece:
    """Columns of one folder's array and where they go in the result."""

    folder: int
    source: slice
    target: slice


class FeatureStore:
    """Features of many videos; picklable, and safe to use in forked workers.

    folders: a folder, an .h5/.hdf5 file, or several of them; prefix, extension: around the video id; width: channels expected
    over all folders together (None: not checked); narrower: other accepted widths; keys: of these settings in the configuration,
    for messages.
    Raises UserError if a folder does not exist or the extension is not known.
    """

    def __init__(self, folders: str | Sequence[str], prefix: str | None = None, extension: str | None = ".npy",
                 width: int | None = None, narrower: Sequence[int] = (), keys: Keys = FEAT_FOLDER) -> None:
        self.folders = (folders,) if isinstance(folders, str) else tuple(folders)
        self.prefix, self.extension, self.keys = prefix or "", extension or "", keys
        self.width, self.narrower = width, tuple(narrower)
        self._handles: dict[str, tuple[int, Any]] = {}  # by path: the process that opened it, the file
        if not self.folders or not all(self.folders):
            raise UserError(f"{keys.section}.{keys.folder}: {folders!r} names no folder; give the folder of the feature files")
        self._bundles = tuple(_is_bundle(folder, keys) for folder in self.folders)
        self._format = format_of(self.extension) or ""
        if not all(self._bundles) and not self._format:
            raise UserError(f"{keys.section}.file_ext: {extension!r} is not a known format; use one of {', '.join(OPENERS)}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}

    def close(self) -> None:
        """Close the files that are kept open (they open again when needed)."""
        for _, file in self._handles.values():
            file.close()
        self._handles = {}

    def path(self, video_id: str, folder: int = 0) -> str:
        """The video's file in folder number `folder`; for an .h5 file with many videos: file[dataset]."""
        root, name = self.folders[folder], self.prefix + video_id
        return f"{root}[{name}]" if self._bundles[folder] else os.path.join(root, name + self.extension)

    def missing_path(self, video_id: str) -> str | None:
        """The first missing file of the video; None if every folder has it."""
        for i, root in enumerate(self.folders):
            if self._bundles[i]:
                with _reported(root, self.keys):
                    found = self.prefix + video_id in self._bundle(root)
            else:
                found = is_file(self.path(video_id, i))
            if not found:
                return self.path(video_id, i)
        return None

    def exists(self, video_id: str) -> bool:
        """True if every folder has the video."""
        return self.missing_path(video_id) is None

    def shape(self, video_id: str) -> tuple[int, int]:
        """(T, C) over all folders, from the headers; UserError for a wrong rank, width or type, or zero length."""
        shapes = []
        for i in range(len(self.folders)):
            with self._opened(video_id, i) as array:
                shapes.append(tuple(array.shape))
        return self._joined_shape(video_id, shapes)

    def length(self, video_id: str) -> int:
        """Number of feature vectors in the file; checks as `shape`."""
        return self.shape(video_id)[0]

    def read(self, video_id: str, rows: slice | None = None, channels: Ranges | None = None,
             out: np.ndarray | None = None) -> np.ndarray:
        """Features of a video as float32 (T, C), the folders joined along channels, written into `out` or a new array.

        rows: start:stop:step (None: all); channels: ranges, in the order given (None: all).  Only these are read where the format
        allows.  Raises UserError for a missing or damaged file, a wrong shape, rows beyond the end, and values read that are NaN
        or infinite.
        """
        with contextlib.ExitStack() as stack:
            arrays = [stack.enter_context(self._opened(video_id, i)) for i in range(len(self.folders))]
            length, width = self._joined_shape(video_id, [tuple(array.shape) for array in arrays])
            rows = rows or slice(0, length, 1)
            start, stop, step = rows.start or 0, length if rows.stop is None else rows.stop, rows.step or 1
            if not 0 <= start < stop <= length:
                raise UserError(f"{self.path(video_id)}: rows {start}:{stop} were asked for, but it has {length} feature "
                                "vectors; if the file was replaced during the run, start again")
            pieces = _pieces([array.shape[1] for array in arrays], channels or ((0, width),))
            shape = (len(range(start, stop, step)), pieces[-1].target.stop)
            out = np.empty(shape, np.float32) if out is None else out
            if out.shape != shape or out.dtype != np.float32:
                raise ValueError(f"out is {out.dtype} {out.shape}, but float32 {shape} was asked for")
            for piece in pieces:
                with _reported(self.path(video_id, piece.folder), self.keys):
                    read_into(out[:, piece.target], arrays[piece.folder], slice(start, stop, step), piece.source)
        self._check_finite(video_id, out, pieces, start, step)
        return out

    @contextlib.contextmanager
    def _opened(self, video_id: str, folder: int) -> Iterator[Any]:
        """The video's lazy array in one folder, checked for rank and type."""
        path, root = self.path(video_id, folder), self.folders[folder]
        with contextlib.ExitStack() as stack:
            with _reported(path, self.keys):
                key = self.prefix + video_id
                if self._bundles[folder]:
                    source = self._bundle(root)
                    if key not in source:
                        raise WrongKey(f"there is no dataset {key!r} in the file; check {self.keys.section}.file_prefix and the "
                                       "video ids")
                    array = hdf5_dataset(source, key)
                else:
                    array = stack.enter_context(OPENERS[self._format](path, key))
            if len(array.shape) != 2:
                raise UserError(f"{path}: has shape {tuple(array.shape)}; feature files need two dimensions, (T, C)")
            if array.shape[0] > MAX_VECTORS:
                raise UserError(f"{path}: has {array.shape[0]} feature vectors, at most {MAX_VECTORS} are read; store (T, C)")
            if array.dtype.kind not in "fiu":
                raise UserError(f"{path}: holds values of type {array.dtype}; expected numbers (float32)")
            yield array

    def _bundle(self, path: str) -> Any:
        """The open .h5 file of this process; a handle inherited over a fork is closed and replaced."""
        pid, file = self._handles.get(path, (0, None))
        if pid != os.getpid():
            if file is not None:
                file.close()
            file = hdf5_file(path)
            self._handles[path] = (os.getpid(), file)
        return file

    def _joined_shape(self, video_id: str, shapes: list[tuple[int, int]]) -> tuple[int, int]:
        length, width = shapes[0][0], sum(shape[1] for shape in shapes)
        if self.width is not None and width != self.width and width not in self.narrower:
            section, folder, key = self.keys
            has = " + ".join(str(shape[1]) for shape in shapes)
            turned = sum(shape[0] for shape in shapes) == self.width
            hint = "they look transposed, store them as (T, C)" if turned else f"correct {section}.{key} or {section}.{folder}"
            if not turned and width > self.width and section == "dataset":
                hint += ", or name the channels to read in dataset.modalities and model.modalities"
            raise UserError(f"{self.path(video_id)}: has {has} channels (shape {shapes[0]}), but {section}.{key} says "
                            f"{self.width}; {hint}")
        for i, shape in enumerate(shapes):
            if shape[1] == 0:
                raise UserError(f"{self.path(video_id, i)}: has no channels (shape {shape}); extract it again")
            if shape[0] == 0:
                raise UserError(f"{self.path(video_id, i)}: has no feature vectors (shape {shape}); extract it again, or remove "
                                "the file and set dataset.missing: skip")
            if shape[0] != length:
                raise UserError(f"{self.path(video_id, i)}: has {shape[0]} feature vectors, but {self.path(video_id)} has "
                                f"{length}; {stretched(shapes[0][1], self.folders[i], shape[1])}")
        return length, width

    def _check_finite(self, video_id: str, out: np.ndarray, pieces: list[_Piece], start: int, step: int) -> None:
        import torch  # here: tools that read shapes alone start without it

        if math.isfinite(torch.from_numpy(out).sum()):  # one pass without a temporary; an overflow only leads to the exact check
            return
        bad = np.argwhere(~np.isfinite(out))
        if len(bad):
            row, column = (int(v) for v in bad[0])
            piece = next(p for p in pieces if p.target.start <= column < p.target.stop)
            raise UserError(f"{self.path(video_id, piece.folder)}: {len(bad)} of {out.size} values read are NaN or infinite "
                            f"(first: row {start + row * step}, channel {piece.source.start + column - piece.target.start}); "
                            "extract this file again")


def stretched(first_width: int, folder: str, width: int) -> str:
    """The remedy for files of a dataset.feat_folder that are of another length than those of the first."""
    return ("folders in dataset.feat_folder are joined along channels and need equal lengths: extract them with one stride, or "
            f"name only the first there (input_dim: {first_width}) and stretch the other: dataset.modalities: {{first: [0, "
            f"{first_width}], second: {{folder: {folder}, dim: {width}, resample: linear}}}}, model.modalities: [first, second]")


def _is_bundle(folder: str, keys: Keys) -> bool:
    if is_folder(folder):
        _refuse_old_pack(folder, keys)
        return False
    if not exists(folder):
        raise UserError(f"{folder}: no such feature folder; check {keys.section}.{keys.folder}")
    if os.path.splitext(folder)[1].lower() not in HDF5_EXTENSIONS:
        raise UserError(f"{folder}: is a file; {keys.section}.{keys.folder} names a folder or one "
                        f"{' or '.join(HDF5_EXTENSIONS)} file")
    return True


def _refuse_old_pack(folder: str, keys: Keys) -> None:
    """UserError for a folder that an older tools/pack_features.py wrote: index.json and the .h5 files that it describes."""
    index = os.path.join(folder, "index.json")
    if is_file(index):
        with open(index, "rb") as file:
            if b'"packed features' in file.read(100):
                raise UserError(f"{index}: packed by an older version; pack again with tools/pack_features.py, and set "
                                f"{keys.section}.{keys.folder} to the .h5 file that it writes")


def _pieces(widths: Sequence[int], channels: Ranges) -> list[_Piece]:
    """Split channel ranges of the joined features at the folders' borders."""
    pieces, target = [], 0
    for low, high in channels:
        if not 0 <= low < high <= sum(widths):
            raise UserError(f"dataset.modalities: channels {low}:{high} do not exist in features of {sum(widths)} channels; "
                            "correct the range")
        border = 0
        for folder, width in enumerate(widths):
            a, b = max(low, border), min(high, border + width)
            if a < b:
                pieces.append(_Piece(folder, slice(a - border, b - border), slice(target, target + b - a)))
                target += b - a
            border += width
    return pieces


@contextlib.contextmanager
def _reported(path: str, keys: Keys) -> Iterator[None]:
    """Turn every error of a reader into a UserError that names the file."""
    try:
        yield
    except WrongKey as error:
        raise UserError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such feature file; check {keys.section}.{keys.folder}, file_prefix and "
                        "file_ext") from error
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: cannot be read as a feature file ({reason}); it may be damaged or of another format: write it "
                        "again, or remove it and set dataset.missing: skip") from error
