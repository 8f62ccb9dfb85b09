"""A diagnosis as plain numbers: for the JSON file, the figures and the page.

    content = report(subjects, truth, "quantiles")            rates as fractions of 1; lists run over tIoUs first
    content["timeline"] = timeline(subjects, truth, 300)      what the page draws: segments of every video
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
from libs.utils.evaluation.predictions import GroundTruth
from libs.utils.tables import format_table


@dataclass(frozen=True, eq=False)
class Subject:
    """One predictions file: how it is called, and what is wrong with it."""

    name: str
    found: Diagnosis


def report(subjects: Sequence[Subject], durations_s: Mapping[str, float], buckets: str) -> dict[str, Any]:
    """Everything but the single segments; subjects share ground truth and tIoUs.

    durations_s: per video, inf where unknown; buckets: as in `characteristics`.
    """
    first = subjects[0].found
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
    }
    for subject in subjects:
        found, rates = subject.found, {g.name: sensitivity(subject.found, g) for g in groups}
        out["predictions"].append({
            "name": subject.name,
            "counts": dict(found.scores.counts),
            "mAP": found.scores.mAP.tolist(),
            "average_mAP": found.scores.average_mAP,
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


def timeline(subjects: Sequence[Subject], videos: Collection[str], durations_s: Mapping[str, float], most: int) -> dict[str, Any]:
    """Segments by video: all ground truths, and of each subject the `most` best-scoring predictions.

    Columns: start, end (s, to the millisecond), class (index), score; kinds: a digit per tIoU, index into KINDS; ground truths
    have for each subject a digit per tIoU, 1 for found.
    """
    truth = subjects[0].found.matching.ground_truth
    found_digits = [_digits(~subject.found.missed) for subject in subjects]
    gt_rows = _rows_of(truth.video_id)
    det_rows = [_rows_of(subject.found.video_id) for subject in subjects]
    names = list(dict.fromkeys([*sorted(videos), *(v for rows in (gt_rows, *det_rows) for v in rows)]))
    digits = [_digits(subject.found.error) for subject in subjects]
    none = np.empty(0, np.int64)
    out = []
    for name in names:
        mine, ends = gt_rows.get(name, none), [0.0]
        entry: dict[str, Any] = {"id": name, "ground_truth": _columns(truth, mine, subjects[0].found.matching.gt_class)}
        entry["ground_truth"]["found"] = [[rows[i] for i in mine] for rows in found_digits]
        entry["predictions"] = []
        for subject, rows, kind in zip(subjects, det_rows, digits, strict=True):
            here = rows.get(name, none)
            best = here[np.lexsort((subject.found.matching.used[here], -subject.found.score[here]))][:most]
            columns = _columns(subject.found, best, subject.found.matching.det_class)
            entry["predictions"].append({**columns, "score": subject.found.score[best].round(5).tolist(),
                                         "kinds": [kind[i] for i in best], "total": len(here)})
            ends.append(float(subject.found.t_end[best].max(initial=0.0)))
        ends.append(float(truth.t_end[mine].max(initial=0.0)))
        duration = durations_s.get(name, np.inf)
        entry["duration"] = round(float(duration if np.isfinite(duration) else max(ends)), 3)
        out.append(entry)
    return {"most": most, "videos": out}


def summary(content: Mapping[str, Any]) -> str:
    """The main numbers as text, in percent: mAP, share of each kind of error among the predictions and what it costs."""
    lines = []
    for one in content["predictions"]:
        share = np.mean(one["kind_counts"], axis=0)
        share = share / max(share.sum(), 1)
        lines += [f"{one['name']}: average mAP {100 * one['average_mAP']:.2f}, normalised "
                  f"{100 * np.mean(one['normalised_mAP']):.2f}, {one['counts']['predictions']} predictions, "
                  f"{100 * np.mean(one['missed']):.1f} % of {one['counts']['ground_truth']} segments missed (means over tIoUs)"]
        rows = [[name, shown, *(f"{100 * np.mean(gain[name]):+.2f}" if name in gain else "" for gain in one["gains"].values())]
                for name, shown in [*((name, f"{100 * s:.1f}%") for name, s in zip(KINDS, share, strict=True)),
                                    ("all errors", ""), ("missed", "")]]
        lines.append(format_table(rows, ["", "share", *(f"{how} (mAP gained)" for how in one["gains"])]))
    return "\n".join(lines)


def _plain(values: np.ndarray) -> list[list[float | None]]:
    """Nested lists with None for nan, which JSON does not know."""
    return [[None if np.isnan(v) else float(v) for v in row] for row in values]


def _digits(values: np.ndarray) -> list[str]:
    """Columns of (n_tiou, n) small integers as strings of n_tiou digits."""
    if values.shape[1] == 0:
        return []
    letters = (values.T.astype(np.uint8) + ord("0")).copy()
    return letters.view(f"S{values.shape[0]}").reshape(-1).astype(str).tolist()


def _rows_of(video_id: np.ndarray) -> dict[str, np.ndarray]:
    names, inverse = np.unique(video_id, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    return dict(zip(names.tolist(), np.split(order, np.cumsum(np.bincount(inverse, minlength=len(names)))[:-1]), strict=False))


def _columns(table: GroundTruth | Diagnosis, rows: np.ndarray, classes: np.ndarray) -> dict[str, list]:
    return {"start": table.t_start[rows].round(3).tolist(), "end": table.t_end[rows].round(3).tolist(),
            "class": classes[rows].tolist()}
