"""Which extractor, settings, weights and streams a trained network asks for."""
from __future__ import annotations

import pytest
import torch
from helpers import tiny_config

from libs.core.errors import UserError
from libs.datasets.features.provenance import extractor_of, spans_of
from libs.datasets.video.extractors import create, i3d
from libs.datasets.video.extractors.base import hashes
from libs.datasets.video.extractors.i3d_weights import Weights
from libs.datasets.video.on_demand import extractor_for, folder_name, streams_read

pytest.importorskip("av")
pytest.importorskip("cv2")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Mean(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3, 4)) * self.factor


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Two files that I3D takes for weights."""
    monkeypatch.chdir(tmp_path)
    for name in ("rgb.pt", "flow.pt", "other.pt"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(i3d, "load_weights", lambda name, path, device: Weights(name, path, hashes(path, "", ""), "x", None))
    return tmp_path


def config_of(made, read=None, modalities=None):
    record = None if made is None else extractor_of(made.describe(), "")
    width = max((end for _, end in spans_of(record).values()), default=6) if record else 6
    modalities = modalities or {"rgb": [0, width // 2], "flow": [width // 2, width]}
    return tiny_config(dataset={"input_dim": width, "modalities": modalities, "extractor": record}, model={"modalities": read})


BOTH = {"rgb_model": "rgb.pt", "flow_model": "flow.pt", "flow_method": "dis", "crop": 200, "resize": None, "stride": 8}


def test_weights_are_those_of_the_training_whatever_the_files_are_called(weights, capsys):
    config = config_of(create("i3d", {**BOTH, "resize": 0}))
    given = {"rgb_model": "rgb.pt", "flow_model": "flow.pt"}
    made = extractor_for(config, "c.pth", None, given)
    assert (made.settings.stride, made.settings.crop, made.settings.resize, made.settings.num_frames) == (8, 200, None, 16)
    (weights / "rgb.pt").rename(weights / "moved.pt")
    extractor_for(config, "c.pth", "i3d", {**given, "rgb_model": "moved.pt"})
    for asked, values, told in ((None, {}, r"c\.pth: .*i3d; .*--rgb-model \(sha256 \w{64}\) and --flow-model \(sha256"),
                                (None, {**given, "rgb_model": "other.pt"}, "sha256 of rgb"),
                                ("thumos-i3d-center", {**given, "rgb_model": "moved.pt", "flow_method": "dis"},
                                 "stride 8, but stride 4"),
                                ("descriptor", {}, "features of the extractor i3d, but --extractor descriptor")):
        with pytest.raises(UserError, match=told):
            extractor_for(config, "c.pth", asked, values)
    assert capsys.readouterr().err == ""


def test_the_precision_is_that_of_the_training(weights):
    given = {"rgb_model": "rgb.pt", "flow_model": "flow.pt"}
    for trained, asked in (("fp32", "bf16"), ("bf16", "fp32")):
        config = config_of(create("i3d", {**BOTH, "precision": trained}))
        assert extractor_for(config, "c.pth", None, given).settings.precision == trained
        with pytest.raises(UserError, match=r"c\.pth: .*precision"):
            extractor_for(config, "c.pth", None, {**given, "precision": asked})


def test_streams_that_are_not_read_need_no_weights(weights, capsys):
    both = create("i3d", BOTH)
    made = extractor_for(config_of(both, ["rgb"]), "c.pth", None, {"rgb_model": "rgb.pt"})
    assert (made.settings.flow_model, len(made.networks)) == (None, 1)
    made = extractor_for(config_of(both, ["flow"]), "c.pth", None, {"flow_model": "flow.pt"})
    assert made.settings.rgb_model is None
    assert capsys.readouterr().err == ""
    extractor_for(config_of(both, ["rgb"]), "c.pth", None, {"rgb_model": "rgb.pt", "flow_model": "flow.pt"})
    assert "reads rgb only, so --flow-model is not used" in capsys.readouterr().err


@pytest.mark.parametrize(("read", "modalities", "expected"), [
    (None, None, ["rgb", "flow"]),
    (["part"], {"part": [10, 200], "rest": [200, 657]}, ["rgb"]),
    (["rest"], {"part": [10, 200], "rest": [200, 657]}, ["rgb", "flow"]),
    (["flow"], {"rgb": [0, 232], "flow": [232, 657]}, ["flow"]),
    (["hof"], {"rgb": [0, 232], "hof": [232, 300]}, ["rgb", "flow"])], ids=str)
def test_streams_whose_files_can_be_read_alone(read, modalities, expected):
    made = create("descriptor", {})
    config = config_of(made, read, modalities)
    assert streams_read(config, config.dataset.extractor) == expected
    settings = extractor_for(config, "c.pth", None, {}).settings
    assert settings.flow == ("flow" in expected)


def test_features_of_one_stream_alone(weights):
    made = extractor_for(config_of(create("descriptor", {"flow": False}), None, {"rgb": [0, 232]}), "c.pth", None, {})
    assert [stream["channels"] for stream in made.streams] == [[0, 232]]
    made = extractor_for(config_of(create("i3d", {**BOTH, "rgb_model": None})), "c.pth", None, {"flow_model": "flow.pt"})
    assert [stream["name"] for stream in made.streams] == ["flow"]


def test_without_a_record_the_number_of_channels_is_checked_before_the_work(weights):
    for asked, values, told in (("descriptor", {}, "takes 6 channels, as in training, but the extractor descriptor makes 657"),
                                ("i3d", {**BOTH, "flow_model": None}, "i3d makes 1024")):
        with pytest.raises(UserError, match=told):
            extractor_for(config_of(None), "c.pth", asked, values)


def test_a_program_is_told_by_its_checksum_and_folders_by_their_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, factor in (("a.pt", 1.0), ("b.pt", 2.0)):
        torch.jit.save(torch.jit.trace(Mean(factor), torch.zeros(4, 3, 8, 32, 32)), name)
    made = create("program:a.pt", {"stride": 4, "num_frames": 8, "mean": (0.0, 0.5, 0.0), "crop": 0})
    config = config_of(made)
    again = extractor_for(config, "c.pth", None, {"rgb_model": "a.pt"})
    assert (again.settings.mean, again.settings.crop, again.settings.stride) == ((0.0, 0.5, 0.0), None, 4)
    assert folder_name(again) == folder_name(made) != folder_name(create("program:a.pt", {"stride": 2, "num_frames": 8}))
    assert extractor_for(config, "c.pth", "program:a.pt", {}).settings.rgb_model == "a.pt"
    with pytest.raises(UserError, match="sha256 of rgb"):
        extractor_for(config, "c.pth", "program:b.pt", {})


def test_a_record_of_another_version_or_damaged(tmp_path):
    for values, told in (({"name": "gone"}, "c.pth.*'gone'.*does not have"), ({"settings": {"stride": "x"}}, "stride: 'x'"),
                         ({"settings": {"stride": 4, "novel": 1}}, "novel: .*no such setting")):
        record = {"name": "descriptor", "settings": {}, "streams": {}, **values}
        with pytest.raises(UserError, match=told):
            extractor_for(tiny_config(dataset={"extractor": record}), "c.pth", None, {})
    audio = {"audio": {"folder": str(tmp_path), "dim": 2}}
    config = tiny_config(dataset={"modalities": audio}, model={"modalities": ["audio"]})
    with pytest.raises(UserError, match="audio from files of its own"):
        extractor_for(config, "c.pth", "descriptor", {})
