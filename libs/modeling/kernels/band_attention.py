"""Attention over time: exact band attention in blocks of queries, and global attention.

In: queries, keys, values (B, T, H, D) and the valid steps (B, T).  Out: (B, T, H, D).  Shapes are named by their letters:
B batch, T time steps, H heads, D channels per head, N blocks, Q queries per block, W keys that a block of queries can see.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# whether torch.export traces the network; before torch 2.7 compiling and exporting could not be told apart
exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

BLOCK = 32  # queries per block: with a half window h, each block computes Q (Q + 2 h) scores, of which Q (2 h + 1) count


def band_attention(q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, mask_BT: Tensor, window: int,
                   bias_HW: Tensor | None = None) -> Tensor:
    """Softmax attention restricted to |query - key| <= window // 2 and to valid keys, scaled by 1 / sqrt(D).

    `bias_HW` (H, window) is added to the scores, ordered by key offset -(window // 2) .. window // 2.  Results at invalid
    queries are finite and without meaning.  Never builds a (T, T) matrix; T needs no divisor.
    """
    B, T, H, D = q_BTHD.shape
    half = window // 2
    Q = max(BLOCK, 2 * half)
    N = (T + Q - 1) // Q  # exported graphs divide rounding to zero: no negative numbers
    W = Q + 2 * half
    tail = N * Q - T
    # an exported graph has no branches: it pads by nothing where nothing is to be padded
    q = (F.pad(q_BTHD, (0, 0, 0, 0, 0, tail)) if exporting() or tail else q_BTHD).reshape(B * N, Q, H, D).transpose(1, 2)
    k, v = (overlapping_blocks(x.flatten(2), Q, half, N).flatten(0, 1).unflatten(2, (H, D)).transpose(1, 2)
            for x in (k_BTHD, v_BTHD))
    valid = overlapping_blocks(mask_BT.unsqueeze(-1), Q, half, N).reshape(B * N, 1, 1, W)
    offset_QW = (torch.arange(W, device=q.device) - half) - torch.arange(Q, device=q.device).unsqueeze(1)
    # a padded query keeps itself as a key, so that no row is empty (an empty softmax is NaN, also in its gradient)
    allowed = ((offset_QW.abs() <= half) & valid) | (offset_QW == 0)
    if bias_HW is not None:
        bias = bias_HW[:, (offset_QW + half).clamp(0, window - 1)]  # (H, Q, W)
        allowed = torch.where(allowed, bias, torch.full((), float("-inf"), dtype=bias.dtype, device=bias.device))
    # fused attention of small blocks is twice as slow as plain products in its bfloat16 backward pass on CPUs
    plain = q.dtype == torch.bfloat16 and q.device.type == "cpu" and torch.is_grad_enabled()
    out = (plain_attention if plain else F.scaled_dot_product_attention)(q, k, v, attn_mask=allowed)
    return out.transpose(1, 2).reshape(B, N * Q, H, D)[:, :T]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    """`F.scaled_dot_product_attention`, step by step; scores are softmaxed in float32."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.float().softmax(-1).to(v.dtype) @ v


def overlapping_blocks(x_BTC: Tensor, size: int, half: int, count: int) -> Tensor:
    """Blocks of `size` steps with `half` more on either side: (B, T, C) -> (B, count, size + 2 half, C), zeros outside.

    Needs size >= 2 half.  Without gradients a view of one padded tensor, whose blocks overlap in memory; else two slices of it,
    since unfolding would cost a slow scatter in the backward pass.
    """
    B, T, C = x_BTC.shape
    if not torch.is_grad_enabled():
        rows = F.pad(x_BTC, (0, 0, half, count * size + half - T))
        return rows.unfold(1, size + 2 * half, size).transpose(2, 3)
    rows = F.pad(x_BTC, (0, 0, half, (count + 1) * size - half - T)).view(B, count + 1, size, C)
    return torch.cat((rows[:, :-1], rows[:, 1:, :2 * half]), dim=2)


def global_attention(q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, mask_BT: Tensor) -> Tensor:
    """Softmax attention of every query to all valid keys, scaled by 1 / sqrt(D)."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTHD, v_BTHD))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BT[:, None, None, :]).transpose(1, 2)
