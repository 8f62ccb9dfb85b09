"""Annotation files in the ActivityNet layout -> `Video` objects, everything checked once, here.

    {"database": {"<video id>": {"subset": "training", "duration": 12.5, "fps": 30,
                                 "annotations": [{"segment": [1.0, 2.5], "label": "jump", "label_id": 0}, ...]}, ...}}

`duration` (s) and `fps` may be missing; `label_id` may be missing if no entry has one (ids then follow the sorted names).
"""
from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from libs.core.errors import UserError, nearest, shown
from libs.core.names import id_problem
from libs.utils.files.io import read_json

DUPLICATE_TOLERANCE_S = 1e-3
MAX_SEGMENTS = 100_000  # of one video: every point of the network is compared with every segment
MAX_SECONDS = 1e7  # 116 days; beyond, float32 does not tell seconds apart
LIMITS = {"duration": (0.0, MAX_SECONDS), "fps": (1e-3, 1e6)}
MAX_LABEL_ID = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Video:
    """One annotated video.

    subset: lower case; duration_s: inf when the file does not say; fps: None when the file does not say;
    segments: (N, 2) float64, start and end in seconds; labels: (N,) int64 class ids, both read-only and in file order;
    offset: the entry's own `offset` (position of an Ego4D clip in its video), passed on untouched.
    """

    id: str
    subset: str
    duration_s: float
    fps: float | None
    segments: np.ndarray
    labels: np.ndarray
    offset: float | None = None


@dataclass(frozen=True, eq=False)
class Annotations:
    """A whole file: its path, the videos of all subsets by id in file order, and class name -> id over all of them."""

    path: str
    videos: dict[str, Video]
    label_ids: dict[str, int]

    def subset_counts(self) -> dict[str, int]:
        """Subset name (lower case) -> number of videos."""
        counts: dict[str, int] = {}
        for video in self.videos.values():
            counts[video.subset] = counts.get(video.subset, 0) + 1
        return counts


def load_annotations(path: str | os.PathLike, strict: bool = False, allow_unlabelled: bool = False,
                     unlabelled: Collection[str] = ()) -> Annotations:
    """Read and check an annotation file.

    Segments that leave their video, and segments of zero length, are kept with one warning that counts them; `strict`
    refuses them.  `allow_unlabelled` accepts videos without an `annotations` key; so do the subsets named in `unlabelled`.
    Raises UserError naming the file, the video, the entry, the value and the remedy.
    """
    path = str(path)
    database = read_database(path)
    labels = LabelTable(path)
    oddities = _Oddities(path, strict)
    videos = {vid: _video(path, vid, entry, labels, oddities, allow_unlabelled, unlabelled) for vid, entry in database.items()}
    if labels.ids_missing:
        label_ids = {name: i for i, name in enumerate(sorted(labels.names))}
        for vid, names in labels.of_video.items():
            videos[vid] = dataclasses.replace(videos[vid], labels=_frozen([label_ids[name] for name in names], np.int64))
    else:
        label_ids = labels.ids
    oddities.report()
    return Annotations(path, videos, label_ids)


def read_database(path: str, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> dict[str, Any]:
    """The unchecked entries of an annotation file by video id; `pairs_hook` as in `read_json`.

    Raises UserError for a file that is unreadable, no JSON, or without a "database" that holds videos.
    """
    content = read_json(path, "annotation JSON", pairs_hook)
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        found = f"the keys {sorted(content)[:10]}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(f'{path}: has no "database" object (found {found[:200]}); expected '
                        '{"database": {"<video id>": {"subset": ..., "annotations": [...]}}}')
    if not database:
        raise UserError(f'{path}: "database" is empty; add the videos')
    return database


