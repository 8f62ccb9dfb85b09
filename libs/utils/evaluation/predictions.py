"""Detections and ground truth as columns; read and write prediction files.

    .json      {"version": ..., "results": {video id: [{"segment": [s, e], "label": ..., "score": ...}]}, "external_data": {}}
    .csv(.gz)  columns video_id,t_start,t_end,label,score
    .pkl       the published dict: video-id (list), t-start, t-end, label, score (arrays of one length)

Times are in seconds.  In JSON and CSV a label is a class name or a class id.  Pickles are read without running code
(`libs.utils.files.untrusted_pickle`).
"""
from __future__ import annotations

import csv
import gzip
import io
import os
import pickle
import struct
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from libs.core.errors import UserError, nearest, shown
from libs.core.files import read_bytes
from libs.core.names import id_problem
from libs.utils.evaluation.columns import as_columns, as_integers, check_finite, check_segments
from libs.utils.files.csv_files import read_csv, to_number
from libs.utils.files.io import parse_json, read_json, write_atomic, write_json_atomic
from libs.utils.files.untrusted_pickle import read_plain_pickle

if TYPE_CHECKING:
    import pandas

COLUMNS = ("video_id", "t_start", "t_end", "label", "score")
PUBLISHED_COLUMNS = ("video-id", "t-start", "t-end", "label", "score")
MAX_UNPACKED = 512 << 20  # bytes of a .gz: 1 MiB of zeros unpacks to 1 GiB
_UNKNOWN = -(2**63)  # label of an unknown class name, until the entry is dropped


