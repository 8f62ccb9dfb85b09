"""YAML as people write it: numbers, texts that look like numbers, mistakes with their line."""
from __future__ import annotations

from pathlib import Path

import pytest
from config_files import PATHS, message, small, write

from libs.core.config import load_config


@pytest.mark.parametrize(("text", "value"), [
    ("1e-4", 1e-4), ("1E3", 1000.0), ("1.e-4", 1e-4), (".5", 0.5), ("-2e+1", -20.0), ("1_000", 1000),
    ("1_000.5", 1000.5), ("007.5", 7.5), ("0x10", 16)])
def test_numbers_read_as_numbers(tmp_path: Path, text: str, value: float) -> None:
    assert load_config(small(tmp_path), [f"train_cfg.loss_weight={text}"]).train_cfg.loss_weight == value


@pytest.mark.parametrize("text", ["1:30", "007", "2024-01-01", "v_", "1e", "e5"])
def test_texts_that_look_like_numbers_stay_texts(tmp_path: Path, text: str) -> None:
    assert load_config(small(tmp_path), [f"dataset.file_prefix={text}"]).dataset.file_prefix == text


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
