"""TriDet in training: it resumes exactly, teaches and learns distances per class, takes bf16, and needs little memory."""
from __future__ import annotations

import distill_cases
import pytest
import torch
from distill_cases import EVERY_TERM, Setup, save_teacher, student, two_stream
from helpers import data_config, identical, padded_batch, tiny_config
from networks import TRIDENT, TRIDET, network
from resuming import whole_and_resumed
from steps import losses_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from libs.modeling import decode
from libs.modeling.losses.detection import DetectionLoss, diou_loss
from libs.modeling.model import build_model

data, teacher = distill_cases.data, distill_cases.teacher
WIDE = {"embd_dim": 16, "fpn_dim": 16}  # GroupNorm of SGP: 16 groups
POOLER = {"backbone_type": "convPooler", "backbone_arch": [1, 2], "n_mha_win_size": -1, "fpn_norm": "layernorm"}
TEMPORALMAXER = {"model_name": "TemporalMaxerArchitecture", "model": POOLER}
TERMS = EVERY_TERM | {"inputs": {"weight": 0.0}}


@pytest.fixture(scope="module")
def trident(data, tmp_path_factory):
    """A checkpoint of a TriDet as published."""
    folder = tmp_path_factory.mktemp("trident")
    return save_teacher(two_stream(data, folder, model={**TRIDET, **WIDE}), folder / "tridet.pth.tar", seed=3)


@pytest.mark.parametrize("model", [
    {"input_noise": 0.3}, {"masked_stats": True, "init_conv_vars": 0.0, "trident_border": "valid"}], ids=str)
def test_stopped_and_resumed_equals_undisturbed(data, tmp_path, monkeypatch, model):
    config = data_config(data, tmp_path, model={**TRIDET, **model}, train_cfg={"input_dropout": 0.1}, opt={"eta_min": 1e-5})
    whole, run = whole_and_resumed(config, tmp_path, monkeypatch, stop=3)
    assert identical(whole, run) == []
    fresh = build_model(config).state_dict()
    learned = whole["state_dict"]
    for part in ("start_head.cls_head.conv.weight", "end_head.head.0.conv.weight", "reg_head.offset_head.conv.weight"):
        assert not torch.equal(learned[f"module.{part}"], fresh[part])
    dead = [bool(value.any()) for name, value in learned.items() if ".psi.weight" in name or ".convkw." in name]
    assert len(dead) == 9
    assert all(dead) if config.model.init_conv_vars else not any(dead)


def offsets_by_hand(setup, batch):
    """The term `offsets` of one teacher as a loop over points: DIoU of the distances of the teacher's most likely class."""
    with torch.no_grad():
        own, its = setup.model(batch.feats, batch.mask), setup.teachers[0].model(batch.feats, batch.mask)
        ours, theirs = own.all_offsets(), its.all_offsets()
        positive = DetectionLoss(setup.config).assign(own.points, batch.segments, batch.labels, batch.present).positive
    total = weights = 0.0
    for b, p in own.mask.nonzero().tolist():
        probability = torch.sigmoid(its.logits[b, p].double())
        score, c = float(probability.max()), int(probability.argmax())
        if positive[b, p] or score > 0.1:
            a, t = (x[b, p, c] if x.dim() == 4 else x[b, p] for x in (ours, theirs))
            weights += score
            total += score * float(diou_loss(a, t))
    return total / weights


@pytest.mark.parametrize(("of_teacher", "of_student"), [
    ("TriDet", {}), ("TriDet", {"model": {**TRIDET, **WIDE}}), ("TriDet", {"model": {"backbone_type": "convnext"}}),
    ("TriDet", TEMPORALMAXER), ("transformer", {"model": {**TRIDET, **WIDE}})], ids=str)
def test_distances_of_a_class_are_compared_with_those_of_the_same_class(data, tmp_path, trident, teacher, of_teacher, of_student):
    entry = trident if of_teacher == "TriDet" else teacher
    setup = Setup(student(data, tmp_path, [entry], distill=TERMS, train_cfg={"droppath": 0.0}, **of_student))
    batch = setup.batches[0]
    losses = losses_of(setup.objective, batch)
    assert losses.terms["offsets_teacher"].item() == pytest.approx(offsets_by_hand(setup, batch), rel=2e-5)
    losses.final.backward()
    reached = {name.split(".")[0] for name, p in setup.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"backbone", "neck", "cls_head", "reg_head"} <= reached
    assert ("start_head" in reached) == ("end_head" in reached) == (setup.model.start_head is not None)


@pytest.mark.parametrize("distances", ["detection", "distillation"])
def test_boundaries_learn_from_ground_truth_and_from_the_teacher(data, tmp_path, trident, distances):
    """Either loss alone moves the heads of starts and ends."""
    setup = Setup(student(data, tmp_path, [trident], model={**TRIDET, **WIDE}, distill={
        "det_weight": 1.0 if distances == "detection" else 0.0, "weight": 1.0 if distances == "distillation" else 0.0,
        "cls": {"weight": 0.0}}))
    losses_of(setup.objective, setup.batches[0]).final.backward()
    gradients = {name: p.grad for name, p in setup.model.named_parameters()}
    for side in ("start", "end"):
        assert gradients[f"{side}_head.cls_head.conv.weight"].abs().max() > 1e-6


