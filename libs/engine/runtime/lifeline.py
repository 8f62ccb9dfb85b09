"""The processes of a run end together, and the first error is shown once.

A process that fails writes its exit code into torch's key-value store (TCPStore), shows its error if it is the first, and ends; a
thread of every other process finds the key and ends that one too, although its main thread may wait in a collective operation
for ever.  A process that is killed writes nothing: its neighbours' operations fail (gloo), or its heartbeat stops.

torchrun's agent and torch's `record` alone do less: every process shows its error or the connection error that follows from it; a
process that hangs is ended after 30 s, one on another machine or under srun or mpirun not before its operation times out.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import NoReturn, TextIO

import torch.distributed as dist

TICK_S = 0.2  # between two heartbeats
SILENCE_S = 300.0  # without one a process counts as dead; a long one, since a hanging disk may hold up every thread
DOUBT_S = 1.5  # the same once an operation has failed, which a process that is gone may have caused
GRACE_S = 10.0  # how long process 0, which may hold the store, waits for the others to read it
# keys of the store: exit code and rank of the first failure; process 0 is done; how many processes read no more
FAILED, DONE, LEFT = "failed", "done", "left"


class Lifeline:
    """What process `rank` of `size` knows of the others; `errors`: where it shows its error.

    Until `close`, the end of another process ends this one at once, without cleaning up.
    """

    def __init__(self, rank: int, size: int, errors: TextIO):
        self.rank, self.size, self._errors = rank, size, errors
        # a connection of its own, since an operation that waits blocks that of the process group
        client = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), wait_for_workers=False)
        self._store = dist.PrefixStore(f"lifeline/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", client)
        self._closing, self._limit_s = threading.Event(), SILENCE_S
        self._beats = dict.fromkeys(range(size), (0, 0.0))  # of each process: heartbeats, seconds since the last one
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()

    def fail(self, code: int, text: str, doubtful: bool = False) -> NoReturn:
        """Show `text`, unless another process has failed before, and end all processes with `code`.

        `doubtful`: another process may be the cause, so wait for what becomes known of it.
        """
        for number in (signal.SIGTERM, signal.SIGINT):  # torchrun sends SIGTERM as soon as another process has ended
            signal.signal(number, signal.SIG_IGN)
        if doubtful:
            self._limit_s = DOUBT_S
            time.sleep(DOUBT_S + 3 * TICK_S)  # `_watch` ends this process if it finds the cause
        self._end(code, text)

    def close(self) -> None:
        """This process has done its work: it may go, and so may the others."""
        self._closing.set()
        self._thread.join()
        with contextlib.suppress(RuntimeError):
            if self.rank == 0:
                self._store.set(DONE, "")
            self._let_go()

    def _watch(self) -> None:
        watched = range(1, self.size) if self.rank == 0 else (0,)
        try:
            while not self._closing.wait(TICK_S):
                if self._store.check([FAILED]):
                    self._leave(int(self._store.get(FAILED).split()[0]))
                if self._store.check([DONE]):  # the store may go at any time now
                    self._closing.set()
                    return
                self._store.add(f"beat{self.rank}", 1)
                for other in watched:
                    if self._silence_s(other) > self._limit_s:
                        self._end(1, self._ended(other))
        except RuntimeError:  # the store has gone, and process 0 with it
            if not self._closing.is_set():
                self._end(1, self._ended(0) if self.rank == 1 else "")  # one of those that are left speaks

    def _silence_s(self, other: int) -> float:
        """Seconds since a process's last heartbeat (0: not begun yet), in own ticks, since all may have been suspended."""
        count = self._store.add(f"beat{other}", 0)
        before, silence_s = self._beats[other]
        self._beats[other] = count, silence_s + TICK_S if count == before > 0 else 0.0
        return self._beats[other][1]

    def _ended(self, other: int) -> str:
        return f"error: process {other} of {self.size} has ended without a word (killed, or out of memory?); the others end too"

    def _end(self, code: int, text: str) -> NoReturn:
        mine = first = f"{code} {self.rank}"
        with contextlib.suppress(RuntimeError):
            first = self._store.compare_set(FAILED, "", mine).decode()
        if first == mine and text:
            print(text, file=self._errors, flush=True)
        self._leave(int(first.split()[0]))

    def _leave(self, code: int) -> NoReturn:
        for child in multiprocessing.active_children():  # data-loader workers
            child.terminate()
        with contextlib.suppress(OSError, ValueError):  # a pipe that nobody reads, a closed file
            sys.stdout.flush()
        with contextlib.suppress(RuntimeError):
            self._let_go()
        os._exit(code)  # the main thread may wait in an operation that never ends

    def _let_go(self) -> None:
        """Read no more; process 0, which may hold the store, waits for the others that live."""
        self._store.add(LEFT, 1)
        end = time.monotonic() + GRACE_S
        while self.rank == 0 and time.monotonic() < end:
            silent = sum(silence_s > DOUBT_S for _, silence_s in self._beats.values())
            if self._store.add(LEFT, 0) >= self.size - silent:
                return
            time.sleep(TICK_S / 4)
