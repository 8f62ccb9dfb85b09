"""Features kept in memory: the same batches as from files, each file read once, and one clear error where they do not fit."""
from __future__ import annotations

import dataclasses
import itertools
import json
import os

import numpy as np
import pytest
import torch
from helpers import CHANNELS, TRAINING, data_config, item, write_data

from libs.core.errors import UserError
from libs.datasets.corruptions import features_in_memory
from libs.datasets.dataset import TalDataset
from libs.datasets.features import cache as feature_cache
from libs.datasets.features.cache import FeatureCache, available_memory
from libs.datasets.features.store import FeatureStore
from libs.datasets.loading.batch import Batch, read_batch
from libs.datasets.loading.loader import batches, inference_loader, training_loader

CPU = torch.device("cpu")
TENSORS = ("feats", "mask", "segments", "labels", "present")
STREAMS = {"a": [0, 2], "b": [2, 6]}


def slow_twin(dataset, indices, length):
    """The first version: whole samples, copied into a batch of zeros."""
    samples = [item(dataset, i) for i in indices]
    most = max(len(s.labels) for s in samples)
    feats = torch.zeros(len(samples), length, samples[0].feats.shape[1])
    mask = torch.zeros(len(samples), length, dtype=torch.bool)
    segments, labels = torch.zeros(len(samples), most, 2), torch.zeros(len(samples), most, dtype=torch.int64)
    present = torch.zeros(len(samples), most, dtype=torch.bool)
    for b, sample in enumerate(samples):
        n, steps = len(sample.labels), len(sample.feats)
        feats[b, :steps], mask[b, :steps] = sample.feats, True
        segments[b, :n], labels[b, :n], present[b, :n] = sample.segments, sample.labels, True
    return Batch(feats, mask, segments, labels, present, tuple(dataset.sample(i) for i in indices))


def assert_same(one, other):
    for name in TENSORS:
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name
    for a, b in zip(one.samples, other.samples, strict=True):
        for name in ("index", "video_id", "start", "steps", "source_length", "grid", "duration_s", "labelled"):
            assert getattr(a, name) == getattr(b, name)


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path)


def training_batches(config, epochs=2, modalities=None):
    dataset = TalDataset(config, config.train_split, training=True, modalities=modalities)
    loader, sampler = training_loader(dataset, config)
    found = []
    for epoch in range(epochs):
        sampler.epoch = epoch
        found += list(batches(loader))
    return found


