"""Corruptions of a whole video's features, (T, C) float32 -> the same shape, to measure how a detector degrades.

    streams = streams_of(config)                                             modality -> the columns of feats that are its own
    feats = corrupt(feats, streams, "noise", 3, seed=0, video_id="v1")       the same for every model that is measured
    dataset = CorruptedDataset(clean, feats, streams, "noise", 3, seed=0)      a dataset to run the inference loop on

Two protocols.  `features`: the whole video, severities 1 to 5.  `temporal`: a gap in the middle of every action, severities 1
to 3 (Zeng et al., Benchmarking the robustness of temporal action detection models against temporal corruptions, CVPR 2024, with
feature vectors in place of frames).

Random numbers depend on (seed, video, corruption, severity) alone, for noise and `channels` also on the modality's name; all
else is the same for all modalities of a video.  So a modality is corrupted in the same way for every model, whatever else that
model reads.
"""
from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import PCG64, Generator
from torch import Tensor

from libs.core.errors import UserError
from libs.core.schema import Config, FolderModality
from libs.datasets.annotations import Video
from libs.datasets.dataset import TalDataset
from libs.datasets.sample import Sample, VideoDataset
from libs.utils.evaluation.predictions import GroundTruth

SEVERITIES = (1, 2, 3, 4, 5)
WINDOW = 8  # grid steps of one dropped window
MEMORY_LIMIT = 1 << 30  # bytes of features that `features_in_memory` keeps
WHOLE, UNNAMED = "all", "unnamed"  # all channels if dataset.modalities declares no ranges, else those in none of them
Columns = np.ndarray  # (n,) int64


def noise(x_TC: np.ndarray, ratio: float, rng: Generator) -> np.ndarray:
    """Add Gaussian noise of `ratio` times each channel's standard deviation over the video."""
    scale_C = (ratio * x_TC.std(axis=0, dtype=np.float64)).astype(np.float32)
    return x_TC + rng.standard_normal(x_TC.shape, dtype=np.float32) * scale_C


