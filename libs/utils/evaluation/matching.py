"""Greedy matching of segments by IoU, the core of all evaluators, as array operations.

    groups = Groups.of(key_of_others)                         group the rows by video and class
    for index, other, iou in overlapping_pairs(...):          pairs in the same group with enough IoU, in parts
        order = best_first(index, other, iou)                 the pairs of each segment by descending IoU
        taken |= pick_in_order(index[order], other[order], iou[order] >= tious[:, None], taken) >= 0

Each call processes all videos, classes and thresholds together, in parts of about `_PAIRS_AT_ONCE` pairs, so memory does not grow
with the number of pairs.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_PAIRS_AT_ONCE = 1 << 17  # about 25 MB with ten thresholds; larger parts leave the cache


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows grouped by key: `rows` (n,) row numbers, group by group, each in input order; group g with the key `keys[g]` is
    rows[first[g] : first[g] + size[g]]."""

    keys: np.ndarray
    rows: np.ndarray
    first: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, key: np.ndarray) -> Groups:
        """Group rows by an integer key (n,)."""
        rows = np.argsort(key, kind="stable")
        ordered = key[rows]
        first = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
        return cls(ordered[first], rows, first, np.diff(first, append=len(rows)))

    def find(self, key: np.ndarray) -> np.ndarray:
        """Group number of each key (m,), -1 for a key without rows."""
        if len(self.keys) == 0:
            return np.full(len(key), -1)
        place = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        return np.where(self.keys[place] == key, place, -1)


def overlapping_pairs(segments: np.ndarray, group: np.ndarray, others: np.ndarray, groups: Groups, at_least: float,
                      hull: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of `segments` (2, n) and `others` (2, m), starts over ends, in the same group with an IoU of `at_least` > 0 or more.

    group (n,): the group of each segment in `groups` (which groups the rows of `others`), -1 for none.
    hull: divide by the time from the first start to the last end; for overlapping segments this differs by rounding only.
    Yields (segment index, other index, IoU float64), sorted by segment, then by other; all pairs of a segment are in one part.
    """
    index = np.flatnonzero(group >= 0)
    sizes = groups.size[group[index]]
    part = (np.cumsum(sizes) - 1) // _PAIRS_AT_ONCE
    edges = np.flatnonzero(np.diff(part, prepend=-1, append=-1))
    for begin, end in pairwise(edges):
        chosen, size = index[begin:end], sizes[begin:end]
        shift = groups.first[group[chosen]] - (np.cumsum(size) - size)
        other = groups.rows[np.arange(size.sum()) + np.repeat(shift, size)]
        yield _iou_of_pairs(segments, others, np.repeat(chosen, size), other, at_least, hull)


def best_first(chooser: np.ndarray, preference: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Order (n,) of pairs by chooser, descending IoU, ascending preference (distinct per chooser); input sorted by chooser."""
    order = np.arange(len(chooser))
    same = chooser[1:] == chooser[:-1]
    several = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))  # most choosers have one pair: nothing to sort
    order[several] = several[np.lexsort((preference[several], -iou[several], chooser[several]))]
    return order


def pick_in_order(chooser: np.ndarray, option: np.ndarray, accepted: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Greedy assignment in each row of `accepted`: choosers in ascending order take their best option that is still free.

    chooser, option (n,): pairs sorted by chooser, then by descending preference; accepted (rows, n) bool: the pairs that count in
    a row, the first ones of each chooser; taken (rows, options) bool: options that are not available.
    Returns (rows, options): the chooser that takes each option, or -1.
    Computed as deferred acceptance: all choosers propose at once, an option keeps its lowest proposer, and the others propose to
    their next option until none is left.  All options prefer the same order, so the result equals that of taking turns.
    """
    rows, num_options = taken.shape
    first = np.flatnonzero(np.diff(chooser, prepend=-1))
    number = len(first)  # choosers of row r are numbered r * number ... (r + 1) * number - 1
    none = rows * number
    cursor = np.tile(first, rows)
    end = cursor + np.stack([np.add.reduceat(row, first, dtype=np.int64) for row in accepted]).reshape(-1)
    holder = np.where(taken, -1, none).reshape(-1)  # -1 wins against every chooser
    active = np.flatnonzero(cursor < end)
    while active.size:
        wanted = option[cursor[active]] + active // number * num_options
        before = holder[wanted]
        np.minimum.at(holder, wanted, active)
        won = holder[wanted] == active
        displaced = before[won]
        losers = np.concatenate([active[~won], displaced[displaced < none]])
        cursor[losers] += 1
        active = losers[cursor[losers] < end[losers]]
    names = np.append(np.tile(chooser[first], rows), -1)
    return names[holder].reshape(rows, num_options)


def _iou_of_pairs(a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray, at_least: float,
                  hull: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shared = np.minimum(a[1, i], b[1, j]) - np.maximum(a[0, i], b[0, j])
    touching = np.flatnonzero(shared > 0)  # the others have an IoU of 0
    i, j, shared = i[touching], j[touching], shared[touching]
    (a_start, a_end), (b_start, b_end) = a[:, i], b[:, j]
    if hull:
        union = np.maximum(a_end, b_end) - np.minimum(a_start, b_start)
    else:
        union = (b_end - b_start) + (a_end - a_start) - shared
    iou = shared / union
    enough = iou >= at_least
    return i[enough], j[enough], iou[enough]
