"""Configurations of the published programs: defaults by model_name, and their spellings of values."""
from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
from config_files import message, small, write

from libs.core.coerce import coerce, field_types
from libs.core.config import dump_yaml, from_dict, load_config, with_overrides
from libs.core.published import DEFAULTS, SPELLINGS
from libs.core.schema import Config

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
