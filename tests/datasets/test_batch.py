"""Padded batches."""
from __future__ import annotations

import pytest
import torch

from libs.datasets.batch import make_batch
from libs.datasets.dataset import Sample
from libs.datasets.grid import Grid


def sample(vid, steps, segments):
    n = len(segments)
    return Sample(vid, torch.full((steps, 2), float(steps)), Grid(1.0, 1.0, 0.5, 1.0), 10.0,
                  torch.tensor(segments, dtype=torch.float32).reshape(n, 2), torch.arange(n), steps)


def test_batches_are_padded_with_zeros():
    batch = make_batch([sample("a", 3, [[0, 1], [1, 2]]), sample("b", 5, [])], 8)
    assert (batch.feats.shape, batch.segments.shape, batch.video_ids) == ((2, 8, 2), (2, 2, 2), ("a", "b"))
    assert batch.mask.tolist() == [[True] * 3 + [False] * 5, [True] * 5 + [False] * 3]
    assert not batch.feats[~batch.mask].any()
    assert batch.present.tolist() == [[True, True], [False, False]]
    assert batch.samples[0].feats.shape == (0, 2)
    with pytest.raises(ValueError, match="b: 5 steps do not fit into 4"):
        make_batch([sample("b", 5, [])], 4)
