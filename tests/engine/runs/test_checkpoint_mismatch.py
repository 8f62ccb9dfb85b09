"""Every option that changes a network's parameters is named by the explanation of a checkpoint that does not fit."""
from __future__ import annotations

import pytest
import torch
from helpers import tiny_config
from networks import SGP, TRIDENT

from libs.engine.runs.checkpoint_mismatch import explain_difference
from libs.modeling.model import build_model

STREAMS = {"modalities": {"rgb": [0, 4], "flow": [4, 6]}}


def weights(dataset=None, **model):
    with torch.device("meta"):
        return build_model(tiny_config(dataset={**STREAMS, **(dataset or {})}, model=model)).state_dict()


def made_up(kind, **model):
    return {"modalities": ["rgb"], "hallucinator": kind, "hallucinated": ["flow"], **model}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("first", "second", "cause"), [
    ({"backbone_type": "conv"}, {"backbone_type": "conv_dw"}, "model.backbone_type"),
    ({}, {"backbone_type": "conv_dw"}, "model.backbone_type"),
    ({}, {"head_type": "separable"}, "model.head_type"),
    (SGP, {**SGP, "downsample_type": "avg"}, "model.downsample_type"),
    (SGP, {"backbone_type": "conv"}, "model.backbone_type"),
    ({}, {"temporal_gate": "published"}, "model.temporal_gate"),
    ({}, {"temporal_gate": "post_norm"}, "model.temporal_gate"),
    ({}, {"branch_type": "max_pool"}, "branch_type: max_pool"),
    ({"modalities": ["rgb", "flow"]}, {"modalities": ["rgb", "flow"], "fusion": "gated"}, "model.fusion"),
    ({"modalities": ["rgb", "flow"]}, made_up("rgb2flow"), "model.hallucinator"),
    (made_up("rgb2flow"), made_up("separable"), "model.hallucinator"),
    (made_up("separable"), made_up("bottleneck"), "model.hallucinator"),
])
def test_the_option_behind_a_difference(first, second, cause, turned):
    sides = [weights(**first), weights(**second)]
    message = explain_difference(*(sides[::-1] if turned else sides))
    assert message.splitlines()[-1].startswith("  likely config key: ")
    causes = message.splitlines()[-1].removeprefix("  likely config key: ").split("; ")
    assert cause in message.splitlines()[-1]
    if not cause.startswith("branch"):
        assert causes[0].startswith(cause)
        assert {c.split()[0] for c in causes} <= {cause, "model.backbone_type", "train_cfg.droppath"}, message


def test_the_option_behind_a_different_shape():
    narrow, wide = weights(**made_up("bottleneck", hallucinator_dim=8)), weights(**made_up("bottleneck", hallucinator_dim=12))
    assert "model.hallucinator_dim" in explain_difference(narrow, wide).splitlines()[-1]
    short, long = (weights({"max_seq_len": n}, temporal_gate="published") for n in (48, 64))
    assert explain_difference(short, long).splitlines()[-1].startswith("  likely config key: dataset.max_seq_len")
    two, one = (weights(modalities=names, backbone_type="conv_dw") for names in (["rgb", "flow"], ["rgb"]))
    assert explain_difference(two, one).splitlines()[-1].startswith("  likely config key: dataset.input_dim (or model.modalities")
    assert explain_difference(two, two) == ""


@pytest.mark.parametrize(("changed", "cause"), [
    ({"n_sgp_win_size": 5}, "model.n_sgp_win_size"), ({"k": 3}, "model.n_sgp_win_size or model.k"),
    ({"sgp_mlp_dim": 24}, "model.sgp_mlp_dim"), ({"num_bins": 5}, "model.num_bins"),
    ({"boudary_kernel_size": 1}, "model.boudary_kernel_size")])
def test_the_option_behind_another_size_in_tridet(changed, cause):
    usual = {**SGP, **TRIDENT}
    last = explain_difference(weights(**usual), weights(**{**usual, **changed})).splitlines()[-1]
    assert last.startswith(f"  likely config key: {cause}")


def test_a_checkpoint_without_a_trident_head():
    plain, trident = weights(**SGP), weights(**SGP, **TRIDENT)
    for sides in ((plain, trident), (trident, plain)):
        assert explain_difference(*sides).splitlines()[-1].startswith("  likely config key: model.use_trident_head; ")


def test_another_depth_does_not_hide_another_hallucinator():
    last = explain_difference(weights(**made_up("separable")),
                              weights(modalities=["rgb", "flow"], branch_type="max_pool")).splitlines()[-1]
    assert "model.hallucinator" in last
    assert "branch_type: max_pool" in last
