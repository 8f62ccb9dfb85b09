"""Every variant of the network, small, and with weights that show every term."""
from __future__ import annotations

import torch
from helpers import padded_batch, show_every_term, tiny_config

from libs.core.schema import Config
from libs.datasets.loading.padding import padding_of
from libs.datasets.loading.samplers import group_for_inference
from libs.modeling.model import build_model

STREAMS = {"dataset": {"modalities": {"rgb": [0, 4], "flow": [4, 6]}}}
MADE_UP = {"modalities": ["rgb"], "hallucinated": ["flow"]}
SGP = {"backbone_type": "SGP", "sgp_mlp_dim": 20, "n_sgp_win_size": 3, "masked_stats": True}
TRIDENT = {"use_trident_head": True, "num_bins": 3}
TRIDET = {**SGP, **TRIDENT, "masked_stats": False, "init_conv_vars": 0.3}  # as published, with convolutions that learn
POOLER = {"backbone_type": "convPooler", "backbone_arch": [1, 2], "n_mha_win_size": -1}
VARIANTS = {
    "transformer": {},
    "conv": {"model": {"backbone_type": "conv"}},
    "conv_dw": {"model": {"backbone_type": "conv_dw"}},
    "conv_dw without norms": {"model": {"backbone_type": "conv_dw", "embd_with_ln": False, "head_with_ln": False}},
    "conv_dw, two inputs": {"dataset": {"input_dim": [2, 4]}, "model": {"backbone_type": "conv_dw", "embd_dim": [6, 10]}},
    "rgb2flow": {**STREAMS, "model": {"hallucinator": "rgb2flow", "backbone_type": "conv_dw", **MADE_UP}},
    "separable hallucinator": {**STREAMS, "model": {"hallucinator": "separable", **MADE_UP}},
    "bottleneck hallucinator": {**STREAMS, "model": {"hallucinator": "bottleneck", **MADE_UP}},
    "fusion": {**STREAMS, "model": {"modalities": ["flow", "rgb"], "fusion": "gated"}},
    "fusion of rgb2flow": {**STREAMS, "model": {"hallucinator": "rgb2flow", "fusion": "gated", **MADE_UP}},
    "separable heads": {"model": {"head_type": "separable"}},
    "max_pool": {"model": {"branch_type": "max_pool"}},
    "max_pool of conv": {"model": {"branch_type": "max_pool", "backbone_type": "conv"}},
    "gate after the norm": {"model": {"temporal_gate": "post_norm"}},
    "fpn": {"model": {"fpn_type": "fpn", "fpn_dim": 12, "head_dim": 20}},
    "fpn of conv": {"model": {"fpn_type": "fpn", "backbone_type": "conv"}},
    "abs_pe": {"model": {"use_abs_pe": True}},
    "rel_pe": {"model": {"use_rel_pe": True, "n_mha_win_size": 3}},
    "global": {"model": {"n_mha_win_size": -1}},
    "mixed windows": {"model": {"n_mha_win_size": [7, 3, -1]}},
    "kernel 5": {"model": {"head_kernel_size": 5, "head_num_layers": 4, "embd_kernel_size": 5}},
    "no norms": {"model": {"embd_with_ln": False, "head_with_ln": False}},
    "scale 4": {"model": {"scale_factor": 4}},
    "start level": {"model": {"fpn_start_level": 1, "regression_range": [[0, 8], [8, 10000]]}},
    "two inputs": {"dataset": {"input_dim": [2, 4]}, "model": {"embd_dim": [6, 10]}},
    "no embedding": {"dataset": {"input_dim": 16}, "model": {"backbone_arch": [0, 1, 2]}},
    "deep stem": {"model": {"backbone_arch": [2, 3, 2]}},
    "no branch": {"model": {"backbone_arch": [1, 1, 0], "regression_range": [[0, 10000]]}},
    "one head layer": {"model": {"head_num_layers": 1}},
    "SGP": {"model": SGP},
    "SGP, means": {"model": {**SGP, "downsample_type": "avg", "n_sgp_win_size": [1, 5, 3], "use_abs_pe": True}},
    "trident head": {"model": TRIDENT},
    "TriDet": {"model": {**SGP, **TRIDENT}},
    "TriDet, valid border": {"model": {**SGP, **TRIDENT, "trident_border": "valid"}},
    "convPooler": {"model": {**POOLER, "fpn_shared_norm": True}},
    "convPooler, GroupNorm": {"model": {**POOLER, "fpn_norm": "groupnorm", "masked_stats": True}},
    "no drop path": {"train_cfg": {"droppath": 0.0}},
}


def network(**sections):
    config = tiny_config(**sections)
    torch.manual_seed(0)
    return config, show_every_term(build_model(config)).eval()


def channels(config):
    dims = config.model_input_dim
    return sum(dims) if isinstance(dims, tuple) else dims


def groups_that_equal_videos_alone(config: Config, lengths: list[int]) -> list[list[int]]:
    """How inference groups videos of these lengths; asserts that in its group each has the outputs that it has alone, padded as
    published.  The weights make padding and positions visible."""
    network, padding = show_every_term(build_model(config)).eval(), padding_of(config)
    groups = group_for_inference(lengths, padding, 4)
    with torch.no_grad():
        for group in groups:
            steps = [lengths[i] for i in group]
            out = network(*padded_batch(steps, padding.of_batch(steps)))
            for b, n in enumerate(steps):
                alone = network(*padded_batch([n], padding.published(n)))
                assert (out.logits[b][out.mask[b]] - alone.logits[alone.mask]).abs().max() < 2e-5, steps
                assert (out.offsets[b][out.mask[b]] - alone.offsets[alone.mask]).abs().max() < 2e-5, steps
    return groups
