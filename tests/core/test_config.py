"""Layers of a configuration, errors that say where a value was written, and the way out again."""
from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path

import pytest
import yaml
from config_files import PATHS, message, small, write
from helpers import TINY, tiny_config

from libs.core.coerce import FrozenDict
from libs.core.config import config_diff, dump_text, dump_yaml, from_dict, load_config, to_dict, with_overrides
from libs.core.errors import UserError
from libs.core.schema import Config

ROOT = Path(__file__).resolve().parents[2]

# A file as people write it for the published program: braces over lines, ~, one-element lists, ints for floats and back.
PUBLISHED = """
dataset_name: thumos
train_split: ['validation']
val_split: ['test']
devices: ['cuda:0'] # default: single gpu
dataset: {
  json_file: ./data/thumos/annotations/thumos14.json,
  feat_folder: ./data/thumos/i3d_features,
  file_prefix: ~,
  file_ext: .npy,
  num_classes: 20, input_dim: 2048,
  feat_stride: 4, num_frames: 16,
  trunc_thresh: 0.5,
  crop_ratio: [0.9, 1],
  max_seq_len: 2304,
}
model: {
  fpn_type: identity,
  max_buffer_len_factor: 6.0,
  n_mha_win_size: 19,
}
opt: {
  learning_rate: 1e-4,
  epochs: 30.0,
  weight_decay: 5.0E-2,
}
loader: {
  batch_size: 2,
}
train_cfg: {
  init_loss_norm: 100,
  clip_grad_l2norm: 1,
}
test_cfg: {
  voting_thresh: .7, pre_nms_topk: 2000, max_seg_num: 200, min_score: 0.001,
}
output_folder: ./ckpt/
"""


def test_published_file_loads_unchanged(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, PUBLISHED))
    assert config.opt.learning_rate == 1e-4
    assert config.opt.weight_decay == 0.05
    assert (config.opt.epochs, type(config.opt.epochs)) == (30, int)
    assert (config.dataset.feat_stride, type(config.dataset.feat_stride)) == (4.0, float)
    assert config.dataset.crop_ratio == (0.9, 1.0)
    assert config.dataset.file_prefix is None
    assert config.devices == ("cuda:0",)
    assert config.test_cfg.voting_thresh == 0.7
    assert config.level_windows == (19,) * 6
    assert config.total_epochs == 35
    assert config.model.max_buffer_len_factor == 6.0
    assert config.train_cfg.droppath == 0.1  # not in the file: the default


def test_published_defaults() -> None:
    """The values that every published configuration counts on (SPEC items 50 and 52)."""
    c = Config()
    assert (c.init_rand_seed, c.train_cfg.init_loss_norm, c.train_cfg.droppath, c.train_cfg.dropout) == (1234567891, 2000, 0.1, 0)
    assert (c.test_cfg.min_score, c.test_cfg.max_seg_num, c.test_cfg.pre_nms_topk) == (0.01, 1000, 5000)
    assert (c.test_cfg.nms_sigma, c.test_cfg.voting_thresh, c.test_cfg.multiclass_nms) == (0.5, 0.75, True)
    assert (c.opt.learning_rate, c.opt.weight_decay, c.opt.epochs, c.opt.warmup_epochs) == (1e-3, 0, 30, 5)
    assert (c.loader.batch_size, c.loader.num_workers, c.model.n_mha_win_size, c.train_cfg.clip_grad_l2norm) == (8, 4, -1, -1)


