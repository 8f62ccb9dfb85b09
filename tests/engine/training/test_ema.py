"""The weight average."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from libs.engine.training.ema import EMA


def model(value=1.0):
    module = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, affine=False))
    for p in module.parameters():
        nn.init.constant_(p, value)
    module[1].num_batches_tracked = module[1].num_batches_tracked.float()
    return module


def test_published_arithmetic_from_the_first_step_on():
    module = model()
    average = EMA(module, 0.9)
    want = 1.0
    for step in range(5):
        nn.init.constant_(module[0].weight, float(step))
        average.update()
        want = 0.9 * want + 0.1 * step
        assert average.state_dict()["0.weight"].item() == pytest.approx(want, rel=1e-6)
    assert average.state_dict()["0.bias"].item() == pytest.approx(1.0)
    assert average.updates == 5


def test_a_shared_parameter_moves_once_per_step_under_each_of_its_names():
    shared = nn.Linear(1, 1)
    module = nn.ModuleList([shared, shared, shared])
    nn.init.constant_(shared.weight, 1.0)
    average = EMA(module, 0.9)
    nn.init.constant_(shared.weight, 2.0)
    average.update()
    assert [average.state_dict()[f"{i}.weight"].item() for i in range(3)] == pytest.approx([1.1, 1.1, 1.1])


def test_warm_up_follows_the_weights_at_once():
    module = model()
    average = EMA(module, 0.999, warmup=True)
    want = 1.0
    for step in range(200):
        nn.init.constant_(module[0].weight, 5.0 + step)
        average.update()
        decay = min(0.999, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * (5.0 + step)
    assert average.state_dict()["0.weight"].item() == pytest.approx(want, rel=1e-5)
    plain = EMA(model(), 0.999)
    assert abs(want - 204) < 60 < abs(plain.state_dict()["0.weight"].item() - 204)


def test_warm_up_never_exceeds_the_decay():
    module = model()
    average = EMA(module, 0.5, warmup=True)
    average.load_state_dict(average.state_dict(), 1000)
    nn.init.constant_(module[0].weight, 3.0)
    average.update()
    assert average.state_dict()["0.weight"].item() == pytest.approx(2.0)


def test_the_average_is_no_view_of_the_weights_and_covers_buffers():
    module = model()
    average = EMA(module, 0.5)
    module[1].running_mean.fill_(4.0)
    nn.init.constant_(module[0].weight, 7.0)
    assert average.state_dict()["0.weight"].item() == 1.0
    average.update()
    assert average.state_dict()["1.running_mean"].item() == 2.0
    assert not any(v.requires_grad for v in average.state_dict().values())


def test_continuing_is_exact():
    one, two = model(), model()
    first, second = EMA(one, 0.99, warmup=True), EMA(two, 0.99, warmup=True)
    for step in range(6):
        if step == 3:
            saved = {k: v.clone() for k, v in second.state_dict().items()}
            second = EMA(two, 0.99, warmup=True)
            second.load_state_dict(saved, 3)
        for module, average in ((one, first), (two, second)):
            nn.init.constant_(module[0].weight, float(step))
            average.update()
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
