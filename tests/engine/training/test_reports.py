"""The first lines of a run."""
from __future__ import annotations

import pytest
from helpers import tiny_config

from libs.engine.training.reports import epochs_text


@pytest.mark.parametrize(("opt", "text"), [
    ({"epochs": 8, "warmup_epochs": 2}, "8 + 2 warm-up epochs"), ({"epochs": 8, "warmup_epochs": 0}, "8 epochs"),
    ({"epochs": 8, "warmup_epochs": 2, "warmup": False}, "8 epochs"),
    ({"epochs": 8, "warmup_epochs": 2, "early_stop_epochs": 9}, "8 + 2 warm-up epochs (stops after 9: opt.early_stop_epochs)"),
    ({"epochs": 8, "warmup_epochs": 2, "early_stop_epochs": 10}, "8 + 2 warm-up epochs")])
def test_warm_up_is_added_to_the_epochs(opt, text):
    assert epochs_text(tiny_config(opt=opt)) == text