@pytest.mark.parametrize("masked", [False, True], ids=["as published", "masked"])
@pytest.mark.parametrize("of_student", [{}, {"model": {**TRIDET, **WIDE}}, TEMPORALMAXER], ids=str)
def test_a_cached_tridet_teaches_what_it_teaches_online(data, tmp_path, masked, of_student):
    its = two_stream(data, tmp_path, model={**TRIDET, **WIDE, "masked_stats": masked})
    entry = save_teacher(its, tmp_path / "tridet.pth.tar", seed=3)
    online, cached = (Setup(student(data, tmp_path, [entry], distill={"outputs": outputs, **TERMS}, dataset={"crop_align": 4},
                                    **of_student)) for outputs in ("online", "cache"))
    assert cached.made == 6
    for a, b in zip(online.batches, cached.batches, strict=True):
        terms = [{k: v.item() for k, v in losses_of(s.objective, x).terms.items()} for s, x in ((online, a), (cached, b))]
        assert terms[0]["offsets_teacher"] > 0.01
        assert terms[0] == pytest.approx(terms[1], rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("masked", [False, True], ids=["as published", "masked"])
def test_bf16_training_follows_float32(data, tmp_path, masked):
    model, found = {**TRIDET, **WIDE, "masked_stats": masked, "iou_weight_power": 0.2}, {}
    its = save_teacher(two_stream(data, tmp_path, model=model), tmp_path / "teacher.pth.tar", seed=1)
    for precision in ("fp32", "bf16"):
        setup = Setup(student(data, tmp_path, [its], model=model, distill=TERMS,
                              train_cfg={"droppath": 0.0, "precision": precision}))
        setup.objective.train()
        losses = losses_of(setup.objective, setup.batches[0])
        losses.final.backward()
        found[precision] = losses.terms, {name: p.grad for name, p in setup.model.named_parameters()}
    for name, value in found["fp32"][0].items():
        assert value.dtype == torch.float32
        assert found["bf16"][0][name].item() == pytest.approx(value.item(), rel=0.03), name
    assert found["fp32"][0]["cls_loss"].item() != found["bf16"][0]["cls_loss"].item()
    for name in ("start_head.cls_head.conv.weight", "reg_head.offset_head.conv.weight", "backbone.branch.1.psi.weight"):
        exact, rough = (found[p][1][name] for p in ("fp32", "bf16"))
        assert rough.dtype == torch.float32
        assert 1e-5 < (exact - rough).norm() / exact.norm() < 0.3, name


def test_bf16_inference_has_nearly_the_segments_of_float32():
    config, model = network(model={**TRIDET, "num_bins": 8})
    batch = padded_batch([40, 17], 48)
    with torch.no_grad():
        exact = model(*batch)
        model.test_precision = "bf16"
        rough = model(*batch)
    assert {x.dtype for x in (rough.logits, rough.offsets, *rough.boundaries[:2])} == {torch.float32}
    a, b = (out.all_offsets()[out.mask] for out in (exact, rough))
    assert 1e-4 < (a - b).abs().max() < 0.2  # of 8 strides
    assert len(decode.decode_batch(rough, config.test_cfg).scores) > 100


class Largest(TorchDispatchMode):
    """The most elements of a tensor that an operation takes or makes, views included, forward and backward."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor))])
        return made


BINS, MANY = 63, 40  # bins and classes: (B, P, K, bins + 1) is 40 times any other tensor


def many_classes():
    config = tiny_config(model={**TRIDENT, "num_bins": BINS}, dataset={"num_classes": MANY}, train_cfg={"dropout": 0.0})
    return config, build_model(config)


def test_training_makes_no_tensor_of_all_points_classes_and_bins():
    config, model = many_classes()
    criterion, largest = DetectionLoss(config), Largest()
    segments, labels = torch.tensor([[[4.0, 9.0], [20.0, 30.0]]] * 2), torch.tensor([[1, 7]] * 2)
    with largest:
        out = model(*padded_batch([48, 40], 48))
        targets = criterion.assign(out.points, segments, labels, torch.ones(2, 2, dtype=torch.bool))
        criterion(out, targets, out.mask).final.backward()
    pairs = int(((targets.classes > 0) & out.mask.unsqueeze(-1)).sum())
    whole = out.logits.numel() * (BINS + 1)
    assert 0 < pairs < 40
    assert pairs * (BINS + 1) <= largest.elements < whole / 10
    with largest:  # the measure sees what must not be
        out.all_offsets()
    assert largest.elements > whole / 2  # the finest level


def test_comparing_distances_with_a_teacher_makes_none_either():
    _, model = many_classes()
    out, largest = model(*padded_batch([48, 40], 48)), Largest()
    with largest:
        out.offsets_at(out.logits.argmax(-1)).sum().backward()
    points = out.mask.numel()
    assert points * (BINS + 1) <= largest.elements < points * (BINS + 1) * MANY / 10


def test_inference_computes_distances_in_pieces(monkeypatch):
    config, model = many_classes()
    largest = Largest()
    with torch.no_grad():
        out = model.eval()(*padded_batch([48, 40], 48))
        whole = decode.decode_batch(out, config.test_cfg)
        monkeypatch.setattr(decode, "AT_ONCE", 20)
        with largest:
            pieces = decode.decode_batch(out, config.test_cfg)
    assert len(whole.scores) > 20 * 20
    assert largest.elements < out.logits.numel() * 3  # not candidates x bins
    for a, b in zip(whole, pieces, strict=True):
        assert torch.equal(a, b)
