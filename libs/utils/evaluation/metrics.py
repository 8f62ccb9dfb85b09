"""Mean average precision and recall of detections, by the ActivityNet rules (SPEC items 46 to 48).

    scores = evaluate_detections(detections, ground_truth, tious=[.3, .4, .5, .6, .7]);  print(scores.table())

Per class: predictions of all videos by descending score; at each tIoU a prediction takes the free ground truth of its video with
the highest IoU >= tIoU, else it is a false positive; average precision with all-point interpolation; mean over the classes of the
ground truth, then over the tIoUs.  Equal scores keep their input order (`by_segment` gives one that no file changes); of equal
IoUs the last ground truth comes first.
Recall@kx: a ground truth counts if one of the best k * (number of ground truths) predictions of its video and class reaches the
tIoU.

All videos, classes and thresholds are matched together (libs/utils/evaluation/matching.py).  That takes well under a second at
the size of ActivityNet, so classes are not spread over processes.
"""
from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from libs.core.errors import UserError
from libs.utils.evaluation.matching import Groups, best_first, overlapping_pairs, pick_in_order
from libs.utils.evaluation.predictions import Detections, GroundTruth
from libs.utils.tables import format_table

DUPLICATE_TOLERANCE_S = 1e-3
DEFAULT_TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True, eq=False)
class Scores:
    """The results of `evaluate_detections` and `evaluate_thumos14`; all rates are fractions of 1.

    tious (n_tiou,); class_ids (n_cls,) the classes of the ground truth; AP (n_tiou, n_cls); recall (n_tiou, n_recall, n_cls) with
    the names `recall_names` (n_recall); counts: numbers of predictions and ground truths used, and of those left out; matching:
    where they come from, None for the THUMOS14 protocol.
    """

    tious: np.ndarray
    class_ids: np.ndarray
    AP: np.ndarray
    recall: np.ndarray
    recall_names: tuple[str, ...]
    counts: Mapping[str, int]
    label_names: Mapping[int, str] | None = None
    matching: Matching | None = None

    @property
    def mAP(self) -> np.ndarray:
        """(n_tiou,) mean over classes."""
        return self.AP.mean(axis=1)

    @property
    def average_mAP(self) -> float:
        """Mean over tIoUs."""
        return float(self.mAP.mean())

    @property
    def mean_recall(self) -> np.ndarray:
        """(n_tiou, n_recall) mean over classes."""
        return self.recall.mean(axis=2)

    def class_name(self, class_id: int) -> str:
        """The name of a class, or its id as text."""
        return (self.label_names or {}).get(int(class_id), str(int(class_id)))

    def table(self, per_class: bool = False) -> str:
        """A text table in percent: mAP and recall per tIoU and their average; `per_class`: also the AP of each class."""
        names = [f"{t:.2f}" for t in self.tious] + ["average"]
        rates = np.concatenate([self.mAP[:, None], self.mean_recall], axis=1)
        text = _percent_table("tIoU", names, ["mAP", *self.recall_names], _with_mean(rates))
        if per_class:
            classes = [self.class_name(c) for c in self.class_ids]
            text += "\n\n" + _percent_table("AP", classes, names, _with_mean(self.AP).T)
        return text

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers (fractions of 1) for JSON; lists run over tIoUs."""
        return {
            "tiou": self.tious.tolist(),
            "mAP": self.mAP.tolist(),
            "average_mAP": self.average_mAP,
            **{"mean_recall" if name == "recall" else name: self.mean_recall[:, i].tolist()
               for i, name in enumerate(self.recall_names)},
            "per_class_AP": {self.class_name(c): self.AP[:, i].tolist() for i, c in enumerate(self.class_ids)},
            "class_ids": {self.class_name(c): int(c) for c in self.class_ids},
            "counts": dict(self.counts),
        }


@dataclass(frozen=True, eq=False)
class Matching:
    """The ground truth that each detection found at every tIoU.

    used (n,): rows of detections of classes with ground truth, by class, then descending score; det_class (n,), gt_class (m,):
    indices into class_ids (n_cls,); ground_truth: m rows, without duplicates; matched (n_tiou, n) int32: the ground truth of
    each used detection, -1 for a false positive; best_iou (n_k, m): highest IoU of each ground truth with the first
    top_k * (number of ground truths) detections of its video and class.
    """

    tious: np.ndarray
    class_ids: np.ndarray
    ground_truth: GroundTruth
    gt_class: np.ndarray
    used: np.ndarray
    det_class: np.ndarray
    matched: np.ndarray
    best_iou: np.ndarray

    @property
    def num_gt(self) -> np.ndarray:
        """Ground truths per class (n_cls,)."""
        return np.bincount(self.gt_class, minlength=len(self.class_ids))


def match_detections(detections: Detections, ground_truth: GroundTruth, tious: Sequence[float] | np.ndarray,
                     top_k: Sequence[int] = ()) -> Matching:
    """Match detections to ground truth; checks, warnings and errors as in `evaluate_detections`."""
    thresholds = checked_tious(tious)
    detections.check("detections")
    kept = without_duplicates(ground_truth)
    refuse_empty(kept, "the ground truth")
    class_ids, gt_class = np.unique(kept.label, return_inverse=True)
    det_class, known = class_indices(detections.label, class_ids)
    used = warn_about_unused(detections, known)

    videos = {video: i for i, video in enumerate(dict.fromkeys(kept.video_id.tolist()))}
    groups = Groups.of(codes_of(kept.video_id, videos) * len(class_ids) + gt_class)
    video = codes_of(detections.video_id, videos)
    det_group = groups.find(np.where(video < 0, -1, video * len(class_ids) + det_class))

    used = used[np.argsort(-detections.score[used], kind="stable")]
    # by class, then descending score; equal scores stay in input order (sorting short integers is many times faster)
    used = used[np.argsort(det_class[used].astype(np.min_scalar_type(len(class_ids))), kind="stable")]
    det_class, det_group = det_class[used], det_group[used]
    within = _within_top_k(det_group, groups, top_k)
    matched, taken = np.full((len(thresholds), len(used)), -1, np.int32), np.zeros((len(thresholds), len(kept)), bool)
    best_iou = np.zeros((len(top_k), len(kept)))
    for det_index, gt_index, iou in overlapping_pairs(
            np.stack([detections.t_start[used], detections.t_end[used]]), det_group,
            np.stack([kept.t_start, kept.t_end]), groups, at_least=float(thresholds.min())):
        for best, allowed in zip(best_iou, within, strict=True):
            np.maximum.at(best, gt_index[allowed[det_index]], iou[allowed[det_index]])
        order = best_first(det_index, -gt_index, iou)
        picked = pick_in_order(det_index[order], gt_index[order], iou[order] >= thresholds[:, None], taken)
        row, gt = np.nonzero(picked >= 0)
        matched[row, picked[row, gt]] = gt
        taken[row, gt] = True
    return Matching(thresholds, class_ids, kept, gt_class, used, det_class, matched, best_iou)


def evaluate_detections(detections: Detections, ground_truth: GroundTruth, tious: Sequence[float] | np.ndarray,
                        top_k: Sequence[int] = (1, 5), label_names: Mapping[int, str] | None = None) -> Scores:
    """mAP and recall of `detections` against `ground_truth` (one split); inputs are not changed.

    Duplicate ground truth is dropped first (`without_duplicates`).  Predictions of a class without ground truth are ignored with
    one warning; predictions of videos without ground truth are false positives; without any prediction mAP is 0, with a warning.
    Raises UserError for non-finite numbers, a tIoU outside (0, 1], or no ground truth.
    """
    top_k = tuple(int(k) for k in top_k)
    if not top_k or min(top_k) < 1:
        raise UserError(f"top_k: {list(top_k)} is not a list of numbers >= 1; use for example 1 5")
    matching = match_detections(detections, ground_truth, tious, top_k)
    return scores_of(matching, len(detections), len(ground_truth), top_k, label_names)


def scores_of(matching: Matching, num_detections: int, num_ground_truth: int, top_k: Sequence[int] = (),
              label_names: Mapping[int, str] | None = None) -> Scores:
    """The rates of a matching; `num_detections`, `num_ground_truth`: rows before any were left out."""
    num_gt, classes = matching.num_gt, len(matching.class_ids)
    hit = matching.matched >= 0
    ap = np.stack([interpolated_ap(hit[:, rows], total) for rows, total
                   in zip(class_slices(matching.det_class, classes), num_gt, strict=True)], axis=1)
    recall = np.array([[np.bincount(matching.gt_class[best >= tiou], minlength=classes) / num_gt for best in matching.best_iou]
                       for tiou in matching.tious]).reshape(len(matching.tious), len(top_k), classes)
    counts = {"predictions": len(matching.used), "ground_truth": len(matching.gt_class),
              "predictions_ignored": num_detections - len(matching.used),
              "ground_truth_dropped": num_ground_truth - len(matching.gt_class)}
    return Scores(matching.tious, matching.class_ids, ap, recall, tuple(f"recall@{k}x" for k in top_k), counts, label_names,
                  matching)


def class_slices(det_class: np.ndarray, classes: int) -> list[slice]:
    """The rows of each class in the sorted array `det_class` (n,)."""
    ends = np.cumsum(np.bincount(det_class, minlength=classes))
    return [slice(begin, end) for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)]


def refuse_empty(ground_truth: GroundTruth, where: str) -> None:
    """UserError that begins with `where` unless there is a segment to find."""
    if not (ground_truth.t_end - ground_truth.t_start >= DUPLICATE_TOLERANCE_S).any():
        raise UserError(f"{where} has no segment to find, so no mAP exists; check the annotations, name another split, or only "
                        "predict (eval.py --saveonly)")


def without_duplicates(ground_truth: GroundTruth) -> GroundTruth:
    """Ground truth without segments shorter than 1 ms, and without duplicates: same video and class, start and end both within
    1 ms of a segment that is kept (SPEC section 8)."""
    keep = ground_truth.t_end - ground_truth.t_start >= DUPLICATE_TOLERANCE_S
    _, video = np.unique(ground_truth.video_id, return_inverse=True)
    order = np.lexsort((ground_truth.t_start, ground_truth.label, video))
    order = order[keep[order]]
    same = (np.diff(video[order]) == 0) & (np.diff(ground_truth.label[order]) == 0)
    close = same & (np.diff(ground_truth.t_start[order]) <= DUPLICATE_TOLERANCE_S)
    # only runs of close starts can hold duplicates; compare these few pairwise, in input order
    first = np.flatnonzero(np.insert(~close, 0, True))
    last = np.append(first[1:], len(order))
    for begin, end in zip(*(edge[last - first > 1].tolist() for edge in (first, last)), strict=True):
        kept: list[tuple[float, float]] = []
        for i in np.sort(order[begin:end]):
            start, stop = ground_truth.t_start[i], ground_truth.t_end[i]
            if any(abs(start - s) <= DUPLICATE_TOLERANCE_S and abs(stop - e) <= DUPLICATE_TOLERANCE_S for s, e in kept):
                keep[i] = False
            else:
                kept.append((start, stop))
    return ground_truth.take(keep)


def unique_rank_scores(score: np.ndarray) -> np.ndarray:
    """Scores (N,) -> 1 - (rank + 1) / (N + 1), rank by stable descending sort: the same order without ties."""
    rank = np.empty(len(score), np.int64)
    rank[np.argsort(-np.asarray(score, np.float64), kind="stable")] = np.arange(len(score))
    return 1.0 - (rank + 1) / (len(score) + 1)


def tied_share(detections: Detections) -> float:
    """Share of the detections whose score another one of their class has: the order of the rows decides between them."""
    order = np.lexsort((detections.score, detections.label))
    same = (np.diff(detections.score[order]) == 0) & (np.diff(detections.label[order]) == 0)
    tied = np.append(same, False) | np.insert(same, 0, False)
    return float(tied.mean()) if len(detections) else 0.0


def by_segment(detections: Detections) -> Detections:
    """The rows by video id, start, end and class, so that equal scores no longer depend on the order of a file."""
    return detections.take(np.lexsort((detections.label, detections.t_end, detections.t_start, detections.video_id)))


def interpolated_ap(hit: np.ndarray, num_gt: int) -> np.ndarray:
    """Average precision (n_tiou,) of hits (n_tiou, n) in order of descending score, `num_gt` > 0 ground truths.

    All-point interpolation (Pascal VOC 2010 on): the precision at a recall is the best precision at that recall or above.
    """
    precision = np.cumsum(hit, axis=1) / np.arange(1, hit.shape[1] + 1)
    best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return (best_from_here * hit).sum(axis=1) / num_gt


def checked_tious(tious: Sequence[float] | np.ndarray) -> np.ndarray:
    """tIoU thresholds (n,) float64; UserError if there are none, or any outside (0, 1]."""
    values = np.array(tious, np.float64).reshape(-1)
    if values.size == 0 or not ((values > 0) & (values <= 1)).all():
        raise UserError(f"tIoU thresholds {values.tolist()}: every one must lie above 0 and not above 1, for example 0.3 0.5 0.7")
    return values


def class_indices(label: np.ndarray, class_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each label (n,) in the sorted `class_ids`, and whether `class_ids` has it."""
    place = np.minimum(np.searchsorted(class_ids, label), len(class_ids) - 1)
    return place, class_ids[place] == label


