"""Configuration: layers, types, errors that name file, key, value and remedy, and the way out again."""
from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path

import pytest
import yaml

from libs.core import config_docs
from libs.core.checks import check_trainable, max_div_factor
from libs.core.coerce import FrozenDict, field_types, field_value
from libs.core.config import (
    config_diff,
    dump_text,
    dump_yaml,
    from_dict,
    load_config,
    to_dict,
    with_overrides,
)
from libs.core.devices import resolve_device
from libs.core.errors import UserError
from libs.core.schema import Config

ROOT = Path(__file__).resolve().parents[2]
PATHS = "json_file: ann.json, feat_folder: feats"

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


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def small(folder: Path, text: str = "") -> Path:
    return write(folder, f"dataset: {{{PATHS}}}\n{text}")


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


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


def test_defaults_are_of_their_declared_type_and_inside_their_bounds() -> None:
    def walk(value: object) -> None:
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            if dataclasses.is_dataclass(inner):
                walk(inner)
            elif field.name in field_types(type(value)):
                again = field_value(field, field_types(type(value))[field.name], inner)
                assert repr(again) == repr(inner), field.name

    walk(Config())


def test_published_defaults() -> None:
    """The values that every published configuration counts on (SPEC items 50 and 52)."""
    c = Config()
    assert (c.init_rand_seed, c.train_cfg.init_loss_norm, c.train_cfg.droppath, c.train_cfg.dropout) == (1234567891, 2000, 0.1, 0)
    assert (c.test_cfg.min_score, c.test_cfg.max_seg_num, c.test_cfg.pre_nms_topk) == (0.01, 1000, 5000)
    assert (c.test_cfg.nms_sigma, c.test_cfg.voting_thresh, c.test_cfg.multiclass_nms) == (0.5, 0.75, True)
    assert (c.opt.learning_rate, c.opt.weight_decay, c.opt.epochs, c.opt.warmup_epochs) == (1e-3, 0, 30, 5)
    assert (c.loader.batch_size, c.loader.num_workers, c.model.n_mha_win_size, c.train_cfg.clip_grad_l2norm) == (8, 4, -1, -1)


@pytest.mark.parametrize(("text", "value"), [
    ("1e-4", 1e-4), ("1E3", 1000.0), ("1.e-4", 1e-4), (".5", 0.5), ("-2e+1", -20.0), ("1_000", 1000),
    ("1_000.5", 1000.5), ("007.5", 7.5), ("0x10", 16)])
def test_numbers_read_as_numbers(tmp_path: Path, text: str, value: float) -> None:
    assert load_config(small(tmp_path), [f"train_cfg.loss_weight={text}"]).train_cfg.loss_weight == value


@pytest.mark.parametrize("text", ["1:30", "007", "2024-01-01", "v_", "1e", "e5"])
def test_texts_that_look_like_numbers_stay_texts(tmp_path: Path, text: str) -> None:
    assert load_config(small(tmp_path), [f"dataset.file_prefix={text}"]).dataset.file_prefix == text


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


