"""Length-bucketed training batches: which videos meet in which order, and how little padding is left."""
from __future__ import annotations

import random

import numpy as np
import pytest
from helpers import data_config, tiny_config, write_data

from libs.core.errors import UserError
from libs.datasets.dataset import TalDataset
from libs.datasets.loading.loader import batches, training_loader
from libs.datasets.loading.padding import Padding
from libs.datasets.loading.samplers import EpochSampler


def epoch_of(sampler, epoch):
    sampler.epoch = epoch
    return list(sampler)


def slow_twin(size, batch_size, seed, bucket, padded, epoch):
    """The documented rule, one video at a time."""
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(size).tolist()
    order, out = order[:size // batch_size * batch_size], []
    for first in range(0, len(order), bucket * batch_size):
        pool = order[first:first + bucket * batch_size]
        keys = sorted((padded(epoch, video), place) for place, video in enumerate(pool))
        grouped = [[(epoch, pool[place]) for _, place in keys[i:i + batch_size]] for i in range(0, len(pool), batch_size)]
        shuffle = np.random.Generator(np.random.PCG64([seed, epoch, first + 1])).permutation(len(grouped))
        out += [grouped[i] for i in shuffle]
    return out


@pytest.mark.parametrize("seed", range(6))
def test_an_epoch_is_what_the_rule_says(seed):
    rng = random.Random(seed)
    for _ in range(20):
        size, batch_size, bucket = rng.randint(1, 70), rng.randint(1, 6), rng.randint(2, 9)
        few = rng.choice((1, 3, 1000))  # many ties, or nearly none
        drawn = {(e, i): rng.randint(1, few) for e in range(3) for i in range(size)}
        sampler = EpochSampler(size, batch_size, seed, bucket, lambda e, i, drawn=drawn: drawn[e, i])
        plain = EpochSampler(size, batch_size, seed)
        for epoch in (2, 0, 1):
            found = epoch_of(sampler, epoch)
            assert found == slow_twin(size, batch_size, seed, bucket, lambda e, i, drawn=drawn: drawn[e, i], epoch)
            assert len(found) == len(sampler) == len(plain)
            assert all(len(b) == batch_size for b in found)
            seen = sorted(v for b in found for v in b)
            assert len(set(seen)) == len(seen)
            assert seen == sorted(v for b in epoch_of(plain, epoch) for v in b)  # the same videos are dropped


def test_no_bucket_is_the_plain_permutation():
    plain, off = EpochSampler(11, 3, 5), EpochSampler(11, 3, 5, 0, lambda e, i: pytest.fail("asked for a length"))
    for epoch in range(3):
        want = plain.order(epoch)[:9].reshape(3, 3).tolist()
        assert epoch_of(off, epoch) == epoch_of(plain, epoch) == [[(epoch, i) for i in b] for b in want]


def test_the_order_depends_on_seed_and_epoch_alone():
    def padded(epoch, index):
        return (7 * index + 3 * epoch) % 13

    straight = EpochSampler(30, 2, 1, 4, padded)
    epochs = [epoch_of(straight, e) for e in range(4)]
    for epoch in (3, 1):  # a run that is resumed there
        assert epoch_of(EpochSampler(30, 2, 1, 4, padded), epoch) == epochs[epoch]
    assert len({str(e) for e in epochs}) == 4
    assert epoch_of(EpochSampler(30, 2, 2, 4, padded), 1) != epochs[1]


def test_long_and_short_batches_are_mixed():
    """Sorted pools alone would show every model the short videos first."""
    found = epoch_of(EpochSampler(64, 2, 0, 16, lambda e, i: i), 0)
    largest = [max(i for _, i in b) for b in found[:16]]
    assert largest != sorted(largest)
    assert largest != sorted(largest, reverse=True)


def test_padding_falls_with_the_pool():
    rng, padding = random.Random(0), Padding(2304, 576, 32, 32)
    lengths = [min(int(rng.lognormvariate(7, 0.8)) + 50, 2304) for _ in range(200)]

    def share(bucket):
        sampler = EpochSampler(200, 2, 3, bucket, lambda e, i: padding.shortest(lengths[i]))
        groups = [[lengths[i] for _, i in b] for b in epoch_of(sampler, 0)]
        return 1 - sum(map(sum, groups)) / sum(2 * padding.of_batch(g) for g in groups)
    assert share(0) > 1.5 * share(4) > 2 * share(32)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_sorts_by_the_length_after_cropping(tmp_path, workers):
    data = write_data(tmp_path)
    config = data_config(data, tmp_path, loader={"bucket": 3, "num_workers": workers})
    dataset = TalDataset(config, config.train_split, training=True)
    loader, sampler = training_loader(dataset, config)
    orders = []
    for epoch in (0, 1):
        sampler.epoch = epoch
        found = list(batches(loader))
        padded = sorted(((b.feats.shape[1], b.video_ids) for b in found), key=lambda pair: pair[0])
        crops = {v.id: dataset.sample((epoch, i)).steps for i, v in enumerate(dataset.videos)}
        short = sorted(crops.values())  # one pool holds the whole epoch: neighbours in this order share a batch
        padding = loader.dataset.padding
        assert [p for p, _ in padded] == [padding.of_batch(short[i:i + 2]) for i in (0, 2, 4)]
        assert all(b.mask.sum(1).tolist() == [crops[v] for v in b.video_ids] for b in found)
        assert sorted(v for b in found for v in b.video_ids) == sorted(crops)
        orders.append([b.video_ids for b in found])
    sampler.epoch = 0
    assert [b.video_ids for b in batches(loader)] == orders[0]
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("loader", "message"), [
    ({"bucket": 1}, r"loader\.bucket: 1: a single batch .* use 0 \(off\) or at least 2"),
    ({"bucket": 8, "padding": "max_seq_len"}, r"loader\.bucket: 8: with loader\.padding: max_seq_len .*use bucket: 0, or"),
    ({"bucket": -2}, r"loader\.bucket"),
    ({"cache": "disk"}, r"loader\.cache.*disk.*none.*ram.*device")])
def test_settings_that_cannot_work(loader, message):
    with pytest.raises(UserError, match=message):
        tiny_config(loader=loader)
