"""Sensitivity of detections to characteristics of the ground truth: normalised AP and misses by length, coverage and number.

    groups = characteristics(diagnosis.matching.ground_truth, durations_s, "quantiles")
    rows = sensitivity(diagnosis, groups[0])        (n_tiou, n_bucket) normalised mAP, misses and counts

After Alwassel et al., "Diagnosing Error in Temporal Action Detectors" (ECCV 2018); docs/diagnosis.md has the formulae.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from libs.utils.diagnosis.analysis import Diagnosis
from libs.utils.evaluation.metrics import class_slices
from libs.utils.evaluation.predictions import GroundTruth

# bounds of (low, high] per characteristic: for ActivityNet those of Alwassel et al.; for THUMOS14 shorter ones
PRESETS: dict[str, dict[str, tuple[float, ...]]] = {
    "activitynet": {"length": (0, 30, 60, 120, 180, np.inf), "coverage": (0, 0.2, 0.4, 0.6, 0.8, np.inf),
                    "instances": (0, 1, 4, 8, np.inf)},
    "thumos14": {"length": (0, 3, 6, 12, 18, np.inf), "coverage": (0, 0.02, 0.04, 0.06, 0.08, np.inf),
                 "instances": (0, 1, 40, 80, np.inf)},
}
BUCKETS = ("quantiles", *PRESETS)
UNITS = {"length": "s", "coverage": "% of the video", "instances": "of its class in the video"}
NAMES = {1: ("all",), 2: ("S", "L"), 3: ("S", "M", "L"), 4: ("XS", "S", "M", "L"), 5: ("XS", "S", "M", "L", "XL")}


@dataclass(frozen=True, eq=False)
class Characteristic:
    """A property of the ground truths, divided into buckets.

    name; unit of the labels; value (m,), nan if unknown; bucket (m,) index, -1 if unknown; labels: name and range (low, high] of
    each bucket.
    """

    name: str
    unit: str
    value: np.ndarray
    bucket: np.ndarray
    labels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Rates by bucket: normalised_mAP (n_tiou, n_bucket); missed (n_tiou, n_bucket) share of the ground truths that no prediction
    finds; both nan in empty buckets; ground_truth (n_bucket,) number of ground truths."""

    normalised_mAP: np.ndarray
    missed: np.ndarray
    ground_truth: np.ndarray


def characteristics(ground_truth: GroundTruth, durations_s: Mapping[str, float],
                    buckets: str = "quantiles") -> list[Characteristic]:
    """Length (s), coverage (length over the video's duration) and instances (ground truths of its class in its video).

    buckets: "quantiles" (five of about equal size), or a key of PRESETS.  Coverage is left out if no duration is known.
    """
    length = ground_truth.t_end - ground_truth.t_start
    duration = np.array([durations_s.get(video, np.inf) for video in ground_truth.video_id.tolist()])
    coverage = np.where(np.isfinite(duration), length / duration, np.nan)
    _, same = np.unique(np.stack([np.unique(ground_truth.video_id, return_inverse=True)[1], ground_truth.label]), axis=1,
                        return_inverse=True)
    instances = np.bincount(same.reshape(-1))[same.reshape(-1)].astype(np.float64)
    values = {"length": length, "coverage": coverage, "instances": instances}
    return [_in_buckets(name, value, None if buckets == "quantiles" else PRESETS[buckets][name])
            for name, value in values.items() if np.isfinite(value).any()]


def sensitivity(diagnosis: Diagnosis, group: Characteristic) -> Sensitivity:
    """Normalised mAP and misses of the ground truths of each bucket.

    A bucket is evaluated on its own ground truths, without the predictions that found others; false positives stay.
    """
    missed, number = diagnosis.missed, len(group.labels)
    mAP, rate = np.full((2, len(diagnosis.matching.tious), number), np.nan)
    totals = np.bincount(group.bucket[group.bucket >= 0], minlength=number)
    for b in np.flatnonzero(totals):
        inside = group.bucket == b
        mAP[:, b] = normalised_mAP(diagnosis, inside)
        rate[:, b] = missed[:, inside].mean(axis=1)
    return Sensitivity(mAP, rate, totals)


def normalised_mAP(diagnosis: Diagnosis, inside: np.ndarray | None = None) -> np.ndarray:
    """Mean (n_tiou,) over the classes that have ground truths `inside` (m,) bool (None: all) of the normalised AP.

    Precision is replaced by R N / (R N + F): R recall among those inside, F false positives so far, N mean number of ground
    truths per class, so that the result does not depend on the size of a bucket (Alwassel et al., after Hoiem et al. 2012).
    """
    matching = diagnosis.matching
    inside = np.ones(len(matching.gt_class), bool) if inside is None else inside
    num_gt = np.bincount(matching.gt_class[inside], minlength=len(matching.class_ids))
    average = len(matching.gt_class) / len(matching.class_ids)
    rows = class_slices(matching.det_class, len(num_gt))
    out = np.empty(len(matching.tious))
    for i, matched in enumerate(matching.matched):
        hit = matched >= 0
        hit_inside = hit & inside[matched]  # -1 (a false positive) indexes the last row, but hit is False there
        out[i] = np.mean([normalised_ap(hit_inside[r], ~hit[r], total, average)
                          for r, total in zip(rows, num_gt, strict=True) if total])
    return out


def normalised_ap(hit: np.ndarray, false: np.ndarray, num_gt: int, average: float) -> float:
    """Interpolated AP with normalised precision; `hit`, `false` (n,) bool by descending score, both False: left out."""
    recall = np.cumsum(hit) / num_gt
    precision = recall * average / np.maximum(recall * average + np.cumsum(false), np.finfo(float).tiny)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best * hit).sum() / num_gt)


def _in_buckets(name: str, value: np.ndarray, bounds: tuple[float, ...] | None) -> Characteristic:
    known = np.isfinite(value)
    if bounds is None:
        inner = np.unique(np.quantile(value[known], [0.2, 0.4, 0.6, 0.8], method="inverted_cdf"))
        inner = inner[inner < value[known].max()]  # nothing lies above the highest value
        bounds = (-np.inf, *inner.tolist(), np.inf)
    edges = np.array(bounds[1:-1])
    bucket = np.where(known, np.searchsorted(edges, np.where(known, value, 0.0), side="left"), -1)
    ranges = _ranges(100 * edges if UNITS[name].startswith("%") else edges)
    labels = tuple(f"{short} {text}".strip() for short, text in zip(NAMES[len(edges) + 1], ranges, strict=True))
    return Characteristic(name, UNITS[name], value, bucket, labels)


def _ranges(edges: np.ndarray) -> list[str]:
    shown = [f"{edge:.0f}" if edge >= 100 else f"{edge:.3g}" if edge >= 1 else f"{edge:.2g}" for edge in edges]
    if not shown:
        return [""]
    return [f"≤ {shown[0]}", *(f"{a}–{b}" for a, b in pairwise(shown)), f"> {shown[-1]}"]
