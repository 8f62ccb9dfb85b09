"""Data loaders: workers, errors, whole videos in inference."""
from __future__ import annotations

import os
import random
import signal

import numpy as np
import pytest
import torch
from helpers import TRAINING, data_config, write_data

from libs.core.errors import UserError
from libs.datasets.dataset import TalDataset
from libs.datasets.loading.loader import batches, close, inference_loader, training_loader


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
