"""Resampling of videos: how far AP would differ on other test videos of the same kind.

    method = WeightedAP.of(scores.matching, detections, videos)
    estimate, resamples = resample([method], len(videos), 10_000)
    low, high = interval(plausible(estimate, resamples[:, 0]))

A resample is a random half of the videos (Efron, "The Jackknife, the Bootstrap and Other Resampling Plans", 1982, chapter 8): its
variance about the estimate is that of the estimate about the truth, as for a bootstrap that draws all videos with replacement.
AP is too high in small samples (interpolation takes the best precision), by an amount that falls with the number of videos, so
a half lies above the whole as the whole lies above the truth: `plausible` takes that off, BIAS times for the AP of one method,
and turns the resamples around the rest.  Drawing with replacement repeats videos and covers less:
benchmarks/bootstrap_coverage.py compares percentile, basic, BCa, logit and this.

Matching looks at one video at a time, so the flags of true positives stay as they are and a resample only changes how often each
video counts: its weight w, here 0 or 1.  With rows k by descending score, h_k = 1 for true positives and G segments,

    precision_k = sum_{j <= k} w_j h_j / sum_{j <= k} w_j          AP = sum_k w_k h_k max_{j >= k} precision_j / sum_g w_g

Ties: rows of equal score keep their order, and the copies of a video's row follow each other.  Interpolated precision: copies of
a true positive raise precision and copies of a false positive lower it, so the maximum lies behind the last copy of a true
positive, and AP equals that of a file in which each video is repeated w times.  Only rows of true positives can hold the maximum,
so the others enter as counts alone.  A class without segments in a resample has no AP there (nan), as in any evaluation, and the
mean is over the others.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from libs.utils.evaluation.metrics import Matching, Scores, class_slices, codes_of
from libs.utils.evaluation.predictions import Detections

LEVEL = 0.95
BIAS = 1.4  # (whole - truth) / (half - whole): it falls with about n^-0.75, not 1 / n; in differences it cancels out
FEWEST = 10  # videos: fewer say too little about others
AT_ONCE = 250  # resamples in one part: what they need stays in the cache
EXACT_FLOAT32 = 1 << 24  # whole numbers below are exact in float32


@dataclass(frozen=True, eq=False)
class ClassHits:
    """The true positives of one class.

    rows_until (h, v): rows of each of the class's v videos, from the best score to each row that is a true positive at some tIoU;
    hit (n_tiou, h) bool: at which; videos (v,), hit_video (h,), gt_video (g,): indices of videos.
    """

    videos: np.ndarray
    rows_until: np.ndarray
    hit_video: np.ndarray
    hit: np.ndarray
    gt_video: np.ndarray

    @classmethod
    def of(cls, hit: np.ndarray, det_video: np.ndarray, gt_video: np.ndarray) -> ClassHits:
        """From rows by descending score: hit (n_tiou, n) bool, det_video (n,); gt_video (g,): the video of each segment."""
        rows = np.flatnonzero(hit.any(axis=0))
        last = int(rows[-1]) + 1 if rows.size else 0
        videos, column = np.unique(det_video[:last], return_inverse=True)
        between = np.searchsorted(rows, np.arange(last))  # the first true positive at or after each row
        counts = np.bincount(between * len(videos) + column, minlength=len(rows) * len(videos)).reshape(len(rows), len(videos))
        rows_until = counts.cumsum(axis=0)
        exact = np.float32 if 64 * last < EXACT_FLOAT32 else np.float64
        return cls(videos, rows_until.astype(exact), det_video[rows], hit[:, rows], gt_video)

    def ap(self, weights: np.ndarray) -> np.ndarray:
        """AP (R, n_tiou) for weights (V, R); nan where the class has no segment."""
        total = np.maximum(self.rows_until @ weights[self.videos].astype(self.rows_until.dtype), 1)
        ground_truth = weights[self.gt_video].sum(axis=0, dtype=np.float64)
        ground_truth[ground_truth == 0] = np.nan
        own = weights[self.hit_video, None].astype(np.float64) * self.hit.T[:, :, None]
        precision = own.copy()  # (h, n_tiou, R)
        for row in range(1, len(precision)):  # np.cumsum and np.maximum.accumulate take ten times as long
            precision[row] += precision[row - 1]
        precision /= total[:, None]
        for row in range(len(precision) - 2, -1, -1):
            np.maximum(precision[row], precision[row + 1], out=precision[row])
        return (np.einsum("htr,htr->tr", precision, own) / ground_truth).T


@dataclass(frozen=True, eq=False)
class WeightedAP:
    """AP of one predictions file as a function of the weights of its videos."""

    classes: tuple[ClassHits, ...]

    @classmethod
    def of(cls, matching: Matching, detections: Detections, videos: Mapping[str, int]) -> WeightedAP:
        """matching: of `detections`; videos: id -> index of every video that can be drawn, also those without any row."""
        det_video = codes_of(detections.video_id[matching.used], videos)
        gt_video = codes_of(matching.ground_truth.video_id, videos)
        hit = matching.matched >= 0
        return cls(tuple(ClassHits.of(hit[:, rows], det_video[rows], gt_video[matching.gt_class == c]) for c, rows
                         in enumerate(class_slices(matching.det_class, len(matching.class_ids)))))

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """AP (R, n_tiou, n_cls) for weights (V, R); nan for a class without segments."""
        return np.stack([one.ap(weights) for one in self.classes], axis=2)


def half_weights(videos: int, resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Random halves of `videos`, 1 for each video drawn: parts (videos, AT_ONCE or fewer) float32 of `resamples` in all."""
    rng = np.random.default_rng(seed)
    for begin in range(0, resamples, AT_ONCE):
        rows = min(AT_ONCE, resamples - begin)
        order = rng.random((videos, rows), np.float32).argpartition(videos // 2, axis=0)
        weights = np.zeros((videos, rows), np.float32)
        np.put_along_axis(weights, order[:videos // 2], 1, axis=0)
        yield weights


def statistics_of(ap: np.ndarray) -> np.ndarray:
    """(R, 1 + n_tiou + n_cls) of AP (R, n_tiou, n_cls): average mAP, mAP per tIoU, AP per class as a mean over tIoUs."""
    mAP = np.nanmean(ap, axis=2)
    return np.concatenate([mAP.mean(axis=1, keepdims=True), mAP, ap.mean(axis=1)], axis=1)


def resample(methods: Sequence[WeightedAP], videos: int, resamples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`statistics_of` every method: as evaluated (n_methods, S), and in resamples that all methods share (R, n_methods, S)."""
    def of(weights: np.ndarray) -> np.ndarray:
        return np.stack([statistics_of(method(weights)) for method in methods], axis=1)

    parts = [of(weights) for weights in half_weights(videos, resamples, seed)]
    return of(np.ones((videos, 1), np.float32))[0], np.concatenate(parts)


def plausible(estimate: np.ndarray, resamples: np.ndarray, bias: float = 1.0) -> np.ndarray:
    """Values (R, ...) that the truth may have: the resamples (R, ...), turned around the estimate.

    Their bias, `bias` times, and skewness count the other way round (the "basic" interval: Davison and Hinkley, 1997, chapter 5).
    """
    middle = np.nanmean(resamples, axis=0)
    return estimate - bias * (middle - estimate) - (resamples - middle)


def interval(values: np.ndarray) -> np.ndarray:
    """95 % interval (2, ...) of plausible values (R, ...)."""
    return np.nanquantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)


def confidence(scores: Scores, detections: Detections, videos: Mapping[str, int], resamples: int = 1000) -> dict[str, Any] | None:
    """The 95 % intervals [low, high] of average mAP, mAP (per tIoU) and AP (per class, mean over tIoUs) of one file, for JSON.

    scores: of `evaluate_detections`; videos: as of `WeightedAP.of`.  None for fewer than FEWEST videos.
    """
    if len(videos) < FEWEST or scores.matching is None:
        return None
    (estimate,), drawn = resample([WeightedAP.of(scores.matching, detections, videos)], len(videos), resamples)
    limits = interval(plausible(estimate, drawn[:, 0], BIAS)).clip(0, 1).T.tolist()
    tious = len(scores.tious)
    return {"level": LEVEL, "resamples": resamples, "videos": len(videos), "average_mAP": limits[0], "mAP": limits[1:1 + tious],
            "per_class_AP": {scores.class_name(c): pair for c, pair in zip(scores.class_ids, limits[1 + tious:], strict=True)}}


def confidence_line(found: Mapping[str, Any] | None) -> str:
    """What `confidence` says of average mAP, in a line."""
    if found is None:
        return f"no interval of the average mAP: it takes {FEWEST} videos or more"
    low, high = found["average_mAP"]
    return (f"{100 * found['level']:.0f} % interval of the average mAP: {100 * low:.2f} to {100 * high:.2f} (resampling "
            f"{found['videos']} videos)")


def video_codes(*ids: Iterable[str]) -> dict[str, int]:
    """id -> index of all videos: those of the split and those of predictions."""
    return {video: i for i, video in enumerate(sorted(set().union(*ids)))}
