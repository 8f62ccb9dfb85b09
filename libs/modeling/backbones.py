"""Backbones: features (B, T, C_in) -> one feature map per level, each `scale_factor` times shorter than the one before.

All share the embedding, the stem (full resolution) and the branch (one downsampling block per further level); they differ
by their block.  A new one is a subclass with `make_block` and a line in BACKBONES.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.core.schema import Config
from libs.modeling.blocks.conv import ConvBlock
from libs.modeling.blocks.convnext import ConvNextBlock
from libs.modeling.blocks.layers import LayerNorm, MaskedConv1D
from libs.modeling.blocks.pooling import MaxPoolBlock
from libs.modeling.blocks.sgp import SGPBlock
from libs.modeling.blocks.transformer import TransformerBlock
from libs.modeling.kernels.in_place import plain_masked


def sinusoid_table(length: int, channels: int) -> Tensor:
    """(length, channels) float32 sine/cosine position table (Vaswani et al. 2017), divided by sqrt(channels)."""
    position = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    channel = torch.arange(channels)
    angle = position / torch.pow(10000.0, 2.0 * (channel // 2).double() / channels)
    table = torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()
    return table / math.sqrt(channels)


class Backbone(nn.Module):
    """Embedding, stem and branch around the blocks of a subclass."""

    position: Tensor | None  # (max_seq_len, width)
    uses_position = True
    separable = False  # depthwise + 1x1 convs in the embedding and the projections of list inputs

    def __init__(self, config: Config):
        super().__init__()
        model = config.model
        n_embd, n_stem, n_branch = model.backbone_arch
        input_dim, embd_dim = config.backbone_input_dim, model.embd_dim
        in_channels = width = sum(embd_dim) if isinstance(embd_dim, tuple) else embd_dim
        self.scale_factor = model.scale_factor
        self.input_dims = input_dim if isinstance(input_dim, tuple) else None
        if isinstance(input_dim, tuple):
            widths = embd_dim if isinstance(embd_dim, tuple) else (embd_dim,) * len(input_dim)
            self.proj = nn.ModuleList(MaskedConv1D(i, o, 1, separable=self.separable)
                                      for i, o in zip(input_dim, widths, strict=True))
            in_channels = width = sum(widths)
        else:
            in_channels = input_dim
        self.width = width
        self.embd = nn.ModuleList(
            MaskedConv1D(in_channels if i == 0 else width, width, model.embd_kernel_size, bias=not model.embd_with_ln,
                         separable=self.separable)
            for i in range(n_embd))
        self.embd_norm = nn.ModuleList(LayerNorm(width) if model.embd_with_ln else nn.Identity() for _ in range(n_embd))
        if n_embd == 0 and in_channels != width:
            raise ValueError("without embedding convs the input must have the width of the backbone")
        windows = config.level_windows
        self.stem = nn.ModuleList(self.make_block(config, width, 1, windows[0]) for _ in range(n_stem))
        self.branch = nn.ModuleList(
            MaxPoolBlock(model.scale_factor) if model.branch_type == "max_pool"
            else self.make_block(config, width, model.scale_factor, window) for window in windows[1:n_branch + 1])
        table = sinusoid_table(config.dataset.max_seq_len, width) if self.uses_position and model.use_abs_pe else None
        self.register_buffer("position", table, persistent=False)
        for module in self.modules():  # the published initialisation: torch's own, with every bias at zero
            if isinstance(module, (nn.Conv1d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def make_block(self, config: Config, width: int, stride: int, window: int) -> nn.Module:
        """The block of this backbone: (B, T, C), output mask -> (B, T / stride, C)."""
        raise NotImplementedError

    def embed(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, C_in) -> (B, T, width): projections of list inputs, embedding convs, position encoding."""
        if self.input_dims is not None:
            parts = x_BTC.split(self.input_dims, dim=-1)
            x_BTC = torch.cat([proj(part, mask_BT) for proj, part in zip(self.proj, parts, strict=True)], dim=-1)
        for conv, norm in zip(self.embd, self.embd_norm, strict=True):
            x_BTC = F.relu(norm(conv(x_BTC, mask_BT)), inplace=True)
        if self.position is not None:
            T, table = x_BTC.shape[1], self.position
            if table.shape[0] < T:  # longer than in training: the table is stretched
                table = F.interpolate(table.t().unsqueeze(0), T, mode="linear", align_corners=False)[0].t()
            x_BTC = x_BTC + table[:T] * mask_BT.unsqueeze(-1).to(x_BTC.dtype)
        return x_BTC

    def before_pooling(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """What a downsampling block gets; padded steps are left as they are."""
        return x_BTC

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Features per level, fine to coarse, and their masks; T must be a multiple of the coarsest stride."""
        x = self.embed(x_BTC, mask_BT)
        for block in self.stem:
            x = block(x, mask_BT)
        feats, masks = [x], [mask_BT]
        for block in self.branch:
            x = self.before_pooling(x, mask_BT)
            mask_BT = mask_BT[:, ::self.scale_factor]
            x = block(x, mask_BT)
            feats.append(x)
            masks.append(mask_BT)
        return feats, masks


class ConvTransformerBackbone(Backbone):
    """The ActionFormer backbone: transformer blocks with local attention (Zhang et al., ECCV 2022)."""

    def make_block(self, config: Config, width: int, stride: int, window: int) -> nn.Module:
        model, train = config.model, config.train_cfg
        return TransformerBlock(width, model.n_head, stride, window, train.dropout, train.droppath, model.use_rel_pe)


class ConvBackbone(Backbone):
    """Residual convolutions; ignores attention windows, position encoding and drop path."""

    uses_position = False

    def make_block(self, config: Config, width: int, stride: int, window: int) -> nn.Module:
        return ConvBlock(width, stride, self.separable)


class ConvDwBackbone(ConvBackbone):
    """`ConvBackbone` with every convolution, embedding included, split into a depthwise and a 1x1 one (SPEC section 12)."""

    separable = True


class ConvNextBackbone(Backbone):
    """Large depthwise kernels and narrow MLPs, separable embedding: a student's backbone (`libs.modeling.blocks.convnext`)."""

    uses_position = False
    separable = True

    def embed(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        return plain_masked(super().embed(x_BTC, mask_BT), mask_BT)  # wide kernels must not see norm biases

    def make_block(self, config: Config, width: int, stride: int, window: int) -> nn.Module:
        model, train = config.model, config.train_cfg
        return ConvNextBlock(width, stride, model.block_kernel_size, model.block_expansion, train.dropout, train.droppath)


class SGPBackbone(Backbone):
    """The TriDet backbone: depthwise convolutions and GroupNorm instead of attention (`libs.modeling.blocks.sgp`)."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.padding: float | None = None  # of pooling, at padded steps
        if config.model.masked_stats:
            self.padding = 0.0 if config.model.downsample_type == "avg" else -math.inf

    def before_pooling(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        return x_BTC if self.padding is None else torch.where(mask_BT.unsqueeze(-1), x_BTC, self.padding)

    def make_block(self, config: Config, width: int, stride: int, window: int) -> nn.Module:
        return SGPBlock(width, stride, window, config.train_cfg.droppath, config.model)


class ConvPoolerBackbone(Backbone):
    """The TemporalMaxer backbone: the embedding, then max pooling of 3 steps around every stride-th (SPEC_FAMILY F22, F23).

    The published levels keep what the embedding's norm leaves at padded steps, which the pooling of the next level reads.
    """

    uses_position = False

    def __init__(self, config: Config):
        super().__init__(config)
        self.masked_stats = config.model.masked_stats

    def before_pooling(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        lowest = torch.finfo(x_BTC.dtype).min  # not -inf, which times the mask would be NaN
        return torch.where(mask_BT.unsqueeze(-1), x_BTC, lowest) if self.masked_stats else x_BTC

    def make_block(self, config: Config, width: int, stride: int, window: int) -> nn.Module:
        return MaxPoolBlock(stride, kernel=3)


BACKBONES: dict[str, type[Backbone]] = {"convTransformer": ConvTransformerBackbone, "conv": ConvBackbone,
                                        "conv_dw": ConvDwBackbone, "convnext": ConvNextBackbone, "SGP": SGPBackbone,
                                        "convPooler": ConvPoolerBackbone}
