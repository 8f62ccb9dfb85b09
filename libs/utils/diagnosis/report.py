"""A diagnosis as plain numbers, for the JSON file, the figures and the page.

    content = report(subjects, videos, durations_s, "quantiles")            rates are fractions of 1; lists run over tIoUs first
    content["timeline"] = timeline(subjects, videos, durations_s, 300)      the segments of every video, for the page
"""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from libs.utils.diagnosis.analysis import (
    KINDS,
    PROFILE_FACTORS,
    RECALL_LEVELS,
    Diagnosis,
    counts,
    gains,
    precision_recall,
    profile,
)
from libs.utils.diagnosis.characteristics import characteristics, normalised_mAP, sensitivity
from libs.utils.evaluation.columns import rows_by_video
from libs.utils.evaluation.predictions import Detections, GroundTruth
from libs.utils.significance.bootstrap import FEWEST, confidence, confidence_line, video_codes
from libs.utils.significance.comparison import Comparison, compare
from libs.utils.tables import format_table

RESAMPLES = 1000  # of the videos


@dataclass(frozen=True, eq=False)
class Subject:
    """One predictions file: its name in the report, its rows, and its diagnosis."""

    name: str
    detections: Detections
    diagnosis: Diagnosis


def report(subjects: Sequence[Subject], videos: Collection[str], durations_s: Mapping[str, float],
           buckets: str) -> dict[str, Any]:
    """Everything except the segments; one or two subjects with the same ground truth and tIoUs.

    videos: of the split; durations_s: per video, inf if unknown; buckets: as in `characteristics`.  `confidence`, and `paired`
    of two subjects, are those of libs/utils/significance; None for too few videos.
    """
    first = subjects[0].diagnosis
    codes = video_codes(videos, *(subject.detections.video_id.tolist() for subject in subjects))
    groups = characteristics(first.matching.ground_truth, durations_s, buckets)
    out = {
        "tiou": first.matching.tious.tolist(),
        "classes": [first.scores.class_name(c) for c in first.matching.class_ids],
        "ground_truth_per_class": first.matching.num_gt.tolist(),
        "kinds": list(KINDS),
        "profile_factors": list(PROFILE_FACTORS),
        "recall_levels": RECALL_LEVELS.tolist(),
        "buckets": buckets,
        "characteristics": [{"name": g.name, "unit": g.unit, "labels": list(g.labels),
                             "ground_truth": np.bincount(g.bucket[g.bucket >= 0], minlength=len(g.labels)).tolist()}
                            for g in groups],
        "predictions": [],
        "paired": compared.as_dict() if (compared := _compared(subjects, codes)) else None,
        "verdict": compared.verdict() if compared else None,
    }
    for subject in subjects:
        found, rates = subject.diagnosis, {g.name: sensitivity(subject.diagnosis, g) for g in groups}
        out["predictions"].append({
            "name": subject.name,
            "counts": dict(found.scores.counts),
            "mAP": found.scores.mAP.tolist(),
            "average_mAP": found.scores.average_mAP,
            "confidence": confidence(found.scores, subject.detections, codes, RESAMPLES),
            "AP": found.scores.AP.tolist(),
            "normalised_mAP": normalised_mAP(found).tolist(),
            "missed": found.missed.mean(axis=1).tolist(),
            "kind_counts": counts(found).tolist(),
            "profile": profile(found).tolist(),
            "gains": {how: {kind: gain.tolist() for kind, gain in kinds.items()} for how, kinds in gains(found).items()},
            "sensitivity": {name: {"normalised_mAP": _plain(rate.normalised_mAP), "missed": _plain(rate.missed)}
                            for name, rate in rates.items()},
            "precision_recall": precision_recall(found).round(4).tolist(),
        })
    return out


def _compared(subjects: Sequence[Subject], codes: Mapping[str, int]) -> Comparison | None:
    """The second subject against the first, if there is one and there are videos enough."""
    if len(subjects) < 2 or len(codes) < FEWEST:
        return None
    first, second = ([(subject.detections, subject.diagnosis.scores)] for subject in subjects)
    return compare(first, second, codes, (subjects[0].name, subjects[1].name), resamples=RESAMPLES)


