"""Annotation files in the ActivityNet layout -> `Video` objects: the one reader of these files.

    {"database": {"<video id>": {"subset": "training", "duration": 12.5, "fps": 30,
                                 "annotations": [{"segment": [1.0, 2.5], "label": "jump", "label_id": 0}, ...]}, ...}}

`duration` (s) and `fps` may be missing; `label_id` may be missing if no entry has one (ids then follow the sorted names).

    annotations = load_annotations("my.json")                        raises the first mistake
    annotations = load_annotations("my.json", problems=problems)     adds every mistake to `problems`, reads the rest
"""
from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from libs.core.errors import UserError, nearest, shown
from libs.core.names import id_problem, similar_labels, spelled
from libs.core.problems import Problems
from libs.core.schema import FPS_LIMITS, MOST_FRAMES
from libs.core.time_units import refuse_other_unit
from libs.utils.files.io import PairsHook, read_json

DUPLICATE_TOLERANCE_S = 1e-3
MAX_SEGMENTS = 100_000  # of one video: every point of the network is compared with every segment
MAX_SECONDS = 1e7  # 116 days; beyond, float32 does not tell seconds apart
LIMITS = {"duration": (0.0, MAX_SECONDS), "fps": FPS_LIMITS, "frames": (0.0, MOST_FRAMES)}
MAX_LABEL_ID = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Video:
    """One annotated video.

    subset: lower case; duration_s: inf where the file lacks it; fps: None where the file lacks it;
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
    """A whole annotation file.

    path: of the file; videos: those of all subsets by id, in file order; label_ids: class name -> id, over all videos.
    merged: id of a class that counts as another -> id of that one (`merge_labels` of `load_annotations`).
    For checks: file_ids: class name -> label_id in the file, {} where it has none; entries: per video, the number in its
    `annotations` of each segment; spellings: lower-case subset -> videos per spelling, subset '' for videos without one.
    """

    path: str
    videos: dict[str, Video] = field(default_factory=dict)
    label_ids: dict[str, int] = field(default_factory=dict)
    merged: dict[int, int] = field(default_factory=dict)
    file_ids: dict[str, int] = field(default_factory=dict)
    entries: dict[str, list[int]] = field(default_factory=dict)
    spellings: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def subset_counts(self) -> dict[str, int]:
        """Subset name (lower case) -> number of videos."""
        return {name: sum(counts.values()) for name, counts in self.spellings.items()}

    def of_subset(self, names: Collection[str]) -> list[Video]:
        """Videos of some subsets (lower case), in file order."""
        return [video for video in self.videos.values() if video.subset in names]

    def label_counts(self, videos: Iterable[Video]) -> Counter[str]:
        """Class name -> segments in these videos."""
        names = {number: name for name, number in self.label_ids.items()}
        return Counter(names[label] for video in videos for label in video.labels.tolist())


def load_annotations(path: str | os.PathLike, strict: bool = False, allow_unlabelled: bool = False,
                     unlabelled: Collection[str] = (), problems: Problems | None = None, merge_labels: bool = False
                     ) -> Annotations:
    """Read and check an annotation file.

    Segments outside their video and segments of zero length are kept, with one warning that counts them; `strict` refuses them.
    Labels that differ in spelling only are kept as classes of their own, with one warning; `strict` refuses them, `merge_labels`
    gives their segments the id of the most frequent spelling.
    `allow_unlabelled` accepts videos without an `annotations` key, `unlabelled` accepts them in the subsets that it names.
    Raises UserError naming the file, the video, the entry, the value and the remedy, and for times in another unit.

    With `problems`, nothing is raised and no warning given: every mistake becomes a problem, the readable entries are returned
    (none for a file that is not JSON), and class ids always follow the sorted names, since the file's own may be contradictory.
    """
    reader = _Reader(str(path), strict, problems, merge_labels)
    return reader.read(reader.database(), allow_unlabelled, unlabelled)


def check_database(database: Mapping[str, Any], source: str) -> Annotations:
    """`load_annotations` for entries that are yet to be written; `source`: their origin, for messages."""
    return _Reader(source, False, None).read(database, False, ())


def read_database(path: str, pairs_hook: PairsHook | None = None) -> dict[str, Any]:
    """The unchecked entries of an annotation file by video id; `pairs_hook` as in `read_json`.

    Raises UserError for a file that is unreadable, not JSON, or without videos in "database".
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
    """The video without segments shorter than the tolerance, and without repeated ones: same label, both ends within the
    tolerance of one kept before (SPEC items 7 and 8)."""
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


