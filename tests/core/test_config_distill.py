"""Configuration of modalities and distillation: records inside lists and mappings, their errors, relations, the way out again."""
from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest
import yaml

from libs.core.coerce import FrozenDict
from libs.core.config import config_diff, dump_yaml, from_dict, load_config, to_dict
from libs.core.errors import UserError
from libs.core.relations.checks import check_relations
from libs.core.relations.distillation import teacher_names
from libs.core.schema import Config, FolderModality, TeacherConfig
from libs.engine.distill.teachers import with_run_name

BASE = """
dataset:
  json_file: ann.json
  feat_folder: feats
  input_dim: 8
  modalities: {rgb: [0, 4], flow: [4, 8]}
model: {modalities: [rgb], hallucinator: separable, hallucinated: [flow]}
distill:
  teachers:
    - {checkpoint: "ckpt/teacher_{run}"}
"""
AUDIO = "dataset.modalities.audio={folder: ./vggish, dim: 128, resample: linear}"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(BASE, encoding="utf-8")
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_a_modality_is_a_channel_range_or_a_folder(base: Path) -> None:
    config = load_config(base, [AUDIO, "model.modalities=[audio, rgb]"])
    streams = config.dataset.modalities
    assert streams["rgb"] == (0, 4)
    assert streams["audio"] == FolderModality(folder="./vggish", dim=128, file_prefix=None, file_ext=".npy", resample="linear")
    assert [config.modality_dim(name) for name in ("rgb", "flow", "audio")] == [4, 4, 128]
    assert (config.model_input_dim, config.backbone_input_dim) == (132, 136)
    assert config.dataset.input_dim == 8  # of the files in feat_folder alone


def test_folders_alone_need_no_feat_folder_but_a_choice(base: Path) -> None:
    folders = "dataset.modalities={rgb: {folder: a, dim: 4}, flow: {folder: b, dim: 6}}"
    config = load_config(base, [folders, "dataset.feat_folder=''"])
    assert (config.model_input_dim, config.backbone_input_dim) == (4, 10)
    reads_all = ["model.modalities=null", "model.hallucinator=none", "model.hallucinated=[]"]
    got = message(base, folders, *reads_all)
    assert "model.modalities" in got
    assert "every modality has a folder of its own; name those that the model reads, of rgb, flow" in got
    assert "dataset.feat_folder" in message(base, "dataset.feat_folder=''")  # ranges are channels of feat_folder's files


def test_a_teacher_is_a_record_with_defaults(base: Path) -> None:
    first, second = load_config(base, [
        "distill.teachers=[{checkpoint: a}, {name: b, checkpoint: c, config: d.yaml, weights: raw, terms: {cls: 1, stem: 0.5}}]"
    ]).distill.teachers
    assert first == TeacherConfig(name="", checkpoint="a", config=None, weights="ema", terms=None)
    assert second == TeacherConfig(name="b", checkpoint="c", config="d.yaml", weights="raw", terms={"cls": 1.0, "stem": 0.5})
    assert isinstance(second.terms, FrozenDict)
    assert type(second.terms["cls"]) is float


@pytest.mark.parametrize(("entries", "names"), [
    ("[{checkpoint: a}]", ["teacher"]), ("[{checkpoint: a}, {checkpoint: b}]", ["teacher1", "teacher2"]),
    ("[{checkpoint: a}, {name: x, checkpoint: b}]", ["teacher1", "x"]), ("[{name: x, checkpoint: a}]", ["x"])])
def test_names_of_teachers(base: Path, entries: str, names: list[str]) -> None:
    assert teacher_names(load_config(base, [f"distill.teachers={entries}"]).distill) == names


def test_run_stands_for_the_name_of_the_run(base: Path) -> None:
    config = load_config(base, ["distill.teachers=[{checkpoint: 'ckpt/{run}/teacher_{run}'}, {checkpoint: b}]"])
    named = with_run_name(config, "seed7")
    assert [t.checkpoint for t in named.distill.teachers] == ["ckpt/seed7/teacher_seed7", "b"]
    assert list(config_diff(config, named)) == ["distill.teachers"]
    assert config.distill.teachers[0].checkpoint == "ckpt/{run}/teacher_{run}"  # the first one is left as it was


