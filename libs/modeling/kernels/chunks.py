"""Inference in pieces along time: what a layer computes on the way takes the memory of a piece, however long the video is."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WHOLE, CHUNK = 4608, 1152  # output steps, all videos of a batch together: up to so many at once, beyond that so many per piece

Layer = Callable[[Tensor, Tensor, int], Tensor]


def in_pieces(x_BTC: Tensor, mask_BT: Tensor) -> bool:
    """Whether `over_time` cuts a sequence with this mask of the output steps; `x_BTC`: its features, for their device."""
    whole = torch.is_grad_enabled() or x_BTC.device.type != "cpu" or torch.compiler.is_compiling()
    return not whole and mask_BT.numel() > WHOLE


def over_time(layer: Layer, x_BTC: Tensor, mask_BT: Tensor, stride: int = 1, halo: int | None = 0) -> Tensor:
    """`layer(x, mask of the output steps, first output step)` of the whole sequence: (B, T, C) -> (B, T / stride, O).

    Without gradients and on the CPU, longer sequences go through it in pieces.  `halo`: output steps at each end of a piece that
    may come out wrong because the layer looks past it; they are computed for nothing.  None: the layer looks everywhere, so it is
    never cut.  Pieces that begin and end with the sequence keep its zero padding.
    """
    B, T = mask_BT.shape
    size = max(CHUNK // B, 1)
    if halo is None or not in_pieces(x_BTC, mask_BT) or size < 8 * halo:
        return layer(x_BTC, mask_BT, 0)
    out = None
    for start in range(0, T, size):
        stop = min(start + size, T)
        low, high = max(start - halo, 0), min(stop + halo, T)
        piece = layer(x_BTC[:, low * stride:high * stride], mask_BT[:, low:high], low)
        if out is None:
            out = piece.new_empty(B, T, piece.shape[-1])
        out[:, start:stop] = piece[:, start - low:stop - low]
    return out
