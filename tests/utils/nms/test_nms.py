"""NMS: every implementation against the slow twin, against each other and against the fixture; ties, edges, bad input."""
from __future__ import annotations

import itertools
import math
import os
import shutil
import subprocess
import sys

import nms_twin as twin
import numpy as np
import pytest
import torch
from golden.nms import check
from nms_candidates import KINDS, candidates
from nms_cases import ROOT, build_script, compiled_cpu

from libs.core.errors import UserError
from libs.utils.nms import api as nms
from libs.utils.nms import fallback as nms_fallback
from libs.utils.nms import native as nms_native

SETTING = {"iou_threshold": 0.3, "min_score": 0.02, "max_seg_num": 25, "sigma": 0.5, "voting_thresh": 0.5}


@pytest.fixture(params=["torch fallback", "compiled CPU"])
def backend(request):
    """Runs the test once per implementation."""
    with nms.using(request.param if request.param == "torch fallback" else compiled_cpu()):
        yield request.param


def numbers(*tensors):
    return [t.numpy() for t in tensors]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 1.0])
def test_hard_equals_twin(backend, kind, threshold):
    segments, scores, _ = candidates(kind, 90, seed=3)
    assert nms.hard_nms(segments, scores, threshold).tolist() == twin.hard(*numbers(segments, scores), threshold)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", nms.SOFT_METHODS)
@pytest.mark.parametrize("min_score", [0.0, 0.05])
def test_soft_equals_twin(backend, kind, method, min_score):
    segments, scores, _ = candidates(kind, 70, seed=4)
    index, rows = nms.soft_nms(segments, scores, method=method, iou_threshold=0.3, sigma=0.4, min_score=min_score)
    want, decayed = twin.soft(*numbers(segments, scores), method, 0.3, 0.4, min_score)
    assert index.tolist() == want
    assert torch.equal(rows[:, :2], segments[index])
    np.testing.assert_allclose(rows[:, 2], decayed, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mode", ["soft", "hard", "soft multiclass", "hard multiclass", "soft multiclass vote",
                                  "hard multiclass vote", "soft by score", "hard multiclass vote by score"])
