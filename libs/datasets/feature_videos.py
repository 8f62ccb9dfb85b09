"""Feature files, folders of them, .h5 files or arrays as a dataset without annotations, for inference.

    files = find_videos(["clips/", "one.npy"], config)
    videos = FeatureVideos(files, config, Timing(fps=25))
    detections = predict(model, videos, config, device)       # libs.engine.inference.predict
"""
from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from libs.core.errors import UserError, nearest
from libs.core.files import entries, exists, is_file, is_folder
from libs.core.schema import Config, FolderModality
from libs.datasets.features.formats import HDF5_EXTENSIONS, NPZ_KEY, OPENERS, READ_ERRORS, VIDEO_EXTENSIONS, format_of, hdf5_file
from libs.datasets.features.provenance import FILE_NAME as PROVENANCE
from libs.datasets.features.provenance import VideoTiming, combined, positive, read_provenance
from libs.datasets.features.store import FeatureStore
from libs.datasets.features.streams import StreamReader, declared_ranges
from libs.datasets.grid import is_resampled
from libs.datasets.presets import get_preset
from libs.datasets.sample import Extent, Sample, VideoDataset, measure
from libs.datasets.timing import grid_mismatch
from libs.datasets.transforms import resize


@dataclass(frozen=True)
class FeatureFile:
    """Where one video's features are: folder/prefix + id + extension, or the dataset prefix + id of an .h5 file `folder`."""

    id: str
    folder: str
    prefix: str
    extension: str

    @property
    def path(self) -> str:
        """The file, or the .h5 file and the dataset in it."""
        name = self.prefix + self.id
        bundled = not is_folder(self.folder)
        return f"{self.folder}[{name}]" if bundled else os.path.join(self.folder, name + self.extension)


@dataclass(frozen=True, eq=False)
class FeatureArray:
    """One video's features in memory: (T, C), any real type."""

    id: str
    values: np.ndarray

    @property
    def path(self) -> str:
        return f"features of {self.id!r}"


@dataclass(frozen=True)
class Timing:
    """What the caller says of the videos' time: of all of them, or by video id (from the file `source`), which takes precedence.

    What is None comes from the provenance.json beside the features.  Without one, fps: dataset.default_fps; duration_s: the end
    of the last feature vector's window; stride and num_frames, in frames: those of the configuration.
    """

    fps: float | None = None
    duration_s: float | None = None
    by_video: Mapping[str, VideoTiming] = field(default_factory=dict)
    stride: float | None = None
    num_frames: float | None = None
    source: str = "info"

    def of(self, video_id: str) -> VideoTiming:
        """What is given of a video; UserError where a provenance file among them is contradicted."""
        own = self.by_video.get(video_id, VideoTiming())
        general = VideoTiming(self.fps, self.duration_s, self.stride, self.num_frames)
        if own.stride is not None:  # only a provenance file says so
            return combined(video_id, general, own, self.source)
        return own.or_else(general)


class _Measured(NamedTuple):
    """Length, grid and duration of a video, from headers only; exact: its file has only the channels that the model reads."""

    extent: Extent
    duration_s: float
    exact: bool