def test_bases_merge_mappings_replace_lists_and_are_relative_to_their_file(tmp_path: Path) -> None:
    write(tmp_path, f"dataset: {{{PATHS}, input_dim: 64}}\nopt: {{epochs: 9, schedule_steps: [3, 5]}}", "shared/root.yaml")
    write(tmp_path, "_base_: root.yaml\nopt: {schedule_steps: [4]}\nmodel: {n_head: 2}", "shared/left.yaml")
    write(tmp_path, "model: {n_head: 8, embd_dim: 64}\nval_split: [test]", "right.yaml")
    top = write(tmp_path, "_base_: [../shared/left.yaml, ../right.yaml]\nmodel: {fpn_dim: 64}\nopt:\n", "runs/top.yaml")
    config = load_config(top, ["opt.warmup=false"])
    assert (config.dataset.input_dim, config.opt.epochs, config.opt.schedule_steps) == (64, 9, (4,))
    assert (config.model.n_head, config.model.embd_dim, config.model.fpn_dim) == (8, 64, 64)  # the later base wins
    assert config.val_split == ("test",)
    assert (config.total_epochs, config.source) == (9, str(top))


def test_a_base_may_be_shared_but_not_circular(tmp_path: Path) -> None:
    small(tmp_path)
    write(tmp_path, "_base_: x.yaml", "a.yaml")
    diamond = write(tmp_path, "_base_: [a.yaml, x.yaml]", "b.yaml")
    assert load_config(diamond).dataset.json_file == "ann.json"
    write(tmp_path, "_base_: d.yaml", "c.yaml")
    circle = write(tmp_path, "_base_: c.yaml", "d.yaml")
    assert "circle" in message(circle)
    assert message(circle).count("d.yaml") >= 2


def test_errors_say_where_a_value_was_written(tmp_path: Path) -> None:
    base = write(tmp_path, f"dataset: {{{PATHS}}}\nmodel: {{n_head: 3}}", "base.yaml")
    top = write(tmp_path, "_base_: base.yaml")
    assert message(top).startswith(f"{top}: model.n_head (from its base {base}): 3 heads do not divide")
    assert "(from --set model.n_head=5)" in message(top, "model.n_head=5")
    assert "(default)" in message(top, "model.n_head=4", "dataset.input_dim=[1,2]")
    assert load_config(top, ["model.n_head=4"]).model.n_head == 4
    missing = message(write(tmp_path, "_base_: gone.yaml", "y.yaml"))
    assert "y.yaml: _base_: " in missing
    assert "gone.yaml: no such configuration file" in missing


def test_unreadable_files(tmp_path: Path) -> None:
    assert "no such configuration file" in message(tmp_path / "gone.yaml")
    assert "is a folder" in message(tmp_path)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "is not a text file" in message(binary)
    assert "a configuration maps keys to values" in message(write(tmp_path, "- 1\n- 2"))
    assert "dataset.json_file" in message(write(tmp_path, ""))


@pytest.mark.parametrize(("override", "part"), [
    ("opt.epochs", "expected key=value"), ("=3", "expected key=value"), ("opt.epoch=3", "did you mean 'epochs'"),
    ("opt.epochs.x=3", "expected a whole number"), ("opt=3", "is not a section"), ("opt.epochs=[1", "not valid YAML"),
    ("opt..epochs=3", "unknown key"), ("_base_=a.yaml", "_base_ belongs")])
def test_wrong_overrides(tmp_path: Path, override: str, part: str) -> None:
    got = message(small(tmp_path), override)
    assert part in got
    assert f"--set {override}" in got


def test_splits_are_lower_cased_and_one_string_is_a_list_of_one(tmp_path: Path) -> None:
    config = load_config(small(tmp_path, "train_split: Validation\nval_split: [Test, HOLDOUT]"), ["devices=cpu"])
    assert (config.train_split, config.val_split, config.devices) == (("validation",), ("test", "holdout"), ("cpu",))


