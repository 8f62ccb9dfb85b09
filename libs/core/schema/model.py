"""Keys of the section model."""
from __future__ import annotations

# ruff: noqa: E501, RUF009  (a table: one key per line; `key` makes an immutable field)
from dataclasses import dataclass
from typing import Literal

from libs.core.coerce import key
from libs.core.schema.values import Ints

REGRESSION_RANGE = ((0.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0), (32.0, 64.0), (64.0, 10000.0))


@dataclass(frozen=True)
class AssignerConfig:
    """How points get their regression targets."""

    type: Literal["center", "cost"] = key("center", "(ours) center: the shortest segment whose centre is near (train_cfg.center_sample); cost: of the segments around a point the one that its prediction fits best (TemporalMaxer)")
    center_radius: float = key(2.5, "cost: centre radius of positives in level strides", above=0)
    iou_weight: float = key(3.0, "cost: weight of 1 - DIoU between prediction and segment", low=0)
    cls_weight: float = key(1.0, "cost: weight of the focal loss of the segment's class", low=0)
    keep_percent: float = key(0.65, "cost: share of the points inside a segment, the cheapest ones, that count fully", low=0, high=1)
    confuse_weight: float = key(0.1, "cost: weight of the others' positive points", low=0, high=1)
    owner: Literal["inside", "matched"] = key("inside", "(ours) cost: segments that a point may be assigned to: all around it, as published (so its offsets may be those of a segment of another class), or only those whose class it gets")

    @property
    def weighted(self) -> bool:
        """Whether points count by weights, which depend on the predictions."""
        return self.type == "cost" and self.keep_percent < 1


@dataclass(frozen=True)
class ModelConfig:
    backbone_type: Literal["convTransformer", "conv", "conv_dw", "convnext", "SGP", "convPooler"] = key("convTransformer", "backbone; SGP: that of TriDet; convPooler: that of TemporalMaxer")
    block_kernel_size: int = key(9, "(ours) convnext: taps of the depthwise convolutions", low=1, odd="kernel")
    block_expansion: int = key(2, "(ours) convnext: width of the MLPs over that of the backbone", low=1)
    n_sgp_win_size: Ints = key(1, "SGP: window of the depthwise convolutions, per level (the stem's is always 1) or one for all", low=1, odd="window")
    k: float = key(1.5, "SGP: the second window is about k times the first", above=0, high=100)
    sgp_mlp_dim: int | None = key(None, "SGP: hidden channels of the MLPs (required by it)", low=1, high=65536)
    init_conv_vars: float = key(0.0, "SGP: standard deviation of the depthwise convolutions' initial weights; 0: they start at zero, and stay there for ever", low=0)
    downsample_type: Literal["max", "avg"] = key("max", "SGP: downsampling by max pooling, or by means and a 1x1 convolution")
    masked_stats: bool = key(False, "(ours) statistics over time (SGP: pooling, means, GroupNorm; convPooler: pooling; fpn_norm groupnorm) ignore padding, so that batches are padded as little as possible; false: they include it, as published, and every video is padded to its published length")
    branch_type: Literal["block", "max_pool"] = key("block", "(ours) downsampling levels: blocks of the backbone, or max pooling without parameters")
    fpn_type: Literal["identity", "fpn"] = key("identity", "neck")
    backbone_arch: tuple[int, int, int] = key((2, 2, 5), "embedding convs, stem blocks (convPooler: 0), downsampling blocks", low=0, high=64)
    scale_factor: int = key(2, "downsampling between two FPN levels", low=2, high=1024)
    regression_range: tuple[tuple[float, float], ...] = key(REGRESSION_RANGE, "per level: [low, high] of the distances to regress, grid units", low=0)
    n_head: int = key(4, "attention heads", low=1)
    n_mha_win_size: Ints = key(-1, "attention window, per level or one for all; <= 1: global", odd="window")
    embd_kernel_size: int = key(3, "kernel of the embedding convs", low=1, odd="kernel")
    embd_dim: Ints = key(512, "width of the embedding and backbone (a list: one per input)", above=0, high=65536)
    embd_with_ln: bool = key(True, "LayerNorm in the embedding")
    fpn_dim: int = key(512, "width of the neck", above=0, high=65536)
    fpn_with_ln: bool = key(True, "LayerNorm in the fpn neck; false: none in the identity neck either (convPooler ignores it)")
    fpn_norm: Literal["layernorm", "groupnorm", "none"] = key("layernorm", "norm of the identity neck: over the channels of a step; over groups of channels and all steps, padding included, without parameters; or none")
    fpn_shared_norm: bool = key(False, "(ours) one LayerNorm for all levels of the identity neck (published TemporalMaxer), or one for each")
    num_group: int = key(4, "fpn_norm groupnorm: groups of channels", low=1)
    fpn_start_level: int = key(0, "first backbone level that the neck keeps", low=0)
    head_dim: int = key(512, "width of the heads", above=0, high=65536)
    head_kernel_size: int = key(3, "kernel of the head convs", low=1, odd="kernel")
    head_num_layers: int = key(3, "convs per head, the output conv included", low=1, high=64)
    head_with_ln: bool = key(True, "LayerNorm in the heads")
    use_trident_head: bool = key(False, "TriDet: distances as expectations over bins, with heads for the starts and ends of every class")
    num_bins: int = key(16, "trident head: bins on each side of a point, one level stride each; no distance is longer", low=1, high=4096)
    boudary_kernel_size: int = key(3, "trident head: kernel of the start and end heads (published spelling)", low=1, odd="kernel")
    trident_border: Literal["zero", "valid"] = key("zero", "(ours) trident head: bins beyond the first and the last valid point have the logit 0, as published, which draws boundaries near them outwards; valid: they do not count")
    iou_weight_power: float = key(1.0, "trident head: the classification loss of a point and its class counts by this power of the IoU of their segment with the ground truth; 0: all alike", low=0, high=100)
    input_noise: float = key(0.0, "standard deviation of the noise added to the features in training, padded steps included", low=0)
    head_type: Literal["conv", "separable"] = key("conv", "(ours) convs of the heads: dense, or depthwise then pointwise")
    offset_bias: float = key(0.0, "(ours) initial bias of the offsets, in level strides, e.g. 1: with 0 an offset can be zero at every point from the start and then gets no gradient (a dead ReLU); training warns of that", low=0, high=1000)
    max_buffer_len_factor: float = key(6.0, "accepted for published files; points are computed for the length at hand", above=0)
    use_abs_pe: bool = key(False, "sine/cosine position encoding added to the embedding")
    use_rel_pe: bool = key(False, "learned relative position bias in local attention")
    modalities: tuple[str, ...] | None = key(None, "(ours) names from dataset.modalities that the model reads; null: all channels")
    hallucinator: Literal["none", "rgb2flow", "separable", "bottleneck"] = key("none", "(ours) network that predicts missing modalities from those that are read: rgb2flow as published, or a cheaper one")
    hallucinated: tuple[str, ...] = key((), "(ours) names from dataset.modalities that the hallucinator predicts, e.g. [flow]")
    hallucinator_dim: int = key(0, "(ours) hidden channels of the bottleneck hallucinator; 0: a quarter of its output", low=0)
    fusion: Literal["none", "gated"] = key("none", "(ours) gated fusion of the first stream with the rest before the embedding")
    assigner: AssignerConfig = key(AssignerConfig, "regression targets of the points")
    temporal_gate: Literal["none", "published", "post_norm"] = key("none", "(ours) gate over time steps in the identity neck: as published (lengths fixed, no effect behind the norm), or after the norm")
