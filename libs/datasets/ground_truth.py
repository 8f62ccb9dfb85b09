"""Predictions files with the ground truth to evaluate them against, and checks that the two fit.

    (detections,), annotated = read_with_ground_truth(["predictions.json"], "thumos14.json")
    check_fit(detections, annotated, "predictions.json")     refuses unknown videos, another time unit, scores outside [0, 1]
"""
from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from libs.core.errors import UserError, nearest
from libs.core.files import is_folder
from libs.core.names import folded, visible
from libs.core.time_units import REMEDIES, other_units
from libs.datasets.annotations import Annotations, load_annotations
from libs.utils.evaluation.metrics import by_segment, refuse_empty, tied_share
from libs.utils.evaluation.predictions import Detections, GroundTruth, read_predictions
from libs.utils.evaluation.score_fusion import fuse_external_scores, load_external_scores
from libs.utils.evaluation.thumos_protocol import load_thumos14_folder

REMEDY = "; name the annotations that belong to these predictions"
TIES = ("file", "segment")
TIED_SHARE, MANY = 0.01, 100  # a larger share of so many scores or more is worth a warning


@dataclass(frozen=True)
class AnnotatedSplit:
    """One split: its segments, the videos it has, class name -> id.

    ambiguous: segments on which the THUMOS14 protocol ignores detections, or None; durations_s: per video, inf where unknown;
    fps: per video, where known; elsewhere: videos of the file's other splits -> their split.
    """

    source: str
    split: str
    ground_truth: GroundTruth
    ambiguous: GroundTruth | None
    videos: frozenset[str]
    label_ids: Mapping[str, int]
    durations_s: Mapping[str, float] = field(default_factory=dict)
    fps: Mapping[str, float] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def without(self, excluded: Collection[str]) -> AnnotatedSplit:
        """The split without some videos; UserError if no segment is left."""
        def kept(rows: GroundTruth) -> GroundTruth:
            return rows.take(~np.isin(rows.video_id, list(excluded)))

        ground_truth = kept(self.ground_truth)
        refuse_empty(ground_truth, f"{self.source}: split {self.split} without {len(excluded)} videos")
        return dataclasses.replace(self, ground_truth=ground_truth, videos=self.videos - set(excluded),
                                   ambiguous=None if self.ambiguous is None else kept(self.ambiguous))

    def label_names(self) -> dict[int, str]:
        """Class id -> name."""
        return {class_id: name for name, class_id in self.label_ids.items()}


def read_with_ground_truth(predictions: Sequence[str | os.PathLike], annotations: str | os.PathLike, split: str | None = None,
                           labels_from: str | os.PathLike | None = None, class_scores: str | os.PathLike | None = None,
                           class_agnostic: bool = False, merge_labels: bool = False) -> tuple[list[Detections], AnnotatedSplit]:
    """Read predictions files and the split that they belong to, of an annotation JSON or a THUMOS14 folder.

    split: its name; None: the one that has the videos of the first file.  labels_from: with a folder, the annotation JSON whose
    class ids the predictions use.  With a JSON, class_scores: a file of scores per video that replace the labels of the
    predictions; class_agnostic: all labels are one class; merge_labels: labels that differ in spelling only are one class, in
    both files.  Raises UserError for unreadable files, and for a split that does not exist or that the predictions do not tell.
    """
    if is_folder(annotations):
        if class_scores or class_agnostic or merge_labels:
            raise UserError(f"{annotations}: --class-scores, --class-agnostic and --merge-labels go with an annotation JSON; "
                            "leave them out")
        return _against_folder(predictions, annotations, split, labels_from)
    if labels_from:
        raise UserError(f"{annotations}: --labels-from goes with a THUMOS14 folder only; leave it out")
    document = load_annotations(annotations, merge_labels=merge_labels)
    found = [read_predictions(path, document.label_ids, bool(class_scores) or class_agnostic) for path in predictions]
    if class_scores:
        videos_found = np.unique(np.concatenate([detections.video_id for detections in found])).tolist()
        scores = load_external_scores(class_scores, document.label_ids, videos_found)
        found = [fuse_external_scores(detections, scores, source=str(class_scores), keep_unscored=False) for detections in found]
    if document.merged and not class_agnostic:
        found = [_with_merged_labels(detections, document.merged) for detections in found]
    split = _split_of(document, found[0], str(predictions[0]), split)
    videos = document.of_subset((split,))
    ground_truth = GroundTruth.from_videos(((v.id, v.segments, v.labels) for v in videos), str(annotations))
    refuse_empty(ground_truth, f"{annotations}: subset {split}")
    if class_agnostic:
        ground_truth = dataclasses.replace(ground_truth, label=np.zeros_like(ground_truth.label))
    label_ids = {name: number for name, number in document.label_ids.items() if number not in document.merged}
    label_ids = {"any class": 0} if class_agnostic else label_ids
    ids = frozenset(video.id for video in videos)
    return found, AnnotatedSplit(
        str(annotations), split, ground_truth, None, ids, label_ids, durations_s={v.id: v.duration_s for v in videos},
        fps={v.id: v.fps for v in videos if v.fps is not None},
        elsewhere={v.id: v.subset for v in document.videos.values() if v.id not in ids})


