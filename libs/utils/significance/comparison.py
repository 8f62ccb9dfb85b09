"""Is method B better than method A?  A paired comparison of predictions files on the same videos.

    found = compare(first, second, names=("A", "B"), videos=codes)      lists of Scores and Detections, one per seed
    print(found.table());  print(found.verdict())

Both methods are evaluated on the same resamples of videos (bootstrap.py), so what makes a video hard for both cancels out.
Several seeds: each resample has the mean over the seeds of a method, and the noise of training comes on top, drawn from a
Student t distribution with the standard error of the difference of means over seeds (two samples of one variance, or paired
differences).
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from libs.core.errors import UserError
from libs.utils.evaluation.metrics import Scores
from libs.utils.evaluation.predictions import Detections
from libs.utils.significance.bootstrap import LEVEL, WeightedAP, interval, plausible, resample
from libs.utils.tables import format_table

RESAMPLES = 10_000
POWER = 0.8  # chance that a study of the advised size sees the difference


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rates as fractions of 1, for the average, every tIoU, then every class (S,), named by `rows`.

    values (2, S): of A and of B; difference (S,): B - A; limits (2, S): its interval; better (S,): probability that B is better;
    videos_needed (S,): to see a difference of this size, inf for none; seeds: of A and of B; seed_error (S,): standard error of
    the difference from the noise of training, nan for one seed a side.
    """

    names: tuple[str, str]
    rows: tuple[str, ...]
    tious: int
    values: np.ndarray
    difference: np.ndarray
    limits: np.ndarray
    better: np.ndarray
    videos_needed: np.ndarray
    videos: int
    seeds: tuple[int, int]
    seed_error: np.ndarray
    resamples: int

    def table(self, per_class: bool = True) -> str:
        """A table in percent: the average, every tIoU, every class."""
        first, second = self.names
        head = ["", first, second, "difference", "from", "to", f"P({second} better)", "videos needed"]
        chosen = range(len(self.rows) if per_class else 1 + self.tious)
        return format_table([[self.rows[i], *(100 * self.values[:, i]).tolist(), f"{100 * self.difference[i]:+.2f}",
                              *(f"{100 * limit:+.2f}" for limit in self.limits[:, i]), f"{self.better[i]:.3f}",
                              _count(self.videos_needed[i])] for i in chosen], head)

    def verdict(self) -> str:
        """What follows from the average, in a line or two."""
        (low, high), gap = (100 * self.limits[:, 0]).tolist(), 100 * float(self.difference[0])
        first, second = self.names
        numbers = f"{gap:+.2f} points of average mAP, {100 * LEVEL:.0f} % interval {low:+.2f} to {high:+.2f}"
        if low > 0 or high < 0:
            better, worse = (second, first) if gap > 0 else (first, second)
            text = f"{better} is better than {worse}: {numbers}"
        else:
            text = (f"these {self.videos} videos do not show which is better: {numbers}; a difference of this size takes about "
                    f"{_count(self.videos_needed[0])} videos")
        if not np.isfinite(self.seed_error[0]):
            text += "\none run of each: the interval leaves out the noise of training; compare several seeds to include it"
        return text

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers (fractions of 1) for JSON."""
        entries = [{"value": row, "A": float(self.values[0, i]), "B": float(self.values[1, i]),
                    "difference": float(self.difference[i]), "interval": self.limits[:, i].tolist(),
                    "probability_B_better": float(self.better[i]),
                    "videos_needed": math.ceil(self.videos_needed[i]) if np.isfinite(self.videos_needed[i]) else None,
                    "seed_error": float(self.seed_error[i]) if np.isfinite(self.seed_error[i]) else None}
                   for i, row in enumerate(self.rows)]
        return {"A": self.names[0], "B": self.names[1], "seeds": list(self.seeds), "videos": self.videos, "level": LEVEL,
                "resamples": self.resamples, "average": entries[0], "tiou": entries[1:1 + self.tious],
                "classes": entries[1 + self.tious:]}


def compare(first: Sequence[tuple[Detections, Scores]], second: Sequence[tuple[Detections, Scores]],
            videos: Mapping[str, int], names: tuple[str, str] = ("A", "B"), paired: bool = False,
            resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Compare two methods by the files of their seeds; each is Detections with the Scores of `evaluate_detections`.

    videos: id -> index of all videos that can be drawn; paired: the seeds of A and B belong together one by one.
    Raises UserError for pairs of different numbers of seeds.
    """
    if paired and len(first) != len(second):
        raise UserError(f"paired seeds: {len(first)} files of {names[0]} and {len(second)} of {names[1]}; give as many of each")
    estimate, values = resample_runs([*first, *second], videos, resamples, seed)
    a, b = slice(0, len(first)), slice(len(first), None)
    own = np.stack([estimate[a].mean(axis=0), estimate[b].mean(axis=0)])
    gap, error, likely, seed_error = likely_difference((estimate[a], values[:, a]), (estimate[b], values[:, b]), paired, seed)
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) + NormalDist().inv_cdf(POWER)
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = np.where(gap == 0, np.inf, len(videos) * (reach * error / gap) ** 2)
    scores = first[0][1]
    rows = ("average", *(f"tIoU {t:.2f}" for t in scores.tious), *(scores.class_name(c) for c in scores.class_ids))
    return Comparison(names, rows, len(scores.tious), own, gap, interval(likely), share_above(likely), needed, len(videos),
                      (len(first), len(second)), seed_error, resamples)


