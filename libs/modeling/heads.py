"""Classification and regression heads, shared by all FPN levels."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.core.schema import Config
from libs.modeling.blocks import LayerNorm, MaskedConv1D, Scale

EMPTY_CLASS_PROB = 1e-6


def logit(probability: float) -> float:
    """The logit of a probability."""
    return -math.log((1.0 - probability) / probability)


class HeadTower(nn.Module):
    """The hidden layers of a head: masked conv (dense or separable, model.head_type), norm, ReLU."""

    def __init__(self, config: Config):
        super().__init__()
        model = config.model
        layers, with_ln = model.head_num_layers - 1, model.head_with_ln
        separable = model.head_type == "separable"
        self.head = nn.ModuleList(
            MaskedConv1D(model.fpn_dim if i == 0 else model.head_dim, model.head_dim, model.head_kernel_size, bias=not with_ln,
                         separable=separable)
            for i in range(layers))
        self.norm = nn.ModuleList(LayerNorm(model.head_dim) if with_ln else nn.Identity() for _ in range(layers))

    def tower(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, fpn_dim) -> (B, T, head_dim)."""
        for conv, norm in zip(self.head, self.norm, strict=True):
            x_BTC = F.relu(norm(conv(x_BTC, mask_BT)))
        return x_BTC

    def output(self, config: Config, channels: int) -> MaskedConv1D:
        """The last convolution of the head."""
        model = config.model
        return MaskedConv1D(model.head_dim if self.head else model.fpn_dim, channels, model.head_kernel_size,
                            separable=model.head_type == "separable")


class ClsHead(HeadTower):
    """Class logits; the bias starts at the prior probability, that of empty classes at 1e-6."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.cls_head = self.output(config, config.dataset.num_classes)
        with torch.no_grad():
            bias = self.cls_head.bias
            bias.fill_(logit(config.train_cfg.cls_prior_prob))
            for class_id in config.train_cfg.head_empty_cls:
                bias[class_id] = logit(EMPTY_CLASS_PROB)

    def forward(self, feats: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """Per level (B, T_l, C) -> logits (B, T_l, K), 0 at padded points."""
        return [self.cls_head(self.tower(x, m), m) for x, m in zip(feats, masks, strict=True)]


class RegHead(HeadTower):
    """Distances from a point to the start and the end of its segment, in level strides, >= 0."""

    def __init__(self, config: Config, levels: int):
        super().__init__(config)
        self.scale = nn.ModuleList(Scale() for _ in range(levels))
        self.offset_head = self.output(config, 2)

    def forward(self, feats: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """Per level (B, T_l, C) -> offsets (B, T_l, 2), 0 at padded points."""
        levels = zip(self.scale, feats, masks, strict=True)
        return [F.relu(scale(self.offset_head(self.tower(x, m), m))) for scale, x, m in levels]
