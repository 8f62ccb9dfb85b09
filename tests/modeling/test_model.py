"""The network as a whole: batches and padding change nothing, every odd window works, state dicts go around."""
from __future__ import annotations

import pytest
import torch
from helpers import padded_batch, tiny_config
from networks import VARIANTS, channels, network

from libs.core.config import from_dict, to_dict
from libs.datasets.loading.padding import padding_of
from libs.modeling.model import build_model


def valid_outputs(model, steps, total, channels):
    with torch.no_grad():
        out = model(*padded_batch([steps], total, channels))
    return every_output(out)[out.mask]


def every_output(out):
    return torch.cat([out.logits, out.all_offsets().flatten(2)], dim=-1)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_shortest_padding_gives_the_published_outputs(name):
    config, model = network(**VARIANTS[name])
    padding, lengths = padding_of(config), {1, 7, 20, 37, 39, 40, 44, 45, 47, 48, 49, 59, 60, 75, 80, 95, 96, 97}
    shorter = 0
    for steps in sorted(lengths):
        shortest, published = padding.shortest(steps), padding.published(steps)
        assert steps <= shortest <= published
        assert shortest % model.coarsest_stride == 0 == published % model.coarsest_stride
        if shortest < published:
            shorter += 1
            got, want = (valid_outputs(model, steps, n, channels(config)) for n in (shortest, published))
            assert (got - want).abs().max() < 2e-5, (steps, shortest, published)
    assert shorter > 3


def test_padding_does_leak_so_that_the_tests_here_mean_something():
    """Without room for the margin the outputs differ visibly: more padding is not harmless (SPEC section 11, row 12)."""
    _, model = network()
    tight, roomy = (valid_outputs(model, 48, n, 6) for n in (48, 64))
    assert (tight - roomy).abs().max() > 0.05


@pytest.mark.parametrize("name", VARIANTS)
def test_a_batch_equals_each_video_alone(name):
    config, model = network(**VARIANTS[name])
    lengths = [40, 9, 23, 1]
    padding = padding_of(config)
    total = padding.of_batch(lengths)
    with torch.no_grad():
        out = model(*padded_batch(lengths, total, channels(config)))
    for i, steps in enumerate(lengths):
        want = valid_outputs(model, steps, padding.published(steps), channels(config))
        got = every_output(out)[i][out.mask[i]]
        assert (got - want).abs().max() < 2e-5, steps


