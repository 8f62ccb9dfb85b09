#!/usr/bin/env python3
"""Does the 95 % interval of mAP hold the truth in 95 % of test sets?  A simulation, for several kinds of interval.

    OMP_NUM_THREADS=1 nice -n 12 python benchmarks/bootstrap_coverage.py [--draws 500] [--seed 1] [--record NAME]

The truth is the AP of a population of 20,000 generated videos with two methods of different quality.  Each draw takes 200 of them
as a test set and asks for intervals of mAP, of the AP of each class (about twenty videos), and of the difference between the two
methods.

percentile: the quantiles of the resamples.  basic: twice the estimate minus them (Davison and Hinkley, "Bootstrap Methods and
their Application", 1997, chapter 5).  BCa: quantiles moved for bias and skewness (Efron and Tibshirani, 1993, chapter 14.3).
halves: as basic, with random halves of the videos in place of draws with replacement.  logit halves: the same of the logit of AP.
used: halves, for mAP and AP with BIAS times their bias taken off (libs/utils/significance/bootstrap.py).
"""
from __future__ import annotations

from statistics import NormalDist

import numpy as np
from common import arguments, machine, report

from libs.core.errors import run_main
from libs.utils.evaluation.metrics import evaluate_detections, match_detections
from libs.utils.evaluation.predictions import Detections, GroundTruth
from libs.utils.significance.bootstrap import BIAS, WeightedAP, half_weights, interval, plausible

TIOUS = (0.3, 0.5, 0.7)
CLASSES, PER_VIDEO, DURATION_S = 10, 30, 200.0
KINDS = ("percentile", "basic", "BCa", "halves", "logit halves", "used")
WHAT = {"mAP": slice(0, 1), "difference": slice(1, 2), "AP of a class": slice(2, None)}
Z = NormalDist()


def annotate(videos: int, rng: np.random.Generator) -> GroundTruth:
    """About five segments per video, most of them of one class."""
    video = np.repeat(np.arange(videos), 1 + rng.poisson(4, videos))
    main = rng.integers(0, CLASSES, videos)
    label = np.where(rng.random(len(video)) < 0.9, main[video], rng.integers(0, CLASSES, len(video)))
    length = np.minimum(rng.lognormal(1.5, 0.7, len(video)), 50.0)
    start = rng.random(len(video)) * (DURATION_S - length)
    return GroundTruth.from_arrays(video.astype(str), start, start + length, label)


def detect(truth: GroundTruth, hardness: np.ndarray, noise: float, rng: np.random.Generator) -> Detections:
    """Detections around segments, less exact in hard videos, and stray ones; hardness: per video, about 1."""
    video = np.repeat(np.arange(len(hardness)), PER_VIDEO)
    gt_video = truth.video_id.astype(int)
    first, count = np.searchsorted(gt_video, np.arange(len(hardness))), np.bincount(gt_video)
    source = first[video] + (rng.random(len(video)) * count[video]).astype(int)
    near = rng.random(len(video)) < 0.6
    length = truth.t_end[source] - truth.t_start[source]
    jitter = rng.normal(0, noise, (2, len(video))) * hardness[video] * length
    start = np.where(near, truth.t_start[source] + jitter[0], rng.random(len(video)) * DURATION_S).clip(0)
    end = np.maximum(np.where(near, truth.t_end[source] + jitter[1], start + length), start)
    label = np.where(rng.random(len(video)) < 0.8, truth.label[source], rng.integers(0, CLASSES, len(video)))
    right = near & (label == truth.label[source])
    score = np.where(right, rng.beta(3, 3 + noise * hardness[video], len(video)), rng.beta(1.5, 6, len(video)))
    return Detections.from_arrays(video.astype(str), start, end, label, score)


