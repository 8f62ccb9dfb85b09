"""Starting train.py and eval.py as processes of their own: their command lines, their log, and a scheduler for runs that wait
for each other.

    commands = [train_command(config, "seed0", overrides), eval_command(config, checkpoint, "ema", overrides)]
    run_commands(commands, log_of(folder), threads_per_job(2), "seed 0")
    run_graph({"teacher": [], "student": ["teacher"]}, work, jobs=2)
"""
from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TextIO, TypeVar

from libs.core.errors import EXIT_STOPPED, Stopped, Terminated, UserError
from libs.engine.inference.evaluate import evaluation_folder
from libs.engine.runtime.stop_signals import STARTED_BY
from libs.utils.files.io import read_json
from libs.utils.progress import Clock

ROOT = Path(__file__).resolve().parents[3]
TAIL = 5  # lines of a failed program's log that its error shows
Key = TypeVar("Key")
Result = TypeVar("Result")


def train_command(config: str | os.PathLike, name: str, overrides: Sequence[str] = (),
                  eval_every: int | None = None) -> list[str]:
    """Command line that trains `config` as the run `name`, or goes on with it; `eval_every` in epochs, None: never."""
    extra = ["--eval-freq", str(eval_every)] if eval_every else []
    return [sys.executable, str(ROOT / "train.py"), str(config), "--output", name, "--resume", "auto", *extra, *_set(overrides)]


def eval_command(config: str | os.PathLike, checkpoint: Path, weights: str, overrides: Sequence[str] = ()) -> list[str]:
    """Command line that evaluates the `ema` or `raw` weights of a checkpoint; the results go beside it."""
    return [sys.executable, str(ROOT / "eval.py"), str(config), str(checkpoint), "--weights", weights, *_set(overrides)]


def shown(command: Sequence[str]) -> str:
    """A command line as one would type it in the repository."""
    return shlex.join(["python", Path(command[1]).name, *command[2:]])


def log_of(folder: Path) -> Path:
    """Where the output of a run's programs goes: beside its folder."""
    return folder.with_name(folder.name + ".log")


def threads_per_job(jobs: int) -> int:
    """The machine's cores, shared out among `jobs` processes (at least 1)."""
    return max((os.cpu_count() or 1) // jobs, 1)


class Programs:
    """The programs that this process runs, so that they can be asked to stop when it is."""

    def __init__(self) -> None:
        self._lock, self._stopping = threading.Lock(), False
        self._running: set[subprocess.Popen] = set()

    def run(self, command: Sequence[str], output: TextIO, environment: Mapping[str, str]) -> int:
        """Run one to its end; its exit code (-N: killed by signal N).  Stopped if none may begin any more."""
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
        """Begin no other one, and ask those that run to save and stop (SIGTERM)."""
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

    A train.py among them saves and stops when this process ends, however that ends.  Raises UserError at the first one that
    fails, with the end of its output, or when the log cannot be written; Stopped at one that was stopped and has saved its state.
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
                raise UserError(f"{label} {how}, see {log}; it ends with:\n  {tail}")


def results_file(checkpoint: Path, weights: str) -> Path:
    """Where eval.py writes the scores of a checkpoint's `ema` or `raw` weights."""
    return evaluation_folder(checkpoint, weights) / "results.json"


def read_results(checkpoint: Path, weights: str) -> dict[str, Any]:
    """The scores that eval.py has written, mAP as shares of 1.  UserError if the file is missing, damaged or of another kind."""
    file = results_file(checkpoint, weights)
    results = read_json(file, "results file of eval.py")
    score = results.get("average_mAP") if isinstance(results, dict) else None
    if not isinstance(score, (int, float)) or not math.isfinite(score):
        raise UserError(f"{file}: average_mAP: missing or not a number; remove the file and evaluate again")
    return results


def run_graph(waits_for: Mapping[Key, Collection[Key]], work: Callable[[Key], Result], jobs: int,
              progress: Callable[[int, int], None] = lambda done, total: None) -> dict[Key, Result]:
    """Call `work(key)` in threads, at most `jobs` at a time, each key after the keys that it waits for; results by key.

    Keys that may begin do so in the order of the mapping.  After a failure nothing else begins, what runs is waited for, and
    the first failure is raised.  `progress(done, of how many)` is called after each success.  Ctrl-C and SIGTERM ask the
    programs that run to save and stop, wait for them and go on upwards.
    ValueError if keys wait for each other in a circle, or for one that is not there.
    """
    PROGRAMS.allow()
    try:
        return _run_graph(waits_for, work, jobs, progress)
    except (KeyboardInterrupt, Terminated) as stop:
        raise type(stop)("stopped, and what was being trained is saved; start the same command again to go on") from None


def _run_graph(waits_for: Mapping[Key, Collection[Key]], work: Callable[[Key], Result], jobs: int,
               progress: Callable[[int, int], None]) -> dict[Key, Result]:
    waiting, results = dict(waits_for), {}
    running: dict[Future, Key] = {}
    failure: BaseException | None = None
    with ThreadPoolExecutor(jobs) as pool, _stop_programs():
        while True:
            if failure is None:  # no more than can start at once, so that none is left in the pool's queue
                ready = [key for key, others in waiting.items() if all(other in results for other in others)]
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


@contextlib.contextmanager
def _stop_programs() -> Iterator[None]:
    """Before the pool's threads are waited for."""
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        PROGRAMS.stop()
        raise


def report_runs() -> Callable[[int, int], None]:
    """A `progress` for run_graph that prints how many runs are done and how long the others will take."""
    clock = Clock()
    return lambda done, total: print(f"{done}/{total} runs done, {clock.left(done, total)}", flush=True)


def _set(overrides: Sequence[str]) -> list[str]:
    return ["--set", *overrides] if overrides else []


def _opened(log: Path) -> TextIO:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return open(log, "a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{log}: cannot be written ({error.strerror}); choose another output_folder or --output") from error
