"""Check the relations between configuration keys when a configuration is loaded; every message holds the remedy.

The schema checks single keys (types, bounds, choices); these checks need two keys or arithmetic.
"""
from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import NoReturn

from libs.core.devices import check_devices
from libs.core.errors import UserError, nearest
from libs.core.relations.distillation import Fail, check_distillation, check_teachers
from libs.core.schema import Config, FolderModality, ModelConfig, as_tuple

SGP_GROUPS = 16  # of the GroupNorm in SGP blocks
TRIDENT_KEYS = ("num_bins", "boudary_kernel_size", "trident_border", "iou_weight_power")
Where = Callable[[str], str]


def check_relations(config: Config, where: Where | None = None) -> None:
    """Raise UserError for the first impossible combination; `where(dotted key)`: 'file: key' (default: `config.source`)."""
    fail = _fail_at(config, where)
    for check in (_paths, _subsets, check_devices, _channels, _modalities, _dropped_modalities, _hallucination, _widths, _blocks,
                  _pooler, _neck_norm, _assigner, _attention, _levels, _loader, _training, _schedule, check_teachers,
                  check_distillation):
        check(config, fail)


def check_trainable(config: Config, where: Where | None = None) -> None:
    """Raise UserError for combinations that training refuses, but prediction accepts in old checkpoints.

    The automatic loss weight is the ratio of two losses of the whole step; accumulated batches would need it before the last.
    """
    steps, weight = config.opt.accumulation_steps, config.train_cfg.loss_weight
    if steps > 1 and weight <= 0:
        _fail_at(config, where)("opt.accumulation_steps", f"{steps} cannot be combined with the automatic loss weight "
                                f"(train_cfg.loss_weight: {weight:g}), which needs all losses of a step at once; set "
                                "train_cfg.loss_weight to a positive number, or opt.accumulation_steps: 1")
    if steps > 1 and config.model.assigner.weighted:
        _fail_at(config, where)("opt.accumulation_steps", f"{steps} cannot be combined with model.assigner.keep_percent below 1, "
                                "whose weights need the predictions of all batches of a step at once; set keep_percent: 1, or "
                                "opt.accumulation_steps: 1")


def _fail_at(config: Config, where: Where | None) -> Callable[[str, str], NoReturn]:
    where = where or (lambda dotted: f"{config.source or 'config'}: {dotted}")

    def fail(dotted: str, message: str) -> NoReturn:
        brief = message if len(message) <= 1000 else f"{message[:500]} ... {message[-400:]}"  # the remedy comes last
        raise UserError(f"{where(dotted)}: {brief}")
    return fail


def repeated_folder(folders: Sequence[str]) -> str | None:
    """The first folder of features that is named twice; None: there is none."""
    known = [os.path.normpath(folder) for folder in folders]
    return next((folder for i, folder in enumerate(folders) if known[i] in known[:i]), None)


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


def _paths(config: Config, fail: Fail) -> None:
    data, modalities = config.dataset, config.dataset.modalities or {}
    if not data.json_file:
        fail("dataset.json_file", "is not set; name the annotation file, e.g. ./data/thumos/annotations/thumos14.json")
    own_folders = bool(modalities) and all(isinstance(m, FolderModality) for m in modalities.values())
    if own_folders and config.model.modalities is None:
        fail("model.modalities", f"is not set, but every modality has a folder of its own; name those that the model reads, of "
             f"{', '.join(modalities)}")
    if not own_folders and (not data.feat_folder or (isinstance(data.feat_folder, tuple) and not all(data.feat_folder))):
        fail("dataset.feat_folder", "is not set; name the folder of feature files, e.g. ./data/thumos/i3d_features")
    if repeated := repeated_folder(as_tuple(data.feat_folder)):
        fail("dataset.feat_folder", f"names {repeated} twice, which would double its channels; name it once")
    if not config.output_folder:
        fail("output_folder", "is empty; name the folder that runs are written to, e.g. ./ckpt/")


