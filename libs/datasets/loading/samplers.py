"""Samplers: which videos share a batch, and in which order.

Batches hold indices of videos in evaluation, and (epoch, index) in training, which determines the crop.
"""
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from libs.datasets.loading.padding import Padding


def group_for_inference(lengths: Sequence[int], padding: Padding, batch_size: int) -> list[list[int]]:
    """Indices of videos, in batches whose outputs equal those of each video alone (`Padding.fits`).

    Batch size 1: dataset order.  Otherwise videos of similar length share a batch, the longest first, so that a lack of memory
    shows at once.
    """
    if batch_size == 1:
        return [[i] for i in range(len(lengths))]
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    for i in order:
        if groups and len(groups[-1]) < batch_size and padding.fits([lengths[j] for j in groups[-1]] + [lengths[i]]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


class EpochSampler(Sampler):
    """Batches of (epoch, index) for training, from a permutation that depends on (seed, epoch) alone; no incomplete last batch.

    bucket > 0: batches of videos of similar length.  The videos of every `bucket` successive batches of that permutation are
    sorted by padded(epoch, index), the length that their crop needs (ties keep their order), cut into batches again, and these
    batches are shuffled.  An epoch sees the same videos with and without buckets.

    Set `epoch` before each epoch, and `skip` to the number of its batches to leave out (a run that resumes in its middle).
    """

    def __init__(self, size: int, batch_size: int, seed: int, bucket: int = 0,
                 padded: Callable[[int, int], int] = lambda epoch, index: 0) -> None:
        self.size, self.batch_size, self.seed, self.epoch, self.skip = size, batch_size, seed, 0, 0
        self.bucket, self.padded = bucket, padded

    def __len__(self) -> int:
        return self.size // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch (0-based)."""
        return np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._batches(self.epoch), self.skip, None)

    def _batches(self, epoch: int) -> Iterator[list[tuple[int, int]]]:
        videos = [(epoch, int(i)) for i in self.order(epoch)[:len(self) * self.batch_size]]
        if not self.bucket:
            yield from _cut(videos, self.batch_size)
            return
        pool = self.bucket * self.batch_size
        for first in range(0, len(videos), pool):
            found = _cut(sorted(videos[first:first + pool], key=lambda video: self.padded(*video)), self.batch_size)
            # + 1: a trailing 0 in the key would give the numbers of the permutation again
            for b in np.random.Generator(np.random.PCG64([self.seed, epoch, first + 1])).permutation(len(found)):
                yield found[b]


class Part(NamedTuple):
    """Videos of one forward pass, (epoch, index) each, and those of the whole step."""

    own: list[tuple[int, int]]
    whole: list[tuple[int, int]]


class PartSampler(Sampler):
    """The parts of a sampler's batches that process `rank` of `ranks` computes, `size` videos each.

    These are parts rank, rank + ranks, ... of every batch: at any time the processes compute neighbouring parts, which with
    buckets have similar lengths."""

    def __init__(self, sampler: EpochSampler, size: int, rank: int, ranks: int) -> None:
        self.sampler, self.size, self.rank, self.ranks = sampler, size, rank, ranks

    def __len__(self) -> int:
        return len(self.sampler) * (self.sampler.batch_size // (self.size * self.ranks))

    def __iter__(self) -> Iterator[Part]:
        for batch in self.sampler:
            for own in _cut(batch, self.size)[self.rank::self.ranks]:
                yield Part(own, batch)


def _cut(items: list[Any], size: int) -> list[list[Any]]:
    return [items[first:first + size] for first in range(0, len(items), size)]
