"""Ends the processes of a run together when one of them fails, and prints only the first error.

A process that fails writes its exit code into torch's key-value store (TCPStore), prints its error if it is the first, and exits.
A thread of every other process finds the key and ends its process, even if the main thread waits in a collective operation.  A
process that is killed writes nothing: operations of the other processes fail (gloo), or its heartbeat stops.

torchrun's agent and torch's `record` do less: every process prints its error or the connection error that follows from it, and a
process that hangs is ended after 30 s; on another machine or under srun or mpirun not before its operation times out.
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
SILENCE_S = 300.0  # a process without heartbeats for so long is dead; long, since a hanging disk may block every thread
SHORT_SILENCE_S = 1.5  # the same after an operation has failed, probably because a process is gone
GRACE_S = 10.0  # process 0, which may host the store, waits so long for the others to read it
# keys of the store: exit code and rank of the first failure; process 0 is done; number of processes that no longer read
FAILED, DONE, LEFT = "failed", "done", "left"


class Lifeline:
    """Watches the other processes from process `rank` of `size`; `errors`: the stream for this process's error.

    Until `close`, the end of another process ends this one at once, without cleaning up.
    """

    def __init__(self, rank: int, size: int, errors: TextIO):
        self.rank, self.size, self._errors = rank, size, errors
        # a separate connection, since a waiting operation blocks that of the process group
        client = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), wait_for_workers=False)
        self._store = dist.PrefixStore(f"lifeline/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", client)
        self._closing, self._limit_s = threading.Event(), SILENCE_S
        self._beats = dict.fromkeys(range(size), (0, 0.0))  # per process: heartbeats, seconds since the last one
        self._store.add(f"beat{rank}", 1)  # before anything can block this process's threads
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()

    def fail(self, code: int, text: str, maybe_consequence: bool = False) -> NoReturn:
        """Print `text`, unless another process has failed before, and end all processes with `code`.

        `maybe_consequence`: the cause may be the end of another process, so wait until that would be noticed.
        """
        for number in (signal.SIGTERM, signal.SIGINT):  # torchrun sends SIGTERM as soon as another process has ended
            signal.signal(number, signal.SIG_IGN)
        if maybe_consequence:
            self._limit_s = SHORT_SILENCE_S
            time.sleep(SHORT_SILENCE_S + 3 * TICK_S)  # meanwhile `_watch` ends this process if another one has ended
        self._end(code, text)

    def close(self) -> None:
        """Stop watching: this process is done."""
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
                if self._store.check([DONE]):  # the store may close at any time now
                    self._closing.set()
                    return
                self._store.add(f"beat{self.rank}", 1)
                for other in watched:
                    if self._silence_s(other) > self._limit_s:
                        self._end(1, self._ended(other))
        except RuntimeError:  # the store is closed, so process 0 has ended
            if not self._closing.is_set():
                self._end(1, self._ended(0) if self.rank == 1 else "")  # one process prints the error

    def _silence_s(self, other: int) -> float:
        """Seconds since a process's last heartbeat (0: not started yet), counted in own ticks: all may have been suspended."""
        count = self._store.add(f"beat{other}", 0)
        before, silence_s = self._beats[other]
        self._beats[other] = count, silence_s + TICK_S if count == before > 0 else 0.0
        return self._beats[other][1]

    def _ended(self, other: int) -> str:
        return f"error: process {other} of {self.size} has ended without a word (killed, or out of memory?); the others end too"

    def _end(self, code: int, text: str) -> NoReturn:
        own = first = f"{code} {self.rank}"
        with contextlib.suppress(RuntimeError):
            first = self._store.compare_set(FAILED, "", own).decode()
        if first == own and text:
            print(text, file=self._errors, flush=True)
        self._leave(int(first.split()[0]))

    def _leave(self, code: int) -> NoReturn:
        for child in multiprocessing.active_children():  # data-loader workers
            child.terminate()
        with contextlib.suppress(OSError, ValueError):  # broken pipe, closed file
            sys.stdout.flush()
        with contextlib.suppress(RuntimeError):
            self._let_go()
        os._exit(code)  # sys.exit would not end a main thread that waits in an operation

    def _let_go(self) -> None:
        """Stop using the store; process 0, which may host it, waits for the other live processes."""
        self._store.add(LEFT, 1)
        end = time.monotonic() + GRACE_S
        while self.rank == 0 and time.monotonic() < end:
            silent = sum(silence_s > SHORT_SILENCE_S for _, silence_s in self._beats.values())
            if self._store.add(LEFT, 0) >= self.size - silent:
                return
            time.sleep(TICK_S / 4)