def resample_runs(runs: Sequence[tuple[Detections, Scores]], videos: Mapping[str, int], resamples: int,
                  seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`resample` of evaluated files: (n, S), and (R, n, S) in resamples that all share.  UserError for the thumos14 protocol."""
    return resample([WeightedAP.of(_matching(scores), found, videos) for found, scores in runs], len(videos), resamples, seed)


def likely_difference(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], paired: bool,
                      seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The difference of the means of two sides, each as `resample_runs` gives it.

    Returns the difference (S,), its standard error from the videos (S,), its plausible values (R, S) and its standard error
    from the noise of training (S,), which is in the values and nan for single runs."""
    (own, drawn), (others, others_drawn) = first, second
    draws = others_drawn.mean(axis=1) - drawn.mean(axis=1)
    gap = others.mean(axis=0) - own.mean(axis=0)
    likely = plausible(gap, draws)
    seed_error, freedom = _seed_error(own, others, paired)
    if freedom:
        likely = likely + np.random.default_rng([seed, 1]).standard_t(freedom, len(draws))[:, None] * seed_error
    return gap, np.nanstd(draws, axis=0), likely, seed_error


def share_above(likely: np.ndarray) -> np.ndarray:
    """Share (...) of plausible values (R, ...) above 0, those of 0 counted half."""
    known = np.maximum(np.isfinite(likely).sum(axis=0), 1)
    return ((likely > 0).sum(axis=0) + 0.5 * (likely == 0).sum(axis=0)) / known


def _matching(scores: Scores) -> Any:
    if scores.matching is None:
        raise UserError("the thumos14 protocol has no resamples; use the activitynet protocol")
    return scores.matching


def _seed_error(first: np.ndarray, second: np.ndarray, paired: bool) -> tuple[np.ndarray, int]:
    """Standard error (S,) of the difference of means over seeds (n, S), and its degrees of freedom; nan and 0 for single runs."""
    samples = [second - first] if paired else [first, second]
    freedom = sum(len(sample) - 1 for sample in samples)
    if freedom == 0:
        return np.full(first.shape[1], np.nan), 0
    squares = sum(((sample - sample.mean(axis=0)) ** 2).sum(axis=0) for sample in samples)
    return np.sqrt(squares / freedom * sum(1 / len(sample) for sample in samples)), freedom


def _count(videos: float) -> str:
    return "-" if not np.isfinite(videos) else f"{math.ceil(videos):,}" if videos < 1e6 else "> 1 million"