@pytest.mark.parametrize("limit", [1, 12, 500])
@pytest.mark.parametrize("kind", KINDS)
def test_batched_equals_twin(backend, kind, mode, limit):
    inputs = candidates(kind, 60, seed=5)
    setting = {**SETTING, "method": mode.split()[0], "multiclass": "multiclass" in mode, "multiclass_voting": "vote" in mode,
               "max_seg_num": limit, "voting_iou_weight": "by score" not in mode}
    segments, scores, labels = nms.batched_nms(*inputs, **setting)
    want = twin.batched(*numbers(*inputs), **setting)
    assert labels.tolist() == [row[2] for row in want]
    np.testing.assert_allclose(scores, [row[1] for row in want], rtol=1e-6)
    np.testing.assert_allclose(segments, [row[0] for row in want], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_fallback_is_bit_identical_on_thousands(kind):
    library = compiled_cpu()
    inputs = candidates(kind, 4000, seed=100, classes=20)
    for method, multiclass, voting in itertools.product(["soft", "hard"], [True, False], [True, False]):
        setting = {**SETTING, "method": method, "multiclass": multiclass, "multiclass_voting": voting, "max_seg_num": 300,
                   "min_score": 0.001}
        with nms.using(library):
            fast = nms.batched_nms(*inputs, **setting)
        with nms.using("torch fallback"):
            slow = nms.batched_nms(*inputs, **setting)
        assert torch.equal(fast[1], slow[1])
        assert torch.equal(fast[2], slow[2])
        voted = voting or not multiclass
        torch.testing.assert_close(fast[0], slow[0], rtol=1e-6 if voted else 0, atol=0)


def test_whole_soft_run_is_bit_identical_on_thousands():
    segments, scores, _ = candidates("random", 3000, seed=9)
    got = []
    for name in (compiled_cpu(), "torch fallback"):
        with nms.using(name):
            got.append(nms.soft_nms(segments, scores, iou_threshold=0.1, sigma=0.9, min_score=1e-4))
    assert len(got[0][0]) > 1000
    assert torch.equal(got[0][0], got[1][0])
    assert torch.equal(got[0][1], got[1][1])


def test_exponential_is_correctly_rounded():
    x = -np.concatenate([[0.0, 1e-30, 87.4, 103.9, 103.98, 104.0, 1e30, np.inf], np.linspace(0, 104, 5001)]).astype(np.float32)
    want = np.array([math.exp(v) for v in x.tolist()], dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(nms_fallback.exp_nonpositive(x), want)
    assert nms_fallback.exp_nonpositive(np.float32([0.0, -0.0])).tolist() == [1.0, 1.0]


def test_exponential_of_the_operators_reaches_the_smallest_floats(backend):
    ends = torch.linspace(0.4, 10.6, 400)  # tIoU up to about 1, so exponents down to -111 for sigma 0.009
    segments = torch.stack([torch.zeros(401), torch.cat([torch.tensor([10.6]), ends])], dim=1)
    for i in range(1, 400, 7):
        pair, scores = segments[[0, i]], torch.tensor([1.0, 0.5])
        _, rows = nms.soft_nms(pair, scores, iou_threshold=0.0, sigma=0.009, min_score=0.0)
        ratio = twin.iou(pair[0].numpy(), pair[1].numpy())
        assert float(rows[1, 2]) == float(np.float32(0.5) * twin.weight("gaussian", ratio, 0.0, 0.009))


@pytest.mark.parametrize("name", ["torch fallback", "compiled CPU"])
def test_fixture(name, monkeypatch):
    monkeypatch.setattr(nms_native, "cpu_library", compiled_cpu if name == "compiled CPU" else lambda: None)
    checks = check(ROOT / "tests/golden/nms_seed0.npz")
    counted = [c for c in checks if not c.informational and c.name.startswith(name)]
    assert len(counted) > 300
    assert [c for c in checks if not c.passed and not c.informational] == []


@pytest.mark.parametrize("case", ["none", "one"])
def test_smallest_inputs(backend, case):
    n = 1 if case == "one" else 0
    segments, scores, labels = torch.tensor([[1.0, 2.0]])[:n], torch.tensor([1e-5])[:n], torch.tensor([7])[:n]
    assert nms.hard_nms(segments, scores, 0.5).tolist() == list(range(n))
    index, rows = nms.soft_nms(segments, scores, iou_threshold=0.5, sigma=0.5, min_score=0.1)
    assert index.tolist() == list(range(n))
    assert rows.shape == (n, 3)
    assert nms.vote(segments, segments, scores, 0.5).tolist() == segments.tolist()
    assert nms.vote(segments[:0], segments, scores, 0.5).shape == (0, 2)
    for method, expected in (("soft", n), ("hard", 0), ("none", n)):  # hard drops the low score, soft keeps its best pick
        out = nms.batched_nms(segments, scores, labels, **SETTING, method=method, multiclass=True)
        assert [tuple(t.shape) for t in out] == [(expected, 2), (expected,), (expected,)]


def test_all_candidates_below_min_score(backend):
    segments, scores, labels = candidates("random", 60, seed=1, classes=3)
    setting = {**SETTING, "min_score": 1.0, "multiclass": True}
    _, kept_scores, kept_labels = nms.batched_nms(segments, scores, labels, **setting, method="soft")
    assert sorted(kept_labels.tolist()) == [0, 1, 2]  # the best of each class survives
    assert kept_scores.tolist() == sorted((float(scores[labels == c].max()) for c in range(3)), reverse=True)
    assert len(nms.batched_nms(segments, scores, labels, **setting, method="hard")[1]) == 0


def test_none_returns_everything_in_level_order():
    inputs = candidates("random", 40, seed=2)
    out = nms.batched_nms(*inputs, **{**SETTING, "max_seg_num": 3}, method="none", multiclass=True)
    assert all(torch.equal(a, b) for a, b in zip(inputs, out, strict=True))


def test_limits_are_inclusive_and_exclusive_as_specified(backend):
    segments = torch.tensor([[0.0, 4.0], [2.0, 4.0], [10.0, 11.0]])
    scores = torch.tensor([0.9, 0.8, 0.5])
    ratio = float(twin.iou(segments[0].numpy(), segments[1].numpy()))
    assert nms.hard_nms(segments, scores, ratio).tolist() == [0, 2]  # suppressed at exactly the threshold
    assert nms.hard_nms(segments, scores, math.nextafter(ratio + 1e-6, 1)).tolist() == [0, 1, 2]
    setting = {**SETTING, "multiclass": False, "voting_thresh": 0.0, "min_score": 0.5}
    labels = torch.zeros(3, dtype=torch.int64)
    assert 0.5 not in nms.batched_nms(segments, scores, labels, **setting, method="hard")[1].tolist()  # score <= min_score drops
    assert 0.5 in nms.batched_nms(segments, scores, labels, **setting, method="soft")[1].tolist()  # score < min_score drops


def test_equal_scores_keep_input_and_class_order(backend):
    segments = torch.tensor([[float(10 * i), 10 * i + 5.0] for i in range(6)])
    scores, labels = torch.tensor([0.5, 0.0, -0.0, 0.5, 0.0, 0.5]), torch.tensor([2, 1, 1, 0, 0, 2])
    assert nms.hard_nms(segments, scores, 0.5).tolist() == [0, 3, 5, 1, 2, 4]
    setting = {**SETTING, "min_score": 0.0, "multiclass": True, "voting_thresh": 0.0}
    out = nms.batched_nms(segments, scores, labels, **setting, method="soft")
    assert (out[0][:, 0] / 10).int().tolist() == [3, 0, 5, 4, 1, 2]
    out = nms.batched_nms(segments, scores, labels, **{**setting, "min_score": -1.0, "max_seg_num": 4}, method="hard")
    assert (out[0][:, 0] / 10).int().tolist() == [3, 0, 5, 4]


def test_voting_of_empty_segments_and_zero_scores(backend):
    segments = torch.tensor([[1.0, 1.0], [1.0, 3.0], [1.0, 3.5], [8.0, 9.0]])
    scores, labels = torch.tensor([0.9, 0.8, 0.4, 0.0]), torch.zeros(4, dtype=torch.int64)
    refined = nms.vote(segments, segments, scores, 0.7)
    assert refined[0].isnan().all()  # tIoU of an empty segment with itself
    assert refined[3].isnan().all()  # all weights 0
    assert refined[1].tolist() == [1.0, pytest.approx((0.8 * 3 + 0.4 * 0.8 * 3.5) / (0.8 + 0.4 * 0.8), rel=1e-6)]
    for multiclass in (True, False):
        out = nms.batched_nms(segments, scores, labels, **{**SETTING, "voting_thresh": 0.7, "min_score": 0.0}, method="soft",
                              multiclass=multiclass, multiclass_voting=True)
        rows = {round(r[0]): r for r in out[0][(out[0][:, 0] > 5) | (out[0][:, 0] == out[0][:, 1])].tolist()}
        assert rows == {1: [1.0, 1.0], 8: [8.0, 9.0]}  # both keep their boundaries


def test_multiclass_voting_listens_to_its_own_class_only(backend):
    segments = torch.tensor([[0.0, 10.0], [0.0, 11.0], [0.0, 12.0]])
    scores, labels = torch.tensor([0.9, 0.5, 0.5]), torch.tensor([0, 0, 1])
    setting = {**SETTING, "method": "hard", "multiclass": True, "voting_thresh": 0.5}
    assert nms.batched_nms(segments, scores, labels, **setting)[0].tolist() == [[0.0, 10.0], [0.0, 12.0]]
    voted = nms.batched_nms(segments, scores, labels, **setting, multiclass_voting=True)[0]
    share = 0.5 * 10 / 11
    assert voted[:, 1].tolist() == pytest.approx([(0.9 * 10 + share * 11) / (0.9 + share), 12.0], rel=1e-6)


def test_inputs_stay_as_they_are_and_need_not_be_contiguous(backend):
    segments, scores, labels = candidates("random", 80, seed=6)
    want = nms.batched_nms(segments, scores, labels, **SETTING, method="soft", multiclass=True)
    strided = (segments.t().contiguous().t().requires_grad_(), torch.stack([scores, scores], 1)[:, 0],
               torch.stack([labels, labels], 1)[:, 1])
    before = [t.detach().clone() for t in strided]
    got = nms.batched_nms(*strided, **SETTING, method="soft", multiclass=True)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    assert all(torch.equal(a, b.detach()) for a, b in zip(before, strided, strict=True))


@pytest.mark.parametrize(("change", "words"), [
    ({"method": "sofd"}, ["test_cfg.nms_method", "'sofd'", "soft", "hard", "none"]),
    ({"sigma": 0.0}, ["test_cfg.nms_sigma", "0.0", "positive"]),
    ({"sigma": float("nan")}, ["test_cfg.nms_sigma", "nan"]),
    ({"max_seg_num": 0}, ["test_cfg.max_seg_num", "0"]),
    ({"min_score": "low"}, ["test_cfg.min_score", "'low'"]),
    ({"segments": [[0.0, 1.0], [3.0, 2.0]]}, ["1 of 2", "number 1", "(3, 2)", "weights"]),
    ({"segments": [[float("nan"), 1.0], [3.0, 4.0]]}, ["1 of 2", "number 0", "(nan, 1)"]),
    ({"segments": [[0.0, float("inf")], [3.0, 4.0]]}, ["number 0", "inf"]),
    ({"scores": [0.5, float("nan")]}, ["number 1", "score nan"]),
    ({"scores": [0.5, -0.1]}, ["number 1", "score -0.1", ">= 0"]),
])
def test_bad_input_is_one_clear_error(change, words):
    setting = {**SETTING, "method": "soft", "multiclass": True, **change}
    segments, scores = setting.pop("segments", [[0.0, 1.0], [3.0, 4.0]]), setting.pop("scores", [0.5, 0.6])
    with pytest.raises(UserError) as error:
        nms.batched_nms(torch.tensor(segments), torch.tensor(scores), torch.zeros(2, dtype=torch.int64), **setting)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_wrong_shapes_and_types_are_programming_errors():
    segments, scores, labels = candidates("random", 4, seed=0)
    for bad in ((segments[0], scores, labels), (segments, scores[:3], labels), (segments.double(), scores, labels),
                (segments, scores, labels.int())):
        with pytest.raises(ValueError, match="NMS needs"):
            nms.batched_nms(*bad, **SETTING, method="soft", multiclass=True)
    with pytest.raises(UserError, match=r"gausian.*did you mean 'gaussian'"):
        nms.soft_nms(segments, scores, method="gausian", iou_threshold=0.1, sigma=0.5, min_score=0.1)


def test_fallback_is_announced_once_and_named(monkeypatch, capsys):
    monkeypatch.setattr(nms_native, "cpu_library", lambda: None)
    monkeypatch.setattr(nms_native, "cuda_library", lambda: None)
    monkeypatch.setattr(nms_native, "why_missing", lambda kind: "not built")
    nms._note_once.cache_clear()
    assert nms.implementation("cpu") == "torch fallback"
    nms.announce_fallback("cpu")
    nms.announce_fallback("cpu")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "torch fallback" in lines[0]
    assert "build_ext" in lines[0]
    monkeypatch.setattr(nms_native, "cpu_library", compiled_cpu)
    assert nms.implementation("cuda:0") == nms.implementation("cpu") == "compiled CPU"
    nms.announce_fallback("cpu")
    assert capsys.readouterr().err == ""
    nms.announce_fallback("cuda:0")
    assert "no CUDA library (not built)" in capsys.readouterr().err


def test_unusable_libraries_are_refused(tmp_path):
    with pytest.raises(OSError, match="is not built"):
        nms_native.CpuLibrary(tmp_path / "libtal_nms.so")
    (tmp_path / "broken.so").write_bytes(b"no library")
    with pytest.raises(OSError, match="broken"):
        nms_native.CpuLibrary(tmp_path / "broken.so")
    script = build_script()
    command = script.cxx_command() or pytest.skip("no C++ compiler")
    (tmp_path / "other.cpp").write_text('extern "C" int tal_abi() { return -1; }\n')
    assert script.compile_library(command, "", tmp_path / "other.cpp", tmp_path / "other.so", force=True)
    with pytest.raises(OSError, match="another version"):
        nms_native.CpuLibrary(tmp_path / "other.so")


def test_failed_compilation_warns_and_removes_the_stale_library(tmp_path, capsys):
    script = build_script()
    target, source = tmp_path / "lib.so", ROOT / "libs/utils/csrc/nms.cpp"
    target.write_bytes(b"older")
    os.utime(target, (0, 0))
    broken = [sys.executable, "-c", "import sys; sys.exit('cannot compile this')"]
    assert not script.compile_library(broken, "C++ compiler", source, target, force=False)
    assert "cannot compile this" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert not script.compile_library(None, "C++ compiler", source, target, force=False)
    assert "no C++ compiler found" in capsys.readouterr().err


def test_setup_without_compilers_succeeds(tmp_path):
    pytest.importorskip("setuptools")
    project = tmp_path / "project"
    shutil.copytree(ROOT / "libs/utils/csrc", project / "libs/utils/csrc", ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(ROOT / "setup.py", project)
    (tmp_path / "bin").mkdir()
    environment = {**{k: v for k, v in os.environ.items() if k not in ("CXX", "CUDA_HOME")}, "PATH": str(tmp_path / "bin")}
    run = subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=project, env=environment,
                         capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "no C++ compiler found" in run.stderr
    assert "no nvcc found" in run.stderr
    assert not list(project.rglob("*.so"))
