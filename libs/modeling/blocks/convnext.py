"""A cheap convolutional block for students: a large depthwise kernel and one narrow MLP (after Liu et al. 2022, ConvNeXt).

A depthwise convolution costs kernel x C per step where a 1x1 one costs C x C, so its kernel can reach as far as an attention
window.  Unlike the published blocks it masks its input: padding never leaks into valid steps.
"""
from __future__ import annotations

from torch import Tensor, nn

from libs.modeling.blocks.layers import MLP, AffineDropPath, LayerNorm, MaskedConv1D
from libs.modeling.blocks.pooling import max_pool_time


class ConvNextBlock(nn.Module):
    """x + scale * MLP(LayerNorm(depthwise(x))), MLP of `expansion` x channels with GELU; `stride` > 1 downsamples both ways."""

    def __init__(self, channels: int, stride: int, kernel: int, expansion: int, dropout: float, droppath: float):
        super().__init__()
        self.stride = stride
        self.conv = MaskedConv1D(channels, channels, kernel, stride, channels)
        self.norm = LayerNorm(channels)
        self.mlp = MLP(channels, expansion, dropout)
        self.drop_path = AffineDropPath(channels, droppath)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, C) and the mask of the output steps -> (B, T / stride, C), zero at padded steps."""
        m_BT1 = mask_BT.unsqueeze(-1).float()  # the sum of all branches keeps float32, whatever precision products have
        if self.stride > 1:
            skip = max_pool_time(x_BTC, self.stride) * m_BT1
        else:
            skip = x_BTC = x_BTC * m_BT1
        return self.drop_path(skip, self.mlp(self.norm(self.conv(x_BTC, mask_BT))), mask_BT)
