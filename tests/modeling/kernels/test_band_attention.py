"""Band attention against a slow twin that builds the whole (T, T) mask."""
from __future__ import annotations

import pytest
import torch

from libs.modeling.kernels.band_attention import BLOCK, band_attention, global_attention

WINDOWS = (3, 5, 7, 9, 19, 31, 33, 63, 65, 67)
LENGTHS = (1, 2, 3, 8, 31, 32, 33, 64, 65, 100)


def slow_attention(q, k, v, mask, window, bias=None):
    """Scores of all pairs, -inf outside the band and at invalid keys, softmax, weighted sum; float64, one pair at a time in
    meaning.  Only rows of valid queries count."""
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


@pytest.mark.parametrize("T", LENGTHS)
def test_values_for_many_windows(T):
    q, k, v, mask = inputs(T, [T, max(T // 2, 1), 1])
    for window in WINDOWS:
        bias = torch.randn(2, window, generator=torch.Generator().manual_seed(window)) if window % 4 == 3 else None
        with torch.no_grad():
            got = band_attention(q, k, v, mask, window, bias)
            want = slow_attention(q, k, v, mask, window, bias)
        assert torch.isfinite(got).all()
        assert (got - want)[mask].abs().max() < 1e-5, window


@pytest.mark.parametrize(("T", "window", "with_bias"), [(7, 3, True), (33, 9, False), (40, 19, True), (70, 33, True)])
def test_gradients(T, window, with_bias):
    q, k, v, mask = inputs(T, [T, T - 3])
    bias = torch.randn(2, window).requires_grad_() if with_bias else None
    leaves = [q, k, v] + ([bias] if with_bias else [])
    weight = torch.randn(2, T, 2, 4) * mask[..., None, None]  # padded queries are masked by their caller
    got = torch.autograd.grad((band_attention(q, k, v, mask, window, bias) * weight).sum(), leaves)
    want = torch.autograd.grad((slow_attention(q, k, v, mask, window, bias) * weight).sum(), leaves)
    for g, w in zip(got, want, strict=True):
        assert torch.isfinite(g).all()
        assert (g - w).abs().max() < 2e-5
    assert not got[1][1, T - 3:].any()  # padded keys and values take no part
    assert not got[2][1, T - 3:].any()


def test_padded_values_do_not_matter():
    q, k, v, mask = inputs(50, [50, 20])
    other = [torch.where(mask[..., None, None], x, 1e4) for x in (q, k, v)]
    for window in (5, 33):
        assert torch.equal(band_attention(q, k, v, mask, window)[mask], band_attention(*other, mask, window)[mask])


def test_a_window_that_reaches_everywhere_is_global_attention():
    q, k, v, mask = inputs(30, [30, 11])
    with torch.no_grad():
        assert (band_attention(q, k, v, mask, 61) - global_attention(q, k, v, mask))[mask].abs().max() < 1e-5


def test_memory_grows_with_the_window_not_with_the_square_of_the_length():
    T, sizes = 64 * BLOCK, []
    q, k, v, mask = inputs(T, [T])

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor))
            return out

    with torch.no_grad(), Largest():
        band_attention(q, k, v, mask, 9)
    assert max(sizes) < 8 * q.numel() < T * T
