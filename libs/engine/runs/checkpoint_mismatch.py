"""Why a checkpoint does not fit a model: the names that differ, and the configuration key behind each difference."""
from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

SHOWN = 6
# parts whose names depend on the number of levels and blocks
LAYERED = ("backbone.", "neck.", "cls_head.", "start_head.", "end_head.", "reg_head.")

# (pattern of a parameter name, config key) for parameters that only model or file has; the first match counts
NAME_RULES = (
    (r"^rgb2flow\.|^hallucinator\.", "model.hallucinator"),
    (r"^fusion\.", "model.fusion"),
    (r"^neck\.(seblocks|gates)\.", "model.temporal_gate"),
    (r"^(start|end)_head\.", "model.use_trident_head"),
    (r"^backbone\.branch\.\d+\.downsample\.1\.", "model.downsample_type"),
    (r"\.(ln|gn|psi|fc|convw|convkw|global_fc)\.", "model.backbone_type"),
    (r"_head\.(head\.\d+|cls_head|offset_head)\.conv\.(depth_conv|point_conv|weight)|_head\.(cls_head|offset_head)\.conv\.bias",
     "model.head_type"),
    (r"^backbone\..*(\.depth_conv\.|\.point_conv\.)|^backbone\.embd\.\d+\.conv\.weight", "model.backbone_type"),
    (r"\.drop_path_", "train_cfg.droppath (0 removes the residual scales, any other value has them)"),
    (r"\.rel_pe$", "model.use_rel_pe (and model.n_mha_win_size: global levels have none)"),
    (r"^backbone\.proj\.", "dataset.input_dim and model.embd_dim (lists add one projection per input)"),
    (r"^backbone\.embd_norm\.|^backbone\.embd\.\d+\.conv\.bias", "model.embd_with_ln"),
    (r"^backbone\.embd\.", "model.backbone_arch[0] (embedding convs)"),
    (r"\.(conv1|conv2|downsample)\.|\.(attn|mlp|ln1|ln2)\.", "model.backbone_type"),
    (r"^backbone\.stem\.", "model.backbone_arch[1] (stem blocks)"),
    (r"^backbone\.branch\.", "model.backbone_arch[2] (downsampling blocks)"),
    (r"^neck\.(lateral_convs|fpn_convs)\.\d+\.conv\.bias|^neck\.fpn_norms\.", "model.fpn_with_ln (or model.fpn_norm)"),
    (r"^neck\.(lateral_convs|fpn_convs)", "model.fpn_type"),
    (r"_head\.norm\.|_head\.head\.\d+\.conv\.bias", "model.head_with_ln"),
    (r"_head\.head\.", "model.head_num_layers"),
    (r"^reg_head\.scale\.", "model.backbone_arch[2] and model.fpn_start_level (FPN levels)"),
)
CONFIGS = {"ActionFormer": "thumos_i3d.yaml", "TriDet": "tridet_thumos_i3d.yaml",
           "TemporalMaxer": "temporalmaxer_thumos_i3d.yaml"}
SHAPE_RULES = (
    (r"^rgb2flow\.|^hallucinator\.|^fusion\.",
     "dataset.modalities, model.modalities or model.hallucinated (or model.hallucinator_dim, or which hallucinator)"),
    (r"^neck\.seblocks\.", "dataset.max_seq_len (the published temporal gate has fixed lengths)"),
    (r"\.(psi|convw)\.weight$", "model.n_sgp_win_size"),
    (r"\.convkw\.weight$", "model.n_sgp_win_size or model.k"),
    (r"\.mlp\.(0|2)\.", "model.sgp_mlp_dim (SGP) or model.embd_dim"),
    (r"^reg_head\.offset_head\.", "model.num_bins (or model.use_trident_head, model.head_dim, model.head_kernel_size)"),
    (r"^(start|end)_head\.", "model.boudary_kernel_size (or dataset.num_classes, model.head_dim)"),
    (r"^cls_head\.cls_head\.", "dataset.num_classes (or model.head_dim, model.head_kernel_size)"),
    (r"^backbone\.embd\.0\.conv\.(weight|depth_conv|point_conv)|^backbone\.proj\.",
     "dataset.input_dim (or model.modalities, model.hallucinated, model.embd_dim, model.embd_kernel_size)"),
    (r"^backbone\.", "model.embd_dim (or model.n_head, model.n_mha_win_size for rel_pe, model.embd_kernel_size)"),
    (r"^neck\.", "model.fpn_dim"),
    (r"_head\.", "model.head_dim or model.head_kernel_size"),
)


