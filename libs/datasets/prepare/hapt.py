"""UCI HAPT (smartphone activities and postural transitions) -> ActivityNet-style annotations and window features.

Reads the published layout from a zip, a tar or a folder (RawData/ may lie anywhere inside):
    RawData/acc_expEE_userUU.txt, RawData/gyro_expEE_userUU.txt   n rows of 3 numbers at 50 Hz, in g and in rad/s
    RawData/labels.txt                                            rows: experiment user activity first last (1-based, inclusive)
    activity_labels.txt                                           rows: activity id (from 1), name
and writes
    annotations/hapt.json                  one "video" expEE_userUU per recording, times in seconds
    features/expEE_userUU.npy              float32 (T, 300), T = floor((n - 50) / 25) + 1
Data: Reyes-Ortiz et al., Transition-Aware Human Activity Recognition Using Smartphones, Neurocomputing 2015.
"""
from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from libs.core.errors import UserError, note
from libs.utils.files.archives import members, read
from libs.utils.files.io import write_json_atomic
from libs.utils.files.staging import refuse_foreign, staged

FPS = 50
WINDOW, STRIDE = 50, 25
DEFAULT_VAL_USERS = (2, 9, 12, 16, 21, 27)
ANNOTATIONS, FEATURES = "annotations/hapt.json", "features"
_SIGNAL = re.compile(r"(acc|gyro)_exp(\d+)_user(\d+)\.txt")
Text = tuple[str, str]  # name, for messages, and contents of a file


class LabelRow(NamedTuple):
    """One row of labels.txt: samples are 1-based, `last` included; `line` is its line number, for messages."""

    experiment: int
    user: int
    activity: int
    first: int
    last: int
    line: int


@dataclass(frozen=True)
class RawFiles:
    """The published files, each (name, text); `signals`: (experiment, user) -> {"acc": (name, text), "gyro": ...}."""

    labels: Text
    activities: Text
    signals: dict[tuple[int, int], dict[str, Text]]


def parse_signal(name: str, text: str) -> np.ndarray:
    """(n, 3) float64 samples of one signal file, each number correctly rounded.

    Raises UserError naming the file and line for a row without exactly 3 finite numbers.
    """
    lines = text.rstrip().splitlines()
    values: list[float] = []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if len(parts) != 3:
            raise UserError(f"{name}: line {number}: {len(parts)} columns, expected 3 (x y z): {line.strip()[:60]!r}")
        try:
            values += map(float, parts)
        except ValueError as error:
            raise UserError(f"{name}: line {number}: not three numbers: {line.strip()[:60]!r}") from error
    samples = np.array(values, dtype=np.float64).reshape(-1, 3)
    bad = ~np.isfinite(samples).all(axis=1)
    if "_" in text:  # Python reads 1_0 as 10
        bad |= np.array(["_" in line for line in lines])
    if bad.any():
        number = int(bad.argmax()) + 1
        raise UserError(f"{name}: line {number}: not three finite numbers: {lines[number - 1].strip()[:60]!r}")
    return samples


def parse_labels(name: str, text: str) -> list[LabelRow]:
    """Rows of labels.txt in file order; UserError naming file and line unless it has 5 whole numbers with 1 <= first <= last."""
    rows = []
    for number, line in enumerate(text.rstrip().splitlines(), 1):
        parts = line.split()
        if len(parts) != 5 or not all(re.fullmatch(r"[0-9]{1,9}", p) for p in parts):
            raise UserError(f"{name}: line {number}: expected 5 whole numbers (experiment user activity first last): "
                            f"{line.strip()[:60]!r}")
        experiment, user, activity, first, last = map(int, parts)
        row = LabelRow(experiment, user, activity, first, last, number)
        if row.first < 1 or row.last < row.first:
            raise UserError(f"{name}: line {number}: samples {row.first} to {row.last} are not a range "
                            "(1-based, both ends included); correct the row")
        rows.append(row)
    return rows


