"""Hidden feature vectors and the consistency loss in training: what the network sees, what teachers see, what is added."""
from __future__ import annotations

import distill_cases
import pytest
import torch
from distill_cases import RGB_ONLY, Setup, student, two_stream
from helpers import show_every_term, tiny_config
from networks import TRIDENT
from steps import losses_of

from libs.core.errors import UserError
from libs.datasets.dataset import TalDataset
from libs.datasets.loading.loader import batches, training_loader
from libs.engine.training.cuda_graphs import graphs_hint
from libs.engine.training.objective import DetectionObjective
from libs.modeling.losses.detection import consistency_losses
from libs.modeling.model import build_model

data, teacher = distill_cases.data, distill_cases.teacher
DROP = {"frame_drop": {"probability": 1.0, "share": 0.5}}


def plain(data, folder, **train_cfg):
    """(objective in evaluation mode, the first batch) of a two-stream model."""
    config = two_stream(data, folder, train_cfg=train_cfg)
    loader, _ = training_loader(TalDataset(config, config.train_split, True), config)
    torch.manual_seed(0)
    return DetectionObjective(show_every_term(build_model(config), 3), config).eval(), next(iter(batches(loader)))


def test_the_network_sees_zeros_in_runs_inside_actions_and_nothing_else(data, tmp_path):
    objective, batch = plain(data, tmp_path, **DROP)
    part = objective.prepare(batch)
    hidden = torch.zeros_like(batch.mask)
    for b, sample in enumerate(batch.samples):
        assert len(sample.hidden) >= 1
        for first, end in sample.hidden:
            hidden[b, first:end] = True
            assert any(start <= first and end - 1 <= stop for start, stop in sample.segments.tolist())
    assert not part.batch.feats[hidden].any()
    assert torch.equal(part.batch.feats[~hidden], batch.feats[~hidden])
    assert batch.feats[hidden].all()  # the batch itself is as it was
    assert part.whole is None
    want = objective.criterion(objective.model(part.batch.feats, batch.mask), part.targets, part.mask)
    got = objective(part, part.denominators)
    assert torch.equal(got.final, want.final)
    assert list(got.terms) == ["cls_loss", "reg_loss"]


