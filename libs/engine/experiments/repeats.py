"""The runs of one configuration: folds of its dataset times seeds, and the statistics over them.

    args = parser.parse_args()                     after add_arguments(parser)
    for repeat in repeats_of(args): ...            Repeat(fold=1, seed=0), ...
    by_unit({repeat: average mAP})                 by fold (the mean over its seeds), or, without folds, by seed
"""
from __future__ import annotations

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from libs.core.arguments import refuse_repeated
from libs.core.errors import UserError

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 1, 2, ... degrees of freedom


class Repeat(NamedTuple):
    """One run among those of a configuration."""

    fold: int | None  # value of the key `fold`; None: as the configuration says
    seed: int

    def name(self, seed: str = "seed") -> str:
        """A part of the run's name: seed0, or fold1_seed0; `seed`: the text before the seed's number."""
        return f"{seed}{self.seed}" if self.fold is None else f"fold{self.fold}_{seed}{self.seed}"

    @property
    def overrides(self) -> tuple[str, ...]:
        """The --set values of the run."""
        return (*(() if self.fold is None else (f"fold={self.fold}",)), f"init_rand_seed={self.seed}")

    def __str__(self) -> str:
        return f"seed {self.seed}" if self.fold is None else f"fold {self.fold}, seed {self.seed}"


def add_arguments(parser: argparse.ArgumentParser, seeds: int) -> None:
    """The options for `repeats_of`; `seeds`: how many by default."""
    parser.add_argument("--seeds", type=int, default=seeds, metavar="N", help=f"how many seeds ({seeds})")
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="seeds are S, S + 1, ... (0)")
    parser.add_argument("--folds", type=int, nargs="+", default=[], metavar="K",
                        help="every seed on each of these folds: the number replaces {fold} in the configuration")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="runs at the same time (1); cores are shared out")


def repeats_of(args: argparse.Namespace) -> list[Repeat]:
    """The runs that the options ask for, fold by fold; UserError for none, and for a fold or seed that --set gives too."""
    if args.seeds < 1 or args.jobs < 1:
        raise UserError(f"--seeds {args.seeds} --jobs {args.jobs}: both must be at least 1")
    refuse_repeated("--folds", args.folds)
    named = {text.partition("=")[0].strip() for text in args.set}
    if "init_rand_seed" in named:
        raise UserError("--set init_rand_seed: every run has its own seed; use --first-seed and --seeds")
    if "fold" in named:
        raise UserError("--set fold: the names of the runs would not tell the folds apart; use --folds")
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    return [Repeat(fold, seed) for fold in args.folds or [None] for seed in seeds]


def by_unit(values: Mapping[Repeat, float]) -> dict[str, float]:
    """The values over which mean and spread are taken: by fold the mean over its seeds, or, without folds, by seed."""
    units: dict[str, list[float]] = defaultdict(list)
    for repeat, value in values.items():
        units[str(repeat.seed if repeat.fold is None else repeat.fold)].append(value)
    return {unit: statistics.mean(found) for unit, found in units.items()}


def fold_details(values: Mapping[Repeat, float]) -> dict[str, Any]:
    """`runs`: the value of every run by its name; `seed_deviation`: the standard deviation over the seeds of a fold, pooled over
    folds, None if none has two.  Without folds {}: `by_unit` has all."""
    if any(repeat.fold is None for repeat in values):
        return {}
    folds: dict[int | None, list[float]] = defaultdict(list)
    for repeat, value in values.items():
        folds[repeat.fold].append(value)
    return {"runs": {repeat.name(): value for repeat, value in values.items()},
            "seed_deviation": pooled_deviation(folds.values())}


def pooled_deviation(samples: Collection[Sequence[float]]) -> float | None:
    """Standard deviation within the samples: their variances weighted by degrees of freedom; None if no sample has two values."""
    freedom = sum(len(sample) - 1 for sample in samples)
    squares = sum((len(sample) - 1) * statistics.variance(sample) for sample in samples if len(sample) > 1)
    return math.sqrt(squares / freedom) if freedom else None


def t_975(freedom: int) -> float:
    """Quantile .975 of Student's t; that of 10 degrees of freedom, a little too wide, above."""
    return T_975[min(freedom, len(T_975)) - 1]


def mean_interval(values: Collection[float]) -> list[float] | None:
    """95 % interval [low, high] of the mean that a sample is of (Student's t); None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, reach = statistics.mean(values), t_975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return [mean - reach, mean + reach]