@pytest.mark.parametrize(("text", "parts"), [
    ("opt: {learnin_rate: 1}", ["opt.learnin_rate", "did you mean 'learning_rate'"]),
    ("learning_rate: 1", ["unknown key", "did you mean 'opt.learning_rate'"]),
    ("opt.epochs: 3", ["write it as a section, opt: {epochs: ...}"]),
    ("modle: {n_head: 4}", ["did you mean 'model'"]),
    ("model: 4", ["model: 4 is not a section"]),
    ("opt: {epochs: true}", ["opt.epochs: true: expected a whole number"]),
    ("opt: {epochs: 2.5}", ["opt.epochs: 2.5: expected a whole number"]),
    ("opt: {epochs: -1}", ["opt.epochs", "use at least 0"]),
    ("opt: {epochs: ~}", ["opt.epochs: null: expected a whole number"]),
    ("opt: {learning_rate: '1e-4'}", ["remove the quotes: 1e-4"]),
    ("opt: {learning_rate: .nan}", ["expected a finite number"]),
    ("opt: {learning_rate: 1e999}", ["expected a finite number"]),
    ("opt: {learning_rate: 0}", ["use more than 0"]),
    ("opt: {warmup: 1}", ["opt.warmup: 1: expected true or false"]),
    ("opt: {type: Adam}", ["must be AdamW or SGD"]),
    ("opt: {schedule_steps: [1, x]}", ["in 'x': expected a whole number"]),
    ("model: {backbone_arch: [2, 2]}", ["a list of 3 whole numbers, got 2"]),
    ("model: {regression_range: [[0, 4], [4]]}", ["in [4]", "a list of 2 numbers"]),
    ("dataset_name: 5", ["dataset_name: 5: expected text; put it in quotes"]),
    ("devices: [cuda:0, 1]", ["in 1: expected text; put it in quotes"]),
    ("_base_: 3", ["_base_: 3 is not a path"]),
    ("train_cfg: {_base_: a.yaml}", ["_base_ belongs at the top"]),
    ("1: 2", ["unknown key"]),
])
def test_wrong_keys_and_types(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = small(tmp_path, text)
    got = message(path)
    assert got.startswith(f"{path}: ")
    for part in parts:
        assert part in got


@pytest.mark.parametrize(("text", "part"), [
    ("opt: {epochs: 3\n", "line"),
    ("opt:\n\tepochs: 3", "line 3 column 1"),
    ("opt: {epochs: 3, epochs: 4}", "the key 'epochs' is set twice, first in line 2"),
    ("model: {}\nmodel: {}", "line 3 column 1"),
    ("opt: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
    ("opt: {epochs: !!int x}", "not valid YAML"),
    ("a: &a [*a]", "an alias inside what it names"),
    ("opt: {epochs: &a [*a]}", "an alias inside what it names"),
    ("opt: *nothing", "not valid YAML"),
    ("--- 1\n--- 2", "not valid YAML"),
    ("opt: " + "[" * 5000, "not valid YAML"),
])
def test_yaml_mistakes(tmp_path: Path, text: str, part: str) -> None:
    got = message(small(tmp_path, text))
    assert part in got
    assert "x.yaml" in got


def test_yaml_merge_keys_may_override(tmp_path: Path) -> None:
    text = f"dataset: &d {{{PATHS}, input_dim: 8}}\nmodel: {{<<: {{n_head: 2}}, n_head: 8}}"
    assert load_config(write(tmp_path, text)).model.n_head == 8


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


@pytest.mark.parametrize(("overrides", "parts"), [
    (["dataset.json_file="], ["dataset.json_file", "expected text"]),
    (["dataset.json_file=''"], ["dataset.json_file", "is not set"]),
    (["dataset.feat_folder=[]"], ["dataset.feat_folder", "is not set"]),
    (["output_folder=''"], ["output_folder", "is empty"]),
    (["val_split=[]"], ["val_split", "names no subset"]),
    (["devices=[]"], ["devices", "is empty"]),
    (["devices=gpu"], ["'gpu' is not a device", "cuda:N"]),
    (["devices=[cuda:0,cpu]"], ["'cpu' in a list of several", "one GPU per process"]),
    (["devices=[cuda:1,cuda:01]"], ["names a GPU twice"]),
    (["opt.lr_scaling=sqrt"], ["opt.lr_reference_batch", "lr_scaling is sqrt", "e.g. 8"]),
    (["model.n_mha_win_size=18"], ["18 is even", "use 17 or 19"]),
    (["model.n_mha_win_size=2"], ["use 1 or 3"]),
    (["model.n_mha_win_size=[19,19,19,19,19]"], ["has 5 windows", "6 levels"]),
    (["model.n_mha_win_size=[19,19,19,19,19,8]"], ["use 7 or 9"]),
    (["dataset.max_seq_len=2300"], ["2300 is not a multiple", "stride 32", "2272 or 2304"]),
    (["dataset.max_seq_len=20"], ["use 32"]),
    (["model.backbone_arch=[2,2,6]"], ["model.regression_range", "has 6 ranges", "7 levels"]),
    (["model.fpn_start_level=1"], ["has 6 ranges", "5 levels"]),
    (["model.fpn_start_level=6"], ["leaves no level"]),
    (["model.regression_range=[[0,4],[8,4],[1,2],[1,2],[1,2],[1,2]]"], ["[8, 4] is empty"]),
    (["model.n_head=5"], ["5 heads do not divide the width 512", "use 4"]),
    (["model.fpn_dim=256"], ["256 differs from the backbone's width 512", "fpn_dim: 512", "fpn_type: fpn"]),
    (["model.embd_dim=[256,256]"], ["[256, 256] does not fit", "2304"]),
    (["dataset.input_dim=[1024,1280]"], ["512 does not fit"]),
    (["dataset.input_dim=[1024,1280]", "model.embd_dim=[256,128,128]"], ["a list of the same length"]),
    (["model.backbone_arch=[0,2,5]"], ["0 embedding convs"]),
    (["model.embd_kernel_size=4"], ["model.embd_kernel_size", "use 3 or 5"]),
    (["model.head_kernel_size=2"], ["model.head_kernel_size", "use 1 or 3"]),
    (["model.use_rel_pe=true"], ["model.use_rel_pe", "every window"]),
    (["dataset.crop_ratio=[1.0,0.9]"], ["write [0.9, 1.0]"]),
    (["dataset.tiou_thresholds=[0.5,0.3]"], ["strictly ascending"]),
    (["train_cfg.head_empty_cls=[3,97]"], ["97 is not a class", "0 to 96"]),
    (["opt.schedule_type=multistep"], ["opt.schedule_steps", "strictly ascending"]),
    (["opt.epochs=0", "opt.warmup=false"], ["nothing would be trained"]),
])
def test_impossible_combinations(tmp_path: Path, overrides: list[str], parts: list[str]) -> None:
    got = message(small(tmp_path), *overrides)
    for part in parts:
        assert part in got, got


@pytest.mark.parametrize("overrides", [
    ["dataset.max_seq_len=2272", "model.n_mha_win_size=19"],  # not a multiple of 576: no need of ours
    ["model.backbone_type=conv", "model.n_head=7", "model.use_rel_pe=true"],  # the conv backbone has no attention
    ["model.use_rel_pe=true", "model.n_mha_win_size=[7,7,7,7,7,-1]"],
    ["model.fpn_type=fpn", "model.fpn_dim=64"],
    ["dataset.input_dim=[1024,1280]", "model.embd_dim=[256,256]"],
    ["dataset.crop_ratio=[0.5,0.5]"],
    ["opt.epochs=0"],  # warm-up alone
    ["model.backbone_arch=[0,2,5]", "dataset.input_dim=512"],
    ["devices=cuda"], ["devices=cuda:11"],
    ["model.fpn_start_level=2", "model.regression_range=[[0,4],[2,8],[4,16],[8,10000]]"],
])
def test_unusual_but_possible_combinations(tmp_path: Path, overrides: list[str]) -> None:
    assert isinstance(load_config(small(tmp_path), overrides), Config)


@pytest.mark.parametrize("weight", ["0", "-1"])
def test_accumulation_with_the_automatic_loss_weight_is_refused_for_training_alone(tmp_path: Path, weight: str) -> None:
    path, both = small(tmp_path), [f"train_cfg.loss_weight={weight}", "opt.accumulation_steps=2"]
    for part in (str(path), "opt.accumulation_steps (from --set opt.accumulation_steps=2): 2", f"train_cfg.loss_weight: {weight}",
                 "a positive number", "opt.accumulation_steps: 1"):
        assert part in message(path, *both)
    trained_before = with_overrides(load_config(path, both[:1]), both[1:])  # as of a checkpoint that predicts
    assert from_dict(to_dict(trained_before)) == trained_before
    with pytest.raises(UserError, match=r"opt\.accumulation_steps"):
        check_trainable(trained_before)
    assert load_config(path, ["opt.accumulation_steps=2"]).opt.accumulation_steps == 2


def test_splits_are_lower_cased_and_one_string_is_a_list_of_one(tmp_path: Path) -> None:
    config = load_config(small(tmp_path, "train_split: Validation\nval_split: [Test, HOLDOUT]"), ["devices=cpu"])
    assert (config.train_split, config.val_split, config.devices) == (("validation",), ("test", "holdout"), ("cpu",))


def test_max_div_factor_is_the_least_common_multiple(tmp_path: Path) -> None:
    def factor(*overrides: str) -> int:
        return max_div_factor(load_config(small(tmp_path), overrides))

    assert factor("model.n_mha_win_size=19") == 576  # thumos, as published
    assert factor("model.n_mha_win_size=9") == 256  # epic
    assert factor("model.n_mha_win_size=[7,7,7,7,7,-1]") == 96  # anet
    assert factor("model.n_mha_win_size=[11,11,11,11,-1,-1]") == 160  # the maximum would be 80
    assert factor() == 32


def test_result_is_immutable_unshared_and_picklable(tmp_path: Path) -> None:
    path = small(tmp_path, "dataset_name: x")
    config = load_config(path, ["dataset.modalities={rgb: [0, 4]}", "val_split=test"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.opt.epochs = 3
    for change in (lambda d: d.update(a=1), lambda d: d.pop("rgb"), lambda d: d.__setitem__("rgb", 1), lambda d: d.clear()):
        with pytest.raises(TypeError, match="cannot be changed"):
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


def test_resolve_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    import torch

    def resolve(device: str, count: int) -> str:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        return resolve_device(load_config(small(tmp_path), [f"devices={device}"]))

    assert [resolve(d, 2) for d in ("cpu", "auto", "cuda", "cuda:1")] == ["cpu", "cuda:0", "cuda:0", "cuda:1"]
    assert capsys.readouterr().err == ""
    assert resolve("auto", 0) == "cpu"
    assert capsys.readouterr().err == "devices: auto: no CUDA device here, running on the CPU\n"
    with pytest.raises(UserError, match=r"no CUDA device is available here; use --set devices=cpu$"):
        resolve("cuda", 0)
    with pytest.raises(UserError, match=r"this machine has 2 \(cuda:0 to cuda:1\)"):
        resolve("cuda:2", 2)


@pytest.mark.parametrize(("devices", "gpus", "expected"), [
    ("cuda", 4, "cuda:1"), ("cuda:0", 4, "cuda:1"), ("auto", 3, "cuda:1"), ("auto", 0, "cpu"), ("cpu", 4, "cpu"),
    ("[cuda:0,cuda:3,cuda:2]", 4, "cuda:3"),
    ("cuda", 2, r"started 3 processes on this machine, which has 2 GPUs; use --nproc_per_node=2, or --set devices=cpu"),
    ("cuda", 0, r"'cuda', but no CUDA device is available here"),
    ("cuda:1", 4, r"'cuda:1' is one device, but torchrun has started 3 processes on this machine; use devices: cuda"),
    ("[cuda:0,cuda:1]", 4, r"names 2 devices, but on this machine runs 3 processes.*--nproc_per_node=2"),
    ("[cuda:0,cuda:5,cuda:2]", 4, r"'cuda:5', but this machine has 4")])
def test_device_of_one_of_three_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: str, gpus: int,
                                          expected: str) -> None:
    import torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = load_config(small(tmp_path), [f"devices={devices}"])
    if expected == "cpu" or expected.startswith("cuda:"):
        assert resolve_device(config, 1, 3) == expected
        return
    with pytest.raises(UserError, match=expected):
        resolve_device(config, 1, 3)


def test_documentation_is_current() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == config_docs.markdown(page), "run: python -m libs.core.config_docs"
    schema = (ROOT / "docs" / "config.schema.json").read_text(encoding="utf-8")
    assert schema == config_docs.json_schema(), "run: python -m libs.core.config_docs"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert load_config(path).source == str(path)