def without_duplicates(video: Video, tolerance_s: float = DUPLICATE_TOLERANCE_S) -> Video:
    """The video without repeated segments (same label, both ends within the tolerance of one kept before) and without
    segments shorter than the tolerance (SPEC 7, 8)."""
    kept: list[int] = []
    near: dict[tuple[int, int], list[tuple[float, float]]] = {}  # kept before, by label and start in units of the tolerance
    for i, ((start, end), label) in enumerate(zip(video.segments.tolist(), video.labels.tolist(), strict=True)):
        place = math.floor(start / tolerance_s)
        repeated = any(abs(s - start) <= tolerance_s and abs(e - end) <= tolerance_s
                       for cell in (place - 1, place, place + 1) for s, e in near.get((label, cell), ()))
        if end - start >= tolerance_s and not repeated:
            kept.append(i)
            near.setdefault((label, place), []).append((start, end))
    return dataclasses.replace(video, segments=_frozen(video.segments[kept], np.float64),
                               labels=_frozen(video.labels[kept], np.int64))


class LabelTable:
    """Class names and ids over a whole file; refuses a file that contradicts itself."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.ids: dict[str, int] = {}
        self.names: set[str] = set()
        self.of_video: dict[str, list[str]] = {}
        self._name_of_id: dict[int, str] = {}
        self._first_where: dict[bool, str] = {}

    @property
    def ids_missing(self) -> bool:
        """True if entries have names but no ids."""
        return not self.ids

    def add(self, vid: str, where: str, entry: dict[str, Any]) -> int:
        """Record one entry; returns its id, or -1 while the file has no ids."""
        name = label_name(where, entry)
        has_id = entry.get("label_id") is not None
        self._first_where.setdefault(has_id, where)
        if len(self._first_where) == 2:
            raise UserError(f"{self._first_where[False]}.label_id: missing, but other entries have one "
                            f"({self._first_where[True]}); give every entry its label_id, or none")
        self.names.add(name)
        self.of_video.setdefault(vid, []).append(name)
        return self.add_id(where, name, entry["label_id"]) if has_id else -1

    def add_id(self, where: str, name: str, value: Any) -> int:
        """Record a class id; UserError where it is none, or contradicts an earlier entry."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_LABEL_ID or value % 1:
            raise UserError(f"{where}.label_id: {shown(value)} is not a class id; expected an integer from 0 on")
        number = int(value)
        if self.ids.setdefault(name, number) != number:
            raise UserError(f"{where}.label_id: {shown(name)} is {number} here and {self.ids[name]} before; "
                            "give each class one id in the whole file")
        if self._name_of_id.setdefault(number, name) != name:
            raise UserError(f"{where}.label_id: {number} is {shown(name)} here and {shown(self._name_of_id[number])} before; "
                            "give each class an id of its own")
        return number


class _Oddities:
    """Counts segments that are legal but suspicious, and tells the user once."""

    def __init__(self, path: str, strict: bool) -> None:
        self.path, self.strict = path, strict
        self.total = self.outside = self.empty = 0
        self.first = ""

    def add(self, where: str, start: float, end: float, duration_s: float) -> None:
        """Look at one segment (s)."""
        self.total += 1
        outside, empty = start < 0 or end > duration_s, start == end
        if not (outside or empty):
            return
        what = f"leaves its video of {duration_s:g} s" if outside else "has zero length"
        message = f"{where}.segment: [{start:g}, {end:g}] {what}"
        if self.strict:
            raise UserError(f"{message}; correct it, or set dataset.strict: false to keep such segments")
        self.first = self.first or message.removeprefix(f"{self.path}: ")
        self.outside += outside
        self.empty += empty

    def report(self) -> None:
        """One warning with the counts, if there is anything to count."""
        if self.first:
            warnings.warn(f"{self.path}: of {self.total} segments {self.outside} leave their video and {self.empty} have zero "
                          f"length (first: {self.first}); they are kept, dataset.strict: true refuses them", stacklevel=3)


