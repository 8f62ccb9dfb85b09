"""Non-maximum suppression of temporal segments: hard, soft, boundary voting, and all of it for a batch of videos
(`nms_of_batch`) or for one video (`batched_nms`).

In: segments (M, 2) float32 with start <= end in any unit, scores (M,) float32, labels (M,) int64, all on one device.  Out: the
segments that are kept, identical in three implementations: compiled CPU, compiled CUDA, torch fallback.

The compiled libraries are optional (`python setup.py build_ext --inplace` builds them); results do not depend on them.
Equal scores keep a fixed order: hard NMS is stable (score descending, then input order), soft-NMS follows the swap order of
SPEC item 43, classes merge by score with the lower class first.
"""
from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from libs.core.errors import UserError, nearest, note
from libs.utils.nms import fallback as nms_fallback
from libs.utils.nms import native as nms_native

SOFT_METHODS = tuple(nms_native.METHODS)
BATCHED_METHODS = ("soft", "hard", "none")
_forced: Any = None  # the implementation chosen by `using`


class Candidates(NamedTuple):
    """Scored segments of B videos, one video after another: the output of decoding, and of NMS."""

    segments: torch.Tensor  # (M, 2) float32, grid units, not clipped
    scores: torch.Tensor  # (M,) float32
    labels: torch.Tensor  # (M,) int64
    counts: torch.Tensor  # (B,) int64, candidates of each video; their sum is M


