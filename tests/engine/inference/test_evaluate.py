"""Which checkpoints an evaluation refuses before it begins."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from helpers import tiny_config

from libs.core.config import dump_yaml, load_config, to_dict
from libs.core.errors import UserError
from libs.engine.inference.evaluate import other_settings, refuse_other_fold
from libs.engine.runs.checkpoint import Checkpoint


def trained_on(fold: int | None) -> Checkpoint:
    config = dataclasses.replace(tiny_config(), fold=fold)
    return Checkpoint(Path("run/epoch_001.pth.tar"), 1, {}, None, None, None, {"config": to_dict(config)})


def test_a_checkpoint_of_another_fold_may_have_seen_the_videos() -> None:
    config = dataclasses.replace(tiny_config("x.yaml"), fold=2)
    with pytest.raises(UserError, match=r"x\.yaml: fold: 2, but run/epoch_001\.pth\.tar was trained on fold 1 .* --set fold=1"):
        refuse_other_fold(config, trained_on(1))


@pytest.mark.parametrize(("own", "trained"), [(2, 2), (None, 1), (2, None)])
def test_the_same_fold_and_runs_without_one_are_accepted(own: int | None, trained: int | None) -> None:
    refuse_other_fold(dataclasses.replace(tiny_config(), fold=own), trained_on(trained))


def test_a_checkpoint_of_another_program_is_compared_with_the_file_of_the_same_fold(tmp_path: Path) -> None:
    text = dump_yaml(tiny_config()).replace("fold: null", "").replace("output_folder: ./ckpt/", "output_folder: ./fold{fold}/")
    (tmp_path / "folds.yaml").write_text(text)
    foreign = Checkpoint(Path("x.pth.tar"), 1, {}, None, None, None, None)
    config = load_config(tmp_path / "folds.yaml", ["fold=2", "test_cfg.max_seg_num=7"])
    assert config.output_folder == "./fold2/"
    assert list(other_settings(foreign, config)) == ["test_cfg.max_seg_num"]
