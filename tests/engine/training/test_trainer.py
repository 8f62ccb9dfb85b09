"""One step: what it updates, what a non-finite loss may not touch, which parameters decay."""
from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import padded_batch, tiny_config
from torch import nn

from libs.core.errors import UserError
from libs.datasets.grid import Grid
from libs.datasets.loading.batch import Batch
from libs.datasets.sample import Sample
from libs.engine.runtime.determinism import seed_everything
from libs.engine.training.objective import DetectionObjective
from libs.engine.training.optim import clip_gradients, make_optimizer, parameter_groups
from libs.engine.training.trainer import Trainer
from libs.modeling.model import build_model


def batch(names=("one", "two"), nan=False):
    feats, mask = padded_batch([40, 23], 48)
    if nan:
        feats[1, 3, 2] = torch.nan
    samples = tuple(Sample(i, n, Grid(5.0, 10.0, 1.0, 25.0), 10.0, 40, 40, torch.zeros(0, 2), torch.zeros(0))
                    for i, n in enumerate(names))
    segments = torch.tensor([[[5.0, 9.0], [20.0, 31.0]], [[3.0, 8.0], [0.0, 0.0]]])
    return Batch(feats, mask, segments, torch.tensor([[0, 1], [2, 0]]), torch.tensor([[True, True], [True, False]]), samples)


def trainer_of(**sections):
    config = tiny_config(**sections)
    seed_everything(config.init_rand_seed)
    return Trainer(DetectionObjective(build_model(config), config), config, iters_per_epoch=3)