def statistics_of(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """(R, 2 + n_cls) of the AP (R, n_cls) of two methods: average mAP of the second, difference of average mAP, its classes."""
    second = np.nanmean(two, axis=1)
    return np.column_stack([second, second - np.nanmean(one, axis=1), two])


def intervals(estimate: np.ndarray, resamples: np.ndarray, without_one: np.ndarray,
              halves: np.ndarray) -> dict[str, np.ndarray]:
    """95 % intervals (2, S) of each kind; without_one (V, S): the statistics without each video."""
    low, high = interval(resamples)
    away = np.nanmean(without_one, axis=0) - without_one
    acceleration = np.nansum(away**3, axis=0) / (6 * np.nansum(away**2, axis=0) ** 1.5)
    moved = np.empty((2, len(estimate)))
    for i, value in enumerate(estimate):
        bias = Z.inv_cdf(np.clip(np.nanmean(resamples[:, i] < value), 1e-4, 1 - 1e-4))
        for j, level in enumerate((0.025, 0.975)):
            z = bias + Z.inv_cdf(level)
            moved[j, i] = np.nanquantile(resamples[:, i], Z.cdf(bias + z / (1 - acceleration[i] * z)))
    turned, used = logit(interval(halves)[::-1]), interval(plausible(estimate, halves, BIAS))
    used[:, WHAT["difference"]] = interval(plausible(estimate, halves))[:, WHAT["difference"]]
    return {"percentile": np.stack([low, high]), "basic": np.stack([2 * estimate - high, 2 * estimate - low]), "BCa": moved,
            "halves": 2 * estimate - interval(halves)[::-1], "logit halves": 1 / (1 + np.exp(turned - 2 * logit(estimate))),
            "used": used}


def logit(rate: np.ndarray) -> np.ndarray:
    """Of rates in [0, 1]; a difference below 0 has none that means anything, and is not reported."""
    inside = np.clip(rate, 1e-3, 1 - 1e-3)
    return np.log(inside / (1 - inside))


def with_replacement(videos: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(V, count) weights of a bootstrap: how often each of as many draws takes a video."""
    return rng.multinomial(videos, np.full(videos, 1 / videos), count).T.astype(np.float32)


def weighted(found: list[Detections], truth: GroundTruth, gt_video: np.ndarray,
             drawn: np.ndarray) -> list[WeightedAP]:
    """The methods on the videos `drawn` alone."""
    chosen = np.zeros(gt_video[-1] + 1, bool)
    chosen[drawn] = True
    videos = {str(video): i for i, video in enumerate(drawn.tolist())}
    here = truth.take(chosen[gt_video])
    parts = [one.take(np.repeat(chosen, PER_VIDEO)) for one in found]
    return [WeightedAP.of(match_detections(part, here, TIOUS), part, videos) for part in parts]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--videos", type=int, default=200, help="per draw")
    parser.add_argument("--population", type=int, default=20_000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(machine(), flush=True)
    rng = np.random.default_rng(args.seed)
    truth = annotate(args.population, rng)
    hardness = rng.lognormal(0, 0.5, args.population)
    found = [detect(truth, hardness, noise, rng) for noise in (0.30, 0.26)]
    gt_video = truth.video_id.astype(int)
    real = statistics_of(*(evaluate_detections(one, truth, TIOUS).AP.mean(axis=0)[None] for one in found))[0]
    missed = {kind: np.zeros((2, len(real)), int) for kind in KINDS}  # truth below the interval, above it
    widths = {kind: np.zeros(len(real)) for kind in KINDS}
    centres = np.zeros((3, len(real)))
    for draw in range(args.draws):
        both = weighted(found, truth, gt_video, rng.choice(args.population, args.videos, replace=False))

        def of(weights: np.ndarray, both: list[WeightedAP] = both) -> np.ndarray:
            return statistics_of(*(ap(weights).mean(axis=1) for ap in both))

        estimate = of(np.ones((args.videos, 1), np.float32))[0]
        resamples = of(with_replacement(args.videos, args.resamples, rng))
        without_one = of(1 - np.eye(args.videos, dtype=np.float32))
        halves = np.concatenate([of(part) for part in half_weights(args.videos, args.resamples, seed=args.seed + draw)])
        centres += [estimate, np.nanmean(resamples, axis=0), np.nanmean(halves, axis=0)]
        for kind, (low, high) in intervals(estimate, resamples, without_one, halves).items():
            missed[kind] += [real < low, real > high]
            widths[kind] += high - low
        if draw % 100 == 99:
            print(draw + 1, {kind: [round(1 - m[:, part].sum(axis=0).mean() / (draw + 1), 3) for part in WHAT.values()]
                             for kind, m in missed.items()}, flush=True)
    rows = [{"interval": f"{kind}, {what}", "coverage": 1 - missed[kind][:, part].sum(axis=0).mean() / args.draws,
             "truth_below": missed[kind][0, part].mean() / args.draws, "truth_above": missed[kind][1, part].mean() / args.draws,
             "mean_width": 100 * widths[kind][part].mean() / args.draws, "truth": 100 * real[part].mean(),
             "mean_estimate": 100 * centres[0, part].mean() / args.draws,
             "mean_resample": 100 * centres[1, part].mean() / args.draws,
             "mean_half": 100 * centres[2, part].mean() / args.draws}
            for kind in KINDS for what, part in WHAT.items() if (kind, what) != ("logit halves", "difference")]
    report(f"Coverage of 95 % intervals over {args.draws} draws of {args.videos} videos", rows, args)


if __name__ == "__main__":
    run_main(main)
