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
from libs.modeling.modality_dropout import ModalityDropout
from libs.modeling.necks import NECKS
from libs.modeling.points import PointGrid, point_grid
from libs.modeling.trident import Boundaries, offsets_of_level, offsets_of_pairs


class LevelOutputs(NamedTuple):
    """Predictions of the network at P points, those of all FPN levels, fine to coarse."""

    logits: Tensor  # (B, P, K) class logits, 0 at padded points
    offsets: Tensor  # (B, P, 2) distances to start and end in units of the level stride, 0 at padded points
    mask: Tensor  # (B, P) bool, valid points
    points: Tensor  # (P, 4) t, range low, range high, stride, in grid units
    level_sizes: tuple[int, ...]  # points per level, their sum is P
    boundaries: Boundaries | None = None  # with them `offsets` are bins (B, P, 2 (bins + 1)), and distances differ by class

    def offsets_of(self, video_M: Tensor, point_M: Tensor, class_M: Tensor) -> Tensor:
        """Distances (M, 2) float32 of M triples of video, point and class."""
        if self.boundaries is None:
            return self.offsets[video_M, point_M].float()
        return offsets_of_pairs(self.boundaries, self.offsets, self.level_sizes, video_M, point_M, class_M)

    def offsets_at(self, class_BP: Tensor) -> Tensor:
        """Distances (B, P, 2) of all points, for one class each."""
        if self.boundaries is None:
            return self.offsets
        B, P = class_BP.shape
        index = torch.arange(B * P, device=class_BP.device)
        video, point = torch.div(index, P, rounding_mode="floor"), index % P
        return self.offsets_of(video, point, class_BP.flatten()).view(B, P, 2)

    def all_offsets(self) -> Tensor:
        """Distances (B, P, 2) of all points, with `boundaries` (B, P, K, 2) of all points and classes."""
        if self.boundaries is None:
            return self.offsets
        start, end, outside = self.boundaries
        parts = (x.split(list(self.level_sizes), dim=1) for x in (start, end, self.offsets))
        return torch.cat([offsets_of_level(s, e, bins, outside) for s, e, bins in zip(*parts, strict=True)], dim=1)


class Features(NamedTuple):
    """Intermediate features of the network, undefined at padded steps."""

    inputs: Tensor  # (B, T, C_in) streams that are read, then hallucinated ones, before their fusion
    stem: Tensor  # (B, T, C) finest backbone feature, before the branch and the neck
    levels: tuple[Tensor, ...]  # (B, T_l, C) per FPN level, input of the heads


