"""Elementwise operations that overwrite their input when gradients are disabled, which saves memory traffic.

The caller must not use the input afterwards.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_masked(x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T, C) with padded steps at zero."""
    return x_BTC * mask_BT.unsqueeze(-1).to(x_BTC.dtype)


def masked(x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
    """The same, in place without gradients."""
    if torch.is_grad_enabled():
        return plain_masked(x_BTC, mask_BT)
    return x_BTC.mul_(mask_BT.unsqueeze(-1))


def gelu(x: Tensor) -> Tensor:
    """`F.gelu`, in place without gradients."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)