def _subsets(config: Config, fail: Fail) -> None:
    for name in ("train_split", "val_split"):
        if not getattr(config, name) or not all(getattr(config, name)):
            fail(name, "names no subset of the annotation file; write e.g. [validation]")
    if both := set(config.unlabelled_split) & set(config.train_split + config.val_split):
        fail("unlabelled_split", f"{sorted(both)[0]!r} is in train_split or val_split too; a subset belongs to one of them")


def _channels(config: Config, fail: Fail) -> None:
    """dataset.input_dim and the channel ranges of dataset.modalities."""
    data, width = config.dataset, config.file_channels
    if isinstance(data.input_dim, tuple) and not data.input_dim:
        fail("dataset.input_dim", "is an empty list; write the number of channels of the feature files")
    ranges = {n: m for n, m in (data.modalities or {}).items() if not isinstance(m, FolderModality)}
    for name, (low, high) in ranges.items():
        if not low < high <= width:
            fail("dataset.modalities", f"{name}: [{low}, {high}] is not a range of channels; write [first, last + 1] inside the "
                 f"{width} channels of dataset.input_dim")
    for (a, (first, end)), (b, (start, stop)) in itertools.combinations(ranges.items(), 2):
        if max(first, start) < min(end, stop):
            fail("dataset.modalities", f"{a}: [{first}, {end}] and {b}: [{start}, {stop}] overlap; a channel belongs to one "
                 "modality")


def _modalities(config: Config, fail: Fail) -> None:
    """Names in model.modalities and dataset.feature_gflop."""
    chosen, known = config.model.modalities, list(config.dataset.modalities or {})
    if (costs := config.dataset.feature_gflop) is not None and set(costs) != set(known):
        wrong = next((name for name in costs if name not in known), None)
        what = f"has no {next(n for n in known if n not in costs)}" if wrong is None else (
            f"{wrong!r} is not declared in dataset.modalities{nearest(wrong, known)}")
        fail("dataset.feature_gflop", f"{what}; give one number for each of {', '.join(known) or 'them, and declare them'}")
    if chosen is None:
        return
    if not known:
        fail("model.modalities", f"names {', '.join(chosen) or 'nothing'}, but dataset.modalities declares no channel ranges; "
             "declare them, e.g. {rgb: [0, 1024], flow: [1024, 2048]}")
    for name in chosen:
        if name not in known:
            guess = nearest(name, known)
            fail("model.modalities", f"{name!r} is not declared in dataset.modalities{guess}; use {', '.join(known)}")
    if not chosen or len(set(chosen)) < len(chosen):
        fail("model.modalities", f"{list(chosen)} must name one or more of {', '.join(known)}, each once; null reads all")


def _dropped_modalities(config: Config, fail: Fail) -> None:
    """train_cfg.modality_dropout and test_cfg.drop_modalities against the streams that the network reads."""
    streams, dropped = list(config.stream_spans), config.test_cfg.drop_modalities
    if config.train_cfg.modality_dropout > 0 and len(streams) < 2:
        fail("train_cfg.modality_dropout", f"{config.train_cfg.modality_dropout:g}: the network reads {len(streams)} declared "
             "streams, and one must be left; declare two or more in dataset.modalities, or set modality_dropout: 0")
    if config.train_cfg.modality_dropout > 0 and config.train_cfg.cuda_graphs:
        fail("train_cfg.cuda_graphs", "true cannot record steps with train_cfg.modality_dropout; set it to false")
    for name in dropped:
        if name not in streams:
            fail("test_cfg.drop_modalities", f"{name!r} is not a stream that the network reads{nearest(name, streams)}; use "
                 f"{', '.join(streams) or 'none'}")
    if dropped and not set(streams) - set(dropped):
        fail("test_cfg.drop_modalities", f"{list(dropped)}: leaves no stream; keep one of them")


def _hallucination(config: Config, fail: Fail) -> None:
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


