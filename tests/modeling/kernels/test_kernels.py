"""Every kernel against its plain twin: values and gradients, float32 and bfloat16, padding, meta device and exported graphs."""
from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from libs.modeling.kernels import band_attention as attention
from libs.modeling.kernels import conv1d
from libs.modeling.kernels.band_attention import BLOCK, band_attention, local_attention, plain_attention
from libs.modeling.kernels.conv1d import (
    ShiftedProducts,
    channels_first_conv_time,
    conv_time,
    image_conv_time,
    in_one_call,
    plain_conv_time,
)
from libs.modeling.kernels.in_place import gelu, masked, plain_masked
from libs.modeling.kernels.residual import add_branch, plain_add_branch

WINDOWS = (3, 5, 7, 9, 19, 31, 33, 63, 65, 67)
LENGTHS = (1, 2, 3, 8, 31, 32, 33, 64, 65, 100)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_same(got, want, leaves, tolerance):
    """Values, and the gradients of a random weighting of them, relative to the largest."""
    weight = random(*want.shape, seed=9, dtype=want.dtype)
    pairs = [(got, want), *zip(*(torch.autograd.grad((out * weight).sum(), leaves, retain_graph=True) for out in (got, want)),
                                strict=True)]
    for a, b in pairs:
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * (1 + b.abs().max())


# ---- convolution over time