def codes_of(video_id: np.ndarray, codes: Mapping[str, int]) -> np.ndarray:
    """codes[id] of each video id (n,), -1 for a missing id; one look-up per run of equal ids."""
    starts = np.flatnonzero(np.concatenate([[True], video_id[1:] != video_id[:-1]])) if len(video_id) else np.empty(0, int)
    heads = np.array([codes.get(video, -1) for video in video_id[starts].tolist()], np.int64)
    return np.repeat(heads, np.diff(starts, append=len(video_id)))


def warn_about_unused(detections: Detections, known: np.ndarray) -> np.ndarray:
    """The rows (k,) with `known` (n,) classes; one warning for the others, or if there is no prediction."""
    used = np.flatnonzero(known)
    if len(detections) == 0:
        warnings.warn("there is no prediction at all, so mAP and recall are 0", stacklevel=3)
    elif len(used) < len(detections):
        ids = np.unique(detections.label[~known])
        some = ", ".join(map(str, ids[:10].tolist())) + (", ..." if len(ids) > 10 else "")
        warnings.warn(f"{len(detections) - len(used)} of {len(detections)} predictions are ignored, since the ground truth has "
                      f"no segment of their class (ids {some})", stacklevel=3)
    return used


def _with_mean(rates: np.ndarray) -> np.ndarray:
    """Rates (n_tiou, n) with their mean as the last row."""
    return np.concatenate([rates, rates.mean(axis=0, keepdims=True)])


def _percent_table(corner: str, rows: Sequence[str], columns: Sequence[str], rates: np.ndarray) -> str:
    return format_table([[name, *line] for name, line in zip(rows, (100 * rates).tolist(), strict=True)], [corner, *columns])


def _within_top_k(det_group: np.ndarray, groups: Groups, top_k: Sequence[int]) -> np.ndarray:
    """(n_k, n) bool: detections (by descending score) among the first k * (number of ground truths) of their group."""
    grouped = np.flatnonzero(det_group >= 0)
    by_group = Groups.of(det_group[grouped])
    within = np.zeros((len(top_k), len(det_group)), bool)
    place = np.arange(len(grouped)) - np.repeat(by_group.first, by_group.size)
    within[:, grouped[by_group.rows]] = place < np.array(top_k)[:, None] * np.repeat(groups.size[by_group.keys], by_group.size)
    return within
