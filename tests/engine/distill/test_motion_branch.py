"""A student of two branches: its fusion, what each teacher teaches, and that nothing but the student is saved."""
from __future__ import annotations

import dataclasses

import distill_cases
import pytest
import torch
from distill_cases import CPU, Setup, save_teacher, student, two_stream
from helpers import padded_batch
from networks import network
from steps import losses_of

from libs.engine.deploy.cost import count
from libs.engine.runs.checkpoint import load_checkpoint, load_weights
from libs.engine.training.fit import FitOptions, fit
from libs.modeling.model import build_model

NO_DROPS = {"dropout": 0.0, "droppath": 0.0, "input_dropout": 0.0}
RGB = {"modalities": ["rgb"], "motion_branch": True}
data, teacher = distill_cases.data, distill_cases.teacher


@pytest.fixture(scope="module")
def flow_teacher(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    return save_teacher(two_stream(data, folder, model={"modalities": ["flow"]}), folder / "flow.pth.tar", seed=3)


def entries(teacher, flow_teacher):
    return [{"name": "both", "checkpoint": str(teacher)},
            {"name": "flow", "checkpoint": str(flow_teacher), "branch": "motion"}]


@pytest.mark.parametrize("gate", [-50.0, 0.0, 50.0])
def test_the_gate_chooses_between_the_branches(gate):
    """All the motion branch, the mean of both, all appearance, on every level."""
    _, model = network(model={"motion_branch": True})
    for layer in model.branch_fusion.gates:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.constant_(layer.bias, gate)
    x, mask = padded_batch([40, 17], 48)
    with torch.no_grad():
        maps, masks, motion = model._maps(x, mask)
        appearance, _ = model.backbone(x, mask)
        share = torch.sigmoid(torch.tensor(gate))
        for fused, a, m, valid in zip(maps, appearance, motion, masks, strict=True):
            torch.testing.assert_close(fused[valid], (share * a + (1 - share) * m)[valid])
            assert (a - m)[valid].abs().max() > 0.1
        outputs, features = model.trace(x, mask)
        assert torch.equal(outputs.logits, model(x, mask).logits)
        said, seen = features.motion
        assert torch.equal(seen.stem, motion[0])
        assert torch.equal(said.logits, outputs.logits) == (gate == -50)


def test_a_new_fusion_is_the_mean():
    model = build_model(network(model={"motion_branch": True})[0]).eval()
    maps, _, motion = model._maps(*padded_batch([40], 48))
    appearance, _ = model.backbone(*padded_batch([40], 48))
    torch.testing.assert_close(maps[1], (appearance[1] + motion[1]) / 2)


@pytest.mark.parametrize("outputs", ["online", "cache"])
def test_each_teacher_is_compared_with_its_branch(data, teacher, flow_teacher, tmp_path, outputs):
    config = student(data, tmp_path, entries(teacher, flow_teacher), model=RGB, dataset={"crop_align": 4},
                     distill={"outputs": outputs, "stem": {"weight": 1.0}, "cls": {"focus": 0.0}}, train_cfg=NO_DROPS)
    setup = Setup(config)
    batch = setup.batches[0]
    terms = losses_of(setup.objective, batch).terms
    feats = setup.objective.columns(batch.feats)
    with torch.no_grad():
        own, features = setup.model.trace(feats, batch.mask)
        clean = setup.objective.teacher_outputs(batch)
        for name, its, (said, seen) in zip(("both", "flow"), clean, ((own, features), features.motion), strict=True):
            q, p = (torch.sigmoid(z[own.mask].double()) for z in (its.logits, said.logits))
            expected = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).sum(-1).mean()
            assert terms[f"cls_{name}"].item() == pytest.approx(expected.item(), rel=1e-4)
            stem = (seen.stem - its.stem)[batch.mask].square().mean()
            assert terms[f"stem_{name}"].item() == pytest.approx(stem.item(), rel=1e-4)


def test_a_teacher_of_motion_does_not_reach_the_other_branch(data, flow_teacher, tmp_path):
    entry = {"name": "flow", "checkpoint": str(flow_teacher), "branch": "motion"}
    setup = Setup(student(data, tmp_path, [entry], model=RGB, distill={"det_weight": 0.0}, train_cfg=NO_DROPS))
    losses_of(setup.objective, setup.batches[0]).final.backward()
    moved = {name.split(".")[0] for name, p in setup.model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
    assert {"motion_backbone", "cls_head", "reg_head"} <= moved
    assert not moved & {"backbone", "branch_fusion"}


def test_it_trains_and_its_checkpoint_is_the_student(data, teacher, flow_teacher, tmp_path):
    config = student(data, tmp_path, entries(teacher, flow_teacher), model=RGB)
    fit(config, tmp_path / "run", CPU, FitOptions())
    checkpoint = load_checkpoint(tmp_path / "run" / "epoch_001.pth.tar")
    model = build_model(dataclasses.replace(config, distill=type(config.distill)()))
    assert list(checkpoint.weights) == list(model.state_dict())
    load_weights(model, checkpoint, "ema")
    assert checkpoint.training["objective"].keys() == {"loss_normalizer", "projections"}
    assert not checkpoint.training["objective"]["projections"]


def test_its_cost_is_counted_by_part():
    one, two = (count(network(model={"motion_branch": m})[0], 48) for m in (False, True))
    assert set(two.parts) == set(one.parts)
    for part in ("embedding", "stem", "branch"):
        assert two.parts[part]["flops"] == 2 * one.parts[part]["flops"]
        assert two.parts[part]["params"] == 2 * one.parts[part]["params"]
    assert two.parts["heads"] == one.parts["heads"]
    width = network()[0].model.embd_dim
    assert two.parts["fusion"]["flops"] == 2 * (48 + 24 + 12) * 2 * width * width