def without_videos(detections: Detections, excluded: Collection[str]) -> Detections:
    """The rows of the other videos."""
    return detections.take(~np.isin(detections.video_id, list(excluded))) if excluded else detections


def check_videos(detections: Detections, annotated: AnnotatedSplit, source: str) -> None:
    """One warning that counts the videos with segments but no prediction, and the predictions of videos that the split does not
    have, which are false positives.  UserError if it has none of the predicted videos.
    """
    predicted, counts = np.unique(detections.video_id, return_counts=True)
    if not len(predicted):
        return  # the evaluation says so
    strange = [video for video in predicted.tolist() if video not in annotated.videos]
    if len(strange) == len(predicted):
        raise UserError(f"{source}: none of its {len(strange)} videos is in split {annotated.split} of {annotated.source}, which "
                        f"has {len(annotated.videos)} ({_some(strange)})"
                        f"{_likely_cause(strange, annotated.videos, annotated.elsewhere, REMEDY)}")
    found = []
    annotated_videos = np.unique(annotated.ground_truth.video_id)
    if len(missing := np.setdiff1d(annotated_videos, predicted)):
        segments = np.isin(annotated.ground_truth.video_id, missing).sum()
        found.append(f"no prediction for {len(missing)} of {len(annotated_videos)} videos with segments of split "
                     f"{annotated.split}, whose {segments} segments count as missed ({_some(missing.tolist())})")
    if strange:
        rows = counts[np.isin(predicted, strange)].sum()
        found.append(f"{rows} predictions of {len(strange)} videos that split {annotated.split} does not have count as false "
                     f"positives ({_some(strange)}){_likely_cause(strange, annotated.videos, annotated.elsewhere)}")
    if found:
        warnings.warn(f"{source}: {'; '.join(found)}", stacklevel=2)


def _likely_cause(strange: Sequence[str], videos: Collection[str], elsewhere: Mapping[str, str], remedy: str = "") -> str:
    """Why a split may lack these videos, for the end of a message; videos, elsewhere: as of `AnnotatedSplit`; remedy: where no
    cause is seen."""
    splits = Counter(elsewhere[video] for video in strange if video in elsewhere)
    if splits:
        split, count = splits.most_common(1)[0]
        return f"; {count} of them are of split {split}: choose it with --split {split}, or leave them out"
    plain = {_plain(video): video for video in (*elsewhere, *videos)}
    similar = [(video, plain[_plain(video)]) for video in strange if _plain(video) in plain]
    if similar:
        pairs = ", ".join(f"{visible(ours)} is {visible(theirs)} there" for ours, theirs in similar[:3])
        return f"; {len(similar)} of them differ in case, spaces, folder or ending only ({pairs}): write the ids as there"
    likely = nearest(strange[0], (*videos, *elsewhere))
    return (f"; {strange[0]!r}{likely}" if likely else "") + remedy


def _plain(video: str) -> str:
    """A video id without folder, ending (.mp4), and differences of case and spaces."""
    return re.sub(r"\.\w{2,4}$", "", folded(re.split(r"[/\\]", video)[-1]))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def settle_ties(detections: Detections, source: str, ties: str) -> Detections:
    """Detections in the order in which equal scores count: `ties` is one of TIES.

    file: unchanged, with a warning if more than 1 % of 100 scores or more are tied; segment: by video id, start, end and class.
    """
    if ties == "segment":
        return by_segment(detections)
    if len(detections) >= MANY and (share := tied_share(detections)) > TIED_SHARE:
        warnings.warn(f"{source}: {100 * share:.1f} % of the scores are equal to another of their class: the order of the file's "
                      "rows decides between them; --ties segment orders them by video, start and end", stacklevel=2)
    return detections


def check_fit(detections: Detections, annotated: AnnotatedSplit, source: str, allow_unknown: bool = False) -> None:
    """UserError for another time unit, a score outside [0, 1], or a video that the annotations do not have in any split unless
    `allow_unknown`."""
    predicted = dict.fromkeys(detections.video_id.tolist())
    strange = [video for video in predicted if video not in annotated.videos and video not in annotated.elsewhere]
    if strange and not allow_unknown:
        raise UserError(f"{source}: {len(strange)} of its {len(predicted)} videos are unknown to {annotated.source} "
                        f"({_some(strange)}){_likely_cause(strange, annotated.videos, annotated.elsewhere, REMEDY)}, or let "
                        "--allow-unknown count them as false positives")
    check_time_unit(detections, annotated, source)
    outside = np.flatnonzero((detections.score < 0) | (detections.score > 1))
    if outside.size:
        i = outside[0]
        raise UserError(f"{source}: entry {i} (video {detections.video_id[i]}): score is {detections.score[i]:g} ({outside.size} "
                        "such); scores must lie in [0, 1]: write probabilities, or use --unique-rank-scores, which keeps only "
                        "their order")


