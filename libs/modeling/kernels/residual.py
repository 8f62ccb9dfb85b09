"""The end of a residual branch: scale, drop path, mask, and sum with the skip connection."""
from __future__ import annotations

import torch
from torch import Tensor


def plain_add_branch(skip_BTC: Tensor, branch_BTC: Tensor, scale_C: Tensor, kept_B11: Tensor | None,
                     mask_BT: Tensor | None) -> Tensor:
    """skip + kept * scale * branch * mask; `kept`: the factor of drop path per sample; None for kept or mask: 1."""
    branch_BTC = branch_BTC * scale_C
    if kept_B11 is not None:
        branch_BTC = branch_BTC * kept_B11
    return skip_BTC + (branch_BTC if mask_BT is None else branch_BTC * mask_BT.unsqueeze(-1))


def add_branch(skip_BTC: Tensor, branch_BTC: Tensor, scale_C: Tensor | None, kept_B11: Tensor | None,
               mask_BT: Tensor | None) -> Tensor:
    """The same with one factor for mask and drop path, as one addcmul; `scale` None: 1."""
    factor = skip_BTC.new_ones(()) if mask_BT is None else mask_BT.unsqueeze(-1).to(skip_BTC.dtype)
    if scale_C is not None:
        branch_BTC = branch_BTC * scale_C.to(branch_BTC.dtype)
    if kept_B11 is not None:
        factor = factor * kept_B11.to(factor.dtype)
    return torch.addcmul(skip_BTC, branch_BTC, factor)
