"""Exported graphs: the numbers of PyTorch at every length, detections of eval.py with numpy and onnxruntime alone."""
from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import export as export_script
import numpy as np
import onnxruntime
import pytest
import torch
from helpers import CHANNELS, one_error, padded_batch, run_script, show_every_term, tiny_config
from networks import SGP, TRIDENT

from libs.core.config import to_dict
from libs.core.errors import UserError
from libs.datasets.loading.padding import padding_of
from libs.engine.api import load_model
from libs.engine.deploy import export as exporting
from libs.engine.deploy.export import DecodingNetwork, Network, check_lengths, describe, export, load_program
from libs.engine.runs.checkpoint import save_checkpoint
from libs.modeling.model import build_model

ROOT = Path(__file__).resolve().parents[3]
LABELS = {0: "run", 1: "jump", 2: "sit"}
SMALL = {"model": {"backbone_arch": [1, 0, 1], "regression_range": [[0, 4], [4, 10000]], "head_num_layers": 2},
         "test_cfg": {"pre_nms_topk": 30, "max_seg_num": 25}}


def make(folder: Path, **sections):
    """(network, configuration, checkpoint) of a tiny network with visible weights."""
    config = tiny_config(**{**SMALL, **sections})
    model = show_every_term(build_model(config)).eval().requires_grad_(False)
    path = folder / "epoch_001.pth.tar"
    save_checkpoint(path, 1, model.state_dict(), model.state_dict(), {}, {}, {"config": to_dict(config), "labels": LABELS})
    return model, config, path


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """(network, configuration, checkpoint, ONNX file with decoding, lengths it was compared at)."""
    tmp = tmp_path_factory.mktemp("graph")
    model, config, path = make(tmp)
    differences = export(model, config, LABELS, tmp / "decoding.onnx", "onnx", with_decode=True)
    return model, config, path, tmp / "decoding.onnx", differences


