"""Golden fixtures of the published distillation losses: distill_loss_<stage>."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden import common
from golden.common import Check, compare, load, text
from golden.distill import fixture_config, fixture_features, fixture_weights
from golden.model import batch_of, without_dropout
from libs.core.schema import Config, FeatureTerm
from libs.datasets.loading.batch import Batch
from libs.engine.distill.streams import Columns, input_columns, streams_to_read
from libs.engine.distill.teachers import Teacher, run_teacher
from libs.engine.training.objective import DistillationObjective
from libs.modeling.losses.distillation import (
    TeacherSpec,
    class_denominator,
    class_term,
    feature_denominator,
    feature_term,
    offset_term,
    offset_weight,
    resolve,
    sum_of_points,
)
from libs.modeling.model import build_model

RELATIVE = {"rtol": 1e-4}


def objective_of(info: dict[str, Any]) -> tuple[DistillationObjective, Config]:
    """Student and teachers of a fixture under the preset `c2ms`, through the code that train.py uses."""
    teachers = [{"name": f"teacher{i}", "checkpoint": "fixture"} for i in range(len(info["teachers"]))]
    config = fixture_config(info, info["student"], distill={"preset": "c2ms", "stage": info["stage"], "teachers": teachers})
    settings = resolve(config)
    frozen = []
    for entry, given in zip(settings.teachers, info["teachers"], strict=True):
        teacher_config = fixture_config(info, given["kind"])
        model = build_model(teacher_config).to(common.device)
        fixture_weights(model, given["weight_seed"])
        model.requires_grad_(False).eval()
        spec = TeacherSpec(entry.name, entry.terms, model.backbone.width, teacher_config.model.fpn_dim)
        frozen.append(Teacher(entry.name, teacher_config, None, "raw", model, spec))
    student = build_model(config)
    fixture_weights(student, info["student_seed"])
    without_dropout(student)
    objective = DistillationObjective(student, config, settings, frozen, streams_to_read(config, [t.config for t in frozen]))
    return objective.to(common.device), config


def check(path: Path) -> list[Check]:
    """Every published term, their sum for the stage, and its gradient over the student."""
    data = load(path)
    info = text(data["info"])
    objective, config = objective_of(info)
    objective.train()
    read = streams_to_read(config, [t.config for t in objective.teacher_outputs.teachers])
    width = sum(config.modality_dim(name) for name in read)  # rgb comes first
    videos = {f"video{i}/feats": fixture_features(info, i)[:width] for i in range(len(info["lengths"]))}
    names = [f"video{i}" for i in range(len(info["lengths"]))]
    batch = batch_of({**data, **videos}, names, config.dataset.max_seq_len)
    part = objective.prepare(batch)
    objective.update_normalizer(part.denominators)
    losses = objective(part, part.denominators)
    losses.final.backward()
    gradients = {k: p.grad for k, p in objective.model.named_parameters()}
    norm = torch.sqrt(sum(g.double().square().sum() for g in gradients.values() if g is not None))
    checks = [compare(name, losses.terms[name].detach(), data[name], **RELATIVE) for name in ("det_loss", "cls_loss", "reg_loss")]
    checks += _check_terms(objective, config, batch, data)
    checks += [compare("total", losses.final.detach(), data["total"], **RELATIVE),
               compare("gradient norm", norm, data["grad_norm"], **RELATIVE)]
    return checks + [compare(f"gradient {k}", gradients[k], data[f"grad/{k}"], rtol=1e-4, to_largest=True)
                     for k in text(data["grad_names"])]


@torch.no_grad()
def _check_terms(objective: DistillationObjective, config: Config, batch: Batch, data: dict[str, np.ndarray]) -> list[Check]:
    """Every term without its weight, including those that the stage does not use."""
    settings = objective.distillation.settings
    outputs, features = objective.model.trace(objective.columns(batch.feats), batch.mask)
    teacher_outputs = objective.teacher_outputs(batch)
    mask, sizes, nowhere = outputs.mask, outputs.level_sizes, torch.zeros_like(outputs.mask)
    kl = [class_term(outputs.logits, t.logits, mask, settings.cls, class_denominator(mask, sizes, settings.cls))
          for t in teacher_outputs]
    weights = [offset_weight(t.logits, nowhere, mask, settings.offsets) for t in teacher_outputs]
    offsets = [offset_term(outputs.offsets, t.offsets, weight, sizes, settings.offsets,
                           sum_of_points(weight, sizes, settings.offsets))
               for t, weight in zip(teacher_outputs, weights, strict=True)]

    def mse(student: Tensor, teacher: Tensor, term: FeatureTerm) -> Tensor:
        return feature_term(student, teacher, batch.mask, term, feature_denominator(teacher, batch.mask, term))

    checks = [compare("kl_mean_over_levels", torch.stack(kl), data["kl_mean_over_levels"], **RELATIVE),
              compare("offset_mse", torch.stack(offsets), data["offset_mse"], **RELATIVE),
              compare("stem_mse", mse(features.stem, teacher_outputs[-1].stem, settings.stem), data["stem_mse"], **RELATIVE)]
    teachers = objective.teacher_outputs.teachers
    first, streams = teachers[0], streams_to_read(config, [t.config for t in teachers])
    columns = Columns(config, streams, first.config.model.modalities)
    order = input_columns(config, first.config, first.name)  # the teacher's inputs, whatever the stage uses
    teacher = run_teacher(first, columns(batch.feats), batch.mask, order)
    feature_mse = mse(features.inputs, teacher.inputs, settings.inputs)
    return [*checks, compare("feature_mse", feature_mse, data["feature_mse"], atol=1e-12, **RELATIVE)]