def explain_difference(model: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> str:
    """'' if names and shapes agree, else lines with the differing parameters and the likely config keys."""
    missing = [n for n in model if n not in file]
    extra = [n for n in file if n not in model]
    shapes = [n for n in model if n in file and model[n].shape != file[n].shape]
    lines = []
    ours, theirs = method_of(model), method_of(file)
    if ours and theirs and ours != theirs:
        lines.append(f"  the checkpoint is one of {theirs}, the configuration one of {ours}: use a configuration of {theirs}, "
                     f"e.g. configs/{CONFIGS[theirs]}")
    if missing:
        lines.append(f"  not in the checkpoint: {_some(missing)}")
    if extra:
        lines.append(f"  only in the checkpoint: {_some(extra)}")
    if shapes:
        shown = [f"{n} {tuple(file[n].shape)}, the configuration asks for {tuple(model[n].shape)}" for n in shapes]
        lines.append(f"  other shape in the checkpoint: {_some(shown, '; ')}")
    if not lines:
        return ""
    depth = _other_depth(model, file)  # explains all parameters of the levels and blocks that only model or file has
    others = [n for n in missing + extra if not (depth and n.startswith(LAYERED))]
    causes = [*depth, *_causes(others, NAME_RULES), *_causes(shapes, SHAPE_RULES)]
    remedy = "; ".join(dict.fromkeys(causes)) or "the model section"
    return "\n".join([*lines, f"  likely config key: {remedy}"])


def method_of(state: Mapping[str, Tensor]) -> str:
    """The published method that the names of parameters belong to, '' if they fit several."""
    def has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in state)

    if has(r"^start_head\.|\.psi\.weight$"):
        return "TriDet"
    if has(r"^backbone\.(stem|branch)\."):
        return "ActionFormer" if has(r"\.attn\.") else ""
    return "TemporalMaxer" if has(r"^backbone\.embd\.0\.conv\.weight$") else ""


def _other_depth(model: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> list[str]:
    found = []
    for part, key in (("backbone.embd", "backbone_arch[0] (embedding convs)"),
                      ("backbone.stem", "backbone_arch[1] (stem blocks)"),
                      ("backbone.branch", "backbone_arch[2] (downsampling blocks; or branch_type: max_pool has none)"),
                      ("cls_head.head", "head_num_layers")):
        ours, theirs = _count(model, part), _count(file, part)
        last = " + 1" if key == "head_num_layers" else ""
        if ours != theirs:
            found.append(f"model.{key}: the checkpoint has {theirs}{last}, the configuration {ours}{last}")
    return found


def _count(state: Mapping[str, Tensor], part: str) -> int:
    pattern = re.compile(re.escape(part) + r"\.(\d+)\.")
    return len({m.group(1) for name in state if (m := pattern.match(name))})


def _causes(names: list[str], rules: tuple[tuple[str, str], ...]) -> list[str]:
    """The config key of the first rule that matches, for each name that one matches."""
    found = (next((key for pattern, key in rules if re.search(pattern, name)), None) for name in names)
    return [key for key in found if key is not None]


def _some(names: list[str], separator: str = ", ") -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return separator.join(name if len(name) <= 200 else name[:197] + "..." for name in names[:SHOWN]) + more
