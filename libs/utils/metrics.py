"""Mean average precision and recall of detections, by the ActivityNet rules (SPEC 46 to 48).

    scores = evaluate_detections(detections, ground_truth, tious=[.3, .4, .5, .6, .7]);  print(scores.table())

Per class: predictions of all videos by falling score; at each tIoU a prediction takes the still free ground truth of its
video with the highest IoU >= tIoU, else it is a false positive; average precision with all-point interpolation; mean over the
classes of the ground truth, then over the tIoUs.  Equal scores keep their input order; of equal IoUs the last ground truth
comes first.  Recall@kx: of each video and class the best k * (number of its ground truths) predictions; a ground truth counts
if any of them reaches the tIoU.

Everything is computed at once over videos, classes and thresholds: the (prediction, ground truth) pairs that overlap enough
are listed once, and `pick_in_order` settles who gets what.
"""
from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from libs.core.errors import UserError
from libs.utils.predictions import Detections, GroundTruth

DUPLICATE_TOLERANCE_S = 1e-3
DEFAULT_TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
_PAIRS_AT_ONCE = 1 << 21  # bounds the memory of the pair lists (about 100 MB)


@dataclass(frozen=True, eq=False)
class Scores:
    """What `evaluate_detections` measures; every rate is a fraction of 1.

    tious (n_tiou,); mAP (n_tiou,) mean over classes; average_mAP mean over tIoUs; AP (n_tiou, n_cls); class_ids (n_cls,) the
    classes of the ground truth; top_k (n_k,); recall (n_tiou, n_k, n_cls) and mean_recall (n_tiou, n_k) at top_k times the
    number of ground truths; counts: predictions, ground_truth (both used), predictions_ignored (of unknown class),
    ground_truth_dropped (duplicates and segments shorter than 1 ms).
    """

    tious: np.ndarray
    mAP: np.ndarray
    average_mAP: float
    AP: np.ndarray
    class_ids: np.ndarray
    top_k: tuple[int, ...]
    recall: np.ndarray
    mean_recall: np.ndarray
    counts: Mapping[str, int]
    label_names: Mapping[int, str] | None = None

    def class_name(self, class_id: int) -> str:
        """The name of a class, its id in text where no name is known."""
        return (self.label_names or {}).get(int(class_id), str(int(class_id)))

    def table(self, per_class: bool = False) -> str:
        """Percent in text: mAP and recall per tIoU, the average, and with `per_class` the average precision of each class."""
        columns = ["mAP"] + [f"recall@{k}x" for k in self.top_k]
        values = np.concatenate([self.mAP[:, None], self.mean_recall], axis=1)
        lines = text_table("tIoU", columns, [f"{t:.2f}" for t in self.tious] + ["average"],
                           np.concatenate([values, [[self.average_mAP, *self.mean_recall.mean(axis=0)]]]))
        if per_class:
            average = self.AP.mean(axis=0, keepdims=True)
            lines += ["", *text_table("AP", [f"{t:.2f}" for t in self.tious] + ["average"],
                                      [self.class_name(c) for c in self.class_ids], np.concatenate([self.AP, average]).T)]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers (fractions of 1) for JSON; lists run over tIoUs."""
        return {
            "tiou": self.tious.tolist(),
            "mAP": self.mAP.tolist(),
            "average_mAP": float(self.average_mAP),
            **{f"recall@{k}x": self.mean_recall[:, i].tolist() for i, k in enumerate(self.top_k)},
            "per_class_AP": {self.class_name(c): self.AP[:, i].tolist() for i, c in enumerate(self.class_ids)},
            "class_ids": {self.class_name(c): int(c) for c in self.class_ids},
            "counts": dict(self.counts),
        }


def evaluate_detections(detections: Detections, ground_truth: GroundTruth, tious: Sequence[float], top_k: Sequence[int] = (1, 5),
                        label_names: Mapping[int, str] | None = None) -> Scores:
    """mAP and recall of `detections` against `ground_truth` (one split); inputs are not changed.

    Duplicate ground truth is dropped first (`without_duplicates`).  Predictions of a class that the ground truth lacks are
    ignored with one warning; predictions of videos without ground truth are false positives; no prediction at all is an mAP
    of 0 with a warning.  Raises UserError for non-finite numbers, a tIoU outside (0, 1], or no ground truth.
    """
    tious = checked_tious(tious)
    top_k = tuple(int(k) for k in top_k)
    if not top_k or min(top_k) < 1:
        raise UserError(f"top_k: {list(top_k)} is not a list of numbers >= 1; use for example 1 5")
    detections.check("detections")
    kept = without_duplicates(ground_truth)
    if len(kept) == 0:
        raise UserError("the ground truth has no segment to find, so no mAP exists; check the split and the annotations")
    class_ids, gt_class = np.unique(kept.label, return_inverse=True)
    det_class, known = class_indices(detections.label, class_ids)
    used = warn_about_unused(detections, known)

    order = np.lexsort((-detections.score[used], det_class[used]))
    used = used[order]  # class after class, by falling score; lexsort is stable, so equal scores stay in input order
    det_class = det_class[used]
    videos = {video: i for i, video in enumerate(dict.fromkeys(kept.video_id.tolist()))}
    groups = Groups.of(codes_of(kept.video_id, videos) * len(class_ids) + gt_class)
    video = codes_of(detections.video_id, videos)[used]
    det_group = groups.find(np.where(video < 0, -1, video * len(class_ids) + det_class))

    det_index, gt_index, iou = overlapping_pairs(
        np.stack([detections.t_start[used], detections.t_end[used]], axis=1), det_group,
        np.stack([kept.t_start, kept.t_end], axis=1), groups, at_least=float(tious.min()))
    recall = _recall(det_index, gt_index, iou, det_group, groups, gt_class, len(class_ids), tious, top_k)
    best_first = np.lexsort((-gt_index, -iou, det_index))
    det_index, gt_index, iou = det_index[best_first], gt_index[best_first], iou[best_first]
    hit = np.zeros((len(tious), len(used)), bool)
    for row, tiou in zip(hit, tious, strict=True):
        row[:] = pick_in_order(det_index[iou >= tiou], gt_index[iou >= tiou], len(used), len(kept)) >= 0

    num_gt = np.bincount(gt_class, minlength=len(class_ids))
    ends = np.cumsum(np.bincount(det_class, minlength=len(class_ids)))
    ap = np.stack([interpolated_ap(hit[:, end - size:end], total) for end, size, total
                   in zip(ends, np.diff(ends, prepend=0), num_gt, strict=True)], axis=1)
    counts = {"predictions": len(used), "ground_truth": len(kept), "predictions_ignored": len(detections) - len(used),
              "ground_truth_dropped": len(ground_truth) - len(kept)}
    mean_ap = ap.mean(axis=1)
    return Scores(tious, mean_ap, float(mean_ap.mean()), ap, class_ids, top_k, recall, recall.mean(axis=2), counts, label_names)


def without_duplicates(ground_truth: GroundTruth) -> GroundTruth:
    """Ground truth without segments shorter than 1 ms and without repeats: same video and class, start and end both within
    1 ms of a segment kept before (SPEC 8)."""
    keep = ground_truth.t_end - ground_truth.t_start >= DUPLICATE_TOLERANCE_S
    _, video = np.unique(ground_truth.video_id, return_inverse=True)
    order = np.lexsort((ground_truth.t_start, ground_truth.label, video))
    order = order[keep[order]]
    same = (np.diff(video[order]) == 0) & (np.diff(ground_truth.label[order]) == 0)
    close = same & (np.diff(ground_truth.t_start[order]) <= DUPLICATE_TOLERANCE_S)
    # only runs of starts that lie close together can hold repeats; those few are compared one by one, in input order
    for run in np.split(order, np.flatnonzero(~close) + 1):
        if len(run) < 2:
            continue
        kept: list[tuple[float, float]] = []
        for i in np.sort(run):
            start, end = ground_truth.t_start[i], ground_truth.t_end[i]
            if any(abs(start - s) <= DUPLICATE_TOLERANCE_S and abs(end - e) <= DUPLICATE_TOLERANCE_S for s, e in kept):
                keep[i] = False
            else:
                kept.append((start, end))
    return ground_truth.take(keep)


def unique_rank_scores(score: np.ndarray) -> np.ndarray:
    """Scores (N,) replaced by 1 - (rank + 1) / (N + 1), rank by stable falling sort: no ties, the same order."""
    rank = np.empty(len(score), np.int64)
    rank[np.argsort(-np.asarray(score, np.float64), kind="stable")] = np.arange(len(score))
    return 1.0 - (rank + 1) / (len(score) + 1)


def interpolated_ap(hit: np.ndarray, num_gt: int) -> np.ndarray:
    """Average precision (n_tiou,) of hits (n_tiou, n) in order of falling score, `num_gt` > 0 ground truths.

    All-point interpolation (Pascal VOC 2010 on): the precision at a recall is the best precision at that recall or above.
    """
    precision = np.cumsum(hit, axis=1) / np.arange(1, hit.shape[1] + 1)
    best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return (best_from_here * hit).sum(axis=1) / num_gt


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows by group: `rows` (n,) row numbers, group by group and in input order inside; group g (with key `keys[g]`) is
    rows[first[g] : first[g] + size[g]]."""

    keys: np.ndarray
    rows: np.ndarray
    first: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, key: np.ndarray) -> Groups:
        """Group rows by an integer key (n,)."""
        rows = np.argsort(key, kind="stable")
        ordered = key[rows]
        first = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
        return cls(ordered[first], rows, first, np.diff(first, append=len(rows)))

    def find(self, key: np.ndarray) -> np.ndarray:
        """Group number of each key (m,), -1 where no row has it."""
        if len(self.keys) == 0:
            return np.full(len(key), -1)
        place = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        return np.where(self.keys[place] == key, place, -1)


