"""bf16: the network's products lose digits, its outputs, weights, gradients and losses stay float32."""
from __future__ import annotations

import pytest
import torch
from helpers import padded_batch, tiny_config
from test_model import VARIANTS, channels, network

from libs.modeling.blocks.transformer import pointwise

BF16 = {"precision": "bf16"}


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_are_close_and_float32(name):
    config, model = network(**VARIANTS[name])
    x, mask = padded_batch([40, 17], 48, channels(config))
    with torch.no_grad():
        exact = model(x, mask)
        model.test_precision = "bf16"
        rough = model(x, mask)
    for a, b in zip(exact[:2], rough[:2], strict=True):
        error = (a - b).abs().max() / a.abs().max()
        assert b.dtype == torch.float32
        assert 1e-5 < error < 0.05  # 8 bits of mantissa, not 24
    assert (rough.logits[~mask_of(rough)] == 0).all()


def mask_of(outputs):
    return outputs.mask


def test_gradients_are_close_and_float32():
    config, model = network(train_cfg={"droppath": 0.0})
    x, mask = padded_batch([40, 17], 48, channels(config))
    gradients = []
    for precision in ("fp32", "bf16"):
        model.train().train_precision = precision
        out = model(x, mask)
        gradients.append(torch.autograd.grad(out.logits.square().mean(), list(model.parameters()), allow_unused=True))
    flat = [torch.cat([g.flatten() for g in one if g is not None]) for one in gradients]
    assert {g.dtype for g in gradients[1] if g is not None} == {torch.float32}
    assert 1e-4 < (flat[0] - flat[1]).norm() / flat[0].norm() < 0.3  # those of queries and keys are mostly cancellation


def test_training_and_evaluation_have_their_own_precision(monkeypatch):
    config = tiny_config(train_cfg=BF16)
    assert (config.train_cfg.precision, config.test_cfg.precision) == ("bf16", "fp32")
    _, model = network(train_cfg=BF16)
    x, mask = padded_batch([40], 48, channels(config))
    seen = []

    def spy(x_BTC, conv):
        out = pointwise(x_BTC, conv)
        seen.append(out.dtype)
        return out

    monkeypatch.setattr("libs.modeling.blocks.transformer.pointwise", spy)
    model(x, mask)
    assert set(seen) == {torch.float32}
    seen.clear()
    model.train()(x, mask)
    assert set(seen) == {torch.bfloat16}
