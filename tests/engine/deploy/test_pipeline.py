"""tools/cost.py --pipeline: every stage of every video, and what it found."""
from __future__ import annotations

import json

import cost as cost_script
import numpy as np
import pytest
import torch
from helpers import data_config, one_error, run_script, show_every_term, write_config, write_data

from libs.datasets.dataset import TalDataset
from libs.engine.deploy.pipeline import STAGES, measure_pipeline
from libs.engine.inference.predict import predict
from libs.engine.runs.checkpoint import save_checkpoint
from libs.modeling.model import build_model


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("project")
    data = write_data(tmp)
    config = data_config(data, tmp)
    torch.manual_seed(0)
    model = show_every_term(build_model(config))
    save_checkpoint(tmp / "epoch_001.pth.tar", 1, model.state_dict(), model.state_dict(), {}, {}, None)
    return tmp, config, model, write_config(tmp / "tiny.yaml", data)


def test_the_timed_way_finds_what_prediction_finds(project):
    tmp, config, model, _ = project
    done = []
    measured = measure_pipeline(config, str(tmp), lambda *seen: done.append(seen), rounds=2)
    found = predict(model, TalDataset(config, "validation", training=False), config, torch.device("cpu"))
    assert measured.video_ids == ("v0", "v1", "v2")
    assert measured.kept == tuple(int((found.video_id == v).sum()) for v in measured.video_ids)
    assert all(c >= k for c, k in zip(measured.candidates, measured.kept, strict=True))
    assert (measured.ms.shape, bool((measured.ms > 0).all()), done) == ((2, 3, 4), True, [(1, 2), (2, 2)])
    assert measured.steps == (30, 52, 9)
    measured.ms[:] = np.array([1.0, 2.0, 3.0, 4.0])  # so that the table can be computed by hand
    measured.ms[1, 1] = 3 * measured.ms[1, 1]
    values = measured.as_dict()
    assert list(values["stages"]) == [*STAGES, "total"]
    assert values["per_video_ms"] == [[1, 2, 3, 4], [2, 4, 6, 8], [1, 2, 3, 4]]
    assert values["stages"]["network"] == {"mean_ms": pytest.approx(8 / 3), "median_ms": 2, "p90_ms": pytest.approx(3.6)}
    rows = [line.split() for line in measured.table().splitlines()]
    assert ["NMS", "5.33", "4.00", "7.20", "40.0"] in rows
    assert ["total", "13.33", "10.00", "18.00", "100.0"] in rows
    assert "19 s of video in 0.04 s: 470 times real time" in measured.table()


def test_the_script_and_its_errors(project, capsys, tmp_path):
    tmp, _, _, config = project
    argv = ["cost.py", str(config), "--pipeline", str(tmp), "--runs", "1"]
    code, out, _ = run_script(capsys, cost_script.main, *argv, "--json", str(tmp_path / "c.json"))
    assert (code, "decoding" in out) == (0, True)
    assert json.loads((tmp_path / "c.json").read_text())["rounds"] == 1
    assert "--length" in one_error(*run_script(capsys, cost_script.main, *argv, "--length", "64")[::2])
    assert "--runs 0" in one_error(*run_script(capsys, cost_script.main, *argv[:-1], "0")[::2])
    argv[3] = str(tmp_path)
    assert "holds no epoch" in one_error(*run_script(capsys, cost_script.main, *argv)[::2])
