"""Checks of command-line arguments."""
from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path

import pytest
from helpers import one_error, run_script, write_config, write_data

from libs.core.arguments import frame_rate, refuse_source, run_name, some_path
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


@pytest.mark.parametrize("text", ["", "  ", "../../x", "a/b", "/", "a\0"])
def test_a_name_is_neither_empty_nor_a_path(text: str) -> None:
    with pytest.raises(UserError, match=r"--output .*part of the name of a folder.*set output_folder"):
        run_name(text)
    assert run_name("first run.2") == "first run.2"


@pytest.mark.parametrize("text", ["1e30", "1e-9", "0", "-25", "nan", "inf"])
def test_rates_that_cannot_be(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=rf"{text} frames per second: expected a number from 0\.001 to 1e\+06"):
        frame_rate(text)
    assert [frame_rate(t) for t in ("0.001", "29.97", "1e6")] == [0.001, 29.97, 1e6]


def test_an_empty_path_is_not_the_present_folder() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="name a folder, or"):
        some_path("")
    assert some_path("out") == Path("out")


@pytest.mark.parametrize(("script", "argv"), [
    ("cost", ["tiny.yaml", "--json", "tiny.yaml"]),
    ("run_seeds", ["tiny.yaml", "--json", "tiny.yaml"]),
    ("run_distill", [".", "--json", "tiny.yaml"]),
    ("fuse_actions", ["v.json", "n.json", "--annotations", ".", "--json", "epic_kitchens_100_verb.json"]),
    ("fuse_actions", ["v.json", "n.json", "--annotations", ".", "--out", "new.json", "--json", "new.json"]),
    ("check_dataset", ["annotations.json", "features", "--write", "new.yaml", "--json", "./new.yaml"])])
def test_no_output_replaces_an_input_or_another_output(script, argv, tmp_path, monkeypatch, capsys) -> None:
    write_config(tmp_path / "tiny.yaml", write_data(tmp_path))
    for name in ("v.json", "n.json", "epic_kitchens_100_verb.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    code, _, err = run_script(capsys, importlib.import_module(script).main, script, *argv)
    error = one_error(code, err)
    assert argv[-1].removeprefix("./") in error
    assert "replaced" in error or "written twice" in error
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before


@pytest.mark.parametrize(("script", "argv"), [
    ("eval", ["run", "-p", "0"]), ("eval", ["run", "-t", "0"]), ("train", ["tiny.yaml", "--keep", "-1"]),
    ("predict", ["run", "v0.npy", "-p", "0"]),
    ("run_seeds", ["tiny.yaml", "--eval-freq", "0"])])
def test_counts_are_above_zero(script, argv, capsys) -> None:
    code, _, err = run_script(capsys, importlib.import_module(script).main, script, *argv)
    assert code == 2
    assert argv[-2] in err.splitlines()[-1]
    assert f"{argv[-1]} is not a whole number above 0" in err.splitlines()[-1]


@pytest.mark.parametrize(("argv", "told"), [(["--tiou", "0.5", "0.7", "0.5"], "0.5 occurs twice"),
                                            (["--count-ambiguous"], "--protocol thumos14")])
def test_evaluate_refuses_what_has_no_effect_or_counts_twice(argv, told, tmp_path, capsys) -> None:
    data = write_data(tmp_path)
    found = {"results": {"v0": [{"segment": [0, 1], "label": "class 0", "score": 0.5}]}}
    (tmp_path / "found.json").write_text(json.dumps(found))
    code, _, err = run_script(capsys, importlib.import_module("evaluate").main, "evaluate.py", str(tmp_path / "found.json"),
                              str(data.annotations), *argv)
    assert told in one_error(code, err)
