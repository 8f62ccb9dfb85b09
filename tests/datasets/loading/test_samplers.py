"""Which videos share a batch, and the order of an epoch."""
from __future__ import annotations

import random

import numpy as np
import pytest

from libs.datasets.loading.padding import Padding
from libs.datasets.loading.samplers import EpochSampler, group_for_inference


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("batch_size", "stretched"), [(2, False), (4, False), (3, True), (100, True)])
def test_groups_cover_every_video_once_and_each_can_be_padded(seed, batch_size, stretched):
    rng = random.Random(seed)
    padding = Padding(48, 16, 4, 4, stretched)
    lengths = [rng.randint(1, 130) for _ in range(60)] + [48, 47, 49, 64, 63, 1]
    groups = group_for_inference(lengths, padding, batch_size)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert max(map(len, groups)) <= batch_size
    for group in groups:
        total = padding.of_batch([lengths[i] for i in group])
        for i in group:
            assert total >= padding.shortest(lengths[i])
            assert total == padding.published(lengths[i]) or not padding.exact_only(lengths[i])
            assert not stretched or total <= 48 or lengths[i] > 48
    assert group_for_inference(lengths, padding, 1) == [[i] for i in range(len(lengths))]


def test_the_order_depends_on_seed_and_epoch_only():
    one, two = EpochSampler(11, 3, 5), EpochSampler(11, 3, 5)
    orders = []
    for epoch in range(4):
        one.epoch = two.epoch = epoch
        np.random.seed(epoch)
        batches_of_epoch = list(one)
        assert batches_of_epoch == list(two)
        assert (len(batches_of_epoch), len(one)) == (3, 3)  # the last part batch is dropped
        flat = [i for b in batches_of_epoch for e, i in b if e == epoch]
        assert len(set(flat)) == 9
        orders.append(flat)
    assert len({tuple(o) for o in orders}) == 4
    assert list(EpochSampler(11, 3, 6)) != list(EpochSampler(11, 3, 5))


def test_an_epoch_goes_on_behind_the_batches_that_were_seen():
    for bucket in (0, 2):
        sampler = EpochSampler(11, 2, seed=5, bucket=bucket, padded=lambda epoch, i: i % 3)
        whole = list(sampler)
        for sampler.skip in range(6):
            assert list(sampler) == whole[sampler.skip:]
