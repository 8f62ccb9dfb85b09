"""The ActionFormer block: local attention and an MLP (Zhang et al., ECCV 2022; SPEC items 21 to 25)."""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from libs.modeling.blocks.layers import MLP, AffineDropPath, LayerNorm, MaskedConv1D, TimeConv
from libs.modeling.blocks.pooling import max_pool_time
from libs.modeling.kernels.band_attention import local_attention


class ConvAttention(nn.Module):
    """Multi-head attention whose queries, keys and values come from depthwise convolutions (SPEC items 23 to 25).

    `stride` > 1 downsamples queries, keys and values alike.  `window` <= 1 means global attention.
    """

    def __init__(self, channels: int, heads: int, stride: int, window: int, dropout: float, use_rel_pe: bool):
        super().__init__()
        self.heads, self.window = heads, window
        kernel = stride + 1 if stride > 1 else 3
        self.rel_pe = None
        if use_rel_pe and window > 1:
            self.rel_pe = nn.Parameter(torch.zeros(1, 1, heads, window))
            nn.init.trunc_normal_(self.rel_pe, std=math.sqrt(2.0 / channels))
        self.query_conv = MaskedConv1D(channels, channels, kernel, stride, channels, bias=False)
        self.query_norm = LayerNorm(channels)
        self.key_conv = MaskedConv1D(channels, channels, kernel, stride, channels, bias=False)
        self.key_norm = LayerNorm(channels)
        self.value_conv = MaskedConv1D(channels, channels, kernel, stride, channels, bias=False)
        self.value_norm = LayerNorm(channels)
        self.key = TimeConv(channels, channels, 1)
        self.query = TimeConv(channels, channels, 1)
        self.value = TimeConv(channels, channels, 1)
        self.proj = TimeConv(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, C) and the mask of the output steps -> (B, T / stride, C), undefined at padded steps."""
        # not masked: no valid step attends to padded ones
        q = self.query(self.query_norm(self.query_conv.conv(x_BTC)))
        k = self.key(self.key_norm(self.key_conv.conv(x_BTC)))
        v = self.value(self.value_norm(self.value_conv.conv(x_BTC)))
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in (q, k, v))
        bias = None if self.rel_pe is None else self.rel_pe[0, 0]
        return self.dropout(self.proj(local_attention(q, k, v, mask_BT, self.window, bias).flatten(2)))


class TransformerBlock(nn.Module):
    """Pre-LN transformer block with an optional downsampling by `stride` (SPEC item 21)."""

    def __init__(self, channels: int, heads: int, stride: int, window: int, dropout: float, droppath: float,
                 use_rel_pe: bool):
        super().__init__()
        self.stride = stride
        self.ln1, self.ln2 = LayerNorm(channels), LayerNorm(channels)
        self.attn = ConvAttention(channels, heads, stride, window, dropout, use_rel_pe)
        self.mlp = MLP(channels, 4, dropout)
        self.drop_path_attn, self.drop_path_mlp = AffineDropPath(channels, droppath), AffineDropPath(channels, droppath)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, C) and the mask of the output steps -> (B, T / stride, C)."""
        skip = max_pool_time(x_BTC, self.stride) if self.stride > 1 else x_BTC
        skip = skip * mask_BT.unsqueeze(-1).float()  # the sum of all branches keeps float32, whatever precision products have
        h = self.drop_path_attn(skip, self.attn(self.ln1(x_BTC), mask_BT), mask_BT)
        return self.drop_path_mlp(h, self.mlp(self.ln2(h)), mask_BT)
