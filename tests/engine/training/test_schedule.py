"""Learning rates per iteration."""
from __future__ import annotations

import math

import pytest

from libs.core.schema import OptConfig
from libs.engine.training.schedule import make_schedule, rate_factor


def rates(n, iters=4, **opt):
    schedule = make_schedule(OptConfig(learning_rate=0.01, **opt), iters)
    return [schedule.at(i) for i in range(n)]


def test_warm_up_starts_at_zero_and_reaches_the_base_twice():
    got = rates(40, warmup_epochs=2, epochs=3)
    assert got[:8] == pytest.approx([0.01 * i / 7 for i in range(8)])
    assert got[7] == got[8] == pytest.approx(0.01)
    assert got[:8] == sorted(got[:8])
    assert got[8:20] == sorted(got[8:20], reverse=True)


def test_the_cosine_ends_near_zero_and_goes_on_periodically():
    got = rates(40, warmup_epochs=2, epochs=3)
    for i in range(8, 40):
        assert got[i] == pytest.approx(1e-8 + (0.01 - 1e-8) / 2 * (1 + math.cos(math.pi * (i - 8) / 12)), rel=1e-12)
    assert got[20] == pytest.approx(1e-8)
    assert got[32] == pytest.approx(0.01)


@pytest.mark.parametrize("warmup", [True, False])
def test_the_lowest_rate_can_be_set(warmup):
    got = rates(21, warmup=warmup, warmup_epochs=2, epochs=3, eta_min=0.004)
    assert min(got[8:] if warmup else got) == pytest.approx(0.004)
    assert got[20 if warmup else 12] == pytest.approx(0.004)


def test_no_warm_up_starts_at_the_base():
    got = rates(12, warmup=False, warmup_epochs=5, epochs=3)
    assert got[0] == 0.01
    assert got[6] == pytest.approx(0.005)
    assert make_schedule(OptConfig(warmup=False, epochs=3), 4).total == 12
    zero = rates(12, warmup_epochs=0, epochs=3)
    assert zero[0] == pytest.approx(0.01)
    assert zero == sorted(zero, reverse=True)


def test_a_single_warm_up_iteration():
    assert rates(3, iters=1, warmup_epochs=1, epochs=2)[:2] == [0.0, 0.01]


@pytest.mark.parametrize("warmup", [True, False])
def test_multistep_counts_after_the_warm_up(warmup):
    first = 8 if warmup else 0
    got = rates(30, warmup=warmup, warmup_epochs=2, epochs=5, schedule_type="multistep", schedule_steps=(1, 3),
                schedule_gamma=0.5)[first:]
    assert got[:20] == pytest.approx([0.01] * 4 + [0.005] * 8 + [0.0025] * 8)


def test_the_saved_state_has_the_published_entries():
    schedule = make_schedule(OptConfig(warmup_epochs=2, epochs=3), 4)
    state = schedule.state(5, 2)
    assert (state["last_epoch"], state["warmup_epochs"], state["max_epochs"]) == (5, 8, 20)
    assert state["_last_lr"] == [schedule.at(5)] * 2


def test_rate_scaling_follows_the_videos_per_step():
    def factor(videos, **opt):
        return rate_factor(OptConfig(**opt), videos)
    assert factor(64) == 1.0
    assert factor(64, lr_scaling="linear", lr_reference_batch=2) == 32
    assert factor(1, lr_scaling="linear", lr_reference_batch=4) == 0.25
    assert factor(32, lr_scaling="sqrt", lr_reference_batch=2) == 4
    opt = OptConfig(learning_rate=0.01, warmup=False)
    assert make_schedule(opt, 10, 4.0).at(0) == pytest.approx(0.04)
    assert make_schedule(opt, 10) == make_schedule(opt, 10, 1.0)
