"""Corruptions: how much each one changes, and that every model sees the same."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import data_config, item, tiny_config, write_data

from libs.core.errors import UserError
from libs.datasets.corruptions import (
    CORRUPTIONS,
    FEATURES,
    TEMPORAL,
    CorruptedDataset,
    another,
    blur,
    channels,
    corrupt,
    features_in_memory,
    gaps,
    generator,
    jitter,
    noise,
    streams_of,
    windows,
)
from libs.datasets.dataset import TalDataset

SEGMENTS = np.array([[2.5, 40], [60, 61]], np.float32)
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


@pytest.mark.parametrize("name", sorted(FEATURES))
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
    x, other = features(50, 30), features(40, 30, seed=2)
    both = corrupt(x, {"rgb": np.arange(20), "flow": np.arange(20, 30)}, name, 3, 7, "v", SEGMENTS, other)
    alone = corrupt(x[:, :20], {"rgb": np.arange(20)}, name, 3, 7, "v", SEGMENTS, other[:, :20])
    turned = corrupt(np.roll(x, 10, axis=1), {"flow": np.arange(10), "rgb": np.arange(10, 30)}, name, 3, 7, "v", SEGMENTS,
                     np.roll(other, 10, axis=1))
    assert not np.array_equal(both, x)
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


@pytest.mark.parametrize(("segment", "share", "expected"), [
    ((10, 110), 0.01, range(60, 61)), ((10, 110), 0.05, range(58, 63)), ((10, 110), 0.1, range(56, 66)),
    ((20.2, 20.4), 0.01, range(20, 21)),  # between two vectors: still one
    ((0, 0.6), 0.1, range(1)), ((118.6, 119.4), 0.1, range(119, 120)), ((90, 140), 0.1, range(113, 118)),
    ((115, 140), 0.1, ()), ((-30, 28), 0.1, ())], ids=str)  # the centre lies outside of the features
def test_gaps_lie_at_the_centres_of_actions(segment, share, expected):
    assert np.flatnonzero(gaps(np.array([segment], np.float32), 120, share)).tolist() == list(expected)


def test_every_action_has_its_gap():
    segments = np.array([[0, 30], [50, 90], [55, 65]], np.float32)
    assert np.flatnonzero(gaps(segments, 100, 0.1)).tolist() == [14, 15, 16, 60, 69, 70, 71, 72]
    assert not gaps(segments[:0], 100, 0.1).any()


@pytest.mark.parametrize("name", sorted(TEMPORAL))
def test_only_gaps_are_filled_and_with_what_the_name_says(name):
    x = features(4000, 3) * np.array([1, 10, 0], np.float32)
    other = np.arange(9, dtype=np.float32).reshape(3, 3)
    segments = np.array([[0, 1000], [3000, 3999], [3996.5, 4001]], np.float32)
    gap = gaps(segments, 4000, 0.1)
    assert gap.sum() == 201
    before, streams = x.copy(), {"rgb": np.array([0, 2])}
    out = corrupt(x, streams, name, 3, 0, "v", segments, other)
    assert np.array_equal(x, before)
    assert np.array_equal(out[~gap], x[~gap])
    assert np.array_equal(out[:, 1], x[:, 1])
    got = out[gap][:, [0, 2]]
    if name == "gap_zeros":
        assert not got.any()
    elif name == "gap_noise":
        assert got[:, 0].mean() == pytest.approx(float(x[:, 0].mean()), abs=0.3)
        assert got[:, 0].std() == pytest.approx(float(x[:, 0].std()), rel=0.2)
        assert not got[:, 1].any()  # the mean and deviation of a channel that says nothing
        assert not np.array_equal(got, corrupt(x, streams, name, 3, 0, "w", segments, other)[gap][:, [0, 2]])
    elif name == "gap_other":
        assert np.array_equal(got, other[np.flatnonzero(gap) % 3][:, [0, 2]])
    else:
        assert np.array_equal(got[:100], np.repeat(x[[450]][:, [0, 2]], 100, axis=0))
        assert np.array_equal(got[-1], x[3998, [0, 2]])


def test_a_gap_at_the_start_freezes_the_first_vector_after_it():
    x, everything = features(4, 2), {"all": np.arange(2)}
    assert np.array_equal(corrupt(x, everything, "gap_frozen", 1, 0, "v", np.array([[0, 0.5]])), x[[1, 1, 2, 3]])
    assert np.array_equal(corrupt(x[:1], everything, "gap_frozen", 1, 0, "v", np.array([[0, 0.5]])), x[:1])
    with pytest.raises(ValueError, match="gap_zeros needs the segments"):
        corrupt(x, everything, "gap_zeros", 1, 0, "v")


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
    with pytest.raises(ValueError, match="severity 4 is not one of"):
        corrupt(features(4, 2), {"all": np.arange(2)}, "gap_zeros", 4, 0, "v", SEGMENTS)


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


def test_vectors_come_from_a_video_that_seed_and_video_choose(tmp_path):
    config = data_config(write_data(tmp_path), tmp_path)
    clean = TalDataset(config, "validation", training=False)
    chosen = {another(i, clean.videos, "gap_other", 3, seed) for seed in range(20) for i in (1,)}
    assert chosen == {0, 2}  # never itself, each of the others
    for feats in (features_in_memory(clean), None):
        corrupted = CorruptedDataset(clean, feats, streams_of(config), "gap_other", 3, 5)
        for i in range(3):
            whole, other = item(clean, i), item(clean, another(i, clean.videos, "gap_other", 3, 5)).feats.numpy()
            gap = gaps(whole.segments.numpy(), whole.steps, 0.1)
            assert gap.any() == bool(len(whole.segments))
            got = item(corrupted, i).feats.numpy()
            assert np.array_equal(got[gap], other[np.flatnonzero(gap) % len(other)])
            assert np.array_equal(got[~gap], whole.feats.numpy()[~gap])
    with pytest.raises(UserError, match=r"--corruptions gap_other: .*'v0' is the only one of val_split; leave it out"):
        another(0, clean.videos[:1], "gap_other", 1, 0)