def test_the_consistency_loss_is_added_with_its_weight_and_the_whole_view_is_fixed(data, tmp_path):
    objective, batch = plain(data, tmp_path, consistency=2.5, **DROP)
    without, _ = plain(data, tmp_path, **DROP)
    part, base = objective.prepare(batch), losses_of(without, batch)
    objective.update_normalizer(part.denominators)
    got = objective(part, part.denominators)
    views = [objective.model(feats, batch.mask) for feats in (part.batch.feats, batch.feats)]
    want = consistency_losses(views[0], views[1], part.targets, part.targets.positive & part.mask,
                              part.denominators["positives"])
    assert list(got.terms) == ["cls_loss", "reg_loss", "consistency_cls", "consistency_reg"]
    for name, value in want.items():
        assert value > 1e-4
        assert got.terms[name].item() == pytest.approx(value.item(), rel=1e-6)
    assert got.final.item() == pytest.approx((base.final + 2.5 * sum(want.values())).item(), rel=1e-6)
    fixed = views[1]._replace(logits=views[1].logits.detach(), offsets=views[1].offsets.detach())
    terms = consistency_losses(views[0], fixed, part.targets, part.targets.positive & part.mask,
                               part.denominators["positives"])
    weights = list(objective.model.parameters())
    grads = torch.autograd.grad(got.final, weights, allow_unused=True)
    total = objective.criterion(views[0], part.targets, part.mask).final + 2.5 * sum(terms.values())
    expected = torch.autograd.grad(total, weights, allow_unused=True)
    for one, other in zip(grads, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("outputs", ["online", "cache"])
def test_teachers_see_the_whole_features(data, teacher, tmp_path, outputs):
    """The same teacher outputs with and without hidden vectors; a student that reads one of two streams."""
    changes = {"model": RGB_ONLY, "dataset": {"crop_align": 4}, "distill": {"outputs": outputs}}
    base = Setup(student(data, tmp_path, [teacher], **changes))
    taught = Setup(student(data, tmp_path, [teacher], **changes, train_cfg={"consistency": 1.0, **DROP}))
    assert (base.made, taught.made) == (6 * (outputs == "cache"), 0)  # the cache of the first run serves the second
    batch, plain_batch = taught.batches[0], base.batches[0]
    assert torch.equal(batch.feats, plain_batch.feats)
    part, plain_part = taught.objective.prepare(batch), base.objective.prepare(plain_batch)
    assert torch.equal(part.teacher_outputs[0].logits, plain_part.teacher_outputs[0].logits)
    assert not torch.equal(part.batch.feats, plain_part.batch.feats)
    taught.objective.update_normalizer(part.denominators)
    losses = taught.objective(part, part.denominators)
    assert losses.terms["consistency_cls"] > 0
    assert losses.terms["consistency_reg"] >= 0
    terms = dict(losses.terms)
    loss, spec = taught.objective.distillation, taught.teachers[0].spec
    total = (taught.settings.det_weight * terms["det_loss"] + terms["consistency_cls"] + terms["consistency_reg"]
             + sum(loss.weight(spec, term) * terms[f"{term}_{spec.name}"] for term in loss.terms(spec)))
    assert losses.final.item() == pytest.approx(total.item(), rel=1e-5)


def test_runs_can_show_another_video(data, tmp_path):
    objective, batch = plain(data, tmp_path, frame_drop={"probability": 1.0, "share": 0.5, "fill": "other"})
    feats, hidden = objective.prepare(batch).batch.feats, batch.hidden()
    assert torch.equal(feats[~hidden], batch.feats[~hidden])
    assert torch.equal(feats[hidden], torch.cat([batch.feats[-1:], batch.feats[:-1]])[hidden])
    assert not torch.equal(feats[hidden], batch.feats[hidden])


def test_segments_that_differ_by_class(data, tmp_path):
    config = two_stream(data, tmp_path, model=TRIDENT, train_cfg={"consistency": 1.0, **DROP})
    loader, _ = training_loader(TalDataset(config, config.train_split, True), config)
    objective = DetectionObjective(show_every_term(build_model(config), 3), config)
    losses = losses_of(objective, next(iter(batches(loader))))
    assert losses.terms["consistency_reg"] > 0
    losses.final.backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.model.parameters() if p.grad is not None)


def test_what_does_not_go_together():
    with pytest.raises(UserError, match=r"train_cfg.consistency: 2 compares .*set train_cfg.frame_drop.probability, e.g. 0.5"):
        tiny_config(train_cfg={"consistency": 2.0})
    with pytest.raises(UserError, match=r"frame_drop.fill: other .* loader.batch_size is 1; use at least 2, or fill: zeros"):
        tiny_config(train_cfg={"frame_drop": {"fill": "other"}}, loader={"batch_size": 1})
    with pytest.raises(UserError, match=r"train_cfg.cuda_graphs: true cannot record steps with train_cfg.frame_drop"):
        tiny_config(train_cfg={"cuda_graphs": True, **DROP})
    assert graphs_hint(tiny_config(train_cfg=DROP), torch.device("cuda"), 1) is None


def test_blended_videos_are_consistent_at_the_positive_points_of_both(data, tmp_path):
    objective, batch = plain(data, tmp_path, consistency=1.0, mixup=0.5, droppath=0.0, **DROP)
    torch.manual_seed(2)
    part = objective.train().prepare(batch)
    hidden = batch.hidden()
    assert not part.batch.feats[hidden].any()
    assert torch.equal(part.batch.feats[~hidden], part.whole[~hidden])
    assert not torch.equal(part.whole, batch.feats)
    objective.update_normalizer(part.denominators)
    got = objective(part, part.denominators)
    views = [objective.model(feats, batch.mask) for feats in (part.batch.feats, part.whole)]
    one, other = (consistency_losses(*views, p.targets, p.targets.positive & p.mask, part.denominators["positives"])
                  for p in (part, part.other))
    for name in one:
        assert got.terms[name].item() == pytest.approx((part.share * one[name] + (1 - part.share) * other[name]).item(), rel=1e-5)
