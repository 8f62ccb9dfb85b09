"""Inception-I3D (Carreira and Zisserman, CVPR 2017; Apache-2.0), with names and arithmetic of the PyTorch weights.

    network = InceptionI3D(channels=3)
    network.load_state_dict(...)
    features = network(x)            (B, 3, T, H, W) -> (B, 1024, T', H', W'); 16 frames of 224 x 224 give (B, 1024, 1, 1, 1)

T' = ceil(ceil(ceil(T / 2) / 2) / 2) - 1; H' is H after five halvings, rounded up, minus 6.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]
FEATURES = 1024
LEAST_FRAMES, LEAST_SIDE = 9, 193  # of which the average pool has an output
ONE: Triple = (1, 1, 1)
THREE: Triple = (3, 3, 3)
INCEPTION = {  # channels: in / b0 / b1a, b1b / b2a, b2b / b3b
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32), "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64), "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64), "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128), "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128)}
ENDPOINTS = ("Conv3d_1a_7x7", "MaxPool3d_2a_3x3", "Conv3d_2b_1x1", "Conv3d_2c_3x3", "MaxPool3d_3a_3x3", "Mixed_3b", "Mixed_3c",
             "MaxPool3d_4a_3x3", "Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f", "MaxPool3d_5a_2x2", "Mixed_5b",
             "Mixed_5c")


def same_padded(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """(B, C, T, H, W) with zeros around, so that a layer gives ceil(n / stride) outputs ('same' of TensorFlow).

    The odd zero goes behind: kernel 7 and stride 2 on an even length take 2 zeros before and 3 after.
    """
    pads: list[int] = []
    for n, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max(k - (n % s or s), 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads) if any(pads) else x


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels: int, kernel: Triple = ONE, stride: Triple = ONE) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels_in, channels, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(channels, eps=0.001, momentum=0.01)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.bn(self.conv3d(same_padded(x, self.kernel, self.stride))))


class MaxPool(nn.Module):
    """Max pooling with the padding of the convolutions; zeros are neutral, since inputs come from a ReLU."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(same_padded(x, self.kernel, self.stride), self.kernel, self.stride)


class Inception(nn.Module):
    """Four branches, joined along channels."""

    def __init__(self, channels_in: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int) -> None:
        super().__init__()
        self.b0 = Unit(channels_in, b0)
        self.b1a, self.b1b = Unit(channels_in, b1a), Unit(b1a, b1b, THREE)
        self.b2a, self.b2b = Unit(channels_in, b2a), Unit(b2a, b2b, THREE)
        self.b3a, self.b3b = MaxPool(THREE, ONE), Unit(channels_in, b3b)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


class InceptionI3D(nn.Module):
    """The network; channels: of the input, 3 for RGB, 2 for flow; classes: of the logits."""

    def __init__(self, channels: int = 3, classes: int = 400) -> None:
        super().__init__()
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(FEATURES, classes, 1)})
        self.Conv3d_1a_7x7 = Unit(channels, 64, (7, 7, 7), (2, 2, 2))
        self.MaxPool3d_2a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, THREE)
        self.MaxPool3d_3a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.MaxPool3d_4a_3x3 = MaxPool(THREE, (2, 2, 2))
        self.MaxPool3d_5a_2x2 = MaxPool((2, 2, 2), (2, 2, 2))
        for name, widths in INCEPTION.items():
            self.add_module(name, Inception(*widths))

    def forward(self, x: Tensor) -> Tensor:
        for name in ENDPOINTS:
            x = self.get_submodule(name)(x)
        return F.avg_pool3d(x, (2, 7, 7), 1)

    def classify(self, features: Tensor) -> Tensor:
        """(B, 1024, T', H', W') -> logits (B, classes, T', H', W'); without the dropout of training."""
        return self.logits["conv3d"](features)
