"""Necks: backbone levels -> FPN levels of one width.  A new one is a class and a line in NECKS."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.core.schema import Config
from libs.modeling.blocks.layers import GroupNorm, LayerNorm, MaskedConv1D, TimeConv
from libs.modeling.kernels.in_place import masked


class FixedLengthGate(nn.Module):
    """The published "temporal attention" of a level: time steps gated by a network over all steps of a fixed number.

    g = sigmoid(W2 relu(W1 mean_c x)), W1 (steps // 8, steps), W2 (steps, steps // 8), no biases (SPEC section 12).  A factor
    per step is cancelled by a LayerNorm over channels that follows, so it is here only for checkpoints that have it.
    """

    def __init__(self, steps: int):
        super().__init__()
        self.steps, hidden = steps, max(steps // 8, 1)
        self.fc = nn.Sequential(nn.Linear(steps, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, steps, bias=False),
                                nn.Sigmoid())

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) -> the same, times the gate.  Longer T: nearest steps there and back; shorter T: ValueError."""
        T, mean_B1T = x_BTC.shape[1], x_BTC.mean(-1).unsqueeze(1)
        if self.steps > T:
            raise ValueError(f"a published temporal gate of {self.steps} steps cannot take {T}: pad to dataset.max_seq_len")
        gate_B1T = self.fc(F.interpolate(mean_B1T, self.steps) if self.steps < T else mean_B1T)
        return x_BTC * (F.interpolate(gate_B1T, T) if self.steps < T else gate_B1T).transpose(1, 2)


class StepGate(nn.Module):
    """A gate per time step from its neighbourhood, 2 sigmoid(conv), for any length; starts at 1 and is 1 at padded steps."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = TimeConv(width, 1, 3)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, C) and its mask -> the same, times the gate."""
        return x_BTC * (2 * torch.sigmoid(masked(self.conv(x_BTC), mask_BT)))


class IdentityNeck(nn.Module):
    """A norm per level, with an optional gate over time before or after it; the width stays that of the backbone.

    A LayerNorm (fpn_shared_norm: one for all levels, listed under each of their names), a GroupNorm without parameters, or
    nothing (SPEC item 26, SPEC_FAMILY F24).
    """

    def __init__(self, config: Config, width: int, levels: int):
        super().__init__()
        model = config.model
        self.start, kept = model.fpn_start_level, range(model.fpn_start_level, levels)
        self.seblocks: nn.ModuleList | None = None
        self.gates: nn.ModuleList | None = None
        if model.temporal_gate == "published":
            self.seblocks = nn.ModuleList(FixedLengthGate(config.dataset.max_seq_len // model.scale_factor**i) for i in kept)
        self.masked_stats = model.masked_stats and model.fpn_norm == "groupnorm"
        shared = _norm(config, width) if model.fpn_shared_norm else None
        self.fpn_norms = nn.ModuleList(shared or _norm(config, width) for _ in kept)
        if model.temporal_gate == "post_norm":
            self.gates = nn.ModuleList(StepGate(width) for _ in kept)

    def forward(self, feats: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """Lists of (B, T_l, C) and (B, T_l), fine to coarse -> (B, T_l, C) of the levels from fpn_start_level on.

        With the published gate T must be at least dataset.max_seq_len, else ValueError.
        """
        levels = []
        for i, (x, mask) in enumerate(zip(feats[self.start:], masks[self.start:], strict=True)):
            if self.seblocks is not None:
                x = self.seblocks[i](x)
            x = masked(self.fpn_norms[i](x, mask), mask) if self.masked_stats else self.fpn_norms[i](x)
            if self.gates is not None:
                x = self.gates[i](x, mask)
            levels.append(x)
        return levels


def _norm(config: Config, width: int) -> nn.Module:
    """The norm of a level of the identity neck."""
    model = config.model
    if model.fpn_norm == "groupnorm":
        return GroupNorm(model.num_group, width, affine=False)
    with_ln = model.fpn_with_ln or model.backbone_type == "convPooler"
    return LayerNorm(width) if model.fpn_norm == "layernorm" and with_ln else nn.Identity()


class FPN(nn.Module):
    """Top-down feature pyramid (Lin et al. 2017): lateral 1x1, nearest upsampling and sum, depthwise conv, norm."""

    def __init__(self, config: Config, width: int, levels: int):
        super().__init__()
        self.start, self.scale_factor = config.model.fpn_start_level, config.model.scale_factor
        with_ln, out, kept = config.model.fpn_with_ln, config.model.fpn_dim, range(self.start, levels)
        self.lateral_convs = nn.ModuleList(MaskedConv1D(width, out, 1, bias=not with_ln) for _ in kept)
        self.fpn_convs = nn.ModuleList(MaskedConv1D(out, out, 3, groups=out, bias=not with_ln) for _ in kept)
        self.fpn_norms = nn.ModuleList(LayerNorm(out) if with_ln else nn.Identity() for _ in kept)

    def forward(self, feats: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """Lists of (B, T_l, C) and (B, T_l), fine to coarse -> (B, T_l, fpn_dim) of the levels from fpn_start_level on."""
        masks = masks[self.start:]
        laterals = [conv(x, m) for conv, x, m in zip(self.lateral_convs, feats[self.start:], masks, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + laterals[i].repeat_interleave(self.scale_factor, dim=1)
        convs = zip(self.fpn_convs, self.fpn_norms, laterals, masks, strict=True)
        return [norm(conv(x, m)) for conv, norm, x, m in convs]


NECKS: dict[str, type[nn.Module]] = {"identity": IdentityNeck, "fpn": FPN}
