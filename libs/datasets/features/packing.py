"""Write the features that a configuration reads into one HDF5 file per stream, which `FeatureStore` reads like any other.

    OUT/features.h5     dataset.feat_folder (OUT/features_0.h5, OUT/features_1.h5, ... when it lists several folders)
    OUT/<modality>.h5   a modality with a folder of its own

A file holds one contiguous little-endian dataset (T, C) per video, so that a crop is one range of bytes, with a checksum of its
bytes (attribute `blake2b`) and the size and time of its source file (attribute `source`).  The file gets its name once it is
complete and has been read back.  An interrupted packing resumes with the next video; a repeated one packs only what has changed.
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from libs.core.errors import UserError, nearest
from libs.core.files import exists, is_file
from libs.core.schema import Config, FolderModality, as_tuple
from libs.datasets.annotations import load_annotations
from libs.datasets.features.formats import READ_ERRORS, hdf5_file
from libs.datasets.features.store import FeatureStore, Keys
from libs.datasets.presets import get_preset
from libs.utils.files.io import made

Say = Callable[[str], None]
DTYPES: dict[str, np.dtype] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
CHECKSUM, SOURCE = "blake2b", "source"  # attributes of every dataset
LISTED = 10


@dataclass(frozen=True)
class Stream:
    """One folder of features and the name of the file it is packed into; prefix: before the video id in the names of both."""

    name: str
    store: FeatureStore
    prefix: str
    modality: FolderModality | None = None

    def packed_in(self, out: Path) -> Path:
        """The file in the folder `out`."""
        return out / f"{self.name}.h5"


class Planned(NamedTuple):
    """A video to pack: its id, the shape and type it is stored in, and the state of its source file."""

    video: str
    shape: tuple[int, int]
    dtype: np.dtype
    source: str


def stored_streams(config: Config) -> list[Stream]:
    """The folders that `config` may read, in order: those of dataset.feat_folder, then those of modalities.

    Raises UserError for folders that do not exist, and for a modality whose name cannot be a file's.
    """
    data, found = config.dataset, []
    folders, widths = as_tuple(data.feat_folder or ()), as_tuple(data.input_dim)
    for i, folder in enumerate(folders):
        width = widths[i] if len(widths) == len(folders) else None
        store = FeatureStore(folder, data.file_prefix, data.file_ext, width if len(folders) > 1 else None)
        found.append(Stream("features" if len(folders) == 1 else f"features_{i}", store, data.file_prefix or ""))
    for name, entry in (data.modalities or {}).items():
        if not isinstance(entry, FolderModality):
            continue
        if not re.fullmatch(r"\w[\w.-]*", name) or name in [s.name for s in found]:
            raise UserError(f"{config.source}: dataset.modalities: {name!r} is to be the name of a file beside "
                            f"{', '.join(s.name for s in found) or 'others'}; rename it, with letters, digits, _ - . only")
        store = FeatureStore(entry.folder, entry.file_prefix, entry.file_ext, entry.dim,
                             keys=Keys(f"dataset.modalities.{name}", "folder", "dim"))
        found.append(Stream(name, store, entry.file_prefix or "", entry))
    return found


def videos_of(config: Config, subsets: Sequence[str] | None) -> dict[str, list[str]]:
    """Subset -> ids of its videos, in file order; None: every subset that it reads.  UserError for an unknown one."""
    data = config.dataset
    annotations = load_annotations(data.json_file, data.strict, get_preset(config.dataset_name).unlabelled,
                                   config.unlabelled_split)
    wanted = [name.lower() for name in subsets or (*config.train_split, *config.val_split, *config.unlabelled_split)]
    counts = annotations.subset_counts()
    for name in wanted:
        if name not in counts:
            raise UserError(f"{annotations.path}: has no video of subset {name!r}{nearest(name, counts)}; it has "
                            f"{', '.join(counts)}: correct --split")
    return {name: [video.id for video in annotations.of_subset((name,))] for name in dict.fromkeys(wanted)}


def pack_stream(stream: Stream, videos: Mapping[str, Sequence[str]], out: Path, dtype: str, skip_missing: bool, say: Say) -> int:
    """Pack one stream into a file of the folder `out`; returns its number of videos.

    videos: ids by subset.  Videos of an earlier packing that are not among them stay.
    Raises UserError for missing, damaged or non-finite features, values beyond float16, too little space, and a file at that
    place which is no pack.
    """
    path, unfinished = stream.packed_in(out), out / f".unfinished-{stream.name}.h5"
    plan = _plan(stream, videos, dtype, skip_missing, say)
    with contextlib.ExitStack() as stack:
        before = stack.enter_context(_opened_pack(path)) if exists(path) else {}
        others = [name for name in _names(before) if name not in plan] if before else []
        for name in others:
            _check_alike(path, name, before[name], next(iter(plan.values())))
        if before and all(_intact(before, name, planned) for name, planned in plan.items()):
            say(f"{path}: nothing has changed")
            return len(plan) + len(others)
        with _writing(path), made(out):
            _check_space(out, plan, unfinished)
        with _writing(path), _open_unfinished(unfinished) as file:
            for name, planned in plan.items():
                if _intact(file, name, planned):
                    continue
                kept = _intact(before, name, planned)
                _write(file, name, before[name][...] if kept else _converted(stream.store, planned), planned.source)
            for name in others:
                _write(file, name, before[name][...], before[name].attrs[SOURCE])
            for name in set(_names(file)) - {*plan, *others}:  # of an interrupted packing of other videos
                del file[name]
    if damaged := _damaged(unfinished):
        raise UserError(f"{path}: {damaged[0]} was not read back as it was written; check the disk and run the command again")
    os.replace(unfinished, path)
    say(f"{path}: written, {path.stat().st_size / 2**20:.1f} MiB")
    return len(plan) + len(others)


def verify(path: Path, names: Sequence[str] = ()) -> int:
    """Read every video of a packed file and compare its checksum; the number of videos.

    names: videos (with their prefix) that must be in it.  Raises UserError listing what is damaged or missing.
    """
    with _opened_pack(path) as file:
        found = _names(file)
    if lacking := sorted(set(names) - set(found)):
        raise UserError(f"{path}: {len(lacking)} of {len(names)} videos are not in it ({', '.join(lacking[:LISTED])}); "
                        "pack again")
    if damaged := _damaged(path):
        raise UserError(f"{path}: {len(damaged)} of {len(found)} videos differ from their checksum "
                        f"({', '.join(damaged[:LISTED])}); pack again, or copy the file again")
    return len(found)


def describe(streams: Sequence[Stream], out: Path) -> list[str]:
    """The keys of section dataset that read the packed files: as lines of a configuration, and as --set arguments."""
    joined = [str(s.packed_in(out)) for s in streams if s.modality is None]
    keys: dict[str, Any] = {"feat_folder": joined if len(joined) > 1 else joined[0]} if joined else {}
    if own := {s.name: {**asdict(s.modality), "folder": str(s.packed_in(out))} for s in streams if s.modality is not None}:
        keys["modalities"] = own
    section = ["dataset:"] + [f"  {key}: {json.dumps(value)}" for key, value in keys.items()]
    return [*section, "or on the command line:", "  " + " ".join(f"--set 'dataset.{k}={json.dumps(v)}'" for k, v in keys.items())]


def _plan(stream: Stream, videos: Mapping[str, Sequence[str]], dtype: str, skip_missing: bool, say: Say) -> dict[str, Planned]:
    """Name in the pack -> video to store, in file order; reads headers only."""
    plan: dict[str, Planned] = {}
    store = stream.store
    for subset, ids in videos.items():
        lacking = [store.path(i) for i in ids if not store.exists(i)]
        if lacking:
            message = (f"{store.keys.section}.{store.keys.folder}: {len(lacking)} of {len(ids)} videos of subset {subset} have "
                       f"no features: {', '.join(lacking[:LISTED])}{', ...' if len(lacking) > LISTED else ''}")
            if not skip_missing or len(lacking) == len(ids):
                raise UserError(f"{message}; correct the folder, or set dataset.missing: skip to leave them out")
            say(f"note: {message}; they are left out")
        for i in ids:
            if store.exists(i):
                plan[stream.prefix + i] = Planned(i, store.shape(i), DTYPES[dtype], _source(store, i))
    first = next(iter(plan.values()))
    for planned in plan.values():
        if planned.shape[1] != first.shape[1]:
            raise UserError(f"{store.path(planned.video)}: has {planned.shape[1]} channels, but {store.path(first.video)} has "
                            f"{first.shape[1]}; one pack holds features of one width")
    return plan


def _check_alike(path: Path, name: str, packed: Any, planned: Planned) -> None:
    if (packed.dtype, packed.shape[1]) != (planned.dtype, planned.shape[1]):
        raise UserError(f"{path}: holds {name!r} as {packed.dtype} with {packed.shape[1]} channels, not {planned.dtype} with "
                        f"{planned.shape[1]}; pack all subsets again (--split), or choose another --out")


def _write(file: Any, name: str, rows: np.ndarray, source: str) -> None:
    if name in file:
        del file[name]
    data = file.create_dataset(name, data=rows)
    data.attrs[SOURCE], data.attrs[CHECKSUM] = source, _checksum(rows)
    file.flush()  # a killed packing resumes after this video


def _intact(file: Any, name: str, planned: Planned) -> bool:
    """Whether a video is stored as planned, from the same source, and agrees with its checksum."""
    with contextlib.suppress(*READ_ERRORS):
        data = file[name]
        return (data.shape, data.dtype, data.attrs[SOURCE]) == planned[1:] and _checksum(data[...]) == data.attrs[CHECKSUM]
    return False


def _damaged(path: Path) -> list[str]:
    """The videos of a file that do not agree with their checksums."""
    damaged = []
    with hdf5_file(str(path)) as file:
        for name in _names(file):
            try:
                if _checksum(file[name][...]) != file[name].attrs[CHECKSUM]:
                    damaged.append(name)
            except READ_ERRORS:
                damaged.append(name)
    return damaged


def _names(file: Any) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
    return names


def _checksum(rows: np.ndarray) -> str:
    """Of the bytes: blake2b, 128 bits, hexadecimal."""
    return hashlib.blake2b(np.ascontiguousarray(rows).view(np.uint8).data, digest_size=16).hexdigest()


def _converted(store: FeatureStore, planned: Planned) -> np.ndarray:
    rows = store.read(planned.video)
    if rows.shape != planned.shape:
        raise UserError(f"{store.path(planned.video)}: was replaced while it was packed; run the command again")
    largest, limit = float(np.abs(rows).max()), np.finfo(planned.dtype).max
    if largest > limit:
        raise UserError(f"{store.path(planned.video)}: holds {largest:g}, beyond float16's {limit:g}; use --dtype float32")
    return rows.astype(planned.dtype)


def _source(store: FeatureStore, video: str) -> str:
    """Size and time of a video's source file: when they change, the video is packed again."""
    path = store.path(video)
    info = os.stat(path if is_file(path) else store.folders[0])  # a dataset in an .h5 file is no file of its own
    return f"{info.st_size} bytes, {info.st_mtime_ns} ns"


