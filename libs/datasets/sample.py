"""`Sample`, a video or training crop without its features, and `VideoDataset`, the interface that the data loaders read.

    sample = dataset.sample(i)            the whole video number i; features are not read
    dataset.read(sample, out)             its features, into the caller's tensor
    feats = dataset.features(sample)      its features, in a new tensor
"""
from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from libs.core.errors import UserError
from libs.core.schema import DatasetConfig
from libs.datasets.grid import Grid, expected_length, implausible_length, is_resampled, plan_grid


@dataclass(frozen=True, eq=False)
class Sample:
    """One video, or one training crop of it, without its features.

    index: number of the video in its dataset; grid: of the whole video; duration_s: 1e8 when unknown; steps: T, grid steps of
    the crop; source_length: grid steps of the whole video; segments: (N, 2) float32, grid units relative to `start`;
    labels: (N,) int64; start: grid index of the crop's first step; labelled: False where the annotations are not used (and
    segments are empty); hidden: runs [first, end) of the crop's steps that a network in training does not see; speed: of
    `at_speed`, of which steps, source_length, segments and start are then.
    """

    index: int
    video_id: str
    grid: Grid
    duration_s: float
    steps: int
    source_length: int
    segments: Tensor
    labels: Tensor
    start: int = 0
    labelled: bool = True
    hidden: tuple[tuple[int, int], ...] = ()
    speed: float = 1.0

    def at_speed(self, speed: float) -> Sample:
        """This whole video played at another speed: its vectors interpolated linearly (`resize`), segments in the new units."""
        steps = max(round(self.steps / speed), 1)
        segments = (self.segments + 0.5) * (steps / self.steps) - 0.5  # vectors are the centres of equal intervals
        return dataclasses.replace(self, steps=steps, source_length=steps, segments=segments, speed=speed)


@dataclass(frozen=True)
class Extent:
    """Length of one video in its feature file and on its grid.

    file_length: feature vectors stored; length: grid steps; expected: vectors that a video of that duration should have, None
    where it is not known or the features are resampled; mismatch: the message for a file that cannot belong to a video of that
    duration, else ''.
    """

    file_length: int
    grid: Grid
    length: int
    expected: int | None = None
    mismatch: str = ""

    @property
    def end_s(self) -> float:
        """Seconds at which the features end."""
        return self.grid.end_s(self.length)


def measure(path: str, file_length: int, fps: float, duration_s: float, data: DatasetConfig, remedy: str) -> Extent:
    """Grid and length of a video whose file `path` holds `file_length` vectors; duration_s: inf when unknown.

    Raises UserError, ending in `remedy`, for more than dataset.max_seq_len vectors of a resampled video.
    """
    grid, length = plan_grid(
        file_length, fps, duration_s, feat_stride=data.feat_stride, num_frames=data.num_frames,
        downsample_rate=data.downsample_rate, max_seq_len=data.max_seq_len, force_upsampling=data.force_upsampling)
    if is_resampled(data) and length > data.max_seq_len:
        raise UserError(f"{path}: has {length} feature vectors, but feat_stride <= 0 takes at most dataset.max_seq_len = "
                        f"{data.max_seq_len}; {remedy}")
    expected, mismatch = None, ""
    if data.feat_stride > 0 and np.isfinite(duration_s):
        expected = expected_length(duration_s, fps, data.feat_stride, data.num_frames)
        if implausible_length(file_length, expected):
            mismatch = (f"{path}: has {file_length} feature vectors, but {duration_s:g} s at {fps:g} fps give about {expected}")
    return Extent(file_length, grid, length, None if is_resampled(data) else expected, mismatch)


class Named(Protocol):
    """An object with the id of a video."""

    @property
    def id(self) -> str: ...


class VideoDataset(ABC):
    """Videos with features, as data loaders and `predict` take them.

    `videos`: one entry with an `id` per video.
    """

    videos: Sequence[Named]

    @property
    @abstractmethod
    def channels(self) -> int:
        """C of the features."""

    @property
    def kept(self) -> bool:
        """Whether features are in memory."""
        return False

    @property
    def feature_device(self) -> torch.device:
        """Device of the tensors that `read` can write to, besides the CPU: a GPU if features are kept there."""
        return torch.device("cpu")

    @abstractmethod
    def lengths(self) -> np.ndarray:
        """(len,) int64: grid steps of every whole video; no features are read."""

    @abstractmethod
    def sample(self, index: int | tuple[int, int]) -> Sample:
        """The whole video `index`; features are not read."""

    @abstractmethod
    def read(self, sample: Sample, out: Tensor) -> None:
        """Write the features of a sample into `out`, (T, C) float32 on the CPU or on `feature_device`.

        Raises UserError for unusable features.
        """

    def features(self, sample: Sample) -> Tensor:
        """The features of a sample in new CPU memory, (T, C) float32; raises as `read`."""
        out = torch.empty(sample.steps, self.channels)
        self.read(sample, out)
        return out

    def __len__(self) -> int:
        return len(self.videos)
