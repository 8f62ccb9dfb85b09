"""Padding, batches and the order of an epoch."""
from __future__ import annotations

import os
import random
import signal

import numpy as np
import pytest
import torch
from helpers import TRAINING, data_config, padded_batch, show_every_term, tiny_config, write_data

from libs.core.errors import UserError
from libs.datasets.dataset import Sample, TalDataset
from libs.datasets.grid import Grid
from libs.datasets.loader import (
    EpochSampler,
    Padding,
    batches,
    close,
    group_for_inference,
    inference_loader,
    make_batch,
    padding_of,
    training_loader,
)
from libs.modeling.model import build_model


def test_published_lengths():
    thumos = {"dataset": {"max_seq_len": 2304}, "model": {"n_mha_win_size": 19, "backbone_arch": [2, 2, 5], "regression_range": [
        [0, 4], [4, 8], [8, 16], [16, 32], [32, 64], [64, 10000]]}}
    padding = padding_of(tiny_config(**thumos))
    assert (padding.factor, padding.stride, padding.margin) == (576, 32, 32)
    assert [padding.published(n) for n in (1, 2304, 2305, 2880, 2881)] == [2304, 2304, 2880, 2880, 3456]
    assert [padding.shortest(n) for n in (1, 100, 2272, 2273, 2304, 2305)] == [64, 160, 2304, 2304, 2304, 2368]


def test_mixed_windows_use_the_least_common_multiple():
    config = tiny_config(dataset={"max_seq_len": 160}, model={
        "n_mha_win_size": [11, 11, 11, 11, -1, -1], "backbone_arch": [2, 2, 5],
        "regression_range": [[0, 4], [4, 8], [8, 16], [16, 32], [32, 64], [64, 10000]]})
    padding = padding_of(config)
    assert padding.factor == 160  # the published maximum of 80 is no multiple of the stride 32
    assert padding.published(191) == 320


def test_the_conv_backbone_has_no_windows():
    assert padding_of(tiny_config(model={"backbone_type": "conv", "n_mha_win_size": 19})).factor == 4


def test_exact_lengths_are_refused_in_one_batch():
    padding = Padding(48, 16, 4, 4)
    assert padding.exact_only(47)
    assert not padding.exact_only(44)
    assert padding.of_batch([47, 20]) == 48
    with pytest.raises(ValueError, match="a video of 47 steps needs 48, not 56: batch it apart"):
        padding.of_batch([47, 50])


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


@pytest.mark.parametrize("lengths", [
    [5, 20, 40, 44, 45, 47, 48, 49, 58, 60, 64, 70, 76, 80], [64, 20, 30], [100, 49, 48, 44, 3, 2]])
@pytest.mark.parametrize("model", [{}, {"use_abs_pe": True}, {"backbone_type": "conv"}, {"fpn_type": "fpn"}])
def test_every_group_has_the_outputs_of_each_video_alone(model, lengths):
    """Lengths around max_seq_len and its multiples, with weights that make padding and positions visible."""
    config = tiny_config(model=model)
    network, padding = show_every_term(build_model(config)).eval(), padding_of(config)
    groups = group_for_inference(lengths, padding, 4)
    assert len(groups) < len(lengths)
    with torch.no_grad():
        for group in groups:
            steps = [lengths[i] for i in group]
            out = network(*padded_batch(steps, padding.of_batch(steps)))
            for b, n in enumerate(steps):
                alone = network(*padded_batch([n], padding.published(n)))
                assert (out.logits[b][out.mask[b]] - alone.logits[alone.mask]).abs().max() < 2e-5, steps
                assert (out.offsets[b][out.mask[b]] - alone.offsets[alone.mask]).abs().max() < 2e-5, steps


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


def epochs(dataset, config, count=2):
    loader, sampler = training_loader(dataset, config)
    for epoch in range(count):
        sampler.epoch = epoch
        yield from batches(loader)


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path)


def test_batches_do_not_depend_on_workers_nor_touch_the_global_random_state(data, tmp_path):
    found = []
    for workers in (0, 1, 2):
        config = data_config(data, tmp_path, loader={"num_workers": workers})
        dataset = TalDataset(config, config.train_split, training=True)
        torch.manual_seed(workers)
        random.seed(workers)
        before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
        found.append(list(epochs(dataset, config)))
        after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    assert len(found[0]) == 2 * (len(TRAINING) // 2)
    for others in zip(*found, strict=True):
        for name in ("feats", "mask", "segments", "labels", "present"):
            assert all(torch.equal(getattr(others[0], name), getattr(b, name)) for b in others[1:])
        assert len({b.video_ids for b in others}) == 1
    first, second = found[0][:3], found[0][3:]
    crop = {s.video_id: (s.start, int(m.sum())) for b in first for s, m in zip(b.samples, b.mask, strict=True)}
    again = {s.video_id: (s.start, int(m.sum())) for b in second for s, m in zip(b.samples, b.mask, strict=True)}
    assert crop != again


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_feature_file_is_named_also_from_a_worker(data, tmp_path, workers):
    feats = np.load(data.features / "t3.npy")
    feats[:, 2] = np.nan
    np.save(data.features / "t3.npy", feats)
    config = data_config(data, tmp_path, loader={"num_workers": workers})
    dataset = TalDataset(config, config.train_split, training=True)
    with pytest.raises(UserError, match=r"t3\.npy: .*NaN"):
        list(epochs(dataset, config))


def test_an_epoch_goes_on_behind_the_batches_that_were_seen():
    for bucket in (0, 2):
        sampler = EpochSampler(11, 2, seed=5, bucket=bucket, padded=lambda epoch, i: i % 3)
        whole = list(sampler)
        for sampler.skip in range(6):
            assert list(sampler) == whole[sampler.skip:]


def test_reading_processes_ignore_what_a_terminal_sends_to_all_and_end_when_told(data, tmp_path):
    config = data_config(data, tmp_path, loader={"num_workers": 2, "batch_size": 1})
    if (os.cpu_count() or 1) < 2:
        pytest.skip("needs two cores for two processes")
    loader, _ = training_loader(TalDataset(config, config.train_split, training=True), config)
    found = iter(batches(loader))
    for _ in range(2):  # the processes take turns: now each of them has begun
        next(found)
    workers = loader._iterator._workers
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            os.kill(worker.pid, number)
    assert len(list(found)) == len(loader) - 2
    close(loader)
    close(loader)
    assert [(w.is_alive(), w.exitcode) for w in workers] == [(False, 0)] * 2


def test_more_videos_per_batch_than_there_are(data, tmp_path):
    config = data_config(data, tmp_path, loader={"batch_size": 7})
    with pytest.raises(UserError, match=r"tiny\.yaml: loader\.batch_size: 7 is more than the 6 training videos"):
        training_loader(TalDataset(config, config.train_split, training=True), config)


def test_inference_sees_every_video_whole(data, tmp_path):
    for size in (1, 2, 8):
        config = data_config(data, tmp_path, test_cfg={"batch_size": size})
        dataset = TalDataset(config, config.train_split, training=False)
        seen = {s.video_id: int(m.sum()) for b in batches(inference_loader(dataset, config))
                for s, m in zip(b.samples, b.mask, strict=True)}
        assert seen == TRAINING