class LocPointTransformer(nn.Module):
    """ActionFormer (Zhang et al., ECCV 2022) and its variants: backbone, neck and shared heads."""

    def __init__(self, config: Config, empty_classes: Collection[int] = ()):
        super().__init__()
        model = config.model
        levels = model.backbone_arch[2] + 1
        self.train_precision, self.test_precision = config.train_cfg.precision, config.test_cfg.precision
        self.strides = config.level_strides
        self.ranges, self.input_noise = model.regression_range, model.input_noise
        self.valid_borders = model.trident_border == "valid"
        self.hallucinator_name = "rgb2flow" if model.hallucinator == "rgb2flow" else "hallucinator"  # published name
        if model.hallucinator != "none":
            self.add_module(self.hallucinator_name, make_hallucinator(config))
        self.fusion = GatedFusion.of(config) if model.fusion == "gated" else None
        self.backbone = BACKBONES[model.backbone_type](config)
        self.neck = NECKS[model.fpn_type](config, self.backbone.width, levels)
        self.cls_head = ClsHead(config, empty_classes)
        self.start_head: ClsHead | None = None
        self.end_head: ClsHead | None = None
        if model.use_trident_head:
            self.start_head, self.end_head = (ClsHead(config, empty_classes, model.boudary_kernel_size) for _ in range(2))
        self.reg_head = RegHead(config, len(self.strides))
        self.input_dropout = nn.Dropout1d(config.train_cfg.input_dropout)
        drops = config.train_cfg.modality_dropout > 0 or config.test_cfg.drop_modalities
        self.modality_dropout = ModalityDropout(config) if drops else None

    @property
    def coarsest_stride(self) -> int:
        """Grid steps between two points of the last level; T must be a multiple of it."""
        return self.strides[-1]

    def forward(self, feats_BTC: Tensor, mask_BT: Tensor, grid: PointGrid | None = None) -> LevelOutputs:
        """Features (B, T, C) float and valid steps (B, T) bool -> `LevelOutputs`.

        T must be a multiple of `coarsest_stride` (ValueError otherwise); valid steps come first, padded ones are zero.  `grid`:
        `self.grid(mask_BT)`, if already computed.
        """
        with self._precision(feats_BTC):
            maps, masks = self._maps(self._streams(feats_BTC, mask_BT), mask_BT)
            return self._heads(torch.cat(self.neck(maps, masks), dim=1), self.grid(mask_BT) if grid is None else grid)

    def trace(self, feats_BTC: Tensor, mask_BT: Tensor, grid: PointGrid | None = None) -> tuple[LevelOutputs, Features]:
        """As `forward`: the same outputs, and the `Features` behind them."""
        with self._precision(feats_BTC):
            inputs, grid = self._streams(feats_BTC, mask_BT), self.grid(mask_BT) if grid is None else grid
            maps, masks = self._maps(inputs, mask_BT)
            levels = self.neck(maps, masks)
            return self._heads(torch.cat(levels, dim=1), grid), Features(inputs, maps[0], tuple(levels))

    def grid(self, mask_BT: Tensor) -> PointGrid:
        """Points, their mask and the level sizes of the outputs for valid steps (B, T), without running the network."""
        return point_grid(mask_BT, self.strides, self.ranges)

    def _precision(self, feats_BTC: Tensor) -> AbstractContextManager:
        """Autocast if train_cfg.precision or test_cfg.precision is bf16; outputs are float32 in any case."""
        if (self.train_precision if self.training else self.test_precision) != "bf16":
            return nullcontext()
        return torch.autocast(feats_BTC.device.type, torch.bfloat16)

    def _streams(self, feats_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """The features after input noise, modality dropout and dropout, followed by the hallucinated streams."""
        if feats_BTC.shape[1] % self.coarsest_stride:
            raise ValueError(f"{feats_BTC.shape[1]} steps are not a multiple of the coarsest stride {self.coarsest_stride}")
        if self.training and self.input_noise > 0:  # drawn in the published layout and order (SPEC_FAMILY F14)
            B, T, C = feats_BTC.shape
            feats_BTC = feats_BTC + self.input_noise * torch.randn(B, C, T, device=feats_BTC.device).transpose(1, 2)
        if self.modality_dropout is not None:
            feats_BTC = self.modality_dropout(feats_BTC)
        if self.training and self.input_dropout.p > 0:
            feats_BTC = self.input_dropout(feats_BTC.transpose(1, 2)).transpose(1, 2).contiguous()
        hallucinator = getattr(self, self.hallucinator_name, None)
        if hallucinator is None:
            return feats_BTC
        return torch.cat([feats_BTC, hallucinator(feats_BTC, mask_BT)], dim=-1)

    def _maps(self, inputs_BTC: Tensor, mask_BT: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """One feature map per level, and their masks."""
        joined_BTC = inputs_BTC if self.fusion is None else self.fusion(inputs_BTC, mask_BT)
        return self.backbone(joined_BTC, mask_BT)

    def _heads(self, joined_BPC: Tensor, grid: PointGrid) -> LevelOutputs:
        """Outputs of all heads on the levels, joined along time, fine to coarse."""
        logits = self.cls_head(joined_BPC, grid.mask, grid.level_sizes)
        offsets = self.reg_head(joined_BPC, grid.mask, grid.level_sizes)
        boundaries = None
        if self.start_head is not None and self.end_head is not None:
            fixed_BPC = joined_BPC.detach()  # the losses of boundaries do not reach neck and backbone
            boundaries = Boundaries(*(head(fixed_BPC, grid.mask, grid.level_sizes) for head in (self.start_head, self.end_head)))
            if self.valid_borders:
                boundaries = boundaries.within(grid.mask)
        return LevelOutputs(logits, offsets, grid.mask, grid.points, grid.level_sizes, boundaries)


def build_model(config: Config, empty_classes: Collection[int] = ()) -> LocPointTransformer:
    """The network of a configuration, freshly initialised from torch's global random generator.

    `empty_classes`: ids of classes without annotations; with those of train_cfg.head_empty_cls they start at a low probability.
    """
    return LocPointTransformer(config, empty_classes)
