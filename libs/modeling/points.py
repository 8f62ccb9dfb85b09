"""Points: the time steps of every FPN level, with the regression range and stride of the level."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PointGrid(NamedTuple):
    """Points at which the network predicts, for a batch of B videos: P points, levels fine to coarse."""

    points: Tensor  # (P, 4) as of `make_points`
    mask: Tensor  # (B, P) bool, valid points
    level_sizes: tuple[int, ...]  # points per level


def point_grid(mask_BT: Tensor, strides: Sequence[int], ranges: Sequence[Sequence[float]]) -> PointGrid:
    """The points of a batch from its valid steps (B, T); T must be a multiple of the last stride."""
    masks = [mask_BT[:, ::stride] for stride in strides]
    sizes = tuple(m.shape[1] for m in masks)
    return PointGrid(make_points(sizes, strides, ranges, mask_BT.device), torch.cat(masks, dim=1), sizes)


def make_points(level_sizes: Sequence[int], strides: Sequence[int], ranges: Sequence[Sequence[float]],
                device: torch.device | str | None = None) -> Tensor:
    """(P, 4) float32, levels fine to coarse: t, shortest and longest regressed distance, level stride, all in grid units.

    Points of a level lie at t = 0, s, 2 s, ... (no half-stride offset; SPEC item 29).
    """
    levels = []
    for size, stride, (low, high) in zip(level_sizes, strides, ranges, strict=True):
        t = torch.arange(size, dtype=torch.float32, device=device) * stride
        # filled on the device: copying numbers to a GPU would make the host wait
        levels.append(torch.stack((t, *(torch.full_like(t, value) for value in (low, high, stride))), dim=1))
    return torch.cat(levels)


def range_gaps(ranges: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Distances from 0 up to the largest that no level regresses, as [low, high] of each gap."""
    gaps, reached = [], 0.0
    for low, high in sorted(ranges):
        if low > reached:
            gaps.append((reached, low))
        reached = max(reached, high)
    return gaps