SETTINGS = {
    "plain": {}, "long crops": {"dataset": {"crop_ratio": None}}, "buckets": {"loader": {"bucket": 3}},
    "whole length": {"loader": {"padding": "max_seq_len"}}, "every second": {"dataset": {"downsample_rate": 2}},
    "resampled": {"dataset": {"force_upsampling": True}}, "swapped": {"dataset": {"modalities": STREAMS},
                                                                     "model": {"modalities": ["b", "a"]}}}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_are_the_same_from_files_ram_and_device(data, tmp_path, name, workers):
    found = []
    for cache in ("none", "ram", "device"):
        sections = json.loads(json.dumps(SETTINGS[name]))
        sections.setdefault("loader", {}).update(num_workers=workers, cache=cache)
        found.append(training_batches(data_config(data, tmp_path, **sections)))
    assert len(found[0]) == 2 * (len(TRAINING) // 2)
    for from_files, *kept in zip(*found, strict=True):
        for other in kept:
            assert_same(from_files, other)


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_batches_are_those_of_the_first_version(data, tmp_path, cache):
    config = data_config(data, tmp_path, loader={"cache": cache}, dataset={"modalities": STREAMS}, model={"modalities": ["b"]})
    dataset = TalDataset(config, config.train_split, training=True)
    dataset.keep()
    dirty = torch.full((10, 80, 4), torch.nan)  # memory that the next batches may get must not show through
    del dirty
    for indices in ([0], [3, 1], [(0, 2), (0, 3)], [(1, 5), (1, 4), (1, 0)], [4, (2, 1)]):
        samples = [dataset.sample(i) for i in indices]
        longest = max(s.steps for s in samples)
        for length in (longest, longest + 1, 80):
            assert_same(read_batch(dataset, samples, length), slow_twin(dataset, indices, length))
        with pytest.raises(ValueError, match=f"steps do not fit into {longest - 1}"):
            read_batch(dataset, samples, longest - 1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["ram", "device"])
def test_every_file_is_read_once(data, tmp_path, monkeypatch, workers, cache):
    config = data_config(data, tmp_path, loader={"num_workers": workers, "cache": cache})
    want = training_batches(data_config(data, tmp_path), epochs=3)
    reads, read = [], FeatureStore.read
    monkeypatch.setattr(FeatureStore, "read", lambda self, video, *a, **k: reads.append(video) or read(self, video, *a, **k))
    dataset = TalDataset(config, config.train_split, training=True)
    loader, sampler = training_loader(dataset, config)
    assert sorted(reads) == sorted(TRAINING)
    for file in data.features.iterdir():
        file.unlink()  # nor can any process that is started from now on read them
    found = []
    for epoch in range(3):
        sampler.epoch = epoch
        found += list(batches(loader))
    for one, other in zip(found, want, strict=True):
        assert_same(one, other)
    dataset.keep()
    training_loader(dataset, config)  # a second loader of the same dataset finds them kept
    assert len(reads) == len(TRAINING)
    assert {s.video_id for b in batches(inference_loader(dataset, config)) for s in b.samples} == set(TRAINING)


def test_batches_do_not_share_the_kept_memory(data, tmp_path):
    config = data_config(data, tmp_path, loader={"cache": "ram"})
    dataset = TalDataset(config, config.train_split, training=True)
    dataset.keep()
    before = item(dataset, 0).feats
    item(dataset, 0).feats.zero_()
    read_batch(dataset, [dataset.sample(0)], 80).feats.zero_()
    assert torch.equal(item(dataset, 0).feats, before)
    assert before.abs().sum() > 0


def test_streams_that_only_teachers_read_and_unlabelled_videos(data, tmp_path):
    """Distillation reads more streams than the student, and videos whose annotations are not used."""
    found = []
    for cache in ("none", "ram"):
        config = data_config(data, tmp_path, loader={"cache": cache}, train_cfg={"labelled_share": 0.5},
                             distill={"teachers": [{"checkpoint": "never_read.pth.tar"}]},
                             dataset={"modalities": STREAMS}, model={"modalities": ["b"]})
        found.append(training_batches(config, modalities=("b", "a")))
    assert found[0][0].feats.shape[2] == CHANNELS
    assert {s.labelled for b in found[0] for s in b.samples} == {True, False}
    for one, other in zip(*found, strict=True):
        assert_same(one, other)


def test_evaluation_reads_files_unless_it_is_told_to_keep(data, tmp_path):
    config = data_config(data, tmp_path, loader={"cache": "ram"}, test_cfg={"batch_size": 2})
    dataset = TalDataset(config, config.val_split, training=False)
    from_files = list(batches(inference_loader(dataset, config)))
    assert not dataset.kept
    dataset.keep()
    assert dataset.kept
    for one, other in zip(from_files, batches(inference_loader(dataset, config)), strict=True):
        assert_same(one, other)
    assert [len(f) for f in features_in_memory(dataset)] == dataset.lengths().tolist()


@pytest.mark.parametrize("cache", ["ram", "device"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_named_before_training(data, tmp_path, cache, workers):
    feats = np.load(data.features / "t3.npy")
    feats[69, 2] = np.nan  # a crop may miss it
    np.save(data.features / "t3.npy", feats)
    config = data_config(data, tmp_path, loader={"num_workers": workers, "cache": cache})
    with pytest.raises(UserError, match=r"t3\.npy: 1 of 420 values read are NaN.*row 69, channel 2"):
        training_loader(TalDataset(config, config.train_split, training=True), config)


def test_features_that_do_not_fit(data, tmp_path, monkeypatch):
    needed = sum(TRAINING.values()) * CHANNELS * 4
    config = data_config(data, tmp_path, loader={"cache": "ram"})
    dataset = TalDataset(config, config.train_split, training=True)
    monkeypatch.setattr(dataset, "_read_file", lambda *_: pytest.fail("read before the check"))
    monkeypatch.setattr(feature_cache, "available_memory", lambda device: int(needed / 0.9) - 2)
    with pytest.raises(UserError) as error:
        training_loader(dataset, config)
    assert str(error.value) == (f"{tmp_path / 'tiny.yaml'}: loader.cache: ram: the features of 6 videos take 4.90 KiB as "
                                "float32, but cpu has 5.44 KiB available, of which at most 90% are used; use loader.cache: none")
    monkeypatch.undo()
    monkeypatch.setattr(feature_cache, "available_memory", lambda device: int(needed / 0.9) + 2)
    training_loader(dataset, config)
    assert dataset.kept


def test_a_device_that_is_not_there(data, tmp_path):
    config = data_config(data, tmp_path, loader={"cache": "device"}, devices=["cuda:99"])
    with pytest.raises(UserError, match=r"devices: 'cuda:99'"):
        training_loader(TalDataset(config, config.train_split, training=True), config)
    on_cpu = training_loader(TalDataset(config, config.train_split, training=True), config, device=CPU)[0]
    assert on_cpu.dataset.dataset.feature_device == CPU


def test_the_memory_of_a_control_group_counts(tmp_path):
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    folders = {"": "max", "slice": 5000, "slice/own": 9000}
    for name, limit in folders.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("4000\n")
        (folder / "memory.stat").write_text("anon 3000\ninactive_file 700\n")
    old = root / "memory" / "box"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("3000\n")
    (old / "memory.usage_in_bytes").write_text("4000\n")
    groups.write_text("4:cpu,cpuacct:/box\n3:memory:/box\n0::/slice/own\n")
    assert sorted(feature_cache._group_memory(groups, root)) == [0, 1700, 5700]
    groups.write_text("0::/elsewhere\n")
    assert list(feature_cache._group_memory(groups, root)) == []
    assert list(feature_cache._group_memory(tmp_path / "none", root)) == []
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:     12 kB\n")
    assert feature_cache._system_memory(tmp_path / "meminfo") == 12 * 1024
    assert feature_cache._system_memory(tmp_path / "none") > 2**26
    assert 0 < available_memory(CPU) < 2**50


def test_the_kept_block_is_shared_with_forked_processes():
    cache = FeatureCache(lambda i, out: out.fill_(i), [3, 1, 5], 4, CPU, "here")
    parts = [cache[i] for i in range(3)]
    assert [p.shape for p in parts] == [(3, 4), (1, 4), (5, 4)]
    assert [p.unique().tolist() for p in parts] == [[0], [1], [2]]
    starts = [p.data_ptr() for p in parts]
    assert [b - a for a, b in itertools.pairwise(starts)] == [48, 16]
    child = os.fork() if hasattr(os, "fork") else None
    if child == 0:
        parts[2][0, 0] = 7
        os._exit(0)
    if child:
        os.waitpid(child, 0)
        assert parts[2][0, 0] == 7  # forked processes see this memory, not a copy


@pytest.mark.gpu
def test_on_a_gpu_batches_are_made_there(data, tmp_path):
    want = training_batches(data_config(data, tmp_path))
    config = data_config(data, tmp_path, loader={"num_workers": 2, "cache": "device"}, devices=["cuda:0"])
    dataset = TalDataset(config, config.train_split, training=True)
    loader, sampler = training_loader(dataset, config, pin=True)
    found = []
    for epoch in range(2):
        sampler.epoch = epoch
        found += list(batches(loader))
    for one, other in zip(want, found, strict=True):
        assert other.feats.is_cuda
        assert other.mask.is_pinned()
        assert_same(one, dataclasses.replace(other.to(CPU), samples=other.samples))
    assert item(dataset, 0).feats.device == CPU
