"""Annotations of other tools -> our JSON: the steps that all sources share.

    rows = read_source(paths, options)                  libs/datasets/convert/readers.py
    document = to_document(rows, options, durations)    {"database": ...}, checked

A `Row` is one segment, or a video without any.  All times are converted to seconds here.
"""
from __future__ import annotations

import dataclasses
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from libs.core.errors import UserError, note
from libs.core.names import similar_labels, spelled
from libs.core.time_units import FAR_OUTSIDE
from libs.datasets.convert.subsets import assign_subsets
from libs.datasets.features.provenance import VideoTiming
from libs.datasets.features.store import FeatureStore
from libs.utils.files.csv_files import numbered_rows, read_csv, to_number

UNITS = ("s", "ms", "frames")
LONGEST_S = 86400.0  # a day: a segment that ends later is not in seconds
CLOCK = re.compile(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:\.\d+)?)")
MEDIA = (".3gp", ".aac", ".avi", ".csv", ".eaf", ".flac", ".flv", ".gif", ".m2ts", ".m4a", ".m4v", ".mkv", ".mov", ".mp3", ".mp4",
         ".mpeg", ".mpg", ".mts", ".mxf", ".npy", ".ogg", ".ogv", ".opus", ".ts", ".tsv", ".wav", ".webm", ".wmv")
UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")  # Label Studio puts it before the name of an uploaded file


@dataclass(frozen=True)
class Row:
    """One annotated segment in the source's own unit, or (label None) a video that has none.

    where: file and place, for messages; video: its id, or as readers yield it, its `video_path`; unit: 's', 'ms' or 'frames'
    (frames from 0, the end excluded).
    """

    where: str
    video: str
    start: float = 0.0
    end: float = 0.0
    label: str | None = None
    unit: str = "s"
    subset: str | None = None
    duration_s: float | None = None
    fps: float | None = None
    group: str | None = None


@dataclass(frozen=True)
class ConvertOptions:
    """The options of tools/convert_annotations.py that describe a source."""

    time_unit: str | None = None
    fps: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tiers: Sequence[str] = ()
    label_from: str = "value"
    subset: str | None = None
    val_share: float | None = None
    ids: str | None = None
    group: str | None = None


def to_document(rows: Sequence[Row], options: ConvertOptions, lengths: Mapping[str, VideoTiming], source: str
                ) -> dict[str, Any]:
    """The annotation document: videos by name, segments by time, label ids by sorted names.

    lengths: video -> duration and fps, which take precedence over the rows; frame numbers are counted at the fps of the rows or
    `options` where there is one, whatever the features were extracted at.  Subsets: the rows', else those of `assign_subsets`.
    Raises UserError naming the row for impossible times and contradictions, and for no segments at all.
    """
    label_ids: dict[str | None, int] = {name: i for i, name in enumerate(sorted({row.label for row in rows if row.label}))}
    if not label_ids:
        raise UserError(f"{source}: holds no annotated segment; export it again, with the annotations")
    videos, counted_at = entries_of(rows), {}
    for vid, entry in videos.items():
        counted_at[vid] = entry["fps"] or options.fps
        known = lengths.get(vid, VideoTiming())
        entry["duration"] = known.duration_s or entry["duration"]
        entry["fps"] = known.fps or entry["fps"] or options.fps
    segments = [(row, _seconds(row, counted_at[row.video] or videos[row.video]["fps"])) for row in rows if row.label is not None]
    _refuse_late_ends(segments, videos)
    for row, times in segments:
        videos[row.video]["annotations"].append({"segment": times, "label": row.label, "label_id": label_ids[row.label]})
    assign_subsets(videos, options.val_share, options.group, options.subset or "training")
    for entry in videos.values():
        entry["annotations"].sort(key=lambda item: (item["segment"], item["label"]))
    return {"database": {vid: {key: value for key, value in videos[vid].items() if value is not None} for vid in sorted(videos)}}


