"""When a training run is saved or stopped early: on a signal, by the clock, at the end of the program that started it.

    with Interruption(save_minutes=30) as interruption:
        for batch in ...:
            step
            match interruption.action(): ...          once per step, at its end, where everything can be saved

After the first Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP the run saves and stops; another Ctrl-C stops it at once.
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
STARTED_BY = "TAL_STARTED_BY"  # set by libs/engine/experiments/launch.py: this process stops when that one ends


class Action(enum.IntEnum):
    """What to do at the end of a step; all processes take the largest action of any of them."""

    NOTHING = 0
    SAVE = 1
    STOP = 2  # save and stop


class Interruption:
    """Context manager that handles the signals and restores their handlers at its end.

    `save_minutes`: minutes after the last save when `action` is to save (None: never).  Python can handle signals in the main
    thread only; in other threads nothing is changed.
    """

    def __init__(self, save_minutes: float | None = None):
        self.reason: str | None = None  # of the stop, as text
        self._seconds = None if save_minutes is None else 60 * save_minutes
        self._saved = time.monotonic()
        self._before: dict[int, Any] = {}
        parent = os.getppid()
        self._parent = parent if os.environ.get(STARTED_BY) == str(parent) else None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # under nohup SIGHUP must stay ignored; background jobs of a script ignore SIGINT, but one sent to them counts
                if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def action(self) -> Action:
        """Called at the end of every step.  Cheap: one getppid, nothing read from a device."""
        if self.stopping:
            return Action.STOP
        due = self._seconds is not None and time.monotonic() - self._saved >= self._seconds
        return Action.SAVE if due else Action.NOTHING

    @property
    def stopping(self) -> bool:
        """Whether this process is to stop."""
        if self.reason is None and self._parent is not None and os.getppid() != self._parent:
            self.reason = "the end of the program that started it"
        return self.reason is not None

    def saved(self) -> None:
        """Restart the clock: everything is on disk."""
        self._saved = time.monotonic()

    def _handle(self, number: int, _frame: Any) -> None:
        if self.reason is None:
            self.reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            with contextlib.suppress(OSError):  # not print, which is not reentrant; the terminal may be gone
                os.write(2, f"{self.reason}: saving after this step; Ctrl-C stops at once\n".encode())
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
