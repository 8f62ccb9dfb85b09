"""Every kind of bad input: exit code 2, one `error:` line that names file and key, nothing half-written."""
from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Data, one_error, run_script, write_config, write_data

import eval as eval_script
import train


class Case:
    """A tiny project on disk, to be damaged."""

    def __init__(self, folder: Path):
        self.folder, self.data, self.config = folder, write_data(folder), folder / "tiny.yaml"
        self.sections: dict = {"opt": {"epochs": 1}}
        self.argv: list[str] = []

    def set(self, **sections):
        self.sections |= sections

    def save(self):
        if not self.config.exists():
            write_config(self.config, self.data, **self.sections)

    def video(self, vid: str, **changes):
        self.data.edit(lambda doc: doc["database"][vid].update(changes))

    def segment(self, value, vid="t1"):
        self.data.edit(lambda doc: doc["database"][vid]["annotations"][0].update(segment=value))

    def features(self, vid: str, change: Callable[[np.ndarray], np.ndarray]):
        path = self.data.features / f"{vid}.npy"
        np.save(path, change(np.load(path)))


def nan(feats):
    feats[2, 1] = np.nan
    return feats


def infinite(feats):
    feats[:, 0] = np.inf
    return feats


def yaml(text):
    return lambda case: case.config.write_text(text)


def document(text):
    return lambda case: case.data.annotations.write_text(text)


def rename_subset(case):
    case.data.edit(lambda doc: [v.update(subset="other") for v in doc["database"].values() if v["subset"] == "training"])


def class_id(case):
    case.data.edit(lambda doc: doc["database"]["t1"]["annotations"].append(
        {"segment": [0, 1], "label": "class 7", "label_id": 7}))


def twice(case):
    case.data.edit(lambda doc: doc["database"]["t1"]["annotations"].append(
        {"segment": [0, 1], "label": "class 0", "label_id": 1}))


def outside(case):
    case.set(dataset={"strict": True})
    case.segment([1.0, 99.0])


def nothing_to_score(case):
    for vid in ("v0", "v1", "v2"):
        case.video(vid, annotations=[])
    case.argv += ["--eval-freq", "1"]


def option(*argv):
    return lambda case: case.argv.extend(argv)


def folder_instead(case):
    case.data.annotations.unlink()
    case.data.annotations.mkdir()


def nan_in_a_worker(case):
    case.features("t1", nan)
    case.set(loader={"num_workers": 1})


