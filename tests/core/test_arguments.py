"""Checks of command-line arguments."""
from __future__ import annotations

import os

import pytest

from libs.core.arguments import refuse_source
from libs.core.errors import UserError


def test_an_output_that_is_read_is_refused_by_any_of_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    os.link("a.json", "hard.json")
    os.symlink("a.json", "soft.json")
    for name in ("a.json", "./a.json", tmp_path / "a.json", "hard.json", "soft.json"):
        with pytest.raises(UserError, match=r"a\.json: is read by this command.*another name"):
            refuse_source("a.json", None, "b.json", name)
    refuse_source("b.json", "a.json", "gone.json", None)
    refuse_source("gone.json", "a.json")
    refuse_source(None, "a.json")
