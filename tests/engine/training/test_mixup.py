"""train_cfg.mixup: blended features, and the losses of both videos' targets by their shares, in plain and distilled training."""
from __future__ import annotations

import distill_cases
import pytest
import torch
from distill_cases import EVERY_TERM, RGB_ONLY, Setup, student, two_stream
from helpers import identical, show_every_term
from resuming import whole_and_resumed
from steps import losses_of

from libs.datasets.dataset import TalDataset
from libs.datasets.loading.loader import batches, training_loader
from libs.datasets.loading.mixing import rolled
from libs.engine.training.objective import DetectionObjective
from libs.modeling.losses.detection import DetectionLoss
from libs.modeling.model import build_model

NO_DROPS = {"dropout": 0.0, "droppath": 0.0, "input_dropout": 0.0}
data, teacher = distill_cases.data, distill_cases.teacher
SHARE = 0.7


@pytest.fixture
def drawn(monkeypatch):
    """The share that every batch draws; the parameters of the distribution are checked."""
    class Fixed:
        def __init__(self, a, b):
            assert (a, b) == (0.4, 0.4)

        def sample(self):
            return torch.tensor(SHARE)
    monkeypatch.setattr(torch.distributions, "Beta", Fixed)


def mixed_feats(batch):
    return torch.where(batch.mask[..., None], SHARE * batch.feats + (1 - SHARE) * batch.feats.roll(1, 0), 0.0)


def test_plain_training_weighs_the_targets_of_both_videos(data, tmp_path, drawn):
    config = two_stream(data, tmp_path, train_cfg={"mixup": 0.4, **NO_DROPS}, loader={"batch_size": 3})
    loader, _ = training_loader(TalDataset(config, config.train_split, True), config)
    batch = next(batches(loader))
    model = show_every_term(build_model(config), 3)
    objective = DetectionObjective(model, config).train()
    before = batch.feats.clone()
    losses = losses_of(objective, batch)
    assert torch.equal(batch.feats, before)

    outputs, criterion, other = model(mixed_feats(batch), batch.mask), DetectionLoss(config), rolled(batch)
    assert other.video_ids == (*batch.video_ids[-1:], *batch.video_ids[:-1])
    masks = [model.grid(m).mask for m in (batch.mask, batch.mask & other.mask)]
    assert not torch.equal(*masks)
    targets = [criterion.assign(outputs.points, b.segments, b.labels, b.present) for b in (batch, other)]
    positives = [float((t.positive & m).sum()) for t, m in zip(targets, masks, strict=True)]
    moved = 0.9 * config.train_cfg.init_loss_norm + 0.1 * (SHARE * positives[0] + (1 - SHARE) * positives[1])
    assert objective.criterion.normalizer.item() == pytest.approx(moved, rel=1e-6)
    criterion.normalizer.fill_(moved)
    both = [criterion(outputs, t, m) for t, m in zip(targets, masks, strict=True)]
    for name in ("cls_loss", "reg_loss"):
        expected = SHARE * both[0].terms[name] + (1 - SHARE) * both[1].terms[name]
        assert losses.terms[name].item() == pytest.approx(expected.item(), rel=1e-5)
    assert both[0].final.item() != pytest.approx(both[1].final.item(), rel=1e-2)


def test_no_blend_outside_training(data, teacher, tmp_path, drawn):
    plain, mixed = (Setup(student(data, tmp_path, [teacher], train_cfg={"mixup": m, **NO_DROPS})) for m in (0.0, 0.4))
    assert losses_of(mixed.objective, mixed.batches[0]).final.item() == losses_of(plain.objective, plain.batches[0]).final.item()


@pytest.mark.parametrize("outputs", ["online", "cache"])
def test_teachers_say_what_they_say_of_each_clean_video(data, teacher, tmp_path, drawn, outputs):
    """The class term: s D(z(blend), t(x)) + (1 - s) D(z(blend), t(x')), one denominator, by hand."""
    config = student(data, tmp_path, [teacher], train_cfg={"mixup": 0.4, **NO_DROPS}, dataset={"crop_align": 4},
                     distill={"outputs": outputs, "cls": {"focus": 0.0}, "offsets": {"weight": 0.0}})
    setup = Setup(config)
    show_every_term(setup.model, 3)
    objective, batch = setup.objective.train(), setup.batches[0]
    value = losses_of(objective, batch).terms["cls_teacher"].item()
    with torch.no_grad():
        own = setup.model(mixed_feats(batch), batch.mask)
        total = count = 0.0
        for share, seen in ((SHARE, batch), (1 - SHARE, rolled(batch))):
            clean = setup.teachers[0].model(seen.feats, seen.mask).logits
            valid = setup.model.grid(batch.mask & seen.mask).mask
            q, p = (torch.sigmoid(z[valid].double()) for z in (clean, own.logits))
            total += share * float((q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).sum())
            count += share * int(valid.sum())
    assert value == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("outputs", ["online", "cache"])
def test_stopped_and_resumed_equals_undisturbed(data, teacher, tmp_path, monkeypatch, outputs):
    def config():
        sections = {"dataset": {"crop_ratio": [0.6, 0.9], "crop_align": 4}, "opt": {"epochs": 3}, "loader": {"batch_size": 3}}
        distill = {"outputs": outputs, **EVERY_TERM}
        return student(data, tmp_path, [teacher], model=RGB_ONLY, train_cfg={"mixup": 0.2}, distill=distill, **sections)

    first, second = whole_and_resumed(config(), tmp_path, monkeypatch, stop=2)
    assert identical(first, second) == []
