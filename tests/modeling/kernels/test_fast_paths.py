"""Shorter ways through the network against the plain formula: values and gradients."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import padded_batch, tiny_config
from torch import nn

from libs.datasets.padding import BF16_MULTIPLE, padding_of
from libs.engine.runtime import machine
from libs.engine.runtime.precision import low_weights
from libs.modeling.blocks.transformer import AffineDropPath, MaskedConv1D, add_branch, conv_time, gelu
from libs.modeling.kernels import band_attention as attention
from libs.modeling.kernels.band_attention import band_attention, plain_attention
from libs.modeling.model import build_model


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("groups", "kernel"), [(1, 3), (6, 3), (6, 7)])
def test_sequences_side_by_side_do_not_see_each_other(groups, kernel):
    conv = nn.Conv1d(6, 6, kernel, padding=kernel // 2, groups=groups).double()
    sizes = (1, 9, 4, 2)
    x = random(2, sum(sizes), 6).requires_grad_()
    got = conv_time(x, conv, sizes)
    want = torch.cat([conv(part.transpose(1, 2)).transpose(1, 2) for part in x.split(sizes, dim=1)], dim=1)
    assert (got - want).abs().max() < 1e-12
    weight = random(*got.shape, seed=1)
    for a, b in zip(torch.autograd.grad((got * weight).sum(), [x, conv.weight]),
                    torch.autograd.grad((want * weight).sum(), [x, conv.weight]), strict=True):
        assert (a - b).abs().max() < 1e-10


def test_dense_sequences_side_by_side_in_bf16():
    conv = nn.Conv1d(6, 5, 3, padding=1)
    sizes = (8, 4, 2, 1)
    x = random(2, sum(sizes), 6, dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = conv_time(x, conv, sizes)
        want = torch.cat([conv_time(part, conv) for part in x.split(sizes, dim=1)], dim=1)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)


@pytest.mark.parametrize("stride", [2, 4])
def test_depthwise_convolutions_with_a_stride(stride):
    conv = nn.Conv1d(6, 6, 5, stride, 2, groups=6).double()
    x = random(2, 24, 6).requires_grad_()
    got, want = conv_time(x, conv), conv(x.transpose(1, 2)).transpose(1, 2)
    assert got.shape == (2, 24 // stride, 6)
    assert (got - want).abs().max() < 1e-12
    weight = random(*got.shape, seed=1)
    for a, b in zip(torch.autograd.grad((got * weight).sum(), [x, *conv.parameters()]),
                    torch.autograd.grad((want * weight).sum(), [x, *conv.parameters()]), strict=True):
        assert (a - b).abs().max() < 1e-10
    with torch.no_grad():
        assert (conv_time(x, conv) - want).abs().max() < 1e-12


@pytest.mark.parametrize("bias", [False, True])
def test_plain_attention_is_the_fused_one(bias):
    q, k, v = (random(3, 2, 5, 8, seed=i, dtype=torch.float32).requires_grad_() for i in range(3))
    allowed = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(4)) > 0.3
    allowed = allowed | torch.eye(5, dtype=torch.bool)
    mask = torch.where(allowed, random(1, 2, 5, 5, seed=5, dtype=torch.float32), float("-inf")) if bias else allowed
    got, want = plain_attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert (got - want).abs().max() < 1e-5
    for a, b in zip(torch.autograd.grad(got.square().sum(), [q, k, v]), torch.autograd.grad(want.square().sum(), [q, k, v]),
                    strict=True):
        assert (a - b).abs().max() < 1e-4


def test_training_in_bf16_takes_plain_attention_and_evaluation_the_fused_one(monkeypatch):
    called = []
    monkeypatch.setattr(attention, "plain_attention", lambda *a, **k: called.append(1) or plain_attention(*a, **k))
    q, k, v = (random(1, 40, 2, 4, seed=i, dtype=torch.float32) for i in range(3))
    mask = torch.ones(1, 40, dtype=torch.bool)
    exact = band_attention(q, k, v, mask, 9)
    assert not called
    low = [x.bfloat16() for x in (q, k, v)]
    assert (band_attention(*low, mask, 9) - exact).abs().max() < 0.05
    assert called
    called.clear()
    with torch.no_grad():
        band_attention(*low, mask, 9)
    assert not called


@pytest.mark.parametrize("with_path", [True, False])
def test_the_end_of_a_branch(with_path):
    last, dropout = nn.Conv1d(5, 4, 1).double(), nn.Dropout(0.0)
    path = AffineDropPath(4, 0.5).double().eval() if with_path else nn.Identity()
    if with_path:
        nn.init.normal_(path.scale)
    skip, hidden = random(2, 7, 4), random(2, 7, 5, seed=1)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    scale = path.scale.flatten() if with_path else 1.0
    want = skip + last(hidden.transpose(1, 2)).transpose(1, 2) * scale * mask.unsqueeze(-1)
    before = skip.clone()
    assert (add_branch(skip, hidden, last, dropout, path, mask) - want).abs().max() < 1e-12
    assert torch.equal(skip, before)
    with torch.no_grad():
        assert add_branch(skip, hidden, last, dropout, path, mask) is skip
    assert (skip - want).abs().max() < 1e-12


def test_a_dropped_branch_leaves_its_sample_alone():
    last, path = nn.Conv1d(5, 4, 1), AffineDropPath(4, 0.5)
    nn.init.ones_(path.scale)
    skip, hidden = random(64, 3, 4, dtype=torch.float32), random(64, 3, 5, seed=1, dtype=torch.float32)
    mask = torch.ones(64, 3, dtype=torch.bool)
    torch.manual_seed(0)
    got = add_branch(skip, hidden, last, nn.Dropout(0.0), path, mask)
    whole = skip + 2 * last(hidden.transpose(1, 2)).transpose(1, 2)
    dropped = (got == skip).flatten(1).all(1)
    assert 16 < dropped.sum() < 48
    assert (got - whole)[~dropped].abs().max() < 1e-5


def test_gelu_keeps_its_argument_where_gradients_are_asked_for():
    x = random(3, 4)
    want, before = F.gelu(x), x.clone()
    assert torch.equal(gelu(x), want)
    assert torch.equal(x, before)
    with torch.no_grad():
        assert gelu(x) is x
    assert (x - want).abs().max() < 1e-12


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


def test_bf16_evaluation_has_few_lengths():
    config = tiny_config(dataset={"max_seq_len": 576}, test_cfg={"precision": "bf16"})
    padding = padding_of(config)
    assert {padding.of_batch([n]) for n in range(1, 577)} == {BF16_MULTIPLE, 2 * BF16_MULTIPLE, 576}
    assert padding.of_batch([600]) == 3 * BF16_MULTIPLE
    assert padding_of(tiny_config()).multiple == 1


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    asked = []

    class Library:
        """A C library that takes notes."""

        def mallopt(self, option, value):
            asked.append((option, value))
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: Library())
    machine.keep_freed_memory()
    assert asked == [(-3, 2**30), (-1, 2**31 - 1)]
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: object())
    machine.keep_freed_memory()  # no such function: nothing happens
    assert len(asked) == 2


def test_a_separable_convolution_of_several_sequences():
    conv = MaskedConv1D(6, 4, 3, separable=True).double()
    sizes = (5, 3, 1)
    x, mask = random(2, 9, 6), torch.ones(2, 9, dtype=torch.bool)
    parts = [conv(part, mask[:, :n]) for part, n in zip(x.split(sizes, dim=1), sizes, strict=True)]
    assert (conv(x, mask, sizes) - torch.cat(parts, dim=1)).abs().max() < 1e-12
