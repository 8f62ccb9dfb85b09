"""Building blocks on (B, T, C) features with a (B, T) mask of valid steps.

Parameters keep the names and shapes of published checkpoints (convolutions as Conv1d weights, LayerNorm as (1, C, 1)); the
arithmetic runs on time-major features, where 1x1 convolutions are matrix products and LayerNorm is the fused one.

The published network masks the output of a convolution, and normalises after that: padded steps then hold the bias of the
norm, which the next convolution reads at the end of a video.  These blocks reproduce that.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.modeling.kernels.band_attention import band_attention, exporting, global_attention


def max_pool_time(x_BTC: Tensor, stride: int) -> Tensor:
    """Max pooling over time around every stride-th step, kernel stride + 1 (odd strides: stride), padding half of it.

    (B, T, C) -> (B, T / stride, C); T must be a multiple of `stride`.
    """
    kernel = stride // 2 * 2 + 1
    x = F.max_pool2d(_as_image(x_BTC), (1, kernel), (1, stride), (0, kernel // 2))
    return _as_sequence(x)


def pointwise(x_BTC: Tensor, conv: nn.Conv1d) -> Tensor:
    """A 1x1 convolution of (B, T, C) features, as a matrix product."""
    return F.linear(x_BTC, conv.weight.squeeze(-1), conv.bias)


class SeparableConv(nn.Module):
    """A depthwise convolution over time, then a 1x1 one, nothing in between: a cheap stand-in for a dense convolution.

    `bias` is that of the depthwise one; the 1x1 convolution always has a bias.  Run it with `conv_time`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = True):
        super().__init__()
        self.depth_conv = nn.Conv1d(in_channels, in_channels, kernel, stride, kernel // 2, groups=in_channels, bias=bias)
        self.point_conv = nn.Conv1d(in_channels, out_channels, 1)


class MaskedConv1D(nn.Module):
    """Convolution over time with padding kernel // 2 whose output is multiplied by the mask.  Biases start at zero.

    `separable` makes it a `SeparableConv` (where `groups` has no meaning).  An even kernel raises ValueError.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True,
                 separable: bool = False):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} is even; a convolution that keeps the time grid needs an odd one")
        if separable:
            self.conv: nn.Module = SeparableConv(in_channels, out_channels, kernel, stride, bias)
        else:
            self.conv = nn.Conv1d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)
            if groups == 1:
                self.conv.weight = nn.Parameter(channels_innermost(self.conv.weight.detach()))
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the output channels (out_channels,), or None."""
        return self.conv.point_conv.bias if isinstance(self.conv, SeparableConv) else self.conv.bias

    def forward(self, x_BTC: Tensor, mask_BT: Tensor, sizes: Sequence[int] = ()) -> Tensor:
        """(B, T, C) and the mask of the OUTPUT steps (B, T / stride) -> (B, T / stride, out_channels); sizes: see `conv_time`."""
        return masked(conv_time(x_BTC, self.conv, sizes), mask_BT)


def channels_innermost(weight_OCK: Tensor) -> Tensor:
    """The same weight (O, C, K), in memory as (O, K, C): every tap is a matrix that products read without a copy."""
    return weight_OCK.permute(0, 2, 1).contiguous().permute(0, 2, 1)


def masked(x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T, C) with padded steps at zero; overwrites its argument where no gradient is asked for."""
    m = mask_BT.unsqueeze(-1).to(x_BTC.dtype)
    return x_BTC * m if torch.is_grad_enabled() else x_BTC.mul_(m)


def conv_time(x_BTC: Tensor, conv: nn.Conv1d | SeparableConv, sizes: Sequence[int] = ()) -> Tensor:
    """The convolution `conv` of (B, T, C) features, padding included -> (B, T / stride, out), a new tensor.

    `sizes`: steps of several sequences that lie one behind the other in T and are convolved apart (stride 1); none: one.
    """
    if isinstance(conv, SeparableConv):
        return pointwise(conv_time(x_BTC, conv.depth_conv, sizes), conv.point_conv)
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    if conv.groups == 1 and kernel == 1:
        return pointwise(x_BTC[:, ::stride] if stride > 1 else x_BTC, conv)
    if (conv.groups == 1 and stride == 1 and x_BTC.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
            and not exporting()):
        return ShiftedProducts.apply(x_BTC, conv.weight, conv.bias, tuple(sizes) or (x_BTC.shape[1],))
    if len(sizes) > 1:  # one call for all, with as many zeros between two sequences as the kernel reaches over
        zeros = kernel // 2 if x_BTC.device.type != "meta" else 0  # where FLOPs are counted, zeros are no work
        gap = x_BTC.new_zeros(x_BTC.shape[0], zeros, x_BTC.shape[2])
        parts = [part for sequence in x_BTC.split(tuple(sizes), dim=1) for part in (sequence, gap)][:-1]
        out = conv_time(torch.cat(parts, dim=1), conv)
        return torch.cat(out.split([part.shape[1] for part in parts], dim=1)[::2], dim=1)
    # a depthwise convolution with a stride has a slow backward pass on CPUs: all steps, then every stride-th, is faster
    all_steps = stride > 1 and conv.groups > 1 and x_BTC.device.type == "cpu" and torch.is_grad_enabled()
    out = F.conv2d(_as_image(x_BTC), conv.weight.unsqueeze(2), conv.bias, (1, 1 if all_steps else stride), (0, kernel // 2), 1,
                   conv.groups)
    return _as_sequence(out[..., ::stride] if all_steps else out)


class ShiftedProducts(torch.autograd.Function):
    """Convolution over time as one matrix product per tap, added up in place: no copy of the input per tap.

    (B, T, C), weight (O, C, odd K), bias (O,) or None -> (B, T, O), zero padding K // 2.  `sizes`, adding up to T: steps of the
    sequences that are convolved apart.
    """

    @staticmethod
    def forward(ctx, x_BTC: Tensor, weight_OCK: Tensor, bias_O: Tensor | None, sizes: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x_BTC, weight_OCK)
        ctx.has_bias, ctx.sizes = bias_O is not None, sizes
        taps = weight_OCK.unbind(2)  # matrices (O, C), no copies
        out = F.linear(x_BTC, taps[len(taps) // 2], bias_O)
        for tap, to, source in _shifts(len(taps), sizes):
            for y, x in zip(out, x_BTC, strict=True):
                y[to].addmm_(x[source], taps[tap].t())
        return out

    @staticmethod
    def backward(ctx, grad_BTO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x_BTC, weight_OCK = ctx.saved_tensors
        grad_BTO = grad_BTO.contiguous()
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        taps = weight_OCK.unbind(2)
        middle, shifts = len(taps) // 2, _shifts(len(taps), ctx.sizes)
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x = grad_BTO @ taps[middle]
            for tap, to, source in shifts:
                for gx, g in zip(grad_x, grad_BTO, strict=True):
                    gx[source].addmm_(g[to], taps[tap])
        if needs_weight:
            grad_weight = torch.zeros_like(weight_OCK)  # laid out like the weight, so that autograd keeps it as it is
            grad_taps = grad_weight.unbind(2)
            grad_taps[middle].addmm_(grad_BTO.flatten(0, 1).t(), x_BTC.flatten(0, 1))
            for tap, to, source in shifts:
                for x, g in zip(x_BTC, grad_BTO, strict=True):
                    grad_taps[tap].addmm_(g[to].t(), x[source])
        if ctx.has_bias and needs_bias:
            grad_bias = grad_BTO.sum((0, 1))
        return grad_x, grad_weight, grad_bias, None


def _shifts(kernel: int, sizes: Sequence[int]) -> list[tuple[int, slice, slice]]:
    """(tap, output steps, the input steps they read) for every tap but the middle one and every sequence."""
    found, first = [], 0
    for steps in sizes:
        for tap in range(kernel):
            shift = tap - kernel // 2
            if shift and abs(shift) < steps:
                to = slice(first + max(-shift, 0), first + steps - max(shift, 0))
                found.append((tap, to, slice(to.start + shift, to.stop + shift)))
        first += steps
    return found


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


class Scale(nn.Module):
    """One learned factor, starting at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class AffineDropPath(nn.Module):
    """A per-channel factor (1, C, 1), starting at 1e-4, then the whole branch dropped per sample in training."""

    def __init__(self, channels: int, drop_prob: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1), 1e-4))
        self.drop_prob = drop_prob

    def forward(self, x_BTC: Tensor) -> Tensor:
        x, kept = self.scaled(x_BTC), self.kept(x_BTC)
        return x if kept is None else x * kept.to(x.dtype)

    def scaled(self, x_BTC: Tensor) -> Tensor:
        """The features times the factor of their channel."""
        return x_BTC * self.scale.flatten().to(x_BTC.dtype)

    def kept(self, x_BTC: Tensor) -> Tensor | None:
        """What each sample's branch is multiplied by, 0 or 1 / (1 - drop_prob): (B, 1, 1) float32; None if nothing is dropped."""
        if not self.training or self.drop_prob == 0:
            return None
        keep = 1.0 - self.drop_prob
        return (torch.rand((x_BTC.shape[0], 1, 1), device=x_BTC.device) < keep) / keep


