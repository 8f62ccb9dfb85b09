"""Losses: the formulas, the normaliser, and batches without anything to find."""
from __future__ import annotations

import math

import pytest
import torch
from helpers import padded_batch, show_every_term, tiny_config
from networks import TRIDENT
from steps import detection_losses

from libs.modeling.losses.detection import (
    DetectionLoss,
    consistency_losses,
    diou_loss,
    focal_loss,
    giou_loss,
    js_divergence,
)
from libs.modeling.losses.targets import Targets
from libs.modeling.model import LevelOutputs, build_model
from libs.modeling.trident import Boundaries


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


# ---- TriDet: one loss per pair of positive point and class

OVERLAPPING = ((10.0, 14.0, 1), (10.0, 14.0, 2), (20.0, 22.6, 0))  # two classes at the same points


def trident(power=0.5, **train_cfg):
    """As `setup` with a trident head, and the pairs of positive points and classes."""
    config = tiny_config(model={**TRIDENT, "iou_weight_power": power}, train_cfg={"dropout": 0.0, **train_cfg})
    model = show_every_term(build_model(config)).eval()
    segments = torch.tensor([[[s, e] for s, e, _ in OVERLAPPING]] * 2)
    labels, present = torch.tensor([[c for *_, c in OVERLAPPING]] * 2), torch.tensor([[False] * 3, [True] * 3])
    with torch.no_grad():
        out = model(*padded_batch([40, 23], 48))
    criterion = DetectionLoss(config)
    return criterion, out, criterion.assign(out.points, segments, labels, present)


@pytest.mark.parametrize(("power", "smoothing"), [(0.5, 0.0), (1.0, 0.1), (0.0, 0.0)])
def test_trident_losses_by_hand(power, smoothing):
    criterion, out, targets = trident(power, label_smoothing=smoothing)
    got, offsets = criterion(out, targets, out.mask), out.all_offsets()
    cls = reg = 0.0
    pairs = 0
    for b, p, c in torch.ones(2, out.mask.shape[1], 3).nonzero().tolist():
        if not out.mask[b, p]:
            continue
        target, weight = float(targets.classes[b, p, c]), 1.0
        if target > 0:
            pairs += 1
            iou = 1 - float(giou_loss(offsets[b, p, c], targets.offsets[b, p]))
            weight, reg = iou**power, reg + float(diou_loss(offsets[b, p, c], targets.offsets[b, p]))
        soft = torch.tensor(target * (1 - smoothing) + smoothing / 4)
        cls += weight * float(focal_loss(out.logits[b, p, c], soft))
    assert pairs > int(targets.positive.sum()) > 2
    assert got.terms["cls_loss"].item() == pytest.approx(cls / 20, rel=1e-5)
    assert got.terms["reg_loss"].item() == pytest.approx(reg / 20, rel=1e-5)


def test_gradient_of_the_iou_weight_against_finite_differences():
    criterion, out, targets = trident(0.5)
    parts = [out.logits, out.offsets, *out.boundaries[:2]]

    def loss(*parts):
        logits, bins, start, end = parts
        return criterion(out._replace(logits=logits, offsets=bins, boundaries=Boundaries(start, end)), targets, out.mask)

    for detached, term in ((False, "cls_loss"), (False, "reg_loss"), (True, "cls_loss")):
        criterion.iou_gradient = not detached
        leaves = [p.clone().requires_grad_() for p in parts]
        gradients = torch.autograd.grad(loss(*leaves).terms[term], leaves, allow_unused=True)
        for k in (1, 2, 3):  # bins, starts, ends: along a random direction
            direction = torch.randn(parts[k].shape, generator=torch.Generator().manual_seed(k)) * (parts[k] != 0)
            ends = [loss(*(p + s * 1e-2 * direction if i == k else p for i, p in enumerate(parts))).terms[term] for s in (1, -1)]
            want = float((ends[0] - ends[1]).double() / 2e-2)
            got = 0.0 if gradients[k] is None else float((gradients[k] * direction).sum())
            assert abs(want) > 1e-4
            assert got == (0.0 if detached else pytest.approx(want, rel=2e-2, abs=1e-5)), (term, k)