@pytest.mark.parametrize(("override", "parts"), [
    ("dataset.modalities.audio={folder: a}", ["dataset.modalities", "dim is missing"]),
    ("dataset.modalities.audio={dim: 4}", ["folder is missing"]),
    ("dataset.modalities.audio={folder: a, dim: 0}", ["dim: 0", "use more than 0"]),
    ("dataset.modalities.audio={folder: a, dim: 4, resampel: linear}", ["'resampel' is not one of them", "mean 'resample'"]),
    ("dataset.modalities.audio={folder: a, dim: 4, resample: nearest}", ["resample: 'nearest'", "must be none or linear"]),
    ("dataset.modalities.audio={folder: 4, dim: 4}", ["folder: ", "expected", "text; put it in quotes"]),
    ("dataset.modalities.audio={folder: a, dim: '4'}", ["dim: ", "remove the quotes: 4"]),
    ("dataset.modalities.audio=[1, 2, 3]", ["dataset.modalities", "a list of 2 whole numbers"]),
    ("dataset.modalities.audio=vggish", ["dataset.modalities", "folder, dim"]),
    ("dataset.modalities.audio=[-1, 3]", ["-1 is too small", "use at least 0"]),
    ("distill.teachers={checkpoint: a}", ["distill.teachers", "a list of mappings with name, checkpoint"]),
    ("distill.teachers=[a.pth.tar]", ["distill.teachers", "in 'a.pth.tar': expected a mapping"]),
    ("distill.teachers=[{name: a}]", ["checkpoint is missing"]),
    ("distill.teachers=[{checkpoint: a, weigths: raw}]", ["'weigths' is not one of them", "mean 'weights'"]),
    ("distill.teachers=[{checkpoint: a, weights: best}]", ["weights: 'best'", "must be ema or raw"]),
    ("distill.teachers=[{checkpoint: a, terms: {cls: -1}}]", ["terms: ", "-1.0 is too small"]),
    ("distill.teachers=[{checkpoint: a, terms: {cls: '1'}}]", ["terms: ", "cls: ", "remove the quotes: 1"]),
    ("distill.teachers=[{checkpoint: a, terms: [cls]}]", ["terms: ", "mapping of names to numbers"]),
    ("distill.cls.temprature=2", ["distill.cls.temprature", "mean 'temperature'"]),
    ("distill.cls=2", ["distill.cls", "is not a section"]),
    ("distill.cls.focus=-1", ["distill.cls.focus", "use at least 0"]),
    ("distill.cls.focsu=1", ["distill.cls.focsu", "mean 'focus'"]),
    ("distill.mixup=0.6", ["distill.mixup", "use at most 0.5"]),
    ("distill.mixup=[0, 1]", ["distill.mixup", "expected a number"]),
    ("train_cfg.labelled_share=1.5", ["train_cfg.labelled_share", "use at most 1"]),
    ("train_cfg.labeled_share=0.5", ["train_cfg.labeled_share", "mean 'labelled_share'"]),
    ("unlabelled_split=3", ["unlabelled_split", "expected a list of texts"]),
    ("distill.cls.temperature=0", ["distill.cls.temperature", "use more than 0"]),
    ("distill.cls.loss=kl", ["distill.cls.loss", "must be softmax_kl or sigmoid_kl"]),
    ("distill.offsets.points=positive", ["distill.offsets.points", "must be all or confident"]),
    ("distill.stem.temperature=2", ["distill.stem.temperature", "unknown key"]),
    ("distill.preset=corected", ["distill.preset", "must be corrected or c2ms"]),
    ("distill.outputs=offline", ["distill.outputs", "must be online or cache"]),
])
def test_wrong_keys_and_types_inside_records(base: Path, override: str, parts: list[str]) -> None:
    got = message(base, override)
    assert got.startswith(f"{base}: ")
    for part in [*parts, f"--set {override.split('=')[0].removesuffix('.audio')}"]:
        assert part in got, got


