"""Time left, and bars."""
from __future__ import annotations

import sys

import pytest

from libs.utils.progress import Clock, bar, terminal_bar


@pytest.mark.parametrize(("seconds", "done", "total", "expected"), [
    (10, 1, 4, "0:00:30 left"), (100, 40, 100, "0:02:30 left"), (7200, 1, 3, "4:00:00 left"), (5, 3, 3, "0:00:00 left"),
    (5, 4, 3, "0:00:00 left"), (59.6, 1, 2, "0:01:00 left")])
def test_time_left_supposes_the_same_speed(seconds, done, total, expected):
    times = iter([1000.0, 1000.0 + seconds])
    assert Clock(lambda: next(times)).left(done, total) == expected


def test_lines_where_there_is_no_terminal(capsys):
    advance = bar(7, "videos", 3)
    for done in (1, 2, 4, 6, 7):
        advance(done, 7)
    assert capsys.readouterr().out.splitlines() == ["4/7 videos, 0:00:00 left", "6/7 videos, 0:00:00 left"]


def test_a_bar_shows_nothing_where_there_is_no_terminal(monkeypatch, capsys):
    for terminal, show in ((False, True), (True, False)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        with terminal_bar(3, "videos", show) as shown:
            shown.update(2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_with_the_time_left_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    advance = bar(5, "videos")
    for done in (2, 5):
        advance(done, 5)
    out, err = capsys.readouterr()
    assert out == ""
    assert "videos" in err
    assert "0/5 [00:00<?" in err, "tqdm's elapsed<left"
