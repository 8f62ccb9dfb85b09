"""Types and bounds of single keys: what is accepted, and errors that name the place and the remedy."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from config_files import message, small

from libs.core.coerce import coerce, field_types
from libs.core.schema import Config


def test_defaults_are_of_their_declared_type_and_inside_their_bounds() -> None:
    def walk(value: object) -> None:
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            if dataclasses.is_dataclass(inner):
                walk(inner)
            elif field.name in field_types(type(value)):
                again = coerce(inner, field_types(type(value))[field.name], field.metadata)
                assert repr(again) == repr(inner), field.name

    walk(Config())


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
