"""Trident decoding of TriDet: a distance is an expectation over the `bins` + 1 steps on one side of a point, per class.

The left distance of point t and class c has the logits start[t - bins + j, c] + bins_left[t, j] at distance bins - j, the right
one end[t + j, c] + bins_right[t, j] at distance j, j = 0 .. bins (Shi et al., CVPR 2023; SPEC_FAMILY F9).  Neighbours never cross
levels.  Logits outside the level and at padded points are 0, as published, or `EXCLUDED` from the softmax (F41).
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EXCLUDED = torch.finfo(torch.float32).min / 2  # finite: where every step is excluded, at padded points, -inf gives NaN


class Boundaries(NamedTuple):
    """Logits of boundaries at every point."""

    start: Tensor  # (B, P, K), `outside` at padded points
    end: Tensor  # (B, P, K), `outside` at padded points
    outside: float = 0.0  # the logit of what lies outside the level

    def within(self, mask_BP: Tensor) -> Boundaries:
        """With neighbours that are valid points alone."""
        start, end = (torch.where(mask_BP.unsqueeze(-1), logits.float(), EXCLUDED) for logits in (self.start, self.end))
        return Boundaries(start, end, EXCLUDED)


def offsets_of_level(start_BTK: Tensor, end_BTK: Tensor, bins_BTJ: Tensor, outside: float = 0.0) -> Tensor:
    """Distances (B, T, K, 2) of all points and classes of one level; `bins_BTJ`: left bins, then right ones, J = 2 (bins + 1)."""
    left_BTN, right_BTN = bins_BTJ.float().chunk(2, dim=-1)
    bins = left_BTN.shape[-1] - 1
    before = F.pad(start_BTK.float(), (0, 0, bins, 0), value=outside).unfold(1, bins + 1, 1)  # (B, T, K, N)
    after = F.pad(end_BTK.float(), (0, 0, 0, bins), value=outside).unfold(1, bins + 1, 1)
    return _expectations(before + left_BTN.unsqueeze(2), after + right_BTN.unsqueeze(2))


def offsets_of_pairs(boundaries: Boundaries, bins_BPJ: Tensor, sizes: Sequence[int], video_M: Tensor, point_M: Tensor,
                     class_M: Tensor) -> Tensor:
    """Distances (M, 2) of M triples of video, point and class; `sizes`: points per level."""
    left_MN, right_MN = bins_BPJ[video_M, point_M].float().chunk(2, dim=-1)
    bins, first = left_MN.shape[-1] - 1, 0
    limits = []  # per point: the first of its level, and that of the next
    for size in sizes:
        limits.append(torch.tensor([first, first + size], device=point_M.device).expand(size, 2))
        first += size
    low_M1, high_M1 = torch.cat(limits)[point_M].unsqueeze(1).unbind(-1)
    step_N = torch.arange(bins + 1, device=point_M.device)

    def neighbours(logits_BPK: Tensor, at_MN: Tensor) -> Tensor:
        found = logits_BPK[video_M.unsqueeze(1), at_MN.clamp(0, first - 1), class_M.unsqueeze(1)].float()
        return torch.where((at_MN >= low_M1) & (at_MN < high_M1), found, boundaries.outside)

    before = neighbours(boundaries.start, point_M.unsqueeze(1) - bins + step_N)
    after = neighbours(boundaries.end, point_M.unsqueeze(1) + step_N)
    return _expectations(before + left_MN, after + right_MN)


def _expectations(left: Tensor, right: Tensor) -> Tensor:
    """Logits (..., bins + 1) of left and right distances -> expected distances (..., 2)."""
    distance = torch.arange(left.shape[-1], dtype=left.dtype, device=left.device)
    # not a matrix product, whose last bit depends on how many rows there are, and so on the other candidates
    return torch.stack(((left.softmax(-1) * distance.flip(0)).sum(-1), (right.softmax(-1) * distance).sum(-1)), dim=-1)
