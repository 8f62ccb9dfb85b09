"""NMS as slowly and obviously as possible: one candidate, one float32 operation at a time.

The rules of SPEC items 42 and 43 written down; every faster path of libs/utils/nms*.py and csrc/ must give the same picks.
All functions take numpy arrays: segments (n, 2) float32, scores (n,) float32, labels (n,) int64.
"""
from __future__ import annotations

import math

import numpy as np

F = np.float32


def overlap(a, b):
    return max(min(a[1], b[1]) - max(a[0], b[0]), F(0))


def iou(a, b):
    inter = overlap(a, b)
    return inter / (((a[1] - a[0]) + F(1e-6)) + ((b[1] - b[0]) + F(1e-6)) - inter)


def hard(segments, scores, threshold):
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):  # sorted() is stable
        if all(iou(segments[k], segments[i]) < F(threshold) for k in kept):
            kept.append(i)
    return kept


def weight(method, overlap_ratio, threshold, sigma):
    if method == "gaussian":
        return F(math.exp(-(overlap_ratio * overlap_ratio) / F(sigma)))
    if overlap_ratio < F(threshold):
        return F(1)
    return F(1) - overlap_ratio if method == "linear" else F(0)


def soft(segments, scores, method, threshold, sigma, min_score):
    """Indices and decayed scores in selection order."""
    rows = [[i, segments[i], scores[i]] for i in range(len(scores))]
    at = 0
    while at < len(rows):
        best = at
        for j in range(at + 1, len(rows)):
            if rows[j][2] > rows[best][2]:
                best = j
        rows[at], rows[best] = rows[best], rows[at]
        j = at + 1
        while j < len(rows):
            rows[j][2] = rows[j][2] * weight(method, iou(rows[at][1], rows[j][1]), threshold, sigma)
            if rows[j][2] < F(min_score):
                last = rows.pop()
                if j < len(rows):
                    rows[j] = last  # it takes the place of the removed one and decays next
            else:
                j += 1
        at += 1
    return [row[0] for row in rows], [row[2] for row in rows]


def vote_one(segment, segments, scores, threshold, by_iou=True):
    """Refined (start, end), or None without a voter."""
    total, start, end = 0.0, 0.0, 0.0
    for other, score in zip(segments, scores, strict=True):
        inter = overlap(segment, other)
        union = (segment[1] - segment[0]) + (other[1] - other[0]) - inter
        if union == 0:
            return None
        if inter / union >= F(threshold):
            share = float(score * (inter / union) if by_iou else score)
            total, start, end = total + share, start + share * float(other[0]), end + share * float(other[1])
    return None if total == 0 else (start / total, end / total)


def batched(segments, scores, labels, *, method, iou_threshold, min_score, max_seg_num, sigma, multiclass, voting_thresh,
            multiclass_voting=False, voting_iou_weight=True):
    """(segment, score, label) rows, best first."""
    rows = []
    for label in sorted(set(labels.tolist())) if multiclass else [None]:
        mine = [i for i in range(len(scores)) if label is None or labels[i] == label]
        if method == "soft":
            index, decayed = soft(segments[mine], scores[mine], "gaussian", iou_threshold, sigma, min_score)
            picks = [(mine[i], s) for i, s in zip(index, decayed, strict=True)]
        else:
            high = [i for i in mine if scores[i] > F(min_score)]
            picks = [(high[i], scores[high[i]]) for i in hard(segments[high], scores[high], iou_threshold)]
        for i, score in picks[:max_seg_num]:
            refined = None
            if voting_thresh > 0 and (multiclass_voting or not multiclass):
                refined = vote_one(segments[i], segments[mine], scores[mine], voting_thresh, voting_iou_weight)
            rows.append((refined or tuple(segments[i]), score, labels[i]))
    return sorted(rows, key=lambda row: -row[1])[:max_seg_num]
