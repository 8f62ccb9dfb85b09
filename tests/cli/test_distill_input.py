"""Every kind of bad input to distillation: exit code 2, one `error:` line that names file and key, before anything is written."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from distill_cases import RGB_ONLY, save_teacher, student, two_stream
from helpers import merged, one_error, run_script, write_data

import train
from libs.core.config import dump_yaml, to_dict
from libs.core.errors import UserError
from libs.engine.training.fit import FitOptions, fit

THREE_STREAMS = {"rgb": [0, 3], "flow": [3, 5], "audio": [5, 6]}
FOUR_LEVELS = {"model": {"backbone_arch": [1, 1, 3], "regression_range": [[0, 4], [4, 8], [8, 16], [16, 10000]]}}
CACHE = {"dataset": {"crop_align": 4}, "distill": {"outputs": "cache"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def refused(data, tmp_path, capsys):
    """refused(teacher's sections, student's sections, *overrides) -> the one error, with nothing trained."""
    def run(its, own, *overrides, checkpoint=None, argv=()):
        path = checkpoint or tmp_path / "teacher.pth.tar"
        if checkpoint is None:
            save_teacher(two_stream(data, tmp_path, **its), path)
        config = tmp_path / "tiny.yaml"
        config.write_text(dump_yaml(student(data, tmp_path, [path], **merged({"model": RGB_ONLY}, own))))
        arguments = ["train.py", str(config), *(["--set", *overrides] if overrides else []), *argv]
        code, out, err = run_script(capsys, train.main, *arguments)
        error = one_error(code, err)
        assert "iterations per epoch" not in out
        assert not list(tmp_path.rglob("epoch_*"))
        assert not list(tmp_path.rglob("metrics.jsonl"))
        assert not list(tmp_path.rglob("*.npz"))
        return error
    return run


CASES = {
    "other number of classes": (
        {"dataset": {"num_classes": 5}}, {}, (), ["distill.teachers: teacher: dataset.num_classes", "has 5, the student 3"]),
    "other fold": ({"fold": 1}, {"fold": 2}, (), ["teacher: fold", "has 1, the student 2", "{run}"]),
    "other pyramid levels": (
        FOUR_LEVELS, {}, (), ["FPN strides", "[1, 2, 4, 8], the student [1, 2, 4]", "model.backbone_arch[2]"]),
    "other strides": (
        {"model": {"scale_factor": 4}, "dataset": {"max_seq_len": 80}}, {}, (), ["FPN strides", "[1, 4, 16]", "scale_factor"]),
    "other first level": (
        {"model": {"fpn_start_level": 1, "regression_range": [[0, 8], [8, 10000]]}}, {}, (), ["FPN strides", "[2, 4]"]),
    "other feature stride": ({"dataset": {"feat_stride": 10}}, {}, (), ["dataset.feat_stride", "has 10.0, the student 5.0"]),
    "other window": ({"dataset": {"num_frames": 16}}, {}, (), ["dataset.num_frames", "16", "10", "same feature grid"]),
    "other downsampling": ({"dataset": {"downsample_rate": 2}}, {}, (), ["dataset.downsample_rate", "has 2, the student 1"]),
    "other fps": ({"dataset": {"default_fps": 30}}, {}, (), ["dataset.default_fps", "has 30.0, the student None"]),
    "other resampling": ({"dataset": {"force_upsampling": True}}, {}, (), ["dataset.force_upsampling", "True", "False"]),
    "other channels": (
        {"dataset": {"input_dim": 8, "modalities": None}}, {}, (), ["dataset.input_dim", "has 8, the student 6"]),
    "a teacher's gate of fixed length": (
        {"model": {"temporal_gate": "published"}}, {}, (),
        ["teacher: loader.padding: shortest", "use loader.padding: max_seq_len"]),
    "a gate longer than the batches": (
        {"model": {"temporal_gate": "published"}, "dataset": {"max_seq_len": 80}}, {}, ("loader.padding=max_seq_len",),
        ["teacher: dataset.max_seq_len", "80 steps or more", "have 72"]),
    "an undeclared modality": (
        {"dataset": {"modalities": THREE_STREAMS}, "model": {"modalities": ["rgb", "audio"]}}, {}, (),
        ["'audio'", "dataset.modalities does not declare", "declare it"]),
    "a modality of another width": (
        {"dataset": {"modalities": THREE_STREAMS}, "model": {"modalities": ["rgb", "flow"]}}, {}, (),
        ["dataset.modalities.flow", "2 channels", "3 channels", "one width"]),
    "c2ms with unequal widths": (
        {}, {"model": {"embd_dim": 16, "fpn_dim": 16}, "distill": {"preset": "c2ms"}}, (),
        ["distill.preset: c2ms", "teacher_stem", "model.embd_dim", "corrected"]),
    "inputs without a hallucinator": (
        {}, {}, ("model.hallucinator=none", "model.hallucinated=[]", "distill.inputs.weight=1.0"),
        ["distill.inputs.weight", "model.hallucinator is none", "set the weight to 0"]),
    "inputs of one teacher without a hallucinator": (
        {}, {"distill": {"teachers": [{"checkpoint": "x", "terms": {"cls": 1.0, "inputs": 5.0}}]}},
        ("model.hallucinator=none", "model.hallucinated=[]"),
        ["distill.teachers: teacher: terms: inputs", "model.hallucinator is none", "take it out"]),
    "a modality at other channels of the same files": (
        {"dataset": {"modalities": {"rgb": [3, 6], "flow": [0, 3]}}, "model": {"modalities": ["rgb", "flow"]}}, {}, (),
        ["teacher: dataset.modalities.rgb", "has [3, 6], the student [0, 3]", "correct the wrong one"]),
    "inputs that the teacher does not see": (
        {"model": {"modalities": ["rgb"]}}, {}, (),
        ["distill.inputs", "sees 'flow'", "the backbone of teacher does not", "factor of inputs to 0"]),
    "the same from the cache": (
        {"model": {"modalities": ["rgb"]}}, CACHE, (), ["distill.inputs", "sees 'flow'", "factor of inputs to 0"]),
    "overlapping ranges": (
        {}, {}, ("dataset.modalities={rgb: [0, 4], flow: [3, 6]}",),
        ["dataset.modalities", "rgb: [0, 4] and flow: [3, 6] overlap"]),
    "ranges past the features": (
        {}, {}, ("dataset.modalities={rgb: [0, 3], flow: [3, 9]}",), ["dataset.modalities", "flow: [3, 9]", "6 channels"]),
    "ranges with a gap": (
        {}, {"dataset": {"modalities": {"rgb": [0, 2], "flow": [3, 6]}}}, (),
        ["dataset.modalities", "all 6 channels without gaps", "declare them"]),
    "unknown preset": ({}, {}, ("distill.preset=c2m",), ["distill.preset", "c2m", "c2ms"]),
    "stage of another preset": ({}, {}, ("distill.stage=cross_modal",), ["distill.stage", "cross_modal", "preset: c2ms"]),
    "unknown stage": (
        {}, {}, ("distill.preset=c2ms", "distill.stage=cross_model"), ["distill.stage", "cross_model", "cross_modal"]),
    "unknown switch": ({}, {}, ("distill.cls.mask_=true",), ["distill.cls.mask_", "mask"]),
    "unknown loss": ({}, {}, ("distill.offsets.loss=giou",), ["distill.offsets.loss", "giou", "mse or diou"]),
    "temperature of zero": ({}, {}, ("distill.cls.temperature=0",), ["distill.cls.temperature", "0"]),
    "negative weight": ({}, {}, ("distill.stem.weight=-1",), ["distill.stem.weight", "-1"]),
    "init_from naming no teacher": ({}, {}, ("distill.init_from=techer",), ["distill.init_from", "'techer'", "teacher"]),
    "init_from without teachers": (
        {}, {}, ("distill.teachers=[]", "distill.init_from=a"), ["distill.init_from", "no distill.teachers"]),
    "cache without crop_align": (
        {}, {}, ("distill.outputs=cache",), ["dataset.crop_align", "1", "use 4, or distill.outputs: online"]),
    "cache with crop_align of a finer level": (
        {}, {}, ("distill.outputs=cache", "dataset.crop_align=2"), ["dataset.crop_align", "2", "use 4"]),
    "cache with c2ms": ({}, merged(CACHE, {"distill": {"preset": "c2ms"}}), (), ["distill.outputs", "c2ms", "outputs: online"]),
    "cache without a folder": ({}, CACHE, ("distill.cache_folder=''",), ["distill.cache_folder: is empty", "name a folder"]),
    "cache with one unmasked term": (
        {}, merged(CACHE, {"distill": {"cls": {"mask": False}}}), (), ["distill.outputs", "cls", "mask: false"]),
    "cache with blended videos": ({}, CACHE, ("distill.mixup=0.3",), ["distill.mixup", "0.3", "cannot be cached", "mixup: 0"]),
    "one teacher in a stage of two": (
        {}, {}, ("distill.preset=c2ms", "distill.stage=multi_teacher"),
        ["distill.teachers", "stage multi_teacher has 2 teachers, the list names 1 (teacher)"]),
    "an unlabelled subset that is trained on": (
        {}, {}, ("unlabelled_split=[training]",), ["unlabelled_split", "'training' is in train_split or val_split too"]),
    "an unlabelled subset without videos": (
        {}, {}, ("unlabelled_split=[more]",), ["has no video of subset 'more'", "training (6), validation (3)"]),
    "no annotations at all": ({}, {}, ("train_cfg.labelled_share=0",), ["train_cfg.labelled_share", "use more than 0"]),
    "cache with drop path": ({}, CACHE, ("distill.teacher_droppath=true",), ["distill.teacher_droppath", "cannot be cached"]),
}


@pytest.mark.parametrize("name", list(CASES))
def test_refused(refused, name):
    its, own, overrides, fragments = CASES[name]
    error = refused(its, own, *overrides)
    for fragment in fragments:
        assert fragment in error, error
    assert "tiny.yaml" in error or "--set" in error


ENTRIES = {
    "unknown term": ({"terms": {"clss": 1.0}}, ["distill.teachers", "teacher: terms: 'clss'", "did you mean 'cls'", "pyramid"]),
    "unknown key": ({"weigths": "ema"}, ["distill.teachers", "'weigths'", "did you mean 'weights'"]),
    "unknown weights": ({"weights": "best"}, ["distill.teachers", "weights: 'best'", "ema or raw"]),
    "negative factor": ({"terms": {"cls": -1.0}}, ["distill.teachers", "terms", "-1"]),
    "no checkpoint": ({"checkpoint": ""}, ["distill.teachers", "checkpoint is empty"]),
    "a name that is in use": ({"name": "loss"}, ["distill.teachers: name: 'loss'", "cls_loss", "choose another name"]),
    "a name with a slash": ({"name": "a/b"}, ["distill.teachers", "'a/b'", "letters"]),
    "a missing configuration": ({"config": "gone.yaml"}, ["distill.teachers: teacher", "gone.yaml"]),
}


@pytest.mark.parametrize("name", list(ENTRIES))
def test_entries_of_teachers(data, tmp_path, capsys, name):
    changes, fragments = ENTRIES[name]
    document = to_dict(student(data, tmp_path, [save_teacher(two_stream(data, tmp_path), tmp_path / "teacher.pth.tar")]))
    document["distill"]["teachers"][0].update(changes)
    (tmp_path / "tiny.yaml").write_text(json.dumps(document))  # JSON is YAML
    code, _, err = run_script(capsys, train.main, "train.py", str(tmp_path / "tiny.yaml"))
    error = one_error(code, err)
    for fragment in ["tiny.yaml", *fragments]:
        assert fragment in error, error
    assert not (tmp_path / "ckpt").exists()


def test_two_teachers_of_one_name(data, tmp_path, refused):
    file = save_teacher(two_stream(data, tmp_path), tmp_path / "teacher.pth.tar")
    error = refused({}, {}, f"distill.teachers=[{{checkpoint: {file}, name: a}}, {{checkpoint: {file}, name: a}}]")
    assert "distill.teachers" in error
    assert "the names a, a are not all different; name each" in error


@pytest.mark.parametrize("own", [{}, CACHE], ids=["online", "cache"])
def test_other_label_ids(data, tmp_path, refused, own):
    document = json.loads(data.annotations.read_text())
    for video in document["database"].values():
        for item in video["annotations"]:
            item["label_id"] = (item["label_id"] + 1) % 3
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document))
    error = refused({"dataset": {"json_file": str(other)}}, own)
    assert f"distill.teachers: teacher: dataset.json_file: {other}: other classes than {data.annotations}" in error
    assert "'class 0' is 1 there and 0 here" in error


def test_no_class_name_in_common(data, tmp_path, refused):
    document = json.loads(data.annotations.read_text().replace('"class ', '"kind '))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document))
    assert "no class name in common" in refused({"dataset": {"json_file": str(other)}}, {})


def test_a_checkpoint_of_another_architecture(data, tmp_path, refused):
    """The configuration inside says embd_dim 8, the weights are 12 wide."""
    wide = {"embd_dim": 12, "fpn_dim": 12}
    path = save_teacher(two_stream(data, tmp_path, model=wide), tmp_path / "wrong.pth.tar")
    content = torch.load(path, weights_only=True)
    content["training"]["config"] = to_dict(two_stream(data, tmp_path))
    torch.save(content, path)
    error = refused({}, {}, checkpoint=path)
    assert f"distill.teachers: teacher: {path}: is for another architecture than the configuration" in error
    assert "model.embd_dim" in error


@pytest.mark.parametrize(("checkpoint", "fragment"), [
    ("gone.pth.tar", "gone.pth.tar: no such checkpoint"), ("", "checkpoint is empty"),
    ("empty", "empty: holds no epoch_*.pth.tar"), ("text", "text: not a checkpoint"),
    ("before_{run}/x", "before_run/x: no such checkpoint")])
def test_a_checkpoint_that_is_not_there(tmp_path, refused, checkpoint, fragment):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no tensors here")
    error = refused({}, {}, f"distill.teachers=[{{checkpoint: '{tmp_path / checkpoint if checkpoint else ''}'}}]")
    assert "distill.teachers" in error
    assert fragment in error


def test_a_checkpoint_without_a_configuration_or_an_average(data, tmp_path, refused):
    path = save_teacher(two_stream(data, tmp_path), tmp_path / "theirs.pth.tar")
    content = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in content.items() if k != "training"}, path)
    assert "theirs.pth.tar: holds no configuration" in refused({}, {}, checkpoint=path)
    torch.save({k: v for k, v in content.items() if k != "state_dict_ema"}, path)
    assert "theirs.pth.tar: has no averaged weights" in refused({}, {}, checkpoint=path)


def test_weights_that_are_not_finite(data, tmp_path, refused):
    path = save_teacher(two_stream(data, tmp_path), tmp_path / "bad.pth.tar")
    content = torch.load(path, weights_only=True)
    content["state_dict_ema"]["module.cls_head.cls_head.conv.bias"][0] = float("nan")
    torch.save(content, path)
    error = refused({}, {}, checkpoint=path)
    assert "distill.teachers: teacher:" in error
    assert "cls_head.cls_head.conv.bias: holds NaN" in error


def test_run_left_open_where_there_is_no_run(data, tmp_path):
    """train.py fills {run} in; a program that trains without a run's name must not look for a file of that name."""
    config = student(data, tmp_path, [Path("ckpt/teacher_{run}")])
    with pytest.raises(UserError, match=r"distill\.teachers: teacher: checkpoint: ckpt/teacher_\{run\}: .*name the checkpoint"):
        fit(config, tmp_path / "run", torch.device("cpu"), FitOptions())
    assert not (tmp_path / "run").exists()


def test_flow_that_an_online_teacher_needs(data, tmp_path, refused):
    missing = str(tmp_path / "gone")
    dataset = {"modalities": {"rgb": [0, 3], "flow": {"folder": missing, "dim": 3}}}
    error = refused({"dataset": dataset, "model": {"modalities": ["rgb", "flow"]}}, {"dataset": dataset})
    assert missing in error
    assert "dataset.modalities.flow" in error
