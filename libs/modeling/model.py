"""The localization network: a pure function from features (B, T, C) and their mask (B, T) to `LevelOutputs`."""
from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from libs.core.schema import Config
from libs.modeling.backbones import BACKBONES
from libs.modeling.hallucination import GatedFusion, make_hallucinator
from libs.modeling.heads import ClsHead, RegHead
from libs.modeling.kernels.chunks import in_pieces
from libs.modeling.necks import NECKS
from libs.modeling.points import PointGrid, point_grid


class LevelOutputs(NamedTuple):
    """What the network says about P points, the points of all FPN levels, fine to coarse."""

    logits: Tensor  # (B, P, K) class logits, 0 at padded points
    offsets: Tensor  # (B, P, 2) distances to start and end in units of the level stride, 0 at padded points
    mask: Tensor  # (B, P) bool, valid points
    points: Tensor  # (P, 4) t, range low, range high, stride, in grid units
    level_sizes: tuple[int, ...]  # points per level, their sum is P


class Features(NamedTuple):
    """What the network computes on the way; padded steps hold whatever the layer left there."""

    inputs: Tensor  # (B, T, C_in) streams that are read, then those that are hallucinated, before their fusion
    stem: Tensor  # (B, T, C) finest backbone feature, before the branch and the neck
    levels: tuple[Tensor, ...]  # (B, T_l, C) per FPN level, what the heads see


class LocPointTransformer(nn.Module):
    """ActionFormer (Zhang et al., ECCV 2022) and its variants: backbone, neck and shared heads."""

    def __init__(self, config: Config, empty_classes: Collection[int] = ()):
        super().__init__()
        model = config.model
        levels = model.backbone_arch[2] + 1
        self.train_precision, self.test_precision = config.train_cfg.precision, config.test_cfg.precision
        self.strides = tuple(model.scale_factor ** i for i in range(model.fpn_start_level, levels))
        self.ranges = model.regression_range
        self.hallucinator_name = "rgb2flow" if model.hallucinator == "rgb2flow" else "hallucinator"  # published name
        if model.hallucinator != "none":
            self.add_module(self.hallucinator_name, make_hallucinator(config))
        self.fusion = GatedFusion.of(config) if model.fusion == "gated" else None
        self.backbone = BACKBONES[model.backbone_type](config)
        self.neck = NECKS[model.fpn_type](config, self.backbone.width, levels)
        self.cls_head = ClsHead(config, empty_classes)
        self.reg_head = RegHead(config, len(self.strides))
        self.input_dropout = nn.Dropout1d(config.train_cfg.input_dropout)

    @property
    def coarsest_stride(self) -> int:
        """Grid steps between two points of the last level; T must be a multiple of it."""
        return self.strides[-1]

    def forward(self, feats_BTC: Tensor, mask_BT: Tensor, grid: PointGrid | None = None) -> LevelOutputs:
        """Features (B, T, C) float and valid steps (B, T) bool -> `LevelOutputs`; see `trace`."""
        with self._precision(feats_BTC):
            _, maps, masks = self._backbone(feats_BTC, mask_BT)
            return self._heads(*self.neck(maps, masks), self.grid(mask_BT) if grid is None else grid)

    def trace(self, feats_BTC: Tensor, mask_BT: Tensor, grid: PointGrid | None = None) -> tuple[LevelOutputs, Features]:
        """Features (B, T, C) float and valid steps (B, T) bool -> `LevelOutputs` and the `Features` behind them.

        T must be a multiple of `coarsest_stride`; valid steps come first, padded ones are zero.  Raises ValueError otherwise.
        `grid`: `self.grid(mask_BT)`, if the caller has it already.
        """
        with self._precision(feats_BTC):
            inputs, maps, masks = self._backbone(feats_BTC, mask_BT)
            stem = maps[0]
            levels, masks = self.neck(maps, masks)
            outputs = self._heads(list(levels), masks, self.grid(mask_BT) if grid is None else grid)
            return outputs, Features(inputs, stem, tuple(levels))

    def grid(self, mask_BT: Tensor) -> PointGrid:
        """Points, their mask and the level sizes of the outputs for valid steps (B, T), without running the network."""
        return point_grid(mask_BT, self.strides, self.ranges)

    def _precision(self, feats_BTC: Tensor) -> AbstractContextManager:
        """Mixed precision as train_cfg or test_cfg asks for; outputs are float32 in any case."""
        if (self.train_precision if self.training else self.test_precision) != "bf16":
            return nullcontext()
        return torch.autocast(feats_BTC.device.type, torch.bfloat16)

    def _backbone(self, feats_BTC: Tensor, mask_BT: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Input of the backbone before its fusion, one feature map per level, their masks."""
        if feats_BTC.shape[1] % self.coarsest_stride:
            raise ValueError(f"{feats_BTC.shape[1]} steps are not a multiple of the coarsest stride {self.coarsest_stride}")
        if self.training and self.input_dropout.p > 0:
            feats_BTC = self.input_dropout(feats_BTC.transpose(1, 2)).transpose(1, 2).contiguous()
        hallucinator = getattr(self, self.hallucinator_name, None)
        if hallucinator is not None:
            feats_BTC = torch.cat([feats_BTC, hallucinator(feats_BTC, mask_BT)], dim=-1)
        fused_BTC = feats_BTC if self.fusion is None else self.fusion(feats_BTC, mask_BT)
        return feats_BTC, *self.backbone(fused_BTC, mask_BT)

    def _heads(self, levels: list[Tensor], masks: list[Tensor], grid: PointGrid) -> LevelOutputs:
        """Outputs of the heads on the levels (B, T_l, C), fine to coarse, with masks (B, T_l); empties `levels`."""
        sizes = grid.level_sizes
        if in_pieces(levels[0], grid.mask):  # joined, they would take the memory of another pyramid
            said = [(self.cls_head(x, m, (n,)), self.reg_head(x, m, (n,), i))
                    for i, (x, m, n) in enumerate(zip(levels, masks, sizes, strict=True))]
            logits, offsets = (torch.cat(parts, dim=1) for parts in zip(*said, strict=True))
        else:
            joined = torch.cat(levels, dim=1)
            levels.clear()  # else two pyramids are alive while the heads run
            logits, offsets = self.cls_head(joined, grid.mask, sizes), self.reg_head(joined, grid.mask, sizes)
        return LevelOutputs(logits, offsets, grid.mask, grid.points, sizes)


def build_model(config: Config, empty_classes: Collection[int] = ()) -> LocPointTransformer:
    """The network of a configuration, freshly initialised from torch's global random generator.

    `empty_classes`: ids of classes without annotations; with those of train_cfg.head_empty_cls they start at a low probability.
    """
    return LocPointTransformer(config, empty_classes)