@dataclass(frozen=True, eq=False)
class Detections:
    """Predicted segments of any number of videos, one per row; their order breaks ties of scores.

    video_id (N,) str; t_start, t_end (N,) float64 seconds; label (N,) int64 class ids; score (N,) float64.
    `from_arrays` checks the values; `check` does so again.
    """

    video_id: np.ndarray
    t_start: np.ndarray
    t_end: np.ndarray
    label: np.ndarray
    score: np.ndarray

    @classmethod
    def from_arrays(cls, video_id: Sequence[str] | np.ndarray, t_start: Any, t_end: Any, label: Any, score: Any,
                    source: str = "detections") -> Detections:
        """Columns from anything array-like (copied); UserError with `source`, row and video for values that are not finite,
        segments that end before they start, labels that are not integers, and columns of different lengths."""
        rows = cls(*as_columns(source, COLUMNS, video_id, t_start, t_end, label, score))
        rows.check(source)
        return rows

    @classmethod
    def empty(cls) -> Detections:
        """No rows."""
        return cls.from_arrays([], [], [], [], [])

    @classmethod
    def concat(cls, parts: Iterable[Detections]) -> Detections:
        """All rows of the parts (possibly none), in order."""
        parts = list(parts) or [cls.empty()]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS))

    def __len__(self) -> int:
        return len(self.score)

    def take(self, index: np.ndarray) -> Detections:
        """The rows of an index or boolean array."""
        return type(self)(*(getattr(self, name)[index] for name in COLUMNS))

    def check(self, source: str) -> None:
        """UserError with `source`, row and video for a number that is not finite or a segment that ends before it starts."""
        check_segments(source, self.video_id, self.t_start, self.t_end)
        check_finite(source, self.video_id, "score", self.score)


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Annotated segments, one row each, in file order: the columns of `Detections` without a score."""

    video_id: np.ndarray
    t_start: np.ndarray
    t_end: np.ndarray
    label: np.ndarray

    @classmethod
    def from_arrays(cls, video_id: Sequence[str] | np.ndarray, t_start: Any, t_end: Any, label: Any,
                    source: str = "ground truth") -> GroundTruth:
        """As `Detections.from_arrays`."""
        rows = cls(*as_columns(source, COLUMNS[:4], video_id, t_start, t_end, label))
        check_segments(source, rows.video_id, rows.t_start, rows.t_end)
        return rows

    @classmethod
    def from_videos(cls, videos: Iterable[tuple[str, np.ndarray, np.ndarray]], source: str = "ground truth") -> GroundTruth:
        """From (video id, segments (N, 2) in seconds, labels (N,)) per video; a video without segments adds no row."""
        videos = [(vid, np.asarray(segments, np.float64).reshape(-1, 2), labels) for vid, segments, labels in videos]
        segments = np.concatenate([segments for _, segments, _ in videos] or [np.empty((0, 2))])
        labels = np.concatenate([np.asarray(labels, np.int64) for _, _, labels in videos] or [np.empty(0, np.int64)])
        ids = [vid for vid, segments, _ in videos for _ in range(len(segments))]
        return cls.from_arrays(ids, segments[:, 0], segments[:, 1], labels, source)

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: np.ndarray) -> GroundTruth:
        """The rows of an index or boolean array."""
        return type(self)(*(getattr(self, name)[index] for name in COLUMNS[:4]))


def read_predictions(path: str | os.PathLike, label_ids: Mapping[str, int] | None = None,
                     ignore_labels: bool = False) -> Detections:
    """Predictions of a .json, .csv (both also .gz) or .pkl file.

    label_ids: class name -> id; a label that is a class name is never taken for an id.  Entries with an unknown class name are
    left out with one warning (unknown ids are kept, and ignored by the evaluator).  ignore_labels: set all labels to 0.
    Raises UserError with the file, the entry, the value and the remedy, also if no label is known.
    """
    path = Path(path)
    kind = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]).lower()
    readers = {".json": _read_json, ".json.gz": _read_json, ".csv": _read_csv, ".csv.gz": _read_csv,
               ".pkl": _read_pickle, ".pickle": _read_pickle}
    if kind not in readers:
        raise UserError(f"{path}: unknown kind of predictions file {kind!r}; use .json, .csv, .csv.gz or .pkl")
    columns = readers[kind](path)
    _check_ids(path, columns.video_id)
    unknown: list[str] = []
    labels = np.zeros(len(columns.label), np.int64) if ignore_labels else _label_ids(str(path), columns.label, label_ids, unknown)
    found = Detections.from_arrays(*columns._replace(label=labels), source=str(path))
    if not unknown:
        return found
    known = labels != _UNKNOWN
    names = ", ".join(repr(name) + nearest(name, label_ids or ()) for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
    if not known.any():
        raise UserError(f"{path}: none of its {len(unknown)} labels is one of the {len(label_ids or ())} classes of the "
                        f"annotations ({names}); write the labels as there, or their ids")
    warnings.warn(f"{path}: {len(found) - known.sum()} of {len(found)} predictions are ignored, since no class has their label "
                  f"({len(unknown)} of {len(set(columns.label))} labels unknown: {names})", stacklevel=2)
    return found.take(known)


def write_predictions(path: str | os.PathLike, detections: Detections, label_names: Mapping[int, str] | None = None,
                      videos: Iterable[str] = ()) -> None:
    """Write .json (with `videos`), .csv, .csv.gz or .pkl, by the file name; see the three functions below."""
    name = Path(path).name.lower()
    if name.endswith(".json"):
        write_predictions_json(path, detections, label_names, videos)
    elif name.endswith((".csv", ".csv.gz")):
        write_predictions_csv(path, detections, label_names)
    elif name.endswith((".pkl", ".pickle")):
        write_predictions_pickle(path, detections)
    else:
        raise UserError(f"{path}: cannot tell the kind of predictions file; use .json, .csv, .csv.gz or .pkl")


def write_predictions_json(path: str | os.PathLike, detections: Detections, label_names: Mapping[int, str] | None = None,
                           videos: Iterable[str] = ()) -> None:
    """ActivityNet submission file; the id stands for a class without a name.  Rows of a video keep their order.

    videos: ids to write first, in this order, even without rows."""
    detections.check(str(path))
    names = label_names or {}
    results: dict[str, list[dict]] = {video: [] for video in videos}
    for video, start, end, label, score in zip(*(getattr(detections, c).tolist() for c in COLUMNS), strict=True):
        results.setdefault(video, []).append({"segment": [start, end], "label": names.get(label, str(label)), "score": score})
    write_json_atomic(path, {"version": "VERSION 1.3", "results": results, "external_data": {}}, indent=None)


def write_predictions_csv(path: str | os.PathLike, detections: Detections,
                          label_names: Mapping[int, str] | None = None) -> None:
    """CSV with a header and exact numbers; compressed, with reproducible bytes, if the name ends in .gz.

    `DataFrame.to_csv` writes the same bytes, but takes 1.86 s instead of 1.35 s for 472,800 rows, and importing pandas adds
    0.35 s to every evaluation.
    """
    detections.check(str(path))
    names = label_names or {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for video, start, end, label, score in zip(*(getattr(detections, c).tolist() for c in COLUMNS), strict=True):
        writer.writerow((video, repr(start), repr(end), names.get(label, label), repr(score)))
    content = text.getvalue().encode("utf-8")
    if Path(path).suffix.lower() == ".gz":
        content = gzip.compress(content, mtime=0)
    write_atomic(path, lambda file: file.write(content))


def write_predictions_pickle(path: str | os.PathLike, detections: Detections) -> None:
    """The published result pickle: dict of video-id (list of str), t-start, t-end, score (float64) and label (int64)."""
    detections.check(str(path))
    content = {published: getattr(detections, name) for published, name in zip(PUBLISHED_COLUMNS, COLUMNS, strict=True)}
    content["video-id"] = detections.video_id.tolist()
    write_atomic(path, lambda file: pickle.dump(content, file, protocol=4))


class _Columns(NamedTuple):
    """The columns of a file, in file order, with the labels as in the file."""

    video_id: Any
    t_start: Any
    t_end: Any
    label: Any
    score: Any


def _read_json(path: Path) -> _Columns:
    if path.suffix.lower() == ".gz":
        content = parse_json(_text(path, _read_gzip(path)), str(path), "predictions JSON")
    else:
        content = read_json(path, "predictions JSON")
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise UserError(f'{path}: has no "results" object; expected {{"results": {{"<video id>": '
                        '[{"segment": [start, end], "label": ..., "score": ...}, ...]}}')
    for video, entries in results.items():
        if not isinstance(entries, list):
            raise UserError(f"{path}: results.{shown(video)[1:-1]} is a {type(entries).__name__}; expected a list of detections")
    return _plain_entries(results) or _any_entries(path, results)


def _plain_entries(results: Mapping[str, list]) -> _Columns | None:
    """The columns of entries whose times and scores are numbers, all at once; None if one is not so."""
    rows = [entry for entries in results.values() for entry in entries]
    try:
        segments, scores = [row["segment"] for row in rows], [row["score"] for row in rows]
        starts, ends = [start for start, _ in segments], [end for _, end in segments]
        kinds = {kind for column in (starts, ends, scores) for kind in {*map(type, column)}}
        if not (kinds <= {int, float} and {*map(type, segments)} <= {list}):
            return None
        numbers = [np.array(column, np.float64) for column in (starts, ends, scores)]
        labels = [row["label"] for row in rows]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    videos = [video for video, entries in results.items() for _ in entries]
    return _Columns(videos, numbers[0], numbers[1], labels, numbers[2])


def _any_entries(path: Path, results: Mapping[str, list]) -> _Columns:
    """The columns, entry by entry: numbers may be texts.  UserError for the first entry that is no detection."""
    columns = _Columns([], [], [], [], [])
    for video, entries in results.items():
        for i, entry in enumerate(entries):
            try:
                if not isinstance(entry["segment"], list):
                    raise TypeError("segment is no list")
                start, end = map(to_number, entry["segment"])
                score, label = to_number(entry["score"]), entry["label"]
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise UserError(f'{path}: results.{shown(video)[1:-1]}[{i}] is {shown(entry, 160)}; expected {{"segment": '
                                '[start, end] in seconds, "label": name or id, "score": number}') from error
            columns.video_id.append(video)
            columns.t_start.append(start)
            columns.t_end.append(end)
            columns.label.append(label)
            columns.score.append(score)
    return columns


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error


def _check_ids(path: Path, ids: Any) -> None:
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "OU":
            raise UserError(f"{path}: the video ids are an array of {ids.dtype} and shape {ids.shape}; expected a list of texts")
        ids = ids.tolist()
    for name in set(ids) if all(isinstance(name, str) for name in ids) else ids:
        if problem := id_problem(name):
            raise UserError(f"{path}: the video id {shown(name)} {problem}; correct it")


def _read_csv(path: Path) -> _Columns:
    content = _text(path, _read_gzip(path) if path.suffix.lower() == ".gz" else read_bytes(path, "predictions file"))
    table = read_csv(path, required=COLUMNS, what="predictions file", text=content,
                     column_name=lambda name: name.strip().replace("-", "_"))
    return _Columns(*(table[name].tolist() if name in ("video_id", "label") else _numbers(path, name, table[name])
                      for name in COLUMNS))


def _numbers(path: Path, name: str, cells: pandas.Series) -> list[float]:
    numbers = []
    for line, cell in cells.items():
        try:
            numbers.append(to_number(cell))
        except ValueError as error:
            raise UserError(f"{path}: line {line}: {name} is {shown(cell)}; expected {','.join(COLUMNS)} with times in "
                            "seconds") from error
    return numbers


def _read_pickle(path: Path) -> _Columns:
    content = read_plain_pickle(path, "predictions pickle")
    missing = [name for name in PUBLISHED_COLUMNS if name not in content] if isinstance(content, dict) else PUBLISHED_COLUMNS
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; expected a dict of {', '.join(PUBLISHED_COLUMNS)}")
    columns = [content[name] for name in PUBLISHED_COLUMNS]
    for name, column in zip(PUBLISHED_COLUMNS, columns, strict=True):
        if not isinstance(column, (list, tuple, np.ndarray)):
            raise UserError(f"{path}: {name} is a {type(column).__name__}; expected a list or an array")
    return _Columns(*columns)


def _label_ids(source: str, labels: Any, label_ids: Mapping[str, int] | None, unknown: list[str]) -> np.ndarray:
    """Class ids (N,) int64 of names or numbers; unknown names get the id _UNKNOWN and are added to `unknown`."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iuf":
        return as_integers(source, labels)
    if isinstance(labels, np.ndarray) and labels.ndim != 1:
        raise UserError(f"{source}: the labels have the shape {labels.shape}; expected one per row")
    labels = labels.tolist() if isinstance(labels, np.ndarray) else labels
    id_of: dict[tuple[type, Any], int] = {}
    ids = np.empty(len(labels), np.int64)
    for i, label in enumerate(labels):
        key = type(label), label
        try:
            if key not in id_of:
                id_of[key] = _label_id(source, i, label, label_ids, unknown)
        except TypeError as error:
            raise UserError(f"{source}: entry {i} has the label {shown(label)}; expected a class name or id") from error
        ids[i] = id_of[key]
    return ids


def _label_id(source: str, i: int, label: Any, label_ids: Mapping[str, int] | None, unknown: list[str]) -> int:
    if isinstance(label, str) and label_ids is not None and label in label_ids:
        return int(label_ids[label])
    number: Any = label if type(label) is int else None
    if isinstance(label, (str, float)):
        try:
            number = to_number(label)
        except ValueError:
            number = None
    if number is not None and abs(number) < 2**53 and number % 1 == 0:
        return int(number)
    if not isinstance(label, str) or number is not None:
        raise UserError(f"{source}: entry {i} has the label {shown(label)}; expected a class name or an integer id")
    if label_ids is None:
        raise UserError(f"{source}: entry {i} has the class name {shown(label)}, but there is no class list with "
                        "its id; give the annotation file")
    unknown.append(label)
    return _UNKNOWN


def _read_gzip(path: Path) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(read_bytes(path, "predictions file"))) as file:
            content = file.read(MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{path}: is not a whole gzip file ({error}); copy it again or unpack it") from error
    if len(content) > MAX_UNPACKED:
        raise UserError(f"{path}: unpacks to more than {MAX_UNPACKED >> 20} MiB; if that is right, unpack it yourself")
    return content
