"""Fuse segments with the video-level class scores of another model (SPEC item 45).

Per video: the best `num_pred` segments by score, each repeated for the `topk` best external classes with the score
sqrt(class score * segment score); the detector's labels are dropped.  For class-agnostic detectors (ActivityNet); fusion makes a
detector with classes worse: on THUMOS14 a user measured 61.8 average mAP with it, 66.4 without.

    scores = load_external_scores("cuhk.json", label_ids);  detections = fuse_external_scores(detections, scores)

Layouts, by video (at the top level or under the key 'results'; .json, or the same in .npy and .pkl):
    [one score per class]      in the order of the class ids, or of the names under the key 'class' beside 'results'
    {class name: score}, [{"label": class name, "score": score}, ...]      classes that are not named get 0
Also an .npy array (N, classes) for THUMOS14: row n - 1 belongs to video number n (video_test_0000004: row 3); 101 columns are the
classes of UCF101.
"""
from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from libs.core.errors import UserError, nearest, shown
from libs.core.names import id_problem
from libs.utils.evaluation.columns import as_reals, rows_by_video
from libs.utils.evaluation.predictions import Detections
from libs.utils.files.io import read_json
from libs.utils.files.untrusted_pickle import read_plain_npy, read_plain_pickle

_WHAT = "file of external class scores"
_LAYOUT = "{video id: [one score per class]}, bare or under the key 'results'"
UCF101 = 101
# THUMOS14 class -> number from 1 among the classes of UCF101 (detclasslist.txt of the THUMOS14 development kit)
THUMOS14 = {"BaseballPitch": 7, "BasketballDunk": 9, "Billiards": 12, "CleanAndJerk": 21, "CliffDiving": 22, "CricketBowling": 23,
            "CricketShot": 24, "Diving": 26, "FrisbeeCatch": 31, "GolfSwing": 33, "HammerThrow": 36, "HighJump": 40,
            "JavelinThrow": 45, "LongJump": 51, "PoleVault": 68, "Shotput": 79, "SoccerPenalty": 85, "TennisSwing": 92,
            "ThrowDiscus": 93, "VolleyballSpiking": 97}