@pytest.mark.parametrize(("overrides", "parts"), [
    (["dataset.modalities={rgb: [0, 5], flow: [4, 8]}"], ["rgb: [0, 5] and flow: [4, 8] overlap"]),
    (["dataset.modalities={rgb: [0, 8], flow: [2, 4]}"], ["rgb: [0, 8] and flow: [2, 4] overlap"]),
    (["dataset.modalities={rgb: [0, 4], flow: [0, 4]}"], ["overlap"]),
    (["dataset.modalities={rgb: [0, 4], flow: [4, 9]}"], ["flow: [4, 9]", "8 channels"]),
    (["dataset.modalities={rgb: [4, 0], flow: [4, 8]}"], ["rgb: [4, 0] is not a range"]),
    (["dataset.modalities={rgb: [4, 4], flow: [4, 8]}"], ["rgb: [4, 4] is not a range"]),
    (["dataset.modalities=null"], ["model.modalities", "dataset.modalities declares no channel ranges"]),
    (["model.modalities=[rbg]"], ["'rbg' is not declared in dataset.modalities", "mean 'rgb'"]),
    (["model.modalities=[rgb, rgb]"], ["model.modalities", "each once"]),
    (["model.modalities=[]"], ["model.modalities", "one or more of rgb, flow"]),
    (["model.hallucinated=[]"], ["model.hallucinated", "[] does not fit hallucinator: separable"]),
    (["model.hallucinator=none"], ["model.hallucinated", "['flow'] does not fit hallucinator: none"]),
    (["model.modalities=null"], ["model.modalities", "must name the modalities that it reads"]),
    (["model.hallucinated=[flwo]"], ["'flwo' is not declared", "mean 'flow'"]),
    (["model.hallucinated=[rgb]"], ["model.hallucinated", "'rgb' is read from files too"]),
    (["model.hallucinated=[flow, flow]"], ["names a modality twice"]),
    (["model.fusion=gated", "model.hallucinator=none", "model.hallucinated=[]"], ["model.fusion", "at least two streams"]),
    (["model.fusion=gated", "model.hallucinator=none", "model.hallucinated=[]", "model.modalities=null"],
     ["at least two streams"]),
    (["model.temporal_gate=post_norm", "model.fpn_type=fpn"], ["model.temporal_gate", "post_norm belongs to fpn_type: identity"]),
    (["model.temporal_gate=published", "model.fpn_type=fpn"], ["published belongs to fpn_type: identity"]),
    (["model.backbone_type=convnext", "model.block_kernel_size=8"], ["model.block_kernel_size", "use 7 or 9"]),
    (["distill.stage=cross_modal"], ["distill.stage", "remove it, or set distill.preset: c2ms"]),
    (["distill.teachers=[]", "distill.init_from=teacher"], ["distill.init_from", "no distill.teachers", "train.py --init-from"]),
    (["distill.teachers=[{name: a, checkpoint: b}, {name: a, checkpoint: c}]"], ["the names a, a are not all different"]),
    (["distill.teachers=[{name: teacher2, checkpoint: b}, {checkpoint: c}]"], ["teacher2, teacher2 are not all different"]),
    (["distill.teachers=[{name: 'a b', checkpoint: c}]"], ["'a b'", "letters, digits"]),
    (["distill.teachers=[{checkpoint: ''}]"], ["teacher: checkpoint is empty"]),
    (["distill.teachers=[{name: m, checkpoint: c, terms: {stme: 1}}]"], ["m: terms: 'stme' is not a term", "mean 'stem'"]),
    (["distill.init_from=modal"], ["distill.init_from", "'modal' is not the name of a teacher; use teacher"]),
    (["model.hallucinator=none", "model.hallucinated=[]", "distill.inputs.weight=2"],
     ["distill.inputs.weight", "model.hallucinator is none"]),
    (["unlabelled_split=[more, Training]"], ["unlabelled_split", "'training' is in train_split or val_split too"]),
    (["unlabelled_split=validation"], ["unlabelled_split", "'validation' is in train_split or val_split too"]),
    (["train_cfg.labelled_share=0"], ["train_cfg.labelled_share", "use more than 0"]),
    (["distill.preset=c2ms", "distill.stage=multi_teacher"], ["stage multi_teacher has 2 teachers", "names 1 (teacher)"]),
    (["distill.preset=c2ms", "distill.stage=cross_modal", "distill.teachers=[{checkpoint: a}, {checkpoint: b}]"],
     ["stage cross_modal has 1 teacher,", "names 2 (teacher1, teacher2)"]),
    (["distill.outputs=cache", "dataset.crop_align=32", "distill.mixup=0.3"], ["distill.mixup", "cannot be cached", "mixup: 0"]),
    (["distill.outputs=cache", "dataset.crop_align=32", "train_cfg.swap_actions=0.5"],
     ["train_cfg.swap_actions", "0.5", "cannot be cached", "swap_actions: 0"]),
    (["train_cfg.swap_actions=1.5"], ["train_cfg.swap_actions", "use at most 1"]),
    (["distill.mixup=0.3", "loader.batch_size=1"], ["distill.mixup", "batch_size is 1", "at least 2"]),
    (["distill.teachers=[{checkpoint: 'a{part}'}]"], ["teacher: checkpoint: a{part}", "belong together", "cross_fit: N"]),
    (["distill.teachers=[{checkpoint: a, cross_fit: 4}]"], ["teacher: checkpoint: a:", "belong together"]),
    (["distill.teachers=[{checkpoint: 'a{part}', cross_fit: 4, config: b.yaml}]"], ["config: b.yaml", "leave config out"]),
    (["distill.teachers=[{checkpoint: 'a{part}', cross_fit: 4}]"], ["distill.outputs", "cross_fit: 4", "use outputs: cache"]),
    (["distill.teachers=[{checkpoint: 'a{part}', cross_fit: 4}, {checkpoint: b}]", "distill.outputs=cache",
      "distill.pseudo_labels=1"], ["distill.pseudo_labels", "1.0", "teacher1", "one network first, or use 0"]),
    (["distill.pseudo_labels=-1"], ["distill.pseudo_labels", "use at least 0"]),
    (["train_cfg.leave_out=[4, 4]"], ["train_cfg.leave_out", "[4, 4]", "part from 0 to parts - 1"]),
    (["train_cfg.mixup=0.2", "loader.batch_size=1"], ["train_cfg.mixup", "batch_size is 1", "at least 2"]),
    (["train_cfg.mixup=0.2", "distill.mixup=0.3"], ["train_cfg.mixup", "cannot be combined with distill.mixup"]),
    (["train_cfg.mixup=0.2", "distill.teachers=[]", "train_cfg.cuda_graphs=true"], ["train_cfg.mixup", "train_cfg.cuda_graphs"]),
    (["train_cfg.mixup=0.2", "model.assigner.type=cost"], ["train_cfg.mixup", "model.assigner.type: cost"]),
    (["dataset.speeds=[]"], ["dataset.speeds", "one speed or more"]),
    (["dataset.speeds=[0.5, 2]", "dataset.force_upsampling=true"], ["dataset.speeds", "[0.5, 2.0]", "force_upsampling"]),
    (["dataset.speeds=[0, 1]"], ["dataset.speeds", "use at least 0.1"]),
    (["train_cfg.leave_out=[0, 1]"], ["train_cfg.leave_out", "[0, 1]", "parts at least 2"]),
    (["distill.outputs=cache"], ["dataset.crop_align", "use 32, or distill.outputs: online"]),
    (["distill.outputs=cache", "dataset.crop_align=48"], ["dataset.crop_align", "48"]),
    (["distill.outputs=cache", "dataset.crop_align=32", "distill.teacher_droppath=true"],
     ["distill.teacher_droppath", "cannot be cached"]),
])
def test_impossible_combinations(base: Path, overrides: list[str], parts: list[str]) -> None:
    got = message(base, *overrides)
    assert str(base) in got
    for part in parts:
        assert part in got, got


