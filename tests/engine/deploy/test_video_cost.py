"""tools/cost.py --video: from pixels to detections, by stage."""
from __future__ import annotations

import json

import cost as cost_script
import numpy as np
import pytest
import torch
from helpers import one_error, run_script, tiny_config
from videos import make_video, moving

from libs.core.config import dump_yaml
from libs.datasets.video.extractors import create, descriptor
from libs.datasets.video.extractors.descriptor import Descriptor
from libs.engine.deploy import video_cost as cost_module
from libs.engine.deploy.cost import count
from libs.engine.deploy.video_cost import STAGES, compared, untrained, video_cost

pytest.importorskip("av")
pytest.importorskip("cv2")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
FRAMES, RATE = 60, 10


class Product(torch.nn.Module):
    """(B, 3, 8, 32, 32) -> (B, 5), with 2 x 3 x 5 FLOPs per clip."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mean((2, 3, 4)))


@pytest.fixture
def video(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "a.mp4", frames=FRAMES, picture=moving)
    return "a.mp4"


def test_every_stage_is_measured_once_and_scaled_to_a_minute(video, monkeypatch):
    """By a clock that only flow, the work per frame and the work per vector move."""
    extractor = create("descriptor", {"batch_size": 1, "resize": 32})
    method, features, now = extractor.method, Descriptor.features, [0.0]

    def clock():
        now[0] += 1e-7  # so that nothing takes no time
        return now[0]

    monkeypatch.setattr(cost_module, "process_time", clock)

    def moved(seconds, function):
        def call(*args):
            now[0] += seconds
            return function(*args)
        return call

    monkeypatch.setattr(extractor, "method", moved(0.001, method))
    monkeypatch.setattr(descriptor, "parts", moved(0.01, descriptor.parts))
    monkeypatch.setattr(Descriptor, "features", moved(0.1, features))
    model = untrained(tiny_config(dataset={"input_dim": 657}), extractor)
    cost = video_cost(model, video, extractor, rounds=2)
    assert (cost.vectors, cost.steps, cost.fps, cost.width, cost.height) == (150, 156, 10.0, 64, 48)  # of a minute
    assert cost.seconds | {"detector": 0, "NMS": 0} == pytest.approx({  # 59 flows, 60 frames, 12 vectors in 6 seconds
        "decoding": 0, "flow": 0.001 * 59 * 10, "features": 0.01 * 60 * 10 + 0.1 * 150, "detector": 0, "NMS": 0}, abs=1e-3)
    assert cost.flops == {"decoding": None, "flow": None, "features": None, "NMS": None,
                          "detector": pytest.approx(count(model.config, 156).flops)}
    table = compared({"teacher": cost, "student": cost})
    assert [line.split()[0] for line in table.splitlines()[1:7]] == [*STAGES, "total"]
    assert table.splitlines()[0].split() == ["stage", "teacher", "s", "teacher", "GFLOP", "student", "s", "student", "GFLOP"]
    assert f"{sum(cost.seconds.values()):.3f}" in table.splitlines()[6].split()


def test_flops_of_a_program_and_the_script(video, tmp_path, capsys):
    torch.jit.save(torch.jit.trace(Product(), torch.zeros(4, 3, 8, 32, 32)), "p.pt")
    config = tiny_config(dataset={"input_dim": 5})
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    argv = ["cost.py", "c.yaml", "--video", video, "--extractor", "program:p.pt", "--runs", "1", "--json", "c.json",
            "--extractor-set", "num_frames=8", "stride=4", "resize=32", "crop=32"]
    code, out, err = run_script(capsys, cost_script.main, *argv)
    assert code == 0, err
    saved = json.loads((tmp_path / "c.json").read_text())
    assert saved["flops"]["features"] == pytest.approx(2 * 3 * 5 * 60 * RATE / 4)
    assert "times its FLOPs" in out
    assert np.isclose(sum(saved["seconds"].values()), float(out.split("total")[1].split()[0]), atol=0.001)


def test_several_checkpoints_in_one_table(video, tmp_path, monkeypatch, capsys):
    extractor = create("descriptor", {})
    models = {name: untrained(tiny_config(dataset={"input_dim": 657}), extractor) for name in ("big", "small")}
    monkeypatch.setattr(cost_script, "load_model", lambda path, **_: models[path])
    monkeypatch.setattr(cost_script, "video_cost", lambda model, path, rounds: video_cost(model, path, extractor, 1))
    argv = ["cost.py", "big", "--beside", "small", "--video", video, "--json", "c.json"]
    code, out, err = run_script(capsys, cost_script.main, *argv)
    assert code == 0, err
    assert out.splitlines()[0].split() == ["stage", "big", "s", "big", "GFLOP", "small", "s", "small", "GFLOP"]
    assert list(json.loads((tmp_path / "c.json").read_text())) == ["big", "small"]


@pytest.mark.parametrize(("argv", "told"), [
    (["big", "--beside", "small"], ["--beside", "--video"]),
    (["big", "--beside", "big", "--video", "a.mp4"], ["--beside", "big", "twice"]),
    (["big", "--beside", "small", "--video", "a.mp4", "--extractor", "descriptor"], ["--extractor", "--beside"]),
    (["c.yaml", "--video", "a.mp4"], ["c.yaml", "--extractor", "descriptor"]),
    (["c.yaml", "--video", "a.mp4", "--extractor", "descriptor"], ["c.yaml", "6 channels", "657", "dataset.input_dim=657"]),
    (["c.yaml", "--video", "b.mp4", "--extractor", "descriptor"], ["b.mp4", "no such video"]),
    (["c.yaml", "--video", "a.mp4", "--extractor", "descriptor", "--length", "3"], ["--length", "--video"]),
    (["c.yaml", "--extractor", "descriptor"], ["--extractor", "--video"]),
    (["c.yaml", "--video", "a.mp4", "--extractor", "descriptor", "--runs", "0"], ["--runs 0"]),
    (["c.yaml", "--video", "a.mp4", "--extractor", "descriptor", "--json", "a.mp4"], ["a.mp4", "replaced"]),
])
def test_refused(video, tmp_path, capsys, argv, told):
    (tmp_path / "c.yaml").write_text(dump_yaml(tiny_config()))
    error = one_error(*run_script(capsys, cost_script.main, "cost.py", *argv)[::2])
    for part in told:
        assert part in error
