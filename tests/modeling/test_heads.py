"""Heads over all levels at once against the same layers on each level by itself."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_config

from libs.modeling.heads import ClsHead, RegHead

SIZES = (12, 6, 3, 1)


@pytest.mark.parametrize("model", [{}, {"head_type": "separable"}, {"head_kernel_size": 5, "head_num_layers": 4},
                                   {"head_num_layers": 1}, {"head_with_ln": False}], ids=str)
@pytest.mark.parametrize("gradients", [False, True])
def test_levels_do_not_see_each_other(model, gradients):
    torch.manual_seed(0)
    config = tiny_config(model=model)
    cls, reg = ClsHead(config), RegHead(config, len(SIZES))
    with torch.no_grad():
        for i, scale in enumerate(reg.scale):
            scale.scale.fill_(1 + i)
        reg.offset_head.bias.fill_(0.5)
    x = torch.randn(2, sum(SIZES), config.model.fpn_dim)
    mask = torch.rand(2, sum(SIZES)) < 0.8

    def by_level(head, last):
        parts = []
        for feats, valid in zip(x.split(SIZES, 1), mask.split(SIZES, 1), strict=True):
            for conv, norm in zip(head.head, head.norm, strict=True):
                feats = F.relu(norm(conv(feats, valid)))
            parts.append(last(feats, valid))
        return parts

    with torch.set_grad_enabled(gradients):
        logits, offsets = cls(x, mask, SIZES), reg(x, mask, SIZES)
        assert torch.allclose(logits, torch.cat(by_level(cls, cls.cls_head), 1), atol=1e-5)
        scaled = [F.relu((1 + i) * part) for i, part in enumerate(by_level(reg, reg.offset_head))]
        assert torch.allclose(offsets, torch.cat(scaled, 1), atol=1e-5)
    assert offsets.any()
    assert not logits[~mask].any()


def test_offset_bias_is_where_offsets_start():
    torch.manual_seed(0)
    x, mask = torch.randn(1, sum(SIZES), tiny_config().model.fpn_dim), torch.ones(1, sum(SIZES), dtype=torch.bool)
    started = {}
    for bias in (0.0, 100.0):
        torch.manual_seed(1)
        config = tiny_config(model={"offset_bias": bias})
        started[bias] = RegHead(config, len(SIZES))(x, mask, SIZES)
    assert (started[0.0] == 0).any()
    moved = started[100.0] - 100
    assert torch.allclose(F.relu(moved), started[0.0], atol=1e-4)
    assert (moved < 0).any()
