"""The Python API: the detections of eval.py without annotations, from files or arrays, and the shipped student."""
from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import data_config, show_every_term, tiny_config, write_data
from networks import POOLER, TRIDET

from libs.core.config import dump_yaml, to_dict
from libs.core.errors import UserError
from libs.datasets.dataset import TalDataset
from libs.datasets.synthetic.demo import DemoSpec, make_demo
from libs.engine.api import load_model
from libs.engine.inference.predict import predict
from libs.engine.runs.checkpoint import load_checkpoint, own_labels, save_checkpoint, slim_checkpoint
from libs.modeling.model import build_model

ROOT = Path(__file__).resolve().parents[2]
STUDENT, VIDEO = ROOT / "pretrained" / "demo_student.pth.tar", ROOT / "pretrained" / "demo_video.npy"
LABELS = {0: "class 0", 1: "class 1", 2: "class 2"}
COLUMNS = ("video_id", "t_start", "t_end", "label", "score")


def save(path, config, training=True, **extra):
    torch.manual_seed(0)
    model = show_every_term(build_model(config))
    state = {"config": to_dict(config), "labels": LABELS, **extra} if training else None
    save_checkpoint(path, 3, show_every_term(build_model(config), 1).state_dict(), model.state_dict(), {}, {}, state)
    return model


@pytest.fixture(scope="module", params=[{}, TRIDET, {**POOLER, "fpn_shared_norm": True}],
                ids=["ActionFormer", "TriDet", "TemporalMaxer"])
def project(request, tmp_path_factory):
    """(config, checkpoint, network, info file with fps and durations) of a tiny data set."""
    tmp = tmp_path_factory.mktemp("project")
    data = write_data(tmp)
    config = data_config(data, tmp, model=request.param)
    model = save(tmp / "run" / "epoch_003.pth.tar", config)
    return config, tmp / "run", model, data.annotations


def same(found, expected):
    for column in COLUMNS:
        assert getattr(found, column).tolist() == getattr(expected, column).tolist(), column


@pytest.mark.parametrize("batch_size", [1, 3])
def test_detections_are_those_of_the_annotated_evaluation(project, batch_size):
    config, run, model, info = project
    config = tiny_config(**{**to_dict(config), "test_cfg": {**to_dict(config)["test_cfg"], "batch_size": batch_size}})
    expected = predict(model, TalDataset(config, "validation", training=False), config, torch.device("cpu"))
    files = [f"{config.dataset.feat_folder}/{v}.npy" for v in ("v0", "v1", "v2")]
    loaded = load_model(run, device="cpu")
    found = loaded.predict(files, info=info, batch_size=batch_size)
    assert len(found) > 40
    same(found.detections, expected)
    arrays = {v: np.load(f) for v, f in zip(("v0", "v1", "v2"), files, strict=True)}
    same(loaded.predict(arrays, info=info, batch_size=batch_size).detections, expected)
    tensors = loaded.predict({k: torch.from_numpy(v) for k, v in arrays.items()}, fps=25, batch_size=batch_size)
    same(tensors.detections, expected)  # here the durations are those of the features
    assert found.label.tolist() == [LABELS[i] for i in expected.label.tolist()]
    assert found.videos == {"v0": 6.2, "v1": 10.6, "v2": 2.0}


def test_rows_columns_and_files(project, tmp_path):
    _, run, _, _ = project
    found = load_model(run, device="cpu").predict([np.zeros((9, 6), np.float32), np.ones((30, 6))], fps=25.0)
    assert list(found.videos) == ["video_0", "video_1"]
    rows = list(found)
    assert rows[5] == (found.video_id[5], found.t_start[5], found.t_end[5], found.label[5], found.score[5])
    table = found.to_dataframe()
    assert list(table) == ["video_id", "t_start", "t_end", "label", "label_id", "score"]
    assert len(table) == len(found)
    assert tuple(table.drop(columns="label_id").iloc[5]) == rows[5]
    assert table.label_id.tolist() == found.label_id.tolist()
    second = found.of("video_1")
    assert {r.video_id for r in second} == {"video_1"}
    half = float(np.median(second.score))
    assert (second.above(half).score >= half).all()
    assert len(second.above(half)) == (second.score >= half).sum()
    assert second.above(1.0, {"class 1": 0.0}).label.tolist() == ["class 1"] * (second.label_id == 1).sum()
    assert str(found).splitlines()[1].split()[-2:] == rows[0].label.split()
    assert found.above(1.0).save(tmp_path / "x.json") == (tmp_path / "x.json",)
    assert json.loads((tmp_path / "x.json").read_text())["results"] == {"video_0": [], "video_1": []}
    with pytest.raises(UserError, match="'video_7'"):
        found.of("video_7")
    with pytest.raises(UserError, match="'class 9'"):
        found.above(0.1, {"class 9": 0.5})
    for bad in (3, [None], [object()]):
        with pytest.raises(UserError, match="features"):
            load_model(run, device="cpu").predict(bad, fps=25.0)


