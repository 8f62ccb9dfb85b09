"""An annotation file, read to its end: what is readable becomes `Video` objects, every mistake becomes a `Problem`.

`load_annotations` (strict) refuses the first mistake; this reader is for telling a user all of them at once.
"""
from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from libs.core.errors import UserError
from libs.core.problems import Problems
from libs.datasets.annotations import LabelTable, Video, items_of, label_name, positive, read_database, segment_of, subset_of


@dataclass(eq=False)
class Survey:
    """The readable part of an annotation file.

    videos: by id, in file order; `labels` of a Video index `names` here; subset '' where the file does not say.
    entries: per video, the number in its `annotations` of each kept segment; names: class names, sorted; ids: label_id by
    name, {} where the file has none; spellings: lower-case subset -> videos per spelling.
    """

    path: str
    videos: dict[str, Video] = field(default_factory=dict)
    entries: dict[str, list[int]] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    ids: dict[str, int] = field(default_factory=dict)
    spellings: dict[str, Counter] = field(default_factory=dict)

    def of_subset(self, names: tuple[str, ...]) -> list[Video]:
        """Videos of some subsets (lower case), in file order."""
        return [video for video in self.videos.values() if video.subset in names]


def survey_annotations(path: str | os.PathLike, problems: Problems) -> Survey:
    """Read what can be read and add the rest to `problems`; a file that cannot be read at all gives an empty survey."""
    survey = Survey(str(path))
    repeated: list[tuple[str, Any, Any]] = []

    def pairs_hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                repeated.append((key, found[key], value))
            found[key] = value
        return found

    try:
        database = read_database(survey.path, pairs_hook)
    except UserError as error:
        problems.caught("annotation-file", survey.path, "", error)
        return survey
    _report_repeated(survey.path, repeated, problems)
    table = LabelTable(survey.path)
    names: dict[str, list[str]] = {}
    with_id: list[str] = []
    without_id: list[str] = []
    for vid, entry in database.items():
        where = f"{survey.path}: video {vid!r}"
        if not isinstance(entry, dict):
            problems.error("annotation-entry", survey.path, f"video {vid!r}", f"is a {type(entry).__name__}",
                           "expected an object with subset and annotations")
            continue
        names[vid] = _add_video(survey, vid, entry, table, (with_id, without_id), problems)
        _check_id(survey.path, vid, problems)
        if not isinstance(entry.get("subset"), str) or not entry["subset"]:
            try:
                subset_of(where, entry)
            except UserError as error:
                problems.caught("subset", survey.path, f"video {vid!r}", error)
    if with_id and without_id:
        problems.error("label-id", survey.path, without_id[0].removeprefix(f"{survey.path}: "),
                       f"has no label_id, as {len(without_id)} entries, but {len(with_id)} have one (first: "
                       f"{with_id[0].removeprefix(f'{survey.path}: ')})", "give every entry its label_id, or none")
    survey.names = tuple(sorted({name for of_video in names.values() for name in of_video}))
    survey.ids = table.ids
    number = {name: i for i, name in enumerate(survey.names)}
    for vid, of_video in names.items():
        survey.videos[vid].labels.flags.writeable = True
        survey.videos[vid].labels[:] = [number[name] for name in of_video]
        survey.videos[vid].labels.flags.writeable = False
    return survey


def _add_video(survey: Survey, vid: str, entry: dict[str, Any], table: LabelTable, has_id: tuple[list[str], list[str]],
               problems: Problems) -> list[str]:
    """Add one video to the survey with zeros as labels; returns the class names of its segments."""
    where, place = f"{survey.path}: video {vid!r}", f"video {vid!r}"

    def number(key: str, unit: str, most: float) -> float | None:
        try:
            value = positive(where, entry, key, unit)
            if value is not None and value > most:
                raise UserError(f"{where}.{key}: {value:g} is beyond belief; expected {unit}")
        except UserError as error:
            problems.caught(key, survey.path, place, error)
            return None
        return value

    duration_s, fps = number("duration", "seconds", 1e9), number("fps", "frames per second", 1e5)
    subset = entry["subset"] if isinstance(entry.get("subset"), str) else ""
    survey.spellings.setdefault(subset.lower(), Counter())[subset] += 1
    try:
        items = items_of(where, entry)
    except UserError as error:
        problems.caught("annotation-entry", survey.path, place, error)
        items = []
    segments, names, entries = [], [], []
    for i, item in enumerate(items):
        at = f"{where}, annotations[{i}]"
        try:
            if not isinstance(item, dict):
                raise UserError(f"{at}: is {item!r}; expected an object with segment and label")
            name = label_name(at, item)
        except UserError as error:
            problems.caught("annotation-entry", survey.path, place, error)
            continue
        given = item.get("label_id") is not None
        has_id[not given].append(at)
        try:
            if given:
                table.add_id(at, name, item["label_id"])
        except UserError as error:
            problems.caught("label-id", survey.path, place, error)
        try:
            segments.append(segment_of(at, item))
        except UserError as error:
            problems.caught("segment", survey.path, place, error)
            continue
        names.append(name)
        entries.append(i)
    survey.videos[vid] = Video(vid, subset.lower(), math.inf if duration_s is None else duration_s, fps,
                               np.array(segments, np.float64).reshape(-1, 2), np.zeros(len(segments), np.int64))
    survey.entries[vid] = entries
    return names


def _check_id(path: str, vid: str, problems: Problems) -> None:
    if not vid.strip():
        problems.error("video-id", path, f"video {vid!r}", "has an empty name", "give it the name of its feature file")
    elif vid != vid.strip() or "/" in vid or "\\" in vid:
        problems.warning("video-id", path, f"video {vid!r}", "has spaces at an end or a path separator in its name",
                         "the feature file is looked for under exactly this name: use the bare name")


def _report_repeated(path: str, repeated: list[tuple[str, Any, Any]], problems: Problems) -> None:
    for key, first, second in repeated:
        subsets = [value.get("subset") if isinstance(value, dict) else None for value in (first, second)]
        if not all(isinstance(value, dict) for value in (first, second)) or not any("annotations" in v for v in (first, second)):
            problems.error("duplicate-key", path, f"key {key!r}", "is set twice in one object; readers keep the last value",
                           "remove one of the two")
        elif subsets[0] != subsets[1]:
            problems.error("video-in-two-subsets", path, f"video {key!r}", f"is in the file twice, as {subsets[0]!r} and as "
                           f"{subsets[1]!r}; readers keep the last", "a video belongs to one subset: remove one of the two")
        else:
            problems.error("duplicate-video", path, f"video {key!r}", "is in the file twice; readers keep the last",
                           "merge the two entries")
