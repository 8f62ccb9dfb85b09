"""The convnext backbone: its block against hand-written loops, how far it reaches, and what padding does to it (nothing)."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import padded_batch, show_every_term, tiny_config
from torch import nn

from libs.modeling.backbones import ConvNextBackbone
from libs.modeling.blocks.convnext import ConvNextBlock
from libs.modeling.blocks.pooling import MaxPoolBlock
from libs.modeling.model import build_model


def block_and_input(channels=4, stride=1, kernel=5, expansion=2, droppath=0.1, T=12, valid=(12, 7)):
    """A block that shows every term, features without zeros at padded steps, and the mask of its output steps; all float64."""
    torch.manual_seed(0)
    block = show_every_term(ConvNextBlock(channels, stride, kernel, expansion, dropout=0.0, droppath=droppath)).double().eval()
    mask = torch.arange(T) < torch.tensor(valid).unsqueeze(1)
    x = torch.randn(len(valid), T, channels, dtype=torch.float64)
    return block, x, mask[:, ::stride]


def by_hand(block, x_TC, mask_S, stride):
    """One video, step by step: depthwise taps, mask, LayerNorm over channels, MLP with the exact GELU, scale, skip."""
    w = {name: p.detach().numpy() for name, p in block.named_parameters()}
    x = x_TC.numpy().copy()
    T, C = x.shape
    if stride == 1:
        x[~mask_S.numpy()] = 0
    taps, out = w["conv.conv.weight"], np.zeros((T // stride, C))
    half = taps.shape[2] // 2
    for s in range(T // stride):
        if not mask_S[s]:
            continue
        t, hidden = s * stride, w["conv.conv.bias"].copy()
        for k in range(taps.shape[2]):
            if 0 <= t + k - half < T:
                hidden += taps[:, 0, k] * x[t + k - half]
        hidden = (hidden - hidden.mean()) / math.sqrt(hidden.var() + 1e-5)
        hidden = hidden * w["norm.weight"][0, :, 0] + w["norm.bias"][0, :, 0]
        hidden = w["mlp.0.weight"][..., 0] @ hidden + w["mlp.0.bias"]
        hidden = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in hidden])
        hidden = w["mlp.3.weight"][..., 0] @ hidden + w["mlp.3.bias"]
        scale = w["drop_path.scale"][0, :, 0] if "drop_path.scale" in w else 1.0
        reach = stride // 2
        skip = x[max(t - reach, 0):t + reach + 1].max(axis=0) if stride > 1 else x[t]
        out[s] = skip + scale * hidden
    return out


@pytest.mark.parametrize(("stride", "kernel", "expansion", "droppath"), [
    (1, 5, 2, 0.1), (1, 1, 4, 0.1), (1, 7, 1, 0.0), (2, 5, 2, 0.1), (2, 3, 3, 0.0), (4, 9, 2, 0.1)])
def test_block_by_hand(stride, kernel, expansion, droppath):
    block, x, mask = block_and_input(stride=stride, kernel=kernel, expansion=expansion, droppath=droppath)
    with torch.no_grad():
        got = block(x, mask)
    for b in range(2):
        assert np.abs(got[b].numpy() - by_hand(block, x[b], mask[b], stride)).max() < 1e-10
    assert got[~mask].abs().max() == 0
    assert got[mask].abs().min() > 0


@pytest.mark.parametrize("kernel", [1, 5, 9])
def test_it_reaches_half_a_kernel_to_both_sides(kernel):
    block, x, mask = block_and_input(kernel=kernel, T=24, valid=(24, 24))
    x.requires_grad_()
    block(x, mask)[0, 11].sum().backward()
    touched = x.grad[0].abs().amax(-1) > 0
    assert touched.nonzero().flatten().tolist() == list(range(11 - kernel // 2, 11 + kernel // 2 + 1))
    assert x.grad[1].abs().max() == 0


def test_what_lies_at_padded_steps_is_never_read():
    block, x, mask = block_and_input()
    other = x.clone()
    other[~mask] = 1e6
    assert torch.equal(block(x, mask), block(other, mask))


def test_it_starts_near_the_identity_and_drops_its_branch_in_training():
    torch.manual_seed(0)
    block = ConvNextBlock(8, 1, 5, 2, dropout=0.0, droppath=0.5)
    x, mask = torch.randn(64, 12, 8), torch.ones(64, 12, dtype=torch.bool)
    difference = (block.eval()(x, mask) - x).abs().max()
    assert 0 < difference < 1e-3
    nn.init.constant_(block.drop_path.scale, 1.0)
    change = block.train()(x, mask) - x
    dropped = change.flatten(1).abs().amax(1) == 0
    assert 16 < dropped.sum() < 48
    kept = (block.eval()(x, mask) - x)[~dropped]
    assert torch.allclose(change[~dropped], 2 * kept, atol=1e-5)


def test_parameters_by_count():
    """Depthwise kernel and bias, norm, two layers of the MLP, one scale per channel."""
    block = ConvNextBlock(16, 1, 9, 3, dropout=0.0, droppath=0.1)
    assert sum(p.numel() for p in block.parameters()) == 16 * 9 + 16 + 2 * 16 + (16 * 48 + 48) + (48 * 16 + 16) + 16
    plain = ConvNextBlock(16, 1, 9, 3, dropout=0.0, droppath=0.0)
    assert not list(plain.drop_path.parameters())


def test_the_backbone_of_a_configuration():
    model = build_model(tiny_config(model={"backbone_type": "convnext", "block_kernel_size": 7, "block_expansion": 3}))
    assert isinstance(model.backbone, ConvNextBackbone)
    blocks = [*model.backbone.stem, *model.backbone.branch]
    assert [b.stride for b in blocks] == [1, 2, 2]
    for block in blocks:
        assert tuple(block.conv.conv.weight.shape) == (16, 1, 7)
        assert tuple(block.mlp[0].weight.shape) == (48, 16, 1)
    names = [n for n, _ in model.backbone.embd.named_parameters()]
    assert names == ["0.conv.depth_conv.weight", "0.conv.point_conv.weight", "0.conv.point_conv.bias"]
    pooled = build_model(tiny_config(model={"backbone_type": "convnext", "branch_type": "max_pool"}))
    assert [type(b) for b in pooled.backbone.branch] == [MaxPoolBlock, MaxPoolBlock]
    assert not list(pooled.backbone.branch.parameters())


@pytest.mark.parametrize("branch_type", ["block", "max_pool"])
@pytest.mark.parametrize("kernel", [9, 19])
def test_outputs_do_not_depend_on_the_padded_length(branch_type, kernel):
    """A stem block cuts off what the embedding's norm leaves at padded steps, however wide the kernel is."""
    config = tiny_config(model={"backbone_type": "convnext", "block_kernel_size": kernel, "branch_type": branch_type})
    model = show_every_term(build_model(config)).eval()
    with torch.no_grad():
        whole = model(*padded_batch([21, 33], 48))
        short = model(*padded_batch([21], 28))
    assert whole.level_sizes == (48, 24, 12)
    valid = short.mask[0]
    assert valid.sum() == 21 + 11 + 6
    for a, b in ((short.logits, whole.logits), (short.offsets, whole.offsets)):
        assert torch.allclose(a[0, valid], b[0, whole.mask[0]], atol=1e-5)


def test_every_parameter_learns():
    config = tiny_config(model={"backbone_type": "convnext", "block_kernel_size": 5})
    model = show_every_term(build_model(config)).train()
    outputs = model(*padded_batch([40, 31], 48))
    (outputs.logits.square().sum() + outputs.offsets.square().sum()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
