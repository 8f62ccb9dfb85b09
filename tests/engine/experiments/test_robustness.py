"""Robustness: the corrupted evaluation is an ordinary one on corrupted files, each checkpoint brings its own network, and the
statistics are what their names say."""
from __future__ import annotations

import copy
import re
import statistics

import numpy as np
import pytest
import torch
from helpers import VALIDATION, data_config, show_every_term, write_data
from networks import POOLER, TRIDET

from libs.core.config import to_dict
from libs.core.errors import UserError
from libs.datasets.corruptions import another, corrupt
from libs.datasets.dataset import TalDataset
from libs.engine.experiments.robustness import Settings, chart, load_subjects, measure, network_config, tables
from libs.engine.inference.predict import predict, score
from libs.engine.runs.checkpoint import load_checkpoint, save_checkpoint
from libs.modeling.model import build_model

CPU = torch.device("cpu")
RANGES = {"rgb": [0, 4], "flow": [4, 6]}
SHARED = {"dataset": {"modalities": RANGES, "tiou_thresholds": [0.1, 0.3]}}
STUDENT = {"model": {"modalities": ["rgb"], "embd_dim": 8, "fpn_dim": 8, "head_dim": 8}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def config_of(data, folder, **sections):
    both = copy.deepcopy(SHARED)
    for name, values in sections.items():
        both[name] = {**both.get(name, {}), **values}
    return data_config(data, folder, **both)


def saved(config, folder, seed=0, own_config=True, epoch=1):
    """A checkpoint of random raw weights and other averaged ones."""
    states = [show_every_term(build_model(config), seed + k).state_dict() for k in (0, 100)]
    path = folder / f"epoch_{epoch:03d}.pth.tar"
    save_checkpoint(path, epoch, *states, {}, {}, {"config": to_dict(config)} if own_config else None)
    return str(path)


def average_mAP(config, weights, which="ema"):
    """The ordinary way, in percent."""
    model = build_model(config)
    model.load_state_dict(load_checkpoint(weights).select(which))
    dataset = TalDataset(config, "validation", training=False)
    return 100 * score(predict(model, dataset, config, CPU), dataset).average_mAP


@pytest.mark.parametrize("model", [{}, TRIDET, {**POOLER, "fpn_norm": "groupnorm"}],
                         ids=["ActionFormer", "TriDet", "TemporalMaxer"])
def test_it_is_the_ordinary_evaluation_of_corrupted_files(data, tmp_path, model):
    teacher, student = config_of(data, tmp_path, model=model), config_of(data, tmp_path, **STUDENT)
    files = {"teacher": saved(teacher, tmp_path / "t"), "student": saved(student, tmp_path / "s", seed=5)}
    settings = Settings(("noise", "windows", "gap_noise", "gap_other"), (3, 4), seed=3)
    clean = TalDataset(teacher, "validation", training=False)
    result = measure(teacher, load_subjects(teacher, list(files.items())), settings, CPU)
    for corruption in settings.corruptions:
        for severity in settings.of(corruption):
            folder = tmp_path / f"{corruption}{severity}"
            folder.mkdir()
            for i, video in enumerate(VALIDATION):
                x = np.load(data.features / f"{video}.npy")
                other = np.load(data.features / f"{clean.videos[another(i, clean.videos, corruption, severity, 3)].id}.npy")
                streams = {"rgb": np.arange(4), "flow": np.arange(4, 6)}
                np.save(folder / f"{video}.npy", corrupt(x, streams, corruption, severity, 3, video,
                                                         clean.sample(i).segments.numpy(), other))
            for name in files:
                there = config_of(data, tmp_path, dataset={"feat_folder": str(folder)},
                                  model=model if name == "teacher" else STUDENT["model"])
                got = result["models"][name]["corruptions"][corruption][str(severity)]["values"]
                assert got == [average_mAP(there, files[name])], (name, corruption, severity)
    for name, config in (("teacher", teacher), ("student", student)):
        model = result["models"][name]
        assert model["clean"]["values"] == [average_mAP(config, files[name])]
        assert model["clean"]["mean"] > 1
        assert model["mean_corrupted"]["mean"] != model["clean"]["mean"]
    assert result["models"]["teacher"]["reads"] == ["rgb", "flow"]
    assert result["models"]["student"]["reads"] == ["rgb"]
    assert result["levels"]["noise"] == {"unit": "x standard deviation", "3": 1.0, "4": 1.5}
    assert result["levels"]["gap_noise"] == {"unit": "of every action", "3": 0.1}
    temporal = result["models"]["teacher"]["protocols"]["temporal"]
    gaps = [result["models"]["teacher"]["corruptions"][name]["3"]["mean"] for name in ("gap_noise", "gap_other")]
    assert temporal["mean_corrupted"]["mean"] == pytest.approx(statistics.mean(gaps))
    clean_mAP = result["models"]["teacher"]["clean"]["mean"]
    assert temporal["relative_drop"]["mean"] == pytest.approx(100 * (1 - temporal["mean_corrupted"]["mean"] / clean_mAP))
    features = result["models"]["teacher"]["protocols"]["features"]
    assert tables(result).splitlines()[-2].split() == ["teacher", f"{clean_mAP:.2f}", *(
        f"{part[key]['mean']:.2f}" for part in (features, temporal) for key in ("mean_corrupted", "relative_drop"))]
    assert [len(ax.get_lines()[0].get_xdata()) for ax in chart(result).axes] == [3, 3, 2, 2]  # clean and the severities


def test_severities_that_a_corruption_does_not_have(data, tmp_path):
    config = config_of(data, tmp_path)
    subjects = load_subjects(config, [("a", saved(config, tmp_path / "a"))])
    with pytest.raises(UserError, match="--severities 4 5: gap_zeros has the severities 1, 2, 3; name one of them"):
        measure(config, subjects, Settings(("noise", "gap_zeros"), (4, 5)), CPU)


def test_a_checkpoint_of_another_fold_is_refused(data, tmp_path):
    files = [("a", saved(data_config(data, tmp_path, fold=1), tmp_path / "a"))]
    with pytest.raises(UserError, match=r"fold: 2, but .* was trained on fold 1"):
        load_subjects(data_config(data, tmp_path, fold=2), files)


def test_a_modality_that_is_not_read_can_be_corrupted_without_effect(data, tmp_path):
    teacher, student = config_of(data, tmp_path), config_of(data, tmp_path, **STUDENT)
    subjects = load_subjects(teacher, [("teacher", saved(teacher, tmp_path / "t")), ("student", saved(student, tmp_path / "s"))])
    lines = []
    result = measure(teacher, subjects, Settings(("noise",), (5,), modalities=("flow",)), CPU, lines.append)
    models = result["models"]
    assert models["student"]["mean_corrupted"]["values"] == models["student"]["clean"]["values"]
    assert models["student"]["relative_drop"]["mean"] == 0
    assert models["teacher"]["mean_corrupted"]["values"] != models["teacher"]["clean"]["values"]
    assert all(re.search(r": \d+\.\d\d, \d+:\d\d:\d\d left$", line) for line in lines)
    assert [": ".join(line.split(": ")[:2]) for line in lines] == [
        "[1/2 1/2] teacher: clean", "[1/2 2/2] teacher: noise 5", "[2/2 1/2] student: clean", "[2/2 2/2] student: noise 5"]
    with pytest.raises(UserError, match=r"--modalities flwo: no checkpoint reads it .did you mean 'flow'.*; use rgb, flow"):
        measure(teacher, subjects, Settings(modalities=("flwo",)), CPU)


def test_seeds_of_one_name_are_averaged(data, tmp_path):
    config = config_of(data, tmp_path, test_cfg={"weights": "raw"})
    files = [saved(config, tmp_path / str(seed), seed) for seed in range(3)]
    subjects = load_subjects(config, [("a", files[0]), ("b", files[1]), ("a", files[2])])
    result = measure(config, subjects, Settings(("jitter", "blur"), (1, 3)), CPU)
    a, b = result["models"]["a"], result["models"]["b"]
    assert (a["checkpoints"], b["checkpoints"]) == ([files[0], files[2]], [files[1]])
    assert b["clean"]["values"] == [average_mAP(config, files[1], "raw")]
    assert b["clean"]["standard_deviation"] == 0
    clean = [average_mAP(config, f, "raw") for f in (files[0], files[2])]
    assert a["clean"]["values"] == clean
    assert a["clean"]["mean"] == pytest.approx(sum(clean) / 2)
    assert a["clean"]["standard_deviation"] == pytest.approx(abs(clean[0] - clean[1]) / 2 ** 0.5)
    cells = [[a["corruptions"][c][s]["values"][i] for c in ("jitter", "blur") for s in ("1", "3")] for i in range(2)]
    assert a["corruptions"]["jitter"]["mean"]["values"] == pytest.approx([sum(row[:2]) / 2 for row in cells])
    corrupted = [sum(row) / 4 for row in cells]
    assert a["mean_corrupted"]["values"] == pytest.approx(corrupted)
    drops = [100 * (1 - y / x) for x, y in zip(clean, corrupted, strict=True)]
    assert a["relative_drop"]["values"] == pytest.approx(drops)
    assert a["relative_drop"]["standard_deviation"] == pytest.approx(statistics.stdev(drops))


def test_tables_and_chart_show_the_document():
    def stat(mean, deviation=0.0, count=1):
        return {"values": [mean] * count, "mean": mean, "standard_deviation": deviation}
    rows = {"noise": {"1": stat(50), "5": stat(20.126), "mean": stat(35.06)}}
    seeds = {"noise": {"1": stat(44, 1.5, 2), "5": stat(30, 2, 2), "mean": stat(37, 1, 2)}}
    result = {"config": "configs/x.yaml", "modalities": ["rgb"], "severities": [1, 5],
              "levels": {"noise": {"unit": "x standard deviation", "1": 0.25, "5": 2.0}},
              "models": {
                  "teacher": {"checkpoints": ["t"], "reads": ["rgb", "flow"], "clean": stat(60), "corruptions": rows,
                              "mean_corrupted": stat(35.06), "relative_drop": None},
                  "student": {"checkpoints": ["s", "u"], "reads": ["rgb"], "clean": stat(55, 0.5, 2), "corruptions": seeds,
                              "mean_corrupted": stat(37, 1, 2), "relative_drop": stat(32.7, 1.25, 2)}}}
    lines = tables(result).splitlines()
    assert lines[0] == "teacher: 1 checkpoint, reads rgb, flow; average mAP (percent), clean 60.00"
    assert [line.split() for line in lines[1:3]] == [["corruption", "1", "5", "mean"], ["noise", "50.00", "20.13", "35.06"]]
    assert lines[4].startswith("student: 2 checkpoints, reads rgb; ")
    assert lines[4].endswith("clean 55.00 +- 0.50")
    assert lines[6].split("  ")[0] == "noise"
    assert "44.00 +- 1.50" in lines[6]
    assert [line.split() for line in lines[-2:]] == [
        ["teacher", "60.00", "35.06", "-"], ["student", "55.00", "+-", "0.50", "37.00", "+-", "1.00", "32.70", "+-", "1.25"]]
    figure = chart(result)
    assert figure.get_suptitle() == "Corrupted features (rgb), x"
    assert [ax.get_title() for ax in figure.axes] == ["noise: 0.25 to 2 x standard deviation"]
    teacher, student = (line.get_xydata().tolist() for line in figure.axes[0].get_lines())
    assert teacher == [[0, 60], [1, 50], [5, pytest.approx(20.13, abs=0.005)]]
    assert student[:2] == [[0, 55], [1, 44]]


def test_a_checkpoint_without_a_single_hit_has_no_relative_drop(data, tmp_path):
    config = config_of(data, tmp_path, dataset={"tiou_thresholds": [1.0], "modalities": RANGES})
    result = measure(config, load_subjects(config, [("a", saved(config, tmp_path / "a"))]), Settings(("blur",), (1,)), CPU)
    assert result["models"]["a"]["clean"]["mean"] == 0
    assert result["models"]["a"]["relative_drop"] is None
    assert tables(result).splitlines()[-1].split()[-1] == "-"


def test_what_a_checkpoint_keeps_and_what_the_configuration_says(data, tmp_path):
    trained = data_config(data, tmp_path, dataset={"modalities": {"rgb": [1, 5], "flow": [5, 6]}, "max_seq_len": 96,
                                                   "json_file": "gone.json", "feat_folder": "gone"}, **STUDENT,
                          test_cfg={"max_seg_num": 7}, train_cfg={"droppath": 0.0})
    config = config_of(data, tmp_path, test_cfg={"max_seg_num": 5})
    own = network_config(config, load_checkpoint(saved(trained, tmp_path / "s")))
    assert own.model == trained.model
    assert own.dataset.max_seq_len == 96
    assert own.train_cfg.droppath == 0
    assert (own.dataset.json_file, own.dataset.feat_folder) == (str(data.annotations), str(data.features))
    assert own.dataset.modalities == config.dataset.modalities
    assert own.dataset.tiou_thresholds == (0.1, 0.3)
    assert own.test_cfg == config.test_cfg
    assert network_config(config, load_checkpoint(saved(config, tmp_path / "p", own_config=False))) is config


@pytest.mark.parametrize(("sections", "message"), [
    ({"dataset": {"num_classes": 4}}, "dataset.num_classes: 4, but .*tiny.yaml has 3"),
    ({"dataset": {"input_dim": 7}}, "reads 7 channels, .* given 6; correct dataset.input_dim"),
    ({"dataset": {"modalities": {"rgb": [0, 2]}}, "model": {"modalities": ["rgb"]}}, "reads 2 channels, .* given 4"),
    ({"dataset": {"modalities": {"rgb": [2, 6], "flow": [0, 2]}}, "model": {"modalities": ["rgb"]}},
     r"tiny.yaml: dataset.modalities.rgb: \[0, 4\], but .*b/epoch_001.pth.tar: .* has \[2, 6\] for the same files, .*features;"),
    ({"dataset": {"feat_stride": 10}}, "tiny.yaml: dataset.feat_stride: 5.0, but .* has 10.0 for the same files, .*features;"),
    ({"dataset": {"modalities": {"rbg": [0, 2]}}, "model": {"modalities": ["rbg"]}}, "'rbg' is not declared"),
    ({"dataset": {"downsample_rate": 2}}, "another feature grid .* v0: 15 steps of 10 frames, there 30 steps of 5"),
    ({"model": {"n_head": 4}}, "is another network than .*epoch_001.pth.tar, but checkpoints of one name")], ids=str)
def test_checkpoints_that_cannot_be_compared(data, tmp_path, sections, message):
    config = config_of(data, tmp_path)
    other = config_of(data, tmp_path, **sections)
    named = [("a", saved(config, tmp_path / "a")), ("a", saved(other, tmp_path / "b"))]
    with pytest.raises(UserError, match=message):
        load_subjects(config, named)


def test_a_checkpoint_named_twice_is_refused(data, tmp_path):
    config = config_of(data, tmp_path)
    path = saved(config, tmp_path / "a")
    assert len(load_subjects(config, [("a", path), ("b", path)])) == 2
    with pytest.raises(UserError, match="is named twice"):
        load_subjects(config, [("a", path), ("a", path)])
