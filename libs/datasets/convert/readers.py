"""Readers of other tools' annotations: CSV, ELAN .eaf, Label Studio, FiftyOne -> `Row`s.

Layouts (all read as the tools write them):
    csv          a header with video,start,end,label (names by option; subset, duration, fps if there)
    eaf          ELAN: TIME_ORDER/TIME_SLOT, TIER/ANNOTATION/ALIGNABLE_ANNOTATION/ANNOTATION_VALUE
    labelstudio  the JSON export (tasks with data and annotations) and JSON-MIN (one flat object per annotation); results of
                 type timelinelabels (frames from 1, both ends included), timeserieslabels, and labels (seconds) on audio or video
    fiftyone     labels.json of a FiftyOneTemporalDetectionDataset ({"classes", "labels"}), a plain {video: [...]} dict, and
                 samples.json of a FiftyOneDataset; `timestamps` (s) or `support` (frames from 1, both ends included)
"""
from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.parsers import expat

from libs.core.errors import UserError, note
from libs.core.files import entries, is_folder, read_text
from libs.datasets.convert.rows import ConvertOptions, Row, clock_or_number, csv_rows, positive_number, video_path, with_ids
from libs.utils.files.csv_files import to_number
from libs.utils.files.io import parse_json

FORMATS = ("csv", "eaf", "labelstudio", "fiftyone")
EAF_UNITS = {"milliseconds": 1000.0, "PAL-frames": 25.0, "NTSC-frames": 30000 / 1001}  # units per second (EAF 3.0 format)
LS_TYPES = ("timelinelabels", "timeserieslabels", "labels")
LS_MEDIA = ("video", "audio", "timeseries", "csv", "ts", "url", "file")


def read_source(paths: Sequence[str], kind: str, options: ConvertOptions) -> tuple[str, list[Row]]:
    """(format, rows) of files of one format; `kind` auto: detect the format from the contents.

    Raises UserError naming the file and the place that does not follow the format.
    """
    files = source_files(paths)
    kinds = {detect(path) if kind == "auto" else kind for path in files}
    if len(kinds) > 1:
        raise UserError(f"{', '.join(map(str, files[:3]))}: are of different formats ({', '.join(sorted(kinds))}); "
                        "convert one at a time")
    found = kinds.pop()
    reader = {"csv": _read_csv, "eaf": _read_eaf, "labelstudio": _read_labelstudio, "fiftyone": _read_fiftyone}[found]
    rows: list[Row] = []
    owner: dict[str, str] = {}
    for path in files:
        new = with_ids(list(reader(str(path), options)), options.ids, str(path))
        for vid in dict.fromkeys(row.video for row in new):
            if owner.setdefault(vid, str(path)) != str(path):
                raise UserError(f"{path}: annotates video {vid!r}, as {owner[vid]} does; merge the two, or convert one of "
                                "them; if they are different videos, add --ids path")
        rows += new
    return found, rows


def detect(path: Path) -> str:
    """Detect the format of a file from its suffix and first keys; UserError for none of FORMATS."""
    suffix = path.suffix.lower()
    if suffix == ".eaf":
        return "eaf"
    if suffix in (".csv", ".tsv", ".txt"):
        return "csv"
    if suffix != ".json":
        raise UserError(f"{path}: cannot tell its format; name it with --format {'|'.join(FORMATS)}")
    return "labelstudio" if isinstance(_json(str(path)), list) else "fiftyone"


def source_files(paths: Sequence[str]) -> list[Path]:
    """The files that the arguments name; of a folder, the .eaf files or those of a FiftyOne export."""
    files: list[Path] = []
    for name in paths:
        path = Path(name)
        found = entries(path)
        inside = ([p for p in found if p.suffix == ".eaf"] or [p for p in found if p.name == "labels.json"]
                  or [p for p in found if p.name == "samples.json"])
        if is_folder(path) and not inside:
            raise UserError(f"{path}: holds no .eaf, labels.json or samples.json; name the exported file itself")
        files += inside if is_folder(path) else [path]
    return files


