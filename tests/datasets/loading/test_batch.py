"""Padded batches."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from libs.datasets.grid import Grid
from libs.datasets.loading.batch import read_batch
from libs.datasets.sample import Sample, VideoDataset


class Constant(VideoDataset):
    """Videos whose features are their number of steps."""

    channels = 2

    def __init__(self, *samples):
        self.samples = samples

    def lengths(self):
        return np.array([s.steps for s in self.samples])

    def sample(self, index):
        return self.samples[index]

    def read(self, sample, out):
        out.fill_(sample.steps)


def sample(index, vid, steps, segments):
    n = len(segments)
    return Sample(index, vid, Grid(1.0, 1.0, 0.5, 1.0), 10.0, steps, steps, torch.tensor(segments).float().reshape(n, 2),
                  torch.arange(n))


SAMPLES = sample(0, "a", 3, [[0, 1], [1, 2]]), sample(1, "b", 5, [])


def test_batches_are_padded_with_zeros():
    batch = read_batch(Constant(*SAMPLES), SAMPLES, 8)
    assert (batch.segments.shape, batch.video_ids, batch.samples) == ((2, 2, 2), ("a", "b"), SAMPLES)
    assert batch.feats[..., 0].tolist() == [[3] * 3 + [0] * 5, [5] * 5 + [0] * 3]
    assert batch.mask.tolist() == [[True] * 3 + [False] * 5, [True] * 5 + [False] * 3]
    assert batch.present.tolist() == [[True, True], [False, False]]
    with pytest.raises(ValueError, match="b: 5 steps do not fit into 4"):
        read_batch(Constant(*SAMPLES), SAMPLES[1:], 4)


def test_tensors_that_are_on_the_device_are_not_copied():
    """Training moves a batch once more than it needs to, e.g. for each process that looks at it."""
    batch = read_batch(Constant(*SAMPLES), SAMPLES, 8)
    moved = batch.to(torch.device("cpu"))
    for name in ("feats", "mask", "segments", "labels", "present"):
        assert getattr(moved, name) is getattr(batch, name)
    assert moved.samples is batch.samples
