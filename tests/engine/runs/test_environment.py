"""environment.json: one entry per start, with or without git."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny_config

from libs.core.files import system_text
from libs.engine.runs import environment as module
from libs.engine.runs.environment import environment, git_state, record_start

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]


def starts(folder):
    return json.loads((folder / "environment.json").read_text())["starts"]


def test_an_entry_per_start(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "a b.yaml"])
    config = tiny_config(init_rand_seed=7)
    record_start(tmp_path, config, CPU, None, 0)
    first = starts(tmp_path)[0]
    assert (first["command"], first["seed"], first["config"]) == ("python train.py 'a b.yaml'", 7, "tiny.yaml")
    assert (first["torch"], first["python"]) == (torch.__version__, ".".join(map(str, sys.version_info[:3])))
    assert (first["ranks"], first["device"], first["gpus"], first["deterministic"]) == (1, "cpu", [], False)
    assert first["packages"]["numpy"]
    assert (first["resumed_from"], first["iteration"]) == (None, 0)
    record_start(tmp_path, config, CPU, Path("x/epoch_002.pth.tar"), 6)
    assert starts(tmp_path)[0] == first
    assert [(s["resumed_from"], s["iteration"]) for s in starts(tmp_path)[1:]] == [("x/epoch_002.pth.tar", 6)]
    assert capsys.readouterr().err == ""


def test_another_environment_is_said(tmp_path, monkeypatch, capsys):
    config = tiny_config()
    record_start(tmp_path, config, CPU, None, 0)
    document = {"starts": [{**starts(tmp_path)[0], "torch": "2.6.0", "threads": 99}]}
    (tmp_path / "environment.json").write_text(json.dumps(document))
    record_start(tmp_path, config, CPU, Path("a"), 3)
    err = capsys.readouterr().err
    assert err.startswith(f"note: {tmp_path}: goes on in another environment: torch: '2.6.0' -> ")
    assert "threads: 99 -> " in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[]", '{"starts": 3}', "{"])
def test_a_damaged_record_is_begun_anew_with_a_warning(tmp_path, capsys, content):
    (tmp_path / "environment.json").write_text(content)
    record_start(tmp_path, tiny_config(), CPU, None, 0)
    assert len(starts(tmp_path)) == 1
    assert "environment.json: is damaged, begun anew" in capsys.readouterr().err


def test_strict_determinism_is_recorded(monkeypatch):
    monkeypatch.setattr(torch, "is_deterministic_algorithms_warn_only_enabled", lambda: False)
    assert environment(tiny_config(), CPU)["deterministic"] is True


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_and_changes(tmp_path, monkeypatch):
    git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "x")
    state = git_state(tmp_path)
    assert (len(state["commit"]), state["changed"]) == (40, False)
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {**state, "changed": True}
    (tmp_path / "below").mkdir()
    assert git_state(tmp_path / "below") is None  # another project's tree
    assert git_state(tmp_path.parent / "nowhere") is None
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


def test_the_driver_is_read_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "system_text", lambda _path: system_text(tmp_path / "version"))
    assert module._driver() is None
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC version: 12\n")
    assert module._driver() == "550.54.15"
