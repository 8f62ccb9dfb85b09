"""Suggests a configuration for a new dataset, by fixed rules from facts about the data.

    grid = guess_grid(frames, lengths)                     stride and window of the features, from durations and file lengths
    text = suggest_yaml(DataFacts(...))                    a YAML file with the reason beside each key
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from libs.core.config import from_dict
from libs.core.schema import Config
from libs.core.yaml_text import dump

FRAME_SLACK = 0.02  # frames; durations are rounded
USUAL_WINDOWS = (16, 32, 64, 8)
OPEN_END = 10000
LONGEST = 2304  # of the published THUMOS14 setting: fits a GPU of 8 GiB at width 512
LEVELS = 6  # of the published THUMOS14, ActivityNet and EPIC-Kitchens settings
MEASURED = "benchmarks/results/suggested.json"


class GridGuess(NamedTuple):
    """Frames between two vectors (-1: every video is stretched to one length), frames per vector, share of files explained."""

    stride: float
    num_frames: float
    share: float


@dataclass(frozen=True, eq=False)
class DataFacts:
    """The facts that a suggestion follows from.

    json_file, feat_folder, prefix, extension: as in a configuration; train, val: subset names; width: channels; classes: their
    number; grid: of the features; default_fps: only where the annotations lack it; lengths: (V,) grid steps of training videos;
    segment_lengths: (N,) grid units, training.
    """

    json_file: str
    feat_folder: str | list[str]
    prefix: str
    extension: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    width: int
    classes: int
    grid: GridGuess
    default_fps: float | None
    lengths: np.ndarray
    segment_lengths: np.ndarray


def guess_grid(frames: np.ndarray, lengths: np.ndarray) -> GridGuess | None:
    """Stride and window that explain most files: T = floor((frames - window) / stride) + 1.

    frames: (V,) duration x fps; lengths: (V,) vectors in the file.  Whole strides near the median ratio are tried with every
    window up to four strides (and the usual ones); of equally good ones, a window of two strides, one stride or a usual size is
    preferred.  If none explains half of the files, durations are too imprecise: the nearest stride with a window of two strides.
    None without videos.
    """
    frames, lengths = np.asarray(frames, np.float64), np.asarray(lengths, np.int64)
    if len(lengths) == 0:
        return None
    if len(lengths) > 2 and len(set(lengths.tolist())) == 1 and frames.max() > 1.2 * frames.min():
        return GridGuess(-1, 16, 1.0)
    ratio = float(np.median(frames / lengths))
    best, found = (0.0, 0, 0.0), None
    for stride in range(max(math.floor(0.8 * ratio), 1), math.ceil(1.2 * ratio) + 2):
        preferred = [2 * stride, stride, *USUAL_WINDOWS, 4 * stride]
        for window in sorted({*range(1, 4 * stride + 1), *USUAL_WINDOWS}):
            share = float((np.floor((frames + FRAME_SLACK - window) / stride) + 1 == lengths).mean())
            liked = len(preferred) - preferred.index(window) if window in preferred else 0
            if (share, liked, -abs(stride - ratio)) > best:
                best, found = (share, liked, -abs(stride - ratio)), GridGuess(stride, window, share)
    if found is None or found.share < 0.5:
        stride = max(round(ratio), 1)
        near = np.abs((frames - 2 * stride) / stride + 1 - lengths) <= np.maximum(2, 0.02 * lengths)
        return GridGuess(stride, 2 * stride, float(near.mean()))
    return found


def _levels(half: float, longest: float) -> tuple[int, str]:
    """(levels of the pyramid, reason); half: of 99 % of the segments, longest: training video, both in grid steps."""
    needed = min(max(math.ceil(math.log2(max(half, 1) / 4)) + 1, LEVELS), 8)
    levels = max(min(needed, math.floor(math.log2(max(longest, 1)))), 4)
    if levels < needed:
        return levels, f"{levels} levels: the longest training video has {longest:.0f} steps"
    if levels > LEVELS:
        return levels, f"{levels} levels: half of 99 % of the segments is at most {half:.3g} steps"
    return levels, f"{levels} levels, as published: a seventh costs 2 mAP on average ({MEASURED})"


def suggest(facts: DataFacts) -> tuple[dict[str, Any], dict[str, str]]:
    """(nested configuration, reason per dotted key)."""
    steps, segments = facts.lengths, facts.segment_lengths
    half = float(np.percentile(segments, 99)) / 2 if len(segments) else 32.0
    levels, levels_reason = _levels(half, float(steps.max()))
    coarsest = 2 ** (levels - 1)
    stretched = facts.grid.stride <= 0
    longest_segment = float(segments.max()) if len(segments) else 0.0
    wanted = float(steps.max()) if stretched else max(min(float(np.percentile(steps, 95)), LONGEST), longest_segment)
    max_seq_len = max(math.ceil(wanted / coarsest) * coarsest, 2 * coarsest)
    ranges = [[0, 4], *([2**i, 2 ** (i + 1)] for i in range(2, levels + 1))]
    ranges[-1] = [ranges[-1][0], max(OPEN_END, math.ceil(longest_segment))]
    dim, rate = (128, 1e-3) if len(segments) < 2000 else (256, 5e-4) if len(segments) < 20000 else (512, 1e-4)
    batch = min(2 if max_seq_len >= 512 else 4 if max_seq_len >= 256 else 16, max(len(steps) // 2, 1))
    epochs = min(max(math.ceil(1000 / max(len(steps) // batch, 1)), 15), 100)
    warmup = max(epochs // 10, 1)
    data: dict[str, Any] = {
        "json_file": facts.json_file, "feat_folder": facts.feat_folder, "file_prefix": facts.prefix or None,
        "file_ext": facts.extension or None, "feat_stride": _whole(facts.grid.stride),
        "num_frames": _whole(facts.grid.num_frames), "default_fps": facts.default_fps,
        "input_dim": facts.width, "num_classes": facts.classes, "max_seq_len": max_seq_len,
        "trunc_thresh": 0.5, "crop_ratio": None if stretched else [0.9, 1.0]}
    values = {
        "dataset_name": "generic", "train_split": list(facts.train), "val_split": list(facts.val), "devices": ["auto"],
        "output_folder": "./ckpt/", "dataset": data,
        "loader": {"batch_size": batch},
        "model": {"backbone_arch": [2, 2, levels - 1], "regression_range": ranges, "n_head": 4,
                  "n_mha_win_size": 19 if max_seq_len > 512 else 9, "embd_dim": dim, "fpn_dim": dim, "head_dim": dim},
        "train_cfg": {"init_loss_norm": 100, "clip_grad_l2norm": 1.0, "droppath": 0.1, "ema_warmup": True},
        "test_cfg": {"pre_nms_topk": 2000, "min_score": 0.001, "max_seg_num": 1000, "nms_sigma": 0.5,
                     "voting_thresh": 0.7},
        "opt": {"learning_rate": rate, "weight_decay": 0.05, "warmup_epochs": warmup, "epochs": epochs - warmup}}
    whole = int((steps <= max_seq_len).sum())
    reasons = {
        "dataset.feat_stride": "all files have one length: videos are stretched to it" if stretched
        else f"with num_frames explains the length of {facts.grid.share:.0%} of the files",
        "dataset.max_seq_len": f"{whole} of {len(steps)} training videos fit whole; longer ones are cropped in training only",
        "dataset.crop_ratio": f"as published: [0.5, 1] gains nothing ({MEASURED})",
        "loader.batch_size": "2 from 512 steps on, 4 from 256, else 16; at most half the training videos",
        "model.backbone_arch": levels_reason,
        "model.regression_range": "doubling per level; the last one is open",
        "model.n_mha_win_size": "19 above 512 steps, else 9",
        "model.embd_dim": f"{len(segments)} training segments: 128 below 2000, 256 below 20000, else 512",
        "train_cfg.ema_warmup": f"short runs need it; raw weights gain 0 to 0.4 mAP, within the spread ({MEASURED})",
        "test_cfg.max_seg_num": f"0.1 to 0.8 mAP over the published 200 ({MEASURED})",
        "test_cfg.nms_sigma": f"as published: 0.3 gains 0.2 mAP on one dataset, loses 0.4 on another ({MEASURED})",
        "opt.epochs": f"about 1000 steps with warm-up, 15 to 100 epochs; {len(steps)} training videos"}
    return values, reasons


def suggest_config(facts: DataFacts) -> Config:
    """The suggestion as a checked configuration."""
    return from_dict(suggest(facts)[0], "suggested configuration")


def suggest_yaml(facts: DataFacts) -> str:
    """The suggestion as YAML, with reasons as comments."""
    values, reasons = suggest(facts)
    lines, section = [], ""
    for line in dump(values).splitlines():
        name = line.split(":")[0].strip()
        if line.startswith(" "):
            reason = reasons.get(f"{section}.{name}")
            lines.append(f"{line}  # {reason}" if reason else line)
            continue
        if line.endswith(":"):
            section = name
            lines.append("")
        lines.append(line)
    head = "# Suggested by tools/check_dataset.py from the data alone; a starting point to train, measure and change."
    return "\n".join([head, *lines]) + "\n"


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