class FeatureVideos(VideoDataset):
    """Videos without annotations, as `libs.engine.inference.predict.predict` takes them.

    videos: from `find_videos`, or `FeatureArray`s; config: of the network; streams: name -> folder of streams that have files of
    their own, instead of the configuration's; join: further folders whose files of the same name are joined along channels.
    Files hold all channels of training (dataset.input_dim), or as far as the model reads, or just the channels that it reads.
    For the caller: failed: a line for each video that was asked for and has no features; media: the file of each that is a video.
    Raises UserError for no video, a repeated id, an unknown fps, and features of a wrong shape (from headers only); when features
    are read, for damaged files and values that are not finite.
    """

    def __init__(self, videos: Sequence[FeatureFile | FeatureArray], config: Config, timing: Timing = Timing(),
                 streams: Mapping[str, str] | None = None, join: Sequence[str] = (), failed: Sequence[str] = (),
                 media: Mapping[str, str] | None = None) -> None:
        self.failed, self.media = tuple(failed), dict(media or {})
        if not videos:
            raise UserError("no features are given; name feature files, or a folder that holds some")
        self.videos: tuple[FeatureFile | FeatureArray, ...] = tuple(videos)
        self.config, self._data = config, config.dataset
        self._modalities = config.dataset.modalities or {}
        self._streams, self._join = dict(streams or {}), tuple(join)
        self._check_streams()
        self._refuse_repeated_ids()
        self._readers: dict[tuple[str, str, str, bool], StreamReader] = {}
        self._measured = self._measure_all(timing)
        if mismatch := grid_mismatch([m.extent for m in self._measured], self._data):
            warnings.warn(f"{self.videos[0].path}: {mismatch}: give the right --stride or --fps, or correct the durations",
                          stacklevel=2)
        for reader in self._readers.values():
            reader.close()  # workers are forked later and open their own

    @property
    def channels(self) -> int:
        return self.config.model_channels

    def lengths(self) -> np.ndarray:
        return np.array([m.extent.length for m in self._measured], np.int64)

    def sample(self, index: int | tuple[int, int]) -> Sample:
        """The whole video number `index`, with no segments."""
        if isinstance(index, tuple):
            raise TypeError("videos without annotations have no training crops")
        measured = self._measured[index]
        length = measured.extent.length
        return Sample(index, self.videos[index].id, measured.extent.grid, measured.duration_s, length, length, torch.zeros(0, 2),
                      torch.zeros(0, dtype=torch.int64))

    def read(self, sample: Sample, out: torch.Tensor) -> None:
        video, measured = self.videos[sample.index], self._measured[sample.index]
        if isinstance(video, FeatureArray):
            out.copy_(self._from_array(video, sample.steps))
        else:
            extent = measured.extent
            self._reader(video, measured.exact).read(video.id, extent.file_length, extent.length, 0, extent.length, out)

    @property
    def durations_s(self) -> dict[str, float]:
        """Video id -> duration in seconds, as given, else up to the end of the last feature vector's window."""
        return {video.id: measured.duration_s for video, measured in zip(self.videos, self._measured, strict=True)}

    def _check_streams(self) -> None:
        own = [n for n in self.config.model.modalities or () if isinstance(self._modalities[n], FolderModality)]
        for name in self._streams:
            if name not in own:
                raise UserError(f"stream {name!r}: the model reads no stream of that name with files of its own"
                                f"{nearest(name, own)}; it reads {', '.join(own) or 'none such'}")

    def _refuse_repeated_ids(self) -> None:
        seen: dict[str, str] = {}
        for video in self.videos:
            if video.id in seen:
                raise UserError(f"{video.path}: another video is called {video.id!r} too ({seen[video.id]}); results go by that "
                                "name, so rename one file or run them apart")
            seen[video.id] = video.path

    def _measure_all(self, timing: Timing) -> list[_Measured]:
        """Lengths and grids of all videos; one warning where the features are not those of training."""
        folders = dict.fromkeys(v.folder for v in self.videos if isinstance(v, FeatureFile))
        recorded = {folder: read_provenance(folder) for folder in folders}
        known = []
        for video in self.videos:
            beside = recorded[video.folder] if isinstance(video, FeatureFile) else None
            given = timing.of(video.id)
            known.append(combined(video.id, given, beside.of(video.id), beside.path) if beside else given)
        self._refuse_unknown_fps(known, timing)
        trained = self._data.feat_stride, self._data.num_frames
        grids = {(times.stride or trained[0], times.num_frames or trained[1]): video.path
                 for video, times in zip(self.videos, known, strict=True)}
        for (stride, num_frames), path in grids.items():
            if (stride, num_frames) != trained and trained[0] > 0:
                warnings.warn(f"{path}: {PROVENANCE} says stride {stride:g} and num_frames {num_frames:g}, but training had "
                              f"{trained[0]:g} and {trained[1]:g}; durations look different to the network, so expect worse "
                              "results", stacklevel=3)
        return [self._measure(video, times) for video, times in zip(self.videos, known, strict=True)]

    def _refuse_unknown_fps(self, known: Sequence[VideoTiming], timing: Timing) -> None:
        lacking = [v for v, times in zip(self.videos, known, strict=True) if times.fps is None]
        if not lacking or self._data.default_fps is not None:
            return
        video = lacking[0]
        which = "this video" if len(lacking) == 1 else f"{len(lacking)} of {len(self.videos)} videos (this is the first)"
        listed = f"; --info lists {len(timing.by_video)} others{nearest(video.id, timing.by_video)}" if timing.by_video else ""
        raise UserError(f"{video.path}: the frames per second of {which} are not known (in training they came with the "
                        f"annotations){listed}; give --fps, or a file with one per video: --info")

    def _measure(self, video: FeatureFile | FeatureArray, known: VideoTiming) -> _Measured:
        data, exact = self._data, False
        if data.feat_stride > 0:
            data = dataclasses.replace(data, feat_stride=known.stride or data.feat_stride,
                                       num_frames=known.num_frames or data.num_frames)
        fps, duration = data.default_fps if known.fps is None else known.fps, known.duration_s
        assert fps is not None  # `_refuse_unknown_fps`
        positive(f"{video.path}: fps", fps, "fps")
        positive(f"{video.path}: duration", duration, "duration")
        if isinstance(video, FeatureArray):
            file_length = self._check_array(video)
        else:
            exact = self._holds_only_what_is_read(video)
            file_length = self._reader(video, exact).length(video.id)
        if data.feat_stride <= 0 and duration is None:
            raise UserError(f"{video.path}: this network stretches a video to its features (feat_stride <= 0), so its duration "
                            "in seconds is needed; give --duration, or a file with one per video: --info")
        extent = measure(video.path, file_length, fps, math.inf if duration is None else duration, data, "thin the features out")
        if extent.mismatch:
            if not get_preset(self.config.dataset_name).trim:  # as in training: such features only warn there
                raise UserError(f"{extent.mismatch}; check fps, duration, stride ({data.feat_stride:g}) and num-frames "
                                f"({data.num_frames:g})")
            warnings.warn(extent.mismatch, stacklevel=2)
        if duration is None:
            duration = ((file_length - 1) * data.feat_stride + data.num_frames) / fps
        return _Measured(extent, float(duration), exact)

    def _reader(self, video: FeatureFile, exact: bool) -> StreamReader:
        key = (video.folder, video.prefix, video.extension, exact)
        if key not in self._readers:
            self._readers[key] = self._make_reader(video, exact)
        return self._readers[key]

    def _make_reader(self, video: FeatureFile, exact: bool) -> StreamReader:
        data, names = self._data, self.config.model.modalities
        folders = (video.folder, *self._join) if self._join else video.folder
        data = dataclasses.replace(data, feat_folder=folders, file_prefix=video.prefix, file_ext=video.extension)
        if names is None or exact:
            data = dataclasses.replace(data, input_dim=self.config.model_channels)
            return StreamReader(dataclasses.replace(self.config, dataset=data), None)
        modalities = dict(self._modalities)
        for i, name in enumerate(names):
            entry = modalities[name]
            if not isinstance(entry, FolderModality):
                continue
            if name in self._streams:
                modalities[name] = dataclasses.replace(entry, folder=self._streams[name])
            elif i == 0 and not self._ranges:
                modalities[name] = dataclasses.replace(entry, folder=video.folder, file_prefix=video.prefix,
                                                       file_ext=video.extension)
        data = dataclasses.replace(data, modalities=modalities)
        return StreamReader(dataclasses.replace(self.config, dataset=data), names)

    @property
    def _ranges(self) -> list[tuple[int, int]]:
        """The channel ranges that the model reads, in its order; empty: all channels, or streams with files of their own."""
        names = self.config.model.modalities or ()
        return [m for n in names if not isinstance(m := self._modalities[n], FolderModality)]

    def _holds_only_what_is_read(self, video: FeatureFile) -> bool:
        """Whether a file has just the channels that the model reads; UserError if it fits in no way."""
        names = self.config.model.modalities
        if names is not None and len(self._ranges) < len(names):
            return False  # streams in files of their own: their reader checks each
        folders = (video.folder, *self._join)
        with_any_width = FeatureStore(folders, video.prefix, video.extension)
        return self._exact_width(video.path, with_any_width.shape(video.id))

    def _exact_width(self, path: str, shape: tuple[int, int]) -> bool:
        """True: only the channels that the model reads; False: the layout of training; UserError for any other width."""
        stored, read, width = self.config.file_channels, self.config.model_channels, shape[1]
        layouts = {stored}
        if self._ranges:
            needed = max(high for _, high in self._ranges)
            layouts |= {high for _, high in declared_ranges(self._data) if high >= needed}
        if width in layouts:
            return False
        if width == read:
            return True
        names = self.config.model.modalities
        takes = f"{stored} channels, as in training" + (f", or {read}: {' + '.join(names)}" if names else "")
        hint = ("they look transposed, store them as (T, C)" if shape[0] in (*layouts, read)
                else "use the features that it was trained on")
        raise UserError(f"{path}: has {width} channels (shape {shape}), but {self.config.source} takes {takes}; {hint}")

    def _check_array(self, video: FeatureArray) -> int:
        """Number of feature vectors; UserError for a wrong shape or type, or values that are not finite."""
        values, names = video.values, self.config.model.modalities
        if values.ndim != 2 or values.dtype.kind not in "fiu":
            raise UserError(f"{video.path}: an array of shape {values.shape}, type {values.dtype}; expected numbers (T, C)")
        if values.shape[0] == 0:
            raise UserError(f"{video.path}: has no feature vectors (shape {values.shape}); extract them again")
        if names is None or len(self._ranges) == len(names):
            self._exact_width(video.path, values.shape)
        elif values.shape[1] != self.config.model_channels:
            raise UserError(f"{video.path}: has {values.shape[1]} channels, but {self.config.source} reads "
                            f"{self.config.model_channels}: {' + '.join(names)}, side by side")
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            raise UserError(f"{video.path}: {len(bad)} of {values.size} values are NaN or infinite (first: row {bad[0][0]}, "
                            f"channel {bad[0][1]}); extract them again")
        return len(values)

    def _from_array(self, video: FeatureArray, length: int) -> torch.Tensor:
        names = self.config.model.modalities
        values = torch.from_numpy(np.ascontiguousarray(video.values, dtype=np.float32))
        if names is not None and self._ranges and not self._exact_width(video.path, video.values.shape):
            values = torch.cat([values[:, low:high] for low, high in self._ranges], dim=1)
        return (resize(values, length) if is_resampled(self._data) else values[::self._data.downsample_rate]).contiguous()


