"""The one inference loop: videos -> detections in seconds."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from libs.core.schema import Config, TestConfig
from libs.datasets.dataset import TalDataset
from libs.datasets.grid import Grid
from libs.datasets.loader import batches, inference_loader
from libs.modeling.decode import decode
from libs.modeling.model import LevelOutputs
from libs.utils.metrics import Scores, evaluate_detections
from libs.utils.nms import announce_fallback, batched_nms
from libs.utils.predictions import Detections, GroundTruth
from libs.utils.score_fusion import fuse_external_scores, load_external_scores


@dataclass(frozen=True)
class VideoDetections:
    """Detections of one video: segments (K, 2) float32 in seconds, scores (K,) float32, labels (K,) int64."""

    segments: Tensor
    scores: Tensor
    labels: Tensor


def detections_of_video(outputs: LevelOutputs, index: int, config: TestConfig, grid: Grid, duration_s: float) -> VideoDetections:
    """Decode video `index` of a batch, suppress (in grid units), convert to seconds and clamp to [0, duration]."""
    found = decode(outputs, index, config)
    segments, scores, labels = batched_nms(
        found.segments, found.scores, found.labels, method=config.nms_method, iou_threshold=config.iou_threshold,
        min_score=config.min_score, max_seg_num=config.max_seg_num, sigma=config.nms_sigma, multiclass=config.multiclass_nms,
        voting_thresh=config.voting_thresh, multiclass_voting=config.multiclass_voting)
    seconds = grid.grid_to_seconds(segments).clamp(min=0.0, max=duration_s)
    return VideoDetections(seconds.cpu(), scores.cpu(), labels.cpu())


@torch.inference_mode()
def predict(model: nn.Module, dataset: TalDataset, config: Config, device: torch.device,
            progress: Callable[[int, int], None] = lambda done, total: None) -> Detections:
    """Detections of every video of `dataset`, in data set order, falling score inside a video (as NMS leaves them).

    The model is put into evaluation mode and left as it was.  `progress(videos done, of how many)` is called per batch.
    """
    announce_fallback(device)
    was_training = model.training
    model.eval()
    found: dict[str, VideoDetections] = {}
    try:
        for batch in batches(inference_loader(dataset, config, pin=device.type == "cuda")):
            moved = batch.to(device)
            outputs = model(moved.feats, moved.mask)
            for i, sample in enumerate(batch.samples):
                found[sample.video_id] = detections_of_video(outputs, i, config.test_cfg, sample.grid, sample.duration_s)
            progress(len(found), len(dataset))
    finally:
        model.train(was_training)
    detections = as_detections(found, [v.id for v in dataset.videos])
    if config.test_cfg.ext_score_file:
        detections = fuse_external_scores(detections, load_external_scores(config.test_cfg.ext_score_file))
    return detections


def as_detections(found: dict[str, VideoDetections], order: list[str]) -> Detections:
    """One table of the detections per video, videos in the given order."""
    parts = [found[v] for v in order]
    ids = np.repeat(np.asarray(order, dtype=object), [len(p.scores) for p in parts])
    segments = np.concatenate([p.segments.numpy() for p in parts])
    return Detections.from_arrays(ids, segments[:, 0], segments[:, 1], np.concatenate([p.labels.numpy() for p in parts]),
                                  np.concatenate([p.scores.numpy() for p in parts]))


def score(detections: Detections, dataset: TalDataset) -> Scores:
    """mAP and recall of detections against the ground truth of a data set, at its tIoU thresholds."""
    ids, starts, ends, labels = dataset.ground_truth()
    truth = GroundTruth.from_arrays(ids, starts, ends, labels)
    return evaluate_detections(detections, truth, dataset.tious, label_names=dataset.label_names)
