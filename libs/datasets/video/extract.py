"""Raw videos -> feature files, by a named extractor (libs/datasets/video/extractors/).

    extractor = create("program:network.pt2", {"num_frames": 16, "stride": 4})     its networks loaded
    extract_videos(videos, folder, extractor)          one .npy (T, C) per video and provenance.json

Feature t sees frames t * stride .. t * stride + num_frames - 1 of a grid of constant fps (libs/datasets/grid.py).
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import platform
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from libs.core.errors import UserError, note
from libs.core.files import entries, exists, is_file, is_folder
from libs.datasets.features.formats import VIDEO_EXTENSIONS
from libs.datasets.features.provenance import FILE_NAME
from libs.datasets.video.decoding import Decoded, probe, read_frames
from libs.datasets.video.extractors.base import Extractor, NetworkError
from libs.datasets.video.extractors.program import Program
from libs.utils.ahead import ahead
from libs.utils.files.io import read_json, write_atomic, write_json_atomic
from libs.utils.progress import Progress, lines, no_progress, terminal_bar

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
        note(f"warning: {path}: has a variable frame rate; frames were taken at its average of {fps:g} fps: --fps makes all "
             "videos alike")
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


def extract_videos(videos: Sequence[str], folder: str | os.PathLike, extractor: Extractor, overwrite: bool = False,
                   advance: Progress | None = None) -> tuple[int, int, dict[str, str]]:
    """Write folder/<name>.npy for every video without one; returns (made, skipped, path -> line of each video that failed).

    videos: files, and folders of them; advance(videos done, of how many): None: lines, beside the bar of a terminal.
    The provenance file is written after each video, so the videos that it lists are complete.  Raises UserError for two videos of
    one name and, unless `overwrite`, for features there of other settings, of another video of one name or of another tool;
    NetworkError for a network that fails.
    """
    names: dict[str, str] = {}
    for path in _video_files(videos):
        if names.setdefault(Path(path).stem, path) != path:
            raise UserError(f"{path}: has the same name as {names[Path(path).stem]}; both would become {Path(path).stem}.npy: "
                            "rename one of them, or extract each to a folder of its own")
    folder = Path(folder)
    head = extractor.describe()
    done = _done(folder / FILE_NAME, head, names, overwrite)
    for name, path in names.items():
        _refuse_another_video(path, folder / f"{name}.npy", done.get(name))
        if not overwrite and is_file(folder / f"{name}.npy") and not exists(folder / FILE_NAME):
            raise UserError(f"{folder / name}.npy: is not by this tool, which would write {FILE_NAME} beside it, and would be "
                            "replaced; choose another folder, or add --overwrite")
    failed: dict[str, str] = {}
    todo = [(name, path) for name, path in names.items()
            if not (is_file(folder / f"{name}.npy") and exists(path)
                    and done.get(name, {}).get("bytes") == os.path.getsize(path))]
    advance = advance or (no_progress if sys.stderr.isatty() else lines("videos", 1))
    with terminal_bar(_frames(path for _, path in todo), "frames", unit="frame") as bar:
        for i, (name, path) in enumerate(todo, 1):
            bar.set_postfix_str(name, refresh=False)
            try:
                feats, entry = extract_features(path, extractor, bar.update)
            except NetworkError:
                raise
            except UserError as error:
                failed[path] = str(error)
            else:
                noted = {**head, "channels": int(feats.shape[1]), "libraries": extractor.libraries(), "videos": done}
                if not done:  # features without this file are not ours
                    write_json_atomic(folder / FILE_NAME, noted)
                write_atomic(folder / f"{name}.npy", functools.partial(np.save, arr=feats))
                done[name] = entry
                write_json_atomic(folder / FILE_NAME, noted)
            advance(i, len(todo))
    return len(todo) - len(failed), len(names) - len(todo), failed


def refuse_failed(failed: Iterable[str], videos: int) -> None:
    """Print the lines of videos that failed, but the first, and raise UserError with that one; nothing where none failed."""
    first, *others = [*failed] or [""]
    for line in others:
        note(f"failed: {line}")
    if others:
        first = f"{len(others) + 1} of {videos} videos failed (the others are done); the first: {first}"
    if first:
        raise UserError(first)


def _video_files(paths: Iterable[str]) -> Iterator[str]:
    """The paths, with the videos in a folder in its place; UserError for a folder without any."""
    for path in paths:
        if not is_folder(path) or path.lower().endswith(VIDEO_EXTENSIONS):  # a folder named as a video fails as one
            yield path
        elif inside := [str(p) for p in entries(path) if p.suffix.lower() in VIDEO_EXTENSIONS]:
            yield from inside
        else:
            raise UserError(f"{path}: holds no videos ({', '.join(VIDEO_EXTENSIONS)}); name the files themselves")


def _refuse_another_video(path: str, features: Path, entry: dict[str, Any] | None) -> None:
    """UserError if the feature file is there and of another video; one of equal size whose path is gone has been moved."""
    if entry is None or not is_file(features) or not exists(path) or entry.get("source") == path:
        return
    source = str(entry.get("source"))
    same = os.path.samefile(source, path) if exists(source) else entry.get("bytes") == os.path.getsize(path)
    if not same:
        raise UserError(f"{path}: {features} holds the features of another video of this name, {source}; rename one of the "
                        "videos, choose another folder, or remove that file to replace it")


def _frames(paths: Iterable[str]) -> int | None:
    total = 0
    for path in paths:
        with contextlib.suppress(UserError):
            info = probe(path)
            total += round((info.duration_s or 0) * info.fps)
    return total or None


def _done(path: Path, head: dict[str, Any], names: Collection[str], overwrite: bool) -> dict[str, Any]:
    """Entries of videos that an earlier run with the same settings finished; with `overwrite` those of other videos than `names`.

    Raises UserError for features of other settings, unless all of them are overwritten.
    """
    if not exists(path):
        return {}
    before = read_json(path, "provenance file")
    if not isinstance(before, dict) or not isinstance(before.get("videos"), dict):
        raise UserError(f"{path}: is not a provenance file of this tool; choose another folder")
    before.setdefault("extractor", Program.name)  # a folder from the time when there was no other
    kept = {name: entry for name, entry in before["videos"].items() if not (overwrite and name in names)}
    key = next((key for key, value in head.items() if key != "preset" and before.get(key) != value), None)
    if key is None:
        return kept
    if overwrite and not any(is_file(path.parent / f"{name}.npy") for name in kept):
        return {}
    others = ", ".join(list(kept)[:3])
    remedy = f"name these {len(kept)} videos, too ({others}, ...)" if overwrite else "add --overwrite to replace them"
    raise UserError(f"{path}: the features there were made with another {key} ({str(before.get(key))[:150]}, now "
                    f"{str(head[key])[:150]}); choose another folder, or {remedy}")
