"""Runs train.py and eval.py as subprocesses: command lines, log files, and a scheduler for runs that wait for each other.

    commands = [train_command(config, "seed0", overrides), eval_command(config, checkpoint, "ema", overrides)]
    run_commands(commands, log_of(folder), threads_per_job(2), "seed 0")
    run_graph({"teacher": [], "student": ["teacher"]}, work, jobs=2)
"""
from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TextIO, TypeVar

from libs.core.errors import EXIT_STOPPED, Stopped, Terminated, UserError
from libs.engine.runtime.stop_signals import STARTED_BY
from libs.utils.files.io import made, read_json
from libs.utils.progress import Clock, Progress, no_progress

ROOT = Path(__file__).resolve().parents[3]
TAIL = 5  # lines of a failed program's log that its error shows
Key = TypeVar("Key")
Result = TypeVar("Result")


def train_command(config: str | os.PathLike, name: str, overrides: Sequence[str] = (),
                  eval_every: int | None = None) -> list[str]:
    """Command line that trains `config` as the run `name`, or resumes it; `eval_every` in epochs, None: never."""
    extra = ["--eval-freq", str(eval_every)] if eval_every else []
    return [sys.executable, str(ROOT / "train.py"), str(config), "--output", name, "--resume", "auto", *extra, *_set(overrides)]


def eval_command(config: str | os.PathLike, checkpoint: Path, weights: str, overrides: Sequence[str] = ()) -> list[str]:
    """Command line that evaluates the `ema` or `raw` weights of a checkpoint; the results go beside it."""
    return [sys.executable, str(ROOT / "eval.py"), str(config), str(checkpoint), "--weights", weights, *_set(overrides)]


def shown(command: Sequence[str]) -> str:
    """A command line as typed in the repository."""
    return shlex.join(["python", Path(command[1]).name, *command[2:]])


def log_of(folder: Path) -> Path:
    """The file for the output of a run's programs, beside its folder."""
    return folder.with_name(folder.name + ".log")


def threads_per_job(jobs: int) -> int:
    """The machine's cores divided by `jobs` processes (at least 1)."""
    return max((os.cpu_count() or 1) // jobs, 1)


class Programs:
    """The programs that this process runs; `stop` ends them all."""

    def __init__(self) -> None:
        self._lock, self._stopping = threading.Lock(), False
        self._running: set[subprocess.Popen] = set()

    def run(self, command: Sequence[str], output: TextIO, environment: Mapping[str, str]) -> int:
        """Run a program to its end; returns its exit code (-N: killed by signal N).  Raises Stopped after `stop`."""
        with self._lock:
            if self._stopping:
                raise Stopped("stopped before the next program began; start the same command again to go on")
            program = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
            self._running.add(program)
        try:
            return program.wait()
        finally:
            with self._lock:
                self._running.discard(program)

    def stop(self) -> None:
        """Start no more programs, and send SIGTERM to those that run: they save and stop."""
        with self._lock:
            self._stopping = True
            for program in self._running:
                program.terminate()

    def allow(self) -> None:
        """Undo `stop`."""
        with self._lock:
            self._stopping = False


PROGRAMS = Programs()


def run_commands(commands: Sequence[Sequence[str]], log: Path, threads: int, label: str) -> None:
    """Run programs one after the other, their output appended to `log`; OMP_NUM_THREADS is `threads` unless it is set already.

    train.py saves and stops when this process ends, even if it is killed.  Raises UserError when a program fails, with the end of
    its output, or when the log cannot be written; Stopped when a program was stopped and has saved its state.
    """
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, STARTED_BY: str(os.getpid())}
    with _opened(log) as file:
        for command in commands:
            if code := PROGRAMS.run(command, file, environment):
                if code == EXIT_STOPPED:
                    raise Stopped(f"{label}: {Path(command[1]).name} was stopped and has saved its state, see {log}; start the "
                                  "same command again to go on")
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "failed"
                tail = "\n  ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:])
                raise UserError(f"{label} {how}, see {log}; it ends with:\n  {tail or 'nothing: is there space left for it?'}")


def read_results(file: Path) -> dict[str, Any]:
    """The scores that eval.py has written, mAP from 0 to 1.  UserError if the file is missing, damaged or of another kind."""
    results = read_json(file, "results file of eval.py")
    score = results.get("average_mAP") if isinstance(results, dict) else None
    if not isinstance(score, (int, float)) or not math.isfinite(score):
        raise UserError(f"{file}: average_mAP: missing or not a number; remove the file and evaluate again")
    return results


def run_graph(waits_for: Mapping[Key, Collection[Key]], work: Callable[[Key], Result], jobs: int,
              progress: Progress = no_progress) -> dict[Key, Result]:
    """Call `work(key)` in threads, at most `jobs` at a time, each key after the keys that it waits for; results by key.

    Keys that are ready start in the order of the mapping.  After a failure no other key starts; when those that run are done, the
    first failure is raised.  `progress(done, of how many)` is called after each success.  On Ctrl-C and SIGTERM the running
    programs save and stop before the exception is raised again.
    ValueError if keys wait for each other in a circle, or for a key that is not there.
    """
    PROGRAMS.allow()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            return _run_graph(pool, waits_for, work, jobs, progress)
        except (KeyboardInterrupt, Terminated) as stop:
            PROGRAMS.stop()  # before the pool waits for its threads
            raise type(stop)("stopped, and what was being trained is saved; start the same command again to go on") from None


def _run_graph(pool: ThreadPoolExecutor, waits_for: Mapping[Key, Collection[Key]], work: Callable[[Key], Result], jobs: int,
               progress: Progress) -> dict[Key, Result]:
    waiting, results = dict(waits_for), {}
    running: dict[Future, Key] = {}
    failure: BaseException | None = None
    while True:
        if failure is None:  # no more than can start at once, so that none is left in the pool's queue
            ready = [key for key, before in waiting.items() if all(other in results for other in before)]
            for key in ready[:jobs - len(running)]:
                del waiting[key]
                running[pool.submit(work, key)] = key
        if not running:
            break
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            key = running.pop(future)
            if error := future.exception():
                failure = failure or error
            else:
                results[key] = future.result()
                progress(len(results), len(waits_for))
    if failure is not None:
        raise failure
    if waiting:
        raise ValueError(f"never ready: {', '.join(map(str, waiting))}")
    return {key: results[key] for key in waits_for}


def report_runs() -> Progress:
    """A `progress` for run_graph that prints how many runs are done and the time left."""
    clock = Clock()
    return lambda done, total: print(f"{done}/{total} runs done, {clock.left(done, total)}", flush=True)


def _set(overrides: Sequence[str]) -> list[str]:
    return ["--set", *overrides] if overrides else []


def _opened(log: Path) -> TextIO:
    try:
        with made(log.parent):
            return open(log, "a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{log}: cannot be written ({error.strerror}); choose another output_folder or --output") from error
