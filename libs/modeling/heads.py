"""Classification and regression heads, shared by all FPN levels."""
from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.core.schema import Config
from libs.modeling.blocks.transformer import LayerNorm, MaskedConv1D, Scale
from libs.modeling.kernels.chunks import over_time

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
        self.halo = model.head_num_layers * (model.head_kernel_size // 2)
        self.head = nn.ModuleList(
            MaskedConv1D(model.fpn_dim if i == 0 else model.head_dim, model.head_dim, model.head_kernel_size, bias=not with_ln,
                         separable=separable)
            for i in range(layers))
        self.norm = nn.ModuleList(LayerNorm(model.head_dim) if with_ln else nn.Identity() for _ in range(layers))

    def run(self, last: MaskedConv1D, x_BPC: Tensor, mask_BP: Tensor, sizes: Sequence[int]) -> Tensor:
        """The hidden layers and the last one: (B, P, fpn_dim) -> (B, P, out), each of the levels (`sizes` points) by itself."""
        ends = list(itertools.accumulate(sizes))

        def layers(x: Tensor, m: Tensor, first: int) -> Tensor:
            here = [max(min(end, first + m.shape[1]) - max(end - size, first), 0) for end, size in zip(ends, sizes, strict=True)]
            here = tuple(n for n in here if n)
            for conv, norm in zip(self.head, self.norm, strict=True):
                x = F.relu(norm(conv(x, m, here)), inplace=True)
            if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
                return last(x, m, here)
            with torch.autocast(x.device.type, enabled=False):  # boundaries and scores deserve all their digits
                return last(x.float(), m, here)

        return over_time(layers, x_BPC, mask_BP, halo=self.halo)

    def output(self, config: Config, channels: int) -> MaskedConv1D:
        """The last convolution of the head."""
        model = config.model
        return MaskedConv1D(model.head_dim if self.head else model.fpn_dim, channels, model.head_kernel_size,
                            separable=model.head_type == "separable")


class ClsHead(HeadTower):
    """Class logits; the bias starts at the prior probability, that of empty classes at 1e-6.

    Empty classes: those of train_cfg.head_empty_cls and `empty_classes`.
    """

    def __init__(self, config: Config, empty_classes: Collection[int] = ()):
        super().__init__(config)
        self.cls_head = self.output(config, config.dataset.num_classes)
        with torch.no_grad():
            bias = self.cls_head.bias
            bias.fill_(logit(config.train_cfg.cls_prior_prob))
            for class_id in {*config.train_cfg.head_empty_cls, *empty_classes}:
                bias[class_id] = logit(EMPTY_CLASS_PROB)

    def forward(self, x_BPC: Tensor, mask_BP: Tensor, sizes: Sequence[int]) -> Tensor:
        """Levels (B, P, C), `sizes` points each, fine to coarse -> logits (B, P, K), 0 at padded points."""
        return self.run(self.cls_head, x_BPC, mask_BP, sizes)


class RegHead(HeadTower):
    """Distances from a point to the start and the end of its segment, in level strides, >= 0."""

    def __init__(self, config: Config, levels: int):
        super().__init__(config)
        self.scale = nn.ModuleList(Scale() for _ in range(levels))
        self.offset_head = self.output(config, 2)

    def forward(self, x_BPC: Tensor, mask_BP: Tensor, sizes: Sequence[int], first: int = 0) -> Tensor:
        """Levels (B, P, C) from number `first` on, `sizes` points each -> offsets (B, P, 2), 0 at padded points."""
        raw = self.run(self.offset_head, x_BPC, mask_BP, sizes).split(tuple(sizes), dim=1)
        return F.relu(torch.cat([scale(part) for scale, part in zip(self.scale[first:first + len(sizes)], raw, strict=True)], 1))