def _read_csv(path: str, options: ConvertOptions) -> Iterator[Row]:
    clocks: dict[bool, str] = {}
    optional = ("subset", "duration", "fps", *([options.group] if options.group else []))
    for where, row in csv_rows(path, options.columns, ("video", "start", "end", "label"), optional):
        duration_s = positive_number(row["duration"], f"{where}: duration", clock=True) if row.get("duration") else None
        fps = positive_number(row["fps"], f"{where}: fps") if row.get("fps") else None
        video = Row(where, video_path(row["video"]), subset=row.get("subset", "").lower() or None, duration_s=duration_s,
                    fps=fps, group=row.get(options.group or "") or None)
        if row["video"] and not (row["start"] or row["end"] or row["label"]):
            yield video  # without actions
            continue
        if not row["video"]:
            raise UserError(f"{where}: names no video; correct it")
        if not row["label"]:
            raise UserError(f"{where}: names no label; correct it, or leave start and end empty too: a video without actions")
        (start, clock), (end, end_clock) = (clock_or_number(row[key], f"{where}: {key}") for key in ("start", "end"))
        clocks.setdefault(clock, where)
        clocks.setdefault(end_clock, where)
        if len(clocks) > 1:
            raise UserError(f"{where}: mixes h:mm:ss and plain numbers ({clocks[True]} and {clocks[False]}); write "
                            "all times alike")
        yield dataclasses.replace(video, start=start, end=end, label=row["label"],
                                  unit="s" if clock else options.time_unit or "s")


def _read_eaf(path: str, options: ConvertOptions) -> Iterator[Row]:
    root = _safe_xml(path)
    if root.tag != "ANNOTATION_DOCUMENT":
        raise UserError(f"{path}: is XML, but not an ELAN file (root {root.tag!r}, expected ANNOTATION_DOCUMENT)")
    header = root.find("HEADER")
    unit = header.get("TIME_UNITS", "milliseconds") if header is not None else "milliseconds"
    if unit not in EAF_UNITS:
        raise UserError(f"{path}: TIME_UNITS {unit!r}; expected {' or '.join(EAF_UNITS)}")
    media = [url for descriptor in root.iter("MEDIA_DESCRIPTOR") if (url := descriptor.get("MEDIA_URL"))]
    video = video_path(media[0] if media else path)
    slots = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    tiers = {tier.get("TIER_ID", ""): tier for tier in root.iter("TIER")}
    filled = [name for name, tier in tiers.items() if tier.find("ANNOTATION/ALIGNABLE_ANNOTATION") is not None]
    every = filled if len(filled) == 1 or options.label_from == "tier" else []
    chosen = [name for name in options.tiers if name in tiers] or every
    if options.tiers and not any(name in tiers for name in options.tiers):
        raise UserError(f"{path}: has no tier {', '.join(options.tiers)}; it has {', '.join(tiers) or 'none'}")
    if not chosen and filled:
        raise UserError(f"{path}: has annotations on the tiers {', '.join(filled)}; choose with --tier NAME, or take their "
                        "names as labels with --label-from tier")
    count = empty = 0
    for name in chosen:
        for item in tiers[name].iter("ALIGNABLE_ANNOTATION"):
            where = f"{path}: tier {name!r}, annotation {item.get('ANNOTATION_ID')}"
            value = " ".join((item.findtext("ANNOTATION_VALUE") or "").split())
            label = name if options.label_from == "tier" else value
            if not label:
                empty += 1
                continue
            start, end = (_slot(where, slots, item.get(f"TIME_SLOT_REF{i}")) / EAF_UNITS[unit] for i in (1, 2))
            count += 1
            yield Row(where, video, start, end, label)
    if empty:
        note(f"warning: {path}: {empty} annotations without a value are left out")
    if not count:
        yield Row(path, video)


def _slot(where: str, slots: dict[str | None, str | None], name: str | None) -> float:
    value = slots.get(name)
    if value is None:
        raise UserError(f"{where}: time slot {name!r} has no time; align the annotation in ELAN and save again")
    try:
        return to_number(value)
    except ValueError as error:
        raise UserError(f"{where}: time slot {name!r} is at {value!r}; expected a number") from error


def _safe_xml(path: str) -> ElementTree.Element:
    """Root of an XML file; UserError for a DOCTYPE, which could declare entity bombs or include other files."""
    data = read_text(path, "ELAN file").encode("utf-8")
    parser = expat.ParserCreate("utf-8")

    def refuse(*_args: Any) -> None:
        raise UserError(f"{path}: declares a DOCTYPE, which ELAN files never do and which may hold entity bombs; remove it")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return ElementTree.fromstring(data, ElementTree.XMLParser(encoding="utf-8"))
    except (expat.ExpatError, ElementTree.ParseError) as error:
        raise UserError(f"{path}: not valid XML ({error}); save it again in ELAN") from error