@pytest.mark.parametrize("overrides", [
    ["dataset.modalities={rgb: [0, 3], flow: [5, 8]}"],  # channels that no modality names are nobody's
    ["dataset.modalities={rgb: [4, 8], flow: [0, 4]}"],
    ["model.fusion=gated"],
    ["model.fusion=gated", "model.hallucinator=none", "model.hallucinated=[]", "model.modalities=[rgb, flow]"],
    [AUDIO, "model.hallucinated=[flow, audio]"],
    ["model.hallucinator=none", "model.hallucinated=[]", "distill.inputs.weight=0"],
    ["distill.outputs=cache", "dataset.crop_align=64"],
    ["distill.outputs=cache", "dataset.crop_align=4", "model.backbone_arch=[1, 1, 2]",
     "model.regression_range=[[0, 4], [4, 8], [8, 99]]"],
    ["distill.mixup=0.3", "train_cfg.labelled_share=0.25", "unlabelled_split=[more]"],
    ["unlabelled_split=[more]", "distill.teachers=[]"],
    ["train_cfg.mixup=0.2", "distill.outputs=cache", "dataset.crop_align=32"],
    ["train_cfg.swap_actions=0.5", "distill.mixup=0.3"],
    ["distill.teacher_droppath=true"], ["distill.teachers=[]", "distill.outputs=online"],
    ["distill.preset=c2ms", "distill.stage=cross_modal", "distill.init_from=teacher"],
    ["model.backbone_type=convnext", "model.block_kernel_size=19"],
    ["distill.teachers=[{checkpoint: a, terms: {}}]"],
])
def test_unusual_but_possible_combinations(base: Path, overrides: list[str]) -> None:
    assert isinstance(load_config(base, overrides), Config)


