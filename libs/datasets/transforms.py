"""Transforms of features and segments: the training crop, hidden runs, trimming, resizing.

Segments are (N, 2) float32 in grid units, labels (N,) int64.  The crop is drawn before features are read, so that only its window
is read.
"""
from __future__ import annotations

import math
import random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

CROP_TRIALS = 200


class Crop(NamedTuple):
    """A window [start, start + length) of the grid and the segments inside, relative to `start`."""

    start: int
    length: int
    segments: np.ndarray
    labels: np.ndarray


def random_crop(length: int, segments: np.ndarray, labels: np.ndarray, *, max_seq_len: int, trunc_thresh: float, offset: float,
                crop_ratio: tuple[float, float] | None, rng: random.Random, align: int = 1) -> Crop:
    """The random training window of a video of `length` grid steps (SPEC 10).

    A window is accepted when at least one segment has a share >= trunc_thresh inside it (always, for a video without segments);
    such segments are kept, clipped to [-offset, window + offset].  After 200 trials the last window is used, without segments.
    Starts are first rounded down to a multiple of `align` grid steps.
    `rng`: one randint for the window's size (only if crop_ratio is set and the video fits), then one per trial.
    """
    if length > max_seq_len:
        size = max_seq_len
    elif crop_ratio is None:
        return Crop(0, length, segments, labels)
    else:
        low, high = max(round(crop_ratio[0] * length), 1), min(round(crop_ratio[1] * length), length)
        size = rng.randint(low, max(low, high))  # a very short video may round to high < low
        if size == length:
            return Crop(0, length, segments, labels)
    offset32, thresh = np.float32(offset), np.float32(trunc_thresh)
    with np.errstate(divide="ignore", invalid="ignore"):  # a segment of zero length gives NaN and is never kept
        for _ in range(CROP_TRIALS):
            start = rng.randint(0, length - size) // align * align
            left = np.maximum(np.float32(start) - offset32, segments[:, 0])
            right = np.minimum(np.float32(start + size) + offset32, segments[:, 1])
            keep = np.maximum(right - left, 0) / np.abs(segments[:, 1] - segments[:, 0]) >= thresh
            if keep.any() or len(segments) == 0:
                break
    inside = np.stack([left, right], axis=1)[keep] - np.float32(start)
    return Crop(start, size, inside, labels[keep])


def runs_inside(segments: np.ndarray, steps: int, *, probability: float, share: float, rng: random.Random
                ) -> tuple[tuple[int, int], ...]:
    """Random runs [first, end) of grid steps, with `probability` one inside each segment (N, 2) in grid units.

    A run has at most `share` of the segment's steps, at least one and never all; its length and place are uniform.
    (Training on such runs: Zeng et al., Benchmarking the robustness of temporal action detection models, CVPR 2024.)
    `rng`: one draw for each segment of two or more steps, two more for one that gets a run.
    """
    runs = []
    for start, end in segments.tolist():
        first, stop = max(math.ceil(start), 0), min(math.floor(end) + 1, steps)
        if stop - first > 1 and rng.random() < probability:
            longest = min(int(share * (stop - first)), stop - first - 1)
            length = rng.randint(1, max(longest, 1))
            begin = rng.randint(first, stop - length)
            runs.append((begin, begin + length))
    return tuple(runs)


def trim_to_features(segments: np.ndarray, labels: np.ndarray, end: float, trunc_thresh: float) -> tuple[np.ndarray, np.ndarray]:
    """Drop segments that start at or after `end` (grid units), or whose share before `end` is below trunc_thresh; clamp the
    others to `end` (SPEC 7, for videos whose features stop early).  An empty result is legal."""
    starts, ends = segments[:, 0].astype(np.float64), segments[:, 1].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        keep = (starts < end) & ((np.minimum(ends, end) - starts) / (ends - starts) >= trunc_thresh)
    return np.minimum(segments[keep], np.float32(end)), labels[keep]


def resize(feats: torch.Tensor, length: int) -> torch.Tensor:
    """Features (T, C) -> (length, C), linear interpolation between vector centres; unchanged if T is `length` already."""
    if feats.shape[0] == length:
        return feats
    return F.interpolate(feats.t()[None], size=length, mode="linear", align_corners=False)[0].t().contiguous()
