"""Corruptions: how much each one changes, and that every model sees the same."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import data_config, item, tiny_config, write_data

from libs.datasets.corruptions import (
    CORRUPTIONS,
    CorruptedDataset,
    blur,
    channels,
    corrupt,
    features_in_memory,
    generator,
    jitter,
    noise,
    streams_of,
    windows,
)
from libs.datasets.dataset import TalDataset

MODALITIES = {"rgb": [0, 2], "flow": [2, 5]}


def rng(seed=0):
    return np.random.default_rng(seed)


def features(steps, width, seed=1):
    return rng(seed).normal(3, 1, (steps, width)).astype(np.float32)


def test_noise_is_relative_to_each_channel():
    x = features(4000, 3) * np.array([1, 10, 0], np.float32) + np.array([5, -7, 2], np.float32)
    added = noise(x, 0.5, rng()) - x
    for c in range(3):
        assert added[:, c].mean() == pytest.approx(0, abs=0.04 * float(x[:, c].std()))
        assert added[:, c].std() == pytest.approx(0.5 * np.sqrt(np.mean((x[:, c] - x[:, c].mean()) ** 2)), rel=0.05)
    assert np.abs(np.corrcoef(added[:, 0], added[:, 1])[0, 1]) < 0.05
    assert np.array_equal(added[:, 2], np.zeros(4000))  # a channel that says nothing gets no noise


@pytest.mark.parametrize(("steps", "share", "dropped"), [(100, 0.1, 10), (37, 0.5, 19), (8, 1.0, 8), (200, 0.3, 60), (4, 0.1, 0)])
def test_dropped_windows_take_the_exact_share_in_runs(steps, share, dropped):
    places = np.zeros(steps)
    for seed in range(200):
        out = windows(np.ones((steps, 2), np.float32), share, rng(seed))
        gone = (out == 0).all(axis=1)
        assert gone.sum() == dropped
        assert set(np.unique(out[~gone])) <= {1.0}
        edges = np.flatnonzero(np.diff(np.concatenate([[0], gone, [0]]).astype(int)))
        lengths = edges[1::2] - edges[::2]
        # whole windows of 8, at most one shorter, possibly side by side: runs are 8k or 8k + the rest
        assert sum(n % 8 != 0 for n in lengths) <= 1
        assert all(n % 8 in (0, dropped % 8) for n in lengths)
        places += gone
    if 0 < dropped < steps:
        assert places.min() > 0  # every step can be hit


def test_dropped_channels_take_the_exact_share_for_the_whole_video():
    hit = np.zeros(20)
    for seed in range(100):
        out = channels(np.ones((7, 20), np.float32), 0.3, rng(seed))
        assert ((out == 0).all(axis=0) | (out == 1).all(axis=0)).all()
        hit += (out == 0).all(axis=0)
        assert (out == 0).sum() == 7 * 6
    assert hit.min() > 10
    assert hit.max() < 55


def test_jitter_takes_whole_vectors_from_near_by():
    x = np.stack([np.arange(300), 1000 + np.arange(300)], axis=1).astype(np.float32)
    out = jitter(x, 4, rng())
    moved = out[:, 0] - np.arange(300)
    assert np.array_equal(out[:, 1] - 1000, out[:, 0])
    assert set(moved[10:-10].astype(int)) == set(range(-4, 5))
    assert out[:, 0].min() >= 0
    assert out[:, 0].max() <= 299


@pytest.mark.parametrize(("steps", "reach"), [(30, 1), (30, 4), (5, 16), (1, 2)])
def test_blur_is_the_mean_of_the_neighbours(steps, reach):
    x = features(steps, 3)
    expected = np.array([[np.mean([float(x[s, c]) for s in range(steps) if abs(s - t) <= reach]) for c in range(3)]
                         for t in range(steps)])
    assert np.abs(blur(x, reach, rng()) - expected).max() < 1e-6


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_functions_leave_their_input_alone_and_grow_with_severity(name):
    streams = {"rgb": np.arange(40), "flow": np.arange(40, 60)}
    x = (50 + np.cumsum(features(400, 60) - 3, axis=0)).astype(np.float32)  # smooth, so that a wider reach changes more
    before, change = x.copy(), []
    for severity in range(1, 6):
        out = corrupt(x, streams, name, severity, 0, "v")
        assert (out.shape, out.dtype) == (x.shape, np.float32)
        change.append(float(np.square(out - x).mean()))
    assert np.array_equal(x, before)
    assert 0 < change[0] < change[1] < change[2] < change[3] < change[4]


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_a_modality_is_corrupted_alike_whatever_else_is_read(name):
    """Two-stream features, one stream of them alone, and the streams in another order."""
    x = features(50, 30)
    both = corrupt(x, {"rgb": np.arange(20), "flow": np.arange(20, 30)}, name, 3, 7, "v")
    alone = corrupt(x[:, :20], {"rgb": np.arange(20)}, name, 3, 7, "v")
    turned = corrupt(np.roll(x, 10, axis=1), {"flow": np.arange(10), "rgb": np.arange(10, 30)}, name, 3, 7, "v")
    assert np.array_equal(both[:, :20], alone)
    assert np.array_equal(np.roll(both, 10, axis=1), turned)


@pytest.mark.parametrize("name", ["noise", "windows", "channels", "jitter"])
def test_draws_depend_on_seed_video_corruption_and_severity(name):
    x, streams = features(64, 40), {"rgb": np.arange(40)}
    base = corrupt(x, streams, name, 3, 0, "v")
    assert np.array_equal(corrupt(x, streams, name, 3, 0, "v"), base)
    assert not np.array_equal(corrupt(x, streams, name, 3, 1, "v"), base)
    assert not np.array_equal(corrupt(x, streams, name, 3, 0, "w"), base)
    states = {generator(*args).bit_generator.random_raw() for args in (
        (0, "v", name, 3), (0, "v", name, 4), (0, "v", "other", 3), (0, "v", name, 3, "rgb"), (0, "v", name, 3, "flow"))}
    assert len(states) == 5


def test_windows_and_jitter_hit_all_modalities_at_the_same_steps_but_noise_and_channels_do_not():
    x = np.repeat(features(60, 10), 2, axis=1)[:, [*range(0, 20, 2), *range(1, 20, 2)]]  # flow is a copy of rgb
    streams = {"rgb": np.arange(10), "flow": np.arange(10, 20)}
    for name, same in (("windows", True), ("jitter", True), ("blur", True), ("noise", False), ("channels", False)):
        out = corrupt(x, streams, name, 3, 0, "v")
        assert np.array_equal(out[:, :10], out[:, 10:]) == same, name


def test_only_the_given_streams_are_corrupted():
    x = features(40, 12)
    out = corrupt(x, {"flow": np.arange(8, 12)}, "noise", 5, 0, "v")
    assert np.array_equal(out[:, :8], x[:, :8])
    assert (out[:, 8:] != x[:, 8:]).all()


@pytest.mark.parametrize(("dataset", "model", "expected"), [
    ({}, {}, {"all": [0, 1, 2, 3, 4, 5]}),
    ({"input_dim": [2, 4]}, {"embd_dim": [8, 8]}, {"all": [0, 1, 2, 3, 4, 5]}),
    ({"modalities": MODALITIES}, {}, {"rgb": [0, 1], "flow": [2, 3, 4], "unnamed": [5]}),
    ({"modalities": MODALITIES}, {"modalities": ["flow"]}, {"flow": [0, 1, 2]}),
    ({"modalities": MODALITIES}, {"modalities": ["flow", "rgb"]}, {"flow": [0, 1, 2], "rgb": [3, 4]}),
    ({"modalities": {**MODALITIES, "audio": {"folder": "a", "dim": 3}}}, {"modalities": ["audio", "rgb"]},
     {"audio": [0, 1, 2], "rgb": [3, 4]}),
    ({"modalities": {**MODALITIES, "audio": {"folder": "a", "dim": 3}}}, {},
     {"rgb": [0, 1], "flow": [2, 3, 4], "unnamed": [5]})], ids=str)
def test_streams_of_a_configuration(dataset, model, expected):
    found = streams_of(tiny_config(dataset=dataset, model=model))
    assert {name: columns.tolist() for name, columns in found.items()} == expected


def test_an_unknown_severity_is_refused():
    for severity in (0, 6):
        with pytest.raises(ValueError, match=f"severity {severity} "):
            corrupt(features(4, 2), {"all": np.arange(2)}, "noise", severity, 0, "v")


def test_the_data_set_hands_on_everything_else(tmp_path):
    config = data_config(write_data(tmp_path), tmp_path)
    clean = TalDataset(config, "validation", training=False)
    feats, streams = features_in_memory(clean), streams_of(config)
    assert features_in_memory(clean, limit=4 * 6 * int(clean.lengths().sum()) - 1) is None
    assert feats is not None
    unchanged = CorruptedDataset(clean, feats, streams, None, 0, 0)
    noisy = CorruptedDataset(clean, feats, streams, "noise", 2, 5)
    unread = CorruptedDataset(clean, None, streams, "noise", 2, 5)
    assert len(noisy) == 3
    assert noisy.videos is clean.videos
    assert (noisy.tious, noisy.label_names) == (clean.tious, clean.label_names)
    assert noisy.lengths().tolist() == [30, 52, 9]
    assert noisy.ground_truth().t_start.tolist() == clean.ground_truth().t_start.tolist()
    for i in range(3):
        assert torch.equal(item(unchanged, i).feats, item(clean, i).feats)
        assert torch.equal(item(noisy, i).feats, item(unread, i).feats)
        assert torch.equal(item(noisy, i).feats, item(noisy, i).feats)
        expected = corrupt(item(clean, i).feats.numpy(), {"all": np.arange(6)}, "noise", 2, 5, item(clean, i).video_id)
        assert np.array_equal(item(noisy, i).feats.numpy(), expected)
        assert (item(noisy, i).grid, item(noisy, i).duration_s) == (item(clean, i).grid, item(clean, i).duration_s)
        assert torch.equal(item(noisy, i).segments, item(clean, i).segments)