def check_time_unit(detections: Detections, annotated: AnnotatedSplit, source: str) -> None:
    """UserError when times are not in seconds: most predictions start after the end of their video (frames, milliseconds), or
    all end within the first second although the median ground-truth segment ends after 2 s (shares of the duration).

    A video of unknown duration is taken to be three times as long as the end of its last segment.
    """
    if len(detections) == 0:
        return
    last: dict[str, float] = {}
    for video, end in zip(annotated.ground_truth.video_id.tolist(), annotated.ground_truth.t_end.tolist(), strict=True):
        last[video] = max(last.get(video, 0.0), end)
    length = {v: 3 * end for v, end in last.items()} | {v: d for v, d in annotated.durations_s.items() if np.isfinite(d)}
    limit = np.array([length.get(v, np.inf) for v in detections.video_id.tolist()])
    late = detections.t_start > limit
    if late.mean() > 0.5:
        i = int(np.flatnonzero(late)[0])
        video = str(detections.video_id[i])
        ends = {v: float(detections.t_end[detections.video_id == v].max()) for v in np.unique(detections.video_id).tolist()}
        units = list(other_units(ends, length, annotated.fps).values())
        unit = max(units, key=units.count) if units else ""
        likely = f"these look like {unit}: {REMEDIES[unit]}" if unit else "convert them"
        likely += f" ({annotated.fps[video]:g})" if unit == "frames" and video in annotated.fps else ""
        raise UserError(f"{source}: video {video}: the segment [{detections.t_start[i]:g}, {detections.t_end[i]:g}] starts after "
                        f"the video's end at {limit[i]:g} s, as do {late.sum()} of {len(late)} segments; times must be seconds, "
                        f"{likely}")
    middle = np.median(annotated.ground_truth.t_end) if len(annotated.ground_truth) else 0.0
    if detections.t_end.max() <= 1 and middle > 2:
        raise UserError(f"{source}: all {len(late)} segments end within the first second, but half of those to find end after "
                        f"{middle:g} s; times must be seconds, these look like shares of the duration: multiply them by it")


def _with_merged_labels(detections: Detections, merged: Mapping[int, int]) -> Detections:
    labels = np.array([merged.get(label, label) for label in detections.label.tolist()], np.int64)
    return dataclasses.replace(detections, label=labels)


def _split_of(document: Annotations, detections: Detections, source: str, split: str | None) -> str:
    subsets = document.subset_counts()
    if split is not None:
        if split.lower() not in subsets:
            raise UserError(f"{document.path}: has no split {split!r}; it has {', '.join(sorted(subsets))}")
        return split.lower()
    if len(subsets) == 1:
        return next(iter(subsets))
    videos = list(dict.fromkeys(detections.video_id.tolist()))
    predicted = Counter(document.videos[video].subset for video in videos if video in document.videos)
    if videos and not predicted:
        raise UserError(f"{source}: none of its {len(videos)} videos is among the {len(document.videos)} of {document.path} "
                        f"({', '.join(sorted(subsets))}), e.g. {videos[0]!r}{_likely_cause(videos, document.videos, {}, REMEDY)}")
    if len(predicted) != 1:
        found = ", ".join(f"{name} ({count} videos)" for name, count in sorted(predicted.items())) or "no video"
        raise UserError(f"{source}: has predictions for {found}; choose one of {', '.join(sorted(subsets))} with --split, "
                        "and leave out the predictions of other videos first: they count as false positives")
    return next(iter(predicted))


def _against_folder(predictions: Sequence[str | os.PathLike], folder: str | os.PathLike, split: str | None,
                    labels_from: str | os.PathLike | None) -> tuple[list[Detections], AnnotatedSplit]:
    official = load_thumos14_folder(os.fspath(folder), split)
    ids = load_annotations(labels_from).label_ids if labels_from else official.label_ids
    found = [read_predictions(path, ids) for path in predictions]
    lowest = min(official.label_ids.values())
    for i, (path, detections) in enumerate(zip(predictions, found, strict=True)):
        if labels_from:
            official_id = {class_id: official.label_ids.get(name, -1) for name, class_id in ids.items()}
            labels = np.array([official_id.get(label, -1) for label in detections.label.tolist()], np.int64)
            found[i] = dataclasses.replace(detections, label=labels)
        elif len(detections) and detections.label.min() < lowest:
            raise UserError(f"{path}: has the class id {detections.label.min()}, but the ids of {folder} begin at {lowest}; "
                            "if the ids are those of an annotation JSON, name it with --labels-from")
    return found, AnnotatedSplit(str(folder), official.subset, official.ground_truth, official.ambiguous, official.video_ids,
                                 official.label_ids)
