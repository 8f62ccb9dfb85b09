"""Video-level class scores of another model, fused with our segments (SPEC 45).

Per video: the best `num_pred` segments by score, each repeated for the `topk` best external classes with the score
sqrt(class score * segment score); the model's own labels are dropped.  Used where the detector is class-agnostic (ActivityNet).

    scores = load_external_scores("cuhk.json");  detections = fuse_external_scores(detections, scores)
"""
from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from libs.core.errors import UserError, shown
from libs.utils.columns import as_reals
from libs.utils.io import read_json
from libs.utils.names import id_problem
from libs.utils.plain_pickle import read_plain_npy, read_plain_pickle
from libs.utils.predictions import Detections

_WHAT = "file of external class scores"
_LAYOUT = "{video id: [one score per class]}, bare or under the key 'results'"


def load_external_scores(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Video id -> class scores (K,) float64, from .json, .npy (a dict saved with numpy.save) or .pkl/.pickle.

    Raises UserError naming the file, the video, the value and the remedy: unreadable or another layout, numbers that are
    negative or not finite (scores are probabilities), videos with different numbers of classes.
    """
    path = Path(path)
    readers = {".json": read_json, ".npy": read_plain_npy, ".pkl": read_plain_pickle, ".pickle": read_plain_pickle}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: unknown kind of {_WHAT} {path.suffix!r}; use .json, .npy or .pkl")
    content = readers[path.suffix.lower()](path, _WHAT)
    if isinstance(content, dict) and isinstance(content.get("results"), dict):
        content = content["results"]
    if not isinstance(content, dict):
        shape = f" of shape {content.shape}, which names no videos" if isinstance(content, np.ndarray) else ""
        raise UserError(f"{path}: holds a {type(content).__name__}{shape}; expected {_LAYOUT}")
    if not content:
        raise UserError(f"{path}: names no video; expected {_LAYOUT}")
    scores = {}
    for video, values in content.items():
        name = str(video) if type(video) is int else video
        if problem := id_problem(name):
            raise UserError(f"{path}: the video id {shown(video)} {problem}; expected {_LAYOUT}")
        if name in scores:
            raise UserError(f"{path}: video {shown(video)} occurs twice, as a number and as text; keep one")
        scores[name] = _class_scores(path, name, values)
    first = next(iter(scores))
    for video, values in scores.items():
        if len(values) != len(scores[first]):
            raise UserError(f"{path}: video {video} has {len(values)} class scores, {first} has {len(scores[first])}; every "
                            "video needs one score per class")
    return scores


def fuse_external_scores(detections: Detections, scores: Mapping[str, np.ndarray], num_pred: int = 200, topk: int = 2,
                         source: str = "external scores") -> Detections:
    """Detections with external classes: videos in the order of their ids, class after class, falling score inside.

    scores: video id -> (K,) class probabilities; the place is the class id.  A video without scores keeps the labels and scores
    of its best `num_pred` detections, with one warning that counts such videos (`source` names the scores in it).
    Equal scores: input order, equal class scores: the lower id first.  Raises UserError for a negative detection score.
    """
    if num_pred < 1 or topk < 1:
        raise UserError(f"num_pred {num_pred} and topk {topk} must be at least 1")
    if len(detections) and detections.score.min() < 0:
        i = int(detections.score.argmin())
        raise UserError(f"detections: video {detections.video_id[i]} has the score {detections.score[i]}; fusion takes square "
                        "roots, so scores must not be negative")
    names, video = np.unique(detections.video_id, return_inverse=True)
    order = np.lexsort((-detections.score, video))
    ends = np.cumsum(np.bincount(video, minlength=len(names)))
    fused: list[Detections] = []
    missing: list[str] = []
    for name, rows in zip(names.tolist(), np.split(order, ends[:-1]), strict=False):  # no video: split gives one empty part
        best = detections.take(rows[:num_pred])
        if name not in scores:
            missing.append(name)
            fused.append(best)
            continue
        class_scores = np.asarray(scores[name], np.float64)
        classes = np.argsort(-class_scores, kind="stable")[:topk]
        fused.append(Detections(
            np.tile(best.video_id, len(classes)), np.tile(best.t_start, len(classes)), np.tile(best.t_end, len(classes)),
            np.repeat(classes.astype(np.int64), len(best)), np.sqrt(np.outer(class_scores[classes], best.score)).reshape(-1)))
    if missing:
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        warnings.warn(f"{source}: {len(missing)} of {len(names)} videos have no external scores and keep the model's own labels "
                      f"and scores ({some})", stacklevel=2)
    return Detections.concat(fused)


def _class_scores(path: Path, video: Any, values: Any) -> np.ndarray:
    try:
        rows = (list, tuple, np.ndarray)
        if isinstance(values, rows) and len(values) == 1 and isinstance(values[0], rows):  # (1, K)
            values = values[0]
        scores = as_reals(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: video {video} has {shown(values)} ({str(error)[:80]}); expected {_LAYOUT}") from error
    if scores.size == 0:
        raise UserError(f"{path}: video {video} has no scores; expected {_LAYOUT}")
    bad = np.flatnonzero(~(np.isfinite(scores) & (scores >= 0)))
    if bad.size:
        raise UserError(f"{path}: video {video}: the score of class {bad[0]} is {scores[bad[0]]} ({bad.size} such); scores must "
                        "be finite and not negative (apply the softmax or sigmoid before saving)")
    return scores
