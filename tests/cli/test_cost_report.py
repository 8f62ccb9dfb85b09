"""tools/cost.py: its output, its JSON, what it refuses."""
from __future__ import annotations

import json

import cost as script
import pytest
from helpers import one_error, run_script, write_config, write_data

from libs.core.config import from_dict, load_config
from libs.engine.deploy import cost


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "tiny.yaml", write_data(tmp_path), devices=["auto"])


def run(capsys, *argv):
    return run_script(capsys, script.main, "cost.py", *map(str, argv))


def test_report(config, capsys, tmp_path, monkeypatch):
    def here(task):  # tests/engine/deploy/test_cost.py starts a real process
        own = from_dict(json.loads(json.dumps(task["config"])), task["source"])
        return cost.run_forward(own, task["length"], task["device"], task["runs"])

    monkeypatch.setattr(cost, "_in_own_process", here)
    code, out, err = run(capsys, config, "--device", "cpu", "--length", 30, "--runs", 2, "--json", tmp_path / "new" / "cost.json",
                         "--set", "model.backbone_type=conv", "model.head_num_layers=2")
    assert (code, err) == (0, "--length 30: padded to 32, which is the least that the network takes\n")
    saved = json.loads((tmp_path / "new" / "cost.json").read_text())
    expected = cost.count(load_config(config, ["model.backbone_type=conv", "model.head_num_layers=2"]), 32)
    assert (saved["params"], saved["flops"], saved["parts"]) == expected
    assert saved["set"] == ["model.backbone_type=conv", "model.head_num_layers=2"]
    assert (saved["length"], saved["device"], saved["runs"], saved["config"]) == (32, "cpu", 2, str(config))
    assert min(saved["latency_ms"], saved["peak_bytes"]) > 0
    for text in (f"{saved['latency_ms']:.2f} ms", "tiny.yaml: 32 steps of 6 channels"):
        assert text in out


@pytest.mark.parametrize(("argv", "message"), [
    (["--device", "gpu"], "'gpu' is not a device (did you mean 'cpu'?); use cpu, auto, cuda or cuda:N"),
    (["--device", "cuda:99"], "tiny.yaml: devices: 'cuda:99', but"),
    (["--length", "-3"], "--length -3: a sequence has at least 1 step"),
    (["--runs", "0"], "--runs 0: a latency needs at least 1 forward pass"),
    (["--set", "model.embd_dims=3"], "did you mean 'embd_dim'?"),
])
def test_refused(config, capsys, argv, message):
    code, out, err = run(capsys, config, *argv)
    assert message in one_error(code, err)
    assert out == ""


def test_json_that_cannot_be_written(config, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "_in_own_process", lambda task: ([1.0], 1))
    (tmp_path / "file").write_text("")
    code, out, err = run(capsys, config, "--device", "cpu", "--json", tmp_path / "file" / "cost.json")
    assert f"{tmp_path / 'file' / 'cost.json'}: cannot be written" in one_error(code, err)
    assert "latency" in out  # the measurement is not lost
