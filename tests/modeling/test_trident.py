"""Distances as expectations over bins: the formula, candidates that need few of them, and where gradients go."""
from __future__ import annotations

import math

import pytest
import torch
from helpers import padded_batch, tiny_config
from networks import TRIDENT, VARIANTS, network

from libs.datasets.grid import Grid
from libs.datasets.sample import Sample
from libs.engine.inference.candidates import CandidateCollector
from libs.modeling.decode import decode_batch
from libs.modeling.model import build_model
from libs.modeling.trident import Boundaries, offsets_of_level, offsets_of_pairs


def twin(start_TK, end_TK, bins_TJ, border="zero"):
    """SPEC_FAMILY F9 as loops in float64: (T, K, 2); `border` valid: all T points are valid, others are left out (F41)."""
    T, K = start_TK.shape
    n = bins_TJ.shape[1] // 2 - 1
    out = torch.zeros(T, K, 2, dtype=torch.float64)
    for t in range(T):
        for c in range(K):
            for side, logits, at in ((0, start_TK, t - n), (1, end_TK, t)):
                z = [(float(logits[at + j, c]) if 0 <= at + j < T else 0.0) + float(bins_TJ[t, side * (n + 1) + j])
                     for j in range(n + 1)]
                p = [math.exp(v - max(z)) if border == "zero" or 0 <= at + j < T else 0.0 for j, v in enumerate(z)]
                out[t, c, side] = sum(v * (n - j if side == 0 else j) for j, v in enumerate(p)) / sum(p)
    return out


@pytest.mark.parametrize(("bins", "sizes"), [(16, (40, 20, 5)), (1, (9,)), (4, (1, 1)), (12, (3, 7)), (8, (8, 4, 2, 1))])
def test_both_forms_are_the_formula_level_by_level(bins, sizes):
    generator = torch.Generator().manual_seed(bins)
    B, P, K = 2, sum(sizes), 3
    start, end = (4 * torch.randn(B, P, K, generator=generator) for _ in range(2))
    logits = 3 * torch.rand(B, P, 2 * (bins + 1), generator=generator)
    parts = [list(zip(*(x[b].split(sizes) for x in (start, end, logits)), strict=True)) for b in range(B)]
    want = torch.stack([torch.cat([twin(*level) for level in video]) for video in parts])
    levels = zip(*(x.split(sizes, 1) for x in (start, end, logits)), strict=True)
    dense = torch.cat([offsets_of_level(*level) for level in levels], 1)
    assert (dense - want).abs().max() < 1e-5
    video, point, label = torch.ones(B, P, K).nonzero().unbind(1)
    pairs = offsets_of_pairs(Boundaries(start, end), logits, sizes, video, point, label)
    assert (pairs.view(B, P, K, 2) - want).abs().max() < 1e-5
    none = torch.zeros(0, dtype=torch.int64)
    assert offsets_of_pairs(Boundaries(start, end), logits, sizes, none, none, none).shape == (0, 2)


@pytest.mark.parametrize(("threshold", "topk", "duration"), [
    (0.001, 100, 0.05), (0.3, 7, 0.05), (0.001, 30, 6.0), (0.999, 9, 0.05)])
def test_candidates_have_the_distances_of_their_class(threshold, topk, duration):
    config, model = network(model=TRIDENT, test_cfg={"pre_nms_thresh": threshold, "pre_nms_topk": topk,
                                                     "duration_thresh": duration})
    with torch.no_grad():
        out = model(*padded_batch([40, 17], 48))
        offsets, scores = out.all_offsets(), torch.sigmoid(out.logits) * out.mask.unsqueeze(-1)
    got, at = decode_batch(out, config.test_cfg), 0
    for b in range(2):
        rows, first = [], 0
        for size in out.level_sizes:
            level = [(-float(scores[b, p, c]), p, c) for p in range(first, first + size) for c in range(3)
                     if scores[b, p, c] > threshold]
            rows += sorted(level)[:topk]
            first += size
        segments = [(float(out.points[p, 0] - offsets[b, p, c, 0] * out.points[p, 3]),
                     float(out.points[p, 0] + offsets[b, p, c, 1] * out.points[p, 3])) for _, p, c in rows]
        kept = [(s, -score, c) for s, (score, _, c) in zip(segments, rows, strict=True) if s[1] - s[0] > duration]
        count = int(got.counts[b])
        assert count == len(kept)
        own = slice(at, at + count)
        assert got.labels[own].tolist() == [c for _, _, c in kept]
        assert got.scores[own].tolist() == pytest.approx([score for _, score, _ in kept])
        assert got.segments[own].flatten().tolist() == pytest.approx([x for s, _, _ in kept for x in s], abs=1e-4)
        at += count
    assert at == len(got.scores)


