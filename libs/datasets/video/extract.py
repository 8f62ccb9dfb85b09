"""Raw videos -> feature files, by a named extractor (libs/datasets/video/extractors/).

    extractor = create("program:network.pt2", {"num_frames": 16, "stride": 4})     its networks loaded
    extract_videos(videos, folder, extractor)          one .npy (T, C) per video and provenance.json
"""
from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from libs.core.errors import UserError, note
from libs.core.files import entries, is_folder
from libs.datasets.features.formats import VIDEO_EXTENSIONS
from libs.datasets.video.decoding import probe
from libs.datasets.video.extractors.base import Extractor
from libs.datasets.video.feature_folder import FeatureFolder
from libs.datasets.video.workers import features_of
from libs.utils.progress import Progress, lines, no_progress, terminal_bar

POLL_S = 1.0  # between two looks at videos that other processes work on


def extract_videos(videos: Sequence[str], folder: str | os.PathLike, extractor: Extractor, overwrite: bool = False,
                   advance: Progress | None = None, workers: int = 1, shard: tuple[int, int] = (0, 1)
                   ) -> tuple[int, int, dict[str, str]]:
    """Write folder/<name>.npy for every video without one; returns (made, skipped, path -> line of each video that failed).

    videos: files, and folders of them; advance(videos done, of how many): None: lines, beside the bar of a terminal; workers:
    videos at a time; shard (i, n): videos i, i + n, i + 2 n, ... alone.  Other processes may work on the same folder: a video is
    done by one of them, and at the end this one waits for theirs, to do what they leave.
    The provenance file is written after each video, so the videos that it lists are complete.  Raises UserError for two videos of
    one name and as `FeatureFolder`; NetworkError for a network that fails.
    """
    names = _named(videos)
    target = FeatureFolder(Path(folder), extractor, names, overwrite)
    mine = list(names)[shard[0]::shard[1]]
    todo = [name for name in target.todo if name in set(mine)]
    failed: dict[str, str] = {}
    made, left = 0, todo
    by_others: list[str] = []
    advance = advance or (no_progress if sys.stderr.isatty() else lines("videos", 1))
    frames = {name: _frames(names[name]) for name in todo}
    with contextlib.closing(target), terminal_bar(sum(frames.values()) or None, "frames", unit="frame") as bar:
        while left:
            held: list[str] = []
            paths = (names[name] for name in _free(target, left, held, by_others))
            for path, found in features_of(paths, extractor, min(workers, len(left)), bar.update):
                if isinstance(found, UserError):
                    failed[path] = str(found)
                else:
                    target.save(Path(path).stem, *found)
                    made += 1
                target.release(Path(path).stem)
                bar.total = sum(n for name, n in frames.items() if name not in by_others) or None
                advance(made + len(failed) + len(by_others), len(todo))
            if held and len(held) == len(left):
                time.sleep(POLL_S)
            left = held
    return made, len(mine) - made - len(failed), failed


def _free(target: FeatureFolder, names: Sequence[str], held: list[str], by_others: list[str]) -> Iterator[str]:
    """Those of the videos that this process is to do, each claimed when it is asked for.

    Those that others work on are added to `held`, those that others have done to `by_others`.
    """
    for name in names:
        if not target.claim(name):
            held.append(name)
        elif target.made_since(name):
            target.release(name)
            by_others.append(name)
        else:
            yield name


def _named(videos: Sequence[str]) -> dict[str, str]:
    """Name of the features -> video; UserError for two videos of one name."""
    names: dict[str, str] = {}
    for path in _video_files(videos):
        if names.setdefault(Path(path).stem, path) != path:
            raise UserError(f"{path}: has the same name as {names[Path(path).stem]}; both would become {Path(path).stem}.npy: "
                            "rename one of them, or extract each to a folder of its own")
    return names


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


def _frames(path: str) -> int:
    """Frames of a video, 0 where its header does not tell."""
    with contextlib.suppress(UserError):
        info = probe(path)
        return round((info.duration_s or 0) * info.fps)
    return 0
