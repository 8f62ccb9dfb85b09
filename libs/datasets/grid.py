"""Conversion between seconds and the feature grid; all of this arithmetic is here.

A grid unit is the distance between two feature vectors.  Vector t covers `num_frames` frames from frame t * stride on, so its
centre is at (t * stride + num_frames / 2) / fps seconds.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from libs.core.schema import DatasetConfig

Array = TypeVar("Array", np.ndarray, torch.Tensor)
SLACK_VECTORS = 2  # files may be cut or padded a little by feature extractors
TOLERANCE = 0.05  # of the median ratio of feature lengths to expected ones


@dataclass(frozen=True)
class Grid:
    """Feature grid of one video, after downsampling or resampling.

    stride: frames between two grid units; num_frames: frames that one vector covers; offset: num_frames / 2 in grid units;
    fps: frames per second.
    """

    stride: float
    num_frames: float
    offset: float
    fps: float

    def __post_init__(self) -> None:
        for name in ("stride", "num_frames", "fps"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"Grid.{name} must be positive and finite, not {value!r}")

    def seconds_to_grid(self, seconds: np.ndarray) -> np.ndarray:
        """Times in seconds, any shape -> grid units, float32: seconds * fps / stride - offset (SPEC 1).

        Every step is rounded to float32 in this order, as in the published code.  Times before the first centre are negative.
        """
        return np.asarray(seconds, np.float32) * float(self.fps) / float(self.stride) - float(self.offset)

    def grid_to_seconds(self, grid: Array) -> Array:
        """Grid units (array or tensor, any shape) -> seconds, same type: (grid * stride + num_frames / 2) / fps (SPEC 44)."""
        return (grid * float(self.stride) + 0.5 * float(self.num_frames)) / float(self.fps)

    def end_s(self, steps: int) -> float:
        """Seconds at which a video of so many grid steps ends."""
        return float(self.grid_to_seconds(np.array(steps)))


def regular_grid(feat_stride: float, num_frames: float, fps: float, downsample_rate: int = 1) -> Grid:
    """Grid of feature files whose every `downsample_rate`-th vector is read; num_frames is not scaled (SPEC 1)."""
    stride = feat_stride * downsample_rate
    return Grid(stride, num_frames, 0.5 * num_frames / stride, fps)


def downsampled_length(file_length: int, downsample_rate: int) -> int:
    """Vectors left of `file_length` when every `downsample_rate`-th is read, starting with the first."""
    return -(-file_length // downsample_rate)


def file_window(start: int, stop: int, file_length: int, downsample_rate: int) -> slice:
    """Rows of the feature file behind grid units start .. stop - 1."""
    return slice(start * downsample_rate, min(stop * downsample_rate, file_length), downsample_rate)


def is_resampled(data: DatasetConfig) -> bool:
    """Whether all feature streams are interpolated to a grid that is not that of their files."""
    return data.force_upsampling or data.feat_stride <= 0


def plan_grid(file_length: int, fps: float, duration_s: float, *, feat_stride: float, num_frames: float,
              downsample_rate: int = 1, max_seq_len: int = 0, force_upsampling: bool = False) -> tuple[Grid, int]:
    """Grid of one video and its length on that grid (SPEC 1 and 7).

    file_length: vectors in the file.  Three cases: as stored; `force_upsampling`: resized to max_seq_len steps that span
    the frames of the file; feat_stride <= 0: the steps span the whole video, so `duration_s` must be known.
    """
    if feat_stride > 0 and not force_upsampling:
        return regular_grid(feat_stride, num_frames, fps, downsample_rate), downsampled_length(file_length, downsample_rate)
    length = max_seq_len if force_upsampling else file_length
    if feat_stride > 0:
        frames = (file_length - 1) * feat_stride + num_frames
    else:
        frames = duration_s * fps
    stride = float(frames) / length
    return regular_grid(stride, stride, fps), length


def expected_length(duration_s: float, fps: float, feat_stride: float, num_frames: float) -> int:
    """Vectors that a video of `duration_s` should have: floor((frames - num_frames) / feat_stride) + 1, at least 1."""
    return max(math.floor((duration_s * fps - num_frames) / feat_stride) + 1, 1)


def implausible_length(file_length: int, expected: int) -> bool:
    """True if a file of `file_length` vectors cannot belong to a video that should have `expected` of them.

    Only less than half, or more than double, counts, and a difference of SLACK_VECTORS is always fine.
    """
    return abs(file_length - expected) > SLACK_VECTORS and not expected <= 2 * file_length <= 4 * expected


def length_ratio(file_lengths: Sequence[int], expected: Sequence[int]) -> float | None:
    """The median ratio of file lengths to `expected_length`s if it is off by more than TOLERANCE: the stride or the fps is wrong.

    None where they fit, and without videos.  A difference of SLACK_VECTORS counts as none.
    """
    found, wanted = np.asarray(file_lengths, np.float64), np.asarray(expected, np.float64)
    if len(found) == 0:
        return None
    ratio = float(np.median(np.where(np.abs(found - wanted) <= SLACK_VECTORS, 1.0, found / wanted)))
    return ratio if abs(ratio - 1) > TOLERANCE else None
