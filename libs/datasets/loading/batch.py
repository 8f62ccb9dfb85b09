"""Padded batches: samples and their features -> tensors of one length."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from libs.datasets.sample import Sample, VideoDataset


@dataclass(frozen=True)
class Batch:
    """B videos padded to T steps; ground truth padded to the longest list, N segments."""

    feats: Tensor  # (B, T, C) float32, zero at padded steps
    mask: Tensor  # (B, T) bool, valid steps
    segments: Tensor  # (B, N, 2) float32, grid units
    labels: Tensor  # (B, N) int64
    present: Tensor  # (B, N) bool, False at padded segments
    samples: tuple[Sample, ...]

    @property
    def video_ids(self) -> tuple[str, ...]:
        return tuple(s.video_id for s in self.samples)

    def hidden(self) -> Tensor:
        """(B, T) bool, on the CPU: steps that a network in training does not see (`Sample.hidden`)."""
        out = torch.zeros(self.mask.shape, dtype=torch.bool)
        for b, sample in enumerate(self.samples):
            for first, end in sample.hidden:
                out[b, first:end] = True
        return out

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device`; tensors that are there already are not copied."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by the data loader when batches go to a GPU."""
        return self._with(lambda tensor: tensor.pin_memory() if tensor.device.type == "cpu" else tensor)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(change(self.feats), change(self.mask), change(self.segments), change(self.labels), change(self.present),
                     self.samples)


def read_batch(dataset: VideoDataset, samples: Sequence[Sample], length: int) -> Batch:
    """Read samples into a batch padded to `length` steps, with `feats` on `dataset.feature_device`.

    Features are read straight into the batch.  Raises ValueError for a longer sample, UserError for unusable features.
    """
    B, N = len(samples), max(len(s.labels) for s in samples)
    feats = _uninitialised((B, length, dataset.channels), dataset.feature_device)
    mask = torch.zeros(B, length, dtype=torch.bool)
    segments, labels = torch.zeros(B, N, 2), torch.zeros(B, N, dtype=torch.int64)
    present = torch.zeros(B, N, dtype=torch.bool)
    for b, sample in enumerate(samples):
        if sample.steps > length:
            raise ValueError(f"{sample.video_id}: {sample.steps} steps do not fit into {length}")
        n = len(sample.labels)
        mask[b, :sample.steps] = True
        segments[b, :n], labels[b, :n], present[b, :n] = sample.segments, sample.labels, True
        feats[b, sample.steps:] = 0
        dataset.read(sample, feats[b, :sample.steps])
    return Batch(feats, mask, segments, labels, present, tuple(samples))


def _uninitialised(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A float32 tensor; in a data-loader worker it lies in shared memory, which saves a copy when the batch is sent."""
    if get_worker_info() is None:
        return torch.empty(shape, device=device)
    return torch.empty(0).set_(torch.UntypedStorage._new_shared(4 * math.prod(shape))).view(shape)