def test_dump_loads_back_equal(base: Path, tmp_path: Path) -> None:
    config = load_config(base, [
        AUDIO, "distill.preset=c2ms", "distill.stage=multi_teacher", "distill.init_from=b", "distill.cls.temperature=3",
        "distill.offsets.mask=true", "distill.weight=1e-3",
        "distill.teachers=[{name: a, checkpoint: 'ckpt/1:30_{run}', terms: {cls: 0.1, stem: 0}}, {name: b, checkpoint: '007'}]"])
    text = dump_yaml(config)
    again = tmp_path / "again.yaml"
    again.write_text(text, encoding="utf-8")
    assert load_config(again) == config
    assert from_dict(to_dict(config)) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(load_config(again))
    plain = yaml.safe_load(text)  # any YAML reader gets the same
    assert plain["dataset"]["modalities"]["audio"] == {"folder": "./vggish", "dim": 128, "file_prefix": None, "file_ext": ".npy",
                                                       "resample": "linear"}
    assert plain["distill"]["teachers"][0] == {"name": "a", "checkpoint": "ckpt/1:30_{run}", "config": None, "cross_fit": None,
                                               "weights": "ema", "terms": {"cls": 0.1, "stem": 0.0}}
    assert plain["distill"]["teachers"][1]["checkpoint"] == "007"


def test_subset_names_are_lower_case_whatever_their_case_in_the_file(base: Path) -> None:
    assert load_config(base, ["unlabelled_split=[More, OTHERS]"]).unlabelled_split == ("more", "others")
    assert load_config(base, ["unlabelled_split=More"]).unlabelled_split == ("more",)
    assert load_config(base).unlabelled_split == ()


def test_nothing_inside_a_record_can_change(base: Path) -> None:
    config = load_config(base, [AUDIO, "distill.teachers=[{checkpoint: a, terms: {cls: 1}}]"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.distill.teachers[0].checkpoint = "b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dataset.modalities["audio"].dim = 3
    with pytest.raises(TypeError, match="immutable"):
        config.distill.teachers[0].terms["cls"] = 2.0
    values = to_dict(config)
    values["distill"]["teachers"][0]["terms"]["cls"] = 9
    assert config.distill.teachers[0].terms == {"cls": 1.0}


def test_a_list_of_teachers_is_replaced_and_a_mapping_of_modalities_merged(base: Path, tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("_base_: x.yaml\ndataset: {modalities: {audio: {folder: a, dim: 2}}}\n"
                     "distill: {teachers: [{name: other, checkpoint: b}]}", encoding="utf-8")
    config = load_config(child)
    assert list(config.dataset.modalities) == ["rgb", "flow", "audio"]
    assert [t.name for t in config.distill.teachers] == ["other"]
    assert "use other" in message(child, "distill.init_from=teacher")


def test_modalities_merge_and_set_the_models_width(base: Path) -> None:
    config = load_config(base, ["dataset.modalities.depth=[6, 8]", "dataset.modalities.flow=[4, 6]",
                                "model.modalities=[depth, rgb]"])
    assert config.dataset.modalities == {"rgb": (0, 4), "flow": (4, 6), "depth": (6, 8)}
    assert (config.model_input_dim, config.backbone_input_dim) == (6, 8)


def test_without_teachers_the_distill_section_is_as_if_it_were_not_there() -> None:
    config = Config()
    assert config.distill.teachers == ()
    assert config.backbone_input_dim == config.model_input_dim == 2304
    with pytest.raises(UserError, match=r"dataset\.json_file"):
        check_relations(config)
