"""The TriDet block against a slow twin, its padding, and convolutions that are all zero."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import padded_batch, show_every_term, tiny_config
from networks import SGP, network

from libs.datasets.loading.padding import padding_of
from libs.modeling.blocks.layers import GroupNorm
from libs.modeling.blocks.sgp import SGPBlock, dead_blocks, wide_window
from libs.modeling.model import build_model

PUBLISHED = {**SGP, "masked_stats": False}


def block(stride=2, window=3, droppath=0.1, channels=32, **keys):
    model = tiny_config(model={**SGP, "embd_dim": channels, "fpn_dim": channels, **keys}).model
    return show_every_term(SGPBlock(channels, stride, window, droppath, model)).eval()


def twin(b, x_BCT, mask_B1T):
    """The eight steps of SPEC_FAMILY F2 as they are written there, in float64."""
    p = {name: value.double() for name, value in b.named_parameters()}

    def conv(name, u):
        weight = p[f"{name}.weight"]
        return F.conv1d(u, weight, p[f"{name}.bias"], padding=weight.shape[2] // 2, groups=len(weight))

    s = b.stride
    if s == 1:
        y = x_BCT
    elif b.downsample is None:
        y = F.max_pool1d(x_BCT, s + 1, s, (s + 1) // 2)
    else:
        y = F.conv1d(F.avg_pool1d(x_BCT, s), p["downsample.1.weight"], p["downsample.1.bias"])
    mask = mask_B1T[:, :, ::s].double()
    centred = y - y.mean(1, keepdim=True)
    u = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * p["ln.weight"] + p["ln.bias"]
    g = F.relu(conv("global_fc", u.mean(2, keepdim=True)))
    v = conv("fc", u) * g + (conv("convw", u) + conv("convkw", u)) * conv("psi", u) + u
    h = y * mask + v * p.get("drop_path_out.scale", 1.0)
    n = F.group_norm(h, 16, p["gn.weight"], p["gn.bias"], 1e-5)
    mlp = F.conv1d(F.gelu(F.conv1d(n, p["mlp.0.weight"], p["mlp.0.bias"])), p["mlp.2.weight"], p["mlp.2.bias"])
    return h + mlp * p.get("drop_path_mlp.scale", 1.0)


@pytest.mark.parametrize("case", [
    {"stride": 1}, {}, {"window": 7, "k": 2.0}, {"stride": 4, "downsample_type": "avg"}, {"stride": 4}, {"droppath": 0.0}])
def test_the_published_block_is_the_formula(case):
    b = block(masked_stats=False, **case)
    x, mask = padded_batch([24, 13], 24, 32)
    x = x + 0.3  # padded steps are not zero in the published network
    got = b(x, mask[:, ::b.stride])
    want = twin(b, x.double().transpose(1, 2), mask.unsqueeze(1)).transpose(1, 2)
    assert (got - want).abs().max() < 2e-5


@pytest.mark.parametrize(("window", "k", "taps"), [
    (1, 5, 11), (5, 2, 13), (1, 2, 5), (1, 4, 9), (15, 1.3, 21), (1, 1.3, 3), (3, 1.2, 5), (15, 1.2, 19)])
def test_windows_of_the_published_configurations(window, k, taps):
    assert wide_window(window, k) == taps


def test_the_stem_has_windows_of_one_step_and_no_scales():
    stem, branch = (block(stride, window=7) for stride in (1, 2))
    assert [conv.weight.shape[2] for conv in stem.depthwise] == [1, 1, 1, wide_window(1, 1.5), 1]
    assert [conv.weight.shape[2] for conv in branch.depthwise] == [7, 1, 7, wide_window(7, 1.5), 1]
    assert ["drop_path" in "".join(b.state_dict()) for b in (stem, branch)] == [False, True]


def test_published_statistics_count_padding_and_masked_ones_do_not():
    for masked, largest in ((False, None), (True, 2e-5)):
        _, model = network(model={**SGP, "masked_stats": masked})
        outputs = []
        with torch.no_grad():
            for total in (48, 64):
                out = model(*padded_batch([37], total))
                outputs.append(torch.cat([out.logits, out.offsets], -1)[out.mask])
        error = (outputs[0] - outputs[1]).abs().max()
        assert error < largest if largest else error > 0.05


def test_masked_group_norm_is_that_of_the_valid_steps():
    norm = GroupNorm(4, 8)
    torch.nn.init.normal_(norm.weight)
    x, mask = padded_batch([9, 4], 12, 8)
    x[~mask] = 7.0
    got = norm(x, mask)
    for b, steps in enumerate((9, 4)):
        want = F.group_norm(x[b:b + 1, :steps].transpose(1, 2), 4, norm.weight, norm.bias)
        assert torch.allclose(got[b, :steps], want[0].t(), atol=1e-5)
        assert torch.allclose(norm(x[b:b + 1, :steps]), want.transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize(("keys", "length", "longer"), [
    ({"n_sgp_win_size": 1}, 2304, 32), ({"n_sgp_win_size": 5}, 2304, 160), ({"n_sgp_win_size": 15}, 768, 480),
    ({"n_sgp_win_size": [1, 1, 1, 1, 3, 1]}, 2304, 96), ({"n_sgp_win_size": [9, 1, 3, 5, 7, 3]}, 160, 224)])
def test_published_lengths(keys, length, longer):
    ranges = [[0, 4], [4, 8], [8, 16], [16, 32], [32, 64], [64, 10000]]
    config = tiny_config(dataset={"max_seq_len": length},
                         model={**PUBLISHED, **keys, "backbone_arch": [2, 2, 5], "regression_range": ranges})
    padding = padding_of(config)
    assert padding.factor == longer
    assert {padding.shortest(n) for n in (1, length // 2, length)} == {length}
    assert padding.shortest(length + 1) == -(-(length + 1) // longer) * longer
    assert padding.fits([7, length])
    assert not padding.fits([7, length + 1])
    assert padding_of(config, training=True).of_batch([3, 9]) == length


def test_zero_convolutions_are_found_when_loading_and_skipping_them_is_exact():
    config = tiny_config(model=PUBLISHED)
    model = show_every_term(build_model(config)).eval()
    assert dead_blocks(model) == 0
    weights = {name: torch.zeros_like(value) if any(f".{part}." in name for part in ("psi", "fc", "convw", "convkw", "global_fc"))
               else value for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    blocks = [module for module in model.modules() if isinstance(module, SGPBlock)]
    assert [b.dead for b in blocks] == [True] * 3
    x, mask = padded_batch([40, 17], 48)
    with torch.no_grad():
        skipped = model(x, mask)
        for b in blocks:
            b.dead = False
        computed = model(x, mask)
    assert torch.equal(skipped.logits, computed.logits)
    weights["backbone.branch.1.fc.bias"][3] = 0.1
    model.load_state_dict(weights)
    assert [b.dead for b in blocks] == [True, True, False]


def test_zero_convolutions_are_not_in_an_exported_graph():
    convolutions = []
    for std in (0.0, 0.3):
        b = block(init_conv_vars=std, masked_stats=False)
        if std == 0:
            b.load_state_dict({n: torch.zeros_like(v) if n.split(".")[0] in ("psi", "fc", "convw", "convkw", "global_fc") else v
                               for n, v in b.state_dict().items()})
        x, mask = padded_batch([24], 24, 32)
        graph = torch.export.export(b, (x, mask[:, ::2]), strict=False).graph
        convolutions.append(sum("conv" in str(node.target) for node in graph.nodes))
    assert convolutions[1] - convolutions[0] >= 3  # at least psi, convw and convkw, whose windows are wide


def test_zero_convolutions_get_no_gradient():
    model = build_model(tiny_config(model=PUBLISHED))
    assert dead_blocks(model) == 3
    model.train()
    out = model(*padded_batch([40, 17], 48))
    (out.logits.square().sum() + out.offsets.sum()).backward()
    assert not any(p.grad.any() for b in model.modules() if isinstance(b, SGPBlock) for c in b.depthwise for p in c.parameters())
    living = build_model(tiny_config(model={**PUBLISHED, "init_conv_vars": 0.3}))
    assert dead_blocks(living) == 0
    stds = torch.stack([c.weight.std() for b in living.modules() if isinstance(b, SGPBlock) for c in b.depthwise])
    assert 0.2 < stds.mean() < 0.4


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_masked_pooling_does_not_see_padding(kind):
    backbone = network(model={**SGP, "downsample_type": kind})[1].backbone
    x, mask = padded_batch([13, 16], 16, 16)
    other = torch.where(mask.unsqueeze(-1), x, 9.0)
    with torch.no_grad():
        a, b = (backbone.branch[0](backbone.before_pooling(v, mask), mask[:, ::2]) for v in (x - 20, other - 20))
    assert torch.allclose(a[mask[:, ::2]], b[mask[:, ::2]])
