"""Pairs, preferences and taking turns: each against the loop that says the same."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_twin import iou as slow_iou

from libs.utils.evaluation import matching
from libs.utils.evaluation.matching import Groups, best_first, overlapping_pairs, pick_in_order

SEGMENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 4)), max_size=15)


def arrays(rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    group, start, length = np.array(rows, np.int64).reshape(-1, 3).T
    return group, np.stack([start, start + length]).astype(np.float64)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SEGMENTS, SEGMENTS, st.sampled_from([5e-324, 0.25, 0.5, 1.0]), st.sampled_from([1, 4, 1 << 17]), st.booleans())
def test_pairs_are_those_that_overlap_enough(a: list, b: list, at_least: float, at_once: int, hull: bool) -> None:
    (group_a, segments), (group_b, others) = arrays(a), arrays(b)
    groups = Groups.of(group_b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_PAIRS_AT_ONCE", at_once)
        parts = list(overlapping_pairs(segments, groups.find(group_a), others, groups, at_least, hull))
    wanted = [(i, j, slow_iou(segments[:, i], others[:, j])) for i in range(len(a)) for j in range(len(b))
              if group_a[i] == group_b[j] and slow_iou(segments[:, i], others[:, j]) >= at_least]
    assert [pair for part in parts for pair in zip(*(x.tolist() for x in part), strict=True)] == wanted
    first_ones = [set(index.tolist()) for index, _, _ in parts]
    assert sum(map(len, first_ones)) == len(set().union(*first_ones))  # nobody's pairs are torn apart


@pytest.mark.parametrize("key", [[], [5], [3, 3, 1, 9, 1, 3]])
def test_groups(key: list[int]) -> None:
    groups = Groups.of(np.array(key, np.int64))
    members = {k: groups.rows[f:f + s].tolist() for k, f, s in zip(groups.keys.tolist(), groups.first, groups.size, strict=True)}
    assert members == {k: [i for i, other in enumerate(key) if other == k] for k in set(key)}
    found = groups.find(np.array([1, 3, 4, -1]))
    assert [groups.keys[g] if g >= 0 else None for g in found] == [k if k in key else None for k in (1, 3, 4, -1)]


def test_wishes_come_by_falling_iou_then_by_preference() -> None:
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 300):
        chooser = np.sort(rng.integers(0, count // 3 + 1, count))
        preference, iou = rng.permutation(count), rng.integers(0, 4, count) / 4
        wanted = sorted(range(count), key=lambda p: (chooser[p], -iou[p], preference[p]))
        assert best_first(chooser, preference, iou).tolist() == wanted


@pytest.mark.parametrize("seed", range(20))
def test_pick_in_order_is_taking_turns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    choosers, options, rows = 30, 12, 3
    wishes = {3 * c: rng.permutation(options)[:rng.integers(0, options)].tolist() for c in range(choosers)}
    lengths = [{c: rng.integers(0, len(wish) + 1) for c, wish in wishes.items()} for _ in range(rows)]
    taken = rng.random((rows, options)) < 0.2 * (seed % 3)
    wanted = np.full((rows, options), -1)
    for row in range(rows):
        for c, wish in wishes.items():
            free = [o for o in wish[:lengths[row][c]] if not taken[row, o] and wanted[row, o] < 0]
            if free:
                wanted[row, free[0]] = c
    chooser = np.repeat(list(wishes), [len(wish) for wish in wishes.values()])
    accepted = np.array([[n < length[c] for c, wish in wishes.items() for n in range(len(wish))] for length in lengths])
    option = np.array([o for wish in wishes.values() for o in wish], np.int64)
    np.testing.assert_array_equal(pick_in_order(chooser, option, accepted, taken), wanted)


def test_nobody_picks_nothing() -> None:
    none = np.empty(0, np.int64)
    assert pick_in_order(none, none, np.empty((2, 0), bool), np.zeros((2, 3), bool)).tolist() == [[-1] * 3] * 2
    assert pick_in_order(none, none, np.empty((2, 0), bool), np.zeros((2, 0), bool)).shape == (2, 0)