def _read_labelstudio(path: str, options: ConvertOptions) -> Iterator[Row]:
    tasks = _json(path)
    if isinstance(tasks, dict) and "annotations" in tasks and "data" in tasks:
        tasks = [tasks]
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise UserError(f"{path}: is no Label Studio export; expected a list of tasks (JSON or JSON-MIN)")
    if not tasks:
        raise UserError(f"{path}: holds no task; label some, then export again")
    full = ["data" in task and ("annotations" in task or "completions" in task) for task in tasks]
    if len(set(full)) > 1:
        raise UserError(f"{path}: mixes the JSON and JSON-MIN layouts (entries {full.index(True)} and {full.index(False)}); "
                        "export once, in one layout")
    ignored: Counter[str] = Counter()
    several: dict[str, int] = {}
    seen: dict[str, str] = {}
    if not full[0]:  # JSON-MIN writes a task once per annotation
        last = {task.get("id", i): task for i, task in enumerate(tasks)}
        counts = Counter(task.get("id", i) for i, task in enumerate(tasks))
        several.update({str(number): count for number, count in counts.items() if count > 1})
        tasks = list(last.values())
    for i, task in enumerate(tasks):
        where = f"{path}: task {task.get('id', i)}"
        data = task["data"] if full[0] else task
        video = _media(where, data)
        results = _task_results(video, task, several) if full[0] else _min_results(task)
        owner = str(task.get("id", i))
        if seen.setdefault(video, owner) != owner:
            raise UserError(f"{where}: is about video {video!r}, as task {seen[video]} is; remove one of the two")
        count = 0
        for kind, value in results:
            if kind not in LS_TYPES:
                ignored[kind] += 1
                continue
            for row in _ls_rows(where, video, kind, value, options):
                count += 1
                yield row
        if not count:
            yield Row(where, video)
    if several:
        video, count = next(iter(several.items()))
        note(f"warning: {path}: {len(several)} tasks have several annotations (first: {video!r}, {count}); of each the ground "
             "truth, else the last one is taken")
    if ignored:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in ignored.items())
        note(f"warning: {path}: results that are not time segments are left out: {kinds}")


