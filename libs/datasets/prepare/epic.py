"""EPIC-Kitchens-100, the official annotation tables -> our JSON for verbs, nouns and actions (verb, noun).

    EPIC_100_train.csv, EPIC_100_validation.csv          video_id, start_timestamp, stop_timestamp, verb_class, noun_class
    EPIC_100_video_info.csv                              video_id, duration (s), fps
    EPIC_100_verb_classes.csv, EPIC_100_noun_classes.csv      id, key

Timestamps are HH:MM:SS.ss.

The label of an action is "verb noun" and its id verb_class * NOUNS + noun_class.
"""
from __future__ import annotations

import os
import re
from pathlib import Path

from libs.core.errors import UserError
from libs.core.files import is_folder
from libs.datasets.prepare.document import Document, positive, whole
from libs.utils.files.csv_files import numbered_rows, read_csv

VERBS, NOUNS = 97, 300
TASKS = ("verb", "noun", "action")
TABLES = {"training": "EPIC_100_train.csv", "validation": "EPIC_100_validation.csv"}
VIDEO_INFO = "EPIC_100_video_info.csv"
COLUMNS = ("video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class")
_TIME = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d*)?)")


def annotation_file(folder: str | os.PathLike, task: str) -> Path:
    """Path of the annotations of a task, as the configurations name it."""
    return Path(folder, f"epic_kitchens_100_{task}.json")


def action_id(verb: int, noun: int) -> int:
    """Label id of the action (verb class, noun class)."""
    return verb * NOUNS + noun


def convert_epic(folder: str | os.PathLike) -> dict[str, Document]:
    """Documents by task (verb, noun, action) from a folder with the official tables.

    Raises UserError for a missing table or column, a time or class that cannot be read, a video that is in two subsets or has no
    duration.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise UserError(f"{folder}: no such folder; name the one with {TABLES['training']}, the official annotation tables")
    verbs = _class_names(folder / "EPIC_100_verb_classes.csv", VERBS)
    nouns = _class_names(folder / "EPIC_100_noun_classes.csv", NOUNS)
    sizes = _video_info(folder / VIDEO_INFO)
    label_ids = {"verb": {name: i for i, name in enumerate(verbs)}, "noun": {name: i for i, name in enumerate(nouns)},
                 "action": {f"{verb} {noun}": action_id(i, j) for i, verb in enumerate(verbs) for j, noun in enumerate(nouns)}}
    documents = {task: Document(folder, "EPIC-Kitchens-100", label_ids[task]) for task in TASKS}
    for subset, name in TABLES.items():
        path, seen = folder / name, set()
        for line, row in numbered_rows(read_csv(path, required=COLUMNS, what="EPIC-Kitchens-100 annotation table")):
            video, where = row["video_id"], f"{name} line {line}"
            if video not in seen:
                if video not in sizes:
                    raise UserError(f"{path}: line {line}: video {video!r} is not in {VIDEO_INFO}; take both from one "
                                    "release")
                seen.add(video)
                for document in documents.values():
                    document.add_video(video, subset, *sizes[video])
            start, stop = (_seconds(f"{path}: line {line}: {key}", row[key]) for key in COLUMNS[1:3])
            verb = verbs[whole(f"{path}: line {line}: verb_class", row["verb_class"], VERBS)]
            noun = nouns[whole(f"{path}: line {line}: noun_class", row["noun_class"], NOUNS)]
            for task, label in zip(TASKS, (verb, noun, f"{verb} {noun}"), strict=True):
                documents[task].add_segment(video, where, start, stop, label)
    return documents


def _class_names(path: Path, count: int) -> list[str]:
    """Names by class id; UserError unless the table names 0 to count - 1 once each."""
    names: dict[int, str] = {}
    for line, row in numbered_rows(read_csv(path, required=("id", "key"), what="table of class names")):
        number, name = whole(f"{path}: line {line}: id", row["id"], count), row["key"].strip()
        if number in names or name in names.values() or not name:
            raise UserError(f"{path}: line {line}: {name!r} repeats an id or a name; every class needs one of its own")
        names[number] = name
    if len(names) != count:
        raise UserError(f"{path}: names {len(names)} classes, EPIC-Kitchens-100 has {count}; was the download complete?")
    return [names[i] for i in range(count)]


def _video_info(path: Path) -> dict[str, tuple[float, float]]:
    """(duration s, fps) by video id."""
    sizes = {}
    for line, row in numbered_rows(read_csv(path, required=("video_id", "duration", "fps"), what="table of videos")):
        where = f"{path}: line {line}"
        sizes[row["video_id"]] = positive(f"{where}: duration", row["duration"]), positive(f"{where}: fps", row["fps"])
    return sizes


def _seconds(where: str, text: str) -> float:
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise UserError(f"{where}: {text[:40]!r} is not a time; expected HH:MM:SS.ss")
    hours, minutes, seconds = match.groups()
    return round(int(hours) * 3600 + int(minutes) * 60 + float(seconds), 6)