def add_branch(skip_BTC: Tensor, hidden_BTD: Tensor, last: nn.Conv1d, dropout: nn.Dropout, path: nn.Module,
               mask_BT: Tensor) -> Tensor:
    """`skip + path(dropout(last(hidden))) * mask`, the end of a residual branch: (B, T, C).

    `last`: a 1x1 convolution; `path`: an `AffineDropPath` or an identity.  What drops samples joins the mask, which saves a pass
    over features.  Overwrites `skip` where no gradient is asked for.
    """
    branch, factor = dropout(pointwise(hidden_BTD, last)), mask_BT.unsqueeze(-1).to(skip_BTC.dtype)
    if isinstance(path, AffineDropPath):
        branch = path.scaled(branch)
        kept = path.kept(branch)
        factor = factor if kept is None else factor * kept.to(factor.dtype)
    return torch.addcmul(skip_BTC, branch, factor) if torch.is_grad_enabled() else skip_BTC.addcmul_(branch, factor)


def gelu(x: Tensor) -> Tensor:
    """Exact GELU; overwrites its argument where no gradient is asked for."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


class ConvAttention(nn.Module):
    """Multi-head attention whose queries, keys and values come from depthwise convolutions (SPEC items 23 to 25).

    `stride` > 1 downsamples queries, keys and values alike.  `window` <= 1 means global attention.
    """

    def __init__(self, channels: int, heads: int, stride: int, window: int, dropout: float, use_rel_pe: bool):
        super().__init__()
        self.heads, self.window = heads, window
        kernel = stride + 1 if stride > 1 else 3
        if use_rel_pe and window > 1:
            self.rel_pe = nn.Parameter(torch.zeros(1, 1, heads, window))
            nn.init.trunc_normal_(self.rel_pe, std=math.sqrt(2.0 / channels))
        for name in ("query", "key", "value"):
            setattr(self, f"{name}_conv", MaskedConv1D(channels, channels, kernel, stride, channels, bias=False))
            setattr(self, f"{name}_norm", LayerNorm(channels))
        for name in ("key", "query", "value"):
            setattr(self, name, nn.Conv1d(channels, channels, 1))
        self.proj = nn.Conv1d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, C) and the mask of the output steps -> (B, T / stride, C), what `proj` and `dropout` are to get (`add_branch`).

        Without meaning at padded steps: their queries, keys and values are not masked, since no valid step looks at them.
        """
        q, k, v = (pointwise(norm(conv_time(x_BTC, conv.conv)), dense).unflatten(-1, (self.heads, -1)) for conv, norm, dense in (
            (self.query_conv, self.query_norm, self.query), (self.key_conv, self.key_norm, self.key),
            (self.value_conv, self.value_norm, self.value)))
        if self.window <= 1:
            return global_attention(q, k, v, mask_BT).flatten(2)
        bias = self.rel_pe[0, 0] if hasattr(self, "rel_pe") else None
        return band_attention(q, k, v, mask_BT, self.window, bias).flatten(2)


