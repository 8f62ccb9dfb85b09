"""The CUDA NMS: its kernels run on a CPU by a small stand-in for CUDA, compiled by nvcc, and on a GPU where there is one."""
from __future__ import annotations

import contextlib
import ctypes
import itertools
import subprocess
from pathlib import Path

import pytest
import torch
from nms_candidates import KINDS, candidates
from nms_cases import ROOT, build_script

from libs.utils.nms import api as nms
from libs.utils.nms import native as nms_native

SOURCE = ROOT / "libs/utils/csrc/nms_cuda.cu"
SYMBOLS = ("tal_cuda_abi", "tal_cuda_error", "tal_cuda_soft_nms", "tal_cuda_hard_nms", "tal_cuda_vote")
SETTING = {"iou_threshold": 0.3, "sigma": 0.5, "voting_thresh": 0.5}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """csrc/nms_cuda.cu compiled for the CPU with blocks of 16 coroutines; its 'device' is host memory."""
    command = build_script().cxx_command() or pytest.skip("no C++ compiler")
    target = tmp_path_factory.mktemp("emulated") / "libtal_nms_cuda.so"
    shim = Path(__file__).parent / "cuda_on_cpu.h"
    subprocess.run([*command, "-DTAL_CUDA_ON_CPU", "-DTAL_THREADS=16", "-include", str(shim), "-x", "c++", "-o", str(target),
                    str(SOURCE)], check=True)
    library = nms_native.CudaLibrary(target, on_stream=lambda device: contextlib.nullcontext(0))
    library.device_type = "cpu"
    return library


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The CUDA library compiled by nvcc with the flags of setup.py."""
    command = build_script().nvcc_command() or pytest.skip("no nvcc")
    target = tmp_path_factory.mktemp("cuda") / "libtal_nms_cuda.so"
    subprocess.run([*command, "-o", str(target), str(SOURCE)], check=True)
    return target


def settings(limits):
    """Keywords of `batched_nms` in every combination that takes another path."""
    for method, multiclass, voting, limit, low in itertools.product(("soft", "hard"), (True, False), (True, False), limits,
                                                                    (0.0, 0.03)):
        yield {**SETTING, "method": method, "multiclass": multiclass, "multiclass_voting": voting, "max_seg_num": limit,
               "min_score": low, "voting_iou_weight": low > 0}


def assert_same_as_fallback(library, device, kind, n, seed):
    """Every operation on `device` with `library`, against the fallback on the CPU: picks and scores exactly, votes to 1e-6."""
    inputs = candidates(kind, n, seed)
    there = [t.to(device) for t in inputs]
    segments, scores, _ = inputs
    for threshold in (0.1, 0.7):
        with nms.using("torch fallback"):
            want = nms.hard_nms(segments, scores, threshold)
        with nms.using(library):
            assert torch.equal(nms.hard_nms(*there[:2], threshold).cpu(), want)
    for method, min_score in itertools.product(nms.SOFT_METHODS, (0.0, 0.02)):
        setting = {"method": method, "iou_threshold": 0.3, "sigma": 0.4, "min_score": min_score}
        with nms.using("torch fallback"):
            want = nms.soft_nms(segments, scores, **setting)
        with nms.using(library):
            got = nms.soft_nms(*there[:2], **setting)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
    with nms.using("torch fallback"):
        want = nms.vote(segments[:20], segments, scores, 0.5)
    with nms.using(library):
        torch.testing.assert_close(nms.vote(there[0][:20], *there[:2], 0.5).cpu(), want, rtol=1e-6, atol=1e-6, equal_nan=True)
    for setting in settings(limits=(7, 400)):
        with nms.using("torch fallback"):
            want = nms.batched_nms(*inputs, **setting)
        with nms.using(library):
            got = [t.cpu() for t in nms.batched_nms(*there, **setting)]
        assert torch.equal(got[1], want[1])
        assert torch.equal(got[2], want[2])
        torch.testing.assert_close(got[0], want[0], rtol=1e-6, atol=1e-6)


def assert_batches_same_as_fallback(library, device, sizes, kind):
    """`nms_of_batch` on `device` with `library`, against the fallback on the CPU: picks and scores exactly, votes to 1e-6."""
    parts = [candidates(kind, n, seed=i, classes=6) for i, n in enumerate(sizes)]
    inputs = *(torch.cat(column) for column in zip(*parts, strict=True)), torch.tensor(sizes)
    there = [t.to(device) for t in inputs]
    for setting in settings(limits=(5, 30, 400)):
        with nms.using("torch fallback"):
            want = nms.nms_of_batch(nms.Candidates(*inputs), **setting)
        with nms.using(library):
            got = [t.cpu() for t in nms.nms_of_batch(nms.Candidates(*there), **setting)]
        assert all(torch.equal(a, b) for a, b in zip(got[1:], want[1:], strict=True))
        torch.testing.assert_close(got[0], want[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 17, 200])
def test_kernels_on_the_cpu(emulated, kind, n):
    assert_same_as_fallback(emulated, "cpu", kind, n, seed=n)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_a_batch_on_the_cpu(emulated, kind):
    assert_batches_same_as_fallback(emulated, "cpu", [25, 0, 1, 70], kind)


def test_groups_stop_when_later_picks_cannot_enter_the_result(emulated, monkeypatch):
    segments, scores, labels = candidates("random", 400, seed=1, classes=8)
    made = []
    filled = nms_native.Groups.filled
    monkeypatch.setattr(nms_native.Groups, "filled",
                        lambda groups, counts: (made.append(int(counts.sum())), filled(groups, counts))[1])
    setting = {**SETTING, "method": "soft", "multiclass": True, "min_score": 0.0, "max_seg_num": 20}
    with nms.using(emulated):
        nms.batched_nms(segments, scores, labels, **setting)
    assert 20 <= made[0] < 8 * 20 * 0.7  # every class for itself would make 20 picks


def test_kernels_on_empty_input(emulated):
    segments, scores, _ = candidates("random", 0, seed=0)
    with nms.using(emulated):
        assert nms.hard_nms(segments, scores, 0.5).shape == (0,)
        assert nms.soft_nms(segments, scores, iou_threshold=0.5, sigma=0.5, min_score=0.1)[1].shape == (0, 3)
        assert nms.vote(segments, segments, scores, 0.5).shape == (0, 2)
        one = torch.tensor([[0.0, 1.0]]), torch.tensor([0.1]), torch.tensor([0])
        none = nms.batched_nms(*one, **SETTING, method="hard", multiclass=True, min_score=0.5, max_seg_num=5)
    assert [tuple(t.shape) for t in none] == [(0, 2), (0,), (0,)]


def test_a_cuda_error_is_raised_with_its_name(emulated):
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        emulated._run(emulated._vote, torch.device("cuda:3"), None, 1, None, None, None, None, None, 0, 0.5, 1, None)


def test_nvcc_builds_the_library(built):
    library = ctypes.CDLL(str(built))  # loads without a GPU or driver: the CUDA runtime is linked in statically
    assert library.tal_cuda_abi() == nms_native.ABI
    assert all(hasattr(library, name) for name in SYMBOLS)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 600, 3000])
def test_gpu_equals_cpu(built, kind, n):
    library = nms_native.CudaLibrary(built)
    assert_same_as_fallback(library, "cuda", kind, n, seed=n)
    assert_batches_same_as_fallback(library, "cuda", [n, 0, 1, 2 * n], kind)
    side = torch.cuda.Stream()
    segments, scores, _ = (t.cuda() for t in candidates(kind, n, seed=n))
    with torch.cuda.stream(side), nms.using(library):
        side.wait_stream(torch.cuda.default_stream())
        kept = nms.hard_nms(segments, scores, 0.5).cpu()  # in the stream that computes it
    with nms.using("torch fallback"):
        assert torch.equal(kept, nms.hard_nms(segments.cpu(), scores.cpu(), 0.5))