TRAINING = {
    "missing config": (option("gone.yaml"), ["gone.yaml"]),
    "unreadable config": (yaml("opt: {epochs: 3"), ["tiny.yaml", "not valid YAML"]),
    "binary config": (lambda case: case.config.write_bytes(b"\xff\xfe\x00\x01\x80"), ["tiny.yaml"]),
    "config that is a list": (yaml("- 1\n- 2\n"), ["tiny.yaml"]),
    "empty config": (yaml(""), ["tiny.yaml", "dataset.json_file"]),
    "unknown key": (yaml("opt: {learning_rat: 1}"), ["tiny.yaml", "opt.learning_rat", "learning_rate"]),
    "wrong type": (yaml("opt: {epochs: many}"), ["tiny.yaml", "opt.epochs", "'many'"]),
    "even window": (option("--set", "model.n_mha_win_size=18"), ["model.n_mha_win_size", "18", "17 or 19"]),
    "odd scale factor": (option("--set", "model.scale_factor=3", "dataset.max_seq_len=45"), ["model.scale_factor", "2 or 4"]),
    "several devices": (option("--set", "devices=[cuda:0, cuda:1]"), ["devices", "torchrun"]),
    "no such device": (option("--set", "devices=cuda:77"), ["devices", "cuda:77"]),
    "unknown preset": (option("--set", "dataset_name=thumos14"), ["dataset_name", "thumos14", "thumos"]),
    "bad override": (option("--set", "opt.epochs"), ["--set opt.epochs"]),
    "no name": (option("--output", ""), ["--output ''", "part of the name of a folder"]),
    "a path for a name": (option("--output", "../../x"), ["--output '../../x'", "without /", "output_folder"]),
    "an impossible rate": (option("--set", "dataset.default_fps=1e30"), ["tiny.yaml", "dataset.default_fps", "1e+30"]),
    "nothing to score": (nothing_to_score, ["annotations.json: subset validation has no segment to find", "another split"]),
    "missing annotations": (lambda case: case.data.annotations.unlink(), ["annotations.json", "no such annotation"]),
    "annotations are a folder": (folder_instead, ["annotations.json", "is a folder"]),
    "annotations are no JSON": (document("{'database': {}}"), ["annotations.json", "not valid JSON", "line 1"]),
    "JSON without database": (document('{"videos": {}}'), ["annotations.json", "database"]),
    "empty database": (document('{"database": {}}'), ["annotations.json", "database"]),
    "NaN segment": (lambda case: case.segment([1.0, float("nan")]), ["annotations.json", "t1", "segment"]),
    "text segment": (lambda case: case.segment(["1", "2"]), ["annotations.json", "t1", "segment"]),
    "reversed segment": (lambda case: case.segment([3.0, 2.0]), ["annotations.json", "t1", "[3, 2]", "ends before it starts"]),
    "segment outside, strict": (outside, ["annotations.json", "t1", "dataset.strict"]),
    "unknown label id": (class_id, ["annotations.json", "label_id 7", "dataset.num_classes"]),
    "one class, two ids": (twice, ["annotations.json", "label_id", "class 0"]),
    "duration of zero": (lambda case: case.video("t1", duration=0), ["annotations.json", "t1", "duration"]),
    "no fps": (lambda case: case.video("t1", fps=None), ["annotations.json", "t1", "fps", "dataset.default_fps"]),
    "empty split": (rename_subset, ["annotations.json", "'training'", "train_split"]),
    "missing feature folder": (option("--set", "dataset.feat_folder=gone"), ["gone", "feat_folder"]),
    "missing feature file": (lambda case: (case.data.features / "t1.npy").unlink(), ["t1.npy", "dataset.feat_folder", "missing"]),
    "unreadable feature file": (lambda case: (case.data.features / "t1.npy").write_bytes(b"\x93NUMPY broken"), ["t1.npy"]),
    "empty feature file": (lambda case: (case.data.features / "t1.npy").write_bytes(b""), ["t1.npy"]),
    "wrong width": (lambda case: case.features("t1", lambda f: f[:, :4]), ["t1.npy", "4 channels", "dataset.input_dim", "6"]),
    "transposed": (lambda case: case.features("t1", lambda f: f[:23].T), ["t1.npy", "transposed"]),
    "wrong rank": (lambda case: case.features("t1", lambda f: f[0]), ["t1.npy", "(6,)", "two dimensions"]),
    "text features": (lambda case: case.features("t1", lambda f: f.astype(str)), ["t1.npy", "numbers"]),
    "zero length": (lambda case: case.features("t1", lambda f: f[:0]), ["t1.npy", "no feature vectors"]),
    "too few steps": (lambda case: case.features("t0", lambda f: f[:9]), ["t0.npy", "9 feature vectors", "8.2 s", "feat_stride"]),
    "NaN features": (lambda case: case.features("t1", nan), ["t1.npy", "NaN", "row 2, channel 1"]),
    "infinite features": (lambda case: case.features("t2", infinite), ["t2.npy", "infinite"]),
    "NaN features in a worker": (nan_in_a_worker, ["t1.npy", "NaN"]),
    "unknown extension": (option("--set", "dataset.file_ext=.mat"), ["dataset.file_ext", ".mat"]),
    "batch larger than the data": (option("--set", "loader.batch_size=50"), ["loader.batch_size", "50", "6 training videos"]),
    "missing checkpoint": (option("--resume", "gone.pth.tar"), ["gone.pth.tar", "no such checkpoint"]),
    "init-from an empty folder": (lambda case: option("--init-from", str(case.folder))(case), ["holds no epoch_*.pth.tar"]),
    "init-from text": (lambda case: option("--init-from", str(case.data.annotations))(case), ["annotations.json"]),
}


def files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


# these are found when the first epoch reads the file; the run's folder then holds its configuration and empty logs
DURING = ("NaN features", "infinite features", "NaN features in a worker")