@contextlib.contextmanager
def _opened_pack(path: Path) -> Iterator[Any]:
    """A finished pack; UserError when the file does not exist or is not a pack."""
    if not exists(path):
        raise UserError(f"{path}: no such packed file; run the command without --verify")
    try:
        file = hdf5_file(str(path))
    except READ_ERRORS as error:
        raise UserError(f"{path}: exists and is no packed file ({error}); choose another --out") from error
    with file:
        if any(CHECKSUM not in file[name].attrs for name in _names(file)):
            raise UserError(f"{path}: exists and is no packed file (it has no checksums); choose another --out")
        yield file


@contextlib.contextmanager
def _open_unfinished(path: Path) -> Iterator[Any]:
    """The file to write to: that of an interrupted packing if it can be read, else a new one; flushed to disk at the end."""
    import h5py  # late, as in libs.datasets.features.formats

    try:
        if exists(path):
            with h5py.File(path, "r+", locking="best-effort") as file:
                _names(file)
    except BlockingIOError as error:
        raise UserError(f"{path}: another command is packing into it; wait until it ends") from error
    except READ_ERRORS:
        path.unlink()
    with h5py.File(path, "a", locking="best-effort") as file:
        yield file
    with open(path, "rb") as written:
        os.fsync(written.fileno())


def _check_space(out: Path, plan: Mapping[str, Planned], unfinished: Path) -> None:
    needed = sum(p.shape[0] * p.shape[1] * p.dtype.itemsize for p in plan.values())
    needed -= unfinished.stat().st_size if exists(unfinished) else 0
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(f"{out}: the pack needs {needed / 2**30:.2f} GiB, but {free / 2**30:.2f} GiB are free; choose another "
                        "--out, or --dtype float16")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # h5py reports a full disk as any of these
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be written ({reason}); free some space, or choose another --out: finished videos "
                        "stay, and the same command resumes after them") from error
