"""TemporalMaxer's assigner against plain loops, its quirk and the option that corrects it, and the losses that follow."""
from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers import tiny_config

from libs.core.errors import UserError
from libs.core.relations.checks import check_trainable
from libs.core.schema import AssignerConfig
from libs.datasets.loading.batch import Batch
from libs.engine.training.objective import DetectionObjective
from libs.modeling.losses import assigner, targets
from libs.modeling.losses.assigner import assign_by_cost
from libs.modeling.losses.detection import diou_loss, focal_loss
from libs.modeling.model import LevelOutputs, build_model
from libs.modeling.points import make_points

POINTS = make_points([24, 12, 6], [1, 2, 4], [[0, 4], [2, 8], [4, 10000]])
CLASSES = 3
Config = AssignerConfig


def case(seed=0, videos=2, segments=7):
    """Predictions and ground truth with overlaps, a padded segment, and padding in the second video."""
    torch.manual_seed(seed)
    P = len(POINTS)
    start = torch.rand(videos, segments) * 18
    truth = torch.stack((start, start + 1 + torch.rand(videos, segments) * 12), dim=2)
    labels = torch.randint(CLASSES, (videos, segments))
    present = torch.ones_like(labels, dtype=torch.bool)
    present[1, -1] = False
    mask = torch.ones(videos, P, dtype=torch.bool)
    mask[1] = POINTS[:, 0] < 17
    outputs = LevelOutputs(torch.randn(videos, P, CLASSES), torch.rand(videos, P, 2) * 5, mask, POINTS, (24, 12, 6))
    return outputs, truth, labels, present


def slow(outputs, truth, labels, present, config):
    """F27 as it is written: one point, one segment at a time, in float64."""
    B, P = outputs.mask.shape
    owners, weights = torch.zeros(B, P, dtype=torch.int64), torch.zeros(B, P)
    for b in range(B):
        cost = torch.full((P, labels.shape[1]), math.inf, dtype=torch.float64)
        lengths = targets.eligible_lengths(POINTS, truth, present, "radius", config.center_radius)[b]
        for i in range(P):
            t, stride = POINTS[i, 0], POINTS[i, 3]
            for g in range(labels.shape[1]):
                offsets = torch.stack(((t - truth[b, g, 0]) / stride, (truth[b, g, 1] - t) / stride))
                if not (present[b, g] and outputs.mask[b, i] and offsets.min() >= 0):
                    continue
                hard = torch.nn.functional.one_hot(labels[b, g], CLASSES).double()
                cost[i, g] = (config.cls_weight * focal_loss(outputs.logits[b, i].double(), hard).sum()
                              + config.iou_weight * diou_loss(outputs.offsets[b, i].double(), offsets.double()))
        inside = torch.isfinite(cost)
        weights[b] = torch.where(inside.any(1), config.confuse_weight, 1.0)
        for g in range(labels.shape[1]):
            order = sorted(range(P), key=lambda i, g=g: float(cost[i, g]))
            weights[b, order[:int(config.keep_percent * int(inside[:, g].sum()))]] = 1
        weights[b] *= outputs.mask[b]
        if config.owner == "matched":
            cost[~((lengths <= lengths.min(1, keepdim=True).values + 1e-3) & torch.isfinite(lengths))] = math.inf
        owners[b] = cost.argmin(1)
    return owners, weights


@pytest.mark.parametrize("config", [Config("cost", 1.5, 2, 1, 1.0, 0.0), Config("cost"), Config("cost", 2.5, 3, 0.5, 0.3, 0.25),
                                    Config("cost", 1.5, 2, 1, 1.0, 0.0, owner="matched")])
@pytest.mark.parametrize("seed", [0, 1])
def test_assignment_equals_plain_loops(config, seed):
    found, want = assign_by_cost(*case(seed), config), slow(*case(seed), config)
    assert torch.equal(found.owner, want[0])
    assert torch.allclose(found.weights, want[1])
    assert len(found.weights.unique()) == (2 if config.keep_percent == 1 else 3)


def test_many_segments_are_compared_in_parts(monkeypatch):
    config = Config("cost", owner="matched")
    want = assign_by_cost(*case(2), config)
    monkeypatch.setattr(assigner, "MOST_AT_ONCE", 3)
    got = assign_by_cost(*case(2), config)
    assert torch.equal(got.owner, want.owner)
    assert torch.equal(got.weights, want.weights)