class _Reader:
    """Entries of a file -> `Annotations`; a mistake raises, or is added to `problems`.

    at: place in the file, for messages ("video 'a', annotations[0]").
    """

    def __init__(self, path: str, strict: bool, problems: Problems | None, merge_labels: bool = False) -> None:
        self.path, self.strict, self.problems, self.merge_labels = path, strict, problems, merge_labels
        self.annotations = Annotations(path)
        self.segments = self.outside = self.empty = 0
        self.first_odd = ""
        self._video = ""  # place of the current video
        self._names: dict[str, list[str]] = {}  # class names of the segments, per video
        self._name_of_id: dict[int, str] = {}
        self._places: dict[bool, list[str]] = {True: [], False: []}  # of the entries with and without a label_id

    def database(self) -> dict[str, Any]:
        """The entries by video id; {} for an unreadable file whose mistake became a problem."""
        if self.problems is None:
            return read_database(self.path)
        repeated: list[tuple[str, Any, Any]] = []

        def last_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for key, value in pairs:
                if key in found:
                    repeated.append((key, found[key], value))
                found[key] = value
            return found

        try:
            database = read_database(self.path, last_wins)
        except UserError as error:
            self.problems.caught("annotation-file", self.path, "", error)
            return {}
        for key, first, second in repeated:
            _report_repeated(self.path, key, first, second, self.problems)
        return database

    def read(self, database: Mapping[str, Any], allow_unlabelled: bool, unlabelled: Collection[str]) -> Annotations:
        """The annotations of all entries, with one warning that counts suspicious segments."""
        for vid, entry in database.items():
            self.add_video(vid, entry, allow_unlabelled, unlabelled)
        self.finish()
        if self.problems is None:
            timed = [video for video in self.annotations.videos.values() if math.isfinite(video.duration_s)]
            refuse_other_unit(self.path, {v.id: v.segments for v in timed}, {v.id: v.duration_s for v in timed},
                              {v.id: v.fps for v in timed if v.fps is not None})
            self._settle_similar_labels()
        if self.problems is None and self.first_odd:
            warnings.warn(f"{self.path}: of {self.segments} segments {self.outside} leave their video and {self.empty} have zero "
                          f"length (first: {self.first_odd}); they are kept, dataset.strict: true refuses them", stacklevel=3)
        return self.annotations

    def _settle_similar_labels(self) -> None:
        """Merge labels that differ in spelling only, warn of them, or (`strict`) raise UserError."""
        videos, ids = self.annotations.videos, self.annotations.label_ids
        counts = self.annotations.label_counts(videos.values())
        groups = similar_labels(counts)
        if self.merge_labels:
            merged = {ids[name]: ids[group[0]] for group in groups for name in group[1:]}
            self.annotations.merged.update(merged)
            for vid, video in videos.items():
                labels = [merged.get(label, label) for label in video.labels.tolist()]
                videos[vid] = dataclasses.replace(video, labels=_frozen(labels, np.int64))
        elif groups:
            some = "; ".join(spelled(group, counts) for group in groups[:5]) + ("; ..." if len(groups) > 5 else "")
            message = (f"{self.path}: labels {some}: differ in case, spaces, hyphens or Unicode composition only, but count as "
                       "several classes; write one spelling")
            if self.strict:
                raise UserError(f"{message}, or set dataset.strict: false to keep them apart")
            warnings.warn(f"{message} (--merge-labels of tools/convert_annotations.py and tools/evaluate.py counts them as one, "
                          "dataset.strict: true refuses them)", stacklevel=4)

    def add_video(self, vid: str, entry: Any, allow_unlabelled: bool, unlabelled: Collection[str]) -> None:
        """Check and keep one video; its labels follow in `finish`."""
        self._video = video = f"video {shown(vid)}"
        if problem := id_problem(vid):
            self._wrong("video-id", video, f"this video id {problem}; rename it")
            return
        if not isinstance(entry, dict):
            self._wrong("annotation-entry", video, f"is a {type(entry).__name__}; expected an object with subset and annotations")
            return
        subset = self._subset(entry)
        duration_s = self._positive(entry, "duration", "seconds") or math.inf
        segments, names, numbers = [], [], []
        for i, item in enumerate(self._items(entry, allow_unlabelled or subset.lower() in unlabelled)):
            found = self._segment(f"{video}, annotations[{i}]", item, duration_s)
            if found is not None:
                segments.append(found[0])
                names.append(found[1])
                numbers.append(i)
        offset = _number(entry.get("offset"))
        if offset is None and entry.get("offset") is not None:
            self._wrong("annotation-entry", f"{video}.offset",
                        f"{_shown(entry, 'offset')}; expected a number, or leave the key out")
        fps = self._positive(entry, "fps", "frames per second")
        self.annotations.spellings[subset.lower()][subset] += 1
        self.annotations.entries[vid], self._names[vid] = numbers, names
        self.annotations.videos[vid] = Video(vid, subset.lower(), duration_s, fps,
                                             _frozen(segments, np.float64).reshape(-1, 2), np.empty(len(names), np.int64), offset)

    def finish(self) -> None:
        """Number the classes and fill in the labels of all videos."""
        having, lacking = self._places[True], self._places[False]
        if having and lacking:
            self._video = lacking[0]
            self._wrong("label-id", lacking[0], f"has no label_id, as {len(lacking)} entries, but {len(having)} have one (first: "
                        f"{having[0]}); give every entry its label_id, or none")
        ids = self.annotations.file_ids if self.problems is None else None
        ids = ids or {name: i for i, name in enumerate(sorted({name for names in self._names.values() for name in names}))}
        self.annotations.label_ids.update(ids)
        for vid, names in self._names.items():
            labels = self.annotations.videos[vid].labels
            labels[:] = [ids[name] for name in names]
            labels.setflags(write=False)

    def _wrong(self, kind: str, at: str, message: str) -> None:
        """Raise a mistake, or add it to the problems of the current video."""
        error = UserError(f"{self.path}: {at}: {message}")
        if self.problems is None:
            raise error
        self.problems.caught(kind, self.path, self._video, error)

    def _subset(self, entry: dict[str, Any]) -> str:
        """The subset as written; '' if it is wrong."""
        subset = entry.get("subset")
        if isinstance(subset, str) and subset:
            return subset
        self._wrong("subset", f"{self._video}.subset", f"{_shown(entry, 'subset')}; expected a name such as \"training\"")
        return ""

    def _positive(self, entry: dict[str, Any], key: str, unit: str) -> float | None:
        """Number `key` (duration or fps); None where it is absent or not plausible."""
        if entry.get(key) is None:
            return None
        number, (low, high), at = _number(entry[key]), LIMITS[key], f"{self._video}.{key}"
        if number is None or number <= 0:
            self._wrong(key, at, f"{_shown(entry, key)}; expected {unit} above 0, or leave the key out")
        elif not low <= number <= high:
            self._wrong(key, at, f"{_shown(entry, key)}; expected {unit} between {low:g} and {high:g}")
        else:
            return number
        return None

    def _items(self, entry: dict[str, Any], may_lack: bool) -> list[Any]:
        """The unchecked annotations of a video; [] where they are wrong, or missing and `may_lack`."""
        items, at = entry.get("annotations"), f"{self._video}.annotations"
        if items is None and may_lack:
            return []
        if not isinstance(items, list):
            self._wrong("annotation-entry", at, f"{_shown(entry, 'annotations')}; expected a list (empty: no actions)")
        elif len(items) > MAX_SEGMENTS:
            self._wrong("annotation-entry", at, f"has {len(items)} segments, at most {MAX_SEGMENTS} are read; split the video, "
                        "or remove what is no annotation")
        else:
            return items
        return []

    def _segment(self, at: str, item: Any, duration_s: float) -> tuple[tuple[float, float], str] | None:
        """(start, end) in seconds and class name of one entry; None if it is unusable."""
        if not isinstance(item, dict):
            self._wrong("annotation-entry", at, f"is {shown(item)}; expected an object with segment and label")
            return None
        times = self._times(at, item)
        name = item.get("label")
        if not isinstance(name, str) or not name:
            self._wrong("annotation-entry", f"{at}.label", f"{_shown(item, 'label')}; expected the name of a class")
            return None
        value = item.get("label_id")
        self._places[value is not None].append(at)
        if value is not None:
            self._add_id(f"{at}.label_id", name, value)
        if times is None:
            return None
        self.segments += 1
        if (times[0] < 0 or times[1] > duration_s or times[0] == times[1]) and self.problems is None:
            self._count_odd(at, *times, duration_s)
        return times, name

    def _times(self, at: str, item: dict[str, Any]) -> tuple[float, float] | None:
        """(start, end) in seconds: two finite numbers, start <= end."""
        value, at = item.get("segment"), f"{at}.segment"
        start, end = map(_number, value) if isinstance(value, list) and len(value) == 2 else (None, None)
        if start is None or end is None:
            self._wrong("segment", at, f"{_shown(item, 'segment')}; expected [start, end], two finite numbers in seconds")
        elif max(abs(start), abs(end)) > MAX_SECONDS:
            self._wrong("segment", at, f"[{start:g}, {end:g}] lies more than {MAX_SECONDS:g} s away; give times in seconds")
        elif end < start:
            self._wrong("segment", at, f"[{start:g}, {end:g}] ends before it starts; correct or remove it")
        else:
            return start, end
        return None

    def _add_id(self, at: str, name: str, value: Any) -> None:
        """Record a class id, unless it is invalid or contradicts an earlier entry."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_LABEL_ID or value % 1:
            self._wrong("label-id", at, f"{shown(value)} is not a class id; expected an integer from 0 on")
            return
        number, ids = int(value), self.annotations.file_ids
        if ids.setdefault(name, number) != number:
            self._wrong("label-id", at, f"{shown(name)} is {number} here and {ids[name]} before; give each class one id in the "
                        "whole file")
        elif self._name_of_id.setdefault(number, name) != name:
            self._wrong("label-id", at, f"{number} is {shown(name)} here and {shown(self._name_of_id[number])} before; give each "
                        "class an id of its own")

    def _count_odd(self, at: str, start: float, end: float, duration_s: float) -> None:
        """Count a segment that is legal but suspicious; `strict`: UserError."""
        outside = start < 0 or end > duration_s
        what = f"leaves its video of {duration_s:g} s" if outside else "has zero length"
        message = f"{at}.segment: [{start:g}, {end:g}] {what}"
        if self.strict:
            raise UserError(f"{self.path}: {message}; correct it, or set dataset.strict: false to keep such segments")
        self.first_odd = self.first_odd or message
        self.outside += outside
        self.empty += start == end


def _number(value: Any) -> float | None:
    """The value as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _report_repeated(path: str, key: str, first: Any, second: Any, problems: Problems) -> None:
    """Add the problem of a key that occurs twice in one object."""
    both = (first, second)
    if not all(isinstance(value, dict) for value in both) or not any("annotations" in value for value in both):
        problems.error("duplicate-key", path, f"key {key!r}", "is set twice in one object; readers keep the last value",
                       "remove one of the two")
    elif first.get("subset") != second.get("subset"):
        problems.error("video-in-two-subsets", path, f"video {key!r}", f"is in the file twice, as {first.get('subset')!r} and as "
                       f"{second.get('subset')!r}; readers keep the last", "a video belongs to one subset: remove one of the two")
    else:
        problems.error("duplicate-video", path, f"video {key!r}", "is in the file twice; readers keep the last",
                       "merge the two entries")


def _shown(entry: dict[str, Any], key: str) -> str:
    return shown(entry[key]) if key in entry else f"missing{nearest(key, entry)}"


def _frozen(values: Any, dtype: type) -> np.ndarray:
    array: np.ndarray = np.array(values, dtype)
    array.setflags(write=False)
    return array