@pytest.mark.parametrize("name", TRAINING)
def test_training(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = Case(tmp_path)
    damage, fragments = TRAINING[name]
    damage(case)
    case.save()
    before = files(tmp_path)
    argv = case.argv if case.argv[:1] == ["gone.yaml"] else [str(case.config), *case.argv]
    code, out, err = run_script(capsys, train.main, "train.py", *argv)
    error = one_error(code, err)
    for fragment in fragments:
        assert fragment in error, error
    assert not any(line.startswith("warning") for line in err.splitlines()), err
    if name in DURING:
        assert not list(tmp_path.rglob("*.pth.tar*"))
    else:
        assert files(tmp_path) == before
        assert out == ""


def damaged_epoch(change):
    def damage(folder: Path):
        path = folder / "epoch_002.pth.tar"
        torch.save(change(torch.load(path, weights_only=True)), path)
    return damage


def truncate(folder: Path):
    path = folder / "epoch_002.pth.tar"
    path.write_bytes(path.read_bytes()[:5000])


class Code:
    """A pickle that would write a file."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def code_inside(folder: Path):
    torch.save({"epoch": 2, "state_dict": {"module.x": Code()}}, folder / "epoch_002.pth.tar")


def poisoned(content):
    content["state_dict_ema"]["module.cls_head.cls_head.conv.weight"][0] = torch.nan
    return content


EVALUATION = {
    "another width": (None, ["--set", "model.embd_dim=32", "model.fpn_dim=32"], ["epoch_002.pth.tar", "model.embd_dim"]),
    "more classes": (None, ["--set", "dataset.num_classes=4"], ["cls_head.cls_head.conv.weight", "dataset.num_classes"]),
    "no drop path": (None, ["--set", "train_cfg.droppath=0"], ["drop_path_attn.scale", "train_cfg.droppath"]),
    "another backbone": (None, ["--set", "model.backbone_type=conv"], ["model.backbone_type"]),
    "another neck": (None, ["--set", "model.fpn_type=fpn"], ["neck.lateral_convs", "model.fpn_type"]),
    "truncated": (truncate, [], ["epoch_002.pth.tar", "truncated"]),
    "code inside": (code_inside, [], ["epoch_002.pth.tar", "refused"]),
    "no weights": (damaged_epoch(lambda c: {"epoch": 2}), [], ["epoch_002.pth.tar", "state_dict"]),
    "no averaged weights": (damaged_epoch(lambda c: {k: v for k, v in c.items() if k != "state_dict_ema"}), [],
                            ["epoch_002.pth.tar", "state_dict_ema", "--weights raw"]),
    "NaN weights": (damaged_epoch(poisoned), [], ["epoch_002.pth.tar", "cls_head.cls_head.conv.weight", "NaN"]),
    "missing external scores": (None, ["--set", "test_cfg.ext_score_file=gone.json"], ["gone.json"]),
    "unknown split": (None, ["--set", "val_split=[test]"], ["annotations.json", "'test'", "val_split"]),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from libs.core.config import load_config
    from libs.engine.training.fit import FitOptions, fit
    tmp = tmp_path_factory.mktemp("trained")
    data = write_data(tmp)
    config = write_config(tmp / "tiny.yaml", data, opt={"epochs": 1})
    fit(load_config(config), tmp / "run", torch.device("cpu"), FitOptions())
    return config, (tmp / "run" / "epoch_002.pth.tar").read_bytes()


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation(name, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, checkpoint = trained
    damage, argv, fragments = EVALUATION[name]
    (tmp_path / "epoch_002.pth.tar").write_bytes(checkpoint)
    if damage:
        damage(tmp_path)
    before = files(tmp_path)
    code, _, err = run_script(capsys, eval_script.main, "eval.py", str(config), str(tmp_path), *argv)
    error = one_error(code, err)
    for fragment in fragments:
        assert fragment in error, error
    assert files(tmp_path) == before
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("script", ["train", "eval"])
def test_a_folder_that_cannot_be_written(script, trained, tmp_path, capsys):
    config, checkpoint = trained
    (tmp_path / "epoch_002.pth.tar").write_bytes(checkpoint)
    (tmp_path / "blocked").write_text("a file")
    if script == "train":
        argv = [str(config), "--set", f"output_folder={tmp_path / 'blocked'}"]
        result = run_script(capsys, train.main, "train.py", *argv)
    else:
        argv = [str(config), str(tmp_path), "--output", str(tmp_path / "blocked" / "here")]
        result = run_script(capsys, eval_script.main, "eval.py", *argv)
    error = one_error(*result[::2])
    assert str(tmp_path / "blocked") in error
    assert "cannot be written" in error
    assert (tmp_path / "blocked").read_text() == "a file"


def test_odd_but_legal_segments_give_one_warning(tmp_path, capsys):
    """As in the official files: past the end and of zero length; kept, counted, and training goes on."""
    case = Case(tmp_path)
    case.segment([1.0, 99.0])
    case.segment([2.0, 2.0], "t2")
    case.save()
    code, _, err = run_script(capsys, train.main, "train.py", str(case.config))
    assert code == 0
    assert len(err.splitlines()) == 1
    assert err.startswith("warning: ")
    assert "1 leave their video and 1 have zero length" in err


def test_annotations_stay_untouched(tmp_path, capsys):
    case = Case(tmp_path)
    case.save()
    text = case.data.annotations.read_text()
    assert run_script(capsys, train.main, "train.py", str(case.config))[0] == 0
    assert case.data.annotations.read_text() == text
    assert isinstance(json.loads(text), dict)
    assert isinstance(case.data, Data)


def test_evaluating_a_split_without_segments_fails_before_it_writes(trained, tmp_path, capsys):
    config, checkpoint = trained
    (tmp_path / "epoch_002.pth.tar").write_bytes(checkpoint)
    data = write_data(tmp_path / "empty")
    data.edit(lambda doc: [doc["database"][v].update(annotations=[]) for v in ("v0", "v1", "v2")])
    argv = [str(config), str(tmp_path), "--set", f"dataset.json_file={data.annotations}"]
    before = files(tmp_path)
    error = one_error(*run_script(capsys, eval_script.main, "eval.py", *argv)[::2])
    assert f"{data.annotations}: subset validation has no segment to find" in error
    assert "eval.py --saveonly" in error
    assert files(tmp_path) == before
    assert run_script(capsys, eval_script.main, "eval.py", *argv, "--saveonly")[0] == 0
    assert list(tmp_path.glob("eval/*/predictions.json"))


def no_space(_handle):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_folder_and_no_lock(tmp_path, capsys, monkeypatch):
    case = Case(tmp_path)
    case.save()
    monkeypatch.setattr("os.fsync", no_space)
    before = sorted(tmp_path.rglob("*"))
    error = one_error(*run_script(capsys, train.main, "train.py", str(case.config))[::2])
    assert "config.yaml: cannot be written (No space left on device)" in error
    assert sorted(tmp_path.rglob("*")) == before
