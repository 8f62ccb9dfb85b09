"""A step's batch in parts: each video once, whatever the number of processes and of batches per step."""
from __future__ import annotations

import pytest
import torch
from helpers import TRAINING, data_config, write_data

from libs.core.errors import UserError
from libs.datasets.dataset import TalDataset
from libs.datasets.loading.loader import batches, inference_loader, steps, training_loader
from libs.datasets.loading.padding import padding_of
from libs.datasets.loading.samplers import EpochSampler, PartSampler


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(("processes", "accumulation", "bucket"), [(1, 3, 0), (3, 1, 2), (2, 2, 3)])
def test_parts_of_all_processes_make_up_the_whole_batches(processes, accumulation, bucket):
    size = 2 * processes * accumulation
    whole = EpochSampler(50, size, 1, bucket, lambda epoch, i: i % 7)
    whole.epoch = 3
    parts = [PartSampler(whole, 2, rank, processes) for rank in range(processes)]
    assert [len(p) for p in parts] == [len(whole) * accumulation] * processes
    found = [list(p) for p in parts]
    for i, batch in enumerate(whole):
        own = [part.own for its in found for part in its[i * accumulation:(i + 1) * accumulation]]
        assert sorted(v for videos in own for v in videos) == sorted(batch)
        assert all(len(videos) == 2 for videos in own)
        assert all(its[i * accumulation].whole == batch for its in found)
        for at_once in zip(*(its[i * accumulation:(i + 1) * accumulation] for its in found), strict=True):
            where = [batch.index(v) for part in at_once for v in part.own]  # neighbours in length run side by side
            assert max(where) - min(where) == 2 * processes - 1


def test_loaders_of_two_processes_read_the_batches_of_one(data, tmp_path):
    sections = {"loader": {"batch_size": 1}, "opt": {"accumulation_steps": 2}}
    config = data_config(data, tmp_path, **sections)
    dataset = TalDataset(config, config.train_split, training=True)
    loaders = [training_loader(dataset, config, rank=rank, ranks=2)[0] for rank in range(2)]
    one = training_loader(dataset, data_config(data, tmp_path, loader={"batch_size": 4}))[0]
    found = [list(steps(loader, config)) for loader in loaders]
    assert [[len(parts) for parts in its] for its in found] == [[2], [2]]
    batch = next(iter(one))
    rows = {v: i for i, v in enumerate(batch.video_ids)}
    seen = [part for its in found for parts in its for part in parts]
    assert sorted(v for part in seen for v in part.video_ids) == sorted(rows)
    for part in seen:  # the same crops, whoever reads them
        row, valid = rows[part.video_ids[0]], int(part.mask.sum())
        assert valid == int(batch.mask[row].sum())
        assert torch.equal(part.feats[0, :valid], batch.feats[row, :valid])


def test_losses_over_padding_pad_all_parts_alike(data, tmp_path):
    def lengths(**distill):
        config = data_config(data, tmp_path, loader={"batch_size": 1}, dataset={"max_seq_len": 96, "crop_ratio": None},
                             distill={"teachers": [{"checkpoint": "x"}], **distill})
        dataset = TalDataset(config, config.train_split, training=True)
        loaders = [training_loader(dataset, config, rank=rank, ranks=6)[0] for rank in range(6)]
        return {batch.mask.shape[1] for loader in loaders for batch in batches(loader)}
    assert len(lengths()) > 3
    assert lengths(inputs={"mask": False}) == {max(lengths())}


@pytest.mark.parametrize(("ranks", "batch_size"), [(2, 1), (3, 4), (5, 1)])
def test_evaluation_is_split_without_gap_or_overlap(data, tmp_path, ranks, batch_size):
    config = data_config(data, tmp_path, test_cfg={"batch_size": batch_size})
    dataset = TalDataset(config, config.train_split, training=False)
    whole = [b.video_ids for b in batches(inference_loader(dataset, config))]
    found = [b.video_ids for rank in range(ranks) for b in batches(inference_loader(dataset, config, rank=rank, ranks=ranks))]
    assert sorted(found) == sorted(whole)
    assert sorted(v for ids in found for v in ids) == sorted(TRAINING)
    some = [b.video_ids for b in batches(inference_loader(dataset, config, wanted={"t3", "t5"}))]
    assert some == [ids for ids in whole if {"t3", "t5"} & set(ids)]


def test_too_few_videos_for_all_processes_is_one_clear_error(data, tmp_path):
    config = data_config(data, tmp_path, loader={"batch_size": 2}, opt={"accumulation_steps": 2})
    dataset = TalDataset(config, config.train_split, training=True)
    with pytest.raises(UserError, match=r"2 x 2 \(opt\.accumulation_steps\) x 3 \(processes\) = 12 is more than the 6 training"):
        training_loader(dataset, config, rank=0, ranks=3)
    assert padding_of(config).alike is False
