"""The features of one video: frames -> windows -> vectors, by an extractor.

Feature t sees frames t * stride .. t * stride + num_frames - 1 of a grid of constant fps (libs/datasets/grid.py).
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from libs.core.errors import UserError, note
from libs.datasets.video.decoding import Decoded, probe, read_frames
from libs.datasets.video.extractors.base import Extractor
from libs.utils.ahead import ahead

MOST_REPEATED = 10  # times that --fps may use one frame
DECODED_AHEAD = 8  # frames


def clips(items: Iterable[Any], num_frames: int, stride: int) -> Iterator[list[Any]]:
    """Windows t * stride .. t * stride + num_frames - 1 of a sequence, as lists of its items.

    A sequence shorter than a window gives one window, padded with its last item; an empty one gives none.
    """
    held: deque[Any] = deque(maxlen=num_frames)
    count = 0
    for count, item in enumerate(items, 1):
        held.append(item)
        if count >= num_frames and (count - num_frames) % stride == 0:
            yield list(held)
    if 0 < count < num_frames:
        yield [*held, *[held[-1]] * (num_frames - count)]


def extract_features(path: str, extractor: Extractor, step: Callable[[], Any] = lambda: None
                     ) -> tuple[np.ndarray, dict[str, Any]]:
    """(T, C) float32 features of one video and its entry in the provenance file.

    One thread decodes and another prepares the frames, up to a batch in advance, while this one runs the network; step() is
    called per frame.  Memory is a window of items, a batch of windows and these frames, independent of the length.

    Raises UserError for an unusable video, and NetworkError for a network that fails.
    """
    info, settings = probe(path), extractor.settings
    if settings.fps and settings.fps > MOST_REPEATED * info.fps:
        raise UserError(f"{path}: has {info.fps:g} frames per second, so --fps {settings.fps:g} would repeat every frame "
                        f"{settings.fps / info.fps:.3g} times; use at most {MOST_REPEATED * info.fps:g}")
    found = Decoded()
    frames = read_frames(path, settings.fps, functools.partial(extractor.fit, path), settings.allow_truncated, found,
                         extractor.scaling)
    prepared = extractor.prepare(_counted(ahead(frames, DECODED_AHEAD), step), path)
    rows = []
    with contextlib.closing(ahead(prepared, settings.batch_size * settings.stride)) as items:
        for batch in batches(clips(items, settings.num_frames, settings.stride), settings.batch_size):
            rows.append(extractor.features(batch, path))
            _give_back(len(rows))
    fps = settings.fps or info.fps
    if found.variable_rate and settings.fps is None:
        note(f"warning: {path}: has a variable frame rate; frames were taken at its average of {fps:g} fps: extract_features.py "
             "--fps makes all videos of a training alike")
    return np.concatenate(rows), {
        "source": path, "bytes": os.path.getsize(path), "fps": fps, "native_fps": info.fps,
        "frames": found.frames, "decoded_frames": found.source_frames, "duration": round(found.duration_s, 6),
        "width": found.width, "height": found.height, "variable_frame_rate": found.variable_rate, "vectors": sum(map(len, rows))}


def batches(windows: Iterator[list[Any]], size: int) -> Iterator[list[list[Any]]]:
    """The windows, `size` at a time."""
    while batch := list(itertools.islice(windows, size)):
        yield batch


def _give_back(batches: int) -> None:
    """Return freed memory to the system every 32 batches: glibc would keep a gigabyte of fragments for a long video."""
    if batches % 32 == 0 and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _counted(frames: Iterable[np.ndarray], step: Callable[[], Any]) -> Iterator[np.ndarray]:
    for frame in frames:
        step()
        yield frame
