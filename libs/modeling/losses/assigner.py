"""The assigner of TemporalMaxer: each point takes the boundaries of the segment around it that its prediction fits best.

Its class targets are those of `libs.modeling.losses.targets` and do not depend on predictions.  Regression targets and weights do
(SPEC_FAMILY F27, F28), so they are found after the forward pass, without gradients.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from libs.core.schema import AssignerConfig
from libs.modeling.losses.detection import diou_loss, focal_loss
from libs.modeling.losses.targets import MOST_AT_ONCE, Targets, eligible_lengths, offsets_to, sharing
from libs.modeling.model import LevelOutputs


def by_cost(targets: Targets, outputs: LevelOutputs, segments_BN2: Tensor, labels_BN: Tensor, present_BN: Tensor,
            config: AssignerConfig) -> Targets:
    """The targets with the classes of `assign_targets`, and regression targets and weights of `assign_by_cost`."""
    if labels_BN.shape[1] == 0:  # background alone
        return targets
    owner, weights = assign_by_cost(outputs, segments_BN2, labels_BN, present_BN, config)
    return Targets(targets.classes, offsets_to(outputs.points, segments_BN2, owner), weights)


class Assignment(NamedTuple):
    """What `assign_by_cost` finds for B videos and P points."""

    owner: Tensor  # (B, P) int64, number of the segment whose boundaries are regressed; 0 outside all
    weights: Tensor  # (B, P) float32, of positive points in the losses; 0 at padded points


@torch.no_grad()
def assign_by_cost(outputs: LevelOutputs, segments_BN2: Tensor, labels_BN: Tensor, present_BN: Tensor,
                   config: AssignerConfig) -> Assignment:
    """Owner and weight of every point, from the predictions `outputs`; ground truth as in `assign_targets`, N >= 1.

    The cost of a segment is cls_weight x focal loss against its class + iou_weight x DIoU loss against its boundaries, infinite
    outside it.  A segment's keep_percent cheapest points weigh 1, the other points inside a segment confuse_weight.
    """
    N = labels_BN.shape[1]
    background_BPK = focal_loss(outputs.logits.float(), torch.zeros_like(outputs.logits, dtype=torch.float32))
    present_loss_BPK = focal_loss(outputs.logits.float(), torch.ones_like(background_BPK))
    change_BPK, sum_BP1 = present_loss_BPK - background_BPK, background_BPK.sum(-1, keepdim=True)
    t_P1, stride_P1 = outputs.points[:, :1], outputs.points[:, 3:]
    matched_BPN = None
    if config.owner == "matched":
        length_BPN = eligible_lengths(outputs.points, segments_BN2, present_BN, "radius", config.center_radius)
        matched_BPN = sharing(length_BPN, length_BPN.min(2).values)
    lowest = torch.full_like(sum_BP1[..., 0], float("inf"))
    owner, covered, kept = (torch.zeros_like(outputs.mask, dtype=d) for d in (torch.int64, torch.bool, torch.bool))
    for part in range(0, N, MOST_AT_ONCE):
        chosen = slice(part, part + MOST_AT_ONCE)
        starts, ends = segments_BN2[:, None, chosen].unbind(-1)  # (B, 1, n)
        distances = torch.stack((t_P1 - starts, ends - t_P1), dim=-1) / stride_P1.unsqueeze(-1)  # (B, P, n, 2)
        inside = (distances >= 0).all(-1) & present_BN[:, None, chosen] & outputs.mask.unsqueeze(2)
        label = labels_BN[:, None, chosen].clamp(0, change_BPK.shape[2] - 1).expand(inside.shape)
        cost = (config.cls_weight * (sum_BP1 + change_BPK.gather(2, label))
                + config.iou_weight * diou_loss(outputs.offsets.float().unsqueeze(2), distances))
        cost = torch.where(inside, cost, float("inf"))
        covered |= inside.any(2)
        kept |= _cheapest(cost, inside, config.keep_percent).any(2)
        if matched_BPN is not None:
            cost = torch.where(matched_BPN[:, :, chosen], cost, float("inf"))
        found = cost.min(dim=2).values
        owner = torch.where(found < lowest, cost.argmin(dim=2) + part, owner)  # argmin: the first of equals
        lowest = torch.minimum(lowest, found)
    weights = torch.where(covered & ~kept, config.confuse_weight, 1.0) * outputs.mask
    return Assignment(owner, weights)


def _cheapest(cost_BPn: Tensor, inside_BPn: Tensor, share: float) -> Tensor:
    """(B, P, n) bool: for each segment the int(share x number of points inside) points of lowest cost."""
    if share == 1:
        return inside_BPn
    rank = cost_BPn.argsort(dim=1, stable=True).argsort(dim=1)
    return rank < (share * inside_BPn.sum(1, keepdim=True).double()).floor()