def parse_activities(name: str, text: str) -> list[str]:
    """Class names by label id (activity id - 1); ids must be 1..K and names distinct, else UserError naming file and line."""
    names: dict[int, str] = {}
    for number, line in enumerate(text.rstrip().splitlines(), 1):
        parts = line.split(maxsplit=1)
        if len(parts) != 2 or not re.fullmatch(r"[0-9]{1,6}", parts[0]):
            raise UserError(f"{name}: line {number}: expected an activity id and its name: {line.strip()[:60]!r}")
        label = parts[1].strip()
        if int(parts[0]) in names or label in names.values():
            raise UserError(f"{name}: line {number}: {line.strip()[:60]!r} repeats an id or a name of an earlier line")
        names[int(parts[0])] = label
    if sorted(names) != list(range(1, len(names) + 1)) or not names:
        raise UserError(f"{name}: activity ids {sorted(names)} are not 1 to {len(names)} without a gap; "
                        "label ids are activity ids minus 1, so the list must be complete")
    return [names[i] for i in sorted(names)]


def window_features(acc: np.ndarray, gyro: np.ndarray) -> np.ndarray:
    """(n, 3) and (n, 3) -> (T, 300) float32: windows of 50 samples every 25, row-major (sample, axis), acc before gyro."""
    steps = (len(acc) - WINDOW) // STRIDE + 1
    rows = np.arange(steps)[:, None] * STRIDE + np.arange(WINDOW)
    return np.concatenate([x[rows].reshape(steps, -1) for x in (acc, gyro)], axis=1).astype(np.float32)


def read_raw(source: str | os.PathLike) -> RawFiles:
    """Find and read the published files; UserError naming those that are missing or there twice."""
    source, texts = Path(source), {}
    nested = ""
    for member in members(source):
        name, folder = member.path.name, member.path.parent.name
        nested = member.name if name.lower().endswith((".zip", ".tar.gz", ".tar.xz", ".tar")) else nested
        if (folder == "RawData" and (_SIGNAL.fullmatch(name) or name == "labels.txt")) or name == "activity_labels.txt":
            texts[member.name] = read(member).decode("utf-8", errors="replace")
    signals: dict[tuple[int, int], dict[str, Text]] = {}
    for name, text in texts.items():
        if match := _SIGNAL.fullmatch(PurePosixPath(name).name):
            kind, recording = match[1], (int(match[2]), int(match[3]))
            pair = signals.setdefault(recording, {})
            if kind in pair:
                raise UserError(f"{source}: {pair[kind][0]} and {name} are the same recording; keep one of the two")
            pair[kind] = (f"{source}: {name}", text)
    if not signals:
        hint = f"; it holds {nested}: unpack that and name it instead" if nested else ""
        raise UserError(f"{source}: no RawData/acc_expEE_userUU.txt inside; name the folder or archive that contains RawData/ "
                        f"and activity_labels.txt{hint}")
    for pair in signals.values():
        for kind, other in (("acc", "gyro"), ("gyro", "acc")):
            if kind not in pair:
                raise UserError(f"{pair[other][0]}: its {kind}_ file is missing; every recording needs both")
    labels, activities = _only(source, texts, "labels.txt"), _only(source, texts, "activity_labels.txt")
    return RawFiles(labels, activities, dict(sorted(signals.items())))


