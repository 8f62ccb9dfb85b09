"""The residual block of the convolutional backbones."""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from libs.modeling.blocks.layers import MaskedConv1D


class ConvBlock(nn.Module):
    """Two convolutions with a residual connection, no normalisation (SPEC item 27); all dense or all separable."""

    def __init__(self, channels: int, stride: int, separable: bool = False):
        super().__init__()
        self.stride = stride
        self.conv1 = MaskedConv1D(channels, 2 * channels, 3, stride, separable=separable)
        self.conv2 = MaskedConv1D(2 * channels, channels, 3, separable=separable)
        self.downsample = MaskedConv1D(channels, channels, 1, stride, separable=separable) if stride > 1 else None

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, C) and the mask of the output steps -> (B, T / stride, C); stride 1 leaves padded steps unmasked."""
        skip = x_BTC if self.downsample is None else self.downsample(x_BTC, mask_BT)
        return F.relu(self.conv2(F.relu(self.conv1(x_BTC, mask_BT), inplace=True), mask_BT) + skip, inplace=True)
