"""Video-level class scores of another model, fused with our segments (SPEC 45).

Per video: the best `num_pred` segments by score, each repeated for the `topk` best external classes with the score
sqrt(class score * segment score); the model's own labels are dropped.  Used where the detector is class-agnostic (ActivityNet);
a detector that names classes itself gets worse: on THUMOS14 a user measured 61.8 average mAP with fusion, 66.4 without.

    scores = load_external_scores("cuhk.json", label_ids);  detections = fuse_external_scores(detections, scores)

Layouts, by video (each bare or under the key 'results'; .json, or the same in .npy and .pkl):
    [one score per class]      in the order of the class ids, or of the names under the key 'class' beside 'results'
    {class name: score}, [{"label": class name, "score": score}, ...]      classes that are not named get 0
and an .npy array (N, classes) for THUMOS14, whose row n - 1 belongs to the video numbered n (video_test_0000004: row 3).  101
columns are the classes of UCF101 in their order, of which those of the annotations are taken.
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
from libs.utils.evaluation.columns import as_reals
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

    label_ids: class name -> id of the annotations; with it K must be the number of classes, and layouts with class names can be
    read.  videos: ids to look for in an array, which has none itself.
    Raises UserError naming the file, the video, the value and the remedy: unreadable or another layout, numbers that are
    negative or not finite (scores are probabilities), another number of classes, class names that are not known.
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
    """Detections with external classes: videos in the order of their ids, class after class, descending score inside.

    scores: video id -> (K,) class probabilities; the place is the class id, and ids may differ by a leading "v_".  A video
    without scores keeps the labels and scores of its best `num_pred` detections (keep_unscored: False, for detections without a
    class: it is left out), with one warning that counts such videos (`source` names the scores in it).
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
        own = next((key for key in (name, name.removeprefix("v_"), f"v_{name}") if key in scores), None)
        if own is None:
            missing.append(name)
            fused.append(best if keep_unscored else best.take(np.zeros(0, np.int64)))
            continue
        class_scores = np.asarray(scores[own], np.float64)
        classes = np.argsort(-class_scores, kind="stable")[:topk]
        fused.append(Detections(
            np.tile(best.video_id, len(classes)), np.tile(best.t_start, len(classes)), np.tile(best.t_end, len(classes)),
            np.repeat(classes.astype(np.int64), len(best)), np.sqrt(np.outer(class_scores[classes], best.score)).reshape(-1)))
    if missing:
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        fate = ("keep the model's own labels and scores" if keep_unscored else
                "are left out, since the model itself names no class")
        warnings.warn(f"{source}: {len(missing)} of {len(names)} videos have no external scores and {fate} ({some})",
                      stacklevel=2)
    return Detections.concat(fused)


def _rows_of_numbers(path: Path, array: np.ndarray, videos: Collection[str]) -> dict[str, np.ndarray]:
    """Rows of an array by video id, for ids that end in a number (of THUMOS14)."""
    numbers = {video: int(match[0]) for video in videos if (match := re.search(r"[0-9]{1,9}$", video))}
    rows = {video: array[n - 1] for video, n in numbers.items() if 1 <= n <= len(array)}
    if not rows:
        raise UserError(f"{path}: holds an array of shape {array.shape}, which names no videos, and no video id ends in a number "
                        f"from 1 to {len(array)} (first id: {next(iter(videos))}); expected {_LAYOUT}")
    return rows


def _places(path: Path, names: Any, label_ids: Mapping[str, int]) -> np.ndarray:
    """For each class id the place of its name in the file's list of classes, -1 for ids without a name."""
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
        raise UserError(f"{path}: video {video} has scores by class name, and no annotations say the ids of the names")
    values = [0.0] * (max(label_ids.values()) + 1)
    for name, value in pairs.items():
        if name not in label_ids:
            raise UserError(f"{path}: video {video}: {name!r} is not a class of the annotations{nearest(name, label_ids)}")
        values[label_ids[name]] = value
    return values


def _by_class_id(path: Path, scores: dict[str, np.ndarray], label_ids: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Unchanged if there is a score per class id; the right ones of 101 columns; UserError otherwise."""
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
    """(K,) scores of one video, checked, in the order of the class ids as far as the file's layout tells it."""
    if isinstance(values, list) and values and all(isinstance(v, dict) and {"label", "score"} <= set(v) for v in values):
        values = {str(v["label"]): v["score"] for v in values}
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
    """Scores by class id, 0 for an id that has no place in the file."""
    return np.where(places < 0, 0.0, scores[places])
