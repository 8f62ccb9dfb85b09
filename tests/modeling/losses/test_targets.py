"""Label assignment against a twin that asks every point and every segment in turn."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from libs.modeling.losses.targets import assign_targets
from libs.modeling.points import make_points

CLASSES = 4
RANGES = ((0, 4), (4, 8), (8, 10000))
OVERLAPPING = ((0, 4), (2, 8), (4, 10000))
F = np.float32


def slow_targets(points, segments, labels, center_sample, radius):
    """(P, K) multi-hot and (P, 2) offsets, all arithmetic in float32 as in the published program."""
    classes, offsets = np.zeros((len(points), CLASSES)), np.full((len(points), 2), np.nan)
    for p, (t, low, high, stride) in enumerate(points.numpy()):
        eligible = []
        for n, (start, end) in enumerate(segments):
            left, right = t - start, end - t
            if center_sample == "radius":
                center = F(0.5) * (start + end)
                first, last = max(center - stride * F(radius), start), min(center + stride * F(radius), end)
            else:
                first, last = start, end
            if t - first > 0 and last - t > 0 and low <= max(left, right) <= high:
                eligible.append((end - start, n))
        if eligible:
            shortest, owner = min(eligible)
            for length, n in eligible:
                if length <= shortest + F(1e-3):
                    classes[p, labels[n]] = 1
            offsets[p] = (t - segments[owner][0]) / stride, (segments[owner][1] - t) / stride
    return classes, offsets


def scenes():
    rng = np.random.default_rng(0)
    for i in range(12):
        n = int(rng.integers(1, 9))
        start, length = rng.uniform(-2, 40, n), rng.choice([0.4, 3, 5, 8, 12, 30], n) * rng.uniform(0.8, 1.2, n)
        segments = np.stack([start, start + length], 1)
        if i % 3 == 1:
            segments = segments.round()  # points exactly on boundaries and range limits
        if i % 3 == 2:
            segments = np.concatenate([segments, segments, segments + [0, 5e-4], segments + [1, 1]])  # equal and nearly equal
        yield segments.astype(F), rng.integers(0, CLASSES, len(segments))


@pytest.mark.parametrize("ranges", [RANGES, OVERLAPPING])
@pytest.mark.parametrize(("center_sample", "radius"), [("radius", 1.5), ("radius", 2.5), ("radius", 0.1), ("none", 1.5)])
def test_against_the_slow_twin(ranges, center_sample, radius):
    points = make_points((48, 24, 12), (1, 2, 4), ranges)
    cases = list(scenes())
    most = max(len(labels) for _, labels in cases)
    segments, labels = torch.full((len(cases), most, 2), 7.0), torch.full((len(cases), most), 3)
    present = torch.zeros(len(cases), most, dtype=torch.bool)
    segments[..., 1] = 9.0  # the filling would match points if it counted
    for b, (s, lab) in enumerate(cases):
        segments[b, :len(lab)], labels[b, :len(lab)], present[b, :len(lab)] = torch.from_numpy(s), torch.from_numpy(lab), True
    got = assign_targets(points, segments, labels, present, CLASSES, center_sample, radius)
    positives, shared = 0, 0
    for b, (s, lab) in enumerate(cases):
        classes, offsets = slow_targets(points, s, lab, center_sample, radius)
        positive = classes.any(1)
        assert np.array_equal(got.classes[b].numpy(), classes)
        assert np.array_equal(got.offsets[b].numpy()[positive], offsets[positive].astype(F))
        positives, shared = positives + positive.sum(), shared + (classes.sum(1) > 1).sum()
    assert positives > (20 if radius > 1 else 5)
    assert radius < 1 or shared > 3


def assign(segments, labels, center_sample="none", ranges=RANGES):
    points = make_points((48, 24, 12), (1, 2, 4), ranges)
    return assign_targets(points, torch.tensor([segments], dtype=torch.float32), torch.tensor([labels]),
                          torch.ones(1, len(labels), dtype=torch.bool), CLASSES, center_sample, 1.5)


def test_the_inside_is_strict_and_the_range_inclusive():
    classes = assign([[10.0, 14.0]], [2]).classes[0]
    assert classes[:48, 2].nonzero().flatten().tolist() == [11, 12, 13]  # 10 and 14 lie on the boundary; reach 3, 2, 3
    assert assign([[10.0, 14.5]], [2]).classes[0, 11:14, 2].tolist() == [1, 1, 1]  # reach 3.5, 2.5, 3
    assert classes[48:72, 2].nonzero().flatten().tolist() == []  # level 1 asks for a reach of 4 to 8
    wide = assign([[10.0, 15.0]], [2]).classes[0]
    assert wide[11, 2] == 1  # a reach of exactly 4
    assert wide[48:72, 2].nonzero().flatten().tolist() == [7]  # t = 14 too, the lower limit of its level
    assert assign([[9.0, 16.0]], [2]).classes[0, 48:72, 2].nonzero().flatten().tolist() == [5, 6, 7]  # t = 10, 12, 14


def test_the_shortest_segment_wins_and_the_first_of_equals_gives_the_offsets():
    targets = assign([[9.0, 14.0], [10.5, 13.5], [10.4996, 13.4999], [10.5, 13.5]], [0, 1, 2, 3])
    assert targets.classes[0, 12].tolist() == [0, 1, 1, 1]
    assert targets.offsets[0, 12].tolist() == [1.5, 1.5]


def test_no_ground_truth():
    points = make_points((48, 24, 12), (1, 2, 4), RANGES)
    for n in (0, 3):
        targets = assign_targets(points, torch.zeros(2, n, 2), torch.zeros(2, n, dtype=torch.int64),
                                 torch.zeros(2, n, dtype=torch.bool), CLASSES, "radius", 1.5)
        assert not targets.classes.any()
        assert targets.offsets.shape == (2, 84, 2)
        assert torch.isfinite(targets.offsets).all()


def test_segments_of_zero_length_have_no_points():
    assert not assign([[12.0, 12.0]], [0]).classes.any()
    assert not assign([[12.0, 12.0]], [0], "radius").classes.any()
