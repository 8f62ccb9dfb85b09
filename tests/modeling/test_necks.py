"""Gates over time in the identity neck: the published one, and the one behind the norm."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import padded_batch, show_every_term, tiny_config
from torch import nn

from libs.modeling.blocks.layers import LayerNorm
from libs.modeling.model import build_model
from libs.modeling.necks import FixedLengthGate, StepGate


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gate_by_hand(gate, mean):
    w1, w2 = (gate.fc[i].weight.detach().numpy() for i in (0, 2))
    return sigmoid(w2 @ np.maximum(w1 @ mean, 0))


def test_published_gate_at_its_own_length():
    torch.manual_seed(0)
    gate, x = FixedLengthGate(24).double(), torch.randn(2, 24, 5).double()
    assert {n: tuple(p.shape) for n, p in gate.named_parameters()} == {"fc.0.weight": (3, 24), "fc.2.weight": (24, 3)}
    for b, out in enumerate(gate(x).detach().numpy()):
        assert np.allclose(out, x[b].numpy() * gate_by_hand(gate, x[b].numpy().mean(1))[:, None], atol=1e-12)


@pytest.mark.parametrize("steps", [25, 36, 47, 48, 100])
def test_published_gate_of_longer_inputs_takes_the_nearest_steps(steps):
    torch.manual_seed(0)
    gate, x = FixedLengthGate(24).double(), torch.randn(1, steps, 5).double()
    mean = x[0].numpy().mean(1)
    small = gate_by_hand(gate, mean[[t * steps // 24 for t in range(24)]])  # nearest: the step below
    want = x[0].numpy() * small[[t * 24 // steps for t in range(steps)]][:, None]
    assert np.allclose(gate(x)[0].detach().numpy(), want, atol=1e-12)


def test_published_gate_refuses_shorter_inputs():
    with pytest.raises(ValueError, match=r"gate of 24 steps cannot take 20: pad to dataset\.max_seq_len"):
        FixedLengthGate(24)(torch.zeros(1, 20, 5))
    model = build_model(tiny_config(model={"temporal_gate": "published"}))
    with pytest.raises(ValueError, match="gate of 48 steps cannot take 44"):
        model(*padded_batch([40], 44))


def test_the_norm_behind_the_published_gate_cancels_it():
    torch.manual_seed(0)
    gate, norm, x = FixedLengthGate(48), LayerNorm(16), 3 * torch.randn(2, 48, 16)
    for p in gate.parameters():
        nn.init.normal_(p, std=0.3)
    gated = gate(x)
    assert (gated / x - 1).abs().max() > 0.1
    assert (norm(gated) - norm(x)).abs().max() < 1e-4


def test_the_published_gate_has_no_effect_in_the_network():
    plain = show_every_term(build_model(tiny_config())).eval()
    gated = build_model(tiny_config(model={"temporal_gate": "published"})).eval()
    names = [n for n in gated.state_dict() if n not in plain.state_dict()]
    assert names == [f"neck.seblocks.{level}.fc.{i}.weight" for level in range(3) for i in (0, 2)]
    assert [tuple(gated.state_dict()[n].shape) for n in names] == [(6, 48), (48, 6), (3, 24), (24, 3), (1, 12), (12, 1)]
    gated.load_state_dict(plain.state_dict(), strict=False)
    for steps, total in ((37, 48), (60, 80)):
        x, mask = padded_batch([steps], total)
        with torch.no_grad():
            (a, traced), (b, _) = gated.trace(x, mask), plain.trace(x, mask)
            assert (gated.neck.seblocks[0](traced.stem) / traced.stem - 1)[mask].abs().max() > 0.1
        assert (a.logits - b.logits).abs().max() < 1e-3
        assert (a.offsets - b.offsets).abs().max() < 1e-3


@pytest.mark.parametrize("start", [0, 1])
def test_gates_follow_the_levels_that_the_neck_keeps(start):
    ranges = [[0, 4], [4, 8], [8, 10000]][start:]
    model = {"fpn_start_level": start, "regression_range": ranges}
    published = build_model(tiny_config(model={"temporal_gate": "published", **model})).neck
    assert [gate.steps for gate in published.seblocks] == [48, 24, 12][start:]
    assert len(build_model(tiny_config(model={"temporal_gate": "post_norm", **model})).neck.gates) == 3 - start


def test_the_gate_behind_the_norm_starts_at_one():
    torch.manual_seed(0)
    plain = show_every_term(build_model(tiny_config())).eval()
    gated = build_model(tiny_config(model={"temporal_gate": "post_norm"})).eval()
    missing = gated.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == [f"neck.gates.{level}.conv.{n}" for level in range(3) for n in ("weight", "bias")]
    x, mask = padded_batch([37, 48], 48)
    with torch.no_grad():
        assert torch.equal(gated(x, mask).logits, plain(x, mask).logits)


def test_the_gate_behind_the_norm_follows_its_formula():
    torch.manual_seed(0)
    gate, x = StepGate(4).double(), torch.randn(1, 7, 4).double()
    for p in gate.parameters():
        nn.init.normal_(p)
    mask = torch.arange(7).unsqueeze(0) < 5
    out, weight, bias = gate(x, mask)[0].detach().numpy(), gate.conv.weight.detach().numpy()[0], gate.conv.bias.item()
    for t in range(7):
        score = bias + sum(weight[:, k] @ x[0, t + k - 1].numpy() for k in range(3) if 0 <= t + k - 1 < 7)
        assert np.allclose(out[t], x[0, t].numpy() * (2 * sigmoid(score) if t < 5 else 1), atol=1e-12)
