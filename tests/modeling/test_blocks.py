"""Building blocks against the plain torch operations that they stand for."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from libs.modeling.backbones import sinusoid_table
from libs.modeling.blocks.conv import ConvBlock
from libs.modeling.blocks.layers import AffineDropPath, LayerNorm, MaskedConv1D, SeparableConv, TimeConv
from libs.modeling.blocks.pooling import MaxPoolBlock, max_pool_time
from libs.modeling.blocks.transformer import TransformerBlock
from libs.modeling.heads import logit


def features(B=2, T=16, C=8, seed=0):
    return torch.randn(B, T, C, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (1, 4, 1), (5, 4, 8), (3, 2, 4)])
def test_convolution_over_time_is_torchs(kernel, stride, groups):
    torch.manual_seed(3)
    conv = TimeConv(8, 16, kernel, stride, groups)
    torch.manual_seed(3)
    twin = nn.Conv1d(8, 16, kernel, stride, kernel // 2, groups=groups)
    assert torch.equal(conv.weight, twin.weight)
    assert torch.allclose(conv(features()), twin(features().transpose(1, 2)).transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("sizes", [(16, 8, 4, 2, 1), (1,), (1, 1, 1), (7, 2)])
def test_sequences_behind_one_another_are_convolved_apart(sizes, kernel, separable):
    layer = MaskedConv1D(8, 6, kernel, separable=separable)
    x = features(T=sum(sizes)).requires_grad_()
    mask = torch.rand(2, sum(sizes), generator=torch.Generator().manual_seed(1)) < 0.7
    got = layer(x, mask, sizes)
    want = torch.cat([layer(part, m) for part, m in zip(x.split(sizes, 1), mask.split(sizes, 1), strict=True)], 1)
    assert torch.allclose(got, want, atol=1e-6)
    weight, leaves = torch.randn_like(want), [x, *layer.parameters()]
    for a, b in zip(*(torch.autograd.grad((out * weight).sum(), leaves) for out in (got, want)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_dense_weights_lie_tap_by_tap():
    taps = TimeConv(8, 6, 3).weight.unbind(2)
    assert [tap.stride() for tap in taps] == [(24, 1)] * 3  # matrices that products read without a copy


def test_masked_convolution_masks_its_output_and_starts_without_bias():
    conv = MaskedConv1D(8, 4, 3, 2)
    nn.init.constant_(conv.conv.bias, 3.0)
    mask = torch.tensor([[True] * 5 + [False] * 3, [True] * 8])
    out = conv(features(), mask)
    assert not out[0, 5:].any()
    assert out[0, :5].any(-1).all()
    assert not MaskedConv1D(8, 4, 3).conv.bias.any()
    with pytest.raises(ValueError, match="kernel 4 is even"):
        MaskedConv1D(8, 4, 4)


@pytest.mark.parametrize(("kernel", "stride", "bias"), [(3, 1, False), (3, 2, True), (1, 2, True), (5, 4, False), (5, 1, True)])
def test_separable_convolution_is_depthwise_then_pointwise(kernel, stride, bias):
    conv, x = SeparableConv(6, 10, kernel, stride, bias).double(), features(T=12, C=6).double().requires_grad_()
    assert [*conv.state_dict()] == ["depth_conv.weight", *(["depth_conv.bias"] if bias else []), "point_conv.weight",
                                    "point_conv.bias"]
    out = conv(x)
    depth, point = conv.depth_conv.weight[:, 0], conv.point_conv.weight[..., 0]
    for t in range(12 // stride):
        steps = [(k, stride * t + k - kernel // 2) for k in range(kernel)]
        middle = sum(x[:, s] * depth[:, k] for k, s in steps if 0 <= s < 12) + (conv.depth_conv.bias if bias else 0)
        assert torch.allclose(out[:, t], middle @ point.T + conv.point_conv.bias)
    out.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in (x, *conv.parameters()))


def test_a_masked_separable_convolution_masks_once_and_starts_without_bias():
    conv = MaskedConv1D(8, 4, 3, separable=True)
    assert not conv.conv.depth_conv.bias.any()
    assert not conv.conv.point_conv.bias.any()
    assert conv.bias is conv.conv.point_conv.bias
    nn.init.constant_(conv.bias, 3.0)
    mask = torch.tensor([[True] * 10 + [False] * 6] * 2)
    out = conv(features(), mask)
    assert not out[:, 10:].any()
    assert torch.equal(out[:, :10], conv.conv(features())[:, :10])
    assert MaskedConv1D(8, 4, 3, bias=False).conv.bias is None
    assert MaskedConv1D(8, 4, 3, bias=False, separable=True).conv.depth_conv.bias is None


def test_layer_norm_is_over_channels_with_biased_variance():
    norm, x = LayerNorm(8), features()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(1, 8, 1))
        norm.bias.copy_(torch.randn(1, 8, 1))
    centred = x - x.mean(-1, keepdim=True)
    want = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * norm.weight.flatten() + norm.bias.flatten()
    assert torch.allclose(norm(x), want, atol=1e-5)


@pytest.mark.parametrize("stride", [2, 4])
def test_max_pooling(stride):
    x = features(T=16)
    want = F.max_pool1d(x.transpose(1, 2), stride + 1, stride, (stride + 1) // 2).transpose(1, 2)
    assert torch.equal(max_pool_time(x, stride), want)
    assert max_pool_time(x, stride).shape == (2, 16 // stride, 8)


@pytest.mark.parametrize("stride", [2, 3, 4, 5])
def test_max_pooling_without_parameters_is_centred_and_masked(stride):
    x, block = features(T=4 * stride), MaxPoolBlock(stride)
    out = block(x, torch.tensor([[True] * 3 + [False], [True] * 4]))
    assert not list(block.parameters())
    assert not out[0, 3].any()
    for b, t in [(0, 0), (0, 2), (1, 1), (1, 3)]:
        low, high = max(stride * t - stride // 2, 0), stride * t + stride // 2 + 1
        assert torch.equal(out[b, t], x[b, low:high].amax(0))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    path, branch, skip, mask = AffineDropPath(8, 0.3), torch.ones(4000, 3, 8), features(4000, 3), torch.ones(4000, 3).bool()
    mask[:, 2] = False
    assert torch.allclose(path.scale, torch.full((1, 8, 1), 1e-4))
    nn.init.ones_(path.scale)
    out = path(skip, branch, mask) - skip
    kept = out[:, 0, 0] > 0
    assert abs(kept.float().mean() - 0.7) < 4 * math.sqrt(0.21 / 4000)
    assert torch.allclose(out[kept, :2], torch.full((), 1 / 0.7), atol=1e-5)  # so that the mean stays
    assert not out[~kept].any()
    assert not out[:, 2].any()
    assert torch.equal(path.eval()(skip, branch, mask)[:, :2], (skip + branch)[:, :2])
    nn.init.constant_(path.scale, 0.25)
    assert torch.allclose(path(skip, branch, mask)[:, :2], (skip + 0.25 * branch)[:, :2])


def test_a_drop_path_rate_of_zero_removes_the_scales():
    names = [dict(TransformerBlock(8, 2, 1, 3, 0.0, rate, False).named_parameters()).keys() for rate in (0.1, 0.0)]
    assert names[0] - names[1] == {"drop_path_attn.scale", "drop_path_mlp.scale"}


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("block", ["transformer", "conv", "conv_dw"])
def test_blocks_downsample(block, stride):
    module = (TransformerBlock(8, 2, stride, 3, 0.0, 0.1, True) if block == "transformer"
              else ConvBlock(8, stride, separable=block == "conv_dw"))
    assert module(features(T=16), torch.ones(2, 16 // stride, dtype=torch.bool)).shape == (2, 16 // stride, 8)


def test_position_table():
    table = sinusoid_table(50, 6)
    assert table.dtype == torch.float32
    for p in (0, 1, 49):
        for j in range(6):
            angle = p / 10000 ** (2 * (j // 2) / 6)
            assert table[p, j].item() == pytest.approx((math.cos if j % 2 else math.sin)(angle) / math.sqrt(6), abs=1e-6)


def test_prior_probability():
    assert logit(0.01) == pytest.approx(-4.59512)
    assert logit(1e-6) == pytest.approx(-13.81551)
