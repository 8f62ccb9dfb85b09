"""Frames per second and duration of videos, from a table, an annotation JSON or a provenance file.

    video,duration,fps                                            CSV; seconds or h:mm:ss; duration and fps may be absent or empty
    {"database": {"<video>": {"duration": 12.5, "fps": 30}}}      JSON; annotations are ignored
    provenance.json                                               of tools/extract_features.py

The column `video` may also be called video_id, as in older files.
"""
from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from libs.core.errors import UserError
from libs.datasets.convert.rows import MEDIA, Row, entries_of, positive_number, video_path, with_ids
from libs.datasets.features.provenance import VideoTiming, parse_provenance, positive
from libs.utils.files.csv_files import numbered_rows, read_csv
from libs.utils.files.io import read_json

LAYOUT = "expected a first line video,duration,fps (duration or fps may be left out) and a line per video"
OLD_NAMES = {"video_id": "video"}
TABLES = (".csv", ".tsv", ".txt")


def read_video_info(path: str | os.PathLike) -> dict[str, VideoTiming]:
    """Video -> what the file says of its time, as in the module's docstring; videos are called as in the file.

    Raises UserError naming the file, the video or line, and the value.
    """
    found: dict[str, VideoTiming] = {}
    known = list(_entries(path))
    entries_of(_rows(known))  # refuses contradictions
    for _, video, timing in known:
        found[video] = found.get(video, VideoTiming()).or_else(timing)
    return found


def read_durations(path: str | os.PathLike, ids: str | None = None) -> dict[str, VideoTiming]:
    """`read_video_info` for conversion: by video id, as `video_id` gives it for `ids`; UserError where one stands for several."""
    rows = [dataclasses.replace(row, video=video_path(row.video)) for row in _rows(_entries(path))]
    entries = entries_of(with_ids(rows, ids, str(path)))
    return {vid: VideoTiming(entry["fps"], entry["duration"]) for vid, entry in entries.items()}


def with_bare_names(videos: dict[str, VideoTiming]) -> dict[str, VideoTiming]:
    """The same, where "a.mp4" counts for "a" too unless the file tells several such videos apart."""
    bare = {video: video.removesuffix(suffix) for video in videos
            if (suffix := PurePosixPath(video).suffix) and suffix.lower() in MEDIA}
    counts = Counter(bare.values())
    return {**{name: videos[video] for video, name in bare.items() if counts[name] == 1}, **videos}


def _entries(path: str | os.PathLike) -> Iterator[tuple[str, str, VideoTiming]]:
    """(place, video, its times) of every entry of a file."""
    ending = Path(path).suffix.lower()
    if ending == ".json":
        videos = _of_json(str(path), read_json(path, "JSON of fps and durations"))
        return ((f"{path}: video {video}", video, timing) for video, timing in videos.items())
    if ending in TABLES:
        return _of_table(path)
    raise UserError(f"{path}: unknown kind of file {ending!r}; use .csv or .json")


def _rows(entries: Iterable[tuple[str, str, VideoTiming]]) -> list[Row]:
    return [Row(where, video, duration_s=timing.duration_s, fps=timing.fps) for where, video, timing in entries]


def _of_json(path: str, content: Any) -> dict[str, VideoTiming]:
    if isinstance(content, dict) and "database" not in content and "videos" in content:
        return parse_provenance(path, content).videos
    entries = content.get("database") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise UserError(f'{path}: expected {{"database": {{"<video id>": {{"fps": ..., "duration": ...}}}}}}, or the '
                        "provenance.json of tools/extract_features.py")
    return {vid: VideoTiming(positive(f"{path}: video {vid}: fps", entry.get("fps"), "fps"),
                             positive(f"{path}: video {vid}: duration", entry.get("duration"), "duration"))
            for vid, entry in entries.items()}


def _of_table(path: str | os.PathLike) -> Iterator[tuple[str, str, VideoTiming]]:
    table = read_csv(path, required=("video",), optional=("duration", "fps"), what="CSV of durations and fps", delimiters=",;\t",
                     strip=True, column_name=lambda name: OLD_NAMES.get(name.strip().lower(), name.strip().lower()),
                     remedy=lambda _: LAYOUT)
    if table.empty:
        raise UserError(f"{path}: {LAYOUT}")
    for line, row in numbered_rows(table):
        video, where = row["video"], f"{path}: line {line}"
        if not video:
            raise UserError(f"{where}: names no video; correct it")
        fps, duration = row.get("fps"), row.get("duration")
        yield where, video, VideoTiming(
            positive_number(fps, f"{where}: video {video}: fps") if fps else None,
            positive_number(duration, f"{where}: video {video}: duration", clock=True) if duration else None)
