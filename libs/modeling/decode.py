"""Decode the network's outputs into candidate segments, in grid units, before NMS (SPEC item 41).

From each FPN level the best `pre_nms_topk` scores above `pre_nms_thresh` (ties by point, then class), without segments up to
`duration_thresh` grid units long.  Levels fine to coarse, scores descending in a level, segments not clipped.
"""
from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from libs.core.schema import TestConfig
from libs.modeling.model import LevelOutputs
from libs.utils.nms.api import Candidates, backend_for

AT_ONCE = 2**16  # candidates whose distances are computed at a time, to bound memory
ALL_LENGTHS = -1.0  # a duration_thresh that every segment passes


@torch.no_grad()
def decode_batch(outputs: LevelOutputs, config: TestConfig) -> Candidates:
    """Candidates of every video of a batch, on the device of the outputs; videos do not influence each other.

    `nms_of_batch(decode_batch(outputs, config), ...)` is the whole post-processing.  CPU: compiled code if it is built (see
    `libs.utils.nms.api`).  GPU: the host waits once, for the number of candidates.
    """
    if outputs.boundaries is not None:
        return _decode_per_class(outputs, config)
    scores_BPK = _scores(outputs.logits)
    library = backend_for(scores_BPK.device)
    if scores_BPK.device.type == "cpu" and hasattr(library, "decode") and scores_BPK[0].numel() < 2**32:
        return Candidates(*library.decode(
            scores_BPK.contiguous(), outputs.offsets.float().contiguous(), outputs.mask.contiguous(), outputs.points.contiguous(),
            outputs.level_sizes, config.pre_nms_thresh, config.pre_nms_topk, config.duration_thresh))
    return decode_by_torch(outputs, scores_BPK, config, sort_all=scores_BPK.device.type == "cuda")


def decode_numbers(outputs: LevelOutputs, numbers_P: Tensor, config: TestConfig) -> Candidates:
    """`decode_batch` with a number of each candidate's point as start and end of its segment; no segment is too short."""
    points = torch.cat([numbers_P.unsqueeze(1), outputs.points[:, 1:]], dim=1)
    zeros = outputs.offsets.new_zeros(*outputs.mask.shape, 2)
    return decode_batch(outputs._replace(points=points, offsets=zeros, boundaries=None),
                        dataclasses.replace(config, duration_thresh=ALL_LENGTHS))


def _decode_per_class(outputs: LevelOutputs, config: TestConfig) -> Candidates:
    """`decode_batch` for distances that differ by class: candidates are chosen first, then theirs alone are computed."""
    numbers_P = torch.arange(len(outputs.points), dtype=torch.float32, device=outputs.points.device)
    chosen = decode_numbers(outputs, numbers_P, config)
    point = chosen.segments[:, 0].long()
    video = torch.repeat_interleave(torch.arange(len(chosen.counts), device=point.device), chosen.counts, output_size=len(point))
    pieces = zip(*(t.split(AT_ONCE) for t in (video, point, chosen.labels)), strict=True)
    offsets = torch.cat([outputs.offsets_of(*piece) for piece in pieces])
    t, stride = outputs.points[point, 0], outputs.points[point, 3]
    segments = torch.stack((t - offsets[:, 0] * stride, t + offsets[:, 1] * stride), dim=1)
    keep = ((segments[:, 1] - segments[:, 0]) > config.duration_thresh).nonzero().squeeze(1)
    counts = torch.zeros_like(chosen.counts).index_add_(0, video[keep], torch.ones_like(keep))
    return Candidates(segments[keep], chosen.scores[keep], chosen.labels[keep], counts)


def _scores(logits_BPK: Tensor) -> Tensor:
    """Sigmoid in float32; on a CPU video by video, since the last bit depends on the position of an element in its tensor."""
    if logits_BPK.device.type != "cpu":
        return torch.sigmoid(logits_BPK.float())
    scores = [torch.sigmoid(logits_PK.float()) for logits_PK in logits_BPK]
    return torch.stack(scores) if len(scores) > 1 else scores[0].unsqueeze(0)


def decode_by_torch(outputs: LevelOutputs, scores_BPK: Tensor, config: TestConfig, sort_all: bool) -> Candidates:
    """`decode_batch` without compiled code, for any device; `scores_BPK`: sigmoid of the logits, not masked yet.

    sort_all: sort the scores below the threshold too (last in their level), so that the host does not wait for their number; for
    GPUs, slow on a CPU.  The candidates are the same.
    """
    videos, points, classes = scores_BPK.shape
    levels, device = len(outputs.level_sizes), scores_BPK.device
    flat = (scores_BPK * outputs.mask.unsqueeze(-1)).flatten()
    above = flat > config.pre_nms_thresh
    entry = torch.arange(len(flat), device=device) if sort_all else above.nonzero().squeeze(1)
    row = torch.div(entry, classes, rounding_mode="floor")  # video * P + point
    level_P = torch.cat([torch.full((size,), i, device=device) for i, size in enumerate(outputs.level_sizes)])
    video = torch.div(row, points, rounding_mode="floor")
    point = row - video * points
    group = video * levels + level_P[point]
    bits = torch.where(above[entry], flat[entry].view(torch.int32).long(), -1)  # scores are >= 0, so that their bits order them
    order = torch.sort(group * 2**32 + (2**31 - 1 - bits), stable=True).indices
    entry, point, video, group = entry[order], point[order], video[order], group[order]
    found = torch.zeros(videos * levels, dtype=torch.int64, device=device).index_add_(0, group, torch.ones_like(group))
    rank = torch.arange(len(entry), device=device) - (found.cumsum(0) - found)[group]
    t, stride = outputs.points[point, 0], outputs.points[point, 3]
    offsets = outputs.offsets[video, point].float()
    segments = torch.stack((t - offsets[:, 0] * stride, t + offsets[:, 1] * stride), dim=1)
    long_enough = (segments[:, 1] - segments[:, 0]) > config.duration_thresh
    keep = above[entry] & (rank < config.pre_nms_topk) & long_enough
    counts = torch.zeros(videos, dtype=torch.int64, device=device).index_add_(0, video, keep.long())
    keep = keep.nonzero().squeeze(1)
    return Candidates(segments[keep], flat[entry[keep]], entry[keep] % classes, counts)
