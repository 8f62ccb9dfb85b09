"""Golden fixtures of TemporalMaxer's assigner: temporalmaxer_assign, and what model_temporalmaxer_* hold of it."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from golden import common
from golden.common import Check, compare, load, text
from libs.core.schema import AssignerConfig, Config
from libs.datasets.loading.batch import Batch
from libs.engine.training.objective import DetectionObjective
from libs.modeling.losses.assigner import assign_by_cost
from libs.modeling.losses.targets import assign_targets, eligible_lengths, offsets_to, sharing
from libs.modeling.model import LevelOutputs

KEYS = ("iou_weight", "cls_weight", "center_radius", "keep_percent", "confuse_weight")


def check(path: Path) -> list[Check]:
    """The assignment of hand-made cases, from stored predictions."""
    data, checks, case = load(path), [], 0
    while f"case{case}/args" in data:
        args = text(data[f"case{case}/args"])
        config = AssignerConfig(type="cost", **{key: args[key] for key in KEYS})
        points, mask = torch.from_numpy(data[f"case{case}/points"]), torch.from_numpy(data[f"case{case}/mask"])[None]
        for kind in args["sets"]:
            key = f"case{case}/{kind}"
            logits, offsets, segments, labels = (
                torch.from_numpy(data[f"{key}/{name}"])[None] for name in ("logits", "offsets", "segments", "labels"))
            outputs = LevelOutputs(logits, offsets, mask, points, ())
            present = torch.ones_like(labels, dtype=torch.bool)
            found = assign_by_cost(outputs, segments, labels, present, config)
            checks += [_matches(key, outputs, segments, labels, present, config, data[f"{key}/assign"]),
                       compare(f"{key} owners", found.owner[0], data[f"{key}/min_inds"]),
                       compare(f"{key} weights", found.weights[0], data[f"{key}/weights"], atol=1e-6)]
        case += 1
    return checks


def _matches(name: str, outputs: LevelOutputs, segments: Tensor, labels: Tensor, present: Tensor, config: AssignerConfig,
             want: np.ndarray) -> Check:
    """The segments whose classes the points of one video get, as the assigner and `assign_targets` find them."""
    lengths = eligible_lengths(outputs.points, segments, present, "radius", config.center_radius)
    matched = sharing(lengths, lengths.min(2).values)[0] & outputs.mask[0, :, None]
    own = torch.arange(labels.shape[1], device=labels.device)[None]  # one class per segment
    classes = assign_targets(outputs.points, segments, own, present, labels.shape[1], "radius", config.center_radius).classes[0]
    both = torch.stack([matched, (classes > 0) & outputs.mask[0, :, None]])
    return compare(f"{name} matches", both.to(torch.uint8), np.stack([want, want]))


def check_train(data: dict[str, np.ndarray], config: Config, objective: DetectionObjective, batch: Batch) -> list[Check]:
    """Matches, owners, weights and targets of a training batch, from stored predictions and from our own."""
    assigner, positive, checks = config.model.assigner, data["train/gt_cls"].any(-1), []
    with torch.no_grad():
        own = objective.model(batch.feats, batch.mask)
    stored = own._replace(**{to: torch.from_numpy(data[f"train/{name}"]).to(common.device)
                             for to, name in (("logits", "cls_logits"), ("offsets", "offsets"), ("mask", "mask"))})
    for b in range(len(batch.labels)):
        n = int(batch.present[b].sum())
        one = own._replace(mask=own.mask[b:b + 1])
        checks.append(_matches(f"video {b}", one, batch.segments[b:b + 1, :n], batch.labels[b:b + 1, :n],
                               batch.present[b:b + 1, :n], assigner, data[f"train/assign{b}"]))
    for name, outputs in (("stored", stored), ("own", own)):
        found = assign_by_cost(outputs, batch.segments, batch.labels, batch.present, assigner)
        offsets = offsets_to(outputs.points, batch.segments, found.owner).cpu().numpy()
        checks += [compare(f"owners from {name} outputs", found.owner, data["train/min_inds"]),
                   compare(f"weights from {name} outputs", found.weights, data["train/weights"], atol=1e-6),
                   compare(f"offset targets from {name} outputs", offsets[positive], data["train/gt_offsets"][positive],
                           atol=1e-6, rtol=1e-6)]
    return [*checks, compare("logits", own.logits, data["train/cls_logits"], atol=2e-5, rtol=1e-4),
            compare("offsets", own.offsets, data["train/offsets"], atol=2e-5, rtol=1e-4),
            compare("mask", own.mask, data["train/mask"])]
