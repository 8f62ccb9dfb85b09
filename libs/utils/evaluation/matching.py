"""Who overlaps whom, and who gets what: the array operations under every evaluator.

    groups = Groups.of(key_of_others)                         rows of one class of one video stand together
    for index, other, iou in overlapping_pairs(...):          every pair of one group that overlaps enough, a part at a time
        order = best_first(index, other, iou)                 each one's wishes by descending IoU
        taken |= pick_in_order(index[order], other[order], iou[order] >= tious[:, None], taken) >= 0

All videos, classes and thresholds go through each call together; a part never has more than about `_PAIRS_AT_ONCE` pairs, so
memory does not grow with the number of pairs.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_PAIRS_AT_ONCE = 1 << 17  # about 25 MB with ten thresholds; larger parts leave the cache


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows by group: `rows` (n,) row numbers, group by group and in input order inside; group g (with key `keys[g]`) is
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
        """Group number of each key (m,), -1 where no row has it."""
        if len(self.keys) == 0:
            return np.full(len(key), -1)
        place = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        return np.where(self.keys[place] == key, place, -1)


def overlapping_pairs(segments: np.ndarray, group: np.ndarray, others: np.ndarray, groups: Groups, at_least: float,
                      hull: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of `segments` (2, n) and `others` (2, m), starts over ends, of one group whose IoU is at least `at_least` > 0.

    group (n,): the group of each segment in `groups` (which groups the rows of `others`), -1 for none.
    hull: divide by the time from the first start to the last end, the same number for overlapping segments but for rounding.
    Yields (segment index, other index, IoU), float64, ordered by segment, then by the other's index; all pairs of a segment
    come in the same part.
    """
    index = np.flatnonzero(group >= 0)
    sizes = groups.size[group[index]]
    part = (np.cumsum(sizes) - 1) // _PAIRS_AT_ONCE
    edges = np.flatnonzero(np.diff(part, prepend=-1, append=-1))
    for begin, end in pairwise(edges):
        mine, size = index[begin:end], sizes[begin:end]
        shift = groups.first[group[mine]] - (np.cumsum(size) - size)
        other = groups.rows[np.arange(size.sum()) + np.repeat(shift, size)]
        yield _iou_of_pairs(segments, others, np.repeat(mine, size), other, at_least, hull)


def best_first(chooser: np.ndarray, preference: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Order (n,) of pairs sorted by `chooser`: chooser, descending IoU, ascending preference (distinct for a chooser)."""
    order = np.arange(len(chooser))
    same = chooser[1:] == chooser[:-1]
    several = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))  # most choosers have one wish: nothing to sort
    order[several] = several[np.lexsort((preference[several], -iou[several], chooser[several]))]
    return order


def pick_in_order(chooser: np.ndarray, option: np.ndarray, accepted: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """In each row of `accepted` choosers take turns, the lowest first, each its best option that is still free.

    chooser, option (n,): the wishes, sorted by chooser and inside by descending preference; accepted (rows, n) bool: the wishes
    that count in a row, of each chooser a leading part; taken (rows, options) bool: not to be had any more.
    Returns (rows, options): who took each option now, or -1.
    All choose at once; an option stays with the first in line of those who want it, and the others move on to their next,
    until nobody has to move.  Because every option prefers the same order, the outcome is that of taking turns.
    """
    rows, num_options = taken.shape
    first = np.flatnonzero(np.diff(chooser, prepend=-1))
    number = len(first)  # choosers are numbered 0 ... number - 1 here, and on through the rows
    none = rows * number
    cursor = np.tile(first, rows)
    end = cursor + np.stack([np.add.reduceat(row, first, dtype=np.int64) for row in accepted]).reshape(-1)
    holder = np.where(taken, -1, none).reshape(-1)  # -1 comes before everybody
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
    touching = np.flatnonzero(shared > 0)  # without shared time the IoU is 0, which is never enough
    i, j, shared = i[touching], j[touching], shared[touching]
    (a_start, a_end), (b_start, b_end) = a[:, i], b[:, j]
    if hull:
        union = np.maximum(a_end, b_end) - np.minimum(a_start, b_start)
    else:
        union = (b_end - b_start) + (a_end - a_start) - shared
    iou = shared / union
    enough = iou >= at_least
    return i[enough], j[enough], iou[enough]
