"""Label assignment: the ground-truth segment of each point (SPEC item 31; Zhang et al. 2022, section 3.3)."""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_AT_ONCE = 1024  # segments compared with all points at a time, to bound memory
SAME_LENGTH = 1e-3  # segments whose length is within this of the shortest one share a point's class target


class Targets(NamedTuple):
    """Training targets of the points; B videos, P points, K classes."""

    classes: Tensor  # (B, P, K) float, multi-hot
    offsets: Tensor  # (B, P, 2) float, distances to start and end in level strides; meaningful at positive points only
    weights: Tensor | None = None  # (B, P) float, of positive points in the losses; None: 1

    @property
    def positive(self) -> Tensor:
        """(B, P) bool: points with at least one class."""
        return self.classes.sum(-1) > 0


def assign_targets(points_P4: Tensor, segments_BN2: Tensor, labels_BN: Tensor, present_BN: Tensor, num_classes: int,
                   center_sample: str, radius: float) -> Targets:
    """Assign every point to the shortest segment that contains it and lies within the regression range of its level.

    `points_P4`: t, range low, range high, stride; `segments_BN2` float32 grid units; `labels_BN` int64; `present_BN` bool,
    False for padding.  `center_sample` 'radius': only points within `radius` strides of the centre;
    'none': anywhere inside.  Nothing is read back from the device.
    """
    B, N = labels_BN.shape
    if N == 0:
        P = points_P4.shape[0]
        return Targets(segments_BN2.new_zeros(B, P, num_classes), segments_BN2.new_zeros(B, P, 2))

    def lengths(part: int) -> Tensor:
        chosen = slice(part, part + MOST_AT_ONCE)
        return eligible_lengths(points_P4, segments_BN2[:, chosen], present_BN[:, chosen], center_sample, radius)

    length = lengths(0)
    shortest, owner = length.min(dim=2).values, length.argmin(dim=2)  # argmin: the first of equals
    for part in range(MOST_AT_ONCE, N, MOST_AT_ONCE):
        length = lengths(part)
        found = length.min(dim=2).values
        owner = torch.where(found < shortest, length.argmin(dim=2) + part, owner)
        shortest = torch.minimum(shortest, found)
    # labels of absent segments may be anything: their column of `sharing` is False
    one_hot = F.one_hot(labels_BN.clamp(0, num_classes - 1), num_classes).to(length.dtype)
    classes = one_hot.new_zeros(B, points_P4.shape[0], num_classes)
    for part in range(0, N, MOST_AT_ONCE):
        length = lengths(part) if N > MOST_AT_ONCE else length
        classes = classes + sharing(length, shortest).to(length.dtype) @ one_hot[:, part:part + MOST_AT_ONCE]
    return Targets(classes.clamp(max=1.0), offsets_to(points_P4, segments_BN2, owner))


def eligible_lengths(points_P4: Tensor, segments_BN2: Tensor, present_BN: Tensor, center_sample: str, radius: float) -> Tensor:
    """(B, P, N): length of each segment at the points that may be assigned to it, infinite elsewhere."""
    t, low, high, stride = (points_P4[:, i].reshape(1, -1, 1) for i in range(4))
    start, end = segments_BN2[:, None, :, 0], segments_BN2[:, None, :, 1]  # (B, 1, N)
    left, right = t - start, end - t  # (B, P, N)
    if center_sample == "radius":
        center = 0.5 * (start + end)
        inside_left = t - torch.maximum(center - stride * radius, start)
        inside_right = torch.minimum(center + stride * radius, end) - t
    else:
        inside_left, inside_right = left, right
    reach = torch.maximum(left, right)
    eligible = (torch.minimum(inside_left, inside_right) > 0) & (reach >= low) & (reach <= high) & present_BN[:, None]
    return torch.where(eligible, end - start, torch.full((), float("inf"), device=left.device))


def sharing(length_BPN: Tensor, shortest_BP: Tensor) -> Tensor:
    """(B, P, N) bool: segments, by their `eligible_lengths`, whose classes a point gets."""
    return (length_BPN <= shortest_BP.unsqueeze(2) + SAME_LENGTH) & (length_BPN < float("inf"))


def offsets_to(points_P4: Tensor, segments_BN2: Tensor, owner_BP: Tensor) -> Tensor:
    """(B, P, 2): distances from every point to start and end of its segment, given by number, in level strides."""
    t_P, nearest = points_P4[:, 0], segments_BN2.gather(1, owner_BP[:, :, None].expand(-1, -1, 2))  # (B, P, 2)
    return torch.stack((t_P - nearest[:, :, 0], nearest[:, :, 1] - t_P), dim=2) / points_P4[:, 3].reshape(1, -1, 1)
