"""Corruption of features, for measuring how a detector degrades: what flows in and out is a whole video's (T, C) float32.

    streams = streams_of(config)                                             modality -> the columns of feats that are its own
    feats = corrupt(feats, streams, "noise", 3, seed=0, video_id="v1")       the same for every model that is measured
    dataset = CorruptedDataset(clean, samples, streams, "noise", 3, seed=0)  a data set to run the inference loop on

What is drawn depends on (seed, video, corruption, severity) alone; `noise` and `channels` draw for each modality apart, by its
name, `windows` and `jitter` draw once for a video and treat its modalities alike.  So a modality is corrupted in the same way
whichever model reads it, and whatever else that model reads.  Severities run from 1 to 5.
"""
from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import PCG64, Generator
from torch.utils.data import Dataset

from libs.core.schema import Config, FolderModality
from libs.datasets.annotations import Video
from libs.datasets.dataset import Sample, TalDataset

SEVERITIES = (1, 2, 3, 4, 5)
WINDOW = 8  # grid steps of one dropped window
MEMORY_LIMIT = 1 << 30  # bytes of features that `read_once` keeps
WHOLE, UNNAMED = "all", "unnamed"  # channels where dataset.modalities declares nothing, and those that it does not mention
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


@dataclass(frozen=True)
class Corruption:
    """A function of (x (T, C) float32, level, generator) that leaves x alone; its level per severity, and what a level is."""

    apply: Callable[[np.ndarray, float, Generator], np.ndarray]
    levels: tuple[float, float, float, float, float]
    unit: str
    per_modality: bool  # draws for each modality apart, else once for all

    def level(self, severity: int) -> float:
        """The level of a severity (1 to 5)."""
        if severity not in SEVERITIES:
            raise ValueError(f"severity {severity} is not one of {SEVERITIES}")
        return self.levels[severity - 1]


CORRUPTIONS = {
    "noise": Corruption(noise, (0.25, 0.5, 1.0, 1.5, 2.0), "x standard deviation", True),
    "windows": Corruption(windows, (0.1, 0.2, 0.3, 0.4, 0.5), f"of the steps, in runs of {WINDOW}", False),
    "channels": Corruption(channels, (0.1, 0.2, 0.3, 0.4, 0.5), "of the channels", True),
    "jitter": Corruption(jitter, (1, 2, 4, 8, 16), "steps at most", False),
    "blur": Corruption(blur, (1, 2, 4, 8, 16), "steps to each side", False),
}


def generator(seed: int, video_id: str, corruption: str, severity: int, modality: str = "") -> Generator:
    """The random generator of a corruption of a video: a hash of all arguments, the same in every process."""
    text = "\0".join([str(seed), video_id, corruption, str(severity), modality])
    return Generator(PCG64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")))


def corrupt(x_TC: np.ndarray, streams: Mapping[str, Columns], corruption: str, severity: int, seed: int,
            video_id: str) -> np.ndarray:
    """Corrupt the columns of the given streams of one video; a new (T, C) float32 array, other columns as they were."""
    rule = CORRUPTIONS[corruption]
    out = np.array(x_TC, np.float32)
    for name, columns in streams.items():
        # drawn once for all: every stream gets a fresh generator in the same state, and the draws depend on T alone
        rng = generator(seed, video_id, corruption, severity, name if rule.per_modality else "")
        out[:, columns] = rule.apply(out[:, columns], rule.level(severity), rng)
    return out


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


def read_once(dataset: TalDataset, limit: int = MEMORY_LIMIT) -> Sequence[Sample]:
    """All whole videos of a data set, in memory if they take at most `limit` bytes, else the data set, which reads each anew."""
    width = dataset[0].feats.shape[1]
    if int(dataset.lengths().sum()) * width * 4 > limit:
        return dataset
    return [dataset[i] for i in range(len(dataset))]


class CorruptedDataset(Dataset):
    """The whole videos of a data set with corrupted features, and all else that `predict` and `score` ask of a data set.

    dataset: the clean one; samples: its videos (`read_once`); streams: what to corrupt (`streams_of`, or some of it);
    corruption None: the clean features.  A corrupted video is computed when it is asked for, and not kept.
    """

    def __init__(self, dataset: TalDataset, samples: Sequence[Sample], streams: Mapping[str, Columns], corruption: str | None,
                 severity: int, seed: int):
        self.dataset, self.samples, self.streams = dataset, samples, streams
        self.corruption, self.severity, self.seed = corruption, severity, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        if self.corruption is None:
            return sample
        feats = corrupt(sample.feats.numpy(), self.streams, self.corruption, self.severity, self.seed, sample.video_id)
        return dataclasses.replace(sample, feats=torch.from_numpy(feats))

    @property
    def videos(self) -> tuple[Video, ...]:
        return self.dataset.videos

    @property
    def tious(self) -> tuple[float, ...]:
        return self.dataset.tious

    @property
    def label_names(self) -> dict[int, str]:
        return self.dataset.label_names

    def lengths(self) -> np.ndarray:
        """Grid steps per video, which no corruption changes."""
        return self.dataset.lengths()

    def ground_truth(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """As of the clean data set."""
        return self.dataset.ground_truth()


def _rounded(value: float) -> int:
    return int(value + 0.5 + 1e-9)  # halves up, whatever the last bit of a product says