def session_of(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def test_five_lengths_agree_with_pytorch(graph):
    _, config, _, _, differences = graph
    assert list(differences) == check_lengths(config) == [1, 7, 25, 48, 99]
    assert 0 < max(differences.values()) < 1e-4


@pytest.mark.parametrize("lengths", [[3], [2, 5, 1], [64, 17], [200]], ids=str)
def test_any_number_of_videos_and_any_length(graph, lengths):
    """Also lengths that it was not compared at when it was written."""
    model, _, _, path, _ = graph
    feats, mask = padded_batch(lengths, -(-max(lengths) // 2) * 2)
    scores, segments = session_of(path).run(None, {"feats": feats.numpy(), "mask": mask.numpy()})
    expected_scores, expected_segments = DecodingNetwork(model)(feats, mask)
    assert np.abs(scores - expected_scores.numpy()).max() < 1e-5
    assert np.abs(segments - expected_segments.numpy()).max() < 1e-3
    valid = model(feats, mask).mask.numpy()
    assert (scores[~valid] == 0).all()
    assert (scores[valid] > 0).all()


def test_the_example_finds_what_prediction_finds(graph, monkeypatch):
    spec = importlib.util.spec_from_file_location("onnx_inference", ROOT / "examples" / "onnx_inference.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    _, _, checkpoint, path, _ = graph
    model, session = load_model(checkpoint, device="cpu"), session_of(path)
    for steps in (1, 9, 47, 48, 130):
        feats = np.random.default_rng(steps).normal(size=(steps, CHANNELS)).astype(np.float32)
        expected = model.predict(feats, fps=25)
        found = example.detect(session, feats, 25.0)
        assert len(found) == len(expected) > 2
        assert [row[3] for row in found] == expected.label.tolist()
        for i, column in enumerate((expected.t_start, expected.t_end, expected.score)):
            assert np.abs(np.array([row[i] for row in found]) - column).max() < 1e-4
    assert "numpy" in sys.modules
    text = (ROOT / "examples" / "onnx_inference.py").read_text()
    imported = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {"argparse", "json", "numpy", "onnxruntime"}


def test_the_file_says_what_it_expects(graph):
    model, config, _, path, _ = graph
    session = session_of(path)
    about = json.loads(session.get_modelmeta().custom_metadata_map["tal"])
    assert about == json.loads(json.dumps(describe(model, config, LABELS, with_decode=True)))
    assert about["labels"] == ["run", "jump", "sit"]
    assert (about["strides"], about["channels"], about["padding"]["margin"]) == ([1, 2], CHANNELS, padding_of(config).margin)
    assert about["test_cfg"]["nms_sigma"] == config.test_cfg.nms_sigma
    assert [i.name for i in session.get_inputs()] == ["feats", "mask"]
    assert [o.name for o in session.get_outputs()] == about["outputs"] == ["scores", "segments"]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"masked_stats": False}, {"trident_border": "valid", "init_conv_vars": 0.3}], ids=str)
def test_distances_that_differ_by_class(tmp_path, changes):
    """TriDet: segments per class, and padding that may be part of the definition."""
    spec = importlib.util.spec_from_file_location("onnx_inference", ROOT / "examples" / "onnx_inference.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    model, config, checkpoint = make(tmp_path, model={**SMALL["model"], **SGP, **TRIDENT, **changes})
    differences = export(model, config, LABELS, tmp_path / "x.onnx", "onnx", with_decode=True, lengths=[7, 48])
    assert max(differences.values()) < 1e-4
    session, loaded = session_of(tmp_path / "x.onnx"), load_model(checkpoint, device="cpu")
    feats = np.random.default_rng(3).normal(size=(30, CHANNELS)).astype(np.float32)
    found, expected = example.detect(session, feats, 25.0), loaded.predict(feats, fps=25)
    assert [row[3] for row in found] == expected.label.tolist()
    for i, column in enumerate((expected.t_start, expected.t_end, expected.score)):
        assert np.abs(np.array([row[i] for row in found]) - column).max() < 1e-4


@pytest.mark.slow
def test_torch_export_by_the_script(tmp_path, capsys):
    model, _, checkpoint = make(tmp_path)
    argv = ["export.py", str(checkpoint), "--format", "torch_export", "--lengths", "1", "50", "33"]
    code, out, err = run_script(capsys, export_script.main, *argv)
    assert code == 0
    assert [line.split(" ")[0] for line in err.splitlines()] == ["tracing", "writing", "comparing"]
    assert "M parameters" in err
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["1", "50", "33"]
    files = {"tal": ""}
    torch.export.load(str(tmp_path / "epoch_001.pt2"), extra_files=files)
    loaded = load_program(tmp_path / "epoch_001.pt2")
    assert json.loads(files["tal"])["outputs"] == ["logits", "offsets", "valid"]
    for lengths, padded in (([40, 13], 42), ([1], 2), ([64], 64), ([300, 2, 64, 5], 300)):
        feats, mask = padded_batch(lengths, padded)
        for ours, theirs in zip(Network(model)(feats, mask), loaded(feats, mask), strict=True):
            assert torch.allclose(ours.float(), theirs.float(), atol=1e-5)


@pytest.mark.parametrize(("error", "told"), [(2e-4, "2.0e-04"), (float("nan"), "inf")])
def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch, error, told):
    model, config, _ = make(tmp_path)

    def wrong(feats, mask):
        logits, offsets, valid = (t.numpy() for t in Network(model)(torch.from_numpy(feats), torch.from_numpy(mask)))
        return logits, offsets + error, valid
    monkeypatch.setattr(exporting, "_trace", lambda wrapper, config: None)
    monkeypatch.setattr(exporting, "_write_torch", lambda program, path, about: wrong)
    with pytest.raises(UserError, match=rf"x.pt2: the exported graph differs from PyTorch by {told} at .* not written"):
        export(model, config, LABELS, tmp_path / "x.pt2", "torch_export")
    assert not (tmp_path / "x.pt2").exists()


@pytest.mark.parametrize(("argv", "told"), [
    (["--format", "onnx", "-o", "x.pt2"], ["x.pt2", "ends in .onnx"]),
    (["--format", "onnx", "--lengths", "0"], ["--lengths 0"]),
    (["--format", "torch_export", "--set", "test_cfg.precision=bf16"], ["test_cfg.precision", "fp32"]),
    (["--format", "torch_export", "--set", "model.use_abs_pe=true", "--lengths", "49"], ["model.use_abs_pe", "48", "49"]),
    (["--format", "onnx", "-o", "CKPT/x.onnx"], ["x.onnx", "cannot be written"])], ids=str)
def test_one_clear_error(tmp_path, capsys, argv, told):
    _, _, checkpoint = make(tmp_path)
    argv = [a.replace("CKPT", str(checkpoint)) for a in argv]
    error = one_error(*run_script(capsys, export_script.main, "export.py", str(checkpoint), *argv)[::2])
    for part in told:
        assert part in error


def test_without_the_packages_the_extra_is_named(tmp_path, monkeypatch):
    model, config, _ = make(tmp_path)
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else "here")
    with pytest.raises(UserError, match=r"needs onnxscript, which is not installed: pip install -e '.\[export\]'"):
        export(model, config, LABELS, tmp_path / "x.onnx", "onnx")
