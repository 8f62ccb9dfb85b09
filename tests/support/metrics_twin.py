"""The slow, obvious evaluators: plain loops over classes, videos, predictions and thresholds, straight from the definitions.

They are what the fast ones in libs/utils must agree with.  Predictions are tuples (video, start, end, label, score), ground
truths (video, start, end, label); times in seconds.  At the end stands the first array version, which took the thresholds one
after the other; the present one must give its numbers to the last bit.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from libs.utils.evaluation.predictions import Detections, GroundTruth


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


@st.composite
def cases(draw: st.DrawFn, num: int = 30) -> tuple[list[tuple], list[tuple]]:
    """Up to `num` predictions and 10 ground truths on a grid of half seconds, with 2 more videos and a class more on either side:
    equal scores, equal and zero-length segments, near copies and empty lists are common."""
    def segments(videos: str, labels: list[int], most: int) -> list[tuple]:
        one = st.tuples(st.sampled_from(videos), st.integers(0, 14), st.integers(0, 6), st.sampled_from(labels),
                        st.sampled_from([0.0, 0.0005]))
        return [(v, s / 2 + e, (s + n) / 2 + e, k) for v, s, n, k, e in draw(st.lists(one, max_size=most))]

    scores = draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9]), min_size=num, max_size=num))
    predictions = [(*row, score) for row, score in zip(segments("abc", [0, 2, 5], num), scores, strict=False)]
    return predictions, segments("bcd", [2, 5, 7], 10)


def first_array_scores(found: Detections, wanted: GroundTruth, tious: np.ndarray,
                       top_k: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """AP (n_tiou, n_cls) and recall (n_tiou, n_k, n_cls); `wanted` has neither duplicates nor segments under 1 ms."""
    class_ids, gt_class = np.unique(wanted.label, return_inverse=True)
    used = np.flatnonzero(np.isin(found.label, class_ids))
    det_class = np.searchsorted(class_ids, found.label)
    order = np.lexsort((-found.score[used], det_class[used]))
    used, det_class = used[order], det_class[used][order]
    det_group = [(v, c) for v, c in zip(found.video_id[used].tolist(), det_class.tolist(), strict=True)]
    gt_group = [(v, c) for v, c in zip(wanted.video_id.tolist(), gt_class.tolist(), strict=True)]
    rows_of, place = {group: [] for group in gt_group}, dict.fromkeys(gt_group, 0)
    for j, group in enumerate(gt_group):
        rows_of[group].append(j)
    pairs = [(i, j) for i, group in enumerate(det_group) for j in rows_of.get(group, ())]
    i, j = np.array(pairs, np.int64).reshape(-1, 2).T
    a_start, a_end, b_start, b_end = found.t_start[used][i], found.t_end[used][i], wanted.t_start[j], wanted.t_end[j]
    shared = np.maximum(np.minimum(a_end, b_end) - np.maximum(a_start, b_start), 0.0)
    union = (b_end - b_start) + (a_end - a_start) - shared
    overlap = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)

    rank = np.zeros(len(used), np.int64)
    for det, group in enumerate(det_group):
        if group in place:
            rank[det], place[group] = place[group], place[group] + 1
    recall = np.empty((len(tious), len(top_k), len(class_ids)))
    sizes = np.array([len(rows_of[group]) for group in gt_group])
    num_gt = np.bincount(gt_class)
    for n, k in enumerate(top_k):
        best = np.zeros(len(wanted))
        considered = rank[i] < k * sizes[j]
        np.maximum.at(best, j[considered], overlap[considered])
        for m, tiou in enumerate(tious):
            recall[m, n] = np.bincount(gt_class[best >= tiou], minlength=len(class_ids)) / num_gt
    order = np.lexsort((-j, -overlap, i))
    hit = np.zeros((len(tious), len(used)), bool)
    for line, tiou in zip(hit, tious, strict=True):
        taken = np.zeros(len(wanted), bool)
        for p in order[overlap[order] >= tiou].tolist():
            if not line[i[p]] and not taken[j[p]]:
                line[i[p]] = taken[j[p]] = True
    ap = []
    for c, total in enumerate(num_gt):
        hits = hit[:, slice(*np.searchsorted(det_class, [c, c + 1]))]
        precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
        best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        ap.append((best_from_here * hits).sum(axis=1) / total)
    return np.stack(ap, axis=1), recall
