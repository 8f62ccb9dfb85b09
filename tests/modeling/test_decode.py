"""Decoding against a twin that walks over levels, points and classes, and of whole batches against the first version."""
from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nms_cases import compiled_cpu

from libs.core.schema import TestConfig as InferenceConfig  # pytest would collect a class called Test...
from libs.modeling.decode import decode_batch, decode_by_torch
from libs.modeling.model import LevelOutputs
from libs.modeling.points import make_points
from libs.utils.nms import api as nms
from libs.utils.nms import native as nms_native

SIZES, STRIDES, CLASSES = (8, 4, 2), (1, 2, 4), 3


@pytest.fixture(scope="module", autouse=True, params=["torch fallback", "compiled CPU"])
def backend(request):
    """Runs every test once per implementation."""
    with nms.using(request.param if request.param == "torch fallback" else compiled_cpu()):
        yield request.param


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


def decode(outputs, index, config):
    """Video `index` of a batch, decoded alone."""
    alone = {name: getattr(outputs, name)[index].unsqueeze(0) for name in ("logits", "offsets", "mask")}
    return decode_batch(outputs._replace(**alone), config)


def first_decode(outputs, index, config):
    """The first version of decoding: level by level, everything above the threshold sorted."""
    scores_PK = torch.sigmoid(outputs.logits[index].float()) * outputs.mask[index].unsqueeze(-1)
    num_classes = scores_PK.shape[1]
    kept, first = [], 0
    for size in outputs.level_sizes:
        flat = scores_PK[first:first + size].flatten()
        above = (flat > config.pre_nms_thresh).nonzero().squeeze(1)
        order = flat[above].argsort(descending=True, stable=True)[:config.pre_nms_topk]
        kept.append(above[order] + first * num_classes)
        first += size
    entry = torch.cat(kept)
    point = entry // num_classes
    t, stride = outputs.points[point, 0], outputs.points[point, 3]
    offsets = outputs.offsets[index, point].float()
    segments = torch.stack((t - offsets[:, 0] * stride, t + offsets[:, 1] * stride), dim=1)
    long_enough = (segments[:, 1] - segments[:, 0]) > config.duration_thresh
    scores, labels = scores_PK.flatten()[entry][long_enough], (entry % num_classes)[long_enough]
    return nms.Candidates(segments[long_enough], scores, labels, torch.tensor([len(scores)]))


def random_outputs(seed, sizes, classes, batch, ties, dtype=torch.float32):
    """Any pyramid; ties: logits and offsets in steps of 1/2; a few offsets are 0, so that segments are empty."""
    generator = torch.Generator().manual_seed(seed)
    strides = [2 ** i for i in range(len(sizes))]
    points = make_points(sizes, strides, [(0, 4)] * len(sizes))
    logits = torch.randn(batch, len(points), classes, generator=generator) * 3 - 3
    offsets = torch.randn(batch, len(points), 2, generator=generator).clamp(min=0)
    if ties:
        logits, offsets = (logits * 2).round() / 2, (offsets * 2).round() / 2
    lengths = torch.randint(0, sizes[0] + 1, (batch,), generator=generator)  # 0: a video of padding alone
    mask = torch.cat([torch.arange(n) * s < lengths[:, None] for n, s in zip(sizes, strides, strict=True)], dim=1)
    return LevelOutputs(logits.to(dtype), offsets.to(dtype), mask, points, tuple(sizes))


def assert_batch_equals_first_version(out, config):
    want = [first_decode(out, index, config) for index in range(len(out.mask))]
    scores = torch.stack([torch.sigmoid(logits.float()) for logits in out.logits])
    for got in (decode_batch(out, config), *(decode_by_torch(out, scores, config, sort_all) for sort_all in (True, False))):
        assert got.counts.tolist() == [len(w.scores) for w in want]
        assert got.counts.dtype == torch.int64
        for column in ("segments", "scores", "labels"):
            together = torch.cat([getattr(w, column) for w in want])
            assert torch.equal(getattr(got, column), together)
            assert getattr(got, column).dtype == together.dtype
    for index, w in enumerate(want):
        assert all(torch.equal(a, b) for a, b in zip(decode(out, index, config), w, strict=True))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 7), st.integers(1, 4),
       st.booleans(), st.sampled_from([1, 3, 20, 10**6]), st.sampled_from([0.0, 0.001, 0.5, 0.999]),
       st.sampled_from([0.0, 0.5, 3.0]))
def test_batches_equal_the_first_version(seed, sizes, classes, batch, ties, topk, threshold, duration):
    config = InferenceConfig(pre_nms_topk=topk, pre_nms_thresh=threshold, duration_thresh=duration)
    assert_batch_equals_first_version(random_outputs(seed, sizes, classes, batch, ties), config)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_of_full_width(monkeypatch, threads, dtype):
    monkeypatch.setattr(nms_native.torch, "get_num_threads", lambda: threads)
    out = random_outputs(1, [576, 288, 144, 72, 36, 18], 20, 3, ties=dtype == torch.bfloat16, dtype=dtype)
    assert_batch_equals_first_version(out, InferenceConfig(pre_nms_topk=2000))


@pytest.mark.parametrize("logit", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers(logit):
    out = random_outputs(2, [9, 5], 3, 2, ties=False)
    out.logits[1, ::2, 1] = logit
    for threshold in (0.0, 0.3):
        assert_batch_equals_first_version(out, InferenceConfig(pre_nms_topk=6, pre_nms_thresh=threshold))


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
