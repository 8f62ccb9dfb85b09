"""Error analysis of detections: the kind of error of every false positive, and the mAP that each kind costs.

    diagnosis = diagnose(detections, ground_truth, tious=[.3, .4, .5, .6, .7])
    diagnosis.scores.average_mAP         the mAP of libs/utils/evaluation/metrics.py, from the same matching
    diagnosis.error                      (n_tiou, n) kind of each prediction: true positive, double detection, ...
    gains(diagnosis)                     mAP gained by removing, or by repairing, all predictions of one kind
    profile(diagnosis)                   kinds among the best k * (number of ground truths) predictions

After Alwassel, Caba Heilbron, Escorcia, Ghanem: "Diagnosing Error in Temporal Action Detectors" (ECCV 2018).  docs/diagnosis.md
defines everything and lists the differences.  libs/utils/diagnosis/characteristics.py has the sensitivity to length, coverage and
number of instances.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from libs.utils.evaluation.matching import Groups, best_first, overlapping_pairs
from libs.utils.evaluation.metrics import Matching, Scores, class_slices, codes_of, interpolated_ap, match_detections, scores_of
from libs.utils.evaluation.predictions import Detections, GroundTruth

TRUE_POSITIVE, DOUBLE, WRONG_LABEL, LOCALISATION, CONFUSION, BACKGROUND = range(6)
KINDS = ("true positive", "double detection", "wrong label", "localisation", "confusion", "background")
ERRORS = range(DOUBLE, BACKGROUND + 1)
REPAIRABLE = (WRONG_LABEL, LOCALISATION, CONFUSION)
MIN_TIOU = 0.1  # of localisation and confusion errors (Alwassel et al.)
PROFILE_FACTORS = tuple(range(1, 11))  # "top-10G" of Alwassel et al.
RECALL_LEVELS = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The kind of error of every evaluated prediction (rows and order of `matching.used`).

    score, t_start, t_end, video_id (n,); error (n_tiou, n) int8: index into KINDS; target (n_tiou, n) int32: the ground truth
    that the prediction found or missed, -1 for background.
    """

    matching: Matching
    scores: Scores
    video_id: np.ndarray
    t_start: np.ndarray
    t_end: np.ndarray
    score: np.ndarray
    error: np.ndarray
    target: np.ndarray

    @property
    def missed(self) -> np.ndarray:
        """(n_tiou, m) bool: ground truths that no prediction found."""
        missed = np.ones((len(self.matching.tious), len(self.matching.gt_class)), bool)
        row, det = np.nonzero(self.matching.matched >= 0)
        missed[row, self.matching.matched[row, det]] = False
        return missed


def diagnose(detections: Detections, ground_truth: GroundTruth, tious: Sequence[float],
             label_names: Mapping[int, str] | None = None) -> Diagnosis:
    """Match as in `evaluate_detections` (same checks, warnings and UserErrors) and classify each false positive.

    At a tIoU t a false positive has the first kind that applies, by the ground truths of its video: double detection: IoU >= t
    with one of its class (already found); wrong label: IoU >= t with one of another class; localisation: IoU >= 0.1 with one of
    its class; confusion: IoU >= 0.1 with one of another class; background.
    """
    matching = match_detections(detections, ground_truth, tious)
    scores = scores_of(matching, len(detections), len(ground_truth), label_names=label_names)
    used = detections.take(matching.used)
    (same, same_gt), (other, other_gt) = _best_overlaps(used, matching)
    t = matching.tious[:, None]
    low = np.minimum(t, MIN_TIOU)
    hit = matching.matched >= 0
    cases = [hit, same >= t, other >= t, same >= low, other >= low]
    error = np.select(cases, [TRUE_POSITIVE, *ERRORS[:-1]], BACKGROUND).astype(np.int8)
    target = np.select(cases, [matching.matched, same_gt, other_gt, same_gt, other_gt], -1).astype(np.int32)
    return Diagnosis(matching, scores, used.video_id, used.t_start, used.t_end, used.score, error, target)


def gains(diagnosis: Diagnosis) -> dict[str, dict[str, np.ndarray]]:
    """Gain of mAP (n_tiou,), fractions of 1, without the errors of one kind; keys "removed" and "repaired", then the kind.

    removed: delete the predictions of that kind (the impact of Alwassel et al.); "all errors" deletes every false positive, so AP
    becomes the recall.  "missed" leaves out the ground truths that no prediction finds, and classes without any other; "all
    errors and missed" is 1 - mAP.
    repaired: give each prediction of that kind the label and the segment of its target; the best-scoring one of each target that
    is not found yet becomes a true positive, the others are deleted, as are double detections and background.
    """
    out: dict[str, dict[str, np.ndarray]] = {"removed": {}, "repaired": {}}
    everything = np.isin(diagnosis.error, ERRORS)
    for kind in ERRORS:
        out["removed"][KINDS[kind]] = _change(diagnosis, diagnosis.error == kind)
        out["repaired"][KINDS[kind]] = (_change(diagnosis, diagnosis.error == kind, repair=True) if kind in REPAIRABLE
                                        else out["removed"][KINDS[kind]])
    for how in out:
        out[how]["all errors"] = _change(diagnosis, everything, repair=how == "repaired")
    out["removed"]["missed"] = _change(diagnosis, np.zeros_like(everything), ignore_missed=True)
    out["removed"]["all errors and missed"] = _change(diagnosis, everything, ignore_missed=True)
    return out


