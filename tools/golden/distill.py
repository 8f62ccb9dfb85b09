"""Golden fixtures of the distillation program's networks: distill_model_<kind>.

Weights and features are not stored but made from formulae; `fixture_config`, `fixture_weights` and `fixture_features` do so.
"""
from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from golden import common
from golden.common import Check, agree, compare, load, text
from golden.model import LOGITS, model_config, padded
from libs.core.schema import Config
from libs.modeling.model import LocPointTransformer, build_model

RGB, FLOW = (0, 1024), (1024, 2048)
BACKBONES = {"transformer": "convTransformer", "conv": "conv", "conv_dw": "conv_dw"}


def fixture_config(info: dict[str, Any], kind: str, **extra: Any) -> Config:
    """Our configuration of the network `kind`: a backbone of BACKBONES, with `_rgb`: flow hallucinated from RGB.

    `info` is the fixture's; all other keys are fixed by the fixtures' README.  `extra` holds further sections.
    """
    backbone, rgb_only = kind.removesuffix("_rgb"), kind.endswith("_rgb")
    width = info["embd"]
    streams = {"modalities": ["rgb"], "hallucinator": "rgb2flow", "hallucinated": ["flow"]} if rgb_only else {
        "modalities": ["rgb", "flow"]}
    extra["dataset"] = {"input_dim": FLOW[1], "num_classes": info["classes"], "max_seq_len": info["max_seq_len"],
                        "modalities": {"rgb": list(RGB), "flow": list(FLOW)}, "feat_stride": 4, "num_frames": 16,
                        **extra.get("dataset", {})}
    return model_config({
        "backbone_type": BACKBONES[backbone], "backbone_arch": info["arch"], "n_head": info["n_head"],
        "n_mha_win_size": info["window"], "embd_dim": width, "fpn_dim": width, "head_dim": width, **streams,
        "train_cfg": {"droppath": 0.1, "dropout": 0.0, "init_loss_norm": 100}}, **extra)


def fixture_weights(model: LocPointTransformer, seed: int) -> None:
    """Fill the network with the weights of `seed`, each tensor from its name alone."""
    made = {}
    for name, old in model.state_dict().items():
        shape = tuple(old.shape)
        r = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xffffffff).standard_normal(shape)
        made[name] = torch.from_numpy(np.asarray(_scaled(name, shape, r), dtype=np.float32))
    model.load_state_dict(made)


def _scaled(name: str, shape: tuple[int, ...], r: np.ndarray) -> np.ndarray:
    if name == "cls_head.cls_head.conv.bias":
        return -3 + 0.1 * r
    if name == "reg_head.offset_head.conv.bias":
        return 2 + 0.1 * r
    if ".scale." in name or name.startswith("reg_head.scale"):
        return 1 + 0.1 * r
    if name.endswith(".scale"):
        return 0.5 + 0.2 * r
    if name.endswith(".weight") and len(shape) == 3:
        return 1 + 0.2 * r if shape[0] == 1 else r / np.sqrt(shape[1] * shape[2])
    return 0.1 * r


def fixture_features(info: dict[str, Any], i: int) -> np.ndarray:
    """Two-stream features (2048, T) float32 of video i; an RGB-only network reads the first 1024 rows."""
    steps, random = info["lengths"][i], np.random.RandomState(1000 * info["seed"] + i)
    return np.abs(random.standard_normal((FLOW[1], steps)) * 0.5).astype(np.float32)


def check_model(path: Path) -> list[Check]:
    """Names, logits, offsets, mask, stem and hallucinated flow of one network."""
    data = load(path)
    info = text(data["info"])
    config = fixture_config(info, info["kind"])
    model = build_model(config).to(common.device)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    wanted = dict(info["shapes"])
    checks = [agree("state dict names and shapes", shapes == {k: list(v) for k, v in wanted.items()}),
              agree("state dict order", list(shapes) == list(wanted), informational=True)]
    fixture_weights(model, info["weight_seed"])
    model.eval()
    for i in range(len(info["lengths"])):
        feats, mask = padded(fixture_features(info, i)[:config.model_input_dim], len(data[f"eval{i}/stem"]))
        with torch.no_grad():
            out, features = model.trace(feats, mask)
        found = {"cls_logits": out.logits[0], "offsets": out.offsets[0], "stem": features.stem[0]}
        if f"eval{i}/flow_rows" in data:
            flow = features.inputs[0, :, FLOW[0]:]
            found |= {"flow_rows": flow[:, :data[f"eval{i}/flow_rows"].shape[1]], "flow_mean": flow.mean(-1)}
        checks += [compare(f"video{i} {name}", value, data[f"eval{i}/{name}"], **LOGITS) for name, value in found.items()]
        checks.append(compare(f"video{i} mask", out.mask[0], data[f"eval{i}/mask"]))
    return checks