class TransformerBlock(nn.Module):
    """Pre-LN transformer block with an optional downsampling by `stride` (SPEC item 21)."""

    def __init__(self, channels: int, heads: int, stride: int, window: int, dropout: float, droppath: float,
                 use_rel_pe: bool):
        super().__init__()
        self.stride, self.halo = stride, window // 2 + 1 if window > 1 else None
        self.ln1, self.ln2 = LayerNorm(channels), LayerNorm(channels)
        self.attn = ConvAttention(channels, heads, stride, window, dropout, use_rel_pe)
        self.mlp = nn.Sequential(nn.Conv1d(channels, 4 * channels, 1), nn.GELU(), nn.Dropout(dropout),
                                 nn.Conv1d(4 * channels, channels, 1), nn.Dropout(dropout))
        # a rate of 0 removes the residual scales too: another function and other checkpoints (SPEC item 22)
        self.drop_path_attn = AffineDropPath(channels, droppath) if droppath > 0 else nn.Identity()
        self.drop_path_mlp = AffineDropPath(channels, droppath) if droppath > 0 else nn.Identity()

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, C) and the mask of the output steps -> (B, T / stride, C)."""
        skip = max_pool_time(x_BTC, self.stride) if self.stride > 1 else x_BTC
        # the sum of all branches keeps float32, whatever precision products have
        skip = skip * mask_BT.unsqueeze(-1).to(torch.promote_types(x_BTC.dtype, torch.float32))
        mixed = self.attn(self.ln1(x_BTC), mask_BT)
        h = add_branch(skip, mixed, self.attn.proj, self.attn.dropout, self.drop_path_attn, mask_BT)
        hidden = self.mlp[2](gelu(pointwise(self.ln2(h), self.mlp[0])))
        return add_branch(h, hidden, self.mlp[3], self.mlp[4], self.drop_path_mlp, mask_BT)


class ConvBlock(nn.Module):
    """Two convolutions with a residual connection, no normalisation (SPEC item 27); all dense or all separable."""

    halo = 2

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


class MaxPoolBlock(nn.Module):
    """Downsampling without parameters: max pooling over time, padded steps set to zero."""

    halo = 1

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, C) and the mask of the output steps -> (B, T / stride, C)."""
        return max_pool_time(x_BTC, self.stride) * mask_BT.unsqueeze(-1).to(x_BTC.dtype)


def _as_image(x_BTC: Tensor) -> Tensor:
    return x_BTC.transpose(1, 2).unsqueeze(2)  # (B, C, 1, T), channels last in memory: no copy


def _as_sequence(x_BC1T: Tensor) -> Tensor:
    return x_BC1T.squeeze(2).transpose(1, 2).contiguous()
