"""Reasons to save or to end a training run early: a signal, the clock, the end of the program that started it.

    with Interruption(save_minutes=30) as asked:
        for batch in ...:
            step
            match asked.wish(): ...          once per step, at its end, where everything can be saved

The first Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP asks to save and stop; a Ctrl-C after that stops at once.
"""
from __future__ import annotations

import contextlib
import enum
import os
import signal
import threading
import time
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
STARTED_BY = "TAL_STARTED_BY"  # set by libs/engine/experiments/launch.py: the process whose end asks this one to stop


class Wish(enum.IntEnum):
    """What to do at the end of a step; the maximum over all processes holds for each of them."""

    NOTHING = 0
    SAVE = 1
    STOP = 2  # save and stop


class Interruption:
    """Collects the reasons, as a context manager that restores the signal handlers at its end.

    `save_minutes`: time after which `wish` asks to save (None: never).  Signals can be caught in the main thread only; elsewhere
    they are left alone.
    """

    def __init__(self, save_minutes: float | None = None):
        self.reason: str | None = None  # why to stop, in words
        self._seconds = None if save_minutes is None else 60 * save_minutes
        self._saved = time.monotonic()
        self._before: dict[int, Any] = {}
        parent = os.getppid()
        self._parent = parent if os.environ.get(STARTED_BY) == str(parent) else None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # nohup has SIGHUP ignored, and it must stay so; a script's background jobs have SIGINT ignored, but who sends it
                # to one means it
                if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:
                    self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def wish(self) -> Wish:
        """Called at the end of every step.  Cheap: one getppid, nothing read from a device."""
        if self.stopping:
            return Wish.STOP
        late = self._seconds is not None and time.monotonic() - self._saved >= self._seconds
        return Wish.SAVE if late else Wish.NOTHING

    @property
    def stopping(self) -> bool:
        """Whether this process was asked to stop."""
        if self.reason is None and self._parent is not None and os.getppid() != self._parent:
            self.reason = "the end of the program that started it"
        return self.reason is not None

    def saved(self) -> None:
        """Restart the clock: everything is on disk."""
        self._saved = time.monotonic()

    def _asked(self, number: int, _frame: Any) -> None:
        if self.reason is None:
            self.reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            with contextlib.suppress(OSError):  # no print: it may be in the middle of one, and the terminal may be gone
                os.write(2, f"{self.reason}: saving after this step; Ctrl-C stops at once\n".encode())
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