def test_where_configuration_weights_and_names_come_from(project, tmp_path, capsys):
    config, run, _, _ = project
    video = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    ours = load_model(run, device="cpu").predict(video, fps=25)
    raw = load_model(run, device="cpu", weights="raw").predict(video, fps=25)
    assert ours.score.tolist() != raw.score.tolist()
    save(tmp_path / "theirs" / "model.pth.tar", config, training=False)
    theirs = tmp_path / "theirs" / "model.pth.tar"
    with pytest.raises(UserError, match=r"theirs.*holds no configuration.*config.yaml.*--config"):
        load_model(theirs, device="cpu")
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    same(load_model(theirs, config=tmp_path / "c.yaml", device="cpu").predict(video, fps=25).detections, ours.detections)
    (tmp_path / "theirs" / "config.yaml").write_text(dump_yaml(config).replace(config.dataset.json_file, "gone.json"))
    capsys.readouterr()
    numbered = load_model(theirs, device="cpu")
    assert "labels are ids from 0 to 2; --labels" in capsys.readouterr().err
    assert numbered.label_names == {0: "0", 1: "1", 2: "2"}
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    assert load_model(theirs, labels=tmp_path / "names.txt", device="cpu").label_names == {0: "a", 1: "b", 2: "c"}
    assert load_model(theirs, config=tmp_path / "c.yaml", device="cpu").label_names == LABELS  # dataset.json_file is there
    with pytest.raises(UserError, match="'best' are not known; use ema or raw"):
        load_model(run, weights="best", device="cpu")
    slow = load_model(run, device="cpu", stride=10.0, overrides=["test_cfg.max_seg_num=3"])
    assert "dataset.feat_stride: 5 -> 10" in capsys.readouterr().err
    assert len(slow.predict(video, fps=25)) == 3
    agnostic = tiny_config(dataset_name="anet", dataset={"num_classes": 1})
    save(tmp_path / "anet.pth.tar", agnostic)
    assert load_model(tmp_path / "anet.pth.tar", device="cpu").label_names == {0: "action"}


def test_damaged_names_in_a_checkpoint_are_refused(project, tmp_path):
    save(tmp_path / "x.pth.tar", project[0], labels={"a": 3})
    with pytest.raises(UserError, match=r"x.pth.tar: training.labels"):
        own_labels(load_checkpoint(tmp_path / "x.pth.tar"))


@pytest.mark.parametrize("which", ["ema", "raw"])
def test_a_slim_checkpoint_predicts_the_same_and_says_that_it_cannot_be_resumed(project, tmp_path, which):
    config, run, _, _ = project
    whole = load_checkpoint(run / "epoch_003.pth.tar")
    slim_checkpoint(whole, which, tmp_path / "slim.pth.tar")
    assert (tmp_path / "slim.pth.tar").stat().st_size < 0.75 * (run / "epoch_003.pth.tar").stat().st_size
    slim = load_checkpoint(tmp_path / "slim.pth.tar")
    for name, value in whole.select(which).items():
        assert torch.equal(slim.weights[name], value)
        assert torch.equal(slim.weights_ema[name], value)
    assert (slim.epoch, slim.optimizer, own_labels(slim)) == (3, None, LABELS)
    other = "raw" if which == "ema" else "ema"
    with pytest.raises(UserError, match=rf"slim\.pth\.tar: holds its {which} weights alone.*--weights {which}"):
        slim_checkpoint(slim, other, tmp_path / "slim3.pth.tar")
    video = np.ones((30, 6), np.float32)
    same(load_model(tmp_path / "slim.pth.tar", device="cpu").predict(video, fps=25).detections,
         load_model(run, weights=which, device="cpu").predict(video, fps=25).detections)
    save(tmp_path / "theirs.pth.tar", config, training=False)
    slim_checkpoint(load_checkpoint(tmp_path / "theirs.pth.tar"), which, tmp_path / "slim2.pth.tar")
    assert load_checkpoint(tmp_path / "slim2.pth.tar").training is None


def test_the_shipped_student_is_small_known_and_finds_the_actions_of_its_video():
    """The video is the kept stream of one validation video of the demo."""
    assert STUDENT.stat().st_size + VIDEO.stat().st_size < 2_000_000
    listed = re.findall(r"`(demo_\w+\.\w+(?:\.\w+)?)`.*?`([0-9a-f]{64})`", (ROOT / "pretrained" / "README.md").read_text())
    assert dict(listed) == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (STUDENT, VIDEO)}
    document, features = make_demo(DemoSpec())
    assert np.array_equal(np.load(VIDEO), features["demo_validation_003"][:, :32])
    found = load_model(STUDENT, device="cpu").predict(VIDEO, fps=25).above(0.35)
    truth = [(*a["segment"], a["label"]) for a in document["database"]["demo_validation_003"]["annotations"]]

    def overlap(row, start, end):
        return max(min(row.t_end, end) - max(row.t_start, start), 0) / (max(row.t_end, end) - min(row.t_start, start))
    right = [row for row in found if any(row.label == name and overlap(row, s, e) > 0.4 for s, e, name in truth)]
    assert len(found) >= 6
    assert len(right) >= 5
