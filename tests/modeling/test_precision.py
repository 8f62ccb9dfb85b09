"""bf16: the network's products lose digits, its outputs, weights, gradients and losses stay float32."""
from __future__ import annotations

import pytest
import torch
from helpers import padded_batch, tiny_config
from networks import TRIDET, VARIANTS, channels, network

from libs.datasets.loading.padding import BF16_MULTIPLE, padding_of
from libs.engine.runtime.precision import low_weights
from libs.modeling.blocks.layers import TimeConv
from libs.modeling.model import build_model

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

    forward = TimeConv.forward

    def spy(self, x_BTC, sizes=()):
        out = forward(self, x_BTC, sizes)
        seen.append(out.dtype)
        return out

    monkeypatch.setattr(TimeConv, "forward", spy)
    model.cls_head.cls_head.forward = model.reg_head.offset_head.forward = lambda x, mask, sizes: x[..., :3]  # always float32
    model(x, mask)
    assert set(seen) == {torch.float32}
    seen.clear()
    model.train()(x, mask)
    assert set(seen) == {torch.bfloat16}


def test_weights_rounded_once_give_what_rounding_in_every_pass_gives():
    config = tiny_config(test_cfg={"precision": "bf16"})
    model = build_model(config).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, mask = padded_batch([40, 17], 48, config.model_channels)
    with torch.inference_mode():
        want = model(x, mask)
        with low_weights(model, "bf16"):
            dtypes = {name: p.dtype for name, p in model.named_parameters() if p.ndim == 3}
            got = model(x, mask)
    assert torch.equal(got.logits, want.logits)
    assert torch.equal(got.offsets, want.offsets)
    assert dtypes["cls_head.head.0.conv.weight"] == dtypes["backbone.stem.0.mlp.3.weight"] == torch.bfloat16
    assert dtypes["cls_head.cls_head.conv.weight"] == dtypes["reg_head.offset_head.conv.weight"] == torch.float32
    with pytest.raises(ZeroDivisionError), low_weights(model, "bf16"):
        raise ZeroDivisionError
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with low_weights(model, "fp32"):
        assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_rounded_weights_of_heads_for_starts_and_ends():
    """All last layers stay float32, not only those of the classes and the offsets."""
    config, model = network(model=TRIDET, test_cfg=BF16)
    x, mask = padded_batch([40, 17], 48, channels(config))
    with torch.inference_mode():
        want = model(x, mask)
        with low_weights(model, "bf16"):
            assert model.start_head.cls_head.conv.weight.dtype == model.end_head.cls_head.conv.weight.dtype == torch.float32
            got = model(x, mask)
    assert torch.equal(got.logits, want.logits)
    assert torch.equal(got.offsets, want.offsets)


def test_bf16_evaluation_has_few_lengths():
    config = tiny_config(dataset={"max_seq_len": 576}, test_cfg={"precision": "bf16"})
    padding = padding_of(config)
    assert {padding.of_batch([n]) for n in range(1, 577)} == {BF16_MULTIPLE, 2 * BF16_MULTIPLE, 576}
    assert padding.of_batch([600]) == 3 * BF16_MULTIPLE
    assert padding_of(tiny_config()).multiple == 1
