"""The first lines of a run."""
from __future__ import annotations

from pathlib import Path

import pytest
from helpers import tiny_config

from libs.core.config import load_config
from libs.engine.training.reports import epochs_text, note_range_gaps

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.mark.parametrize(("opt", "text"), [
    ({"epochs": 8, "warmup_epochs": 2}, "8 + 2 warm-up epochs"), ({"epochs": 8, "warmup_epochs": 0}, "8 epochs"),
    ({"epochs": 8, "warmup_epochs": 2, "warmup": False}, "8 epochs"),
    ({"epochs": 8, "warmup_epochs": 2, "early_stop_epochs": 9}, "8 + 2 warm-up epochs (stops after 9: opt.early_stop_epochs)"),
    ({"epochs": 8, "warmup_epochs": 2, "early_stop_epochs": 10}, "8 + 2 warm-up epochs")])
def test_warm_up_is_added_to_the_epochs(opt, text):
    assert epochs_text(tiny_config(opt=opt)) == text


@pytest.mark.parametrize(("ranges", "gaps"), [
    ([[0, 4], [8, 16], [16, 10000]], "[4, 8]"), ([[0, 4], [6, 8], [9, 10000]], "[4, 6], [8, 9]"),
    ([[1, 4], [2, 8], [8, 10000]], "[0, 1]"), ([[0, 4], [2, 16], [12, 10000]], ""),
    ([[0, 4], [8, 100], [3, 9]], "")], ids=str)
def test_ranges_that_leave_a_gap_are_told_in_one_line(capsys, ranges, gaps):
    note_range_gaps(tiny_config(model={"regression_range": ranges}))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(gaps)
    for part in ("warning: tiny.yaml: model.regression_range", gaps, "where the one before ends"):
        assert part in "".join(lines) or not gaps


def test_no_shipped_configuration_leaves_a_gap(capsys):
    for path in CONFIGS.rglob("*.yaml"):
        note_range_gaps(load_config(path, check=False))
    assert capsys.readouterr().err == ""
