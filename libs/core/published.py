"""Configurations of the published programs: the defaults that `model_name` stands for, and their spellings of our values."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# model_name -> dotted key: default of that program where it differs from the schema's
DEFAULTS: dict[str, dict[str, Any]] = {
    "LocPointTransformer": {},
    "TriDet": {"model.backbone_type": "SGP", "model.use_trident_head": True, "test_cfg.voting_iou_weight": False,
               "opt.eta_min": 1e-8, "dataset.crop_offset": False},
    "TemporalMaxerArchitecture": {"model.backbone_type": "convPooler", "model.fpn_norm": "groupnorm",
                                  "model.fpn_shared_norm": True, "model.assigner.type": "cost"},
}
SPELLINGS = {"model.backbone_arch": ("[2, 5]", "[2, 0, 5], with backbone_type: convPooler, which has no stem"),
             "model.fpn_norm": ("null", "none")}  # dotted key -> published spelling, ours; for the documentation

# dotted key of a published file that has no place here -> what to write for it
ELSEWHERE = {
    "dataset.backbone_type": "leave it out; HACS features: dataset.subset_folders: true with file_ext: .pkl (slowfast) or .npy "
                             "(i3d), or file_prefix: v_ without subset_folders (tsp)"}


def in_our_terms(raw: Mapping[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    """Raw values by dotted key, each with its origin ('': a default), in our spelling and over the defaults of `model_name`."""
    name = raw.get("model_name", (None, ""))[0]
    defaults = DEFAULTS.get(name, {}) if isinstance(name, str) else {}
    merged = {**{dotted: (value, "") for dotted, value in defaults.items()}, **raw}
    arch, source = merged.get("model.backbone_arch", (None, ""))
    if isinstance(arch, (list, tuple)) and len(arch) == 2 and merged.get("model.backbone_type", ("", ""))[0] == "convPooler":
        merged["model.backbone_arch"] = [arch[0], 0, arch[1]], source
    norm, source = merged.get("model.fpn_norm", ("", ""))
    if norm is None:
        merged["model.fpn_norm"] = "none", source
    return merged
