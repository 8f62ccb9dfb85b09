"""Which annotated segments the feature pyramid can learn at all: the label assignment of training, applied to a whole video.

    found = segment_coverage(config, length, segments_grid)      points per segment and level
    reason = why_unmatched(...)                                  for segments without any
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from libs.core.schema import Config
from libs.modeling.points import make_points
from libs.modeling.targets import assign_targets

CHUNK = 4_000_000  # segment-point pairs looked at together
REASONS = {  # kind -> what to do
    "outside": "the features end too early: extract the video again, or correct the segment",
    "long": "raise the last entry of model.regression_range, or add a level",
    "short": "extract features with a smaller stride (dataset.feat_stride), or with a smaller dataset.downsample_rate",
    "taken": "a shorter segment takes all of its points; nothing to do if they really coincide",
    "rule": "no point near its centre lies inside it and in its level's range: a smaller stride, overlapping "
            "model.regression_range or a larger train_cfg.center_sample_radius would help",
}


class Coverage(NamedTuple):
    """Points that training assigns to N segments: (N, L) int64, levels fine to coarse; and (N,) bool, points if alone."""

    points_NL: np.ndarray
    alone_N: np.ndarray


def level_strides(config: Config) -> tuple[int, ...]:
    """Strides of the FPN levels that have heads, grid units, fine to coarse."""
    model = config.model
    return tuple(model.scale_factor**level for level in range(model.fpn_start_level, model.backbone_arch[2] + 1))


def segment_coverage(config: Config, length: int, segments: np.ndarray) -> Coverage:
    """Apply the assignment rule of training (SPEC 31) to the segments (N, 2), grid units, of a video of `length` steps.

    Points lie on the grid of the whole video; a training crop shifts them by less than a level's stride.
    """
    strides = level_strides(config)
    sizes = [-(-length // stride) for stride in strides]
    points = make_points(sizes, strides, config.model.regression_range)
    segs = torch.from_numpy(np.array(segments, np.float32)).reshape(-1, 2)
    count, total = len(segs), len(points)
    rule = (config.train_cfg.center_sample, config.train_cfg.center_sample_radius)
    alone = []
    for part in segs.split(max(CHUNK // total, 1)):  # a batch of videos with one segment each
        labels = torch.zeros(len(part), 1, dtype=torch.long)
        alone.append(assign_targets(points, part[:, None], labels, labels == 0, 1, *rule).classes.flatten(1).amax(1) > 0)
    labels = torch.arange(count)[None]  # every segment is a class of its own
    owned = [assign_targets(part, segs[None], labels, labels >= 0, max(count, 1), *rule).classes[0] > 0
             for part in points.split(max(CHUNK // max(count, 1), 1))]
    per_level = [level.sum(0) for level in torch.cat(owned).split(sizes)]
    return Coverage(torch.stack(per_level, 1)[:count].numpy(), torch.cat(alone).numpy() if alone else np.zeros(0, bool))


def why_unmatched(config: Config, length: int, segment: Sequence[float], alone: bool) -> str:
    """Key of REASONS for a segment (start, end), grid units, that no point was assigned to; `alone`: it would have had one."""
    start, end = segment
    if alone:
        return "taken"
    if end <= 0 or start >= length - 1:
        return "outside"
    if (end - start) / 2 > max(high for _, high in config.model.regression_range):
        return "long"
    finest = level_strides(config)[0]
    if (math.floor(start / finest) + 1) * finest >= end:  # the first point after its start is not before its end
        return "short"
    return "rule"
