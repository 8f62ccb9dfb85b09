"""The suggested configuration follows its rules, and its comments name measurements that exist."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from libs.engine.check.suggest import MEASURED, DataFacts, GridGuess, suggest, suggest_config, suggest_yaml

ROOT = Path(__file__).resolve().parents[3]
GRID = GridGuess(4, 8, 1.0)


def facts(segment: float = 60.0, longest: int = 1200, grid: GridGuess = GRID) -> DataFacts:
    """Forty videos of up to `longest` steps with 400 segments of `segment` steps."""
    lengths = np.full(40, longest)
    return DataFacts("my.json", "features", "", ".npy", ("training",), ("validation",), 16, 3, grid, None, lengths,
                     np.full(400, segment))


@pytest.mark.parametrize(("segment", "longest", "levels", "reason"), [
    (62, 1282, 6, "as published"), (194, 1344, 6, "as published"), (256, 2000, 6, "as published"),
    (300, 2000, 7, "half of 99 % of the segments is at most 150 steps"), (4000, 9000, 8, "at most 2e+03 steps"),
    (20, 40, 5, "the longest training video has 40 steps"), (300, 10, 4, "the longest training video has 10 steps")])
def test_levels_are_the_published_six_unless_segments_or_videos_ask_for_others(segment, longest, levels, reason):
    found = facts(segment, longest)
    model, reasons = suggest_config(found).model, suggest(found)[1]
    assert model.backbone_arch == (2, 2, levels - 1)
    assert len(model.regression_range) == levels
    assert f"{levels} levels" in reasons["model.backbone_arch"]
    assert reason in reasons["model.backbone_arch"]


def test_few_videos_without_overlaps_get_the_published_crops_and_sigma():
    config = suggest_config(facts())
    assert config.dataset.crop_ratio == (0.9, 1.0)
    assert (config.test_cfg.nms_sigma, config.test_cfg.max_seg_num) == (0.5, 1000)
    assert suggest_config(facts(grid=GridGuess(-1, 16, 1.0))).dataset.crop_ratio is None  # stretched videos


def test_measured_choices_name_the_measurement():
    text = suggest_yaml(facts())
    named = {re.match(r"  (\w+):", line)[1] for line in text.splitlines() if MEASURED in line}
    assert named == {"crop_ratio", "backbone_arch", "ema_warmup", "max_seg_num", "nms_sigma"}
    assert (ROOT / MEASURED).is_file()
