"""Losses of one batch, by the route of a training step (see libs/engine/training/objective.py)."""
from __future__ import annotations

from torch import Tensor

from libs.datasets.loading.batch import Batch
from libs.engine.training.objective import DetectionObjective
from libs.modeling.losses.detection import DetectionLoss, Losses
from libs.modeling.model import LevelOutputs


def losses_of(objective: DetectionObjective, batch: Batch) -> Losses:
    """Losses of a step of one batch; moves the normalizer."""
    part = objective.prepare(batch)
    objective.update_normalizer(part.denominators)
    return objective(part, part.denominators)


def detection_losses(criterion: DetectionLoss, outputs: LevelOutputs, segments: Tensor, labels: Tensor,
                     present: Tensor) -> Losses:
    """Losses of outputs whose videos all have annotations; moves the normalizer."""
    targets = criterion.assign(outputs.points, segments, labels, present)
    videos = len(labels)
    criterion.update_normalizer(criterion.denominators(targets, outputs.mask, videos, videos))
    return criterion(outputs, targets, outputs.mask)