@pytest.mark.parametrize("name", VARIANTS)
def test_padded_points_are_exactly_zero_and_the_rest_is_not(name):
    config, model = network(**VARIANTS[name])
    lengths = [40, 9, 1]
    with torch.no_grad():
        out = model(*padded_batch(lengths, 48, channels(config)))
    assert not out.logits[~out.mask].any()
    assert not out.offsets[~out.mask].any()
    assert out.logits[out.mask].abs().min() > 0
    assert (out.offsets >= 0).all()
    valid = [sum(-(-n // s) for s in model.strides) for n in lengths]  # ceil(L / stride) points per level
    assert out.mask.sum(1).tolist() == valid
    assert out.level_sizes == tuple(48 // s for s in model.strides)
    assert out.points.shape == (sum(out.level_sizes), 4)


@pytest.mark.parametrize("backbone", ["convTransformer", "conv", "conv_dw", "convnext"])
def test_inference_leaves_its_input_alone(backbone):
    config, model = network(dataset={"input_dim": 16}, model={"backbone_arch": [0, 1, 2], "backbone_type": backbone})
    x, mask = padded_batch([40, 9], 48, channels(config))
    x[~mask] = 1.0
    before = x.clone()
    with torch.no_grad():
        model(x, mask)
    assert torch.equal(x, before)


def test_points_per_level():
    _, model = network()
    with torch.no_grad():
        points = model(*padded_batch([8], 8)).points
    assert points.tolist() == ([[float(t), 0, 4, 1] for t in range(8)] + [[2.0 * t, 4, 8, 2] for t in range(4)]
                               + [[4.0 * t, 8, 10000, 4] for t in range(2)])


@pytest.mark.parametrize("window", [3, 5, 7, 11, 19, 33, 101])
@pytest.mark.parametrize("rel_pe", [False, True])
def test_every_odd_window_works(window, rel_pe):
    _, model = network(model={"n_mha_win_size": window, "use_rel_pe": rel_pe})
    out = model(*padded_batch([44, 5], 48))
    (out.logits.sum() + out.offsets.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_other_lengths_than_those_of_training_work():
    _, model = network(model={"use_abs_pe": True})
    for steps in (4, 8, 52, 500):
        assert torch.isfinite(valid_outputs(model, steps, steps, 6)).all()


def test_a_length_that_does_not_fit_is_refused():
    _, model = network()
    with pytest.raises(ValueError, match="50 steps are not a multiple of the coarsest stride 4"):
        model(*padded_batch([50], 50))


def test_positions_longer_than_in_training_are_stretched():
    config, model = network(model={"use_abs_pe": True})
    table = model.backbone.position
    assert "position" not in "".join(model.state_dict())
    x, mask = padded_batch([96], 96)
    with torch.no_grad():
        plain = model.backbone.embd_norm[0](model.backbone.embd[0](x, mask)).relu()
        added = (model.backbone.embed(x, mask) - plain)[0]
    length = config.dataset.max_seq_len
    for t in (0, 1, 40, 95):  # align_corners False: centre of step t in the table's own steps
        place = min(max((t + 0.5) * length / 96 - 0.5, 0), length - 1)
        low = int(place)
        want = table[low] + (place - low) * (table[min(low + 1, length - 1)] - table[low])
        assert torch.allclose(added[t], want, atol=1e-5)


def test_dropout_is_for_training_only():
    config, model = network(train_cfg={"dropout": 0.5, "droppath": 0.5, "input_dropout": 0.4})
    x, mask = padded_batch([40, 30], 48)
    with torch.no_grad():
        assert torch.equal(model(x, mask).logits, model(x, mask).logits)
        model.train()
        assert not torch.equal(model(x, mask).logits, model(x, mask).logits)
        model.eval()
    clean = build_model(tiny_config(train_cfg={"input_dropout": 0.0}))
    clean.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(clean.eval()(x, mask).logits, model(x, mask).logits)
    assert to_dict(config)["train_cfg"]["input_dropout"] == 0.4


def test_input_dropout_drops_whole_channels_of_a_video():
    _, model = network(train_cfg={"input_dropout": 0.4, "dropout": 0.0, "droppath": 0.0})
    seen = []
    model.backbone.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone()))
    torch.manual_seed(0)
    model.train()(torch.ones(300, 8, 6), torch.ones(300, 8, dtype=torch.bool))
    kept = seen[0][:, 0] > 0  # (300, 6)
    assert torch.equal(seen[0], (kept / 0.6).unsqueeze(1).expand(-1, 8, -1))
    assert abs(kept.float().mean() - 0.6) < 0.05
    assert 0 < kept.float().mean(1).std() < 0.4


def test_input_noise_is_drawn_in_training_alone_and_reaches_padding():
    _, model = network(model={"input_noise": 0.5}, train_cfg={"dropout": 0.0, "droppath": 0.0})
    seen = []
    model.backbone.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    x, mask = padded_batch([40, 17], 48)
    torch.manual_seed(4)
    model.train()(x, mask)
    torch.manual_seed(4)
    assert torch.allclose(seen[0] - x, 0.5 * torch.randn(2, 6, 48).transpose(1, 2), atol=1e-6)  # the published layout
    model.eval()(x, mask)
    assert torch.equal(seen[1], x)


def test_input_noise_is_drawn_on_the_device_of_the_features(monkeypatch):
    config, _ = network(model={"input_noise": 0.5})
    model = build_model(config).to("meta").train()
    drawn, randn = [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: drawn.append(options["device"]) or randn(*shape, **options))
    model._streams(torch.zeros(2, 48, 6, device="meta"), torch.ones(2, 48, dtype=torch.bool, device="meta"))
    assert drawn == [torch.device("meta")]


@pytest.mark.parametrize("name", VARIANTS)
def test_state_dict_round_trip(name):
    config, model = network(**VARIANTS[name])
    other = build_model(from_dict(to_dict(config), "again")).eval()
    other.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    x, mask = padded_batch([37], 48, channels(config))
    with torch.no_grad():
        assert torch.equal(model(x, mask).logits, other(x, mask).logits)


def test_the_same_seed_gives_the_same_network():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build_model(tiny_config()).parameters()])
    assert torch.equal(weights(5), weights(5))
    assert not torch.equal(weights(5), weights(6))


@pytest.mark.parametrize("head_type", ["conv", "separable"])
@pytest.mark.parametrize(("configured", "given"), [([1], ()), ([], (1,)), ([1], (1,)), ([1], (2,))])
def test_empty_classes_start_with_a_tiny_probability(head_type, configured, given):
    config = tiny_config(model={"head_type": head_type}, train_cfg={"head_empty_cls": configured, "cls_prior_prob": 0.02})
    model = build_model(config, given)
    conv = model.cls_head.cls_head.conv
    bias = conv.bias if head_type == "conv" else conv.point_conv.bias
    wanted = [1e-6 if i in (*configured, *given) else 0.02 for i in range(3)]
    assert torch.sigmoid(bias.double()).tolist() == pytest.approx(wanted, rel=1e-4)
    assert head_type == "conv" or not conv.depth_conv.bias.any()


@pytest.mark.parametrize("name", ["transformer", "fpn", "start level"])
def test_a_given_grid_changes_nothing_and_is_used(name):
    config, model = network(**VARIANTS[name])
    x, mask = padded_batch([40, 17], 48, channels(config))
    with torch.no_grad():
        own, grid = model(x, mask), model.grid(mask)
        for given in (model(x, mask, grid), model.trace(x, mask, grid)[0]):
            assert all(torch.equal(getattr(own, part), getattr(given, part)) for part in ("logits", "offsets", "mask", "points"))
            assert given.level_sizes == own.level_sizes
            assert given.points is grid.points
            assert given.mask is grid.mask


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_gradient(name):
    config, model = network(**VARIANTS[name])
    out = model(*padded_batch([48, 37], 48, channels(config)))
    (out.logits.square().sum() + out.all_offsets().square().sum()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [n for n in without if "attn.key" not in n and "rel_pe" not in n]  # a shift of all keys cancels in the softmax


@pytest.mark.parametrize("name", ["transformer", "conv_dw", "fpn", "start level", "fusion of rgb2flow"])
def test_trace_shows_what_the_layers_pass_on(name):
    config, model = network(**VARIANTS[name])
    seen = {}
    model.backbone.register_forward_hook(lambda _m, args, out: seen.update(backbone=args[0], stem=out[0][0]))
    model.cls_head.register_forward_pre_hook(lambda _m, args: seen.update(levels=args[0]))
    x, mask = padded_batch([40, 17], 48, channels(config))
    with torch.no_grad():
        out, features = model.trace(x, mask)
        assert torch.equal(out.logits, model(x, mask).logits)
    assert torch.equal(features.stem, seen["stem"])
    assert features.stem.shape == (2, 48, 16)
    assert torch.equal(torch.cat(features.levels, dim=1), seen["levels"])
    assert tuple(level.shape[1] for level in features.levels) == out.level_sizes
    assert torch.equal(features.inputs[..., :x.shape[-1]], x)
    assert features.inputs.shape[-1] == config.backbone_input_dim
    assert torch.equal(features.inputs, seen["backbone"]) == (config.model.fusion == "none")


def test_depthwise_backbone_names_and_initial_biases():
    model = build_model(tiny_config(model={"backbone_type": "conv_dw"}))
    names = [n for n in model.state_dict() if n.startswith(("backbone.embd.", "backbone.branch.0."))]
    two = ["conv.depth_conv.weight", "conv.depth_conv.bias", "conv.point_conv.weight", "conv.point_conv.bias"]
    assert names == ["backbone.embd.0.conv.depth_conv.weight", "backbone.embd.0.conv.point_conv.weight",
                     "backbone.embd.0.conv.point_conv.bias",
                     *(f"backbone.branch.0.{part}.{n}" for part in ("conv1", "conv2", "downsample") for n in two)]
    assert not any(p.any() for n, p in model.backbone.named_parameters() if n.endswith("bias"))
    assert [n for n in model.state_dict() if n.startswith("cls_head.cls_head.")] == ["cls_head.cls_head.conv.weight",
                                                                                    "cls_head.cls_head.conv.bias"]


def test_a_max_pool_branch_has_no_parameters():
    plain, pooled = (dict(build_model(tiny_config(model={"branch_type": b})).named_parameters()) for b in ("block", "max_pool"))
    assert plain.keys() - pooled.keys() == {n for n in plain if n.startswith("backbone.branch.")}
    assert not pooled.keys() - plain.keys()


def test_max_pooling_takes_odd_scale_factors():
    config, model = network(dataset={"max_seq_len": 54},
                            model={"branch_type": "max_pool", "backbone_type": "conv", "scale_factor": 3})
    with torch.no_grad():
        out = model(*padded_batch([50, 7], 54))
    assert out.level_sizes == (54, 18, 6)
    assert padding_of(config).shortest(30) == 45
    assert (valid_outputs(model, 30, 45, 6) - valid_outputs(model, 30, 54, 6)).abs().max() < 2e-5


FLOW_FROM_RGB = {"modalities": ["rgb"], "hallucinator": "rgb2flow", "hallucinated": ["flow"]}


@pytest.mark.parametrize(("model", "millions"), [
    ({}, 29.25), ({"backbone_type": "conv"}, 30.47), ({"backbone_type": "conv", **FLOW_FROM_RGB}, 36.76),
    ({"backbone_type": "conv_dw", **FLOW_FROM_RGB}, 19.52), ({"backbone_type": "conv_dw"}, 13.22),
    ({"temporal_gate": "published"}, 29.25 + 1.77)], ids=str)
def test_published_sizes(model, millions):
    """SPEC section 12, table of sizes: parameters at the published widths, 20 classes."""
    config = from_dict({
        "dataset": {"json_file": "a.json", "feat_folder": "feats", "input_dim": 2048, "num_classes": 20, "max_seq_len": 2304,
                    "modalities": {"rgb": [0, 1024], "flow": [1024, 2048]}},
        "model": {"n_mha_win_size": 19, **model}}, "sizes.yaml")
    with torch.device("meta"):  # shapes without numbers
        network = build_model(config)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == round(millions, 2)
