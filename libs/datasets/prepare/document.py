"""Common code of the converters of official annotation files: checked numbers and entries, and the document in our layout.

    document = Document("activity_net.v1-3.min.json", "1-3")
    document.add_video("v1", "training", duration=12.5);  document.add_segment("v1", "line 3", 1.0, 2.5, "jump")
    document.write("data/x/annotations/x.json");  lines = document.summary()
"""
from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from typing import Any

from libs.core.errors import UserError, article, nearest
from libs.utils.files.csv_files import to_number
from libs.utils.files.io import read_json, write_json_atomic


class Document:
    """Builds an annotation document in our layout (libs/datasets/annotations.py).

    source: the official file, for messages; version: of the document; label_ids: class name -> id (other names are refused),
    None: ids follow the sorted class names.
    """

    def __init__(self, source: str | os.PathLike, version: str, label_ids: Mapping[str, int] | None = None) -> None:
        self.source, self.version, self.label_ids = str(source), version, label_ids
        self._videos: dict[str, dict[str, Any]] = {}
        self._empty: list[str] = []
        self._left_out: list[str] = []

    def __contains__(self, video: str) -> bool:
        return video in self._videos

    @property
    def videos(self) -> dict[str, dict[str, Any]]:
        """Video id -> entry, still without label ids."""
        return self._videos

    def add_video(self, video: str, subset: str, duration: Any, fps: Any = None, /, **more: Any) -> None:
        """Add a video without segments; duration in seconds; `more`: further keys of the entry.

        UserError for a repeated id, and for a duration or fps that is not above 0.
        """
        where = f"{self.source}: video {video!r}"
        if video in self._videos:
            raise UserError(f"{where}: is there twice; a video belongs into one place, remove the other")
        if not isinstance(subset, str) or not subset.strip():
            raise UserError(f"{where}.subset: {subset!r}; expected a name such as training")
        entry = {"subset": subset.strip().lower(), "duration": positive(f"{where}.duration", duration)}
        if fps is not None:
            entry["fps"] = positive(f"{where}.fps", fps)
        self._videos[video] = {**entry, **more, "annotations": []}

    def add_segment(self, video: str, where: str, start: Any, end: Any, label: Any) -> None:
        """Add a segment in seconds; one that does not end after it starts is left out and counted.

        where: place of the entry, for messages.  UserError for times that are not numbers and for unknown labels.
        """
        where = f"{self.source}: {where}"
        if not isinstance(label, str) or not label:
            raise UserError(f"{where}: the label is {label!r}; expected the name of a class")
        if self.label_ids is not None and label not in self.label_ids:
            raise UserError(f"{where}: {label!r} is not in the list of classes{nearest(label, self.label_ids)}")
        start, end = number(f"{where}: start", start), number(f"{where}: end", end)
        if end <= start:
            self._empty.append(f"{where} [{start:g}, {end:g}]".removeprefix(f"{self.source}: "))
            return
        self._videos[video]["annotations"].append({"segment": [start, end], "label": label})

    def leave_out(self, videos: Collection[str], why: str) -> None:
        """Remove videos; the summary gives their number and `why`."""
        for video in videos:
            del self._videos[video]
        if videos:
            self.remark(f"{len(videos):,} videos {why} left out (first: {next(iter(videos))})")

    def remark(self, line: str) -> None:
        """Add a line to the summary."""
        self._left_out.append(line)

    def content(self) -> dict[str, Any]:
        """The document with its label ids; UserError when it has no videos or no segments."""
        if not any(v["annotations"] for v in self._videos.values()):
            raise UserError(f"{self.source}: gives {len(self._videos)} videos without any segment; not the expected file")
        ids = self.label_ids or {name: i for i, name in enumerate(self.classes())}
        database = {video: {**entry, "annotations": [{**a, "label_id": ids[a["label"]]} for a in entry["annotations"]]}
                    for video, entry in self._videos.items()}
        return {"version": self.version, "database": database}

    def write(self, path: str | os.PathLike, content: dict[str, Any] | None = None) -> None:
        """Write the JSON file atomically; content: the result of `content()`, if the caller has it."""
        write_json_atomic(path, self.content() if content is None else content, indent=None)

    def classes(self) -> list[str]:
        """Sorted names of the classes that have a segment."""
        return sorted({a["label"] for v in self._videos.values() for a in v["annotations"]})

    def summary(self) -> list[str]:
        """Lines: videos and segments per subset, number of classes, videos and segments left out."""
        lines = []
        for subset in dict.fromkeys(v["subset"] for v in self._videos.values()):
            entries = [v for v in self._videos.values() if v["subset"] == subset]
            segments, hours = sum(len(v["annotations"]) for v in entries), sum(v["duration"] for v in entries) / 3600
            lines.append(f"{subset}: {len(entries):,} videos ({hours:,.1f} h), {segments:,} segments")
        lines.append(f"{len(self.classes())} classes with segments")
        if self._empty:
            lines.append(f"{len(self._empty):,} segments that do not end after they start left out (first: {self._empty[0]})")
        return lines + self._left_out


def number(where: str, value: Any) -> float:
    """A finite float from a JSON number or a cell of a table; UserError naming `where` otherwise."""
    try:
        result = to_number(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise UserError(f"{where}: {str(value)[:60]!r} is not a finite number; correct it")
    return result


def positive(where: str, value: Any) -> float:
    """`number` above 0."""
    result = number(where, value)
    if result <= 0:
        raise UserError(f"{where}: {result:g} is not above 0; correct it")
    return result


def read_official(path: str | os.PathLike, what: str) -> Any:
    """The `database` object of a JSON file, or the whole file if it has none; UserError unless it maps ids to objects."""
    content = read_json(path, what)
    database = content.get("database", content) if isinstance(content, dict) else None
    if not isinstance(database, dict) or not database or not all(isinstance(v, dict) for v in database.values()):
        raise UserError(f"{path}: does not map video ids to objects; expected {article(what)}")
    return database


def entries_of(where: str, holder: Mapping[str, Any], key: str, optional: bool = False) -> list[dict[str, Any]]:
    """The list of objects under a key; `optional`: missing or null is an empty list.  UserError otherwise."""
    items = holder.get(key)
    if items is None and optional:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        found = f"is {str(items)[:60]}" if key in holder else f"is missing{nearest(key, holder)}"
        raise UserError(f"{where}: {key} {found}; expected a list of objects")
    return items


def whole(where: str, cell: str, below: int) -> int:
    """A whole number from 0 to below - 1; UserError naming `where` otherwise."""
    if not cell.isascii() or not cell.isdigit() or int(cell[:12]) >= below:
        raise UserError(f"{where}: {cell[:60]!r} is not a whole number from 0 to {below - 1}; correct it")
    return int(cell)