def timeline(subjects: Sequence[Subject], videos: Collection[str], durations_s: Mapping[str, float], most: int) -> dict[str, Any]:
    """Segments by video: all ground truths, and the `most` best-scoring predictions of each subject.

    Columns: start, end (s, to the millisecond), class (index), score; kinds: a digit per tIoU, index into KINDS; found: for each
    subject the ground truths with a digit per tIoU, 1 if found.
    """
    ground_truth = subjects[0].diagnosis.matching.ground_truth
    found_digits = [_digits(~subject.diagnosis.missed) for subject in subjects]
    gt_rows = rows_by_video(ground_truth.video_id)
    det_rows = [rows_by_video(found.video_id, found.matching.used, -found.score)
                for found in (subject.diagnosis for subject in subjects)]
    names = list(dict.fromkeys([*sorted(videos), *(v for rows in (gt_rows, *det_rows) for v in rows)]))
    digits = [_digits(subject.diagnosis.error) for subject in subjects]
    none = np.empty(0, np.int64)
    out = []
    for name in names:
        here, ends = gt_rows.get(name, none), [0.0]
        columns = _columns(ground_truth, here, subjects[0].diagnosis.matching.gt_class)
        columns["found"] = [[rows[i] for i in here] for rows in found_digits]
        entry: dict[str, Any] = {"id": name, "ground_truth": columns, "predictions": []}
        for subject, rows, kind in zip(subjects, det_rows, digits, strict=True):
            predicted, found = rows.get(name, none), subject.diagnosis
            best = predicted[:most]
            columns = _columns(found, best, found.matching.det_class)
            entry["predictions"].append({**columns, "score": found.score[best].round(5).tolist(),
                                         "kinds": [kind[i] for i in best], "total": len(predicted)})
            ends.append(float(found.t_end[best].max(initial=0.0)))
        ends.append(float(ground_truth.t_end[here].max(initial=0.0)))
        duration = durations_s.get(name, np.inf)
        entry["duration"] = round(float(duration if np.isfinite(duration) else max(ends)), 3)
        out.append(entry)
    return {"most": most, "videos": out}


def summary(content: Mapping[str, Any]) -> str:
    """The main numbers as text, in percent: mAP with its interval, the share of each kind of error and the mAP that it costs, and
    which of two is better."""
    lines = []
    for one in content["predictions"]:
        share = np.mean(one["kind_counts"], axis=0)
        share = share / max(share.sum(), 1)
        lines += [f"{one['name']}: average mAP {100 * one['average_mAP']:.2f}, normalised "
                  f"{100 * np.mean(one['normalised_mAP']):.2f}, {one['counts']['predictions']} predictions, "
                  f"{100 * np.mean(one['missed']):.1f} % of {one['counts']['ground_truth']} segments missed (means over tIoUs)",
                  confidence_line(one["confidence"])]
        rows = [[name, shown, *(f"{100 * np.mean(gain[name]):+.2f}" if name in gain else "" for gain in one["gains"].values())]
                for name, shown in [*((name, f"{100 * s:.1f}%") for name, s in zip(KINDS, share, strict=True)),
                                    ("all errors", ""), ("missed", "")]]
        lines.append(format_table(rows, ["", "share", *(f"{how} (mAP gained)" for how in one["gains"])]))
    return "\n".join([*lines, *([content["verdict"]] if content["verdict"] else [])])


def _plain(values: np.ndarray) -> list[list[float | None]]:
    """Nested lists with None for nan, which JSON does not have."""
    return [[None if np.isnan(v) else float(v) for v in row] for row in values]


def _digits(values: np.ndarray) -> list[str]:
    """Columns of (n_tiou, n) small integers as strings of n_tiou digits."""
    if values.shape[1] == 0:
        return []
    letters = (values.T.astype(np.uint8) + ord("0")).copy()
    return letters.view(f"S{values.shape[0]}").reshape(-1).astype(str).tolist()


def _columns(table: GroundTruth | Diagnosis, rows: np.ndarray, classes: np.ndarray) -> dict[str, list]:
    return {"start": table.t_start[rows].round(3).tolist(), "end": table.t_end[rows].round(3).tolist(),
            "class": classes[rows].tolist()}
