"""The network of TemporalMaxer: pooling levels, norms of the neck, padding."""
from __future__ import annotations

import pytest
import torch
from helpers import padded_batch, show_every_term, tiny_config
from networks import groups_that_equal_videos_alone

from libs.core.errors import UserError
from libs.datasets.loading.padding import padding_of
from libs.engine.runs.checkpoint import Checkpoint, load_weights
from libs.engine.training.optim import parameter_groups
from libs.modeling.model import build_model

LENGTHS = [5, 20, 40, 44, 45, 47, 48, 49, 58, 60, 64, 70]


def pooler(**model):
    return tiny_config(model_name="TemporalMaxerArchitecture",
                       model={"backbone_type": "convPooler", "backbone_arch": [1, 2], "n_mha_win_size": -1, **model})


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_levels_are_the_maximum_of_three_steps(scale):
    """Level by level in plain loops: the finest level keeps what its norm leaves in padding, the others are 0 there."""
    config = tiny_config(model_name="TemporalMaxerArchitecture", dataset={"max_seq_len": 4 * scale**2}, model={
        "backbone_type": "convPooler", "backbone_arch": [1, 2], "n_mha_win_size": -1, "scale_factor": scale})
    network, total = show_every_term(build_model(config)).eval(), 3 * scale**2
    feats, mask = padded_batch([2 * scale**2 + 1], total)
    with torch.no_grad():
        levels, masks = network.backbone(feats, mask)
    assert levels[0][0, -1].abs().max() > 0
    for level in (1, 2):
        for t in range(total // scale**level):
            low, high = max(t * scale - 1, 0), t * scale + 2
            want = levels[level - 1][0, low:high].max(0).values if masks[level][0, t] else torch.zeros(16)
            assert torch.equal(levels[level][0, t], want)


@pytest.mark.parametrize("masked", [False, True])
def test_only_the_published_pooling_sees_padding(masked):
    network = show_every_term(build_model(pooler(fpn_norm="layernorm", masked_stats=masked))).eval()
    feats, mask = padded_batch([41], 48)
    with torch.no_grad():
        (fine, coarse, _), _ = network.backbone(feats, mask)
    assert torch.equal(coarse[0, 20], fine[0, 39:41 if masked else 42].max(0).values)  # step 41 is padding
    assert (fine[0, 41] > fine[0, 39:41].max(0).values).any()


@pytest.mark.parametrize("model", [{"fpn_norm": "groupnorm"}, {"fpn_norm": "groupnorm", "masked_stats": True},
                                   {"fpn_norm": "layernorm"}, {"fpn_norm": "none"}])
def test_every_group_has_the_outputs_of_each_video_alone(model):
    config = pooler(**model)
    groups, padding = groups_that_equal_videos_alone(config, LENGTHS), padding_of(config)
    assert padding.always == (model == {"fpn_norm": "groupnorm"})
    if model == {"fpn_norm": "groupnorm"}:
        assert all(len({padding.published(LENGTHS[i]) for i in group}) == 1 for group in groups)
        assert padding_of(config, training=True).of_batch([20, 30]) == 48


def test_the_published_group_norm_depends_on_the_padded_length():
    network = show_every_term(build_model(pooler(fpn_norm="groupnorm"))).eval()
    with torch.no_grad():
        short, long = (network(*padded_batch([20], total)) for total in (48, 64))
    assert (short.logits[0, :20] - long.logits[0, :20]).abs().max() > 0.01


def as_checkpoint(tmp_path, state):
    return Checkpoint(tmp_path / "epoch_001.pth.tar", 1, state, None, None, None, None)


def test_one_layer_norm_under_the_names_of_all_levels(tmp_path):
    model, own = build_model(pooler(fpn_norm="layernorm")), build_model(pooler(fpn_norm="layernorm", fpn_shared_norm=False))
    names = [f"neck.fpn_norms.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    for network in (model, own):
        assert [n for n in network.state_dict() if n.startswith("neck")] == names
    without_decay = [n for n, _ in parameter_groups(model)[1] if n.startswith("neck")]
    assert without_decay == ["neck.fpn_norms.0.bias", "neck.fpn_norms.0.weight"]
    assert sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in model.parameters()) == 2 * 2 * 16
    state = show_every_term(own).state_dict()
    with pytest.raises(UserError, match=r"epoch_001.*neck\.fpn_norms\.1\.weight: differs.*model\.fpn_shared_norm: false"):
        load_weights(model, as_checkpoint(tmp_path, state), "raw")
    for name in names:
        state[name] = state[name.replace(name.split(".")[2], "0", 1)]
    load_weights(model, as_checkpoint(tmp_path, state), "raw")
    load_weights(own, as_checkpoint(tmp_path, state), "raw")
    assert all(torch.equal(model.state_dict()[n], own.state_dict()[n]) for n in names)