def hard_nms(segments: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy NMS: a candidate is dropped if its tIoU (lengths + 1e-6) with a kept one of higher score is >= iou_threshold.

    Args: segments (M, 2), scores (M,); see the top of the file.
    Returns: indices (k,) int64 of the kept segments, score descending, ties in input order.
    Raises: UserError for a NaN, infinite or reversed candidate; ValueError for wrong shapes, dtypes or devices.
    """
    threshold = _number("iou_threshold", iou_threshold)
    _check(segments, scores, None, negative_scores=True)
    backend = backend_for(segments.device)
    segments, scores, home = _move(backend, segments, scores)
    return backend.hard(segments, scores, threshold).to(home)


def soft_nms(segments: torch.Tensor, scores: torch.Tensor, *, method: str = "gaussian", iou_threshold: float, sigma: float,
             min_score: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft-NMS (Bodla et al. 2017) in the selection order of SPEC item 43.

    Each pick multiplies the scores of the rest by a weight of their tIoU: gaussian exp(-iou^2 / sigma); linear 1 - iou and
    vanilla 0 from iou_threshold on.  Candidates whose score falls below min_score are removed unless already picked.
    Returns: indices (k,) int64 and rows (k, 3) float32 of start, end, decayed score, both in selection order.
    Raises: as `hard_nms`; UserError also for a negative score, an unknown method or sigma <= 0.
    """
    if method not in SOFT_METHODS:
        raise UserError(f"soft NMS: method {method!r} is unknown{nearest(method, SOFT_METHODS)}; use {', '.join(SOFT_METHODS)}")
    threshold, low = _number("iou_threshold", iou_threshold), _number("min_score", min_score)
    sigma = _sigma(sigma)
    _check(segments, scores, None)
    backend = backend_for(segments.device)
    segments, scores, home = _move(backend, segments, scores)
    index, rows = backend.soft(segments, scores, method, threshold, sigma, low)
    return index.to(home), rows.to(home)


def vote(kept_segments: torch.Tensor, segments: torch.Tensor, scores: torch.Tensor, iou_threshold: float,
         by_iou: bool = True) -> torch.Tensor:
    """Boundary voting (SPEC item 42): mean of `segments` weighted by score * tIoU where tIoU >= iou_threshold.

    Args: kept_segments (k, 2); segments (M, 2), scores (M,) of the voters, scores >= 0; by_iou False: weighted by score alone
    (SPEC_FAMILY F11).
    Returns: refined segments (k, 2) float32; NaN for a segment without voters (all weights 0, or an empty segment, whose tIoU
    with itself is undefined).  `batched_nms` keeps the boundaries of such a segment instead.
    Raises: as `soft_nms`.
    """
    threshold = _number("voting_thresh", iou_threshold)
    _check(segments, scores, None)
    _check(kept_segments, scores.new_zeros(len(kept_segments)), None)
    if kept_segments.device != segments.device:
        raise ValueError(f"vote: kept_segments are on {kept_segments.device}, segments on {segments.device}")
    backend = backend_for(segments.device)
    kept_segments, segments, scores, home = _move(backend, kept_segments, segments, scores)
    return backend.vote(kept_segments, segments, scores, threshold, by_iou).to(home)


def batched_nms(segments: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor,
                **setting: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`nms_of_batch` of a single video: the same keywords; segments (k, 2), scores (k,), labels (k,)."""
    counts = torch.tensor([len(scores)]) if scores.device.type == "cpu" else torch.full((1,), len(scores), device=scores.device)
    return nms_of_batch(Candidates(segments, scores, labels, counts), **setting)[:3]


def nms_of_batch(candidates: Candidates, *, method: str, iou_threshold: float, min_score: float, max_seg_num: int, sigma: float,
                 multiclass: bool, voting_thresh: float, multiclass_voting: bool = False,
                 voting_iou_weight: bool = True) -> Candidates:
    """NMS of the candidates of B videos, each video separately, with the settings of `test_cfg` (SPEC items 42, 43).

    Args: candidates, all tensors on one device.
    method 'soft': gaussian soft-NMS, iou_threshold unused; 'hard': candidates with score <= min_score are dropped first;
    'none': everything is returned unchanged.  multiclass: NMS per class, then merged; else over all labels.  voting_thresh
    > 0: boundary voting by all candidates of the video with their input scores, in class-agnostic mode, or per class with
    multiclass_voting; voting_iou_weight as `by_iou` of `vote`.
    Returns: the kept segments on the inputs' device, <= max_seg_num per video, score descending.
    Raises: as `soft_nms`; UserError also for max_seg_num < 1.
    """
    if method not in BATCHED_METHODS:
        raise UserError(f"test_cfg.nms_method: {method!r} is unknown{nearest(method, BATCHED_METHODS)}; "
                        f"use {', '.join(BATCHED_METHODS)}")
    if isinstance(max_seg_num, bool) or not isinstance(max_seg_num, (int, np.integer)) or max_seg_num < 1:
        raise UserError(f"test_cfg.max_seg_num: {max_seg_num!r} is not a number of segments; use an integer from 1 on")
    threshold, low = _number("test_cfg.iou_threshold", iou_threshold), _number("test_cfg.min_score", min_score)
    voting_threshold = _number("test_cfg.voting_thresh", voting_thresh)
    sigma = _sigma(sigma)
    _check(*candidates[:3])
    _check_counts(candidates.counts, candidates.scores)
    if method == "none" or len(candidates.scores) == 0:
        return candidates
    voting = "off"
    if voting_threshold > 0 and (multiclass_voting or not multiclass):
        voting = "class" if multiclass else "all"
    backend = backend_for(candidates.scores.device)
    *moved, home = _move(backend, *candidates)
    kept = backend.batched(*moved, method == "soft", threshold, low, min(int(max_seg_num), 2**31 - 1), sigma, bool(multiclass),
                           voting, voting_threshold, bool(voting_iou_weight))
    return Candidates(*(t.to(home) for t in kept))


def implementation(device: torch.device | str) -> str:
    """The implementation of NMS for tensors on `device`: 'compiled CPU', 'compiled CUDA' or 'torch fallback'."""
    return backend_for(torch.device(device)).name


def announce_fallback(device: torch.device | str) -> None:
    """Note on stderr, once per process, that a slower implementation is in use than `device` supports."""
    device, name = torch.device(device), implementation(device)
    if _forced is not None or name == "compiled CUDA":
        return
    if device.type == "cuda":
        _note_once(f"NMS: no CUDA library ({nms_native.why_missing(nms_native.CudaLibrary)}), so candidates go through the "
                   f"CPU ({name}); results are the same. With nvcc installed, `python setup.py build_ext --inplace` builds it")
    if name == nms_fallback.name:
        _note_once(f"NMS: the torch fallback is in use ({nms_native.why_missing(nms_native.CpuLibrary)}); results are the same, "
                   "only slower. With a C++ compiler, `python setup.py build_ext --inplace` builds the library")


@contextlib.contextmanager
def using(backend: Any) -> Iterator[None]:
    """Choose the implementation inside a `with` block, for tests and comparisons: 'torch fallback', 'compiled CPU', 'compiled
    CUDA' or a library object of `nms_native`.  UserError if it is not available.  Not thread-safe."""
    global _forced
    known = {nms_fallback.name: lambda: nms_fallback, "compiled CPU": nms_native.cpu_library,
             "compiled CUDA": nms_native.cuda_library}
    if isinstance(backend, str):
        if backend not in known:
            raise UserError(f"NMS: no implementation {backend!r}{nearest(backend, known)}; use {', '.join(known)}")
        name, backend = backend, known[backend]()
        if backend is None:
            raise UserError(f"NMS: {name} is not available; build it with `python setup.py build_ext --inplace`")
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before


def backend_for(device: torch.device) -> Any:
    """The implementation for tensors on `device`; `libs.modeling.decode` takes its compiled code from here too."""
    if _forced is not None:
        return _forced
    cuda = nms_native.cuda_library() if device.type == "cuda" else None
    return cuda or nms_native.cpu_library() or nms_fallback


def _move(backend: Any, *tensors: torch.Tensor) -> tuple[Any, ...]:
    """The tensors, contiguous on a device of the backend, and the device for the results."""
    home = tensors[0].device
    if home.type == "cuda" and backend.device_type == "cpu":
        announce_fallback(home)
    where = home if home.type == backend.device_type else torch.device(backend.device_type)
    return (*(t.detach().to(where).contiguous() for t in tensors), home)


@functools.cache
def _note_once(message: str) -> None:
    note(message)


def _number(key: str, value: float) -> float:
    """`value` rounded to float32, in which all implementations compare."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
        raise UserError(f"{key}: {value!r} is not a finite number")
    return float(np.float32(value))


def _sigma(value: float) -> float:
    sigma = _number("test_cfg.nms_sigma", value)
    if sigma <= 0:
        raise UserError(f"test_cfg.nms_sigma: {value!r} is too small; use a positive number, published settings have 0.4 to 0.9")
    return sigma


def _check_counts(counts: torch.Tensor, scores: torch.Tensor) -> None:
    """ValueError unless `counts` splits the candidates; their sum is not checked on a GPU, since the host would have to wait."""
    if counts.ndim != 1 or counts.dtype != torch.int64 or counts.device != scores.device:
        raise ValueError(f"NMS needs counts (B,) int64 on {scores.device}, got {tuple(counts.shape)} {counts.dtype} on "
                         f"{counts.device}")
    if counts.device.type == "cpu" and (int(counts.sum()) != len(scores) or (len(counts) and int(counts.min()) < 0)):
        raise ValueError(f"NMS: counts {counts.tolist()} do not split {len(scores)} candidates")


def _check(segments: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor | None, negative_scores: bool = False) -> None:
    """ValueError for wrong shapes, dtypes or devices; UserError for values that no detector with finite outputs produces."""
    if segments.ndim != 2 or segments.shape[1] != 2 or scores.shape != segments.shape[:1]:
        raise ValueError(f"NMS needs segments (M, 2) and scores (M,), got {tuple(segments.shape)} and {tuple(scores.shape)}")
    if segments.dtype != torch.float32 or scores.dtype != torch.float32:
        raise ValueError(f"NMS needs float32 segments and scores, got {segments.dtype} and {scores.dtype}")
    if labels is not None and (labels.shape != scores.shape or labels.dtype != torch.int64):
        raise ValueError(f"NMS needs labels (M,) int64, got {tuple(labels.shape)} {labels.dtype}")
    if len({t.device for t in (segments, scores, labels) if t is not None}) > 1:
        raise ValueError("NMS needs segments, scores and labels on one device")
    if len(scores) == 0:
        return
    lengths = segments[:, 1] - segments[:, 0]  # NaN or infinite if a boundary is
    shortest, longest, lowest, highest = torch.stack([*lengths.aminmax(), *scores.aminmax()]).tolist()  # NaN if any is
    infinite = float("inf")
    least = -infinite if negative_scores else 0.0
    if not (shortest >= 0 and longest < infinite and -infinite < lowest >= least and highest < infinite):
        good = lengths.isfinite() & (lengths >= 0) & scores.isfinite() & (scores >= least)
        first = int((~good).nonzero()[0])
        start, end, score = *segments[first].tolist(), float(scores[first])
        allowed = "a finite score" if negative_scores else "a finite score >= 0"
        raise UserError(f"NMS: {int((~good).sum())} of {len(good)} candidates are unusable, the first is number {first}: segment "
                        f"({start:g}, {end:g}), score {score:g}; finite boundaries with start <= end and {allowed} are needed: "
                        "look for NaN or infinity in the features and the checkpoint's weights")
