"""Relations between the keys of the model section, and to the lengths of videos."""
from __future__ import annotations

import dataclasses
import math

from libs.core.errors import nearest
from libs.core.relations.fail import Fail
from libs.core.schema import Config, ModelConfig, as_tuple

SGP_GROUPS = 16  # of the GroupNorm in SGP blocks
TRIDENT_KEYS = ("num_bins", "boudary_kernel_size", "trident_border", "iou_weight_power")


def max_div_factor(config: Config) -> int:
    """Padding unit of the reference beyond max_seq_len, in feature steps (SPEC items 12 and 13, SPEC_FAMILY F6).

    The least common multiple over the backbone's levels l = 0 .. arch[2] of stride_l * 2 * (w_l // 2) (local window w_l > 1) or
    stride_l (global, or no windows).  The reference takes the maximum, which is wrong for mixed windows, and refuses a
    max_seq_len that is not a multiple of it; our attention accepts any.  SGP: the least multiple of the last stride and of the
    reference's maximum of stride_l * w_l, since statistics depend on the length.
    """
    strides = [config.model.scale_factor**level for level in range(config.model.backbone_arch[2] + 1)]
    if config.model.backbone_type == "SGP":
        return math.lcm(strides[-1], max(s * w for s, w in zip(strides, config.level_windows, strict=True)))
    windows = config.level_windows if config.model.backbone_type == "convTransformer" else (-1,) * len(strides)
    return math.lcm(*(s * (2 * (w // 2) if w > 1 else 1) for s, w in zip(strides, windows, strict=True)))


def check_hallucination(config: Config, fail: Fail) -> None:
    """Hallucinated modalities, their fusion, and the gate of the neck."""
    model, declared = config.model, config.dataset.modalities or {}
    if (model.hallucinator == "none") != (not model.hallucinated):
        fail("model.hallucinated", f"{list(model.hallucinated)} does not fit hallucinator: {model.hallucinator}; name what "
             "it hallucinates, e.g. hallucinator: separable with hallucinated: [flow], or use none and []")
    if model.hallucinated and model.modalities is None:
        fail("model.modalities", "is not set; a model that hallucinates must name the modalities that it reads, e.g. [rgb]")
    for name in model.hallucinated:
        if name not in declared:
            fail("model.hallucinated", f"{name!r} is not declared in dataset.modalities{nearest(name, declared)}; use "
                 f"{', '.join(declared)}")
        if name in (model.modalities or ()):
            fail("model.hallucinated", f"{name!r} is read from files too (model.modalities); take it out of one of them")
    if len(set(model.hallucinated)) < len(model.hallucinated):
        fail("model.hallucinated", f"{list(model.hallucinated)} names a modality twice")
    if model.fusion == "gated" and len((model.modalities or ()) + model.hallucinated) < 2:
        fail("model.fusion", "gated fusion needs at least two streams in model.modalities and model.hallucinated; use none")
    if model.temporal_gate != "none" and model.fpn_type != "identity":
        fail("model.temporal_gate", f"{model.temporal_gate} belongs to fpn_type: identity; use none")


def check_widths(config: Config, fail: Fail) -> None:
    """Widths of inputs and embeddings."""
    model = config.model
    inputs, widths = config.backbone_input_dim, model.embd_dim
    if isinstance(inputs, tuple) != isinstance(widths, tuple) or len(as_tuple(inputs)) != len(as_tuple(widths)):
        fail("model.embd_dim", f"{_text(widths)} does not fit the model's input of {_text(inputs)} channels: one width per input "
             "(a list for a list of the same length, one number for one number)")
    width = sum(as_tuple(widths))
    if model.backbone_arch[0] == 0 and not isinstance(inputs, tuple) and inputs != width:
        fail("model.backbone_arch", f"0 embedding convs cannot turn {inputs} channels into embd_dim {width}; use at least 1")


def check_blocks(config: Config, fail: Fail) -> None:
    """Keys of the backbone's blocks, of the trident head and of the identity neck."""
    model, width = config.model, sum(as_tuple(config.model.embd_dim))
    if model.backbone_type == "convTransformer" and model.backbone_arch[2] and model.scale_factor % 2:
        fail("model.scale_factor", f"{model.scale_factor} is odd, but the downsampling convolutions of convTransformer have "
             f"scale_factor + 1 taps and need a centre; use {model.scale_factor - 1} or {model.scale_factor + 1}, or "
             "backbone_type: conv")
    if model.use_trident_head and model.offset_bias:
        fail("model.offset_bias", f"{model.offset_bias:g}: the trident head has bins instead of offsets; set it to 0")
    if not model.use_trident_head:
        for key in TRIDENT_KEYS:
            if (value := getattr(model, key)) != getattr(ModelConfig, key):
                fail(f"model.{key}", f"{value} belongs to the trident head; set use_trident_head: true, or leave it out")
    if model.backbone_type == "SGP":
        if model.sgp_mlp_dim is None:
            fail("model.sgp_mlp_dim", f"is not set; backbone_type: SGP needs the width of its MLPs, e.g. {3 * width // 2}")
        if width % SGP_GROUPS:
            near = max(round(width / SGP_GROUPS), 1) * SGP_GROUPS
            fail("model.embd_dim", f"{width} is not a multiple of {SGP_GROUPS}, the groups of the GroupNorm of SGP; use {near}")
        if model.backbone_arch[2] and model.scale_factor % 2 and model.downsample_type == "max":
            fail("model.scale_factor", f"{model.scale_factor} is odd, but max pooling of SGP needs an even number; use "
                 f"{model.scale_factor - 1} or {model.scale_factor + 1}, or downsample_type: avg")
    if model.backbone_type == "convTransformer" and width % model.n_head:
        fits = [n for n in range(1, width + 1) if width % n == 0]
        fail("model.n_head", f"{model.n_head} heads do not divide the width {width} (model.embd_dim); "
             f"use {min(fits, key=lambda n: abs(n - model.n_head))}, or another width")
    if model.fpn_type == "identity" and width != model.fpn_dim:
        fail("model.fpn_dim", f"{model.fpn_dim} differs from the backbone's width {width} (model.embd_dim), which the identity "
             f"neck cannot change; use fpn_dim: {width}, or fpn_type: fpn")


def check_pooler(config: Config, fail: Fail) -> None:
    """Keys that the backbone of TemporalMaxer has no use for."""
    model = config.model
    if model.backbone_type != "convPooler":
        if config.model_name == "TemporalMaxerArchitecture":
            fail("model.backbone_type", f"{model.backbone_type} is not the backbone of model_name: TemporalMaxerArchitecture; "
                 "use convPooler, or model_name: LocPointTransformer")
        return
    embeddings, stem, branch = model.backbone_arch
    if stem:
        fail("model.backbone_arch", f"{list(model.backbone_arch)}: convPooler has no stem blocks; write [{embeddings}, {branch}] "
             f"or [{embeddings}, 0, {branch}]")
    if max(config.level_windows) > 1:
        fail("model.n_mha_win_size", "convPooler has no attention; remove the windows, or choose another backbone_type")
    for name in ("use_abs_pe", "use_rel_pe"):
        if getattr(model, name):
            fail(f"model.{name}", "convPooler has no position encoding; use false, or another backbone_type")


def check_neck_norm(config: Config, fail: Fail) -> None:
    """The norm of the neck."""
    model, width = config.model, sum(as_tuple(config.model.embd_dim))
    if model.fpn_type != "identity" and model.fpn_norm != "layernorm":
        fail("model.fpn_norm", f"{model.fpn_norm} belongs to fpn_type: identity; use layernorm (the fpn neck obeys fpn_with_ln)")
    if model.fpn_norm == "groupnorm" and width % model.num_group:
        fits = [n for n in range(1, width + 1) if width % n == 0]
        fail("model.num_group", f"{model.num_group} groups do not divide the width {width} (model.embd_dim); use "
             f"{min(fits, key=lambda n: abs(n - model.num_group))}, or another width")


def check_assigner(config: Config, fail: Fail) -> None:
    """Keys that the cost assigner alone has."""
    assigner = config.model.assigner
    if assigner.type == "cost":
        if config.model.use_trident_head:
            fail("model.assigner.type", "cost compares one segment per point, but the trident head predicts one per class; use "
                 "center, or use_trident_head: false")
        return
    for field in dataclasses.fields(assigner):
        if (value := getattr(assigner, field.name)) != field.default:
            fail(f"model.assigner.{field.name}", f"{value} belongs to type: cost; set model.assigner.type: cost, or leave it out")


def check_attention(config: Config, fail: Fail) -> None:
    """Windows of the backbone's levels."""
    model, windows, levels = config.model, config.level_windows, config.model.backbone_arch[2] + 1
    if len(windows) != levels:
        key = "n_sgp_win_size" if model.backbone_type == "SGP" else "n_mha_win_size"
        fail(f"model.{key}", f"{list(windows)} has {len(windows)} windows, but the backbone has {levels} levels "
             f"(backbone_arch[2] + 1); write {levels}, or one number for all")
    if model.use_rel_pe and model.backbone_type == "convTransformer" and max(windows) <= 1:
        fail("model.use_rel_pe", "needs local attention, but every window of model.n_mha_win_size is global; set a window, "
             "e.g. n_mha_win_size: 19, or use_rel_pe: false")


def check_levels(config: Config, fail: Fail) -> None:
    """Strides, levels and their regression ranges."""
    model, top = config.model, config.model.backbone_arch[2]
    coarsest, length = model.scale_factor**top, config.dataset.max_seq_len
    if length % coarsest:
        lower, upper = length // coarsest * coarsest, -(-length // coarsest) * coarsest
        fail("dataset.max_seq_len", f"{length} is not a multiple of the coarsest level's stride {coarsest} (scale_factor ** "
             f"backbone_arch[2]); use {f'{lower} or ' if lower else ''}{upper}")
    if model.fpn_start_level > top:
        fail("model.fpn_start_level", f"{model.fpn_start_level} leaves no level: the backbone has levels 0 to {top}")
    ranges, levels = model.regression_range, top + 1 - model.fpn_start_level
    if len(ranges) != levels:
        fail("model.regression_range", f"has {len(ranges)} ranges, but the model has {levels} levels (backbone_arch[2] + 1 - "
             f"fpn_start_level); write one [low, high] for each")
    for low, high in ranges:
        if low >= high:
            fail("model.regression_range", f"[{low:g}, {high:g}] is empty; write [low, high] with low < high")


def _text(value: int | tuple[int, ...]) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
