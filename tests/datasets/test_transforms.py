"""Training crop, trimming and resizing."""
from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from libs.datasets.transforms import CROP_TRIALS, random_crop, resize, runs_inside, trim_to_features


def slow_crop(length, segments, labels, max_seq_len, trunc_thresh, offset, crop_ratio, rng, align=1):
    """The rules of SPEC 10, one segment at a time."""
    if length > max_seq_len:
        window = max_seq_len
    elif crop_ratio is None:
        return 0, length, segments.tolist(), labels.tolist()
    else:
        window = rng.randint(max(round(crop_ratio[0] * length), 1), min(round(crop_ratio[1] * length), length))
        if window == length:
            return 0, length, segments.tolist(), labels.tolist()
    for _ in range(200):
        start = rng.randint(0, length - window)
        while start % align:
            start -= 1
        kept, kept_labels = [], []
        for (s, e), label in zip(segments, labels, strict=True):
            left, right = max(np.float32(start - offset), s), min(np.float32(start + window + offset), e)
            if e != s and max(right - left, 0) / abs(e - s) >= np.float32(trunc_thresh):
                kept.append([float(left - np.float32(start)), float(right - np.float32(start))])
                kept_labels.append(int(label))
        if kept or len(segments) == 0:
            break
    return start, window, kept, kept_labels


@pytest.mark.parametrize("align", [None, 4, 32])
@pytest.mark.parametrize("crop_ratio", [None, (0.9, 1.0), (0.5, 0.8)])
@pytest.mark.parametrize("trunc_thresh", [0.3, 0.5])
def test_equals_the_slow_twin(crop_ratio, trunc_thresh, align):
    numbers = np.random.default_rng(1)
    for seed in range(60):
        length, count = int(numbers.integers(3, 130)), int(numbers.integers(0, 6))
        starts = numbers.uniform(-2, length, (count, 1))
        segments = np.concatenate([starts, starts + numbers.choice([0, 1, 5, 40], (count, 1)) * numbers.random((count, 1))], 1)
        segments, labels = segments.astype(np.float32), numbers.integers(0, 5, count)
        fast_rng, slow_rng = random.Random(seed), random.Random(seed)
        options = {"max_seq_len": 64, "trunc_thresh": trunc_thresh, "offset": 2.0, "crop_ratio": crop_ratio}
        options |= {"align": align} if align else {}
        fast = random_crop(length, segments, labels, **options, rng=fast_rng)
        slow = slow_crop(length, segments, labels, **options, rng=slow_rng)
        assert (fast.start, fast.length, fast.segments.tolist(), fast.labels.tolist()) == slow
        assert fast_rng.getstate() == slow_rng.getstate()  # the same draws in the same order
        assert fast.segments.dtype == np.float32


class CountingRandom(random.Random):
    draws = 0

    def randint(self, a, b):
        self.draws += 1
        return super().randint(a, b)


def crop(length, segments, rng, **options):
    segments = np.array(segments, np.float32).reshape(-1, 2)
    defaults = {"max_seq_len": 64, "trunc_thresh": 0.5, "offset": 2.0, "crop_ratio": None}
    return random_crop(length, segments, np.arange(len(segments)), **(defaults | options), rng=rng)


def test_short_videos_without_ratio_draw_nothing():
    rng = CountingRandom(0)
    got = crop(64, [[-1, 70]], rng)
    assert (got.start, got.length, got.segments.tolist(), rng.draws) == (0, 64, [[-1, 70]], 0)


def test_background_videos_get_any_window_with_one_draw():
    rng = CountingRandom(0)
    got = crop(100, [], rng)
    assert (got.length, got.segments.shape, rng.draws) == (64, (0, 2), 1)
    assert {crop(66, [], random.Random(s)).start for s in range(30)} == {0, 1, 2}


def test_unreachable_segments_use_all_trials_and_leave_none():
    rng = CountingRandom(0)
    got = crop(100, [[10, 10], [200, 210]], rng)
    assert rng.draws == CROP_TRIALS
    assert (got.length, got.segments.shape, got.labels.shape) == (64, (0, 2), (0,))


def test_kept_segments_are_clipped_to_the_window_and_its_margin():
    got = crop(1000, [[-5, 1005]], random.Random(3), trunc_thresh=0.0)
    assert got.segments.tolist() == [[-2, 66]]