def overlapping_pairs(segments: np.ndarray, group: np.ndarray, others: np.ndarray, groups: Groups,
                      at_least: float, hull: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of `segments` (n, 2) and `others` (m, 2) of one group whose IoU is at least `at_least` > 0.

    group (n,): the group of each segment in `groups` (which groups the rows of `others`), -1 for none.
    hull: divide by the time from the first start to the last end, the same number for overlapping segments but for rounding.
    Returns (segment index, other index, IoU), float64, ordered by segment, then by the other's index.
    """
    found = [_iou_of_pairs(segments, others, index, other, at_least, hull)
             for index, other in _pairs_in_chunks(group, groups)] or [(np.empty(0, int), np.empty(0, int), np.empty(0))]
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def pick_in_order(chooser: np.ndarray, option: np.ndarray, num_choosers: int, num_options: int) -> np.ndarray:
    """Choosers 0, 1, 2, ... in turn take their best option that is still free; returns (num_choosers,) option or -1.

    chooser, option (n,): who would accept what, sorted by chooser and inside by falling preference.
    All choose at once; an option stays with the first in line of those who want it, and the others move on to their next,
    until nobody has to move.  Because every option prefers the same order, the outcome is that of taking turns.
    """
    count = np.bincount(chooser, minlength=num_choosers)
    end = np.cumsum(count)
    cursor = end - count
    holder = np.full(num_options, num_choosers)
    moves = np.zeros(num_choosers, bool)
    active = np.flatnonzero(cursor < end)
    while active.size:
        wanted = option[cursor[active]]
        before = holder[wanted]
        np.minimum.at(holder, wanted, active)
        after = holder[wanted]
        displaced = before[(before < num_choosers) & (before != after)]
        moves[active[after != active]] = moves[displaced] = True
        losers = np.flatnonzero(moves)
        moves[losers] = False
        cursor[losers] += 1
        active = losers[cursor[losers] < end[losers]]
    picked = np.full(num_choosers, -1)
    taken = np.flatnonzero(holder < num_choosers)
    picked[holder[taken]] = taken
    return picked


def checked_tious(tious: Sequence[float]) -> np.ndarray:
    """tIoU thresholds (n,) float64; UserError unless there is one and all lie in (0, 1]."""
    values = np.array(tious, np.float64).reshape(-1)
    if values.size == 0 or not ((values > 0) & (values <= 1)).all():
        raise UserError(f"tIoU thresholds {values.tolist()}: every one must lie above 0 and not above 1, for example 0.3 0.5 0.7")
    return values


def class_indices(label: np.ndarray, class_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of each label (n,) in the sorted `class_ids`, and whether it is there at all."""
    place = np.minimum(np.searchsorted(class_ids, label), len(class_ids) - 1)
    return place, class_ids[place] == label


def codes_of(video_id: np.ndarray, codes: Mapping[str, int]) -> np.ndarray:
    """codes[id] of each video id (n,), -1 for an id that is not in there; one look-up per run of equal ids."""
    starts = np.flatnonzero(np.concatenate([[True], video_id[1:] != video_id[:-1]])) if len(video_id) else np.empty(0, int)
    heads = np.array([codes.get(video, -1) for video in video_id[starts].tolist()], np.int64)
    return np.repeat(heads, np.diff(starts, append=len(video_id)))


def warn_about_unused(detections: Detections, known: np.ndarray) -> np.ndarray:
    """Rows (k,) whose class is `known` (n,); one warning counts the others, or says that there is no prediction."""
    used = np.flatnonzero(known)
    if len(detections) == 0:
        warnings.warn("there is no prediction at all, so mAP and recall are 0", stacklevel=3)
    elif len(used) < len(detections):
        ids = np.unique(detections.label[~known])
        some = ", ".join(map(str, ids[:10].tolist())) + (", ..." if len(ids) > 10 else "")
        warnings.warn(f"{len(detections) - len(used)} of {len(detections)} predictions are ignored, since the ground truth has "
                      f"no segment of their class (ids {some})", stacklevel=3)
    return used


def text_table(corner: str, columns: Sequence[str], rows: Sequence[str], values: np.ndarray) -> list[str]:
    """Lines of a table of fractions (rows, columns) in percent with two decimals."""
    left = max(map(len, [corner, *rows]))
    widths = [max(len(column), 7) for column in columns]
    lines = [f"{corner:<{left}}  " + "  ".join(f"{column:>{w}}" for column, w in zip(columns, widths, strict=True))]
    lines += [f"{name:<{left}}  " + "  ".join(f"{100 * value:>{w}.2f}" for value, w in zip(line, widths, strict=True))
              for name, line in zip(rows, values, strict=True)]
    return lines


def _recall(det_index: np.ndarray, gt_index: np.ndarray, iou: np.ndarray, det_group: np.ndarray, groups: Groups,
            gt_class: np.ndarray, num_classes: int, tious: np.ndarray, top_k: Sequence[int]) -> np.ndarray:
    """Recall (n_tiou, n_k, n_cls) from the overlapping pairs; detections are ordered by falling score inside each group."""
    by_group = Groups.of(det_group)
    place = np.empty(len(det_group), np.int64)
    place[by_group.rows] = np.arange(len(det_group)) - np.repeat(by_group.first, by_group.size)
    totals = np.bincount(gt_class, minlength=num_classes)
    recall = np.empty((len(tious), len(top_k), num_classes))
    for j, k in enumerate(top_k):
        considered = place[det_index] < k * groups.size[det_group[det_index]]
        best = np.zeros(len(gt_class))
        np.maximum.at(best, gt_index[considered], iou[considered])
        for i, tiou in enumerate(tious):
            recall[i, j] = np.bincount(gt_class[best >= tiou], minlength=num_classes) / totals
    return recall


def _pairs_in_chunks(group: np.ndarray, groups: Groups) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All (segment index, other index) of one group, a bounded number at a time."""
    index = np.flatnonzero(group >= 0)
    sizes = groups.size[group[index]]
    chunk = (np.cumsum(sizes) - 1) // _PAIRS_AT_ONCE
    for part in np.split(np.arange(len(index)), np.flatnonzero(np.diff(chunk)) + 1):
        size = sizes[part]
        before = np.cumsum(size) - size
        position = np.arange(size.sum()) - np.repeat(before, size) + np.repeat(groups.first[group[index[part]]], size)
        yield np.repeat(index[part], size), groups.rows[position]


def _iou_of_pairs(a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray, at_least: float,
                  hull: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    (a_start, a_end), (b_start, b_end) = a[i].T, b[j].T
    shared = np.maximum(np.minimum(a_end, b_end) - np.maximum(a_start, b_start), 0.0)
    if hull:
        union = np.maximum(a_end, b_end) - np.minimum(a_start, b_start)
    else:
        union = (b_end - b_start) + (a_end - a_start) - shared
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    enough = iou >= at_least
    return i[enough], j[enough], iou[enough]