def profile(diagnosis: Diagnosis) -> np.ndarray:
    """Counts (n_tiou, n_factor, 6) of KINDS among the best factor * G_c predictions of each class c, for PROFILE_FACTORS and the
    number G_c of its ground truths; a row sums to sum_c min(n_c, factor * G_c)."""
    matching = diagnosis.matching
    place = np.concatenate([np.arange(rows.stop - rows.start) for rows in _slices(matching)] or [np.empty(0, int)])
    within = place < np.array(PROFILE_FACTORS)[:, None] * matching.num_gt[matching.det_class]
    return np.stack([[np.bincount(kinds[inside], minlength=len(KINDS)) for inside in within] for kinds in diagnosis.error])


def counts(diagnosis: Diagnosis) -> np.ndarray:
    """Number of predictions (n_tiou, 6) of each of KINDS."""
    return np.stack([np.bincount(kinds, minlength=len(KINDS)) for kinds in diagnosis.error])


def precision_recall(diagnosis: Diagnosis) -> np.ndarray:
    """Interpolated precision (n_tiou, n_cls, 101) at RECALL_LEVELS, 0 beyond the highest recall."""
    matching = diagnosis.matching
    hit = matching.matched >= 0
    out = np.zeros((len(hit), len(matching.num_gt), len(RECALL_LEVELS)))
    for c, (rows, total) in enumerate(zip(_slices(matching), matching.num_gt.tolist(), strict=True)):
        needed = np.ceil(RECALL_LEVELS * total - 1e-9).astype(int)  # true positives for each recall level
        for i, hits in enumerate(hit[:, rows]):
            precision = np.arange(1, hits.sum() + 1) / (np.flatnonzero(hits) + 1)
            best = np.maximum.accumulate(precision[::-1])[::-1]
            reached = needed <= len(best)
            out[i, c, reached] = best[np.maximum(needed[reached], 1) - 1] if len(best) else 0.0
    return out


def _slices(matching: Matching) -> list[slice]:
    return class_slices(matching.det_class, len(matching.class_ids))


def _best_overlaps(used: Detections, matching: Matching) -> list[tuple[np.ndarray, np.ndarray]]:
    """Highest IoU (n,) of each prediction in its video, and the index (n,) of that ground truth; same class, then others."""
    kept = matching.ground_truth
    codes = {video: i for i, video in enumerate(dict.fromkeys(kept.video_id.tolist()))}
    groups = Groups.of(codes_of(kept.video_id, codes))
    out = [(np.zeros(len(used)), np.full(len(used), -1)) for _ in range(2)]
    for det, gt, iou in overlapping_pairs(np.stack([used.t_start, used.t_end]), groups.find(codes_of(used.video_id, codes)),
                                          np.stack([kept.t_start, kept.t_end]), groups,
                                          at_least=min(MIN_TIOU, float(matching.tious.min()))):
        same = matching.gt_class[gt] == matching.det_class[det]
        for (best, which), pairs in zip(out, (same, ~same), strict=True):
            order = np.flatnonzero(pairs)
            order = order[best_first(det[order], -gt[order], iou[order])]
            first = order[np.diff(det[order], prepend=-1) != 0]
            best[det[first]], which[det[first]] = iou[first], gt[first]
    return out


def _change(diagnosis: Diagnosis, wrong: np.ndarray, repair: bool = False, ignore_missed: bool = False) -> np.ndarray:
    """mAP (n_tiou,) with the predictions `wrong` (n_tiou, n) removed or repaired, minus the present mAP."""
    matching = diagnosis.matching
    missed = diagnosis.missed
    after = np.empty(len(matching.tious))
    for i in range(len(after)):
        hit = matching.matched[i] >= 0
        det_class, keep = matching.det_class, ~wrong[i]
        if repair:
            fixed = _repaired(diagnosis, i, wrong[i], missed[i])
            keep, hit = keep.copy(), hit.copy()
            keep[fixed] = hit[fixed] = True
            det_class = det_class.copy()
            det_class[fixed] = matching.gt_class[diagnosis.target[i, fixed]]
        order = np.flatnonzero(keep)  # by class and descending score, unless a repair has changed classes
        if repair:
            order = order[np.lexsort((matching.used[order], -diagnosis.score[order], det_class[order]))]
        num_gt = np.bincount(matching.gt_class[~missed[i]] if ignore_missed else matching.gt_class,
                             minlength=len(matching.class_ids))
        rows = class_slices(det_class[order], len(num_gt))
        ap = [interpolated_ap(hit[order[r]][None], total)[0] for r, total in zip(rows, num_gt, strict=True) if total]
        after[i] = np.mean(ap) if ap else 1.0
    return after - diagnosis.scores.mAP


def _repaired(diagnosis: Diagnosis, i: int, wrong: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """Rows of `wrong` that become true positives at tIoU i: the best-scoring one of every missed target."""
    kind, target = diagnosis.error[i], diagnosis.target[i]
    rows = np.flatnonzero(wrong & np.isin(kind, REPAIRABLE))
    rows = rows[missed[target[rows]]]
    rows = rows[np.lexsort((diagnosis.matching.used[rows], -diagnosis.score[rows], target[rows]))]
    return rows[np.diff(target[rows], prepend=-1) != 0]
