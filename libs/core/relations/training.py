"""Relations between the keys of the sections loader, train_cfg and opt, and the key devices."""
from __future__ import annotations

import itertools
import re

from libs.core.errors import nearest
from libs.core.relations.fail import Fail
from libs.core.schema import Config

DEVICE = re.compile(r"cpu|auto|cuda(:[0-9]+)?")


def check_devices(config: Config, fail: Fail) -> None:
    """The entries of `devices`."""
    devices = config.devices
    if not devices:
        fail("devices", "is empty; choose one: cpu, auto, cuda or cuda:N")
    for device in devices:
        if not DEVICE.fullmatch(device):
            guess = nearest(device, ("cpu", "auto", "cuda:0"))
            fail("devices", f"{device!r} is not a device{guess}; use cpu, auto, cuda or cuda:N")
        if len(devices) > 1 and not device.startswith("cuda:"):
            fail("devices", f"{device!r} in a list of several; a list names one GPU per process, e.g. [cuda:0, cuda:1]; on the "
                 "CPU torchrun --nproc_per_node alone sets the number of processes")
    if len(devices) > 1 and len({int(d[5:]) for d in devices}) < len(devices):
        fail("devices", f"{list(devices)} names a GPU twice; every process needs its own")


def check_loader(config: Config, fail: Fail) -> None:
    """Buckets, and what makes them useless."""
    loader = config.loader
    if loader.bucket == 1:
        fail("loader.bucket", "1: a single batch has no others to exchange videos with; use 0 (off) or at least 2, e.g. 16")
    for equal, cause, remedy in ((loader.padding == "max_seq_len", "loader.padding: max_seq_len", "padding: shortest"),
                                 (config.padding_counts, "statistics over padding", "model.masked_stats: true")):
        if loader.bucket and equal:
            fail("loader.bucket", f"{loader.bucket}: with {cause} all batches are equally long, so sorting videos by length "
                 f"saves nothing; use bucket: 0, or {remedy}")


def check_training(config: Config, fail: Fail) -> None:
    """train_cfg, mixup of both sections, and how training reads the dataset."""
    data, train = config.dataset, config.train_cfg
    if train.cuda_graphs and config.distill.teachers:
        fail("train_cfg.cuda_graphs", "true cannot record teacher outputs; set it to false, or train without distill.teachers")
    for key, off in (("use_trident_head", False), ("input_noise", 0.0)):  # pairs differ in number; noise was never tried
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
    for key, used in (("frame_drop", train.frame_drop.probability > 0), ("swap_actions", train.swap_actions > 0)):
        if train.cuda_graphs and used:  # what is replaced differs in every step
            fail("train_cfg.cuda_graphs", f"true cannot record steps with train_cfg.{key}; set it to false")
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


def check_schedule(config: Config, fail: Fail) -> None:
    """Learning rates and epochs."""
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
