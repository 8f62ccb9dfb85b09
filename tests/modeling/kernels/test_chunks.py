"""Inference in pieces along time equals inference of the whole sequence."""
from __future__ import annotations

import pytest
import torch
from helpers import padded_batch
from test_model import VARIANTS, channels, network

from libs.modeling.kernels import chunks
from libs.modeling.kernels.chunks import over_time


def running_sum(x, mask, first):
    """A layer that looks two output steps back and one ahead, at a stride of 2, and knows where it is."""
    padded = torch.nn.functional.pad(x, (0, 0, 4, 3))
    windows = padded.unfold(1, 8, 2).sum(-1)
    return (windows + first + torch.arange(windows.shape[1]).view(1, -1, 1)) * mask.unsqueeze(-1)


@pytest.mark.parametrize("steps", [1, 47, 48, 49, 64, 95, 96, 97, 160])
def test_pieces_fit_together(steps, monkeypatch):
    x, mask = torch.randn(2, 2 * steps, 3, dtype=torch.float64), torch.rand(2, steps) < 0.8
    whole = running_sum(x, mask, 0)
    calls = []
    monkeypatch.setattr(chunks, "CHUNK", 64)  # 32 steps of two videos
    monkeypatch.setattr(chunks, "WHOLE", 95)

    def layer(*args):
        calls.append(args[1].shape[1])
        return running_sum(*args)

    with torch.no_grad():
        assert (over_time(layer, x, mask, 2, halo=2) - whole).abs().max() < 1e-12
    assert len(calls) == (1 if steps < 48 else -(-steps // 32))
    assert max(calls) <= (47 if steps < 48 else 36)
    calls.clear()
    assert torch.equal(over_time(layer, x, mask, 2, halo=2), whole)  # gradients may be asked for: in one piece
    assert calls == [steps]
    with torch.no_grad():
        assert torch.equal(over_time(layer, x, mask, 2, halo=None), whole)
    assert calls == [steps, steps]


@pytest.mark.parametrize("name", VARIANTS)
def test_network_in_pieces(name, monkeypatch):
    config, model = network(**VARIANTS[name])
    lengths, total = ([230, 201], 256)
    x, mask = padded_batch(lengths, total, channels(config))
    with torch.no_grad():
        whole = model(x, mask)
        monkeypatch.setattr(chunks, "CHUNK", 96)  # 48 steps of two videos, not a divisor of anything
        monkeypatch.setattr(chunks, "WHOLE", 96)
        pieces = model(x, mask)
    assert torch.equal(pieces.mask, whole.mask)
    scale = whole.logits.abs().max() + whole.offsets.abs().max()
    assert (pieces.logits - whole.logits).abs().max() < 2e-6 * scale
    assert (pieces.offsets - whole.offsets).abs().max() < 2e-6 * scale


def test_the_network_is_cut(monkeypatch):
    config, model = network()
    seen = []
    model.backbone.stem[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[1]))
    model.cls_head.cls_head.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[1]))
    monkeypatch.setattr(chunks, "CHUNK", 48)
    monkeypatch.setattr(chunks, "WHOLE", 72)
    with torch.no_grad():
        model(*padded_batch([250], 256, channels(config)))
    assert len(seen) > 10
    assert max(seen) < 80
