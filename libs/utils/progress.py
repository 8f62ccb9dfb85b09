"""Progress and remaining time of a long command: a bar on a terminal, lines elsewhere.

    advance = bar(len(videos), "videos");  advance(done, total)
    clock = Clock();  print(f"{done}/{total} videos, {clock.left(done, total)}")
"""
from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

Progress = Callable[[int, int], None]  # progress(done, total)


def no_progress(done: int, total: int) -> None:
    """A progress callback that shows nothing."""


class Clock:
    """Extrapolates the remaining time from the time since its creation."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._start = now, now()

    def left(self, done: float, total: float) -> str:
        """'0:02:10 left' after `done` > 0 of `total` units of work."""
        seconds = round((self._now() - self._start) * max(total - done, 0) / done)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"


def terminal_bar(total: int | None, label: str, show: bool = True, unit: str = "it") -> tqdm:
    """A tqdm bar on a terminal; it shows nothing elsewhere, as in a redirected stderr."""
    return tqdm(total=total, desc=label, unit=unit, leave=False, dynamic_ncols=True, disable=not (show and sys.stderr.isatty()))


def bar(total: int, label: str, print_every: int = 50) -> Progress:
    """A progress callback (done, total): a bar on a terminal, else a line per `print_every` units."""
    if sys.stderr.isatty():
        shown = terminal_bar(total, label)

        def advance(done: int, total: int) -> None:
            shown.update(done - shown.n)
            if done >= total:
                shown.close()
        return advance

    return lines(label, print_every)


def lines(label: str, print_every: int) -> Progress:
    """A progress callback (done, total): a line per `print_every` units."""
    clock, last = Clock(), 0

    def line(done: int, total: int) -> None:
        nonlocal last
        if done // print_every > last // print_every:
            print(f"{done}/{total} {label}, {clock.left(done, total)}", flush=True)
        last = done
    return line
