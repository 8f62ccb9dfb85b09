"""The TriDet block: scalable-granularity perception (Shi et al., CVPR 2023; SPEC_FAMILY items F2, F3 and F16)."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.core.relations.network import SGP_GROUPS
from libs.core.schema import ModelConfig
from libs.modeling.blocks.layers import GELU, AffineDropPath, GroupNorm, LayerNorm, TimeConv
from libs.modeling.blocks.pooling import max_pool_time
from libs.modeling.kernels.in_place import masked


def wide_window(window: int, k: float) -> int:
    """The taps of the second convolution: about k times those of the first, odd."""
    taps = round((window + 1) * k)
    return taps if taps % 2 else taps + 1


class SGPBlock(nn.Module):
    """Two gated depthwise convolutions and a global mean, then an MLP behind a GroupNorm.

    Stem blocks (`stride` 1) have windows of one step and no drop path.  The published block masks the skip path alone: padding
    enters pooling, convolutions, the mean and the statistics of the GroupNorm, so the padded length changes the outputs (F5).
    With model.masked_stats padded steps are zero and do not count.
    `dead`: all five convolutions are zero, so that evaluation skips them; decided when weights are loaded.
    """

    def __init__(self, channels: int, stride: int, window: int, droppath: float, model: ModelConfig):
        super().__init__()
        if stride == 1:
            window, droppath = 1, 0.0
        self.stride, self.masked_stats, self.dead = stride, model.masked_stats, False
        self.ln = LayerNorm(channels)
        self.gn = GroupNorm(SGP_GROUPS, channels)
        self.psi = TimeConv(channels, channels, window, groups=channels)
        self.fc = TimeConv(channels, channels, 1, groups=channels)
        self.convw = TimeConv(channels, channels, window, groups=channels)
        self.convkw = TimeConv(channels, channels, wide_window(window, model.k), groups=channels)
        self.global_fc = TimeConv(channels, channels, 1, groups=channels)
        for conv in self.depthwise:
            nn.init.normal_(conv.weight, 0.0, model.init_conv_vars)
        self.downsample: nn.Sequential | None = None
        if stride > 1 and model.downsample_type == "avg":
            self.downsample = nn.Sequential(nn.Identity(), TimeConv(channels, channels, 1))  # published name: downsample.1
        hidden = model.sgp_mlp_dim or channels
        self.mlp = nn.Sequential(TimeConv(channels, hidden, 1), GELU(), TimeConv(hidden, channels, 1))
        self.drop_path_out, self.drop_path_mlp = AffineDropPath(channels, droppath), AffineDropPath(channels, droppath)
        self.register_load_state_dict_post_hook(lambda block, _keys: block.find_dead())

    @property
    def depthwise(self) -> tuple[TimeConv, ...]:
        """The convolutions that model.init_conv_vars initialises."""
        return self.psi, self.fc, self.convw, self.convkw, self.global_fc

    def find_dead(self) -> None:
        """Set `dead`.

        Models that were trained with model.init_conv_vars 0 are: each of their convolutions is multiplied by another zero, so
        no gradient reaches any of them (F16).
        """
        parameters = [p for conv in self.depthwise for p in conv.parameters()]
        self.dead = not any(p.is_meta or bool(p.any()) for p in parameters)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, C) and the mask of the output steps -> (B, T / stride, C); padded steps are undefined."""
        counted = mask_BT if self.masked_stats else None
        y = self._pooled(x_BTC)
        if counted is not None:
            y = torch.where(counted.unsqueeze(-1), y, 0.0)
        u = self.ln(y)
        v = u if self.dead and not self.training else self._gates(u, counted)
        skip = y * mask_BT.unsqueeze(-1).float()  # the sum of all branches keeps float32, whatever precision products have
        h = self.drop_path_out(skip, v, counted)
        return self.drop_path_mlp(h, self.mlp(self.gn(h, counted)), counted)

    def _pooled(self, x_BTC: Tensor) -> Tensor:
        """Every `stride` steps as one: (B, T / stride, C)."""
        if self.stride == 1:
            return x_BTC
        if self.downsample is None:
            return max_pool_time(x_BTC, self.stride)
        return self.downsample(x_BTC.unflatten(1, (-1, self.stride)).mean(2))

    def _gates(self, u: Tensor, counted: Tensor | None) -> Tensor:
        """fc(u) relu(global_fc(mean u)) + (convw(u) + convkw(u)) psi(u) + u; `counted`: the steps of the mean, None for all."""
        if counted is None:
            mean = u.mean(1, keepdim=True)
        else:
            u = masked(u, counted)
            mean = u.sum(1, keepdim=True) / counted.sum(1).clamp(min=1).view(-1, 1, 1)
        instant = self.fc(u) * F.relu(self.global_fc(mean))
        return instant + (self.convw(u) + self.convkw(u)) * self.psi(u) + u


def dead_blocks(network: nn.Module) -> int:
    """How many SGP blocks of a network are `dead`; decided anew."""
    blocks = [module for module in network.modules() if isinstance(module, SGPBlock)]
    for block in blocks:
        block.find_dead()
    return sum(block.dead for block in blocks)