def load_external_scores(path: str | os.PathLike, label_ids: Mapping[str, int] | None = None,
                         videos: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Video id -> class scores (K,) float64 by class id; .json, .npy (an array, or a dict saved with numpy.save) or .pkl/.pickle.

    label_ids: class name -> id of the annotations; needed for layouts with class names; K must equal the number of classes.
    videos: the ids of the rows of an array.
    Raises UserError with the file, the video, the value and the remedy for unreadable files, other layouts, numbers that are
    negative or not finite (scores are probabilities), another number of classes, and unknown class names.
    """
    path, label_ids = Path(path), label_ids or None
    readers = {".json": read_json, ".npy": read_plain_npy, ".pkl": read_plain_pickle, ".pickle": read_plain_pickle}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: unknown kind of {_WHAT} {path.suffix!r}; use .json, .npy or .pkl")
    content = readers[path.suffix.lower()](path, _WHAT)
    names = None
    if isinstance(content, dict) and isinstance(content.get("results"), dict):
        names, content = content.get("class"), content["results"]
    if isinstance(content, np.ndarray) and content.ndim == 2 and videos:
        content = _rows_of_numbers(path, content, videos)
    if not isinstance(content, dict):
        shape = f" of shape {content.shape}, which names no videos" if isinstance(content, np.ndarray) else ""
        raise UserError(f"{path}: holds a {type(content).__name__}{shape}; expected {_LAYOUT}")
    if not content:
        raise UserError(f"{path}: names no video; expected {_LAYOUT}")
    places = None if names is None or label_ids is None else _places(path, names, label_ids)
    scores = {}
    for video, values in content.items():
        name = str(video) if type(video) is int else video
        if problem := id_problem(name):
            raise UserError(f"{path}: the video id {shown(video)} {problem}; expected {_LAYOUT}")
        if name in scores:
            raise UserError(f"{path}: video {shown(video)} occurs twice, as a number and as text; keep one")
        scores[name] = _class_scores(path, name, values, label_ids, places)
    first = next(iter(scores))
    for video, values in scores.items():
        if len(values) != len(scores[first]):
            raise UserError(f"{path}: video {video} has {len(values)} class scores, {first} has {len(scores[first])}; every "
                            "video needs one score per class")
    return scores if label_ids is None else _by_class_id(path, scores, label_ids)


def fuse_external_scores(detections: Detections, scores: Mapping[str, np.ndarray], num_pred: int = 200, topk: int = 2,
                         source: str = "external scores", keep_unscored: bool = True) -> Detections:
    """Detections with external classes, by video id, then by class, then by descending score.

    scores: video id (with or without a leading "v_") -> (K,) probabilities by class id.  keep_unscored: videos without scores
    keep the labels and scores of their best `num_pred` detections; else (class-agnostic detections) they are left out; one
    warning counts them (`source`: the name of the scores).
    Ties: input order of detections, lower class id first.  Raises UserError for a negative detection score.
    """
    if num_pred < 1 or topk < 1:
        raise UserError(f"num_pred {num_pred} and topk {topk} must be at least 1")
    if len(detections) and detections.score.min() < 0:
        i = int(detections.score.argmin())
        raise UserError(f"detections: video {detections.video_id[i]} has the score {detections.score[i]}; fusion takes square "
                        "roots, so scores must not be negative")
    videos = rows_by_video(detections.video_id, -detections.score)
    fused: list[Detections] = []
    missing: list[str] = []
    for name, rows in videos.items():
        best = detections.take(rows[:num_pred])
        scored_id = next((key for key in (name, name.removeprefix("v_"), f"v_{name}") if key in scores), None)
        if scored_id is None:
            missing.append(name)
            fused += [best] if keep_unscored else []
            continue
        class_scores = np.asarray(scores[scored_id], np.float64)
        classes = np.argsort(-class_scores, kind="stable")[:topk]
        fused.append(Detections(
            np.tile(best.video_id, len(classes)), np.tile(best.t_start, len(classes)), np.tile(best.t_end, len(classes)),
            np.repeat(classes.astype(np.int64), len(best)), np.sqrt(np.outer(class_scores[classes], best.score)).reshape(-1)))
    if missing:
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        outcome = ("keep the model's own labels and scores" if keep_unscored else
                   "are left out, since the model predicts no classes")
        warnings.warn(f"{source}: {len(missing)} of {len(videos)} videos have no external scores and {outcome} ({some})",
                      stacklevel=2)
    return Detections.concat(fused)


def _rows_of_numbers(path: Path, array: np.ndarray, videos: Collection[str]) -> dict[str, np.ndarray]:
    """Rows of an array by video id, for ids that end in a number (THUMOS14)."""
    numbers = {video: int(match[0]) for video in videos if (match := re.search(r"[0-9]{1,9}$", video))}
    rows = {video: array[n - 1] for video, n in numbers.items() if 1 <= n <= len(array)}
    if not rows:
        raise UserError(f"{path}: holds an array of shape {array.shape}, which names no videos, and no video id ends in a number "
                        f"from 1 to {len(array)} (first id: {next(iter(videos))}); expected {_LAYOUT}")
    return rows


def _places(path: Path, names: Any, label_ids: Mapping[str, int]) -> np.ndarray:
    """Index of each class id in the file's list of class names, -1 for ids without a name."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: class is {str(names)[:60]}; expected the list of class names")
    places = np.full(max(label_ids.values()) + 1, -1)
    for name, i in label_ids.items():
        if name not in names:
            raise UserError(f"{path}: its list of classes lacks {name!r}{nearest(name, names)}; the scores are of other classes "
                            "than the annotations")
        places[i] = names.index(name)
    return places


def _named(path: Path, video: Any, pairs: Mapping[str, Any], label_ids: Mapping[str, int] | None) -> list[Any]:
    """Scores by class id from scores by class name."""
    if label_ids is None:
        raise UserError(f"{path}: video {video} has scores by class name, but no annotations map the names to ids")
    values = [0.0] * (max(label_ids.values()) + 1)
    for name, value in pairs.items():
        if name not in label_ids:
            raise UserError(f"{path}: video {video}: {name!r} is not a class of the annotations{nearest(name, label_ids)}")
        values[label_ids[name]] = value
    return values


def _by_class_id(path: Path, scores: dict[str, np.ndarray], label_ids: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Scores with one value per class id; from 101 columns those of the annotated classes; else UserError."""
    first, classes = next(iter(scores)), max(label_ids.values()) + 1
    found = len(scores[first])
    if found == classes:
        return scores
    if found == UCF101 and set(label_ids) <= set(THUMOS14):
        places = np.full(classes, -1)
        for name, i in label_ids.items():
            places[i] = THUMOS14[name] - 1
        return {video: _placed(values, places) for video, values in scores.items()}
    raise UserError(f"{path}: video {first} has {found} class scores, but the annotations have {classes} classes; the scores are "
                    "of another dataset")


def _class_scores(path: Path, video: Any, values: Any, label_ids: Mapping[str, int] | None,
                  places: np.ndarray | None) -> np.ndarray:
    """(K,) checked scores of one video, by class id if the file names the classes, else in file order."""
    if isinstance(values, list) and values and all(isinstance(v, dict) and {"label", "score"} <= set(v) for v in values):
        labels = [str(v["label"]) for v in values]
        if twice := next((name for i, name in enumerate(labels) if name in labels[:i]), None):
            raise UserError(f"{path}: video {video} scores {twice!r} twice: these are detections, not one score per class; "
                            f"expected {_LAYOUT}")
        values = dict(zip(labels, (v["score"] for v in values), strict=True))
    named = isinstance(values, dict)
    if named:
        values = _named(path, video, values, label_ids)
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
    if named or places is None:
        return scores
    if len(scores) <= places.max():
        raise UserError(f"{path}: video {video} has {len(scores)} class scores, but the file lists more classes; they do not "
                        "belong together")
    return _placed(scores, places)


def _placed(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Scores by class id, 0 for an id that the file does not have."""
    return np.where(places < 0, 0.0, scores[places])