def test_candidates_files_hold_the_level_of_each_candidate():
    config, model = network(**VARIANTS["TriDet"])
    collector = CandidateCollector(config.test_cfg)
    with torch.no_grad():
        out = model(*padded_batch([40], 48))
    none = torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)
    collector([Sample(0, "v", Grid(5.0, 10.0, 1.0, 25.0), 8.0, 40, 40, *none)], out)
    (segments, _, _, levels), _ = collector._found["v"]
    own = decode_batch(out, collector.config)
    assert torch.equal(segments, own.segments)
    assert sorted(set(levels.tolist())) == [0, 1, 2]
    assert levels.tolist() == sorted(levels.tolist())


def test_the_valid_border_leaves_out_neighbours_that_are_not_valid_points():
    """Outside the level and in padding, in both forms; elsewhere nothing changes."""
    _, model = network(model=TRIDENT)
    _, other = network(model={**TRIDENT, "trident_border": "valid"})
    assert other.state_dict().keys() == model.state_dict().keys()
    lengths = [40, 17]
    with torch.no_grad():
        published, out = (m(*padded_batch(lengths, 48)) for m in (model, other))
        longer = other(*padded_batch(lengths, 64))
    found, plain = out.all_offsets(), published.all_offsets()
    assert found.isfinite().all()  # at padded points too, where no step counts
    first = moved = 0
    for stride, size in zip((1, 2, 4), out.level_sizes, strict=True):
        for b, steps in enumerate(lengths):
            valid = slice(first, first + -(-steps // stride))
            want = twin(published.boundaries.start[b, valid], published.boundaries.end[b, valid], out.offsets[b, valid], "valid")
            assert (found[b, valid] - want).abs().max() < 1e-5
            apart = (found[b, valid] - plain[b, valid]).abs().amax((1, 2))
            assert not (apart[3:-3] > 1e-6).any()  # 3 bins reach no further
            moved = max(moved, float(apart.max()))
        first += size
    assert moved > 0.1
    index = out.mask.unsqueeze(-1).expand(-1, -1, 3).nonzero().unbind(1)
    assert (out.offsets_of(*index) - found[index]).abs().max() < 1e-5
    assert (longer.all_offsets()[longer.mask] - found[out.mask]).abs().max() < 2e-5


def test_nothing_starts_pulled_outwards_with_the_valid_border():
    """Freshly initialised: the published logit 0 outweighs the starting bias of -4.6 where a bin leaves the level (F9)."""
    pulled = {}
    for border in ("zero", "valid"):
        torch.manual_seed(0)
        model = build_model(tiny_config(model={**TRIDENT, "num_bins": 8, "trident_border": border})).eval()
        with torch.no_grad():
            out = model(*padded_batch([48], 48))
        pulled[border] = out.all_offsets()[0, 1, :, 0].max().item()
    assert pulled["zero"] > 4
    assert pulled["valid"] < 1


def test_gradients_with_the_valid_border_are_finite():
    _, model = network(model={**TRIDENT, "trident_border": "valid"})
    out = model(*padded_batch([40, 17], 48))
    torch.where(out.mask.unsqueeze(-1), out.offsets_at(out.logits.argmax(-1)), 1.0).square().sum().backward()
    heads = [p.grad for name, p in model.named_parameters() if name.startswith(("start_head", "end_head", "reg_head"))]
    assert all(bool(grad.isfinite().all()) for grad in heads)
    assert all(bool(grad.any()) for grad in heads if grad.dim() == 3)


def test_losses_of_boundaries_do_not_reach_the_neck():
    _, model = network(model=TRIDENT)
    out = model(*padded_batch([40], 48))
    (out.boundaries.start.sum() + out.boundaries.end.square().sum()).backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"start_head", "end_head"}


def test_boundary_heads_have_their_own_kernel_and_start_like_the_class_head():
    model = network(model={**TRIDENT, "boudary_kernel_size": 1, "head_kernel_size": 5})[1]
    assert [getattr(model, name).head[0].conv.weight.shape[2] for name in ("cls_head", "start_head", "end_head")] == [5, 1, 1]
    fresh = build_model(tiny_config(model=TRIDENT), (1,))
    for head in (fresh.start_head, fresh.end_head):
        assert torch.equal(head.cls_head.conv.bias, fresh.cls_head.cls_head.conv.bias)


def test_one_class_per_point():
    _, model = network(model=TRIDENT)
    with torch.no_grad():
        out = model(*padded_batch([40, 17], 48))
    best = out.logits.argmax(-1)
    want = out.all_offsets().gather(2, best[:, :, None, None].expand(-1, -1, 1, 2)).squeeze(2)
    assert (out.offsets_at(best) - want).abs().max() < 1e-5
    plain = out._replace(offsets=want, boundaries=None)
    assert plain.offsets_at(best) is want
    assert torch.equal(plain.offsets_of(torch.tensor([1]), torch.tensor([3]), torch.tensor([0])), want[1, 3:4])
