"""examples/onnx_inference.py: every bad input is one error with its remedy.  Its numbers: test_export.py, with a real graph."""
from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import CHANNELS, one_error, run_script, tiny_config

from libs.engine.deploy.export import describe
from libs.modeling.model import build_model

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("onnx_inference", ROOT / "examples" / "onnx_inference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def about():
    config = tiny_config()
    return json.loads(json.dumps(describe(build_model(config), config, {0: "run", 1: "jump", 2: "sit"}, with_decode=True)))


class Graph:
    """Stands in for a session: one sure segment at every point of the finest level."""

    def __init__(self, about, factor=1.0):
        self.about, self.factor = about, factor

    def get_modelmeta(self):
        return SimpleNamespace(custom_metadata_map={} if self.about is None else {"tal": json.dumps(self.about)})

    def run(self, _names, inputs):
        points = sum(inputs["mask"].shape[1] // s for s in self.about["strides"])
        scores = np.zeros((1, points, 3), np.float32)
        scores[:, :inputs["mask"].sum(), 1] = 0.9
        return scores * self.factor, np.stack([np.arange(points), np.arange(points) + 4], axis=1)[None].astype(np.float32)


@pytest.fixture
def given(tmp_path, monkeypatch, about, example):
    """A folder with a graph and its features, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"stand-in")
    np.save("a.npy", np.ones((12, CHANNELS), np.float32))
    np.savez("two.npz", a=np.ones(3), b=np.ones(3))
    np.save("objects.npy", np.array([{"rgb": 1}]), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:150])
    (tmp_path / "empty.npy").touch()
    real = example.onnxruntime.InferenceSession
    monkeypatch.setattr(example.onnxruntime, "InferenceSession",
                        lambda path, **options: Graph(about) if path == "a.onnx" else real(path, **options))
    return tmp_path


def refused(example, capsys, *argv):
    code, out, err = run_script(capsys, example.main, "onnx_inference.py", *argv)
    assert (out, len(err.splitlines())) == ("", 1)
    return one_error(code, err)


@pytest.mark.parametrize(("argv", "told"), [
    ("gone.onnx a.npy 25", ["gone.onnx", "cannot be read as an ONNX graph"]),
    ("a.npy a.onnx 25", ["a.npy", "cannot be read as an ONNX graph", "name first the file that tools/export.py"]),
    (". a.npy 25", [".: cannot be read as an ONNX graph"]),
    ("a.onnx gone.npy 25", ["gone.npy", "No such file"]), ("a.onnx . 25", [".: cannot be read as features"]),
    ("a.onnx a.onnx 25", ["a.onnx", "cannot be read as features"]), ("a.onnx two.npz 25", ["two.npz", "several arrays (a, b)"]),
    ("a.onnx objects.npy 25", ["objects.npy", "Object arrays", "numbers"]), ("a.onnx cut.npy 25", ["cut.npy"]),
    ("a.onnx empty.npy 25", ["empty.npy"]), (f"a.onnx {'n' * 300}.npy 25", ["File name too long"]),
    ("a.onnx a.npy 0", ["0 frames per second"]), ("a.onnx a.npy nan", ["nan frames per second"]),
    ("a.onnx a.npy 1e30", ["1e+30 frames per second", "between 0.001 and 1,000,000"])])
def test_files_and_rates(given, example, capsys, argv, told):
    error = refused(example, capsys, *argv.split())
    for part in told:
        assert part in error


@pytest.mark.parametrize("argv", [[], ["a.onnx"], ["a.onnx", "a.npy"], ["a.onnx", "a.npy", "fast"]], ids=str)
def test_missing_arguments_show_the_usage(given, example, capsys, argv):
    code, out, err = run_script(capsys, example.main, "onnx_inference.py", *argv)
    assert (code, out) == (2, "")
    assert err.startswith("usage: onnx_inference.py")
    assert "GRAPH FEATURES FPS" in err
    assert "error:" in err.splitlines()[-1]


@pytest.mark.parametrize(("feats", "told"), [
    (np.full((12, CHANNELS), np.nan), "NaN or infinite, first in row 0, channel 0"),
    (np.where(np.arange(72).reshape(12, 6) == 15, 1e39, 1.0), "NaN or infinite, first in row 2, channel 3"),
    (np.ones((12, 4)), r"shape \(12, 4\), but the graph takes \(steps, 6\); use the features"),
    (np.ones((CHANNELS, 12)), "they look transposed"), (np.ones(CHANNELS), "expected numbers"),
    (np.ones((1, 12, CHANNELS)), "expected numbers"), (np.ones((0, CHANNELS)), r"shape \(0, 6\)"),
    (np.ones((12, CHANNELS), complex), "type complex128"), (np.full((12, CHANNELS), "1"), "type <U1")])
def test_features_that_do_not_fit(example, about, feats, told):
    with pytest.raises(example.BadInput, match=told):
        example.detect(Graph(about), feats, 25.0)


def changed(about, **sections):
    return {**about, **{k: {**about[k], **v} if isinstance(v, dict) else v for k, v in sections.items()}}


@pytest.mark.parametrize(("change", "told"), [
    (lambda a: None, "holds no settings"), (lambda a: [1], "holds no settings"), (lambda a: changed(a, version=2), "version 2"),
    (lambda a: changed(a, outputs=["logits", "offsets", "valid"]), "logits, offsets, valid; export it with --with-decode"),
    (lambda a: changed(a, test_cfg={"nms_method": "hard"}), "per-class soft-NMS"),
    (lambda a: changed(a, padding={"stretched_positions": True, "max_seq_len": 8}), "12 steps; this graph takes at most 8")])
def test_graphs_that_do_not_fit(example, about, change, told):
    with pytest.raises(example.BadInput, match=told):
        example.detect(Graph(change(about)), np.ones((12, CHANNELS)), 25.0)


def test_outputs_that_are_not_finite(example, about):
    with pytest.raises(example.BadInput, match="outputs are not finite; the features reach 3e"):
        example.detect(Graph(about, np.nan), np.full((12, CHANNELS), 3e30), 25.0)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int8])
def test_good_features_of_any_type_give_rows(given, example, capsys, kind):
    np.save("a.npy", np.ones((12, CHANNELS), kind))
    code, out, err = run_script(capsys, example.main, "onnx_inference.py", "a.onnx", "a.npy", "25")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["0.20", "1.00", "0.900", "jump"]
