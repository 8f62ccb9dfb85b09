"""Points: the time steps of every FPN level, each with the segment lengths it is responsible for."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
