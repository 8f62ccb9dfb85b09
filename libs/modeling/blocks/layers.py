"""Layers on (B, T, C) features with a (B, T) mask of valid steps.

Parameters keep the names and shapes of published checkpoints (convolutions as Conv1d weights, LayerNorm as (1, C, 1)); the
arithmetic runs on time-major features, where 1x1 convolutions are matrix products and LayerNorm is the fused one.

The published network masks the output of a convolution, and normalises after that: padded steps then hold the bias of the
norm, which the next convolution reads at the end of a video.  These layers reproduce that (SPEC item 15).
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.modeling.kernels.conv1d import channels_innermost, conv_time
from libs.modeling.kernels.in_place import gelu, masked
from libs.modeling.kernels.residual import add_branch


class TimeConv(nn.Conv1d):
    """`nn.Conv1d` for (B, T, C) features, with padding kernel // 2 and an odd kernel (ValueError otherwise)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True):
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} is even; a convolution that keeps the time grid needs an odd one")
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)
        if groups == 1:
            self.weight = nn.Parameter(channels_innermost(self.weight.detach()))

    def forward(self, x_BTC: Tensor, sizes: Sequence[int] = ()) -> Tensor:
        """(B, T, C) -> (B, T / stride, out); `sizes`: steps of sequences one after another in T, each convolved by itself."""
        return conv_time(x_BTC, self.weight, self.bias, self.stride[0], self.groups, sizes)


class SeparableConv(nn.Module):
    """A depthwise convolution over time, then a 1x1 one, nothing in between: a cheap stand-in for a dense convolution.

    `bias` is that of the depthwise one; the 1x1 convolution always has a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = True):
        super().__init__()
        self.depth_conv = TimeConv(in_channels, in_channels, kernel, stride, in_channels, bias)
        self.point_conv = TimeConv(in_channels, out_channels, 1)

    def forward(self, x_BTC: Tensor, sizes: Sequence[int] = ()) -> Tensor:
        """As `TimeConv.forward`."""
        return self.point_conv(self.depth_conv(x_BTC, sizes))


class MaskedConv1D(nn.Module):
    """A convolution over time whose output is multiplied by the mask; biases start at zero (SPEC item 17).

    `separable` makes it a `SeparableConv` (where `groups` has no meaning).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True,
                 separable: bool = False):
        super().__init__()
        self.conv: TimeConv | SeparableConv
        if separable:
            self.conv = SeparableConv(in_channels, out_channels, kernel, stride, bias)
        else:
            self.conv = TimeConv(in_channels, out_channels, kernel, stride, groups, bias)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def bias(self) -> Tensor:
        """The bias of the output channels (out,); a layer without one raises AttributeError."""
        return self.get_parameter("conv.point_conv.bias" if isinstance(self.conv, SeparableConv) else "conv.bias")

    def forward(self, x_BTC: Tensor, mask_BT: Tensor, sizes: Sequence[int] = ()) -> Tensor:
        """(B, T, C) and the mask of the OUTPUT steps (B, T / stride) -> (B, T / stride, out); `sizes`: see `TimeConv`."""
        return masked(self.conv(x_BTC, sizes), mask_BT)


class LayerNorm(nn.Module):
    """LayerNorm over channels (biased variance, eps 1e-5); parameters (1, C, 1) as in published checkpoints."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x_BTC: Tensor) -> Tensor:
        if x_BTC.device.type == "cpu" and x_BTC.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
            x_BTC = x_BTC.to(torch.get_autocast_dtype("cpu"))  # what follows is a product in that type: half the memory traffic
        return F.layer_norm(x_BTC, (x_BTC.shape[-1],), self.weight.flatten(), self.bias.flatten(), 1e-5)


class GroupNorm(nn.GroupNorm):
    """GroupNorm (Wu and He 2018; biased variance, eps 1e-5) over consecutive channels and the time steps of (B, T, C)."""

    def forward(self, x_BTC: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Statistics of all steps, as published, or of those that `mask_BT` counts."""
        if mask_BT is None:
            # not channels last: on CPUs that kernel takes differences of squares and loses digits
            return super().forward(x_BTC.transpose(1, 2).contiguous()).transpose(1, 2).contiguous()
        x_BTGC = x_BTC.unflatten(-1, (self.num_groups, -1))
        counted = mask_BT[:, :, None, None]
        number = counted.sum((1, 3), keepdim=True).clamp(min=1) * x_BTGC.shape[-1]
        centred = x_BTGC - (x_BTGC * counted).sum((1, 3), keepdim=True) / number
        variance = (centred * counted).square().sum((1, 3), keepdim=True) / number
        normal_BTC = (centred * torch.rsqrt(variance + self.eps)).flatten(2)
        return normal_BTC * self.weight + self.bias if self.affine else normal_BTC


class Scale(nn.Module):
    """One learned factor, starting at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class AffineDropPath(nn.Module):
    """The end of a residual branch: a factor per channel (1, C, 1), starting at 1e-4; in training, branches dropped per sample.

    A rate of 0 removes the factors too: another function and other checkpoints (SPEC item 22).
    """

    def __init__(self, channels: int, drop_prob: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1), 1e-4)) if drop_prob > 0 else None
        self.drop_prob = drop_prob

    def forward(self, skip_BTC: Tensor, branch_BTC: Tensor, mask_BT: Tensor | None) -> Tensor:
        """skip + scale * branch at valid steps (None: at all), skip at padded ones: (B, T, C)."""
        scale, kept = None if self.scale is None else self.scale.flatten(), None
        if self.training and self.drop_prob > 0:
            keep = 1.0 - self.drop_prob
            kept = (torch.rand((branch_BTC.shape[0], 1, 1), device=branch_BTC.device) < keep) / keep
        return add_branch(skip_BTC, branch_BTC, scale, kept, mask_BT)


class GELU(nn.Module):
    """Exact GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


class MLP(nn.Sequential):
    """The two layers at each step of a block, `expansion` x channels wide, with GELU."""

    def __init__(self, channels: int, expansion: int, dropout: float):
        super().__init__(TimeConv(channels, expansion * channels, 1), GELU(), nn.Dropout(dropout),
                         TimeConv(expansion * channels, channels, 1), nn.Dropout(dropout))
