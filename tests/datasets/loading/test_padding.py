"""Padding: published and shortest lengths, and groups with the outputs of each video alone."""
from __future__ import annotations

import pytest
from helpers import tiny_config
from networks import groups_that_equal_videos_alone

from libs.datasets.loading.padding import Padding, padding_of


def test_published_lengths():
    thumos = {"dataset": {"max_seq_len": 2304}, "model": {"n_mha_win_size": 19, "backbone_arch": [2, 2, 5], "regression_range": [
        [0, 4], [4, 8], [8, 16], [16, 32], [32, 64], [64, 10000]]}}
    padding = padding_of(tiny_config(**thumos))
    assert (padding.factor, padding.stride, padding.margin) == (576, 32, 32)
    assert [padding.published(n) for n in (1, 2304, 2305, 2880, 2881)] == [2304, 2304, 2880, 2880, 3456]
    assert [padding.shortest(n) for n in (1, 100, 2272, 2273, 2304, 2305)] == [64, 160, 2304, 2304, 2304, 2368]


def test_mixed_windows_use_the_least_common_multiple():
    config = tiny_config(dataset={"max_seq_len": 160}, model={
        "n_mha_win_size": [11, 11, 11, 11, -1, -1], "backbone_arch": [2, 2, 5],
        "regression_range": [[0, 4], [4, 8], [8, 16], [16, 32], [32, 64], [64, 10000]]})
    padding = padding_of(config)
    assert padding.factor == 160  # the published maximum of 80 is no multiple of the stride 32
    assert padding.published(191) == 320


def test_the_conv_backbone_has_no_windows():
    assert padding_of(tiny_config(model={"backbone_type": "conv", "n_mha_win_size": 19})).factor == 4


def test_exact_lengths_are_refused_in_one_batch():
    padding = Padding(48, 16, 4, 4)
    assert padding.exact_only(47)
    assert not padding.exact_only(44)
    assert padding.of_batch([47, 20]) == 48
    with pytest.raises(ValueError, match="a video of 47 steps needs 48, not 56: batch it apart"):
        padding.of_batch([47, 50])


@pytest.mark.parametrize("lengths", [
    [5, 20, 40, 44, 45, 47, 48, 49, 58, 60, 64, 70, 76, 80], [64, 20, 30], [100, 49, 48, 44, 3, 2]])
@pytest.mark.parametrize("model", [{}, {"use_abs_pe": True}, {"backbone_type": "conv"}, {"fpn_type": "fpn"}])
def test_every_group_has_the_outputs_of_each_video_alone(model, lengths):
    """Lengths around max_seq_len and its multiples, with weights that make padding and positions visible."""
    assert len(groups_that_equal_videos_alone(tiny_config(model=model), lengths)) < len(lengths)