def find_videos(paths: Sequence[str | os.PathLike], config: Config) -> list[FeatureFile]:
    """The feature files that command-line arguments name, in their order: every feature file of a folder, sorted, and every
    dataset of an .h5 file that holds one per video.

    The video id is the file's name without the configuration's file_prefix and file_ext if it has them, else without its
    extension.  Raises UserError for what does not exist, has an unknown extension or holds no features.
    """
    return [video for path in paths for video in _videos_of(Path(path), config)]


def raw_videos(path: str | os.PathLike) -> list[str]:
    """The video files that a command-line argument names: itself, or those of a folder without feature files; [] for features."""
    if not is_folder(path):
        return [str(path)] if Path(path).suffix.lower() in VIDEO_EXTENSIONS else []
    inside = entries(path)
    if any(is_file(p) and format_of(p.suffix) for p in inside):
        return []
    return [str(p) for p in inside if p.suffix.lower() in VIDEO_EXTENSIONS]


def _videos_of(path: Path, config: Config) -> Iterator[FeatureFile]:
    if is_folder(path):
        files = [p for p in entries(path) if is_file(p) and format_of(p.suffix)]
        if not files:
            raise UserError(f"{path}: holds no feature files ({', '.join(OPENERS)}) and no videos; name the folder that does")
        for file in files:
            yield from _videos_of(file, config)
        return
    if not exists(path):
        raise UserError(f"{path}: no such feature file or folder; check the path")
    if format_of(path.suffix) is None:
        raise UserError(f"{path}: {path.suffix or 'no extension'!r} is not a known format of features"
                        f"{nearest(path.suffix, OPENERS)}; use one of {', '.join(OPENERS)}")
    prefix, extension = config.dataset.file_prefix or "", config.dataset.file_ext or ""
    if path.suffix.lower() in HDF5_EXTENSIONS and (names := _bundled(path)):
        for name in names:
            cut = prefix if name.startswith(prefix) else ""
            yield FeatureFile(name.removeprefix(cut), str(path), cut, extension)
        return
    name = path.name
    cut = prefix if name.startswith(prefix) and len(name) > len(prefix) else ""
    end = extension if name.endswith(extension) and len(name) > len(cut + extension) and format_of(extension) else path.suffix
    yield FeatureFile(name[len(cut):len(name) - len(end)], str(path.parent), cut, end)


def _bundled(path: Path) -> list[str]:
    """Names of the datasets of an .h5 file that holds one per video; [] for a file of a single video."""
    try:
        with hdf5_file(str(path)) as file:
            names = sorted(file)
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read as a feature file ({reason}); write it again") from error
    return [] if NPZ_KEY in names or len(names) == 1 else names