def test_a_point_of_a_short_segment_may_get_the_boundaries_of_the_long_one_around_it():
    """The published quirk (F28), and `owner: matched`."""
    truth, labels = torch.tensor([[[2.0, 20.0], [9.0, 12.0]]]), torch.tensor([[0, 1]])
    logits = torch.full((1, len(POINTS), 2), -3.0)
    logits[..., 0] = 3  # the network sees the long one everywhere
    offsets = torch.stack((POINTS[:, 0] - 2, 20 - POINTS[:, 0]), dim=1).clamp(min=0) / POINTS[:, 3:]
    outputs = LevelOutputs(logits, offsets[None], torch.ones(1, len(POINTS), dtype=torch.bool), POINTS, (24, 12, 6))
    present = torch.ones(1, 2, dtype=torch.bool)
    published, corrected = (assign_by_cost(outputs, truth, labels, present, Config("cost", 1.5, owner=owner))
                            for owner in ("inside", "matched"))
    classes = targets.assign_targets(POINTS, truth, labels, present, 2, "radius", 1.5).classes[0]
    short = (classes[:, 1] > 0) & (classes[:, 0] == 0)
    assert short.sum() >= 2
    assert (published.owner[0, short] == 0).all()
    assert (corrected.owner[0, short] == 1).all()


def batch_of(segments):
    n = len(segments)
    torch.manual_seed(1)
    feats, mask = torch.randn(2, 48, 6), torch.ones(2, 48, dtype=torch.bool)
    truth = torch.tensor([segments, segments], dtype=torch.float32).reshape(2, n, 2)
    present = torch.ones(2, n, dtype=torch.bool)
    present[1] = False  # the second video has no actions: background alone
    return Batch(feats, mask, truth, torch.zeros(2, n, dtype=torch.int64), present, samples=())


def objective_of(**assign):
    torch.manual_seed(0)
    config = tiny_config(model_name="TemporalMaxerArchitecture", model={
        "backbone_type": "convPooler", "backbone_arch": [1, 2], "n_mha_win_size": -1, "assigner": assign})
    return DetectionObjective(build_model(config), config), config


def losses_of(objective, batch):
    part = objective.prepare(batch)
    objective.update_normalizer(part.denominators)
    return objective(part, part.denominators), part


def test_a_step_without_any_segment_learns_background():
    objective, _ = objective_of()
    losses, part = losses_of(objective, batch_of([]))
    losses.final.backward()
    assert losses.terms["reg_loss"].item() == 0
    assert losses.terms["cls_loss"].item() > 0
    assert not part.targets.positive.any()
    assert float(objective.criterion.normalizer) == pytest.approx(0.9 * 20 + 0.1)


def test_weights_lower_positive_points_and_their_number():
    segments = [[2, 9], [5, 30], [20, 44]]
    objective, config = objective_of(keep_percent=0.3, confuse_weight=0.25, center_radius=1.5)
    losses, part = losses_of(objective, batch_of(segments))
    outputs = objective.model(part.batch.feats, part.batch.mask)
    weights = objective.complete(part, outputs, part.denominators).weights
    q = weights[part.targets.positive]
    assert set(q.tolist()) == {0.25, 1.0}
    one, _ = objective_of(keep_percent=0.3, confuse_weight=0.25, center_radius=1.5)
    plain, _ = losses_of(one, batch_of(segments))
    normalizer = 0.9 * 20 + 0.1 * float(q.sum())
    assert float(one.criterion.normalizer) == pytest.approx(normalizer)
    assert plain.final.item() == pytest.approx(losses.final.item())
    q_everywhere = torch.where(part.targets.positive, weights, 1.0)
    summed = (focal_loss(outputs.logits, part.targets.classes) * q_everywhere[..., None]).sum().item()
    assert plain.terms["cls_loss"].item() == pytest.approx(summed / normalizer, rel=1e-5)
    assert config.model.assigner.weighted


def test_weights_need_all_batches_of_a_step():
    _, config = objective_of(keep_percent=0.3)
    check_trainable(config)
    several = dataclasses.replace(config, opt=dataclasses.replace(config.opt, accumulation_steps=2))
    with pytest.raises(UserError, match=r"opt\.accumulation_steps: 2.*keep_percent: 1"):
        check_trainable(several)
    _, whole = objective_of(keep_percent=1)
    check_trainable(dataclasses.replace(whole, opt=several.opt))


@pytest.mark.parametrize(("model", "parts"), [
    ({"assigner": {"iou_weight": 2}}, ["model.assigner.iou_weight: 2.0 belongs to type: cost"]),
    ({"assigner": {"type": "cost"}, "use_trident_head": True}, ["model.assigner.type", "use_trident_head: false"]),
    ({"assigner": {"keep_percent": 1.5}}, ["model.assigner.keep_percent", "at most 1"]),
    ({"assigner": {"type": "simota"}}, ["model.assigner.type", "center or cost"]),
])
def test_keys_that_do_not_fit_are_refused(model, parts):
    with pytest.raises(UserError) as error:
        tiny_config(model=model)
    assert all(part in str(error.value) for part in parts), error.value
