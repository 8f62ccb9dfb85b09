"""Classification and regression heads, shared by all FPN levels, concatenated along time: P points, fine to coarse."""
from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.core.schema import Config
from libs.modeling.blocks.layers import LayerNorm, MaskedConv1D, Scale

EMPTY_CLASS_PROB = 1e-6


def logit(probability: float) -> float:
    """The logit of a probability."""
    return -math.log((1.0 - probability) / probability)


class Head(nn.Module):
    """The hidden layers of a head: masked conv (dense or separable, model.head_type), norm, ReLU.

    `kernel`: taps of all convs (None: model.head_kernel_size).
    """

    def __init__(self, config: Config, kernel: int | None = None):
        super().__init__()
        model = config.model
        self.kernel = kernel or model.head_kernel_size
        layers, with_ln = model.head_num_layers - 1, model.head_with_ln
        self.head = nn.ModuleList(
            MaskedConv1D(model.fpn_dim if i == 0 else model.head_dim, model.head_dim, self.kernel, bias=not with_ln,
                         separable=model.head_type == "separable")
            for i in range(layers))
        self.norm = nn.ModuleList(LayerNorm(model.head_dim) if with_ln else nn.Identity() for _ in range(layers))

    def output(self, config: Config, channels: int) -> MaskedConv1D:
        """The last convolution of the head."""
        model = config.model
        return MaskedConv1D(model.head_dim if self.head else model.fpn_dim, channels, self.kernel,
                            separable=model.head_type == "separable")

    def run(self, last: MaskedConv1D, x_BPC: Tensor, mask_BP: Tensor, sizes: Sequence[int]) -> Tensor:
        """The hidden layers and the last one: (B, P, fpn_dim) -> (B, P, out), each level (`sizes` points) separately."""
        for conv, norm in zip(self.head, self.norm, strict=True):
            x_BPC = F.relu(norm(conv(x_BPC, mask_BP, sizes)), inplace=True)
        if x_BPC.device.type == "meta" or not torch.is_autocast_enabled(x_BPC.device.type):
            return last(x_BPC, mask_BP, sizes)
        with torch.autocast(x_BPC.device.type, enabled=False):  # outputs in full precision
            return last(x_BPC.float(), mask_BP, sizes)


class ClsHead(Head):
    """Logits of classes, or of their starts or ends; the bias starts at the prior probability, that of empty classes at 1e-6.

    Empty classes: those of train_cfg.head_empty_cls and `empty_classes`.
    """

    def __init__(self, config: Config, empty_classes: Collection[int] = (), kernel: int | None = None):
        super().__init__(config, kernel)
        self.cls_head = self.output(config, config.dataset.num_classes)
        prior_K = torch.full((config.dataset.num_classes,), logit(config.train_cfg.cls_prior_prob))
        prior_K[[*config.train_cfg.head_empty_cls, *empty_classes]] = logit(EMPTY_CLASS_PROB)
        with torch.no_grad():
            self.cls_head.bias.copy_(prior_K)

    def forward(self, x_BPC: Tensor, mask_BP: Tensor, sizes: Sequence[int]) -> Tensor:
        """Levels (B, P, C), `sizes` points each -> logits (B, P, K), 0 at padded points."""
        return self.run(self.cls_head, x_BPC, mask_BP, sizes)


class RegHead(Head):
    """Distances from a point to the start and the end of its segment, in level strides, >= 0.

    With model.use_trident_head: the bins of both distances (`libs.modeling.trident`), 2 (num_bins + 1) in all.
    """

    def __init__(self, config: Config, levels: int):
        super().__init__(config)
        self.scale = nn.ModuleList(Scale() for _ in range(levels))
        self.offset_head = self.output(config, 2 * (config.model.num_bins + 1) if config.model.use_trident_head else 2)
        with torch.no_grad():
            self.offset_head.bias.add_(config.model.offset_bias)

    def forward(self, x_BPC: Tensor, mask_BP: Tensor, sizes: Sequence[int]) -> Tensor:
        """Levels (B, P, C), `sizes` points each -> offsets (B, P, 2), or bins, 0 at padded points."""
        levels = self.run(self.offset_head, x_BPC, mask_BP, sizes).split(list(sizes), dim=1)
        return F.relu(torch.cat([scale(level) for scale, level in zip(self.scale, levels, strict=True)], dim=1))
