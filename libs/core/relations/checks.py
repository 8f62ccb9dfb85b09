"""Check the relations between configuration keys when a configuration is loaded; every message holds the remedy.

The schema checks single keys (types, bounds, choices); these checks need two keys or arithmetic.  The other files of this folder
hold them, by section.
"""
from __future__ import annotations

from libs.core.relations import data, network, training
from libs.core.relations.distillation import check_distillation, check_teachers
from libs.core.relations.fail import Where, fail_at
from libs.core.schema import Config

IN_ORDER = (
    data.check_paths, data.check_subsets, training.check_devices, data.check_channels, data.check_modalities,
    data.check_dropped_modalities, network.check_hallucination, network.check_widths, network.check_blocks,
    network.check_pooler, network.check_neck_norm, network.check_assigner, network.check_attention, network.check_levels,
    training.check_loader, training.check_training, training.check_schedule, check_teachers, check_distillation)


def check_relations(config: Config, where: Where | None = None) -> None:
    """Raise UserError for the first impossible combination; `where(dotted key)`: 'file: key' (default: `config.source`)."""
    fail = fail_at(config, where)
    for check in IN_ORDER:
        check(config, fail)


def check_trainable(config: Config, where: Where | None = None) -> None:
    """Raise UserError for combinations that training refuses, but prediction accepts in old checkpoints.

    The automatic loss weight is the ratio of two losses of the whole step; accumulated batches would need it before the last.
    """
    steps, weight = config.opt.accumulation_steps, config.train_cfg.loss_weight
    if steps > 1 and weight <= 0:
        fail_at(config, where)("opt.accumulation_steps", f"{steps} cannot be combined with the automatic loss weight "
                               f"(train_cfg.loss_weight: {weight:g}), which needs all losses of a step at once; set "
                               "train_cfg.loss_weight to a positive number, or opt.accumulation_steps: 1")
    if steps > 1 and config.model.assigner.weighted:
        fail_at(config, where)("opt.accumulation_steps", f"{steps} cannot be combined with model.assigner.keep_percent below 1, "
                               "whose weights need the predictions of all batches of a step at once; set keep_percent: 1, or "
                               "opt.accumulation_steps: 1")
