"""Which annotated segments the feature pyramid can learn: the label assignment of training, applied to whole videos.

    found = segment_coverage(config, length, segments_grid)      points per segment and level
    reason = why_unmatched(...)                                  for a segment without any
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from libs.core.problems import Problems
from libs.core.schema import Config
from libs.datasets.annotations import Annotations, Video
from libs.datasets.grid import Grid
from libs.modeling.losses.targets import assign_targets
from libs.modeling.points import make_points
from libs.utils.progress import terminal_bar

FAR_S = 1e9
CHUNK = 4_000_000  # segment-point pairs per call of assign_targets
REASONS = {  # kind -> remedy
    "outside": "the features end too early: extract the video again, or correct the segment",
    "long": "raise the last entry of model.regression_range, or add a level",
    "short": "extract features with a smaller stride (dataset.feat_stride), or with a smaller dataset.downsample_rate",
    "taken": "a shorter segment takes all of its points; nothing to do if they really coincide",
    "rule": "no point near its centre lies inside it and in its level's range: a smaller stride, overlapping "
            "model.regression_range or a larger train_cfg.center_sample_radius would help",
}


class Coverage(NamedTuple):
    """Number of points that training assigns to N segments, (N, L) int64, levels fine to coarse; and (N,) bool: whether a
    segment would have points if it were the only one."""

    points_NL: np.ndarray
    alone_N: np.ndarray


def segment_coverage(config: Config, length: int, segments: np.ndarray) -> Coverage:
    """Apply the assignment rule of training (SPEC item 31) to the segments (N, 2), grid units, of a video of `length` steps.

    Points lie on the grid of the whole video; a training crop shifts them by less than a level's stride.
    """
    strides = config.level_strides
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


def check_coverage(config: Config, source: str, annotations: Annotations, grids: Mapping[str, tuple[Grid, int]],
                   problems: Problems, progress: bool) -> tuple[dict[str, Any], float]:
    """(segments and points per level of the pyramid, longest segment in grid steps), over the videos of `grids`.

    grids: grid and length by video id; source: the file that a problem names.  Segments without points become problems, one per
    reason.
    """
    strides = config.level_strides
    reached, points = np.zeros(len(strides), np.int64), np.zeros(len(strides), np.int64)
    reasons: Counter[str] = Counter()
    first: dict[str, str] = {}
    per_subset: dict[str, dict[str, int]] = {}
    total, longest, below_a_step = 0, 0.0, 0
    bar = terminal_bar(len(grids), "pyramid", progress)
    for vid, (grid, length) in grids.items():
        bar.update()
        video = annotations.videos[vid]
        segments = segments_on_grid(grid, video)
        if len(segments) == 0:
            continue
        found = segment_coverage(config, length, segments)
        reached += (found.points_NL > 0).sum(0)
        points += found.points_NL.sum(0)
        steps = segments[:, 1] - segments[:, 0]
        total, longest, below_a_step = total + len(steps), max(longest, float(steps.max())), below_a_step + int((steps < 1).sum())
        unmatched = np.flatnonzero(found.points_NL.sum(1) == 0)
        counts = per_subset.setdefault(video.subset, {"unmatched": 0, "segments": 0})
        counts["unmatched"] += len(unmatched)
        counts["segments"] += len(segments)
        for n in unmatched:
            reason = why_unmatched(config, length, segments[n], bool(found.alone_N[n]))
            reasons[reason] += 1
            start, end = video.segments[n]
            first.setdefault(reason, f"video {vid!r}, annotations[{annotations.entries[vid][n]}], [{start:g}, {end:g}] s, "
                                     f"{steps[n]:.3g} grid steps")
    bar.close()
    for reason, count in reasons.items():
        add = problems.error if reason == "long" else problems.warning
        add(f"unmatched-{reason}", source, "", f"{count} of {total} segments get no point of the pyramid, so nothing learns them "
            f"(first: {first[reason]})", REASONS[reason])
    levels = [{"stride": stride, "range": list(bounds), "segments": int(n), "points": int(p)} for stride, bounds, n, p in
              zip(strides, config.model.regression_range, reached, points, strict=True)]
    return {"config": source, "segments": total, "shorter_than_a_step": below_a_step, "unmatched": dict(reasons),
            "unmatched_per_subset": per_subset, "levels": levels}, longest


def segments_on_grid(grid: Grid, video: Video) -> np.ndarray:
    """Segments of a video, (N, 2) float64 grid units; times beyond FAR_S, reported elsewhere, are clipped to fit float32."""
    return grid.seconds_to_grid(np.clip(video.segments, -FAR_S, FAR_S)).astype(np.float64)


def why_unmatched(config: Config, length: int, segment: Sequence[float], alone: bool) -> str:
    """Key of REASONS for an unmatched segment (start, end), grid units; alone: as in `Coverage`."""
    start, end = segment
    if alone:
        return "taken"
    if end <= 0 or start >= length - 1:
        return "outside"
    if (end - start) / 2 > max(high for _, high in config.model.regression_range):
        return "long"
    finest = config.level_strides[0]
    if (math.floor(start / finest) + 1) * finest >= end:  # the first point after its start is not before its end
        return "short"
    return "rule"
