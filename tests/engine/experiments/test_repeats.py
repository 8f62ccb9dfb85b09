"""Folds and seeds of a configuration, and the statistics over their runs."""
from __future__ import annotations

import argparse

import pytest

from libs.core.errors import UserError
from libs.engine.experiments.repeats import Repeat, add_arguments, by_unit, fold_details, repeats_of

BY_RUN = {Repeat(1, 0): 70.0, Repeat(1, 1): 74.0, Repeat(3, 0): 80.0}


def repeats(*argv: str) -> list[Repeat]:
    parser = argparse.ArgumentParser()
    add_arguments(parser, seeds=1)
    parser.add_argument("--set", nargs="+", default=[], action="extend")
    return repeats_of(parser.parse_args(argv))


def test_every_seed_on_every_fold() -> None:
    assert repeats("--seeds", "2", "--folds", "3", "1") == [Repeat(3, 0), Repeat(3, 1), Repeat(1, 0), Repeat(1, 1)]
    assert repeats("--first-seed", "4") == [Repeat(None, 4)]


def test_names_and_settings_of_a_run() -> None:
    assert (Repeat(2, 7).name(), Repeat(2, 7).name("x"), Repeat(None, 7).name()) == ("fold2_seed7", "fold2_x7", "seed7")
    assert (Repeat(2, 7).overrides, Repeat(None, 7).overrides) == (("fold=2", "init_rand_seed=7"), ("init_rand_seed=7",))


@pytest.mark.parametrize(("argv", "told"), [
    (["--seeds", "0"], "at least 1"), (["--folds", "1", "2", "1"], "--folds: 1 occurs twice"),
    (["--set", "fold=1"], "use --folds"), (["--set", "init_rand_seed=1"], "use --first-seed and --seeds")])
def test_bad_options(argv: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        repeats(*argv)


def test_statistics_are_over_folds_with_each_the_mean_of_its_seeds() -> None:
    assert by_unit(BY_RUN) == {"1": 72, "3": 80}
    assert fold_details(BY_RUN) == {"runs": {"fold1_seed0": 70, "fold1_seed1": 74, "fold3_seed0": 80},
                                    "seed_deviation": pytest.approx(8 ** 0.5)}  # squares 4 + 4 + 0 over 3 runs - 2 folds
    assert fold_details({Repeat(1, 0): 1.0, Repeat(2, 0): 2.0})["seed_deviation"] is None


def test_without_folds_the_seeds_are_the_units() -> None:
    by_seed = {Repeat(None, 0): 70.0, Repeat(None, 5): 74.0}
    assert (by_unit(by_seed), fold_details(by_seed)) == ({"0": 70, "5": 74}, {})
