"""Keys of the section test_cfg."""
from __future__ import annotations

# ruff: noqa: E501, RUF009  (a table: one key per line; `key` makes an immutable field)
from dataclasses import dataclass
from typing import Literal

from libs.core.coerce import key
from libs.core.schema.values import Precision


@dataclass(frozen=True)
class TestConfig:
    pre_nms_thresh: float = key(0.001, "candidates need a higher score", low=0, high=1)
    pre_nms_topk: int = key(5000, "candidates kept per FPN level", low=1)
    iou_threshold: float = key(0.1, "hard NMS: suppress from this tIoU on", low=0, high=1)
    min_score: float = key(0.01, "NMS drops candidates below this score", low=0, high=1)
    max_seg_num: int = key(1000, "segments kept per video", low=1)
    nms_method: Literal["soft", "hard", "none"] = key("soft", "suppression")
    nms_sigma: float = key(0.5, "sigma of the gaussian soft-NMS", above=0)
    duration_thresh: float = key(0.05, "candidates need a longer duration, grid units", low=0)
    multiclass_nms: bool = key(True, "NMS per class")
    multiclass_voting: bool = key(False, "(ours) voting inside each class too; the published code skips it")
    ext_score_file: str | None = key(None, "external class scores per video (.json, .npy, .pkl) that replace the network's classes, for class-agnostic detectors (ActivityNet); they lower THUMOS14 (docs/datasets.md)")
    voting_thresh: float = key(0.75, "tIoU of the boundary voting; <= 0: off", high=1)
    voting_iou_weight: bool = key(True, "(ours) the boundary voting weighs every candidate by score x IoU, else by its score alone (published TriDet)")
    exclude: str | None = key(None, "(ours) file with one video id per line: evaluation leaves these videos out (docs/inference.md)")
    batch_size: int = key(1, "(ours) videos per forward pass in evaluation; results do not depend on it", low=1)
    weights: Literal["ema", "raw"] = key("ema", "(ours) weights to evaluate: EMA or raw")
    drop_modalities: tuple[str, ...] = key((), "(ours) streams of the network that evaluation sets to zero, for one trained with train_cfg.modality_dropout")
    precision: Precision = key("fp32", "(ours) arithmetic of the network in evaluation, as train_cfg.precision; decoding and NMS stay fp32")