def _video(path: str, vid: str, entry: Any, labels: LabelTable, oddities: _Oddities, allow_unlabelled: bool,
           unlabelled: Collection[str]) -> Video:
    where = f"{path}: video {shown(vid)}"
    if problem := id_problem(vid):
        raise UserError(f"{where}: this video id {problem}; rename it")
    if not isinstance(entry, dict):
        raise UserError(f"{where}: is a {type(entry).__name__}; expected an object with subset and annotations")
    subset = subset_of(where, entry)
    duration_s = positive(where, entry, "duration", "seconds")
    items = items_of(where, entry, allow_unlabelled or subset.lower() in unlabelled)
    duration_s = math.inf if duration_s is None else duration_s
    segments, ids = [], []
    for i, item in enumerate(items):
        at = f"{where}, annotations[{i}]"
        if not isinstance(item, dict):
            raise UserError(f"{at}: is {shown(item)}; expected an object with segment and label")
        segments.append(segment_of(at, item))
        ids.append(labels.add(vid, at, item))
        oddities.add(at, *segments[-1], duration_s)
    offset = entry.get("offset")
    if offset is not None:
        offset = _number(offset)
        if offset is None:
            raise UserError(f"{where}.offset: {_shown(entry, 'offset')}; expected a number, or leave the key out")
    return Video(vid, subset.lower(), duration_s, positive(where, entry, "fps", "frames per second"),
                 _frozen(segments, np.float64).reshape(-1, 2), _frozen(ids, np.int64), offset)


def subset_of(where: str, entry: dict[str, Any]) -> str:
    """The subset of a video as written; UserError if there is none."""
    subset = entry.get("subset")
    if not isinstance(subset, str) or not subset:
        raise UserError(f"{where}.subset: {_shown(entry, 'subset')}; expected a name such as \"training\"")
    return subset


def items_of(where: str, entry: dict[str, Any], may_lack: bool = False) -> list[Any]:
    """The unchecked annotations of a video; [] where there are none and `may_lack`; UserError unless it is a list."""
    items = entry.get("annotations")
    if items is None and may_lack:
        items = []
    if not isinstance(items, list):
        raise UserError(f"{where}.annotations: {_shown(entry, 'annotations')}; expected a list (empty: no actions)")
    if len(items) > MAX_SEGMENTS:
        raise UserError(f"{where}.annotations: has {len(items)} segments, at most {MAX_SEGMENTS} are read; split the video, or "
                        "remove what is no annotation")
    return items


def label_name(where: str, entry: dict[str, Any]) -> str:
    """The class name of one entry; UserError if there is none."""
    name = entry.get("label")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}.label: {_shown(entry, 'label')}; expected the name of a class")
    return name


def segment_of(where: str, item: dict[str, Any]) -> tuple[float, float]:
    """(start, end) of one entry in the file's unit, seconds; UserError unless it is two finite numbers, start <= end."""
    value = item.get("segment")
    pair = [_number(v) for v in value] if isinstance(value, list) else []
    if len(pair) != 2 or None in pair:
        raise UserError(f"{where}.segment: {_shown(item, 'segment')}; expected [start, end], two finite numbers in seconds")
    start, end = pair
    if max(abs(start), abs(end)) > MAX_SECONDS:
        raise UserError(f"{where}.segment: [{start:g}, {end:g}] lies more than {MAX_SECONDS:g} s away; give times in seconds")
    if end < start:
        raise UserError(f"{where}.segment: [{start:g}, {end:g}] ends before it starts; correct or remove it")
    return start, end


def _number(value: Any) -> float | None:
    """The value as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def positive(where: str, entry: dict[str, Any], key: str, unit: str) -> float | None:
    """Number `key` (duration or fps) of an entry, or None when it is absent; UserError for anything but a plausible number."""
    if entry.get(key) is None:
        return None
    number = _number(entry[key])
    if number is None or number <= 0:
        raise UserError(f"{where}.{key}: {_shown(entry, key)}; expected {unit} above 0, or leave the key out")
    low, high = LIMITS[key]
    if not low <= number <= high:
        raise UserError(f"{where}.{key}: {_shown(entry, key)}; expected {unit} between {low:g} and {high:g}")
    return number


def _shown(entry: dict[str, Any], key: str) -> str:
    return shown(entry[key]) if key in entry else f"missing{nearest(key, entry)}"


def _frozen(values: Any, dtype: type) -> np.ndarray:
    array = np.array(values, dtype)
    array.setflags(write=False)
    return array
