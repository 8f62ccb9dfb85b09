"""dataset.speeds: which speeds are drawn, what becomes of features and segments, and what stays as it was."""
from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from helpers import TRAINING, data_config, write_data

from libs.datasets.dataset import TalDataset


@pytest.fixture
def data(tmp_path):
    """Channel 0 of every vector is its number."""
    made = write_data(tmp_path)
    for video, steps in TRAINING.items():
        feats = np.load(made.features / f"{video}.npy")
        feats[:, 0] = np.arange(steps)
        np.save(made.features / f"{video}.npy", feats)
    return made


def training(data, tmp_path, cache="none", **dataset):
    config = data_config(data, tmp_path, dataset={"max_seq_len": 200, **dataset}, loader={"cache": cache})
    made = TalDataset(config, config.train_split, True)
    made.keep()
    return made


@pytest.mark.parametrize("cache", ["none", "ram"])
@pytest.mark.parametrize("speed", [0.5, 0.8, 1.25, 2.0])
def test_segments_move_with_the_features(data, tmp_path, speed, cache):
    plain, played = training(data, tmp_path, crop_ratio=None), training(data, tmp_path, cache, crop_ratio=None, speeds=[speed])
    for i, steps in enumerate(TRAINING.values()):
        before, after = plain.sample((0, i)), played.sample((0, i))
        assert (before.speed, after.speed, after.steps, after.source_length) == (1, speed, round(steps / speed), after.steps)
        ramp = played.features(after)[:, 0]  # the vector's number in the file, at every new step
        inside = (after.segments > 1) & (after.segments < after.steps - 2)
        assert inside.any()
        low = after.segments[inside].floor().long()
        there = torch.lerp(ramp[low], ramp[low + 1], after.segments[inside] - low)
        torch.testing.assert_close(there, before.segments[inside], atol=2e-4, rtol=0)
        assert torch.equal(before.labels, after.labels)


def test_crops_are_windows_of_the_resampled_video(data, tmp_path):
    played = training(data, tmp_path, crop_ratio=[0.4, 0.6], speeds=[0.8, 1.0, 1.25])
    seen = Counter()
    for epoch in range(30):
        for i, video in enumerate(TRAINING):
            crop = played.sample((epoch, i))
            seen[crop.speed] += 1
            assert crop.source_length == max(round(TRAINING[video] / crop.speed), 1)
            whole = TalDataset(played.config, ["training"], True, speed=crop.speed) if epoch == 0 else None
            if whole is not None:
                feats = whole.features(whole.sample(i))
                assert torch.equal(played.features(crop), feats[crop.start:crop.start + crop.steps])
                assert whole.lengths()[i] == crop.source_length
    assert set(seen) == {0.8, 1.0, 1.25}
    assert all(35 < n < 85 for n in seen.values())  # 180 draws, 60 each, standard deviation 6
    again = training(data, tmp_path, crop_ratio=[0.4, 0.6], speeds=[0.8, 1.0, 1.25])
    assert [again.sample((3, i)).speed for i in range(6)] == [played.sample((3, i)).speed for i in range(6)]


def test_one_speed_draws_the_crops_of_before_and_evaluation_knows_none(data, tmp_path):
    plain, one = (training(data, tmp_path, crop_ratio=[0.4, 0.6], **s) for s in ({}, {"speeds": [1]}))
    for i in range(6):
        a, b = plain.sample((2, i)), one.sample((2, i))
        assert (a.start, a.steps) == (b.start, b.steps)
    config = data_config(data, tmp_path, dataset={"speeds": [0.5]})
    evaluated = TalDataset(config, config.val_split, False)
    assert [s.speed for s in map(evaluated.sample, range(3))] == [1, 1, 1]
    assert list(evaluated.lengths()) == [evaluated.sample(i).steps for i in range(3)]
