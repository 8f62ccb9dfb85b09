"""Detection losses: focal classification loss, centre-distance IoU regression loss, and their running normaliser.

Sums run over masked tensors of fixed shape, so nothing is read back from the device during a training step.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.core.schema import Config
from libs.modeling.model import LevelOutputs
from libs.modeling.points import PointGrid
from libs.modeling.targets import Targets, assign_targets

MOMENTUM = 0.9
EPS = 1e-8


Sums = dict[str, Tensor]  # what losses are divided by, each a sum over the videos of a batch, float32: () or (levels,)


class Losses(NamedTuple):
    """Scalars of one step; `terms` holds every logged part by name, `final` is what is minimised.

    Where a step's batch lies in several parts (accumulation, several processes), a part's losses are divided by the sums of the
    whole batch, so those of all parts add up to those of the batch.
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

    Where a prediction equals its target, min and max have a kink: the gradient there is the target's, as in the published
    program (the two halves that torch.minimum would give differ from it).
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


class DetectionLoss(nn.Module):
    """Classification + regression loss of `LevelOutputs` against ground truth (SPEC items 31 to 34).

    `normalizer` is the running number of positives, float32 on the device; it is training state, saved in checkpoints under
    its own key, and never part of the model's weights.
    """

    def __init__(self, config: Config):
        super().__init__()
        train = config.train_cfg
        self.num_classes = config.dataset.num_classes
        self.center_sample, self.radius = train.center_sample, train.center_sample_radius
        self.smoothing, self.loss_weight = train.label_smoothing, train.loss_weight
        self.register_buffer("normalizer", torch.tensor(float(train.init_loss_norm)), persistent=False)

    def forward(self, outputs: LevelOutputs, segments_BN2: Tensor, labels_BN: Tensor, present_BN: Tensor) -> Losses:
        """Losses of a batch; each call also updates the normaliser.  Arguments as in `assign_targets`."""
        targets = self.assign(outputs, segments_BN2, labels_BN, present_BN)
        videos = len(labels_BN)
        self.advance(self.sums(targets, outputs.mask, videos, videos))
        return self.losses(outputs, targets)

    @torch.no_grad()
    def assign(self, grid: LevelOutputs | PointGrid, segments_BN2: Tensor, labels_BN: Tensor, present_BN: Tensor) -> Targets:
        """The targets of the points of some outputs, or of the outputs to come."""
        return assign_targets(grid.points, segments_BN2, labels_BN, present_BN, self.num_classes, self.center_sample, self.radius)

    @torch.no_grad()
    def sums(self, targets: Targets, mask_BP: Tensor, videos: int, labelled: int) -> Sums:
        """What the normaliser needs to know of a batch, or of a part of one: its positives, its videos, and how many of them have
        annotations (points of the others are masked out of `mask_BP`)."""
        positives = ((targets.classes.sum(-1) > 0) & mask_BP).sum().to(torch.float32)
        return {"positives": positives, "videos": torch.full_like(positives, videos),
                "labelled": torch.full_like(positives, labelled)}

    @torch.no_grad()
    def advance(self, sums: Sums) -> None:
        """Move the normaliser by one step, with the sums of the step's whole batch; before `losses`.

        It counts as if all videos had annotations, and stays as it is where none has: else it would sink in batches without
        annotations, and the next annotated video would weigh far too much.
        """
        count = sums["positives"].clamp(min=1.0) / (sums["labelled"] / sums["videos"])
        moved = MOMENTUM * self.normalizer + (1 - MOMENTUM) * count
        self.normalizer.copy_(torch.where(sums["labelled"] > 0, moved, self.normalizer))

    def losses(self, outputs: LevelOutputs, targets: Targets, everywhere: Callable[[Tensor], Tensor] | None = None) -> Losses:
        """Losses with given targets, of a batch or of a part of one, with the normaliser as `advance` left it.

        `everywhere`: brings the automatic loss weight's two sums, classification and regression loss (2,), from this part to the
        whole batch; None: this is the whole batch.
        """
        with torch.no_grad():
            positive = (targets.classes.sum(-1) > 0) & outputs.mask
            classes = targets.classes
            if self.smoothing > 0:
                classes = classes * (1 - self.smoothing) + self.smoothing / (self.num_classes + 1)
            normalizer = self.normalizer.clone()
        per_class = focal_loss(outputs.logits.float(), classes)
        cls = torch.where(outputs.mask.unsqueeze(-1), per_class, 0.0).sum() / normalizer
        # points without a segment compare a constant with itself: no loss, no gradient, and no NaN from either
        pred = torch.where(positive.unsqueeze(-1), outputs.offsets.float(), 1.0)
        wanted = torch.where(positive.unsqueeze(-1), targets.offsets, 1.0)
        reg = torch.where(positive, diou_loss(pred, wanted), 0.0).sum() / normalizer
        return Losses(cls + self._weight(cls.detach(), reg.detach(), everywhere) * reg, {"cls_loss": cls, "reg_loss": reg})

    @property
    def balances(self) -> bool:
        """Whether the weight of the regression loss follows the losses (train_cfg.loss_weight <= 0)."""
        return self.loss_weight <= 0

    def _weight(self, cls: Tensor, reg: Tensor, everywhere: Callable[[Tensor], Tensor] | None) -> float | Tensor:
        if not self.balances:
            return self.loss_weight
        if everywhere is not None:
            cls, reg = everywhere(torch.stack([cls, reg])).unbind()
        return cls / reg.clamp(min=0.01)
