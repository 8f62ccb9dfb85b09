"""The feature streams that a model reads, joined along channels.

A stream is a channel range of the joined `dataset.feat_folder` files, or has files of its own (`FolderModality`).  Streams that
the model does not read are never opened or looked for: their channels, files and folders may be absent.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from libs.core.errors import UserError, nearest
from libs.core.schema import Config, DatasetConfig, FolderModality, as_tuple
from libs.datasets.features.provenance import spans_of
from libs.datasets.features.store import FEAT_FOLDER, FeatureStore, Keys, stretched
from libs.datasets.grid import file_window, is_resampled
from libs.datasets.transforms import resize


@dataclass
class _Part:
    """Channel ranges of one store, side by side in the result; stretched: resampled to the grid."""

    store: FeatureStore
    channels: list[tuple[int, int]]
    stretched: bool = False

    @property
    def width(self) -> int:
        return sum(high - low for low, high in self.channels)


class StreamReader:
    """Reads the named streams of a video, in the order given; picklable, and safe to use in forked workers.

    names: from dataset.modalities; None: all channels of dataset.feat_folder.  The feature grid is that of the channel ranges
    or, without any, of the first stream that is not resampled.
    `channels`: of the result.
    Raises UserError for names that are not declared, folders that do not exist, and streams without a grid.
    """

    def __init__(self, config: Config, names: Sequence[str] | None) -> None:
        self._data = data = config.dataset
        if names is None:
            self.channels = config.file_channels
            self._grid_store = FeatureStore(data.feat_folder, data.file_prefix, data.file_ext, self.channels)
            self._parts = [_Part(self._grid_store, [(0, self.channels)])]
            return
        where = f"{config.source}: " if config.source else ""
        _check_names(where, names, data)
        self._parts = _parts(data, names)
        self.channels = sum(part.width for part in self._parts)
        stores = [part.store for part in self._parts if not part.stretched]
        if not stores:
            raise UserError(f"{where}dataset.modalities: {', '.join(names)}: resample: linear stretches a stream to the grid of "
                            "another, but none of these gives a grid; also read a range of channels or a stream with "
                            "resample: none (model.modalities)")
        self._grid_store = next((store for store in stores if store.keys == FEAT_FOLDER), stores[0])

    def close(self) -> None:
        """Close the .h5 files that are kept open (they open again when needed)."""
        for part in self._parts:
            part.store.close()

    def missing(self, video_id: str) -> tuple[str, Keys] | None:
        """The first missing file of the video and the configuration keys that name it; None if all streams are there."""
        for part in self._parts:
            path = part.store.missing_path(video_id)
            if path is not None:
                return path, part.store.keys
        return None

    def path(self, video_id: str) -> str:
        """The file that gives the video's grid."""
        return self._grid_store.path(video_id)

    @property
    def grid_folders(self) -> tuple[str, ...]:
        """The folders, or .h5 files, with the files that give the grid."""
        return self._grid_store.folders

    def length(self, video_id: str) -> int:
        """Feature vectors in the file that gives the grid; from headers only.

        Raises UserError for a wrong shape of any stream read, and where a stream that is not resampled is of another length.
        """
        length = self._grid_store.length(video_id)
        for part in self._parts:
            own, keys = part.store.length(video_id), part.store.keys
            if own != length and not part.stretched:
                widths = [store.shape(video_id)[1] for store in (self._grid_store, part.store)]
                remedy = (stretched(widths[0], part.store.folders[0], widths[1]) if keys == FEAT_FOLDER
                          else f"set {keys.section}.resample: linear to stretch it to the feature grid, or extract it again")
                raise UserError(f"{part.store.path(video_id)}: has {own} feature vectors, but {self.path(video_id)} has "
                                f"{length}; {remedy}")
        return length

    def read(self, video_id: str, file_length: int, length: int, start: int, stop: int, out: Tensor) -> None:
        """Write grid steps start .. stop - 1 of a video of `length` steps into `out`, (stop - start, C) float32 on the CPU.

        file_length: as `length(video_id)` gives it.  Raises UserError as `FeatureStore.read`.
        """
        window = file_window(start, stop, file_length, self._data.downsample_rate)
        columns = out.split([part.width for part in self._parts], dim=1)
        for part, target in zip(self._parts, columns, strict=True):
            if part.stretched or is_resampled(self._data):
                rows = None if part.stretched else slice(0, file_length)
                whole = torch.from_numpy(part.store.read(video_id, rows, part.channels))
                target.copy_(resize(whole, length)[start:stop])
            else:
                part.store.read(video_id, window, part.channels, target.numpy())


