"""The one printer of tables: alignment, formats, Markdown."""
from __future__ import annotations

import numpy as np
import pytest

from libs.utils.tables import format_table

ROWS = [("a", 1.005, None, "first"), ("longer", np.float64(-12.3), 7, "b")]
COLUMNS = ("name", "mAP", "n", "setting")


def test_alignment_and_formats():
    assert format_table(ROWS, COLUMNS, left=["setting"]).splitlines() == [
        "name       mAP  n  setting",
        "a         1.00  -  first",
        "longer  -12.30  7  b"]
    assert format_table(ROWS[1:], COLUMNS, digits=1).splitlines()[1] == "longer  -12.3  7        b"


def test_markdown_escapes_what_separates_cells():
    assert format_table([("a|b", 0.5)], ("x", "y"), markdown=True) == "| x | y |\n| --- | --- |\n| a\\|b | 0.50 |"


def test_no_rows_leave_the_header_and_a_short_row_is_refused():
    assert format_table([], ("x", "y")) == "x  y"
    with pytest.raises(ValueError):
        format_table([("a",)], ("x", "y"))
