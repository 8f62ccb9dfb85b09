"""Losses: the formulas, the normaliser, and batches without anything to find."""
from __future__ import annotations

import math

import pytest
import torch
from helpers import padded_batch, show_every_term, tiny_config
from steps import detection_losses

from libs.modeling.losses import DetectionLoss, diou_loss, focal_loss, giou_loss
from libs.modeling.model import build_model


def setup(truth=((10.0, 14.0, 1),), **train_cfg):
    """A network in training mode without random parts, its criterion, and a batch of two videos of which one has `truth`."""
    config = tiny_config(train_cfg={"dropout": 0.0, **train_cfg})
    model = show_every_term(build_model(config)).eval()
    feats, mask = padded_batch([40, 23], 48)
    segments = torch.zeros(2, max(len(truth), 1), 2)
    labels = torch.zeros(2, max(len(truth), 1), dtype=torch.int64)
    present = torch.zeros(2, max(len(truth), 1), dtype=torch.bool)
    for i, (start, end, label) in enumerate(truth):
        segments[1, i], labels[1, i], present[1, i] = torch.tensor([start, end]), label, True
    return model, DetectionLoss(config), model(feats, mask), (segments, labels, present)


def test_focal_loss_by_hand():
    for logit in (-3.0, 0.0, 2.0):
        p = 1 / (1 + math.exp(-logit))
        for t in (0.0, 1.0, 0.1):
            p_t = p * t + (1 - p) * (1 - t)
            ce = -(t * math.log(p) + (1 - t) * math.log(1 - p))
            want = (0.25 * t + 0.75 * (1 - t)) * ce * (1 - p_t) ** 2
            assert focal_loss(torch.tensor([logit]), torch.tensor([t])).item() == pytest.approx(want, rel=1e-5)


def test_iou_losses_by_hand():
    pred, gt = torch.tensor([[2.0, 3.0], [1.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [1.0, 1.0], [2.0, 2.0]])
    assert giou_loss(pred, gt).tolist() == pytest.approx([1 - 4 / 6, 0, 1])
    # centres are 1 apart (0.5 against 1.5), the hull is 2 + 4
    assert diou_loss(pred, gt).tolist() == pytest.approx([1 - 4 / 6 + (1 / 6) ** 2, 0, 1])


def test_points_of_padding_and_of_other_videos_do_not_count():
    _, criterion, out, truth = setup()
    before = detection_losses(criterion, out, *truth).terms
    changed = out._replace(logits=torch.where(out.mask.unsqueeze(-1), out.logits, 50.0),
                           offsets=torch.where(out.mask.unsqueeze(-1), out.offsets, 50.0))
    criterion.normalizer.fill_(20.0)
    after = detection_losses(criterion, changed, *truth).terms
    assert {k: v.item() for k, v in before.items()} == {k: v.item() for k, v in after.items()}


def test_the_normaliser_runs_and_divides():
    _, criterion, out, truth = setup()
    first = detection_losses(criterion, out, *truth)
    assert criterion.normalizer.item() == pytest.approx(0.9 * 20 + 0.1 * 3)  # t = 11, 12, 13 of level 0
    second = detection_losses(criterion, out, *truth)
    after = 0.9 * (0.9 * 20 + 0.1 * 3) + 0.1 * 3
    assert criterion.normalizer.item() == pytest.approx(after)
    assert (second.final / first.final).item() == pytest.approx((0.9 * 20 + 0.1 * 3) / after, rel=1e-5)
    assert "normalizer" not in criterion.state_dict()


@pytest.mark.parametrize("truth", [(), ((10.0, 10.0, 0),), ((-1.5, -0.2, 1),), ((1000.0, 1001.0, 2),)])
@pytest.mark.parametrize("loss_weight", [1.0, -1.0])
def test_batches_without_positives_have_finite_losses_and_gradients(truth, loss_weight):
    model, criterion, out, targets = setup(truth, loss_weight=loss_weight)
    losses = detection_losses(criterion, out, *targets)
    losses.final.backward()
    assert losses.terms["reg_loss"].item() == 0
    assert losses.final.item() == losses.terms["cls_loss"].item() > 0
    assert criterion.normalizer.item() == pytest.approx(0.9 * 20 + 0.1)  # at least one
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.cls_head.cls_head.conv.bias.grad.abs().sum() > 0


def test_the_regression_loss_ignores_points_without_a_segment():
    _, criterion, out, truth = setup()
    poisoned = out.offsets.detach().clone()
    positive = torch.zeros_like(out.mask)
    positive[1, 11:14] = True
    poisoned[~positive] = torch.nan
    poisoned.requires_grad_()
    losses = detection_losses(criterion, out._replace(offsets=poisoned), *truth)
    losses.terms["reg_loss"].backward()
    assert torch.isfinite(losses.final)
    assert torch.isfinite(poisoned.grad).all()
    assert poisoned.grad[positive].abs().sum() > 0
    assert not poisoned.grad[~positive].any()


def test_perfect_and_far_offsets_have_finite_gradients():
    for value in (0.0, 1e-12, 3.0, 1e6):
        pred = torch.full((4, 2), value, requires_grad=True)
        diou_loss(pred, torch.tensor([[3.0, 3.0], [0.0, 1e-3], [1e-9, 1e-9], [100.0, 2.0]])).sum().backward()
        assert torch.isfinite(pred.grad).all()


def test_automatic_weight_balances_the_two_losses():
    _, criterion, out, truth = setup(loss_weight=0.0)
    losses = detection_losses(criterion, out, *truth)
    cls, reg = losses.terms["cls_loss"].item(), losses.terms["reg_loss"].item()
    assert losses.final.item() == pytest.approx(cls + cls / max(reg, 0.01) * reg, rel=1e-5)


def test_loss_weight():
    _, criterion, out, truth = setup(loss_weight=2.5)
    losses = detection_losses(criterion, out, *truth)
    assert losses.final.item() == pytest.approx((losses.terms["cls_loss"] + 2.5 * losses.terms["reg_loss"]).item(), rel=1e-6)


def test_label_smoothing():
    _, criterion, out, truth = setup(label_smoothing=0.2)
    got = detection_losses(criterion, out, *truth).terms["cls_loss"]
    targets = torch.zeros_like(out.logits)
    targets[1, 11:14, 1] = 1
    targets = targets * 0.8 + 0.2 / 4  # three classes and one more
    want = focal_loss(out.logits, targets)[out.mask].sum() / (0.9 * 20 + 0.1 * 3)
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    assert criterion.normalizer.item() == pytest.approx(18.3)  # positives are counted before smoothing
