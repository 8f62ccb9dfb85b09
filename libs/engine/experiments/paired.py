"""Paired tests: is one stage, or one kind of weights, better than another that ran with the same seeds and folds?

    tests = paired_tests({"student": {Repeat(None, 0): Evaluation(...)}, "student_alone": {...}}, against="student_alone")
    for test in tests: print(paired_line(test))

Over seeds (or folds): the mean of the differences run by run, with its interval by Student's t.  Over videos: the predictions of
both on random halves of the test videos (libs/utils/significance), means over seeds with their noise, and over folds, whose
videos are drawn on their own.  The first says how another training would come out, the second how other videos would.
"""
from __future__ import annotations

import statistics
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from libs.core.errors import UserError, note
from libs.core.schema import Config
from libs.datasets.dataset import TalDataset
from libs.engine.experiments.launch import read_results
from libs.engine.experiments.repeats import Repeat, by_unit, mean_interval
from libs.engine.inference.evaluate import PREDICTIONS
from libs.engine.inference.predict import score
from libs.utils.evaluation.predictions import read_predictions
from libs.utils.significance.bootstrap import FEWEST, interval, video_codes
from libs.utils.significance.comparison import likely_difference, resample_runs, share_above

RESAMPLES = 1000  # of the videos
SAME = 1e-9  # two values of one average mAP, fractions of 1
MEANING = ("Paired tests: differences in points of average mAP with 95 % intervals, over {units} by Student's t, and over random "
           f"halves of the test videos ({RESAMPLES} resamples), with the noise of training where there are several seeds.\n")


class Evaluation(NamedTuple):
    """One evaluated run: average mAP in percent, its configuration, its results.json."""

    average_mAP: float
    config: Config
    file: Path


class _Drawn(NamedTuple):
    """Average mAP of one run: as evaluated (1, 1), and on random halves of the test videos (R, 1, 1), fractions of 1."""

    estimate: np.ndarray
    resamples: np.ndarray
    videos: int


def paired_tests(methods: Mapping[str, Mapping[Repeat, Evaluation]], against: str) -> list[dict[str, Any]]:
    """One test per other method that shares runs with `against`, as plain values (percent points) for JSON.

    difference: by seed, or by fold the mean over its seeds; interval: of their mean, None for one; videos: None where a test
    over videos cannot be made (fewer than FEWEST, or another test set); a note says so where predictions cannot be read.
    """
    drawn = _draw(methods, against)
    tests = []
    for name, runs in methods.items():
        common = [repeat for repeat in methods[against] if repeat in runs]
        if name == against or not common:
            continue
        difference = by_unit({repeat: runs[repeat].average_mAP - methods[against][repeat].average_mAP for repeat in common})
        pairs = {repeat: (drawn.get((against, repeat)), drawn.get((name, repeat))) for repeat in common}
        tests.append({"value": name, "against": against, "units": "seeds" if common[0].fold is None else "folds",
                      "difference": difference, "mean_difference": statistics.mean(difference.values()),
                      "interval": mean_interval(difference.values()), "videos": _over_videos(pairs)})
    return tests


def paired_line(test: Mapping[str, Any]) -> str:
    """A test in a line."""
    number, units = len(test["difference"]), test["units"]
    parts = [f"{test['value']} minus {test['against']}: {test['mean_difference']:+.2f}"]
    if test["interval"] is not None:
        parts.append(f"over {number} {units} {_range(test['interval'])}")
    else:
        parts.append(f"one {units[:-1]}: no interval over {units}")
    if (found := test["videos"]) is not None:
        parts.append(f"over {found['videos']} videos {_range(found['interval'])}, better with probability "
                     f"{found['probability_better']:.3f}")
    return "; ".join(parts)


def _range(limits: list[float]) -> str:
    return f"{limits[0]:+.2f} to {limits[1]:+.2f}"


def _over_videos(pairs: Mapping[Repeat, tuple[_Drawn | None, _Drawn | None]]) -> dict[str, Any] | None:
    """The test over videos: per fold the means over its seeds, then the mean over folds; None if the draws of a run lack."""
    folds: dict[int | None, list[tuple[_Drawn, _Drawn]]] = defaultdict(list)
    for repeat, (first, second) in pairs.items():
        if first is None or second is None:
            return None
        folds[repeat.fold].append((first, second))
    gaps, likely = [], []
    for number, fold in enumerate(folds.values()):
        sides = [(np.concatenate([run.estimate for run in side]), np.concatenate([run.resamples for run in side], axis=1))
                 for side in zip(*fold, strict=True)]
        gap, _, values, _ = likely_difference(sides[0], sides[1], paired=True, seed=number)
        gaps.append(gap)
        likely.append(values)
    values = np.mean(likely, axis=0)[:, 0]
    return {"difference": 100 * float(np.mean(gaps)), "interval": (100 * interval(values)).tolist(),
            "probability_better": float(share_above(values)), "resamples": len(values),
            "videos": sum(fold[0][0].videos for fold in folds.values())}


def _draw(methods: Mapping[str, Mapping[Repeat, Evaluation]], against: str) -> dict[tuple[str, Repeat], _Drawn]:
    """The draws of every run, those of a fold on the same videos; runs with another test set than `against` lack."""
    folds: dict[int | None, dict[tuple[str, Repeat], Evaluation]] = defaultdict(dict)
    for name, runs in methods.items():
        for repeat in runs:
            folds[repeat.fold][name, repeat] = runs[repeat]
    found: dict[tuple[str, Repeat], _Drawn] = {}
    for number, (fold, evaluations) in enumerate(folds.items()):
        reference = next((run.config for (name, _), run in evaluations.items() if name == against), None)
        if reference is None:
            continue
        same = {key: run for key, run in evaluations.items() if _test_set(run.config) == _test_set(reference)}
        try:
            found |= _draw_fold(reference, same, number)
        except UserError as error:
            where = "" if fold is None else f"fold {fold}: "
            note(f"note: {where}no paired test over videos: {error}")
    return found


def _test_set(config: Config) -> tuple:
    data = config.dataset
    return config.dataset_name, data.json_file, data.tiou_thresholds, config.val_split, config.test_cfg.exclude


def _draw_fold(config: Config, runs: Mapping[tuple[str, Repeat], Evaluation], seed: int) -> dict[tuple[str, Repeat], _Drawn]:
    """The draws of runs with one test set; {} for too few videos.  UserError for files that cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eval.py has warned of its data
        dataset = TalDataset(config, config.val_split, training=False)
    if len(dataset.annotated_ids) < FEWEST:
        return {}
    files = []
    for run in runs.values():
        detections = read_predictions(run.file.with_name(PREDICTIONS))
        scores = score(detections, dataset)
        if abs(scores.average_mAP - read_results(run.file)["average_mAP"]) > SAME:
            raise UserError(f"{run.file}: its average mAP is not that of {PREDICTIONS} beside it; remove it to evaluate again")
        files.append((detections, scores))
    estimate, values = resample_runs(files, video_codes(dataset.annotated_ids), RESAMPLES, seed)
    return {key: _Drawn(estimate[i:i + 1, :1], values[:, i:i + 1, :1].copy(), len(dataset.annotated_ids))
            for i, key in enumerate(runs)}
