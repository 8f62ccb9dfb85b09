"""From the network's outputs to candidate segments of one video, in grid units, before NMS (SPEC item 41)."""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from libs.core.schema import TestConfig
from libs.modeling.model import LevelOutputs


class Candidates(NamedTuple):
    """M candidate segments of one video, levels fine to coarse, falling score inside a level."""

    segments: Tensor  # (M, 2) float32, grid units, not clipped
    scores: Tensor  # (M,) float32
    labels: Tensor  # (M,) int64


def decode(outputs: LevelOutputs, index: int, config: TestConfig) -> Candidates:
    """Candidates of video `index` of a batch: per level the best `pre_nms_topk` scores above `pre_nms_thresh`.

    Equal scores keep the order point, class.  Candidates must be longer than `duration_thresh` grid units.
    """
    scores_PK = torch.sigmoid(outputs.logits[index].float()) * outputs.mask[index].unsqueeze(-1)
    num_classes = scores_PK.shape[1]
    kept, first = [], 0
    for size in outputs.level_sizes:
        flat = scores_PK[first:first + size].flatten()
        above = (flat > config.pre_nms_thresh).nonzero().squeeze(1)
        order = flat[above].argsort(descending=True, stable=True)[:config.pre_nms_topk]
        kept.append(above[order] + first * num_classes)
        first += size
    entry = torch.cat(kept)
    point = entry // num_classes
    t, stride = outputs.points[point, 0], outputs.points[point, 3]
    offsets = outputs.offsets[index, point].float()
    segments = torch.stack((t - offsets[:, 0] * stride, t + offsets[:, 1] * stride), dim=1)
    long_enough = (segments[:, 1] - segments[:, 0]) > config.duration_thresh
    return Candidates(segments[long_enough], scores_PK.flatten()[entry][long_enough], (entry % num_classes)[long_enough])
