"""Hallucinators, networks that predict missing modalities from those that are read, and the gated fusion of streams.

Features (B, T, C) hold the channels of the modalities side by side, in the order of model.modalities, followed by the predicted
ones in the order of model.hallucinated.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.core.schema import Config
from libs.modeling.blocks.layers import MaskedConv1D


class Rgb2Flow(nn.Module):
    """The published hallucinator: two dense convolutions followed by one ReLU (SPEC section 12).

    The output is not masked, as published: padded steps are not zero.  Biases keep torch's initialisation.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden: int):
        super().__init__()
        self.extractor = nn.Sequential(nn.Conv1d(in_channels, out_channels, 3, padding=1),
                                       nn.Conv1d(out_channels, out_channels, 3, padding=1))

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, in) and the mask of valid steps (B, T), which it ignores -> (B, T, out)."""
        # torch's own convolution: another order of summation flips about one ReLU in half a million, visible in gradients
        return F.relu(self.extractor(x_BTC.transpose(1, 2))).transpose(1, 2).contiguous()


class SeparableHallucinator(nn.Module):
    """Two depthwise-separable convolutions with a GELU between them and a ReLU at the end; zero at padded steps."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int):
        super().__init__()
        self.conv1 = MaskedConv1D(in_channels, out_channels, 3, separable=True)
        self.conv2 = MaskedConv1D(out_channels, out_channels, 3, separable=True)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, in) and the mask of valid steps (B, T) -> (B, T, out)."""
        return F.relu(self.conv2(F.gelu(self.conv1(x_BTC, mask_BT)), mask_BT))


class BottleneckHallucinator(nn.Module):
    """1x1 to `hidden` channels, a convolution over time there, 1x1 back up, a ReLU after each; zero at padded steps."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int):
        super().__init__()
        self.reduce = MaskedConv1D(in_channels, hidden, 1)
        self.conv = MaskedConv1D(hidden, hidden, 3)
        self.expand = MaskedConv1D(hidden, out_channels, 1)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, in) and the mask of valid steps (B, T) -> (B, T, out)."""
        for layer in (self.reduce, self.conv, self.expand):
            x_BTC = F.relu(layer(x_BTC, mask_BT))
        return x_BTC


HALLUCINATORS: dict[str, type[nn.Module]] = {"rgb2flow": Rgb2Flow, "separable": SeparableHallucinator,
                                             "bottleneck": BottleneckHallucinator}


def make_hallucinator(config: Config) -> nn.Module:
    """The hallucinator of a configuration (not `none`): channels that are read -> channels of model.hallucinated."""
    model = config.model
    out = sum(config.modality_dim(name) for name in model.hallucinated)
    return HALLUCINATORS[model.hallucinator](config.model_input_dim, out, model.hallucinator_dim or max(out // 4, 8))


class GatedFusion(nn.Module):
    """Two streams weighted against each other at every step (SPEC section 12), widths unchanged, zero at padded steps.

    h1 = tanh(W1 x1), h2 = tanh(W2 x2), g = sigmoid(w . [h1; h2]), output [g h1; (1 - g) h2]; no biases.
    """

    def __init__(self, first: int, second: int):
        super().__init__()
        self.hidden1 = nn.Linear(first, first, bias=False)
        self.hidden2 = nn.Linear(second, second, bias=False)
        self.gate = nn.Linear(first + second, 1, bias=False)

    @classmethod
    def of(cls, config: Config) -> GatedFusion:
        """The fusion of a configuration: the first of model.modalities against all the other streams."""
        first, *others = (config.modality_dim(name) for name in (*(config.model.modalities or ()), *config.model.hallucinated))
        return cls(first, sum(others))

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, first + second) and the mask of valid steps (B, T) -> the same shape."""
        first, second = x_BTC.split([self.hidden1.in_features, self.hidden2.in_features], dim=-1)
        h1, h2 = torch.tanh(self.hidden1(first)), torch.tanh(self.hidden2(second))
        m = mask_BT.unsqueeze(-1).to(x_BTC.dtype)
        g_BT1 = torch.sigmoid(self.gate(torch.cat([h1, h2], dim=-1)))
        return torch.cat([g_BT1 * m * h1, (1 - g_BT1) * m * h2], dim=-1)