def test_a_distance_of_zero_has_no_infinite_gradient():
    criterion, out, targets = trident(0.2)
    bins = torch.full_like(out.offsets, -1e4)
    bins[..., [3, 4]] = 0.0  # all weight on distance 0, both sides
    bins.requires_grad_()
    zeros = Boundaries(torch.zeros_like(out.logits), torch.zeros_like(out.logits))
    losses = criterion(out._replace(offsets=bins, boundaries=zeros), targets, out.mask)
    losses.final.backward()
    assert torch.isfinite(bins.grad).all()
    assert torch.isfinite(losses.final)


def test_trident_batches_without_positives():
    criterion, out, targets = trident()
    out = out._replace(offsets=out.offsets.clone().requires_grad_())
    losses = criterion(out, targets._replace(classes=torch.zeros_like(targets.classes)), out.mask)
    losses.final.backward()
    assert losses.terms["reg_loss"].item() == 0
    assert not out.offsets.grad.any()


def two_views(seed=0, points=7, classes=3, dtype=torch.float64):
    """Outputs of two views at P points of two videos, targets, and positive points: some, not all with a class."""
    rng = torch.Generator().manual_seed(seed)
    shape = (2, points)
    mask = torch.rand(shape, generator=rng) < 0.8

    def outputs():
        logits = 3 * torch.randn(*shape, classes, generator=rng, dtype=dtype)
        offsets = 4 * torch.rand(*shape, 2, generator=rng, dtype=dtype)
        return LevelOutputs(logits, offsets, mask, torch.zeros(points, 4), (points,))
    targets = Targets((torch.rand(*shape, classes, generator=rng) < 0.4).to(dtype), torch.zeros(*shape, 2, dtype=dtype))
    return outputs(), outputs(), targets, targets.positive & mask


def test_consistency_is_that_of_a_slow_loop():
    hidden, clean, targets, positive = two_views()
    assert 2 < positive.sum() < positive.numel()
    divergence = distance = 0.0
    for b, p in positive.nonzero().tolist():
        for k in range(3):
            x, y = (1 / (1 + math.exp(-float(view.logits[b, p, k]))) for view in (hidden, clean))
            for u, v in ((x, y), (1 - x, 1 - y)):
                m = (u + v) / 2
                divergence += 0.5 * (u * math.log(u / m) + v * math.log(v / m))
        (a, c), (d, e) = (view.offsets[b, p].tolist() for view in (hidden, clean))
        inner = max(min(c, e) + min(a, d), 0)
        distance += 1 - inner / (a + c + d + e - inner)
    count = torch.tensor(11.0)  # that of the whole step
    got = consistency_losses(hidden, clean, targets, positive, count)
    assert {name: float(value) for name, value in got.items()} == pytest.approx(
        {"consistency_cls": divergence / 11, "consistency_reg": distance / 11}, rel=1e-9)
    single = [consistency_losses(*(view._replace(logits=view.logits.float(), offsets=view.offsets.float())
                                   for view in (hidden, clean)), targets, positive, count)[name] for name in got]
    assert torch.stack(single).tolist() == pytest.approx([divergence / 11, distance / 11], rel=1e-5)


def test_gradients_of_the_consistency_losses():
    hidden, clean, targets, positive = two_views(1)

    def losses(logits, offsets):
        return tuple(consistency_losses(hidden._replace(logits=logits, offsets=offsets), clean, targets, positive,
                                        torch.tensor(5.0)).values())
    logits, offsets = (x.clone().requires_grad_() for x in (hidden.logits, hidden.offsets))
    assert torch.autograd.gradcheck(losses, (logits, offsets))
    for gradient in torch.autograd.grad(sum(losses(logits, offsets)), (logits, offsets)):
        assert not gradient[~positive].any()
        assert gradient[positive].abs().sum(-1).min() > 0


def test_equal_views_are_consistent_and_extreme_ones_stay_finite():
    hidden, _, targets, positive = two_views(2)
    still = hidden._replace(offsets=torch.zeros_like(hidden.offsets), logits=hidden.logits.clone().requires_grad_())
    same = consistency_losses(still, still, targets, positive, torch.tensor(1.0))
    assert [v.item() for v in same.values()] == pytest.approx([0, 0], abs=1e-12)  # also segments without length
    far = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    value = js_divergence(far, -far.detach())
    assert value.item() == pytest.approx(2 * math.log(2), rel=1e-6)
    assert torch.isfinite(torch.autograd.grad(value.sum(), far)[0]).all()
    none = consistency_losses(hidden, still, targets, torch.zeros_like(positive), torch.tensor(0.0))
    assert [v.item() for v in none.values()] == [0, 0]
