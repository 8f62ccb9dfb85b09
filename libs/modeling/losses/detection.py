"""Detection losses: focal classification loss, centre-distance IoU regression loss, and their running normalizer; consistency.

Losses are summed over masked tensors of fixed shape, so nothing is read back from the device during a training step.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.core.schema import Config
from libs.modeling.losses.targets import Targets, assign_targets
from libs.modeling.model import LevelOutputs

MOMENTUM = 0.9
EPS = 1e-8

Denominators = dict[str, Tensor]  # what losses are divided by, each summed over the videos of a batch, float32: () or (levels,)


class Losses(NamedTuple):
    """Scalar losses of a micro-batch: `final` is minimized, `terms` holds every logged part by name.

    All are divided by the denominators of the whole step (all micro-batches, all processes), so those of the micro-batches add
    up to the losses of the step.
    """

    final: Tensor
    terms: dict[str, Tensor]


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss per entry with soft targets in [0, 1] (Lin et al. 2017), same shape as `logits`."""
    p = torch.sigmoid(logits)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    return alpha_t * cross_entropy * (1 - p_t) ** gamma


def iou_offsets(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """tIoU of two segments around one point, given as offsets (..., 2) >= 0, and the length of their hull.

    Where a prediction equals its target, min and max have a kink; as in the published program the gradient there is that of the
    target (torch.minimum would give half to each).
    """
    inner = torch.where(pred < target, pred, target).sum(-1)
    union = pred.sum(-1) + target.sum(-1) - inner
    return inner / union.clamp(min=EPS), torch.where(pred > target, pred, target).sum(-1)


def giou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - tIoU per pair of offsets (..., 2); segments around one point always overlap, so GIoU is IoU."""
    return 1 - iou_offsets(pred, target)[0]


def diou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """1 - tIoU + (centre distance / hull)^2 per pair of offsets (..., 2) (Zheng et al. 2020, in one dimension)."""
    iou, hull = iou_offsets(pred, target)
    rho = 0.5 * (pred[..., 1] - pred[..., 0] - target[..., 1] + target[..., 0])
    return 1 - iou + torch.square(rho / hull.clamp(min=EPS))


def js_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence of one Bernoulli variable per class, logits (..., K), summed over classes -> (...) <= K ln 2."""
    total = logits.new_zeros(())
    for sign in (1, -1):  # the class, and its absence
        log_p, log_q = F.logsigmoid(sign * logits), F.logsigmoid(sign * other)
        log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
        total = total + 0.5 * (log_p.exp() * (log_p - log_mean) + log_q.exp() * (log_q - log_mean))
    return total.sum(-1)


def consistency_losses(outputs: LevelOutputs, clean: LevelOutputs, targets: Targets, positive_BP: Tensor, count: Tensor
                       ) -> dict[str, Tensor]:
    """What predictions change when feature vectors are hidden, as means over `count` positive points, by their logged names.

    `consistency_cls`: Jensen-Shannon divergence of class scores; `consistency_reg`: 1 - tIoU of segments (those of the target's
    class, where they differ by class).  After the consistency term of Zeng et al. (CVPR 2024); `clean`, the predictions for the
    whole features, are a fixed target, so that hidden features cannot make them worse.
    """
    owner_BP = targets.classes.argmax(-1)
    pred, wanted = outputs.offsets_at(owner_BP), clean.offsets_at(owner_BP)
    # elsewhere a constant against itself: no gradient, and none where both agree (1 - tIoU of two segments without length is 1)
    used = (positive_BP & (pred != wanted).any(-1)).unsqueeze(-1)
    each = {"consistency_cls": js_divergence(outputs.logits, clean.logits),
            "consistency_reg": giou_loss(torch.where(used, pred, 1.0), torch.where(used, wanted, 1.0))}
    return {name: torch.where(positive_BP, value, 0.0).sum() / count.clamp(min=1.0) for name, value in each.items()}


def _regression(pred: Tensor, targets: Targets, positive_BP: Tensor) -> Tensor:
    """The sum of the DIoU loss of offsets (B, P, 2) over positive points, times their weights."""
    # points without a segment compare a constant with itself: no loss, no gradient, and no NaN from either
    pred = torch.where(positive_BP.unsqueeze(-1), pred.float(), 1.0)
    wanted = torch.where(positive_BP.unsqueeze(-1), targets.offsets, 1.0)
    each = diou_loss(pred, wanted) if targets.weights is None else targets.weights * diou_loss(pred, wanted)
    return torch.where(positive_BP, each, 0.0).sum()


class DetectionLoss(nn.Module):
    """Classification + regression loss of `LevelOutputs` against ground truth (SPEC items 31 to 34).

    A training step calls `assign` and `denominators` for each micro-batch, `update_normalizer` once with the denominators of all
    micro-batches, and then `forward` for each.

    `normalizer` is the running number of positives, float32 on the device; it is training state, saved in checkpoints under
    its own key, and never part of the model's weights.
    """

    def __init__(self, config: Config, all_reduce: Callable[[Tensor], Tensor] = lambda value: value):
        """`all_reduce` sums a tensor over the processes that train together; the automatic loss weight depends on all of them."""
        super().__init__()
        train = config.train_cfg
        self.num_classes = config.dataset.num_classes
        self.center_sample, self.radius = train.center_sample, train.center_sample_radius
        if config.model.assigner.type == "cost":
            self.center_sample, self.radius = "radius", config.model.assigner.center_radius
        self.smoothing, self.loss_weight, self.all_reduce = train.label_smoothing, train.loss_weight, all_reduce
        self.iou_power, self.iou_gradient = config.model.iou_weight_power, train.iou_weight_gradient
        self.normalizer: Tensor
        self.register_buffer("normalizer", torch.tensor(float(train.init_loss_norm)), persistent=False)

    @torch.no_grad()
    def assign(self, points_P4: Tensor, segments_BN2: Tensor, labels_BN: Tensor, present_BN: Tensor) -> Targets:
        """The targets of all points; arguments as in `assign_targets`."""
        return assign_targets(points_P4, segments_BN2, labels_BN, present_BN, self.num_classes, self.center_sample, self.radius)

    @torch.no_grad()
    def denominators(self, targets: Targets, mask_BP: Tensor, videos: int, labelled: int) -> Denominators:
        """Positive points, videos and videos with annotations of a micro-batch; `mask_BP`: points that count, as in `forward`."""
        positives = (targets.positive & mask_BP).sum().to(torch.float32)
        return {"positives": positives, "videos": torch.full_like(positives, videos),
                "labelled": torch.full_like(positives, labelled)}

    @torch.no_grad()
    def update_normalizer(self, denominators: Denominators) -> None:
        """Move the normalizer by one step, given the denominators of the whole step.

        The positives are scaled up as if every video had annotations.  Without any it is not changed: it would
        decay in steps without annotations, and the next annotated video would get far too much weight.
        """
        count = denominators["positives"].clamp(min=1.0) / (denominators["labelled"] / denominators["videos"])
        moved = MOMENTUM * self.normalizer + (1 - MOMENTUM) * count
        self.normalizer.copy_(torch.where(denominators["labelled"] > 0, moved, self.normalizer))

    def forward(self, outputs: LevelOutputs, targets: Targets, mask_BP: Tensor) -> Losses:
        """Losses of a micro-batch, divided by the normalizer.

        `mask_BP` (B, P) bool: points that count.  Points of videos without annotations do not, since they are unknown, not
        background.
        """
        with torch.no_grad():
            positive = targets.positive & mask_BP
            classes = targets.classes
            if self.smoothing > 0:
                classes = classes * (1 - self.smoothing) + self.smoothing / (self.num_classes + 1)
            normalizer = self.normalizer.clone()
        per_class = focal_loss(outputs.logits.float(), classes)
        if outputs.boundaries is None:
            reg = _regression(outputs.offsets, targets, positive) / normalizer
        else:
            weight_BPK, reg = self._pairs(outputs, targets, positive)
            per_class, reg = per_class * weight_BPK, reg / normalizer
        if targets.weights is not None:  # they lower positive points alone
            per_class = per_class * torch.where(positive, targets.weights, 1.0).unsqueeze(-1)
        cls = torch.where(mask_BP.unsqueeze(-1), per_class, 0.0).sum() / normalizer
        return Losses(cls + self._regression_weight(cls, reg) * reg, {"cls_loss": cls, "reg_loss": reg})

    def _pairs(self, outputs: LevelOutputs, targets: Targets, positive_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (B, P, K) of the classification loss, and the sum of the regression loss over all pairs of a positive point
        and a class of its target (SPEC_FAMILY F13).

        The weight of a pair is its IoU to the power of model.iou_weight_power, 1 elsewhere.  The host waits for the number of
        pairs.
        """
        pairs = ((targets.classes > 0) & positive_BP.unsqueeze(-1)).nonzero().unbind(1)
        pred, wanted = outputs.offsets_of(*pairs), targets.offsets[pairs[:2]]
        weight_BPK = torch.ones_like(outputs.logits, dtype=torch.float32)
        if self.iou_power > 0:
            iou = iou_offsets(pred, wanted)[0]
            iou = iou if self.iou_gradient else iou.detach()
            # at 0 the derivative of a root is infinite: there the weight is a constant
            weight = torch.where(iou > 0, torch.where(iou > 0, iou, 1.0) ** self.iou_power, 0.0)
            weight_BPK = weight_BPK.index_put(pairs, weight)
        return weight_BPK, diou_loss(pred, wanted).sum()

    @torch.no_grad()
    def _regression_weight(self, cls: Tensor, reg: Tensor) -> float | Tensor:
        """train_cfg.loss_weight if positive, otherwise the ratio of both losses over all processes (SPEC item 34)."""
        if self.loss_weight > 0:
            return self.loss_weight
        cls, reg = self.all_reduce(torch.stack([cls, reg])).unbind()
        return cls / reg.clamp(min=0.01)
