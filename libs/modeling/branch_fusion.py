"""Attentive fusion of two branches that read the same input, level by level."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BranchFusion(nn.Module):
    """g a + (1 - g) m with g = sigmoid(W [a; m] + b), per level, time step and channel; starts as the mean of the branches.

    After the local attentive fusion of appearance and motion features in "Decomposed cross-modal distillation for RGB-based
    temporal action detection" (Lee et al., CVPR 2023); this attention sees one time step.
    """

    def __init__(self, width: int, levels: int):
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(levels))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, appearance: Sequence[Tensor], motion: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps (B, T_l, C) per level of both branches -> fused ones."""
        return [m + torch.sigmoid(gate(torch.cat([a, m], dim=-1))) * (a - m)
                for gate, a, m in zip(self.gates, appearance, motion, strict=True)]
