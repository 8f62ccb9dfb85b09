"""Every path of every command: without permission, and with a name that is too long; one error that names it, nothing written."""
from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from helpers import data_config, one_error, run_script, without_permission, write_config, write_data

from libs.core.config import to_dict
from libs.datasets.dataset import TalDataset
from libs.engine.inference.candidates import CandidateCollector
from libs.engine.inference.predict import predict
from libs.engine.runs.checkpoint import save_checkpoint
from libs.modeling.model import build_model

EXTRACT = "extract_features {videos} --num-frames 2 --stride 1"
COMMANDS = [  # X: the path
    "train X", "train {config} --set output_folder=X", "train {config} --set dataset.json_file=X",
    "train {config} --set dataset.feat_folder=X", "train {config} --resume X", "train {config} --init-from X",
    "eval X {ckpt}", "eval {config} X", "eval {config} X/here -epoch 3", "eval {config} {ckpt} --output X",
    "eval {config} {ckpt} --set test_cfg.ext_score_file=X.json",
    "predict X {features}", "predict {ckpt} X", "predict {ckpt} {features} X.npy", "predict {ckpt} {features} --info X.csv",
    "predict {ckpt} {features} --fps 25 -o X.json", "predict {ckpt} {features} --fps 25 -o X --format srt",
    "predict {ckpt} {features} --labels X", "predict {ckpt} {features} --class-thresholds X.json",
    "predict {ckpt} {features} --config X", "predict {ckpt} {features} --fps 25 --join X",
    "evaluate X.json {annotations}", "evaluate {predictions} X", "evaluate {predictions} {annotations} --json X",
    "evaluate {predictions} {annotations} --class-scores X.json",
    "diagnose X.json {annotations} -o {out}/a.html", "diagnose {predictions} X -o {out}/a.html",
    "diagnose {predictions} {annotations} -o X.html", "diagnose {predictions} {annotations} -o {out}/a.html --video-folder X",
    "check_dataset X {features}", "check_dataset {annotations} X", "check_dataset {annotations} {features} --config X",
    "check_dataset {annotations} {features} --write X", "check_dataset {annotations} {features} --json X",
    "convert_annotations X.csv -o {out}/a.json", "convert_annotations X.eaf -o {out}/a.json",
    "convert_annotations X -o {out}/a.json --format eaf",
    "convert_annotations {table} -o X.json", "convert_annotations {table} -o {out}/a.json --durations X.csv",
    "convert_annotations {table} -o {out}/a.json --features X",
    "sweep_nms X", "sweep_nms {candidates} X", "sweep_nms {candidates} X.json", "sweep_nms {candidates} --json X",
    "export X --format torch_export -o {out}/a.pt2", "export {ckpt} --format torch_export -o X.pt2",
    "export {ckpt} --format torch_export -o {out}/a.pt2 --config X",
    "cost X", "cost {config} --pipeline X", "slim_checkpoint X {out}/a.pth.tar", "slim_checkpoint {ckpt} X.pth.tar",
    "pack_features X --out {out}/pack", "pack_features {config} --out X", "pack_features {config} --out X --verify",
    "robustness X {ckpt}", "robustness {config} X", "run_seeds X", "run_seeds {config} --set output_folder=X",
    "run_distill X", "run_distill {stages} --set output_folder=X",
    "make_planted --annotations X --out {out}/p", "make_planted --annotations {annotations} --out X --rgb-dim 2 --flow-dim 2",
    "make_planted_for X --out {out}/p", "make_planted_for {config} --out X", "make_planted_for {config} --annotations X --out X",
    "prepare_hapt X {out}/h", "prepare_thumos X --out {out}/t", "prepare_thumos X --allow-other --out {out}/t",
    "prepare_epic X {out}/e", "prepare_multithumos X {out}/m.json", "prepare_anet X {out}/a.json", "prepare_hacs X {out}/a.json",
    "prepare_ego4d X --out {out}/g", "fuse_actions {predictions} {predictions} --annotations X",
    "compare_features X {features}", "compare_features {features} X", "compare_features {features} {features} --csv X",
    "check_golden X", f"{EXTRACT} --rgb-model X -o {{out}}/f",
]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Placeholder -> path: a small dataset, a checkpoint, and files made from them."""
    place = tmp_path_factory.mktemp("given")
    data = write_data(place / "data")
    config = data_config(data, place, test_cfg={"pre_nms_topk": 40})
    torch.manual_seed(0)
    model = build_model(config)
    state = model.state_dict()
    save_checkpoint(place / "epoch_001.pth.tar", 1, state, state, {}, {}, {"config": to_dict(config)})
    dataset, collector = TalDataset(config, config.val_split, training=False), CandidateCollector(config.test_cfg)
    found = predict(model, dataset, config, torch.device("cpu"), collect=collector)
    collector.write(place / "candidates.npz", [v.id for v in dataset.videos], config, {})
    from libs.utils.evaluation.predictions import write_predictions_json
    write_predictions_json(place / "predictions.json", found, dataset.label_names)
    (place / "labels.csv").write_text("video,start,end,label\nv0,1,2,run\n")
    (place / "stages").mkdir()
    write_config(place / "stages/alone.yaml", data)
    for folder in ("out", "locked"):
        (place / folder).mkdir()
    return {"config": write_config(place / "tiny.yaml", data), "ckpt": place / "epoch_001.pth.tar", "features": data.features,
           "annotations": data.annotations, "predictions": place / "predictions.json", "candidates": place / "candidates.npz",
           "table": place / "labels.csv", "stages": place / "stages", "out": place / "out", "videos": place / "a.mp4"}


@pytest.fixture
def locked(given, monkeypatch):
    """A path in a folder without permission."""
    place = given["out"].parent / "locked"
    without_permission(monkeypatch, place)
    return place / "x"


def files(folder):
    return sorted(str(p) for p in Path(folder).rglob("*") )


def refused(given, capsys, command, path):
    name, *argv = [word.replace("X", str(path)).format(**given) for word in command.split()]
    before = files(given["out"].parent)
    code, out, err = run_script(capsys, importlib.import_module(name).main, name, *argv)
    error = out if name == "check_dataset" and "error: " not in err else one_error(code, err)  # it lists its findings
    assert code == 2
    assert str(path) in error
    assert files(given["out"].parent) == before
    return error


@pytest.mark.parametrize("command", COMMANDS)
def test_without_permission(command, given, locked, capsys):
    assert "Permission denied" in refused(given, capsys, command, locked)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_is_too_long(command, given, capsys):
    refused(given, capsys, command, given["out"].parent / ("n" * 300))