def build(raw: RawFiles, val_users: Iterable[int]) -> tuple[dict, dict[str, np.ndarray]]:
    """(annotation document, features by recording id) from the raw texts.

    Segment = [(first - 1) / 50, last / 50] s, duration = n / 50 s, label_id = activity id - 1.  Raises UserError naming file
    and line for signals of unequal length or shorter than a window, and for label rows that fit no recording or activity.
    """
    val_users = set(val_users)
    classes = parse_activities(*raw.activities)
    database: dict[str, dict[str, Any]] = {}
    features: dict[str, np.ndarray] = {}
    lengths: dict[tuple[int, int], tuple[str, int]] = {}
    for (experiment, user), pair in raw.signals.items():
        acc, gyro = (parse_signal(*pair[kind]) for kind in ("acc", "gyro"))
        if len(acc) != len(gyro):
            raise UserError(f"{pair['gyro'][0]}: {len(gyro)} samples, but {PurePosixPath(pair['acc'][0]).name} has {len(acc)}; "
                            "one of the two is cut short")
        if len(acc) < WINDOW:
            raise UserError(f"{pair['acc'][0]}: {len(acc)} samples, a single window needs {WINDOW}; leave the recording out")
        name = f"exp{experiment:02d}_user{user:02d}"
        features[name], lengths[experiment, user] = window_features(acc, gyro), (name, len(acc))
        database[name] = {"subset": "validation" if user in val_users else "training", "duration": len(acc) / FPS, "fps": FPS,
                          "annotations": []}
    source = raw.labels[0]
    for row in parse_labels(*raw.labels):
        if (row.experiment, row.user) not in lengths:
            raise UserError(f"{source}: line {row.line}: no recording of experiment {row.experiment}, user {row.user}; "
                            "add its two files or delete the row")
        name, samples = lengths[row.experiment, row.user]
        if row.last > samples:
            raise UserError(f"{source}: line {row.line}: sample {row.last} is past the end of {name} ({samples} samples)")
        if not 1 <= row.activity <= len(classes):
            raise UserError(f"{source}: line {row.line}: activity {row.activity} is not in {raw.activities[0]} "
                            f"(1 to {len(classes)})")
        database[name]["annotations"].append({"label": classes[row.activity - 1], "label_id": row.activity - 1,
                                              "segment": [(row.first - 1) / FPS, row.last / FPS]})
    return {"version": "HAPT 2.1", "database": database}, features


def prepare_hapt(source: str | os.PathLike, out: str | os.PathLike, val_users: Iterable[int] = DEFAULT_VAL_USERS) -> list[str]:
    """Read `source`, write `out`/annotations/hapt.json and `out`/features/*.npy, all or nothing; returns the lines of a summary.

    Either subset may be empty.  Raises UserError for bad input, for an `out` that cannot be written and for foreign files in
    `out`/features.
    """
    val_users, out = sorted(set(val_users)), Path(out)
    raw = read_raw(source)
    if absent := [user for user in val_users if user not in {u for _, u in raw.signals}]:
        note(f"warning: {source}: holds no recording of validation user {', '.join(map(str, absent))}")
    document, features = build(raw, val_users)
    ours = {path.name for path in (out / FEATURES).glob("exp[0-9]*_user[0-9]*.npy")}
    refuse_foreign(out / FEATURES, ours, "choose another output folder")
    with staged(out, (FEATURES, ANNOTATIONS)) as folder:
        (folder / FEATURES).mkdir()
        for name, array in features.items():
            np.save(folder / FEATURES / f"{name}.npy", array)
        write_json_atomic(folder / ANNOTATIONS, document)
    return _summary(document, features, parse_activities(*raw.activities))


def _only(source: Path, texts: dict[str, str], wanted: str) -> Text:
    found = [name for name in texts if PurePosixPath(name).name == wanted]
    if len(found) != 1:
        raise UserError(f"{source}: {len(found)} files {wanted} inside ({', '.join(found) or 'none'}); name a folder or archive "
                        "with exactly one")
    return f"{source}: {found[0]}", texts[found[0]]


def _summary(document: dict, features: dict[str, np.ndarray], classes: list[str]) -> list[str]:
    """Recordings and feature steps per subset, and segments per class."""
    videos, lines = document["database"], []
    for subset in ("training", "validation"):
        names = [name for name, video in videos.items() if video["subset"] == subset]
        lines.append(f"{subset}: {len(names)} recordings, {sum(len(features[name]) for name in names)} feature steps")
    counts = Counter(annotation["label"] for video in videos.values() for annotation in video["annotations"])
    return lines + [f"  {name:<20} {counts[name]:>5} segments" for name in classes]
