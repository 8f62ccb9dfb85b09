"""Several processes on this machine, as torchrun would start them, for tests.

    ends = run_processes(2, train.main, "train.py", str(config), "--output", "a")     each with its exit code, stdout and stderr
"""
from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")  # imports torch once, forks fast, and is not touched by what tests have run
CONTEXT.set_forkserver_preload(["libs.engine.training.fit", "libs.engine.inference.evaluate", "torch.utils.tensorboard",
                                "torch._dynamo"])
LIMIT_S = 60  # nothing here takes longer, unless processes wait for each other in vain


@dataclass(frozen=True)
class End:
    """How a process ended: exit code (negative: the signal), and what it printed."""

    code: int
    out: str
    err: str


def run_processes(count: int, main: Callable[[], int | None], *argv: str, each: Callable[[int], None] | None = None) -> list[End]:
    """Run a script's `main` under `run_main` in `count` processes that torchrun's variables tell about each other; by rank.

    `each(rank)` is called in each process before, to change what it does.  `main` and `each` must be importable.
    AssertionError if they do not end.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with tempfile.TemporaryDirectory() as folder:
        logs = [(Path(folder, f"out{rank}"), Path(folder, f"err{rank}")) for rank in range(count)]
        running = [CONTEXT.Process(target=_process, args=({**common, "RANK": r, "LOCAL_RANK": r}, main, argv, each, logs[r]))
                   for r in range(count)]
        try:
            for process in running:
                process.start()
            for process in running:
                process.join(LIMIT_S)
            assert all(process.exitcode is not None for process in running), [err.read_text() for _, err in logs]
        finally:
            for process in running:
                process.kill()
        return [End(p.exitcode, out.read_text(), err.read_text()) for p, (out, err) in zip(running, logs, strict=True)]


def _process(variables: dict[str, object], main: Callable[[], int | None], argv: tuple[str, ...],
             each: Callable[[int], None] | None, logs: tuple[Path, Path]) -> None:
    import torch

    from libs.core.errors import run_main
    for number, log in enumerate(logs, start=1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of reading processes, as it is in a program of its own on Linux
    if each is not None:
        each(int(os.environ["RANK"]))
    sys.argv = list(argv)
    run_main(main)
