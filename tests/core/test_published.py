"""Configurations of the published programs: defaults by model_name, and their spellings of values."""
from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
from config_files import message, small, write

from libs.core.coerce import coerce, field_types
from libs.core.config import config_diff, dump_yaml, from_dict, load_config, with_overrides
from libs.core.published import DEFAULTS, SPELLINGS
from libs.core.schema import Config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TEMPORALMAXER = """
model_name: TemporalMaxerArchitecture
dataset: {json_file: a.json, feat_folder: f, input_dim: 2048}
model: {backbone_arch: [2, 5], fpn_norm: ~}
"""


def test_a_published_file_loads_unchanged(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, TEMPORALMAXER))
    assert (config.model.backbone_type, config.model.backbone_arch, config.model.fpn_norm) == ("convPooler", (2, 0, 5), "none")
    assert config.model.fpn_shared_norm
    again = load_config(write(tmp_path, dump_yaml(config), "again.yaml"))
    assert again == config


# every key of the model that the published program takes, as its THUMOS14 file and its defaults have them
TRIDET = """
dataset_name: thumos
devices: ['cuda:0']
train_split: ['validation']
val_split: ['test']
model_name: "TriDet"
dataset: {json_file: a.json, feat_folder: f, file_prefix: ~, file_ext: .npy, num_classes: 20, input_dim: 2048, feat_stride: 4,
          num_frames: 16, trunc_thresh: 0.5, crop_ratio: [0.9, 1.0], max_seq_len: 2304}
model: {fpn_type: identity, max_buffer_len_factor: 6.0, backbone_arch: [2, 2, 5], scale_factor: 2, n_sgp_win_size: 1, k: 5,
        sgp_mlp_dim: 768, init_conv_vars: 0, use_trident_head: True, num_bins: 16, iou_weight_power: 0.2, input_noise: 0.0005,
        downsample_type: max, boudary_kernel_size: 3, head_kernel_size: 3, use_abs_pe: False}
opt: {learning_rate: 0.0001, eta_min: 0.00000001, weight_decay: 0.025, warmup_epochs: 20, epochs: 20}
loader: {batch_size: 2}
train_cfg: {init_loss_norm: 100, clip_grad_l2norm: 1.0, cls_prior_prob: 0.01, center_sample: radius, center_sample_radius: 1.5}
test_cfg: {pre_nms_thresh: 0.001, pre_nms_topk: 2000, iou_threshold: 0.1, min_score: 0.001, max_seg_num: 2000, nms_sigma: 0.5,
           voting_thresh: 0.7, multiclass_nms: True, nms_method: soft, duration_thresh: 0.05}
output_folder: ./ckpt/
"""


def test_a_published_file_of_tridet_is_our_configuration(tmp_path: Path) -> None:
    config, ours = load_config(write(tmp_path, TRIDET)), load_config(CONFIGS / "tridet_thumos_i3d.yaml")
    differences = config_diff(config, ours)
    assert {key for key in differences if key.startswith(("model.", "train_cfg.", "test_cfg.", "opt."))} == set()
    assert set(differences) <= {"dataset.json_file", "dataset.feat_folder", "devices", "output_folder"}
    assert (config.model.backbone_type, config.test_cfg.voting_iou_weight, config.dataset.crop_offset) == ("SGP", False, False)


def test_a_key_of_a_published_program_without_a_place_here_names_ours(tmp_path: Path) -> None:
    got = message(write(tmp_path, TRIDET.replace("file_prefix: ~", "backbone_type: slowfast")))
    for part in ("x.yaml: dataset.backbone_type", "dataset.subset_folders: true", "file_ext: .pkl"):
        assert part in got
    assert "model.backbone_type" not in got


def test_the_name_alone_changes_defaults_and_a_key_in_the_file_wins(tmp_path: Path) -> None:
    base = write(tmp_path, TEMPORALMAXER.replace(", fpn_norm: ~", ""), "base.yaml")
    assert load_config(base).model.fpn_norm == "groupnorm"
    child = write(tmp_path, "_base_: base.yaml\nmodel: {fpn_norm: layernorm, backbone_arch: [3, 5]}", "child.yaml")
    assert load_config(child).model.fpn_norm == "layernorm"
    assert load_config(child, ["model.backbone_arch=[1,5]"]).model.backbone_arch == (1, 0, 5)
    assert with_overrides(load_config(child), ["model.fpn_norm="]).model.fpn_norm == "none"
    assert load_config(small(tmp_path)).model == Config().model


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_values_of_keys_of_ours(name: str) -> None:
    config = from_dict({"model_name": name}, check=False)
    for dotted, value in DEFAULTS[name].items():
        *sections, key = dotted.split(".")
        section = functools.reduce(getattr, sections, config)
        field = {f.name: f for f in dataclasses.fields(section)}[key]
        assert getattr(section, key) == value == coerce(value, field_types(type(section))[key], field.metadata)
    for dotted in SPELLINGS:
        assert functools.reduce(getattr, dotted.split("."), config) is not None


@pytest.mark.parametrize(("overrides", "parts"), [
    (["model.backbone_type=conv", "model.backbone_arch=[2,2,5]"],
     ["model.backbone_type", "TemporalMaxerArchitecture", "convPooler"]),
    (["model.backbone_arch=[2,2,5]"], ["model.backbone_arch", "no stem blocks", "write [2, 5]"]),
    (["model.backbone_arch=[2]"], ["model.backbone_arch", "3 whole numbers, got 1"]),
    (["model.n_mha_win_size=19"], ["model.n_mha_win_size", "convPooler has no attention"]),
    (["model.use_abs_pe=true"], ["model.use_abs_pe", "no position encoding"]),
    (["model.fpn_norm=groupnorm", "model.num_group=3"], ["model.num_group", "3 groups do not divide the width 512", "use 2"]),
    (["model.fpn_norm=groupnorm", "model.fpn_type=fpn"], ["model.fpn_norm", "fpn_type: identity"]),
    (["model.fpn_norm=batchnorm"], ["model.fpn_norm", "layernorm or groupnorm or none"]),
    (["model_name=TemporalMaxer"], ["model_name", "TemporalMaxerArchitecture"]),
])
def test_keys_without_meaning_are_refused(tmp_path: Path, overrides: list[str], parts: list[str]) -> None:
    got = message(write(tmp_path, TEMPORALMAXER), *overrides)
    for part in parts:
        assert part in got, got
