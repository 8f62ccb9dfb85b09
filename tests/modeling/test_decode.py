"""Decoding against a twin that walks over levels, points and classes."""
from __future__ import annotations

import dataclasses

import pytest
import torch

from libs.core.schema import TestConfig as InferenceConfig  # pytest would collect a class called Test...
from libs.modeling.decode import decode
from libs.modeling.model import LevelOutputs
from libs.modeling.points import make_points

SIZES, STRIDES, CLASSES = (8, 4, 2), (1, 2, 4), 3


def outputs(seed, ties=False, batch=2):
    generator = torch.Generator().manual_seed(seed)
    points = make_points(SIZES, STRIDES, ((0, 4), (4, 8), (8, 10000)))
    logits = torch.randn(batch, len(points), CLASSES, generator=generator) * 2
    if ties:
        logits = logits.round()
    offsets = torch.randn(batch, len(points), 2, generator=generator).clamp(min=0)
    mask = torch.cat([torch.arange(n) < -(-5 // s) for n, s in zip(SIZES, STRIDES, strict=True)]).expand(batch, -1).clone()
    mask[1] = True
    return LevelOutputs(logits * mask[..., None], offsets * mask[..., None], mask, points, SIZES)


def slow_decode(out, index, config):
    """Rows (start, end, score, label)."""
    scores, rows, first = torch.sigmoid(out.logits[index]), [], 0
    for size, stride in zip(SIZES, STRIDES, strict=True):
        found = []
        for i in range(size):
            if not out.mask[index, first + i]:
                continue
            for k in range(CLASSES):
                score = scores[first + i, k]
                if score > config.pre_nms_thresh:
                    left, right = out.offsets[index, first + i]
                    found.append((i * stride - left * stride, i * stride + right * stride, score, k))
        found.sort(key=lambda row: -row[2])  # stable: ties keep point, class
        rows += [row for row in found[:config.pre_nms_topk] if row[1] - row[0] > config.duration_thresh]
        first += size
    return rows


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("topk", "threshold", "duration"), [(100, 0.001, 0.0), (5, 0.001, 0.05), (3, 0.5, 1.0), (1, 0.9, 0.0)])
def test_against_the_slow_twin(ties, topk, threshold, duration):
    config = InferenceConfig(pre_nms_topk=topk, pre_nms_thresh=threshold, duration_thresh=duration)
    kept = 0
    for seed in range(4):
        out = outputs(seed, ties)
        for index in range(2):
            want = slow_decode(out, index, config)
            got = decode(out, index, config)
            assert got.labels.tolist() == [row[3] for row in want]
            assert got.scores.tolist() == [float(row[2]) for row in want]
            assert got.segments.tolist() == [[float(row[0]), float(row[1])] for row in want]
            kept += len(want)
    assert kept > 5


def test_all_scores_equal_keep_the_order_of_points_and_classes():
    out = outputs(0)
    out = out._replace(logits=torch.zeros_like(out.logits), offsets=torch.ones_like(out.offsets), mask=torch.ones_like(out.mask))
    got = decode(out, 0, InferenceConfig(pre_nms_topk=4))
    assert got.labels.tolist() == [0, 1, 2, 0] * 3
    assert got.segments[:, 0].tolist() == [-1, -1, -1, 0, -2, -2, -2, 0, -4, -4, -4, 0]  # not clipped at 0


def test_thresholds_are_strict():
    out = outputs(0)
    out = out._replace(logits=torch.zeros_like(out.logits), offsets=torch.full_like(out.offsets, 0.5))
    assert len(decode(out, 1, InferenceConfig(pre_nms_thresh=0.5)).scores) == 0
    assert (decode(out, 1, InferenceConfig(duration_thresh=1.0)).segments.diff(dim=1) > 1).all()
    assert len(decode(out, 1, InferenceConfig(duration_thresh=1.0)).scores) == (4 + 2) * CLASSES  # level 0: length 1


def test_nothing_above_the_threshold():
    out = outputs(0)
    got = decode(out._replace(logits=out.logits - 100), 0, InferenceConfig())
    assert (got.segments.shape, got.scores.shape, got.labels.dtype) == ((0, 2), (0,), torch.int64)


def test_padded_points_never_count():
    out = outputs(3)
    config = dataclasses.replace(InferenceConfig(), pre_nms_thresh=0.0)
    assert len(decode(out, 0, config).scores) <= int(out.mask[0].sum()) * CLASSES
    loud = out._replace(logits=torch.where(out.mask[..., None], out.logits, 9.0))
    assert torch.equal(decode(out, 0, config).scores, decode(loud, 0, config).scores)
