"""NMS without compiled code: the operations of csrc/nms.cpp in numpy on torch tensors, with identical results.

Every arithmetic step repeats csrc/nms_common.h in the same order and precision.  `libs.utils.nms.api` checks the inputs; nothing
else should call this module.
"""
from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

name = "torch fallback"
device_type = "cpu"

FACTORIALS = (39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0)


def exp_nonpositive(x: np.ndarray) -> np.ndarray:
    """exp(x) for float32 x <= 0, rounded to float32, bit for bit equal to `tal_exp` of csrc/nms_common.h."""
    wide = np.maximum(x.astype(np.float64), -104.0)
    k = np.rint(wide * 1.4426950408889634)
    r = wide - k * 0.6931471805599453
    total = np.full_like(r, 1.0 / FACTORIALS[0])
    for factorial in FACTORIALS[1:]:
        total = total * r + 1.0 / factorial
    with np.errstate(under="ignore"):
        return np.where(x > np.float32(-104.0), np.ldexp(total, k.astype(np.int32)), 0.0).astype(np.float32)


def _overlap(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    return np.maximum(np.minimum(one[1], many[:, 1]) - np.maximum(one[0], many[:, 0]), np.float32(0))


def _iou(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """tIoU of one segment (2) with many (m, 2), lengths + 1e-6."""
    inter, eps = _overlap(one, many), np.float32(1e-6)
    return inter / ((((one[1] - one[0]) + eps) + ((many[:, 1] - many[:, 0]) + eps)) - inter)


def _soft_picks(index: np.ndarray, segments: np.ndarray, scores: np.ndarray, method: str, threshold: float, sigma: float,
                min_score: float) -> Iterator[tuple[int, np.float32]]:
    """(candidate, decayed score) in selection order, lazily; `index` (m) holds the candidates."""
    index, segments, scores = index.copy(), segments[index], scores[index]
    at, live = 0, len(index)
    while at < live:
        best = at + int(np.argmax(scores[at:live]))
        for column in (index, segments, scores):
            column[[at, best]] = column[[best, at]]
        yield int(index[at]), scores[at]
        rest = scores[at + 1:live]
        iou = _iou(segments[at], segments[at + 1:live])
        if method == "gaussian":
            touched = np.flatnonzero(iou > 0)
            iou = iou[touched]
            with np.errstate(over="ignore"):
                rest[touched] *= exp_nonpositive(-(iou * iou) / np.float32(sigma))
        else:
            touched = np.flatnonzero(iou >= np.float32(threshold))
            rest[touched] *= np.float32(1) - iou[touched] if method == "linear" else np.float32(0)
        at += 1
        live = _remove_low((index, segments, scores), at, live, np.float32(min_score))


def _remove_low(columns: tuple[np.ndarray, ...], start: int, end: int, min_score: np.float32) -> int:
    """Drop the rows start..end-1 below min_score, each overwritten by the last row, as in the loop of nms.cpp; the new end."""
    low = columns[-1][start:end] < min_score
    length = end - start - int(low.sum())
    holes = start + np.flatnonzero(low[:length])
    fillers = start + length + np.flatnonzero(~low[length:])[::-1]
    for column in columns:
        column[holes] = column[fillers]
    return start + length


def _hard_picks(index: np.ndarray, segments: np.ndarray, scores: np.ndarray, threshold: float) -> Iterator[int]:
    """The kept ones of the candidates `index` (m), best first, lazily."""
    waiting = index[np.argsort(-scores[index], kind="stable")]
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        yield int(best)
        waiting = waiting[~(_iou(segments[best], segments[waiting]) >= np.float32(threshold))]


def hard(segments: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Kept indices (k) int64."""
    picks = _hard_picks(np.arange(len(scores)), segments.numpy(), scores.numpy(), threshold)
    return torch.tensor(list(picks), dtype=torch.int64)


def soft(segments: torch.Tensor, scores: torch.Tensor, method: str, threshold: float, sigma: float,
         min_score: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (k) int64 and rows start, end, decayed score (k, 3)."""
    picks = list(_soft_picks(np.arange(len(scores)), segments.numpy(), scores.numpy(), method, threshold, sigma, min_score))
    index = torch.tensor([p[0] for p in picks], dtype=torch.int64)
    decayed = torch.tensor([float(p[1]) for p in picks], dtype=torch.float32)
    return index, torch.cat([segments[index], decayed[:, None]], dim=1)


def vote(kept: torch.Tensor, segments: torch.Tensor, scores: torch.Tensor, threshold: float, by_iou: bool) -> torch.Tensor:
    """Refined segments (k, 2), NaN without a voter."""
    refined = torch.empty(len(kept), 2)
    out = refined.numpy()
    voters, weight = segments.numpy(), scores.numpy()
    wide, lengths = voters.astype(np.float64), voters[:, 1] - voters[:, 0]
    for i, segment in enumerate(kept.numpy()):
        inter = _overlap(segment, voters)
        with np.errstate(invalid="ignore"):
            iou = inter / ((segment[1] - segment[0]) + lengths - inter)
            factor = iou if by_iou else np.where(np.isnan(iou), iou, np.float32(1))
            weights = np.where(iou >= np.float32(threshold), weight, np.float32(0)) * factor
            weights = weights.astype(np.float64)
            out[i] = (weights[:, None] * wide).sum(axis=0) / weights.sum()
    return refined


def batched(segments: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor,
            *setting: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Segments (k, 2), scores (k), labels (k), counts (B) of B videos; `setting`: the settings of `_of_video`."""
    sizes = counts.tolist()
    parts = [_of_video(*video, *setting) for video in zip(*(t.split(sizes) for t in (segments, scores, labels)), strict=True)]
    rows = [torch.cat(column) for column in zip(*parts, strict=True)] if parts else (segments, scores, labels)
    return *rows, torch.tensor([len(part[1]) for part in parts], dtype=torch.int64)


def _of_video(segments: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, soft: bool, threshold: float, min_score: float,
              limit: int, sigma: float, multiclass: bool, voting: str,
              voting_threshold: float, by_iou: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Segments (k, 2), scores (k), labels (k), k <= limit; `voting` 'off', 'all' or 'class'.

    The picks of a class have descending scores, so a lazy merge of the classes is a stable sort of all picks (ties: lower class
    first) that stops after `limit`.
    """
    boxes, values, classes = segments.numpy(), scores.numpy(), labels.numpy()
    candidates = np.arange(len(values)) if soft else np.flatnonzero(values > np.float32(min_score))
    groups = [candidates[classes[candidates] == c] for c in np.unique(classes[candidates])] if multiclass else [candidates]
    if soft:
        streams = [_soft_picks(g, boxes, values, "gaussian", threshold, sigma, min_score) for g in groups]
    else:
        streams = [((i, values[i]) for i in _hard_picks(g, boxes, values, threshold)) for g in groups]
    picks = list(itertools.islice(heapq.merge(*streams, key=lambda pick: -pick[1]), limit))
    index = torch.tensor([p[0] for p in picks], dtype=torch.int64)
    picked = segments[index]
    if voting != "off":
        refined = picked.clone()
        for label in labels[index].unique() if voting == "class" else [None]:
            chosen = labels[index] == label if label is not None else torch.ones(len(index), dtype=torch.bool)
            voters = labels == label if label is not None else torch.ones(len(labels), dtype=torch.bool)
            refined[chosen] = vote(picked[chosen], segments[voters], scores[voters], voting_threshold, by_iou)
        picked = torch.where(refined.isnan().any(dim=1, keepdim=True), picked, refined)
    return picked, torch.tensor([float(p[1]) for p in picks], dtype=torch.float32), labels[index]