def _check_names(where: str, names: Sequence[str], data: DatasetConfig) -> None:
    known = data.modalities or {}
    for name in names:
        if name not in known:
            raise UserError(f"{where}dataset.modalities: {name!r} is to be read, but is not declared{nearest(name, known)}; it "
                            f"declares {', '.join(known) or 'nothing'}: add it, e.g. {{rgb: [0, 1024], flow: [1024, 2048]}}")
    if not names or len(set(names)) < len(names):
        raise UserError(f"{where}dataset.modalities: {list(names)} are to be read; name one or more of {', '.join(known)}, each "
                        "once")


def _parts(data: DatasetConfig, names: Sequence[str]) -> list[_Part]:
    """The parts to read, in order; neighbouring streams of one store become one part."""
    modalities = data.modalities or {}
    ranges = [entry for name in names if not isinstance(entry := modalities[name], FolderModality)]
    stores = list(_range_stores(data, ranges)) if ranges else []
    parts: list[_Part] = []
    for name in names:
        modality = modalities[name]
        if isinstance(modality, FolderModality):
            store = FeatureStore(modality.folder, modality.file_prefix, modality.file_ext, modality.dim,
                                 keys=Keys(f"dataset.modalities.{name}", "folder", "dim"))
            parts.append(_Part(store, [(0, modality.dim)], modality.resample == "linear"))
            continue
        for low, high, store in stores:
            if inside := _overlap(modality, low, high):
                if not parts or parts[-1].store is not store:
                    parts.append(_Part(store, []))
                parts[-1].channels.append(inside)
    return parts


def _range_stores(data: DatasetConfig, wanted: list[tuple[int, int]]) -> Iterator[tuple[int, int, FeatureStore]]:
    """(first, last + 1 joined channel, store) of the feat_folder folders that hold wanted channels.

    The folders' borders are known if input_dim lists a width for each; otherwise all folders are one store.  The files of a
    single folder may have fewer channels: they may end with any declared range that lies behind the wanted ones.
    """
    folders, dims = as_tuple(data.feat_folder), as_tuple(data.input_dim)
    blocks = [(name,) for name in folders] if len(dims) == len(folders) else [folders]
    widths = dims if len(dims) == len(folders) else (sum(dims),)
    low = 0
    for block, width in zip(blocks, widths, strict=True):
        high = low + width
        inside = [pair for r in wanted if (pair := _overlap(r, low, high))]
        if inside:
            needed = max(end for _, end in inside)
            declared = [pair for r in declared_ranges(data) if (pair := _overlap(r, low, high))]
            narrower = [end for _, end in declared if end >= needed] if len(block) == 1 else ()
            yield low, high, FeatureStore(block, data.file_prefix, data.file_ext, width, narrower)
        low = high


def declared_ranges(data: DatasetConfig) -> list[tuple[int, int]]:
    """Channel ranges of the modalities and of the streams of the extractor; a file may end with each of them."""
    ranges = [m for m in (data.modalities or {}).values() if not isinstance(m, FolderModality)]
    return ranges + (list(spans_of(data.extractor).values()) if data.extractor else [])


def _overlap(channels: tuple[int, int], low: int, high: int) -> tuple[int, int] | None:
    """The part of a range of joined channels inside [low, high), counted from `low`; None if there is none."""
    start, stop = max(channels[0], low), min(channels[1], high)
    return (start - low, stop - low) if start < stop else None