def test_aligned_windows_start_at_multiples_and_keep_their_size():
    drawn = [crop(200, [], random.Random(s)).start for s in range(40)]
    aligned = [crop(200, [], random.Random(s), align=32) for s in range(40)]
    assert [c.start for c in aligned] == [32 * int(start / 32) for start in drawn]
    assert {c.start for c in aligned} == {0, 32, 64, 96, 128}
    assert {c.length for c in aligned} == {64}


def test_segments_are_tested_in_the_aligned_window():
    for seed in range(20):  # of the 64 steps, only windows from 64 on hold [120, 126]; draws 64 to 95 are rounded to 64
        got = crop(130, [[120, 126]], random.Random(seed), align=32)
        assert (got.start, got.segments.tolist()) == (64, [[56, 62]])


def test_very_short_video_with_small_ratio():
    assert crop(3, [[0, 3]], random.Random(0), crop_ratio=(0.1, 0.1), trunc_thresh=0.1).length == 1


def test_ratio_uses_bankers_rounding():
    lengths = {crop(5, [[0, 5]], random.Random(s), crop_ratio=(0.5, 0.5), trunc_thresh=0.1).length for s in range(5)}
    assert lengths == {2}  # 2.5 rounds to 2


def test_trim_drops_and_clamps():
    segments = np.array([[0, 5], [8, 12], [9.5, 14], [10.5, 12], [12, 20], [3, 3]], np.float32)
    kept, labels = trim_to_features(segments, np.arange(6), 10.5, 0.5)
    assert kept.tolist() == [[0, 5], [8, 10.5]]
    assert labels.tolist() == [0, 1]


def test_trim_to_nothing_is_legal():
    kept, labels = trim_to_features(np.array([[12, 20]], np.float32), np.array([3]), 10.5, 0.5)
    assert kept.shape == (0, 2)
    assert labels.shape == (0,)


@pytest.mark.parametrize(("before", "after"), [(5, 12), (12, 5), (1, 4)])
def test_resize_interpolates_between_centres(before, after):
    feats = torch.randn(before, 3, generator=torch.Generator().manual_seed(0))
    got = resize(feats, after)
    at = (np.arange(after) + 0.5) * before / after - 0.5
    want = np.stack([np.interp(at, np.arange(before), column) for column in feats.numpy().T], axis=1)
    assert got.is_contiguous()
    assert np.abs(got.numpy() - want).max() < 1e-5


def test_resize_to_the_same_length_changes_nothing():
    feats = torch.randn(7, 3)
    assert resize(feats, 7) is feats


SEGMENTS = np.array([[2.5, 22.4], [30, 30.9], [40, 41], [50.1, 50.2], [-4, 6.2], [95, 120], [-9, -1], [101, 130]], np.float32)
INSIDE = [range(3, 23), None, range(40, 42), None, range(7), range(95, 100), None, None]  # of 100 steps; None: fewer than two


@pytest.mark.parametrize(("share", "longest"), [(0.1, [2, 1, 1, 1]), (0.5, [10, 1, 3, 2]), (1.0, [19, 1, 6, 4])])
def test_hidden_runs_stay_inside_actions_and_below_the_share(share, longest):
    seen = [set() for _ in SEGMENTS]
    for seed in range(300):
        runs = runs_inside(SEGMENTS, 100, probability=1.0, share=share, rng=random.Random(seed))
        places = [i for i, inside in enumerate(INSIDE) if inside]
        assert len(runs) == len(places)
        for i, (first, end) in zip(places, runs, strict=True):
            assert INSIDE[i].start <= first < end <= INSIDE[i].stop
            seen[i].update([(first, end)])
    for i, most in zip(places, longest, strict=True):
        assert {end - first for first, end in seen[i]} == set(range(1, most + 1))  # every length, never all steps
        assert {step for run in seen[i] for step in range(*run)} == set(INSIDE[i])  # every place


def test_runs_come_with_their_probability_and_from_the_generator_alone():
    many = np.tile(np.array([[10, 20]], np.float32), (2000, 1))
    runs = runs_inside(many, 100, probability=0.3, share=0.5, rng=random.Random(4))
    assert 540 < len(runs) < 660
    random.seed(1)
    assert runs_inside(many, 100, probability=0.3, share=0.5, rng=random.Random(4)) == runs
    assert runs_inside(many, 100, probability=0.3, share=0.5, rng=random.Random(5)) != runs
    assert runs_inside(many, 100, probability=0.0, share=0.5, rng=random.Random(4)) == ()
