"""NMS of many videos in one call: against the slow twin and one video after the other; threads, caps, ties, edges, bad input."""
from __future__ import annotations

import itertools

import nms_twin as twin
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nms_candidates import KINDS, candidates
from nms_cases import compiled_cpu

from libs.core.errors import UserError
from libs.utils.nms import api as nms
from libs.utils.nms import native as nms_native

SETTING = {"method": "soft", "iou_threshold": 0.3, "min_score": 0.02, "max_seg_num": 25, "sigma": 0.5, "multiclass": True,
           "voting_thresh": 0.5}
FLOATS = st.sampled_from([0.0, -0.0, 1e-40, 1e-6, 0.001, 0.02, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=32)
PLACES = st.sampled_from([-2.0, 0.0, 1.0, 1.5, 3.0, 7.0]) | st.floats(-50, 3000, width=32)
LENGTHS = st.sampled_from([0.0, 1e-7, 0.5, 1.0, 4.0]) | st.floats(0, 400, width=32)
CANDIDATE = st.tuples(PLACES, LENGTHS, FLOATS, st.sampled_from([0, 1, 2, 19, -3, 10**12]))


@pytest.fixture(scope="module", params=["torch fallback", "compiled CPU"])
def backend(request):
    """Runs the test once per implementation."""
    with nms.using(request.param if request.param == "torch fallback" else compiled_cpu()):
        yield request.param


def batch_of(sizes, kind="random", classes=4):
    """Videos with that many candidates."""
    parts = [candidates(kind, n, seed=50 + i, classes=classes) for i, n in enumerate(sizes)]
    return nms.Candidates(*(torch.cat(column) for column in zip(*parts, strict=True)), torch.tensor(sizes))


def one_by_one(segments, scores, labels, counts, setting):
    """The videos through `batched_nms`, one call each."""
    sizes = counts.tolist()
    found = [nms.batched_nms(*video, **setting)
             for video in zip(*(t.split(sizes) for t in (segments, scores, labels)), strict=True)]
    return *(torch.cat(column) for column in zip(*found, strict=True)), torch.tensor([len(f[1]) for f in found])


def assert_same(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def as_batch(videos):
    rows = [row for video in videos for row in video]
    start = np.array([row[0] for row in rows], np.float32)
    end = (start + np.array([row[1] for row in rows], np.float32)).astype(np.float32)
    segments = torch.from_numpy(np.stack([start, end], axis=1).reshape(-1, 2))
    scores = torch.tensor([row[2] for row in rows], dtype=torch.float32)
    labels = torch.tensor([row[3] for row in rows], dtype=torch.int64)
    return nms.Candidates(segments, scores, labels, torch.tensor([len(video) for video in videos], dtype=torch.int64))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.lists(CANDIDATE, max_size=14), min_size=1, max_size=3), st.sampled_from(["soft", "hard"]), st.booleans(),
       st.sampled_from([1, 2, 5, 1000]), st.sampled_from([0.0, 0.001, 0.3]), st.sampled_from([0.01, 0.5]))