def _task_results(video: str, task: dict[str, Any], several: dict[str, int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(type, value) of the results of a task's ground truth or, without one, of its last annotation that was not skipped."""
    every = task.get("annotations", task.get("completions")) or []
    done = [a for a in every if isinstance(a, dict) and not a.get("was_cancelled")]
    if len(done) > 1:
        several[video] = len(done)
    for result in (next((a for a in done if a.get("ground_truth")), done[-1]).get("result") or []) if done else []:
        if isinstance(result, dict) and isinstance(result.get("value"), dict):
            yield str(result.get("type")), {"original_length": result.get("original_length"), **result["value"]}


def _min_results(task: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(type, value) of a flat JSON-MIN entry: its lists of objects, whose label key is their type."""
    for name, values in task.items():
        if isinstance(values, list) and values and all(isinstance(value, dict) for value in values):
            for value in values:
                yield next((kind for kind in LS_TYPES if kind in value), name), value


def _media(where: str, data: Any) -> str:
    texts = {key: value for key, value in data.items() if isinstance(value, str)} if isinstance(data, dict) else {}
    for key in (*(k for k in LS_MEDIA if k in texts), *(k for k, v in texts.items() if "/" in v)):
        if found := video_path(texts[key], uploaded=True):
            return found
    raise UserError(f"{where}: names no media file (looked for {', '.join(LS_MEDIA)} in its data); export the tasks with their "
                    "data")


def _ls_rows(where: str, video: str, kind: str, value: dict[str, Any], options: ConvertOptions) -> Iterator[Row]:
    labels = value.get(kind)
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) and label.strip() for label in labels):
        raise UserError(f"{where}: {kind} {labels!r}; expected a list with the name of a label")
    ranges = value.get("ranges") if kind == "timelinelabels" else [value]
    if not isinstance(ranges, list) or not all(isinstance(r, dict) for r in ranges):
        raise UserError(f"{where}: {kind}: ranges is {ranges!r}; expected a list of {{start, end}}")
    length = value.get("original_length")
    duration = float(length) if kind == "labels" and isinstance(length, (int, float)) and length > 0 else None
    for span in ranges:
        start, end = _pair(where, [span.get("start"), span.get("end")], "start and end")
        for label in labels:
            if kind == "timelinelabels":  # frame numbers from 1, the last one belongs to the segment
                yield Row(where, video, start - 1, end, label.strip(), "frames")
            else:
                yield Row(where, video, start, end, label.strip(), options.time_unit or "s", duration_s=duration)


def _read_fiftyone(path: str, options: ConvertOptions) -> Iterator[Row]:
    content = _json(path)
    if isinstance(content, dict) and isinstance(content.get("samples"), list):
        entries, classes = list(_samples(path, content["samples"])), None
    elif isinstance(content, dict):
        classes = content.get("classes")
        labels = content.get("labels", {} if "classes" in content else content)
        if not isinstance(labels, dict):
            raise UserError(f"{path}: labels is a {type(labels).__name__}; expected {{video: [...]}}, as FiftyOne writes it")
        entries = [(vid, items.get("detections") if isinstance(items, dict) else items, {}) for vid, items in labels.items()]
    else:
        raise UserError(f"{path}: is a {type(content).__name__}; expected labels.json or samples.json of a FiftyOne export")
    if not entries:
        raise UserError(f"{path}: holds no video; export the dataset again")
    units: dict[str, str] = {}
    for vid, items, meta in entries:
        video = video_path(vid)
        if items is not None and not isinstance(items, list):
            raise UserError(f"{path}: {vid!r} holds {items!r:.60}; expected a list of temporal detections")
        for i, item in enumerate(items or []):
            where = f"{path}: {vid!r}[{i}]"
            key = next((k for k in ("timestamps", "support") if isinstance(item, dict) and item.get(k) is not None), None)
            if key is None:
                raise UserError(f"{where}: has neither support nor timestamps; expected a temporal detection")
            units.setdefault(key, where)
            if len(units) > 1:
                raise UserError(f"{where}: mixes support (frames, {units['support']}) and timestamps (seconds, "
                                f"{units['timestamps']}); export once, with one of them")
            start, end = _pair(where, item[key], key)
            if key == "support":  # frame numbers from 1, the last one belongs to the segment
                yield Row(where, video, start - 1, end, _class(where, item.get("label"), classes), "frames", **meta)
            else:
                yield Row(where, video, start, end, _class(where, item.get("label"), classes), options.time_unit or "s", **meta)
        if not items:
            yield Row(f"{path}: {vid!r}", video, **meta)


def _samples(path: str, samples: list[Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(file, detections, known ones of duration_s and fps) of the samples of a FiftyOneDataset export."""
    for i, sample in enumerate(samples):
        if not isinstance(sample, dict) or not isinstance(sample.get("filepath"), str):
            raise UserError(f"{path}: samples[{i}] has no filepath; expected samples.json of a FiftyOne export")
        metadata = sample.get("metadata")
        meta = metadata if isinstance(metadata, dict) else {}
        known = {ours: float(meta[theirs]) for theirs, ours in (("duration", "duration_s"), ("frame_rate", "fps"))
                 if isinstance(meta.get(theirs), (int, float)) and meta[theirs] > 0}
        fields = [v for v in sample.values() if isinstance(v, dict) and v.get("_cls") == "TemporalDetections"]
        if len(fields) > 1:
            raise UserError(f"{path}: samples[{i}] has {len(fields)} fields of temporal detections; export the one you mean")
        yield sample["filepath"], fields[0].get("detections") if fields else None, known


def _class(where: str, label: Any, classes: Any) -> str:
    if isinstance(label, int) and not isinstance(label, bool) and isinstance(classes, list) and 0 <= label < len(classes):
        label = classes[label]
    if not isinstance(label, str) or not label.strip():
        raise UserError(f"{where}: label is {label!r}; expected a name, or a number into the file's classes")
    return label.strip()


def _pair(where: str, values: Any, what: str) -> tuple[float, float]:
    pair: list[Any] = values if isinstance(values, list) and len(values) == 2 else [None, None]
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in pair):
        raise UserError(f"{where}: {what} {values!r}; expected two numbers")
    return float(pair[0]), float(pair[1])


def _json(path: str) -> Any:
    text = read_text(path, "annotation export")
    if not text.strip():
        raise UserError(f"{path}: is empty; export it again")
    return parse_json(text, path, "annotation export")