def test_result_is_immutable_unshared_and_picklable(tmp_path: Path) -> None:
    path = small(tmp_path, "dataset_name: x")
    config = load_config(path, ["dataset.modalities={rgb: [0, 4]}", "val_split=test"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.opt.epochs = 3
    for change in (lambda d: d.update(a=1), lambda d: d.pop("rgb"), lambda d: d.__setitem__("rgb", 1), lambda d: d.clear()):
        with pytest.raises(TypeError, match="immutable"):
            change(config.dataset.modalities)
    for again in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert again == config
        assert isinstance(again.dataset.modalities, FrozenDict)
        assert hash(again) == hash(config)
    values = to_dict(config)
    values["model"]["regression_range"][0][0] = 99
    values["opt"]["epochs"] = 1
    assert to_dict(config)["model"]["regression_range"][0][0] == 0
    assert load_config(path).opt.epochs == 30


def test_dump_loads_back_equal(tmp_path: Path) -> None:
    awkward = {"dataset.file_prefix": "'1e-4'", "dataset.file_ext": "'007'", "output_folder": "'- a: #b'", "dataset_name": "'no'",
               "opt.learning_rate": "3.3e-7", "dataset.json_file": "'données/1:30'", "model.n_mha_win_size": "[9,9,9,9,9,-1]",
               "dataset.modalities": "{'on': [0, 4], '5': [4, 8]}", "dataset.tiou_thresholds": "[0.1, 0.30000000000000004]"}
    config = load_config(small(tmp_path), [f"{k}={v}" for k, v in awkward.items()])
    text = dump_yaml(config)
    again = load_config(write(tmp_path, text, "again.yaml"))
    assert again == config
    assert config_diff(again, config) == {}
    assert from_dict(to_dict(config)) == config
    assert yaml.safe_load(text)["dataset"]["json_file"] == "données/1:30"  # any YAML reader gets the same text
    assert yaml.safe_load(text)["dataset"]["file_prefix"] == "1e-4"


def test_dump_text_is_the_resolved_dict_with_derived_keys(tmp_path: Path) -> None:
    overrides = ["dataset.modalities={rgb: [0, 100]}", "model.modalities=rgb", "dataset.num_classes=7", "dataset.max_seq_len=64"]
    values = eval(dump_text(load_config(small(tmp_path), overrides)), {"__builtins__": {}})
    assert (values["model"]["input_dim"], values["model"]["num_classes"], values["model"]["max_seq_len"]) == (100, 7, 64)
    assert values["opt"]["epochs"] == 30
    assert "source" not in values


def test_config_diff_names_what_changed(tmp_path: Path) -> None:
    a = load_config(small(tmp_path))
    b = load_config(small(tmp_path), ["opt.epochs=3", "val_split=test", "dataset.input_dim=[2304]", "model.embd_dim=[512]"])
    assert config_diff(a, b) == {"val_split": (("validation",), ("test",)), "dataset.input_dim": (2304, (2304,)),
                                 "model.embd_dim": (512, (512,)), "opt.epochs": (30, 3)}


def test_from_dict_checks_unless_told_not_to() -> None:
    with pytest.raises(UserError, match=r"^ckpt\.pth: dataset\.json_file \(default\): is not set"):
        from_dict({"opt": {"epochs": 2}}, "ckpt.pth")
    assert from_dict({"opt": {"epochs": 2}}, check=False).opt.epochs == 2
    with pytest.raises(UserError, match="unknown key"):
        from_dict({"opt": {"epoch": 2}}, check=False)
    with pytest.raises(UserError, match="not a configuration"):
        from_dict(["opt"])  # type: ignore[arg-type]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_shipped_configuration_loads(path: Path) -> None:
    piece = path.parent.name == "distill"  # of other files, without a dataset: what it says is checked all the same
    assert load_config(path, ["fold=1"] if "salads" in str(path.relative_to(ROOT)) else [], check=not piece).source == str(path)


def test_with_overrides_does_what_set_does(tmp_path):
    overrides = ["opt.epochs=7", "model.n_mha_win_size=[5,5,-1]", "dataset.modalities={rgb: [0, 2], flow: [2, 6]}"]
    base = tiny_config("x.yaml")
    (tmp_path / "x.yaml").write_text(dump_yaml(base))
    changed = with_overrides(base, overrides)
    assert changed == load_config(tmp_path / "x.yaml", overrides)
    assert set(config_diff(base, changed)) == {"opt.epochs", "model.n_mha_win_size", "dataset.modalities"}
    assert (changed.source, base.opt.epochs) == ("x.yaml", TINY["opt"]["epochs"])
    assert with_overrides(base, []) == base


@pytest.mark.parametrize(("override", "told"), [("opt.epoch=1", "'epochs'"), ("opt.epochs=-1", "-1"),
                                                ("opt.epochs", "key=value"), ("model.n_mha_win_size=4", "3 or 5")])
def test_with_overrides_refuses_what_set_refuses(override, told):
    with pytest.raises(UserError, match=r"x\.yaml|--set") as error:
        with_overrides(tiny_config("x.yaml"), [override])
    assert told in str(error.value)


FOLDS = """
output_folder: ./ckpt/fold{fold}
dataset: {json_file: "./splits/split{fold}.json", feat_folder: [a, "b{fold}"], input_dim: 4, num_classes: 2,
          modalities: {rgb: [0, 4], audio: {folder: "./audio{fold}", dim: 3}}}
model: {modalities: [rgb]}
distill: {teachers: [{checkpoint: "./ckpt/teacher_fold{fold}"}]}
"""


@pytest.fixture
def folds(tmp_path):
    (tmp_path / "folds.yaml").write_text(FOLDS)
    return tmp_path / "folds.yaml"


def test_a_fold_replaces_its_placeholder_everywhere(folds):
    config = load_config(folds, ["fold=3"])
    assert (config.fold, config.output_folder) == (3, "./ckpt/fold3")
    assert (config.dataset.json_file, config.dataset.feat_folder) == ("./splits/split3.json", ("a", "b3"))
    assert config.dataset.modalities["audio"].folder == "./audio3"
    assert config.distill.teachers[0].checkpoint == "./ckpt/teacher_fold3"
    (folds.parent / "own.yaml").write_text("_base_: folds.yaml\nfold: 3")
    assert load_config(folds.parent / "own.yaml") == config
    assert load_config(folds.parent / "own.yaml", ["fold=4"]).dataset.json_file == "./splits/split4.json"
    (folds.parent / "resolved.yaml").write_text(dump_yaml(config))  # as a run's folder holds it
    assert load_config(folds.parent / "resolved.yaml") == config == from_dict(to_dict(config))


def test_a_placeholder_without_a_fold(folds):
    for overrides in ([], ["fold=null"]):
        with pytest.raises(UserError, match=r"folds\.yaml: output_folder: './ckpt/fold\{fold\}': .* --set fold=1 .* --folds 1 2"):
            load_config(folds, overrides)
    assert load_config(folds, check=False).dataset.json_file == "./splits/split{fold}.json"
    with pytest.raises(UserError, match=r"fold \(from --set fold=a\)"):
        load_config(folds, ["fold=a"])


def test_a_fold_that_would_change_nothing(folds, tmp_path):
    resolved = load_config(folds, ["fold=3"])
    for load in (lambda: with_overrides(resolved, ["fold=4"]), lambda: load_config(small(tmp_path), ["fold=1"])):
        with pytest.raises(UserError, match=r"fold \(from --set fold=.\): changes nothing, since no text .* holds \{fold\}"):
            load()


def test_stored_keys_that_are_gone_are_left_out_where_they_did_nothing():
    stored = to_dict(load_config("configs/hapt.yaml", check=False))
    teacher = {"name": "", "checkpoint": "a", "branch": "fused"}
    old = {**stored, "model": {**stored["model"], "motion_branch": False},
           "distill": {**stored["distill"], "relations": {"weight": None, "mask": None}, "teachers": [teacher]}}
    found = from_dict(old, check=False)
    assert to_dict(found)["model"] == stored["model"]
    assert [entry.checkpoint for entry in found.distill.teachers] == ["a"]
    assert old["model"]["motion_branch"] is False
    for key, value in (("model", {"motion_branch": True}), ("distill", {"relations": {"weight": 1.0, "mask": None}})):
        with pytest.raises(UserError, match=rf"{key}\.(motion_branch|relations): unknown key"):
            from_dict({**stored, key: {**stored[key], **value}}, "old.pth.tar")