def test_every_backend_equals_the_twin_bit_for_bit(videos, method, multiclass, limit, min_score, sigma):
    inputs = as_batch(videos)
    setting = {**SETTING, "method": method, "multiclass": multiclass, "max_seg_num": limit, "min_score": min_score,
               "sigma": sigma, "voting_thresh": 0.0}
    want = []
    for segments, scores, labels in zip(*(t.split(inputs[3].tolist()) for t in inputs[:3]), strict=True):
        want.append(twin.batched(segments.numpy(), scores.numpy(), labels.numpy(), **setting))
    for name in (compiled_cpu(), "torch fallback"):
        with nms.using(name):
            segments, scores, labels, counts = nms.nms_of_batch(inputs, **setting)
        assert counts.tolist() == [len(rows) for rows in want]
        assert labels.tolist() == [row[2] for rows in want for row in rows]
        assert scores.tolist() == [float(row[1]) for rows in want for row in rows]
        assert segments.tolist() == [[float(row[0][0]), float(row[0][1])] for rows in want for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_videos_one_by_one(backend, kind):
    inputs = batch_of([40, 0, 1, 90, 17, 0], kind)
    choices = (("soft", "hard", "none"), (True, False), (True, False), (3, 400), (0.0, 0.05, 1.0))
    for method, multiclass, voting, limit, low in itertools.product(*choices):
        setting = {**SETTING, "method": method, "multiclass": multiclass, "multiclass_voting": voting, "max_seg_num": limit,
                   "min_score": low}
        assert_same(nms.nms_of_batch(inputs, **setting), one_by_one(*inputs, setting))


@pytest.mark.parametrize("multiclass", [True, False])
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch, multiclass):
    inputs = batch_of([700, 3, 0, 1500, 64, 900, 1], classes=20)
    setting = {**SETTING, "max_seg_num": 100, "multiclass": multiclass}
    with nms.using(compiled_cpu()):
        want = one_by_one(*inputs, setting)
        for threads in (1, 2, 3, 16):
            monkeypatch.setattr(nms_native.torch, "get_num_threads", lambda threads=threads: threads)
            for _ in range(3):
                assert_same(nms.nms_of_batch(inputs, **setting), want)


@pytest.mark.parametrize("method", ["soft", "hard"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cap_leaves_the_start_of_the_uncapped_result(backend, method, kind):
    inputs = candidates(kind, 400, seed=8, classes=6)
    setting = {**SETTING, "method": method, "min_score": 0.001}
    whole = nms.batched_nms(*inputs, **{**setting, "max_seg_num": 10**6})
    for limit in (1, 2, 7, 50, len(whole[1]) - 1, len(whole[1])):
        capped = nms.batched_nms(*inputs, **{**setting, "max_seg_num": limit})
        assert_same(capped, [column[:limit] for column in whole])


def test_labels_far_apart_are_classes_like_others(backend):
    segments, scores, labels = candidates("random", 90, seed=4)
    setting = {**SETTING, "max_seg_num": 500}
    want = nms.batched_nms(segments, scores, labels, **setting)
    spread = torch.tensor([-2**63, -5, 10**12, 2**63 - 1])
    got = nms.batched_nms(segments, scores, spread[labels], **setting)
    assert_same(got, (*want[:2], spread[want[2]]))


def test_no_video_and_no_candidate(backend):
    segments, scores, labels, none = torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.tensor([]).long()
    for counts in (none, torch.tensor([0, 0])):
        for method in nms.BATCHED_METHODS:
            out = nms.nms_of_batch(nms.Candidates(segments, scores, labels, counts), **{**SETTING, "method": method})
            assert [tuple(t.shape) for t in out] == [(0, 2), (0,), (0,), counts.shape]


@pytest.mark.parametrize("counts", [[4], [6, -1], [2, 2, 2]])
def test_counts_must_split_the_candidates(counts):
    inputs = candidates("random", 5, seed=0)
    with pytest.raises(ValueError, match="do not split 5 candidates"):
        nms.nms_of_batch(nms.Candidates(*inputs, torch.tensor(counts)), **SETTING)
    for wrong in (torch.tensor([5], dtype=torch.int32), torch.tensor(5)):
        with pytest.raises(ValueError, match="NMS needs counts"):
            nms.nms_of_batch(nms.Candidates(*inputs, wrong), **SETTING)


@pytest.mark.parametrize(("column", "value", "words"), [
    (1, float("nan"), ["1 of 5", "number 3", "score nan"]), (1, float("inf"), ["1 of 5", "number 3", "score inf"]),
    (0, float("nan"), ["1 of 5", "number 3", "nan"]), (0, float("-inf"), ["1 of 5", "number 3", "-inf"])])
def test_one_unusable_candidate_of_a_batch_is_named(column, value, words):
    inputs = batch_of([2, 3])
    inputs[column][3] = value
    with pytest.raises(UserError) as error:
        nms.nms_of_batch(inputs, **SETTING)
    assert all(word in str(error.value) for word in words), str(error.value)