@pytest.mark.parametrize(("kernel", "stride", "groups"), [
    (1, 1, 1), (3, 1, 1), (5, 1, 1), (7, 1, 1), (3, 2, 1), (1, 2, 1), (5, 4, 1), (3, 1, 8), (7, 1, 8), (3, 2, 8), (5, 4, 8),
    (3, 2, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_convolution(kernel, stride, groups, dtype):
    low = dtype == torch.bfloat16  # as in training: float32 parameters under autocast
    conv = nn.Conv1d(8, 16, kernel, groups=groups).to(torch.float32 if low else dtype)
    leaves = [conv.weight, conv.bias]
    for sizes in ([4], [36], [16, 8, 4, 1, 2], [1, 1]):
        if stride > 1 and len(sizes) > 1:
            continue
        x = random(2, sum(sizes), 8, dtype=conv.weight.dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16) if low else nullcontext():
            got = conv_time(x, *leaves, stride, groups, () if len(sizes) == 1 else sizes)
            want = plain_conv_time(x, *leaves, stride, groups, sizes)
        assert_same(got, want, [x, *leaves], {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype])


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(3, 1, 1), (5, 1, 1), (3, 2, 1), (5, 4, 1), (3, 1, 8), (7, 2, 8)])
def test_the_forms_of_gpus(kernel, stride, groups):
    weight, bias = random(8, 8 // groups, kernel).requires_grad_(), random(8, seed=1).requires_grad_()
    for sizes in ([36], [16, 8, 4, 1, 2])[:1 + (stride == 1)]:
        x = random(2, sum(sizes), 8, seed=2).requires_grad_()
        want = plain_conv_time(x, weight, bias, stride, groups, sizes)
        for form in (image_conv_time, channels_first_conv_time):
            got = in_one_call(lambda x, form=form: form(x, weight, bias, stride, groups), x, kernel // 2, sizes)
            assert_same(got, want, [x, weight, bias], 1e-12)


def test_dense_convolutions_are_shifted_products_on_cpus_in_full_precision_only(monkeypatch):
    called, apply = [], ShiftedProducts.apply
    monkeypatch.setattr(ShiftedProducts, "apply", lambda *args: called.append(1) or apply(*args))
    x, weight = random(1, 8, 4, dtype=torch.float32), random(4, 4, 3, dtype=torch.float32)
    conv_time(x, weight, None)
    assert called == [1]
    with torch.autocast("cpu", torch.bfloat16):
        conv_time(x, weight, None)
    conv_time(x, weight, None, stride=2)
    conv_time(x, random(4, 1, 3, dtype=torch.float32), None, groups=4)
    assert called == [1]


def test_a_weight_without_gradient_and_one_without_bias():
    x, weight = random(2, 9, 4).requires_grad_(), random(5, 4, 3)
    assert_same(conv_time(x, weight, None), plain_conv_time(x, weight, None, 1, 1, [9]), [x], 1e-12)


# ---- attention

def slow_attention(q, k, v, mask, window, bias=None):
    """All scores, -inf outside the band and at invalid keys, softmax, weighted sum.  Only rows of valid queries count."""
    _, T, _, D = q.shape
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / D**0.5
    for i in range(T):
        for j in range(T):
            if abs(i - j) > window // 2:
                scores[:, :, i, j] = -torch.inf
            elif bias is not None:
                scores[:, :, i, j] = scores[:, :, i, j] + bias[:, j - i + window // 2].double()
    scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    weights = torch.where(mask[:, None, :, None], scores, 0.0).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v.double())


def inputs(T, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(len(lengths), T, 2, 4, generator=generator).requires_grad_() for _ in range(3))
    return q, k, v, torch.arange(T) < torch.tensor(lengths).unsqueeze(1)


@pytest.mark.parametrize(("T", "window", "with_bias"), [(7, 3, True), (33, 9, False), (40, 19, True), (70, 33, True)])
def test_plain_attention_follows_its_formula(T, window, with_bias):
    q, k, v, mask = inputs(T, [T, T - 3])
    bias = torch.randn(2, window) if with_bias else None
    want = slow_attention(q, k, v, mask, window, bias)
    assert (plain_attention(q, k, v, mask, window, bias) - want)[mask].abs().max() < 1e-5


@pytest.mark.parametrize("T", LENGTHS)
def test_band_attention_for_many_windows(T):
    q, k, v, mask = inputs(T, [T, max(T // 2, 1), 1])
    for window in WINDOWS:
        bias = torch.randn(2, window, generator=torch.Generator().manual_seed(window)) if window % 4 == 3 else None
        with torch.no_grad():
            got, want = (f(q, k, v, mask, window, bias) for f in (band_attention, plain_attention))
        assert torch.isfinite(got).all()
        assert (got - want)[mask].abs().max() < 1e-5, window


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("T", "window", "with_bias"), [(7, 3, True), (33, 9, False), (40, 19, True), (70, 33, True)])
def test_gradients_of_band_attention(T, window, with_bias, dtype):
    q, k, v, mask = inputs(T, [T, T - 3])
    bias = [torch.randn(2, window).requires_grad_()] if with_bias else []
    valid = mask[..., None, None]  # padded queries are masked by their caller
    low = [x.to(dtype) for x in (q, k, v)]
    got = band_attention(*low, mask, window, *(b.to(dtype) for b in bias)).float() * valid
    want = plain_attention(q, k, v, mask, window, *bias) * valid
    assert_same(got, want, [q, k, v, *bias], 2e-5 if dtype == torch.float32 else 0.05)
    of_k, of_v = torch.autograd.grad(got.sum(), [k, v])
    assert not of_k[1, T - 3:].any()  # padded keys and values take no part
    assert not of_v[1, T - 3:].any()


def test_padded_values_do_not_matter():
    q, k, v, mask = inputs(50, [50, 20])
    other = [torch.where(mask[..., None, None], x, 1e4) for x in (q, k, v)]
    for window in (5, 33):
        assert torch.equal(band_attention(q, k, v, mask, window)[mask], band_attention(*other, mask, window)[mask])


def test_a_window_that_reaches_everywhere_is_global_attention():
    q, k, v, mask = inputs(30, [30, 11])
    with torch.no_grad():
        assert (local_attention(q, k, v, mask, 61) - local_attention(q, k, v, mask, -1))[mask].abs().max() < 1e-5


def test_memory_grows_with_the_window_not_with_the_square_of_the_length():
    T, sizes = 64 * BLOCK, []
    q, k, v, mask = inputs(T, [T])

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor))
            return out

    with torch.no_grad(), Largest():
        local_attention(q, k, v, mask, 9)
    assert max(sizes) < 8 * q.numel() < T * T


@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_by_products_is_the_fused_one(with_bias):
    q, k, v = (random(3, 2, 5, 8, seed=i, dtype=torch.float32).requires_grad_() for i in range(3))
    allowed = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(4)) > 0.3
    allowed = allowed | torch.eye(5, dtype=torch.bool)
    mask = torch.where(allowed, random(1, 2, 5, 5, seed=5, dtype=torch.float32), float("-inf")) if with_bias else allowed
    assert_same(attention._products(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask), [q, k, v], 1e-5)


def test_only_training_in_bf16_takes_products(monkeypatch):
    called, products = [], attention._products
    monkeypatch.setattr(attention, "_products", lambda *a, **k: called.append(1) or products(*a, **k))
    q, k, v, mask = inputs(40, [40])
    band_attention(q, k, v, mask, 9)
    low = [x.bfloat16() for x in (q, k, v)]
    with torch.no_grad():
        band_attention(*low, mask, 9)
    assert not called
    band_attention(*low, mask, 9)
    assert called


# ---- the end of a residual branch

@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_kept", [False, True])
def test_the_end_of_a_branch(dtype, with_kept):
    wide = torch.float32 if dtype == torch.bfloat16 else dtype  # the sum of all branches keeps float32
    skip, scale = random(3, 7, 4, dtype=wide).requires_grad_(), random(4, seed=2, dtype=wide).requires_grad_()
    branch = random(3, 7, 4, seed=1, dtype=dtype).requires_grad_()
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    kept = torch.tensor([1 / 0.7, 0.0, 1 / 0.7]).view(3, 1, 1) if with_kept else None
    got, want = (f(skip, branch, scale, kept, mask) for f in (add_branch, plain_add_branch))
    assert_same(got, want, [skip, branch, scale], {torch.float64: 1e-7, torch.float32: 1e-6, torch.bfloat16: 0.02}[dtype])
    assert torch.equal(got[1, 4:], skip[1, 4:])
    assert not with_kept or torch.equal(got[1], skip[1])


def test_a_branch_without_scale():
    skip, branch, mask = random(2, 7, 4), random(2, 7, 4, seed=1), torch.arange(7) < torch.tensor([[7], [4]])
    assert torch.equal(add_branch(skip, branch, None, None, mask), add_branch(skip, branch, torch.ones(4), None, mask))


# ---- elementwise steps in place

@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_steps_in_place_overwrite_their_input_only_without_gradients(dtype):
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    for fast, plain in ((lambda x: masked(x, mask), lambda x: plain_masked(x, mask)), (gelu, F.gelu)):
        x = random(2, 7, 4, dtype=dtype).requires_grad_()
        before, want = x.detach().clone(), plain(x)
        assert_same(fast(x), want, [x], 0)
        assert torch.equal(x, before)
        with torch.no_grad():
            assert fast(before) is before
        assert torch.equal(before, want)


# ---- without arithmetic, and in exported graphs

class AllKernels(nn.Module):
    """One layer of each kernel; `plain`: its plain twin."""

    def __init__(self, plain):
        super().__init__()
        self.plain, self.dense, self.depthwise = plain, nn.Conv1d(8, 8, 3), nn.Conv1d(8, 8, 3, groups=8)

    def forward(self, x, mask):
        conv, attend, add = ((plain_conv_time, plain_attention, plain_add_branch) if self.plain
                             else (conv_time, local_attention, add_branch))
        sizes = [x.shape[1] // 2, x.shape[1] // 2]
        h = conv(conv(x, self.dense.weight, self.dense.bias, 1, 1, sizes), self.depthwise.weight, None, 1, 8, sizes)
        q = h.unflatten(-1, (2, 4))
        return add(x, attend(q, q, q, mask, 5).flatten(2), self.dense.bias, None, mask)


def test_exported_graphs_and_the_meta_device(monkeypatch):
    fast, plain = AllKernels(False), AllKernels(True)
    plain.load_state_dict(fast.state_dict())
    x, mask = random(2, 48, 8, dtype=torch.float32), torch.arange(48) < torch.tensor([[48], [17]])
    want = plain(x, mask)
    assert (fast(x, mask) - want)[mask].abs().max() < 1e-5
    assert fast.to("meta")(x.to("meta"), mask.to("meta")).shape == want.shape
    fast = AllKernels(False)
    fast.load_state_dict(plain.state_dict())
    monkeypatch.setattr(conv1d, "ShiftedProducts", None)  # an own autograd function has no place in a graph
    exported = torch.export.export(fast, (x, mask)).module()
    assert (exported(x, mask) - want)[mask].abs().max() < 1e-5
