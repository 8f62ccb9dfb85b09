"""A cheap convolutional block for students: a large depthwise kernel and one narrow MLP (after Liu et al. 2022, ConvNeXt).

A depthwise convolution costs kernel x C per step where a 1x1 one costs C x C, so its kernel can reach as far as an attention
window.  Unlike the published blocks it masks its input: padding never leaks into valid steps.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from libs.modeling.blocks.transformer import AffineDropPath, LayerNorm, MaskedConv1D, add_branch, gelu, max_pool_time, pointwise


class ConvNextBlock(nn.Module):
    """x + scale * MLP(LayerNorm(depthwise(x))), MLP of `expansion` x channels with GELU; `stride` > 1 downsamples both ways."""

    def __init__(self, channels: int, stride: int, kernel: int, expansion: int, dropout: float, droppath: float):
        super().__init__()
        self.stride, self.halo = stride, kernel // 2 + 1
        self.conv = MaskedConv1D(channels, channels, kernel, stride, channels)
        self.norm = LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Conv1d(channels, expansion * channels, 1), nn.GELU(), nn.Dropout(dropout),
                                 nn.Conv1d(expansion * channels, channels, 1), nn.Dropout(dropout))
        self.drop_path = AffineDropPath(channels, droppath) if droppath > 0 else nn.Identity()

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, C) and the mask of the output steps -> (B, T / stride, C), zero at padded steps."""
        m = mask_BT.unsqueeze(-1).to(torch.promote_types(x_BTC.dtype, torch.float32))
        if self.stride > 1:
            skip = max_pool_time(x_BTC, self.stride) * m
        else:
            skip = x_BTC = x_BTC * m
        hidden = self.mlp[2](gelu(pointwise(self.norm(self.conv(x_BTC, mask_BT)), self.mlp[0])))
        return add_branch(skip, hidden, self.mlp[3], self.mlp[4], self.drop_path, mask_BT)