def windows(x_TC: np.ndarray, share: float, rng: Generator) -> np.ndarray:
    """Set round(share * T) steps to zero, in runs of `WINDOW` steps (the last may be shorter) at random places."""
    steps = len(x_TC)
    dropped = _rounded(share * steps)
    runs = [WINDOW] * (dropped // WINDOW) + [dropped % WINDOW] * (dropped % WINDOW > 0)
    out = x_TC.copy()
    # each run comes after a sorted number of kept steps, so that runs never overlap and the share is exact
    kept_before = np.sort(rng.integers(0, steps - dropped + 1, len(runs)))
    done = 0
    for kept, run in zip(kept_before, runs, strict=True):
        out[kept + done:kept + done + run] = 0
        done += run
    return out


def channels(x_TC: np.ndarray, share: float, rng: Generator) -> np.ndarray:
    """Set round(share * C) channels to zero for the whole video."""
    count = x_TC.shape[1]
    out = x_TC.copy()
    out[:, rng.choice(count, _rounded(share * count), replace=False)] = 0
    return out


def jitter(x_TC: np.ndarray, reach: float, rng: Generator) -> np.ndarray:
    """Replace each step by one at most `reach` steps away (uniform; beyond the ends: the first or last step)."""
    steps = len(x_TC)
    moved = np.arange(steps) + rng.integers(-int(reach), int(reach) + 1, steps)
    return x_TC[np.clip(moved, 0, steps - 1)]


def blur(x_TC: np.ndarray, reach: float, rng: Generator) -> np.ndarray:
    """Replace each step by the mean of the steps at most `reach` away (of those that exist); nothing is drawn."""
    steps = len(x_TC)
    sums = np.concatenate([np.zeros((1, x_TC.shape[1])), np.cumsum(x_TC, axis=0, dtype=np.float64)])
    first = np.maximum(np.arange(steps) - int(reach), 0)
    last = np.minimum(np.arange(steps) + int(reach) + 1, steps)
    return ((sums[last] - sums[first]) / (last - first)[:, None]).astype(np.float32)


def gaps(segments_N2: np.ndarray, steps: int, share: float) -> np.ndarray:
    """(steps,) bool: round(share * length) steps, at least one, at the centre of every segment (N, 2) in grid units.

    Segments whose centre lies outside the features have no gap.
    """
    out = np.zeros(steps, bool)
    for start, end in segments_N2.astype(np.float64):
        run, centre = max(_rounded(share * (end - start)), 1), (start + end) / 2
        if 0 <= _rounded(centre) < steps:
            first = max(_rounded(centre - (run - 1) / 2), 0)
            out[first:first + run] = True
    return out


def zeros(x_TC: np.ndarray, gap_T: np.ndarray, other_TC: np.ndarray, rng: Generator) -> np.ndarray:
    """Zeros in place of the vectors in the gap; nothing is drawn."""
    return np.zeros_like(x_TC[gap_T])


def random_vectors(x_TC: np.ndarray, gap_T: np.ndarray, other_TC: np.ndarray, rng: Generator) -> np.ndarray:
    """Gaussian noise of each channel's mean and standard deviation over the video."""
    mean_C, std_C = (np.float32(f(x_TC, axis=0, dtype=np.float64)) for f in (np.mean, np.std))
    return mean_C + std_C * rng.standard_normal((int(gap_T.sum()), x_TC.shape[1]), dtype=np.float32)


def other_video(x_TC: np.ndarray, gap_T: np.ndarray, other_TC: np.ndarray, rng: Generator) -> np.ndarray:
    """The vectors of another video at the same steps, counted from its start again where it is shorter; nothing is drawn."""
    return other_TC[np.flatnonzero(gap_T) % len(other_TC)]


def frozen(x_TC: np.ndarray, gap_T: np.ndarray, other_TC: np.ndarray, rng: Generator) -> np.ndarray:
    """The last vector before the gap, for one at the start of the video the first after it; nothing is drawn."""
    kept = np.flatnonzero(~gap_T)
    if len(kept) == 0:  # a video of one vector
        return x_TC
    return x_TC[kept[np.maximum(np.searchsorted(kept, np.flatnonzero(gap_T)) - 1, 0)]]


@dataclass(frozen=True)
class _Rule:
    """levels: per severity; unit: of a level."""

    levels: tuple[float, ...]
    unit: str
    per_modality: bool  # other random numbers for each modality

    @property
    def severities(self) -> tuple[int, ...]:
        return SEVERITIES[:len(self.levels)]

    def level(self, severity: int) -> float:
        """The level of one of `severities`."""
        if severity not in self.severities:
            raise ValueError(f"severity {severity} is not one of {self.severities}")
        return self.levels[severity - 1]


@dataclass(frozen=True)
class Corruption(_Rule):
    """apply: function of (x (T, C) float32, level, generator) that does not change x."""

    apply: Callable[[np.ndarray, float, Generator], np.ndarray]


@dataclass(frozen=True)
class GapCorruption(_Rule):
    """fill: function of (x (T, C) float32, gap (T,) bool, another video (T', C), generator) -> what stands in the gap instead."""

    fill: Callable[[np.ndarray, np.ndarray, np.ndarray, Generator], np.ndarray]


FEATURES = {
    "noise": Corruption((0.25, 0.5, 1.0, 1.5, 2.0), "x standard deviation", True, noise),
    "windows": Corruption((0.1, 0.2, 0.3, 0.4, 0.5), f"of the steps, in runs of {WINDOW}", False, windows),
    "channels": Corruption((0.1, 0.2, 0.3, 0.4, 0.5), "of the channels", True, channels),
    "jitter": Corruption((1, 2, 4, 8, 16), "steps at most", False, jitter),
    "blur": Corruption((1, 2, 4, 8, 16), "steps to each side", False, blur),
}
SHARES, OF_ACTIONS = (0.01, 0.05, 0.1), "of every action"
TEMPORAL = {
    "gap_zeros": GapCorruption(SHARES, OF_ACTIONS, False, zeros),
    "gap_noise": GapCorruption(SHARES, OF_ACTIONS, True, random_vectors),
    "gap_other": GapCorruption(SHARES, OF_ACTIONS, False, other_video),
    "gap_frozen": GapCorruption(SHARES, OF_ACTIONS, False, frozen),
}
CORRUPTIONS: dict[str, Corruption | GapCorruption] = {**FEATURES, **TEMPORAL}
PROTOCOLS = {"features": tuple(FEATURES), "temporal": tuple(TEMPORAL)}


def generator(seed: int, video_id: str, corruption: str, severity: int, modality: str = "") -> Generator:
    """The random generator of a corruption of a video: a hash of all arguments, the same in every process."""
    text = "\0".join([str(seed), video_id, corruption, str(severity), modality])
    return Generator(PCG64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")))


def corrupt(x_TC: np.ndarray, streams: Mapping[str, Columns], corruption: str, severity: int, seed: int, video_id: str,
            segments_N2: np.ndarray | None = None, other_TC: np.ndarray | None = None) -> np.ndarray:
    """Corrupt the columns of the given streams of one video; a new (T, C) float32 array, other columns as they were.

    Corruptions with gaps need the video's `segments` (grid units); `other`: the features of `another`, read by `gap_other` alone.
    """
    rule = CORRUPTIONS[corruption]
    out = np.array(x_TC, np.float32)
    if isinstance(rule, GapCorruption):
        if segments_N2 is None:
            raise ValueError(f"{corruption} needs the segments of the video")
        gap_T = gaps(segments_N2, len(out), rule.level(severity))
    for name, columns in streams.items():
        # not per modality: the name is empty, so that all streams get equal generators, whose numbers depend on T alone
        rng = generator(seed, video_id, corruption, severity, name if rule.per_modality else "")
        part = out[:, columns]
        if isinstance(rule, GapCorruption):
            out[np.ix_(gap_T, columns)] = rule.fill(part, gap_T, (x_TC if other_TC is None else other_TC)[:, columns], rng)
        else:
            out[:, columns] = rule.apply(part, rule.level(severity), rng)
    return out


def another(index: int, videos: Sequence[Video], corruption: str, severity: int, seed: int) -> int:
    """The number of the video whose vectors `gap_other` puts into video `index`; UserError if there is no other."""
    if len(videos) < 2:
        raise UserError(f"--corruptions {corruption}: takes vectors of another video, but {videos[index].id!r} is the only one "
                        "of val_split; leave it out, or evaluate on more videos")
    drawn = int(generator(seed, videos[index].id, corruption, severity).integers(len(videos) - 1))
    return drawn + (drawn >= index)


def streams_of(config: Config) -> dict[str, Columns]:
    """Modality -> its columns in the features that this configuration's model reads.

    Without model.modalities the model reads all of feat_folder: its channels are split by the ranges of dataset.modalities,
    the rest is `unnamed`; where nothing is declared, all channels are one stream `all`.
    """
    if config.model.modalities is not None:
        ends = np.cumsum([config.modality_dim(name) for name in config.model.modalities]).tolist()
        return {name: np.arange(end - config.modality_dim(name), end)
                for name, end in zip(config.model.modalities, ends, strict=True)}
    width = config.file_channels
    declared = config.dataset.modalities or {}
    streams = {name: np.arange(*entry) for name, entry in declared.items() if not isinstance(entry, FolderModality)}
    if not streams:
        return {WHOLE: np.arange(width)}
    rest = np.setdiff1d(np.arange(width), np.concatenate(list(streams.values())))
    return streams | ({UNNAMED: rest} if len(rest) else {})


def features_in_memory(dataset: VideoDataset, limit: int = MEMORY_LIMIT) -> list[Tensor] | None:
    """The features of all whole videos, (T, C) float32 each; None if they take more than `limit` bytes."""
    if int(dataset.lengths().sum()) * dataset.channels * 4 > limit:
        return None
    return [dataset.features(dataset.sample(i)) for i in range(len(dataset))]


class CorruptedDataset(VideoDataset):
    """The whole videos of a dataset with corrupted features, for `predict` and `score`.

    dataset: the clean one; features: of its videos (`features_in_memory`), None: they are read each time; streams: to corrupt,
    all or some of `streams_of`; corruption None: the clean features.  Corrupted features are computed at every reading.
    """

    def __init__(self, dataset: TalDataset, features: Sequence[Tensor] | None, streams: Mapping[str, Columns],
                 corruption: str | None, severity: int, seed: int) -> None:
        self.dataset, self.streams, self._features = dataset, streams, features
        self.corruption, self.severity, self.seed = corruption, severity, seed
        self.videos: tuple[Video, ...] = dataset.videos
        self.tious, self.label_names = dataset.tious, dataset.label_names

    @property
    def channels(self) -> int:
        return self.dataset.channels

    def lengths(self) -> np.ndarray:
        return self.dataset.lengths()

    def sample(self, index: int | tuple[int, int]) -> Sample:
        return self.dataset.sample(index)

    def read(self, sample: Sample, out: Tensor) -> None:
        feats = self._clean(sample.index)
        if self.corruption is not None:
            other = feats
            if self.corruption == "gap_other":
                other = self._clean(another(sample.index, self.videos, self.corruption, self.severity, self.seed))
            feats = torch.from_numpy(corrupt(feats.numpy(), self.streams, self.corruption, self.severity, self.seed,
                                             sample.video_id, sample.segments.numpy(), other.numpy()))
        out.copy_(feats)

    def _clean(self, index: int) -> Tensor:
        return self.dataset.features(self.dataset.sample(index)) if self._features is None else self._features[index]

    def ground_truth(self) -> GroundTruth:
        """As of the clean dataset."""
        return self.dataset.ground_truth()


def _rounded(value: float) -> int:
    return math.floor(value + 0.5 + 1e-9)  # halves up, despite rounding errors of the product