def _widths(config: Config, fail: Fail) -> None:
    model = config.model
    inputs, widths = config.backbone_input_dim, model.embd_dim
    if isinstance(inputs, tuple) != isinstance(widths, tuple) or len(as_tuple(inputs)) != len(as_tuple(widths)):
        fail("model.embd_dim", f"{_text(widths)} does not fit the model's input of {_text(inputs)} channels: one width per input "
             "(a list for a list of the same length, one number for one number)")
    width = sum(as_tuple(widths))
    if model.backbone_arch[0] == 0 and not isinstance(inputs, tuple) and inputs != width:
        fail("model.backbone_arch", f"0 embedding convs cannot turn {inputs} channels into embd_dim {width}; use at least 1")


def _blocks(config: Config, fail: Fail) -> None:
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


def _pooler(config: Config, fail: Fail) -> None:
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


def _neck_norm(config: Config, fail: Fail) -> None:
    model, width = config.model, sum(as_tuple(config.model.embd_dim))
    if model.fpn_type != "identity" and model.fpn_norm != "layernorm":
        fail("model.fpn_norm", f"{model.fpn_norm} belongs to fpn_type: identity; use layernorm (the fpn neck obeys fpn_with_ln)")
    if model.fpn_norm == "groupnorm" and width % model.num_group:
        fits = [n for n in range(1, width + 1) if width % n == 0]
        fail("model.num_group", f"{model.num_group} groups do not divide the width {width} (model.embd_dim); use "
             f"{min(fits, key=lambda n: abs(n - model.num_group))}, or another width")


def _assigner(config: Config, fail: Fail) -> None:
    assigner = config.model.assigner
    if assigner.type == "cost":
        if config.model.use_trident_head:
            fail("model.assigner.type", "cost compares one segment per point, but the trident head predicts one per class; use "
                 "center, or use_trident_head: false")
        return
    for field in dataclasses.fields(assigner):
        if (value := getattr(assigner, field.name)) != field.default:
            fail(f"model.assigner.{field.name}", f"{value} belongs to type: cost; set model.assigner.type: cost, or leave it out")


def _attention(config: Config, fail: Fail) -> None:
    model, windows, levels = config.model, config.level_windows, config.model.backbone_arch[2] + 1
    if len(windows) != levels:
        key = "n_sgp_win_size" if model.backbone_type == "SGP" else "n_mha_win_size"
        fail(f"model.{key}", f"{list(windows)} has {len(windows)} windows, but the backbone has {levels} levels "
             f"(backbone_arch[2] + 1); write {levels}, or one number for all")
    if model.use_rel_pe and model.backbone_type == "convTransformer" and max(windows) <= 1:
        fail("model.use_rel_pe", "needs local attention, but every window of model.n_mha_win_size is global; set a window, "
             "e.g. n_mha_win_size: 19, or use_rel_pe: false")


def _levels(config: Config, fail: Fail) -> None:
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


def _loader(config: Config, fail: Fail) -> None:
    loader = config.loader
    if loader.bucket == 1:
        fail("loader.bucket", "1: a single batch has no others to exchange videos with; use 0 (off) or at least 2, e.g. 16")
    for equal, cause, remedy in ((loader.padding == "max_seq_len", "loader.padding: max_seq_len", "padding: shortest"),
                                 (config.padding_counts, "statistics over padding", "model.masked_stats: true")):
        if loader.bucket and equal:
            fail("loader.bucket", f"{loader.bucket}: with {cause} all batches are equally long, so sorting videos by length "
                 f"saves nothing; use bucket: 0, or {remedy}")


