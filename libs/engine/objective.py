"""What a training step minimises.  The loop calls `objective(batch) -> Losses` and never changes with it."""
from __future__ import annotations

from typing import Any

import torch
from torch import nn

from libs.core.schema import Config
from libs.datasets.loader import Batch
from libs.modeling.losses import DetectionLoss, Losses


class DetectionObjective(nn.Module):
    """Plain training: the detection loss of one model."""

    def __init__(self, model: nn.Module, config: Config):
        super().__init__()
        self.model = model
        self.criterion = DetectionLoss(config)

    def forward(self, batch: Batch) -> Losses:
        """Losses of a batch that lies on the model's device."""
        outputs = self.model(batch.feats, batch.mask)
        return self.criterion(outputs, batch.segments, batch.labels, batch.present)

    def training_state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the model's weights."""
        return {"loss_normalizer": float(self.criterion.normalizer)}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore `training_state`."""
        with torch.no_grad():
            self.criterion.normalizer.fill_(state["loss_normalizer"])
