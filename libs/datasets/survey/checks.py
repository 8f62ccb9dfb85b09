"""Checks of readable annotations: ids, subsets, times and their unit, fps, labels.  Each adds its findings to `Problems`.

Features are not read here: `spans_s` gives the length of each video in seconds, from its duration or its features.
"""
from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from libs.core.errors import nearest, shown
from libs.core.names import folded, folded_label, similar_labels, spelled, visible
from libs.core.problems import Problems
from libs.core.time_units import FAR_OUTSIDE, REMEDIES, other_units
from libs.datasets.annotations import DUPLICATE_TOLERANCE_S, Annotations, Video
from libs.datasets.features.provenance import Provenance, VideoTiming, contradictions

TRAIN_NAMES = ("training", "train")
VAL_NAMES = ("validation", "val", "valid", "testing", "test")
SLACK_S, SLACK_SHARE = 0.5, 0.01  # of the video's length: how late a last segment may end when durations are rounded
NAMED = 3  # videos in a message
RARE = 2  # training segments: a class with so few cannot be learned


class Splits(NamedTuple):
    """Subset names, lower case; source: the configuration that names them, '' when they were guessed."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    other: tuple[str, ...] = ()
    source: str = ""


def guess_splits(annotations: Annotations) -> Splits:
    """The usual names that occur in the file; without a training subset, as in THUMOS14, validation and test."""
    usual = [name for name in VAL_NAMES if name in annotations.spellings]
    train = next((name for name in TRAIN_NAMES if name in annotations.spellings), None)
    if train is None and len(usual) > 1:
        return Splits((usual[0],), (usual[1],))
    return Splits((train or TRAIN_NAMES[0],), (usual[0] if usual else VAL_NAMES[0],))


def check_ids(annotations: Annotations, with_features: Container[str], problems: Problems) -> None:
    """Video ids that are not bare file names (but for `with_features`), or differ in case, spaces or Unicode composition only."""
    path = annotations.path
    for vid in annotations.videos:
        if vid != vid.strip() or (("/" in vid or "\\" in vid) and vid not in with_features):
            problems.warning("video-id", path, f"video {vid!r}", "has spaces at an end or a path separator in its name",
                             "the feature file is looked for under exactly this name: use the bare name")
    alike: dict[str, list[Video]] = defaultdict(list)
    for video in annotations.videos.values():
        alike[folded(video.id)].append(video)
    for same in alike.values():
        if len(same) > 1:
            subsets = sorted({video.subset for video in same})
            problems.warning("similar-video-ids", path, f"videos {', '.join(visible(video.id) for video in same)}",
                             f"differ in case, spaces or Unicode composition only (subset {', '.join(subsets)})",
                             "if they are one video, merge them")


def check_subsets(annotations: Annotations, splits: Splits, problems: Problems) -> None:
    """Subsets without videos or segments, videos in no split, spellings that differ from lower case."""
    path, used = annotations.path, splits.train + splits.val + splits.other
    have = ", ".join(f"{name} ({sum(count.values())})" for name, count in annotations.spellings.items() if name) or "none"
    for key, names in (("train_split", splits.train), ("val_split", splits.val)):
        place = f"{key}: {', '.join(names)}"
        videos = annotations.of_subset(names)
        if not videos:
            problems.error("empty-split", path, place, f"no video has this subset (the file has {have})",
                           f"correct {splits.source + ': ' if splits.source else ''}{key}, or the subsets of the videos")
        elif not any(len(video.segments) for video in videos):
            problems.error("empty-split", path, place, f"its {len(videos)} videos have no segment",
                           "annotate them, or choose another subset")
    if both := sorted(set(splits.train) & set(splits.val)):
        problems.warning("same-subset", splits.source or path, "train_split and val_split", f"both name {', '.join(both)}: the "
                         "mAP is measured on videos that were trained on", "name another subset in one of them")
    for name, count in annotations.spellings.items():
        odd = [spelling for spelling in count if spelling != name]
        if odd:
            problems.warning("subset-case", path, f"subset {odd[0]!r}",
                             f"{sum(count[s] for s in odd)} videos write it so, {count[name]} write {name!r}: all are read as "
                             f"{name!r}, the only spelling that a configuration can name", f"write {name!r} everywhere")
        if name and name not in used:
            problems.warning("unused-subset", path, f"subset {name!r}", f"its {sum(count.values())} videos are neither "
                             f"trained on nor evaluated{nearest(name, used)}", "correct the name, or leave them if that is meant")


def check_times(annotations: Annotations, spans_s: Mapping[str, float], problems: Problems) -> None:
    """Times in another unit, outside the video, of zero length, repeated, or overlapping within a class."""
    path = annotations.path
    units = other_units(_usual_ends(annotations, spans_s), spans_s,
                        {video.id: video.fps for video in annotations.videos.values() if video.fps})
    for video in annotations.videos.values():
        if len(video.segments) == 0:
            continue
        place = f"video {video.id!r}"
        if video.id in units:
            unit = units[video.id]
            problems.error(f"unit-{unit.replace(' ', '-')}", path, place,
                           f"its {len(video.segments)} segments reach to {video.segments.max():g}, the video to "
                           f"{spans_s[video.id]:g} s: the times look like {unit}", f"{REMEDIES[unit]}: segments are in seconds")
        elif video.id in spans_s:
            _check_ends(annotations, video, spans_s[video.id], problems)
        _check_pairs(annotations, video, problems)


def _usual_ends(annotations: Annotations, spans_s: Mapping[str, float]) -> dict[str, float]:
    """Latest end per video, leaving out the few that lie far outside where most do not: mistakes, not another unit."""
    ends = {video.id: video.segments[:, 1] for video in annotations.videos.values() if len(video.segments)}
    late = {vid: times > FAR_OUTSIDE * spans_s.get(vid, np.inf) for vid, times in ends.items()}
    single = sum(map(np.count_nonzero, late.values())) == 1 and sum(map(len, ends.values())) > 2
    few = [vid for vid, rows in late.items() if single or 2 * np.count_nonzero(rows) < len(rows)]
    ends |= {vid: ends[vid][~late[vid]] for vid in few}
    return {vid: float(times.max(initial=0.0)) for vid, times in ends.items()}


def _check_ends(annotations: Annotations, video: Video, span_s: float, problems: Problems) -> None:
    path, slack = annotations.path, max(SLACK_S, SLACK_SHARE * span_s)
    for i, (start, end) in zip(annotations.entries[video.id], video.segments.tolist(), strict=True):
        place = f"video {video.id!r}, annotations[{i}]"
        if start >= span_s or end > span_s + slack:
            problems.error("segment-outside", path, place, f"[{start:g}, {end:g}] leaves its video of {span_s:g} s",
                           "correct the segment or the duration")
        elif end > span_s + DUPLICATE_TOLERANCE_S:
            problems.warning("segment-outside", path, place, f"[{start:g}, {end:g}] ends {end - span_s:.3g} s after "
                             f"its video of {span_s:g} s", "cut it at the end if that is only rounding")


def _check_pairs(annotations: Annotations, video: Video, problems: Problems) -> None:
    """Within one video: negative starts, empty, repeated and, per class, overlapping segments."""
    path, names = annotations.path, list(annotations.label_ids)
    entries, starts, ends = annotations.entries[video.id], video.segments[:, 0], video.segments[:, 1]
    for n in np.flatnonzero(starts < 0):
        add = problems.warning if starts[n] >= -SLACK_S else problems.error
        add("negative-start", path, f"video {video.id!r}, annotations[{entries[n]}]",
            f"[{starts[n]:g}, {ends[n]:g}] starts before the video", "write 0 if the action is under way at the beginning")
    for n in np.flatnonzero(starts == ends):
        problems.warning("zero-length", path, f"video {video.id!r}, annotations[{entries[n]}]",
                         f"[{starts[n]:g}, {ends[n]:g}] has zero length: it is never learned and never counted",
                         "correct or remove it")
    repeated, overlapping = [], []
    for label in np.unique(video.labels):
        of_class = np.flatnonzero(video.labels == label)
        order = of_class[np.argsort(starts[of_class], kind="stable")]
        for a, b in itertools.pairwise(order):
            if np.abs(video.segments[a] - video.segments[b]).max() <= DUPLICATE_TOLERANCE_S:
                repeated.append((a, b))
            elif min(ends[a], ends[b]) - starts[b] > DUPLICATE_TOLERANCE_S:
                overlapping.append((a, b))
    for kind, pairs, what, remedy in (
            ("duplicate-segment", repeated, "are repeated", "remove the copies: the evaluation counts them once"),
            ("overlap", overlapping, "overlap another of their class", "merge them if they are one action")):
        if pairs:
            a, b = pairs[0]
            problems.warning(kind, path, f"video {video.id!r}", f"{len(pairs)} of {len(starts)} segments {what} (first: "
                             f"annotations[{entries[a]}] and [{entries[b]}], {names[video.labels[a]]!r}, [{starts[a]:g}, "
                             f"{ends[a]:g}] and [{starts[b]:g}, {ends[b]:g}])", remedy)


def check_labels(annotations: Annotations, splits: Splits, problems: Problems) -> None:
    """Names that differ in spelling only, gaps between ids, classes without training or validation segments."""
    path, totals = annotations.path, annotations.label_counts(annotations.videos.values())
    for same in similar_labels(totals):
        problems.error("label-spelling", path, f"labels {spelled(same, totals)}", "differ in case, spaces, hyphens or Unicode "
                       f"composition only, but count as {len(same)} classes", "give them one name")
    shapes = {folded_label(name): name for name in annotations.label_ids}
    for i, a in enumerate(shapes):
        for b in list(shapes)[i + 1:]:
            pair = sorted((shapes[a], shapes[b]), key=lambda name: totals[name])
            if _one_typo(a, b) and totals[pair[0]] <= max(RARE, 0.05 * totals[pair[1]]):
                problems.warning("label-typo", path, f"label {pair[0]!r}", f"has {totals[pair[0]]} segments and is one "
                                 f"letter away from {pair[1]!r} ({totals[pair[1]]} segments)",
                                 "if it is a typing mistake, correct it")
    ids = set(annotations.file_ids.values())
    last = max(ids, default=-1)
    empty = last + 1 - len(ids)
    if empty:
        first, classes = itertools.islice((i for i in range(last) if i not in ids), 10), len(annotations.file_ids)
        problems.warning("label-id-gap", path, "label_id", f"ids go to {last}, but {', '.join(map(str, first))} "
                         f"{'belong' if empty > 1 else 'belongs'} to no class: num_classes must be {last + 1}, with {empty} "
                         "empty", f"number the {classes} classes 0 to {classes - 1}, or leave label_id out")
    train, val = (annotations.label_counts(annotations.of_subset(names)) for names in (splits.train, splits.val))
    for name in annotations.label_ids:
        place = f"label {name!r}"
        if not train[name] and val[name]:
            problems.warning("class-not-trained", path, place, f"has {val[name]} validation segments and none for "
                             "training: it counts as 0 in the mAP",
                             "move a video with it to the training subset, or remove the class")
        elif not train[name]:
            problems.warning("class-not-trained", path, place, "has no training segments", "remove it or annotate some")
        elif train[name] <= RARE:
            problems.warning("rare-class", path, place, f"has {train[name]} training segments", "annotate more of it")
        elif not val[name] and any(val.values()):
            problems.warning("class-not-evaluated", path, place, "has no validation segments: the mAP does not count it",
                             "move a video with it to the validation subset")


def _one_typo(a: str, b: str) -> bool:
    """Whether labels of 5 or more letters differ by one letter (no digit) added, removed or changed, or by two swapped ones.

    Words of one or two letters are names of their own (move x, move y; put in, put on).
    """
    words, others = a.split(), b.split()
    if len(words) == len(others) and all(max(len(x), len(y)) <= 2 for x, y in zip(words, others, strict=True) if x != y):
        return False
    short, long = sorted((a, b), key=len)
    if len(short) < 5 or len(long) - len(short) > 1:
        return False
    head = next((i for i, (x, y) in enumerate(zip(short, long, strict=False)) if x != y), len(short))
    changed = short[head:head + 1] + long[head:head + 1]
    if any(c.isdigit() for c in changed):
        return False
    if len(short) == len(long):
        swapped = short[head:head + 2] == long[head:head + 2][::-1] and short[head + 2:] == long[head + 2:]
        return short[head + 1:] == long[head + 1:] or swapped
    return short[head:] == long[head + 1:]


def correct_fps(path: str, fps: dict[str, float], provenance: Provenance | None, problems: Problems) -> None:
    """Report the fps of videos that are not those of their features, and replace them by those, for the checks that follow."""
    wrong = contradictions(provenance, {vid: VideoTiming(rate) for vid, rate in fps.items()}) if provenance else {}
    if provenance and wrong:
        vid, (_, ours, theirs) = next(iter(wrong.items()))
        problems.error("fps", path, "", f"{_videos(list(wrong), len(fps))} another fps than their features: {ours:g} for "
                       f"{shown(vid)}, whose features have {theirs:g} in {provenance.path}",
                       "take it from there: convert_annotations --features")
    fps |= {vid: theirs for vid, (_, _, theirs) in wrong.items()}


def check_fps(annotations: Annotations, fps: Container[str], provenance: Provenance | None, problems: Problems) -> None:
    """Unusual fps, and videos without fps or duration; fps: the videos that have one."""
    path, videos = annotations.path, annotations.videos.values()
    reported = {(p.kind, p.where) for p in problems.found}
    for video in videos:
        if video.fps and not 1 <= video.fps <= 1000:
            problems.warning("fps", path, f"video {shown(video.id)}", f"an fps of {video.fps:g} is unusual",
                             "expected frames per second")
    without_fps = [v.id for v in videos if v.id not in fps and ("fps", f"video {shown(v.id)}") not in reported]
    without_duration = [v.id for v in videos if not math.isfinite(v.duration_s)
                        and ("duration", f"video {shown(v.id)}") not in reported]
    if without_fps:
        recorded = provenance is not None and all(provenance.of(vid).fps for vid in without_fps)
        problems.error("fps", path, "", f"{_videos(without_fps, len(videos))} no fps",
                       f"take it from {provenance.path}: convert_annotations --features" if provenance and recorded else
                       "give one for all with --fps (in training dataset.default_fps), or add each its own")
    if without_duration:
        problems.warning("duration", path, "", f"{_videos(without_duration, len(videos))} no duration, so nothing is checked "
                         "against it", "add it, in seconds (convert_annotations --durations or --features)")


def _videos(ids: Sequence[str], total: int) -> str:
    """"video 'a' has" or "7 of 9 videos ('a', 'b', 'c', ...) have"."""
    if len(ids) == 1:
        return f"video {shown(ids[0])} has"
    return f"{len(ids)} of {total} videos ({', '.join(map(shown, ids[:NAMED]))}{', ...' if len(ids) > NAMED else ''}) have"
