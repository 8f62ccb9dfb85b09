"""Features of several videos, one after the other or several at a time in processes of their own."""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch

from libs.core.errors import UserError
from libs.datasets.video.extractors.base import Extractor, NetworkError
from libs.datasets.video.flow import flow_library
from libs.datasets.video.one_video import extract_features

TOLD_S = 0.5  # seconds between two reports of a worker
Result = tuple[np.ndarray, dict[str, Any]]  # features and the entry of the provenance file


def features_of(paths: Iterator[str], extractor: Extractor, workers: int, step: Callable[[int], Any]
                ) -> Iterator[tuple[str, Result | UserError]]:
    """(path, its features or why there are none) as they become ready; step(frames done since).

    workers: videos at a time; with more than one each has a process with a copy of the extractor and its share of the threads.
    A path is asked for when its turn comes.  Raises NetworkError for a network that fails.
    """
    if workers > 1:
        yield from _in_processes(paths, extractor, workers, step)
        return
    for path in paths:
        yield path, attempt(path, extractor, lambda: step(1))


def attempt(path: str, extractor: Extractor, step: Callable[[], Any]) -> Result | UserError:
    """The features of a video, or why there are none; NetworkError for a network that fails."""
    try:
        return extract_features(path, extractor, step)
    except NetworkError:
        raise
    except UserError as error:
        return error


def _in_processes(paths: Iterator[str], extractor: Extractor, workers: int, step: Callable[[int], Any]
                  ) -> Iterator[tuple[str, Result | UserError]]:
    context = multiprocessing.get_context("spawn")
    recipe, threads = (type(extractor), extractor.settings, extractor.preset), max(torch.get_num_threads() // workers, 1)
    idle: list[Connection] = []
    busy: dict[Connection, str] = {}
    with contextlib.ExitStack() as stack:
        while True:
            while idle or len(busy) < workers:
                if (path := next(paths, None)) is None:
                    break
                if not idle:
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_work, args=(theirs, *recipe, threads), daemon=True)
                    process.start()
                    stack.callback(process.kill)
                    theirs.close()
                    idle.append(ours)
                idle[-1].send(path)
                busy[idle.pop()] = path
            if not busy:
                return
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                found = _received(connection, busy[connection])
                if isinstance(found, int):
                    step(found)
                    continue
                idle.append(connection)
                if isinstance(found, NetworkError):
                    raise found
                yield busy.pop(connection), found


def _received(connection: Connection, path: str) -> Any:
    """Frames done since the last message, the features of a video, or an error."""
    try:
        return connection.recv()
    except (EOFError, ConnectionError) as error:
        raise UserError(f"{path}: the process that worked on it has ended, as a rule for lack of memory; the videos before it "
                        "are done: lower --workers or --batch-size, and give the same command again") from error


def _work(connection: Connection, kind: type[Extractor], settings: Any, preset: str | None, threads: int) -> None:
    """Main function of a worker: paths come in, results go out; it ends with the process that started it."""
    torch.set_num_threads(threads)
    with contextlib.suppress(UserError):
        flow_library().setNumThreads(threads)
    extractor = kind(settings, preset)
    frames, told = 0, time.monotonic()

    def step() -> None:
        nonlocal frames, told
        frames += 1
        if time.monotonic() - told > TOLD_S:
            if connection.poll():  # nothing is sent during the work, so this is its end
                os._exit(1)
            connection.send(frames)
            frames, told = 0, time.monotonic()

    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        while True:
            path = connection.recv()
            try:
                found: Any = attempt(path, extractor, step)
            except NetworkError as error:
                found = error
            connection.send(frames)
            frames = 0
            connection.send(found)
