"""Write the features that a configuration reads as packed folders (`libs.datasets.features.packed`), one per stream.

    OUT/features        dataset.feat_folder (OUT/features_0, OUT/features_1, ... when it lists several folders)
    OUT/<modality>      a modality with a folder of its own

A shard appears under its name only when it is whole and has been read back; the index is written last.  A killed packing goes on
with the next shard; a repeated one keeps the shards whose content and source files are unchanged.
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from libs.core.errors import UserError, nearest
from libs.core.schema import Config, FolderModality
from libs.datasets.annotations import load_annotations
from libs.datasets.features.packed import (
    DTYPES,
    FORMAT,
    INDEX,
    MARK_BYTES,
    Entry,
    Index,
    Shard,
    digest_of,
    is_packed,
    mark_block,
    mark_of,
    open_shard,
    read_index,
    read_range,
)
from libs.datasets.features.store import FeatureStore, Keys
from libs.datasets.presets import get_preset
from libs.utils.files.io import write_json_atomic

Say = Callable[[str], None]
UNFINISHED = ".unfinished-"
LISTED = 10


@dataclass(frozen=True)
class Stream:
    """One folder of features and the folder it is packed into; prefix: before the video id in the names of both."""

    name: str
    store: FeatureStore
    prefix: str
    modality: FolderModality | None = None


def stored_streams(config: Config) -> list[Stream]:
    """The folders that `config` may read, in order: those of dataset.feat_folder, then those of modalities.

    Raises UserError for folders that do not exist, and for a modality whose name cannot be a folder's.
    """
    data, found = config.dataset, []
    folders = data.feat_folder if isinstance(data.feat_folder, tuple) else (data.feat_folder,) if data.feat_folder else ()
    widths = data.input_dim if isinstance(data.input_dim, tuple) else (data.input_dim,)
    for i, folder in enumerate(folders):
        width = widths[i] if len(widths) == len(folders) else None
        store = FeatureStore(folder, data.file_prefix, data.file_ext, width if len(folders) > 1 else None)
        found.append(Stream("features" if len(folders) == 1 else f"features_{i}", store, data.file_prefix or ""))
    for name, entry in (data.modalities or {}).items():
        if not isinstance(entry, FolderModality):
            continue
        if not re.fullmatch(r"\w[\w.-]*", name) or name in [s.name for s in found]:
            raise UserError(f"{config.source}: dataset.modalities: {name!r} is to be the name of a folder beside "
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
    return {name: [v.id for v in annotations.videos.values() if v.subset == name] for name in dict.fromkeys(wanted)}


def pack_stream(stream: Stream, videos: dict[str, list[str]], out: Path, dtype: str, shard_bytes: int, skip_missing: bool,
                say: Say) -> Index:
    """Pack one stream into the folder `out`; returns its index.  Subsets of an earlier packing that are not in `videos` stay.

    Raises UserError for missing, damaged or non-finite features, values beyond float16, too little space, and a folder that
    holds anything else.
    """
    before = _earlier(out)
    plan, channels = _plan(stream, videos, dtype, shard_bytes, skip_missing, say)
    kept = Index(out, False, dtype, channels, (), {})
    if before is not None and (rest := [s for s in before.shards if s.subset not in videos]):
        if (before.dtype, before.channels) != (dtype, channels):
            raise UserError(f"{out}: holds subset {rest[0].subset!r} as {before.dtype} with {before.channels} channels, not "
                            f"{dtype} with {channels}; pack all subsets again (--split), or choose another --out")
        number = {old: new for new, old in enumerate(i for i, s in enumerate(before.shards) if s.subset not in videos)}
        kept = replace(kept, shards=tuple(rest), videos={name: entry._replace(shard=number[entry.shard]) for name, entry
                                                         in before.videos.items() if entry.shard in number})
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for leftover in out.glob(UNFINISHED + "*"):
            leftover.unlink()
        if before is None:  # a reader that meets a half-packed folder says so
            _write_index(kept)
        _check_space(out, plan, channels * DTYPES[dtype].itemsize)
    index = kept
    for file, subset, entries in plan:
        shard, found = _shard(stream, out / file, subset, entries, dtype, channels, say)
        places = {name: Entry(len(index.shards), offset, steps, digest) for name, (offset, steps, digest) in found.items()}
        index = replace(index, shards=(*index.shards, shard), videos={**index.videos, **places})
    index = replace(index, complete=True)
    with _writing(out):
        _write_index(index)
        for stale in {s.file for s in before.shards} - {s.file for s in index.shards} if before else ():
            (out / stale).unlink(missing_ok=True)
    return index


def verify(folder: Path, names: Sequence[str] = ()) -> int:
    """Read every video of a pack and compare its checksum; the number of videos.

    names: videos (with their prefix) that must be in it.  Raises UserError listing what is damaged or missing.
    """
    index = read_index(folder)
    if not index.complete:
        raise UserError(f"{folder / INDEX}: packing was not finished; run the command again without --verify")
    if lacking := [name for name in names if name not in index.videos]:
        raise UserError(f"{folder}: {len(lacking)} of {len(names)} videos are not in it ({', '.join(lacking[:LISTED])}); "
                        "pack again")
    damaged = []
    for number in range(len(index.shards)):
        with open_shard(index, number) as file:
            for name, entry in index.videos.items():
                if entry.shard == number and _stored_digest(file, entry, index.row_bytes) != entry.digest:
                    damaged.append(f"{name} in {index.shards[number].file}")
    if damaged:
        raise UserError(f"{folder}: {len(damaged)} of {len(index.videos)} videos differ from their checksum "
                        f"({', '.join(damaged[:LISTED])}); delete those files and pack again, or copy them again")
    return len(index.videos)


def settings(config: Config, streams: Sequence[Stream], out: Path) -> dict[str, Any]:
    """The keys of section dataset that read the packed folders."""
    joined = [str(out / s.name) for s in streams if s.modality is None]
    keys: dict[str, Any] = {"feat_folder": joined if len(joined) > 1 else joined[0]} if joined else {}
    own = {s.name: {**asdict(s.modality), "folder": str(out / s.name)} for s in streams if s.modality is not None}
    return {**keys, "modalities": own} if own else keys


Planned = tuple[str, str, dict[str, tuple[str, int]]]  # file, subset, name in the pack -> (video id, T)


def _plan(stream: Stream, videos: dict[str, list[str]], dtype: str, shard_bytes: int, skip_missing: bool,
          say: Say) -> tuple[list[Planned], int]:
    """Which videos go into which shard, in file order, and the channels of all; headers only."""
    plan: list[Planned] = []
    width: tuple[int, str] | None = None
    for subset, ids in videos.items():
        present = [i for i in ids if stream.store.exists(i)]
        if len(present) < len(ids):
            lacking = [stream.store.path(i) for i in ids if not stream.store.exists(i)]
            keys = stream.store.keys
            message = (f"{keys.section}.{keys.folder}: {len(lacking)} of {len(ids)} videos of subset {subset} have no "
                       f"features: {', '.join(lacking[:LISTED])}{', ...' if len(lacking) > LISTED else ''}")
            if not skip_missing or not present:
                raise UserError(f"{message}; correct the folder, or set dataset.missing: skip to leave them out")
            say(f"note: {message}; they are left out")
        size, number, name = 0, -1, re.sub(r"[^\w.-]", "_", subset)
        for i in present:
            steps, channels = stream.store.shape(i)
            width = width or (channels, i)
            if channels != width[0]:
                raise UserError(f"{stream.store.path(i)}: has {channels} channels, but {stream.store.path(width[1])} has "
                                f"{width[0]}; one pack holds features of one width")
            needed = steps * channels * DTYPES[dtype].itemsize
            if number < 0 or size + needed > shard_bytes:
                size, number = 0, number + 1
                plan.append((f"{name}-{number:05d}.h5", subset, {}))
            plan[-1][2][stream.prefix + i] = (i, steps)
            size += needed
    files = [file for file, _, _ in plan]
    if twice := [file for file in files if files.count(file) > 1]:
        raise UserError(f"two subsets would both be packed as {twice[0]}; rename one of {', '.join(videos)}")
    return plan, width[0] if width else 0


def _shard(stream: Stream, path: Path, subset: str, entries: dict[str, tuple[str, int]], dtype: str, channels: int,
           say: Say) -> tuple[Shard, dict[str, tuple[int, int, str]]]:
    """The shard at `path`, and name -> (offset, T, digest): as it lies there, or written now."""
    sources = {name: _source(stream.store, video) for name, (video, _) in entries.items()}
    found = _reusable(path, entries, sources, dtype, channels)
    what = "kept"
    if found is None:
        with _writing(path):
            found, what = _write_shard(stream, path, entries, sources, dtype, channels), "written"
    size = path.stat().st_size
    say(f"{path}: {what}, {len(entries)} videos, {size / 2**20:.1f} MiB")
    return Shard(path.name, size, mark_of([digest for _, _, digest in found.values()]), subset), found


def _write_shard(stream: Stream, path: Path, entries: dict[str, tuple[str, int]], sources: dict[str, str], dtype: str,
                 channels: int) -> dict[str, tuple[int, int, str]]:
    import h5py  # late, as in libs.datasets.features.formats

    temporary, found = path.with_name(UNFINISHED + path.name), {}
    try:
        with h5py.File(temporary, "w", libver="latest", userblock_size=MARK_BYTES) as file:
            for name, (video, steps) in entries.items():
                rows = _converted(stream.store, video, dtype)
                if rows.shape != (steps, channels):
                    raise UserError(f"{stream.store.path(video)}: was replaced while it was packed; run the command again")
                data = file.create_dataset(name, rows.shape, rows.dtype, rows)
                data.attrs["blake2b"], data.attrs["source"] = digest_of(rows), sources[name]
            file.flush()
            found = {name: (file[name].id.get_offset(), len(file[name]), file[name].attrs["blake2b"]) for name in entries}
        with open(temporary, "r+b", buffering=0) as raw:
            raw.write(mark_block(mark_of([digest for _, _, digest in found.values()])))
            os.fsync(raw.fileno())
            row = channels * DTYPES[dtype].itemsize
            for name, (offset, steps, digest) in found.items():
                if _stored_digest(raw, Entry(0, offset, steps, digest), row) != digest:
                    raise UserError(f"{path}: {name} was not read back as it was written; check the disk and run the command "
                                    "again")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return found


def _reusable(path: Path, entries: dict[str, tuple[str, int]], sources: dict[str, str], dtype: str,
              channels: int) -> dict[str, tuple[int, int, str]] | None:
    """What a finished shard holds, if it is what would be written now; else None.  Its bytes are compared with its checksums."""
    import h5py

    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r") as file:
            if list(file.keys()) != sorted(entries) and sorted(_names(file)) != sorted(entries):
                return None
            found = {}
            for name, (_, steps) in entries.items():
                data = file[name]
                if data.shape != (steps, channels) or data.dtype != DTYPES[dtype] or data.attrs["source"] != sources[name]:
                    return None
                found[name] = (data.id.get_offset(), steps, str(data.attrs["blake2b"]))
        row = channels * DTYPES[dtype].itemsize
        with open(path, "rb", buffering=0) as raw:
            if raw.read(MARK_BYTES) != mark_block(mark_of([digest for _, _, digest in found.values()])):
                return None
            if any(_stored_digest(raw, Entry(0, o, n, d), row) != d for o, n, d in found.values()):
                return None
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, EOFError):
        return None
    return found


def _names(file: Any) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
    return names


def _converted(store: FeatureStore, video: str, dtype: str) -> np.ndarray:
    rows = store.read(video)
    if dtype == "float32":
        return rows
    largest = float(np.abs(rows).max())
    if largest > np.finfo(np.float16).max:
        raise UserError(f"{store.path(video)}: holds {largest:g}, beyond float16's {np.finfo(np.float16).max:g}; use "
                        "--dtype float32")
    return rows.astype(DTYPES[dtype])


def _source(store: FeatureStore, video: str) -> str:
    """Size and time of the file that a video comes from: when they change, its shard is written again."""
    path = store.path(video)
    if not os.path.isfile(path):  # a data set in an .h5 file, or in another pack
        path = os.path.join(store.folders[0], INDEX) if is_packed(store.folders[0]) else store.folders[0]
    info = os.stat(path)
    return f"{info.st_size} bytes, {info.st_mtime_ns} ns"


def _stored_digest(file: Any, entry: Entry, row_bytes: int) -> str:
    rows = np.empty(entry.steps * row_bytes, np.uint8)
    try:
        read_range(file, rows, entry.offset)
    except (OSError, EOFError) as error:
        raise UserError(f"{file.name}: cannot be read ({error}); check the disk, or copy the file again") from error
    return digest_of(rows)


def _earlier(out: Path) -> Index | None:
    """The index of an earlier packing into `out`; UserError when the folder is something else."""
    if is_packed(out):
        return read_index(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is no packed folder; choose another --out")
    return None


def _write_index(index: Index) -> None:
    write_json_atomic(index.folder / INDEX, {
        "format": FORMAT, "complete": index.complete, "dtype": index.dtype, "channels": index.channels,
        "shards": [asdict(s) for s in index.shards], "videos": {name: list(entry) for name, entry in index.videos.items()}},
        indent=None)


def _check_space(out: Path, plan: list[Planned], row_bytes: int) -> None:
    needed = sum(steps * row_bytes for file, _, entries in plan if not (out / file).exists() for _, steps in entries.values())
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
        raise UserError(f"{path}: cannot be written ({reason}); free some space, or choose another --out: what is finished "
                        "stays, and the same command goes on from there") from error


def describe(config: Config, streams: Sequence[Stream], out: Path) -> list[str]:
    """Lines to paste into a configuration, and the same as --set arguments."""
    keys = settings(config, streams, out)
    section = ["dataset:"] + [f"  {key}: {json.dumps(value)}" for key, value in keys.items()]
    return [*section, "or on the command line:", "  " + " ".join(f"--set 'dataset.{k}={json.dumps(v)}'" for k, v in keys.items())]
