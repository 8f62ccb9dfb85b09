"""From samples to padded batches."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from libs.datasets.dataset import Sample, TalDataset, Window


@dataclass(frozen=True)
class Batch:
    """B videos padded to T steps; ground truth padded to the longest list, N segments."""

    feats: Tensor  # (B, T, C) float32, zero at padded steps
    mask: Tensor  # (B, T) bool, valid steps
    segments: Tensor  # (B, N, 2) float32, grid units
    labels: Tensor  # (B, N) int64
    present: Tensor  # (B, N) bool, False for filling
    samples: tuple[Sample, ...]  # the videos, their own feats left empty: id, grid, duration

    @property
    def video_ids(self) -> tuple[str, ...]:
        return tuple(s.video_id for s in self.samples)

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device` (no wait where memory is pinned)."""
        move = {k: getattr(self, k).to(device, non_blocking=True) for k in ("feats", "mask", "segments", "labels", "present")}
        return Batch(**move, samples=self.samples)

    def pin_memory(self) -> Batch:
        """Called by the data loader when batches go to a GPU."""
        tensors = {k: getattr(self, k) for k in ("feats", "mask", "segments", "labels", "present")}
        pinned = {k: v.pin_memory() if v.device.type == "cpu" else v for k, v in tensors.items()}
        return Batch(**pinned, samples=self.samples)


def make_batch(samples: Sequence[Sample], length: int) -> Batch:
    """Pad samples to `length` steps; ValueError if one is longer."""
    feats = torch.empty(len(samples), length, samples[0].feats.shape[1])
    batch = _around(feats, [s.without_features() for s in samples], [len(s.feats) for s in samples])
    for b, sample in enumerate(samples):
        feats[b, :len(sample.feats)] = sample.feats
    return batch


def read_batch(dataset: TalDataset, windows: Sequence[Window], length: int) -> Batch:
    """As `make_batch` of the windows' samples; features go from their files, or where they are kept, straight into the batch.

    `feats` lies on `dataset.feature_device`.  Raises UserError for unusable features.
    """
    feats = _uninitialised((len(windows), length, dataset.channels), dataset.feature_device)
    batch = _around(feats, [w.sample for w in windows], [w.steps for w in windows])
    for b, window in enumerate(windows):
        dataset.read(window, feats[b, :window.steps])
    return batch


def _around(feats: Tensor, samples: Sequence[Sample], steps: Sequence[int]) -> Batch:
    """The batch around feats (B, T, C) whose valid steps are filled in later; the others are set to zero here."""
    B, length, _ = feats.shape
    most = max(len(s.labels) for s in samples)
    mask = torch.zeros(B, length, dtype=torch.bool)
    segments, labels = torch.zeros(B, most, 2), torch.zeros(B, most, dtype=torch.int64)
    present = torch.zeros(B, most, dtype=torch.bool)
    for b, sample in enumerate(samples):
        n = len(sample.labels)
        if steps[b] > length:
            raise ValueError(f"{sample.video_id}: {steps[b]} steps do not fit into {length}")
        feats[b, steps[b]:] = 0
        mask[b, :steps[b]] = True
        segments[b, :n], labels[b, :n], present[b, :n] = sample.segments, sample.labels, True
    return Batch(feats, mask, segments, labels, present, tuple(samples))


def _uninitialised(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A float32 tensor; in a reading process in the memory that batches are sent through, which saves a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, device=device)
    return torch.empty(0).set_(torch.UntypedStorage._new_shared(4 * math.prod(shape))).view(shape)
