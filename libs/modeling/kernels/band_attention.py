"""Attention over time, global or restricted to a window (SPEC item 24).

In: queries, keys, values (B, T, H, D) and the valid steps (B, T).  Out: (B, T, H, D), finite and undefined at invalid
queries.  Shapes are named by their letters: B batch, T time steps, H heads, D channels per head, N blocks, Q queries per block, W
keys that a block of queries can see.  `bias_HW` (H, window) is added to the scores, by key offset -(window // 2) .. window // 2.
"""
from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from libs.modeling.kernels.conv1d import exporting

GPU_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
BLOCK = 32  # queries per block: with a half window h, each block computes Q (Q + 2 h) scores, of which Q (2 h + 1) count


def plain_attention(q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, mask_BT: Tensor, window: int = 0,
                    bias_HW: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt(D)) v over valid keys with |query - key| <= window // 2 (window <= 1: all valid keys)."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTHD, v_BTHD))
    allowed = mask_BT[:, None, None, :]
    if window > 1:
        t = torch.arange(q.shape[2], device=q.device)
        allowed = _band(t - t.unsqueeze(1), allowed, window, bias_HW)
    return fused_attention(q, k, v, allowed).transpose(1, 2)


def band_attention(q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, mask_BT: Tensor, window: int,
                   bias_HW: Tensor | None = None) -> Tensor:
    """The same for a window > 1, exactly, in blocks of queries: never builds a (T, T) matrix; any T."""
    B, T, H, D = q_BTHD.shape
    half = window // 2
    Q = max(BLOCK, 2 * half)
    N = (T + Q - 1) // Q  # exported graphs divide rounding to zero: no negative numbers
    W = Q + 2 * half
    tail = N * Q - T
    # an exported graph has no branches, so it always pads, possibly by 0
    q = (F.pad(q_BTHD, (0, 0, 0, 0, 0, tail)) if exporting() or tail else q_BTHD).reshape(B * N, Q, H, D).transpose(1, 2)
    k, v = (_overlapping_blocks(x.flatten(2), Q, half, N).flatten(0, 1).unflatten(2, (H, D)).transpose(1, 2)
            for x in (k_BTHD, v_BTHD))
    valid = _overlapping_blocks(mask_BT.unsqueeze(-1), Q, half, N).reshape(B * N, 1, 1, W)
    offset_QW = (torch.arange(W, device=q.device) - half) - torch.arange(Q, device=q.device).unsqueeze(1)
    allowed = _band(offset_QW, valid, window, bias_HW)
    # on CPUs the backward pass of fused attention in bfloat16 takes twice the time of plain products
    products = q.dtype == torch.bfloat16 and q.device.type == "cpu" and torch.is_grad_enabled()
    out = (_products if products else fused_attention)(q, k, v, allowed)
    return out.transpose(1, 2).reshape(B, N * Q, H, D)[:, :T]


def local_attention(q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, mask_BT: Tensor, window: int,
                    bias_HW: Tensor | None = None) -> Tensor:
    """`band_attention` where there is a window, else `plain_attention`."""
    if window > 1:
        return band_attention(q_BTHD, k_BTHD, v_BTHD, mask_BT, window, bias_HW)
    return plain_attention(q_BTHD, k_BTHD, v_BTHD, mask_BT)


def _band(offset_QK: Tensor, valid: Tensor, window: int, bias_HW: Tensor | None) -> Tensor:
    """The attention mask for key offsets (Q, K): bool, or with a bias the bias and -inf.

    A padded query attends to itself, so that no row is empty (an empty softmax is NaN, also in its gradient).
    """
    half = window // 2
    allowed = ((offset_QK.abs() <= half) & valid) | (offset_QK == 0)
    if bias_HW is None:
        return allowed
    bias_HQK = bias_HW[:, (offset_QK + half).clamp(0, window - 1)]
    return torch.where(allowed, bias_HQK, torch.full((), float("-inf"), dtype=bias_HQK.dtype, device=bias_HQK.device))


def fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    """`F.scaled_dot_product_attention`; on GPUs never cuDNN's in half precision, which is built anew for every shape (0.5 s)."""
    with sdpa_kernel(GPU_BACKENDS) if q.device.type == "cuda" else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)


def _products(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    """`fused_attention`, step by step; scores are softmaxed in float32."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.float().softmax(-1).to(v.dtype) @ v


def _overlapping_blocks(x_BTC: Tensor, size: int, half: int, count: int) -> Tensor:
    """Blocks of `size` steps with `half` more on either side: (B, T, C) -> (B, count, size + 2 half, C), zeros outside.

    Needs size >= 2 half.  Without gradients a view of one padded tensor, whose blocks overlap in memory; else two slices of it,
    since unfolding would cost a slow scatter in the backward pass.
    """
    B, T, C = x_BTC.shape
    if not torch.is_grad_enabled():
        return F.pad(x_BTC, (0, 0, half, count * size + half - T)).unfold(1, size + 2 * half, size).transpose(2, 3)
    rows = F.pad(x_BTC, (0, 0, half, (count + 1) * size - half - T)).view(B, count + 1, size, C)
    return torch.cat((rows[:, :-1], rows[:, 1:, :2 * half]), dim=2)