def entries_of(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Video -> entry of the document, without annotations; UserError for rows that contradict each other."""
    videos: dict[str, dict[str, Any]] = {}
    told: dict[tuple[str, str], str] = {}  # where each value is from
    for row in rows:
        entry = videos.setdefault(row.video, {"subset": None, "duration": None, "fps": None, "group": None, "annotations": []})
        for key, value in (("subset", row.subset), ("duration", row.duration_s), ("fps", row.fps), ("group", row.group)):
            if value is None:
                continue
            where = told.setdefault((row.video, key), row.where)
            if entry[key] not in (None, value):
                raise UserError(f"{row.where}: {key} {value!r} of video {row.video!r} contradicts {entry[key]!r} in {where}; "
                                "a video has one: correct one of the two")
            entry[key] = value
    return videos


def with_merged_labels(rows: Sequence[Row]) -> list[Row]:
    """The rows with one spelling, the most frequent, for labels that differ in case, spaces, hyphens or Unicode composition only.

    Prints a line per label that is merged.
    """
    counts = Counter(row.label for row in rows if row.label is not None)
    spelling: dict[str | None, str] = {}
    for labels in similar_labels(counts):
        note(f"merged: {spelled(labels, counts)} are now {labels[0]!r}")
        spelling |= dict.fromkeys(labels, labels[0])
    return [dataclasses.replace(row, label=spelling.get(row.label, row.label)) for row in rows]


def _seconds(row: Row, fps: float | None) -> list[float]:
    """[start, end] of a row in seconds, to the microsecond."""
    if row.unit == "frames" and not fps:
        raise UserError(f"{row.where}: times are frame numbers, but the fps of video {row.video!r} is not known; add --fps, or a "
                        "column fps in --durations")
    factor = {"s": 1.0, "ms": 0.001, "frames": 1 / fps if fps else math.nan}[row.unit]
    start, end = row.start * factor, row.end * factor
    shown = f"[{row.start:g}, {row.end:g}]"
    if not math.isfinite(start) or not math.isfinite(end):
        raise UserError(f"{row.where}: {shown} are not finite times; correct them")
    if end <= start or start < 0:
        raise UserError(f"{row.where}: {shown} {'starts before 0' if start < 0 else 'does not end after it starts'}; correct or "
                        "remove it")
    return [round(start, 6), round(end, 6)]


def _refuse_late_ends(segments: Sequence[tuple[Row, list[float]]], videos: Mapping[str, Mapping[str, Any]]) -> None:
    """UserError for segments that end far behind their video: a few are mistakes, most of them are in another unit."""
    lengths = {vid: entry["duration"] for vid, entry in videos.items()}
    late = [(row, end) for row, (_, end) in segments
            if end > (FAR_OUTSIDE * lengths[row.video] if lengths[row.video] else LONGEST_S)]
    if not late:
        return
    row, end = late[0]
    length = f"{lengths[row.video]:g} s" if lengths[row.video] else "unknown length"
    found = f"{row.where}: [{row.start:g}, {row.end:g}] ends at {end:g} s, in a video of {length}"
    remedy = f"add --time-unit {' or '.join(unit for unit in UNITS if unit != row.unit)}"
    if 2 * len(late) < len(segments):
        raise UserError(f"{found}; {len(late)} of {len(segments)} segments end so late: correct them or the durations (or, if "
                        f"all times are in another unit, {remedy})")
    raise UserError(f"{found}; the times are in another unit: {remedy}")


def video_path(text: str, uploaded: bool = False) -> str:
    """The path that a source gives a video as an id, file name, path or URL: no drive, host or leading slash; '' for none.

    uploaded: also without the prefix that Label Studio gives to uploads.
    """
    text = text.strip()
    if "://" in text or text.startswith("/data/"):
        parts = urlsplit(text)
        local = parse_qs(parts.query).get("d", [""])[0]  # Label Studio: /data/local-files/?d=folder/name.mp4
        text = unquote(local or parts.path)
    path = PurePosixPath(re.sub("^[A-Za-z]:(?=/)", "", text.replace("\\", "/")).lstrip("/"))
    if not path.name:
        return ""
    return str(path.with_name(UPLOAD_PREFIX.sub("", path.name, count=1)) if uploaded else path)


def video_id(path: str, ids: str | None) -> str:
    """The id of a video: its path (`ids` "path") or the bare name, both without the extension of a media file."""
    whole = PurePosixPath(path)
    name = whole.stem if whole.suffix.lower() in MEDIA else whole.name
    return str(whole.parent / name) if ids == "path" else name


def with_ids(rows: Sequence[Row], ids: str | None, source: str) -> list[Row]:
    """The rows of one source with the ids of their videos in place of the paths.

    Raises UserError for paths of several folders or media files that get one id, unless `ids` is "stem".
    """
    paths: dict[str, set[PurePosixPath]] = {}
    for row in rows:
        paths.setdefault(video_id(row.video, ids), set()).add(PurePosixPath(row.video))
    folders = {vid: len({path.parent for path in found} - {PurePosixPath()}) > 1 for vid, found in paths.items()}
    clashes = [vid for vid, found in paths.items()
               if folders[vid] or len({path.suffix.lower() for path in found} & set(MEDIA)) > 1]
    if clashes and ids != "stem":
        files = {vid: sorted(map(str, paths[vid])) for vid in clashes[:3]}
        listed = ", ".join(f"{vid!r} ({', '.join(of[:3])}{', ...' if len(of) > 3 else ''})" for vid, of in files.items())
        advice = "add --ids path to keep the folders in the ids" if folders[clashes[0]] else "rename one of the files"
        raise UserError(f"{source}: {len(clashes)} video ids would stand for several files: {listed}"
                        f"{', ...' if len(clashes) > 3 else ''}; {advice}, or add --ids stem if they are one video each")
    return [dataclasses.replace(row, video=video_id(row.video, ids)) for row in rows]


def clock_or_number(text: str, where: str) -> tuple[float, bool]:
    """(seconds or number, whether the text was h:mm:ss); UserError for anything else."""
    text = text.strip()
    if match := CLOCK.fullmatch(text):
        hours, minutes, seconds = match.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds), True
    try:
        return to_number(text), False
    except ValueError as error:
        hint = "; write a decimal point" if re.fullmatch(r"\d+,\d+", text) else ""
        raise UserError(f"{where}: {text!r} is not a time; expected a number or h:mm:ss.mmm{hint}") from error


def csv_rows(path: str | os.PathLike, columns: Mapping[str, str], needed: Sequence[str], optional: Sequence[str] = ()
             ) -> Iterator[tuple[str, dict[str, str]]]:
    """(file and line, {field: text}) per row of a CSV with a header; comma, semicolon or tab.

    columns: field -> the file's own column name.  Raises UserError for missing columns and rows of another width.
    """
    names = {field: columns.get(field, field) for field in (*needed, *optional)}
    fields = {name: field for field, name in names.items()}
    table = read_csv(path, required=[name for field, name in names.items() if field in needed or field in columns],
                     optional=[names[field] for field in optional], what="CSV file", delimiters=",;\t", strip=True,
                     remedy=lambda name: f"name the right one with --columns {fields[name]}=NAME")
    for line, row in numbered_rows(table):
        yield f"{path}: line {line}", {field: row[name] for field, name in names.items() if name in row}


def feature_durations(folder: str, rates: Mapping[str, float], prefix: str, extension: str, stride: float, num_frames: float
                      ) -> dict[str, VideoTiming]:
    """Video -> fps and the seconds that its features cover, ((T - 1) * stride + num_frames) / fps; rates: fps by video id.

    One warning counts the videos without features.
    """
    store = FeatureStore(folder, prefix, extension)
    found: dict[str, VideoTiming] = {}
    missing = []
    for vid, fps in rates.items():
        if store.exists(vid):
            found[vid] = VideoTiming(fps, round(((store.length(vid) - 1) * stride + num_frames) / fps, 6))
        else:
            missing.append(vid)
    store.close()
    if missing:
        note(f"warning: {folder}: {len(missing)} videos have no features and get no duration from them (first: {missing[0]})")
    return found


def positive_number(text: str, where: str, clock: bool = False) -> float:
    """A finite number above 0 (`clock`: or h:mm:ss) from text; UserError otherwise."""
    number, is_clock = clock_or_number(text, where)
    if not (math.isfinite(number) and number > 0) or (is_clock and not clock):
        raise UserError(f"{where}: {text!r}; expected a number above 0")
    return number
