"""What a user sees of bad input: one line on stderr and an exit code, never a traceback."""
from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from libs.core.errors import UserError, article, nearest, note

ROOT = Path(__file__).resolve().parents[2]


def run_script(body: str) -> subprocess.CompletedProcess:
    script = "import warnings\nfrom libs.core.errors import UserError, run_main\n\ndef main():\n" + textwrap.indent(body, "    ")
    command = [sys.executable, "-c", script + "\n\nrun_main(main)"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("body", "code", "stderr"), [
    ("raise UserError('x.yaml: opt: wrong')", 2, "error: x.yaml: opt: wrong\n"),
    ("raise KeyboardInterrupt", 130, "interrupted\n"),
    ("raise KeyboardInterrupt('stopped, all is saved')", 130, "stopped, all is saved\n"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143, "terminated\n"),
    ("from libs.core.errors import Stopped; raise Stopped('saved x')", 75, "saved x\n"),
    ("return 3", 3, ""),
    ("return None", 0, ""),
    ("warnings.warn('2 videos skipped')", 0, "warning: 2 videos skipped\n"),
])
def test_exit_codes_and_lines(body: str, code: int, stderr: str) -> None:
    done = run_script(body)
    assert (done.returncode, done.stderr) == (code, stderr)


def test_a_programming_error_keeps_its_traceback() -> None:
    done = run_script("return 1 / 0")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = run_script("raise BrokenPipeError")
    assert (done.returncode, done.stderr) == (141, "")


def test_nearest() -> None:
    assert nearest("leaning_rate", ["learning_rate", "epochs"]) == " (did you mean 'learning_rate'?)"
    assert nearest("zzz", ["learning_rate", "epochs"]) == ""
    assert nearest("12", [11, 120, 9]) == " (did you mean '120'?)"


def test_article() -> None:
    assert [article(noun) for noun in ("annotation file", "CSV file", "ONNX graph")] == [
        "an annotation file", "a CSV file", "an ONNX graph"]


def test_note_prints_at_once_every_time(capsys: pytest.CaptureFixture) -> None:
    note("one")
    note("one")
    assert capsys.readouterr().err == "one\none\n"


def test_user_error_is_not_caught_as_an_ordinary_mistake() -> None:
    assert not issubclass(UserError, (ValueError, KeyError, OSError))
