"""Downsampling without parameters."""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from libs.modeling.kernels.conv1d import as_image, as_sequence
from libs.modeling.kernels.in_place import masked


def max_pool_time(x_BTC: Tensor, stride: int, kernel: int = 0) -> Tensor:
    """Max pooling over time around every stride-th step, kernel stride + 1 (odd strides: stride), padding half of it.

    (B, T, C) -> (B, T / stride, C); T must be a multiple of `stride`.  `kernel`: another odd kernel.
    """
    kernel = kernel or stride // 2 * 2 + 1
    return as_sequence(F.max_pool2d(as_image(x_BTC), (1, kernel), (1, stride), (0, kernel // 2)))


class MaxPoolBlock(nn.Module):
    """Max pooling over time, padded steps set to zero."""

    def __init__(self, stride: int, kernel: int = 0):
        """`kernel`: as of `max_pool_time`."""
        super().__init__()
        self.stride, self.kernel = stride, kernel

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, C) and the mask of the output steps -> (B, T / stride, C)."""
        return masked(max_pool_time(x_BTC, self.stride, self.kernel), mask_BT)
