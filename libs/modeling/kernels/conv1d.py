"""Convolution over time of (B, T, C) features, zero padding kernel // 2, for one or several concatenated sequences.

`sizes`: steps of the sequences (the levels of a pyramid), which are convolved separately; their sum is T.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# whether torch.export traces the network; torch before 2.7 does not distinguish it from compiling
exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def plain_conv_time(x_BTC: Tensor, weight_OCK: Tensor, bias_O: Tensor | None, stride: int, groups: int,
                    sizes: Sequence[int]) -> Tensor:
    """torch's convolution of each sequence: (B, T, C) -> (B, T / stride, O)."""
    padding = weight_OCK.shape[2] // 2
    return torch.cat([F.conv1d(x.transpose(1, 2), weight_OCK, bias_O, stride, padding, 1, groups).transpose(1, 2)
                      for x in x_BTC.split(list(sizes), dim=1)], dim=1)


class ShiftedProducts(torch.autograd.Function):
    """A dense convolution with stride 1 as one matrix product per tap, added up in place: no copy of the input per tap.

    (B, T, C), weight (O, C, odd K), bias (O,) or None, sizes of the sequences -> (B, T, O).
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


def channels_innermost(weight_OCK: Tensor) -> Tensor:
    """The same weight (O, C, K), in memory as (O, K, C): every tap is a matrix that products read without a copy."""
    return weight_OCK.permute(0, 2, 1).contiguous().permute(0, 2, 1)


def image_conv_time(x_BTC: Tensor, weight_OCK: Tensor, bias_O: Tensor | None, stride: int, groups: int) -> Tensor:
    """torch's convolution as an image with channels last, which needs no transposed copies."""
    image = F.conv2d(as_image(x_BTC), weight_OCK.unsqueeze(2), bias_O, (1, stride), (0, weight_OCK.shape[2] // 2), 1, groups)
    return as_sequence(image)


def channels_first_conv_time(x_BTC: Tensor, weight_OCK: Tensor, bias_O: Tensor | None, stride: int, groups: int) -> Tensor:
    """torch's convolution of contiguous (B, C, T): on GPUs depthwise ones are torch's own kernels then, not cuDNN's, which are
    built anew for every length (2 s for a training step, benchmarks/results/gpu.json)."""
    out = F.conv1d(x_BTC.transpose(1, 2).contiguous(), weight_OCK, bias_O, stride, weight_OCK.shape[2] // 2, 1, groups)
    return out.transpose(1, 2).contiguous()


def in_one_call(conv: Callable[[Tensor], Tensor], x_BTC: Tensor, reach: int, sizes: Sequence[int]) -> Tensor:
    """`conv`, which reads `reach` steps to either side, of all sequences at once, separated by as many zeros."""
    if len(sizes) == 1:
        return conv(x_BTC)
    gap = x_BTC.new_zeros(x_BTC.shape[0], reach if x_BTC.device.type != "meta" else 0, x_BTC.shape[2])  # zeros are no FLOPs
    parts = [part for sequence in x_BTC.split(list(sizes), dim=1) for part in (sequence, gap)][:-1]
    out = conv(torch.cat(parts, dim=1))
    return torch.cat(out.split([part.shape[1] for part in parts], dim=1)[::2], dim=1)


def as_image(x_BTC: Tensor) -> Tensor:
    """(B, T, C) -> (B, C, 1, T), channels last in memory: no copy."""
    return x_BTC.transpose(1, 2).unsqueeze(2)


def as_sequence(x_BC1T: Tensor) -> Tensor:
    """(B, C, 1, T) -> (B, T, C), contiguous: no copy of what lies channels last."""
    return x_BC1T.squeeze(2).transpose(1, 2).contiguous()


def conv_time(x_BTC: Tensor, weight_OCK: Tensor, bias_O: Tensor | None, stride: int = 1, groups: int = 1,
              sizes: Sequence[int] = ()) -> Tensor:
    """The convolution of (B, T, C) features, in the fastest form: (B, T / stride, O).  No `sizes`: one sequence."""
    if groups == 1 and weight_OCK.shape[2] == 1:
        return F.linear(x_BTC[:, ::stride] if stride > 1 else x_BTC, weight_OCK.squeeze(-1), bias_O)
    sizes = tuple(sizes) or (x_BTC.shape[1],)
    on_cpu = x_BTC.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and not exporting()
    if groups == 1 and stride == 1 and on_cpu:
        return ShiftedProducts.apply(x_BTC, weight_OCK, bias_O, sizes)
    form = channels_first_conv_time if x_BTC.device.type == "cuda" and groups > 1 else image_conv_time
    return in_one_call(lambda x: form(x, weight_OCK, bias_O, stride, groups), x_BTC, weight_OCK.shape[2] // 2, sizes)
