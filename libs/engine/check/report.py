"""The report of `check_dataset` as text for a terminal and as a plain dict for JSON."""
from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from libs.core.problems import ERROR, WARNING
from libs.datasets.annotations import Video
from libs.engine.check.dataset_check import Report
from libs.utils.tables import format_table

BINS_S = (0, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, np.inf)
BAR = 40


def as_dict(report: Report) -> dict[str, Any]:
    """The whole report, ready for JSON; durations in seconds."""
    annotations, names = report.annotations, list(report.annotations.label_ids)
    subsets = {}
    for name in annotations.spellings:
        videos = annotations.of_subset((name,))
        lengths = np.concatenate([np.diff(v.segments, axis=1)[:, 0] for v in videos]) if videos else np.empty(0)
        known = [v.duration_s for v in videos if np.isfinite(v.duration_s)]
        counts = Counter(names[label] for v in videos for label in v.labels.tolist())
        subsets[name] = {
            "videos": len(videos), "without_segments": sum(len(v.segments) == 0 for v in videos),
            "with_features": sum(v.id in report.files for v in videos), "segments": len(lengths),
            "hours": round(sum(known) / 3600, 4), "video_s": _five(known), "segment_s": _five(lengths),
            "histogram": np.histogram(lengths, BINS_S)[0].tolist(), "overlapping_share": round(overlap_share(videos), 4),
            "classes": {label: counts[label] for label in names}}
    grid = None if report.grid is None else {"feat_stride": report.grid.stride, "num_frames": report.grid.num_frames,
                                             "explains": round(report.grid.share, 4), "source": report.grid_source}
    return {"annotations": annotations.path, "features": report.features, "subsets": subsets, "grid": grid,
            "vectors": _five([fact.length for fact in report.files.values()]),
            "widths": dict(Counter(str(fact.width) for fact in report.files.values())), "coverage": report.coverage,
            "counts": report.problems.counts(), "problems": [dataclasses.asdict(p) for p in report.problems.found]}


def overlap_share(videos: Sequence[Video]) -> float:
    """Share of the segments that overlap another one of their class in the same video."""
    total = overlapping = 0
    for video in videos:
        for label in np.unique(video.labels):
            inside = video.segments[video.labels == label]
            inside = inside[np.argsort(inside[:, 0], kind="stable")]
            reached = np.maximum.accumulate(inside[:, 1])
            overlapping += int((inside[1:, 0] < reached[:-1]).sum())
        total += len(video.segments)
    return overlapping / total if total else 0.0


def as_text(report: Report, shown: int | None = 10) -> str:
    """The report; at most `shown` problems of a kind (None: all)."""
    values = as_dict(report)
    lines = [f"{values['annotations']}: {len(report.annotations.videos)} videos, {len(report.annotations.label_ids)} classes; "
             f"features: {', '.join(report.features)}", ""]
    columns = ("subset", "videos", "features", "segments", "without", "hours", "video s", "segment s", "overlap")
    rows = [[name or "(none)", s["videos"], s["with_features"], s["segments"], s["without_segments"], f"{s['hours']:.2f}",
             _range(s["video_s"]), _range(s["segment_s"]), f"{s['overlapping_share']:.1%}"]
            for name, s in values["subsets"].items()]
    lines.append(format_table(rows, columns))
    if values["grid"]:
        grid = values["grid"]
        lines += ["", f"grid: feat_stride {grid['feat_stride']:g}, num_frames {grid['num_frames']:g} ({grid['source']}, fits "
                      f"{grid['explains']:.0%} of the files); vectors per file {_range(values['vectors'])}, channels "
                      f"{', '.join(values['widths'])}"]
    lines += ["", *_histogram(values["subsets"]), "", *_classes(report, values["subsets"])]
    if values["coverage"]:
        lines += ["", *_coverage(values["coverage"])]
    return "\n".join([*lines, "", *_findings(report, shown)])


def _five(values: Any) -> list[float] | None:
    """Minimum, quartiles and maximum; None without values."""
    return np.percentile(values, (0, 25, 50, 75, 100)).round(3).tolist() if len(values) else None


def _range(five: list[float] | None) -> str:
    return f"{five[0]:.4g} / {five[2]:.4g} / {five[4]:.4g}" if five else "-"


def _histogram(subsets: dict[str, Any]) -> list[str]:
    counts = np.sum([s["histogram"] for s in subsets.values()], axis=0) if subsets else np.zeros(len(BINS_S) - 1, int)
    if not counts.any():
        return ["no segments"]
    used = np.flatnonzero(counts)
    rows = ["segment durations"]
    for i in range(used[0], used[-1] + 1):
        bounds = f"{BINS_S[i]:g} to {BINS_S[i + 1]:g} s" if np.isfinite(BINS_S[i + 1]) else f"from {BINS_S[i]:g} s"
        rows.append(f"{bounds:>14} {counts[i]:>7} {'#' * int(np.ceil(BAR * counts[i] / counts.max()))}")
    return rows


def _classes(report: Report, subsets: dict[str, Any]) -> list[str]:
    names, ids = list(report.annotations.label_ids), report.annotations.file_ids
    if not names:
        return []
    lengths: list[list[float]] = [[] for _ in names]
    for video in report.annotations.videos.values():
        for label, (start, end) in zip(video.labels, video.segments.tolist(), strict=True):
            lengths[label].append(end - start)
    rows = [[name, ids.get(name), *(s["classes"][name] for s in subsets.values()), _range(_five(lengths[i]))]
            for i, name in enumerate(names)]
    return [format_table(rows, ["class", "id", *(name or "(none)" for name in subsets), "segment s"])]


def _coverage(coverage: dict[str, Any]) -> list[str]:
    total = max(coverage["segments"], 1)
    rows = [[level["stride"], f"{level['range'][0]:g} to {level['range'][1]:g}", level["segments"],
             f"{level['segments'] / total:.1%}", level["points"]] for level in coverage["levels"]]
    lost = ", ".join(f"{name} {s['unmatched']} of {s['segments']}" for name, s in coverage["unmatched_per_subset"].items())
    return [f"the pyramid of {coverage['config']}: segments with a point, per level (a segment may have points on several)",
            format_table(rows, ("level stride", "range", "segments", "share", "points")),
            f"segments without any point: {lost or 'none'}; shorter than a grid step: {coverage['shorter_than_a_step']} of "
            f"{coverage['segments']}"]


def _findings(report: Report, shown: int | None) -> list[str]:
    lines = []
    for severity in (ERROR, WARNING):
        found = [p for p in report.problems.found if p.severity == severity]
        for kind in dict.fromkeys(p.kind for p in found):
            same = [p for p in found if p.kind == kind]
            listed = same if shown is None else same[:shown]
            lines += [f"{severity}: {kind}: {p}" for p in listed]
            if len(listed) < len(same):
                lines.append(f"{severity}: {kind}: ... and {len(same) - len(listed)} more (--all shows them)")
    counts = report.problems.counts()
    return [*lines, f"{counts[ERROR]} errors, {counts[WARNING]} warnings"]
