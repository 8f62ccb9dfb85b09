"""Hallucinated streams and gated fusion against the formulae they stand for."""
from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import padded_batch, show_every_term, tiny_config

from libs.engine.training.optim import parameter_groups
from libs.modeling.hallucination import GatedFusion, make_hallucinator
from libs.modeling.model import build_model

MODALITIES = {"rgb": [0, 3], "flow": [3, 5], "depth": [5, 6]}
KINDS = ("rgb2flow", "separable", "bottleneck")


def config_of(kind="rgb2flow", hallucinated=("flow",), modalities=("rgb",), **model):
    return tiny_config(dataset={"modalities": MODALITIES},
                       model={"modalities": list(modalities), "hallucinator": kind, "hallucinated": list(hallucinated), **model})


def hallucinator(kind, **model):
    torch.manual_seed(0)
    return show_every_term(make_hallucinator(config_of(kind, **model))).double()


def batch(lengths=(9, 5), total=12):
    x, mask = padded_batch(list(lengths), total, channels=3)
    return x.double(), mask


def conv(x_CT, weight, bias, groups=1):
    """A convolution by hand: weight (O, C / groups, K), zero padding K // 2."""
    out_channels, per_group, kernel = weight.shape
    steps, of_group = x_CT.shape[1], out_channels // groups
    out = np.zeros((out_channels, steps))
    for o in range(out_channels):
        first = o // of_group * per_group
        for t in range(steps):
            taps = [(k, t + k - kernel // 2) for k in range(kernel)]
            out[o, t] = bias[o] + sum(weight[o, :, k] @ x_CT[first:first + per_group, s] for k, s in taps if 0 <= s < steps)
    return out


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_hallucinators_follow_their_formula(kind):
    net, (x, mask) = hallucinator(kind), batch()
    w = {name: value.numpy() for name, value in net.state_dict().items()}

    def layer(h, name, groups=1):
        return conv(h, w[f"{name}.weight"], w[f"{name}.bias"], groups)

    with torch.no_grad():
        got = net(x, mask).numpy()
    for b in range(2):
        m, h = mask[b].numpy(), x[b].numpy().T
        if kind == "rgb2flow":
            want = relu(layer(layer(h, "extractor.0"), "extractor.1"))
        elif kind == "separable":
            h = layer(layer(h, "conv1.conv.depth_conv", 3), "conv1.conv.point_conv") * m
            h = F.gelu(torch.from_numpy(h)).numpy()
            want = relu(layer(layer(h, "conv2.conv.depth_conv", 2), "conv2.conv.point_conv")) * m
        else:
            for name in ("reduce", "conv", "expand"):
                h = relu(layer(h, f"{name}.conv")) * m
            want = h
        assert np.allclose(got[b].T, want, atol=1e-12)


def test_the_published_hallucinator_is_not_masked_and_keeps_its_first_biases():
    torch.manual_seed(0)
    net = make_hallucinator(config_of())
    assert [*net.state_dict()] == [f"extractor.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")]
    x, mask = padded_batch([9], 16, channels=3)
    model = build_model(config_of())
    for made in (net, model.rgb2flow):
        assert all(p.abs().min() > 0 for n, p in made.named_parameters() if n.endswith("bias"))  # torch's own start
        torch.nn.init.ones_(made.extractor[1].bias)
        assert made(x, mask)[0, 11:15].abs().min() > 0  # more than two steps behind the end: biases alone


@pytest.mark.parametrize("kind", ["separable", "bottleneck"])
def test_cheaper_hallucinators_are_zero_on_padding_whatever_its_length(kind):
    net, (x, mask) = hallucinator(kind), batch()
    with torch.no_grad():
        out, longer = net(x, mask), net(*batch(total=30))
    assert not out[~mask].any()
    assert out[mask].any()
    assert torch.equal(longer[:, :12], out)
    assert torch.allclose(net(x[:, :9], mask[:, :9]), out[:, :9], atol=1e-15)


@pytest.mark.parametrize(("kind", "wanted"), [("rgb2flow", 3 * 3 * 3 + 3 + 3 * 3 * 3 + 3),
                                              ("separable", (3 * 3 + 3) * 2 + (3 * 3 + 3) * 2),
                                              ("bottleneck", (3 * 8 + 8) + (8 * 8 * 3 + 8) + (8 * 3 + 3))])
def test_widths_are_those_of_the_streams(kind, wanted):
    config = config_of(kind, hallucinated=("flow", "depth"))
    net = make_hallucinator(config)
    x, mask = batch()
    assert net.double()(x, mask).shape == (2, 12, 3)
    assert sum(p.numel() for p in net.parameters()) == wanted


def test_bottleneck_width():
    wide = tiny_config(dataset={"input_dim": 103, "modalities": {"rgb": [0, 3], "flow": [3, 103]}},
                       model={"modalities": ["rgb"], "hallucinator": "bottleneck", "hallucinated": ["flow"]})
    assert make_hallucinator(wide).conv.conv.weight.shape == (25, 25, 3)  # a quarter of 100
    assert hallucinator("bottleneck").conv.conv.weight.shape == (8, 8, 3)  # at least 8
    assert hallucinator("bottleneck", hallucinator_dim=5).conv.conv.weight.shape == (5, 5, 3)


@pytest.mark.parametrize(("kind", "first"), [("rgb2flow", "rgb2flow.extractor.0.weight"),
                                             ("separable", "hallucinator.conv1.conv.depth_conv.weight"),
                                             ("bottleneck", "hallucinator.reduce.conv.weight")])
def test_names_in_the_network(kind, first):
    model = build_model(config_of(kind, fusion="gated"))
    names = list(model.state_dict())
    assert names[0] == first
    made = [n for n in names if n.split(".")[0] in ("rgb2flow", "hallucinator")]
    assert names[len(made):len(made) + 3] == ["fusion.hidden1.weight", "fusion.hidden2.weight", "fusion.gate.weight"]
    assert names[len(made) + 3].startswith("backbone.")
    decay, no_decay = parameter_groups(model)
    assert {n for n, _ in decay} >= {n for n in names[:len(made) + 3] if n.endswith("weight")}
    assert {n for n, _ in no_decay} >= {n for n in made if n.endswith("bias")}


@pytest.mark.parametrize(("kind", "modalities"), [("none", ("flow", "rgb")), ("separable", ("rgb",)),
                                                  ("rgb2flow", ("rgb", "depth"))])
def test_gated_fusion_follows_its_formula(kind, modalities):
    config = config_of(kind, () if kind == "none" else ("flow",), modalities, fusion="gated")
    torch.manual_seed(1)
    net, (lengths, total) = GatedFusion.of(config).double(), ((6, 4), 8)
    width = config.backbone_input_dim
    first = {"rgb": 3, "flow": 2}[modalities[0]]
    x, mask = torch.randn(2, total, width).double(), torch.arange(total) < torch.tensor(lengths).unsqueeze(1)
    w1, w2, w = (getattr(net, n).weight.detach().numpy() for n in ("hidden1", "hidden2", "gate"))
    assert (w1.shape, w2.shape, w.shape) == ((first, first), (width - first, width - first), (1, width))
    with torch.no_grad():
        got = net(x, mask).numpy()
    for b, length in enumerate(lengths):
        for t in range(total):
            h1, h2 = np.tanh(w1 @ x[b, t, :first].numpy()), np.tanh(w2 @ x[b, t, first:].numpy())
            g = 1 / (1 + np.exp(-w[0] @ np.concatenate([h1, h2])))
            want = np.concatenate([g * h1, (1 - g) * h2]) if t < length else np.zeros(width)
            assert np.allclose(got[b, t], want, atol=1e-12)


def test_the_trace_shows_streams_before_their_fusion():
    model = show_every_term(build_model(config_of("separable", fusion="gated"))).eval()
    x, mask = padded_batch([9, 12], 12, channels=3)
    with torch.no_grad():
        inputs = model.trace(x, mask)[1].inputs
        made = model.hallucinator(x, mask)
    assert torch.equal(inputs, torch.cat([x, made], dim=-1))


def test_the_hallucinator_reads_what_input_dropout_left():
    config = tiny_config(dataset={"modalities": MODALITIES}, train_cfg={"input_dropout": 0.5},
                         model={"modalities": ["rgb"], "hallucinator": "separable", "hallucinated": ["flow"]})
    torch.manual_seed(0)
    model = show_every_term(build_model(config)).train()
    x, mask = padded_batch([12] * 6, 12, channels=3)
    inputs = model.trace(x, mask)[1].inputs.detach()
    assert not torch.equal(inputs[..., :3], x)
    assert torch.equal(inputs[..., 3:], model.hallucinator(inputs[..., :3].contiguous(), mask).detach())


def test_the_network_learns_to_make_up_a_stream():
    """The error against a stream that the read one determines reaches the hallucinator, and falls."""
    x, mask = padded_batch([12, 12], 12, channels=3)
    target = F.relu(x[..., :2] - 0.5 * x[..., 1:])
    for kind in KINDS:
        torch.manual_seed(0)
        net = make_hallucinator(config_of(kind))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        errors = []
        for _ in range(60):
            error = (net(x, mask) - target).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            errors.append(error.item())
        assert errors[-1] < 0.5 * errors[0], kind
