"""Necks: backbone levels -> FPN levels of one width.  A new one is a class and a line in NECKS."""
from __future__ import annotations

from torch import Tensor, nn

from libs.core.schema import Config
from libs.modeling.blocks import LayerNorm, MaskedConv1D


class IdentityNeck(nn.Module):
    """A LayerNorm per level; the width stays that of the backbone."""

    def __init__(self, config: Config, width: int, levels: int):
        super().__init__()
        self.start, with_ln = config.model.fpn_start_level, config.model.fpn_with_ln
        self.fpn_norms = nn.ModuleList(LayerNorm(width) if with_ln else nn.Identity() for _ in range(self.start, levels))

    def forward(self, feats: list[Tensor], masks: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Lists of (B, T_l, C) and (B, T_l), fine to coarse, without the levels below fpn_start_level."""
        kept = feats[self.start:]
        return [norm(x) for norm, x in zip(self.fpn_norms, kept, strict=True)], masks[self.start:]


class FPN(nn.Module):
    """Top-down feature pyramid (Lin et al. 2017): lateral 1x1, nearest upsampling and sum, depthwise conv, norm."""

    def __init__(self, config: Config, width: int, levels: int):
        super().__init__()
        self.start, self.scale_factor = config.model.fpn_start_level, config.model.scale_factor
        with_ln, out, kept = config.model.fpn_with_ln, config.model.fpn_dim, range(self.start, levels)
        self.lateral_convs = nn.ModuleList(MaskedConv1D(width, out, 1, bias=not with_ln) for _ in kept)
        self.fpn_convs = nn.ModuleList(MaskedConv1D(out, out, 3, groups=out, bias=not with_ln) for _ in kept)
        self.fpn_norms = nn.ModuleList(LayerNorm(out) if with_ln else nn.Identity() for _ in kept)

    def forward(self, feats: list[Tensor], masks: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Lists of (B, T_l, C) and (B, T_l), fine to coarse, without the levels below fpn_start_level."""
        masks = masks[self.start:]
        laterals = [conv(x, m) for conv, x, m in zip(self.lateral_convs, feats[self.start:], masks, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + laterals[i].repeat_interleave(self.scale_factor, dim=1)
        convs = zip(self.fpn_convs, self.fpn_norms, laterals, masks, strict=True)
        return [norm(conv(x, m)) for conv, norm, x, m in convs], masks


NECKS: dict[str, type[nn.Module]] = {"identity": IdentityNeck, "fpn": FPN}