def _training(config: Config, fail: Fail) -> None:
    data, train = config.dataset, config.train_cfg
    if train.cuda_graphs and config.distill.teachers:
        fail("train_cfg.cuda_graphs", "true cannot record teacher outputs; set it to false, or train without distill.teachers")
    for key, off in (("use_trident_head", False), ("input_noise", 0.0)):  # pairs differ in number, noise comes from the CPU
        if train.cuda_graphs and getattr(config.model, key) != off:
            fail("train_cfg.cuda_graphs", f"true cannot record steps with model.{key}; set it to false")
    if train.leave_out is not None and not train.leave_out[0] < train.leave_out[1] > 1:
        fail("train_cfg.leave_out", f"{list(train.leave_out)}: write [part, parts], parts at least 2 and part from 0 to "
             "parts - 1")
    for key, share in (("train_cfg.mixup", train.mixup), ("distill.mixup", config.distill.teachers and config.distill.mixup)):
        if share and config.loader.batch_size == 1:
            fail(key, f"{share:g}: blends every video with another of its batch, but loader.batch_size is 1; use at least 2, or "
                 "mixup: 0")
    for key, used in (("train_cfg.cuda_graphs: true", train.cuda_graphs), ("distill.mixup", config.distill.mixup > 0),
                      ("model.assigner.type: cost", config.model.assigner.type == "cost")):
        if train.mixup and used:
            fail("train_cfg.mixup", f"{train.mixup:g} cannot be combined with {key}; switch one of the two off")
    if train.cuda_graphs and train.frame_drop.probability > 0:  # runs differ in every step
        fail("train_cfg.cuda_graphs", "true cannot record steps with train_cfg.frame_drop; set it to false")
    if train.frame_drop.fill == "other" and config.loader.batch_size == 1:
        fail("train_cfg.frame_drop.fill", "other takes vectors of another video of the batch, but loader.batch_size is 1; use at "
             "least 2, or fill: zeros")
    if train.consistency > 0 and train.frame_drop.probability == 0:
        fail("train_cfg.consistency", f"{train.consistency:g} compares predictions with and without train_cfg.frame_drop, which "
             "is off; set train_cfg.frame_drop.probability, e.g. 0.5, or consistency: 0")
    if set(data.speeds) != {1.0} and (not data.speeds or data.force_upsampling or data.feat_stride <= 0):
        fail("dataset.speeds", f"{list(data.speeds)}: list one speed or more, and [1] for videos that are stretched to a fixed "
             "length (force_upsampling, feat_stride <= 0)")
    if data.crop_ratio and data.crop_ratio[0] > data.crop_ratio[1]:
        low, high = data.crop_ratio
        fail("dataset.crop_ratio", f"[{low}, {high}] is upside down; write [{high}, {low}]")
    if (tious := data.tiou_thresholds) is not None and (not tious or any(a >= b for a, b in itertools.pairwise(tious))):
        fail("dataset.tiou_thresholds", f"{list(tious)} must be strictly ascending, e.g. [0.3, 0.4, 0.5, 0.6, 0.7]")
    for label in train.head_empty_cls:
        if label >= data.num_classes:
            fail("train_cfg.head_empty_cls", f"{label} is not a class; ids are 0 to {data.num_classes - 1} (dataset.num_classes)")


def _schedule(config: Config, fail: Fail) -> None:
    opt = config.opt
    if opt.eta_min is not None and opt.eta_min >= opt.learning_rate:
        fail("opt.eta_min", f"{opt.eta_min:g} is not below opt.learning_rate {opt.learning_rate:g}, from which the rate falls; "
             f"use e.g. {opt.learning_rate / 100:g}")
    if opt.lr_scaling != "none" and opt.lr_reference_batch is None:
        fail("opt.lr_reference_batch", f"is not set, but opt.lr_scaling is {opt.lr_scaling}; write the videos per step that "
             f"opt.learning_rate was chosen for, e.g. {config.loader.batch_size}")
    if config.total_epochs < 1:
        fail("opt.epochs", "0 epochs and no warm-up epochs: nothing would be trained; use at least 1")
    if opt.schedule_type == "multistep":
        steps = opt.schedule_steps
        if not steps or any(a >= b for a, b in itertools.pairwise(steps)):
            fail("opt.schedule_steps", f"{list(steps)}: the multistep schedule needs strictly ascending epochs, e.g. [20, 25]")


def _text(value: int | tuple[int, ...]) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