def state_of(trainer):
    moments = {f"{i}/{k}": v for i, m in trainer.optimizer.state_dict()["state"].items() for k, v in m.items() if v is not None}
    return {k: v.clone() for k, v in {**trainer.model.state_dict(), **moments}.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


KINDS = pytest.mark.parametrize("kind", ["AdamW", "SGD"])


@KINDS
def test_training_lowers_the_loss(kind):
    trainer = trainer_of(opt={"type": kind, "learning_rate": 0.02 if kind == "SGD" else 0.005, "epochs": 40})
    losses = [trainer.step(batch())["final_loss"].item() for _ in range(40)]
    trainer.raise_if_not_finite()
    assert sum(losses[-5:]) < 0.75 * sum(losses[3:8])


@KINDS
@pytest.mark.parametrize("first", [0, 4])
@pytest.mark.parametrize("clip", [1.0, -1.0])
def test_a_bad_batch_changes_neither_weights_nor_moments(kind, first, clip):
    trainer = trainer_of(opt={"type": kind}, train_cfg={"clip_grad_l2norm": clip})
    for _ in range(first):
        trainer.step(batch())
    trainer.raise_if_not_finite()
    before = state_of(trainer)
    result = trainer.step(batch(("good video", "bad video"), nan=True))
    assert not torch.isfinite(result["final_loss"])
    after = state_of(trainer)
    if first == 0 and kind == "AdamW":  # the first step makes the moments: they must be untouched zeros
        made = {k: v for k, v in after.items() if k not in before}
        assert len(made) == 3 * len(list(trainer.model.parameters()))
        assert not any(v.any() for v in made.values())
        after = {k: v for k, v in after.items() if k in before}
    assert same(before, after)
    assert all(torch.isfinite(v).all() for v in trainer.ema.state_dict().values())
    trainer.step(batch())  # training could go on; the report still names the first bad batch
    assert not same(before, state_of(trainer))
    with pytest.raises(UserError) as error:
        trainer.raise_if_not_finite()
    message = str(error.value)
    assert message.startswith(f"the loss is not finite at iteration {first + 1}; videos of that batch: good video, bad video.")
    assert "opt.learning_rate (now 0.003)" in message


@KINDS
def test_the_step_after_a_bad_batch_is_the_one_that_would_have_been(kind):
    """A skipped step leaves no trace in the optimizer: the next one equals that of a run that never saw the bad batch."""
    quiet = {"opt": {"type": kind, "warmup": False, "schedule_type": "multistep", "schedule_steps": [100]},
             "train_cfg": {"dropout": 0.0, "droppath": 0.0}}
    one, two = trainer_of(**quiet), trainer_of(**quiet)
    one.step(batch())
    two.step(batch())
    two.objective.criterion.normalizer.copy_(one.objective.criterion.normalizer)
    one.step(batch(nan=True))
    one.objective.criterion.normalizer.copy_(two.objective.criterion.normalizer)
    one.step(batch())
    two.step(batch())
    assert same(state_of(one), state_of(two))


def test_a_gradient_that_is_not_finite_is_as_bad_as_a_loss(monkeypatch):
    trainer = trainer_of()
    trainer.step(batch())
    before = state_of(trainer)
    trainer.model.reg_head.scale[0].scale.register_hook(lambda g: g * torch.inf)
    result = trainer.step(batch())
    assert torch.isfinite(result["final_loss"])
    assert same(before, state_of(trainer))
    with pytest.raises(UserError, match="iteration 2"):
        trainer.raise_if_not_finite()


def test_the_learning_rate_is_that_of_the_schedule_for_every_group():
    trainer = trainer_of(opt={"epochs": 2, "warmup_epochs": 1})
    for i in range(9):
        trainer.step(batch())
        assert [g["lr"] for g in trainer.optimizer.param_groups] == [trainer.schedule.at(i)] * 2 == [trainer.learning_rate] * 2
    assert trainer.iteration == 9


def test_the_first_warm_up_step_changes_nothing():
    trainer = trainer_of()
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.step(batch())  # learning rate 0
    assert same(before, trainer.model.state_dict())
    trainer.step(batch())
    assert not same(before, trainer.model.state_dict())


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_follows_the_weights(warmup):
    trainer = trainer_of(train_cfg={"ema_decay": 0.9, "ema_warmup": warmup})
    want = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    for i in range(4):
        trainer.step(batch())
        decay = min(0.9, (1 + i) / (10 + i)) if warmup else 0.9
        want = {k: decay * v + (1 - decay) * trainer.model.state_dict()[k] for k, v in want.items()}
    assert all(torch.allclose(v, want[k], atol=1e-6) for k, v in trainer.ema.state_dict().items())


def test_gradients_are_clipped_to_the_limit():
    module = nn.Linear(3, 1)
    for limit, after in ((1.0, 1.0), (-1.0, 10.0), (20.0, 10.0)):
        module.weight.grad, module.bias.grad = torch.tensor([[6.0, 8.0, 0.0]]), torch.zeros(1)
        assert clip_gradients(module.parameters(), limit).item() == pytest.approx(10.0)
        assert module.weight.grad.norm().item() == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize("model", [
    {}, {"backbone_type": "conv"}, {"fpn_type": "fpn"}, {"use_rel_pe": True}, {"head_with_ln": False}])
def test_parameter_groups(model):
    network = build_model(tiny_config(model=model))
    decay, no_decay = (dict(group) for group in parameter_groups(network))
    assert decay.keys().isdisjoint(no_decay)
    assert decay.keys() | no_decay.keys() == dict(network.named_parameters()).keys()
    assert list(decay) == sorted(decay)
    assert list(no_decay) == sorted(no_decay)
    for name, p in network.named_parameters():
        convolution = name.endswith("weight") and "norm" not in name and ".ln" not in name
        assert (name in decay) == convolution, name
        assert not convolution or p.dim() == 3
    groups = make_optimizer(network, tiny_config().opt).param_groups
    assert [g["weight_decay"] for g in groups] == [0.05, 0.0]
    assert [len(g["params"]) for g in groups] == [len(decay), len(no_decay)]


def test_a_parameter_of_an_unknown_kind_is_an_error():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))
    with pytest.raises(TypeError, match=r"inner\.gain: decide whether a parameter of Odd decays"):
        parameter_groups(nn.ModuleDict({"inner": Odd()}))


def test_weight_decay_moves_weights_and_not_norms():
    config = tiny_config(opt={"weight_decay": 0.5, "type": "SGD", "warmup": False, "learning_rate": 0.1}).opt
    network = build_model(tiny_config())
    optimizer = make_optimizer(network, dataclasses.replace(config, momentum=0.0))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    decay = dict(parameter_groups(network)[0])
    for name, p in network.named_parameters():
        assert torch.allclose(p, before[name] * (0.95 if name in decay else 1.0), atol=1e-7), name


def test_seeding_makes_numpy_python_and_torch_repeat():
    import random

    import numpy as np
    draws = []
    for _ in range(2):
        seed_everything(2**40 + 1)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
