"""The slow, obvious evaluators: plain loops over classes, videos, predictions and thresholds, straight from the definitions.

They are what the fast ones in libs/utils must agree with.  Predictions are tuples (video, start, end, label, score), ground
truths (video, start, end, label); times in seconds.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from libs.utils.predictions import Detections, GroundTruth


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Overlap of (start, end) and (start, end) over their union; 0 when the union is empty."""
    shared = max(min(a[1], b[1]) - max(a[0], b[0]), 0.0)
    union = (b[1] - b[0]) + (a[1] - a[0]) - shared
    return shared / union if union > 0 else 0.0


def drop_duplicates(truths: list[tuple]) -> list[tuple]:
    """Without segments under 1 ms and without near copies of an earlier kept one (same video and label)."""
    kept: list[tuple] = []
    for video, start, end, label in truths:
        copy = any(v == video and k == label and abs(start - s) <= 1e-3 and abs(end - e) <= 1e-3 for v, s, e, k in kept)
        if end - start >= 1e-3 and not copy:
            kept.append((video, start, end, label))
    return kept


def activitynet_ap(predictions: list[tuple], truths: list[tuple], tiou: float) -> dict[int, float]:
    """Label -> average precision."""
    truths = drop_duplicates(truths)
    result = {}
    for label in sorted({t[3] for t in truths}):
        mine = [t for t in truths if t[3] == label]
        taken = [False] * len(mine)
        hits = []
        for video, start, end, _, _ in sorted((p for p in predictions if p[3] == label), key=lambda p: -p[4]):
            overlaps = [(iou((start, end), t[1:3]), i) for i, t in enumerate(mine) if t[0] == video]
            chosen = next((i for o, i in sorted(overlaps, reverse=True) if o >= tiou and not taken[i]), None)
            hits.append(chosen is not None)
            if chosen is not None:
                taken[chosen] = True
        precisions = [sum(hits[:n]) / n for n in range(1, len(hits) + 1)]
        result[label] = sum(max(precisions[n:]) for n, hit in enumerate(hits) if hit) / len(mine)
    return result


def activitynet_recall(predictions: list[tuple], truths: list[tuple], tiou: float, k: int) -> dict[int, float]:
    """Label -> recall at k times the number of ground truths."""
    truths = drop_duplicates(truths)
    result = {}
    for label in sorted({t[3] for t in truths}):
        mine = [t for t in truths if t[3] == label]
        found = 0
        for video in {t[0] for t in mine}:
            here = [t for t in mine if t[0] == video]
            best = sorted((p for p in predictions if p[0] == video and p[3] == label), key=lambda p: -p[4])[:k * len(here)]
            found += sum(any(iou(p[1:3], t[1:3]) >= tiou for p in best) for t in here)
        result[label] = found / len(mine)
    return result


def thumos14_ap(predictions: list[tuple], truths: list[tuple], ambiguous: list[tuple], tiou: float) -> dict[int, float]:
    """Label -> average precision by the official THUMOS14 protocol."""
    result = {}
    for label in sorted({t[3] for t in truths}):
        mine = [t for t in truths if t[3] == label]
        ranked = []
        for video in sorted({p[0] for p in predictions}):
            here = sorted((p for p in predictions if p[0] == video and p[3] == label), key=lambda p: -p[4])
            free = list(range(len(here)))
            for truth in (t for t in mine if t[0] == video):
                best = max(free, key=lambda i: iou(here[i][1:3], truth[1:3]), default=None)
                if best is not None and iou(here[best][1:3], truth[1:3]) > tiou:
                    free.remove(best)
            unsure = [a for a in ambiguous if a[0] == video]
            ranked += [(p[4], i not in free) for i, p in enumerate(here)
                       if i not in free or not any(iou(p[1:3], a[1:3]) > 0 for a in unsure)]
        hits = [hit for _, hit in sorted(ranked, key=lambda r: -r[0])]
        result[label] = sum(sum(hits[:n + 1]) / (n + 1) for n, hit in enumerate(hits) if hit) / len(mine)
    return result


def rows(predictions: list[tuple]) -> Detections:
    """Prediction tuples as columns."""
    return Detections.from_arrays(*zip(*predictions, strict=True))


def truth(segments: list[tuple]) -> GroundTruth:
    """Ground-truth tuples as columns."""
    return GroundTruth.from_arrays(*zip(*segments, strict=True))


def random_case(seed: int, num: int = 160) -> tuple[list[tuple], list[tuple]]:
    """Whole-second times and scores in twentieths, so that equal IoUs, equal scores and exact thresholds are common."""
    rng = np.random.default_rng(seed)

    def segments(count: int, videos: int) -> list[tuple]:
        start, length = rng.integers(0, 20, count), rng.integers(1, 7, count)
        return [(f"v{v}", float(s), float(s + n), int(k)) for v, s, n, k in
                zip(rng.integers(0, videos, count), start, length, 2 * rng.integers(0, 3, count) + 1, strict=True)]

    truths = segments(40, 4) + [("v0", 3.0, 3.0005, 1), ("v1", 5.0, 8.0, 3), ("v1", 5.0005, 8.0, 3)]
    predictions = [(*s, float(q)) for s, q in zip(segments(num, 6), rng.integers(0, 20, num) / 20, strict=True)]
    return predictions, truths
