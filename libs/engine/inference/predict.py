"""The one inference loop: videos -> detections in seconds."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from libs.core.schema import Config, TestConfig
from libs.datasets.batch import Batch
from libs.datasets.dataset import TalDataset
from libs.datasets.grid import Grid
from libs.datasets.loader import batches, close, inference_loader
from libs.datasets.sample import Sample, VideoDataset
from libs.engine.runtime.precision import low_weights, matmul_precision
from libs.engine.runtime.world import ALONE, World
from libs.modeling.decode import BatchCandidates, decode_batch
from libs.modeling.model import LevelOutputs
from libs.utils.evaluation.metrics import Scores, evaluate_detections
from libs.utils.evaluation.predictions import Detections, GroundTruth
from libs.utils.evaluation.score_fusion import fuse_external_scores, load_external_scores
from libs.utils.nms.api import announce_fallback, nms_of_batch

Item = TypeVar("Item")


@dataclass(frozen=True)
class VideoDetections:
    """Detections of one video: segments (K, 2) float32 in seconds, scores (K,) float32, labels (K,) int64."""

    segments: Tensor
    scores: Tensor
    labels: Tensor


def nms_settings(config: TestConfig) -> dict[str, Any]:
    """What `nms_of_batch` is to do, as its keywords."""
    return {"method": config.nms_method, "iou_threshold": config.iou_threshold, "min_score": config.min_score,
            "max_seg_num": config.max_seg_num, "sigma": config.nms_sigma, "multiclass": config.multiclass_nms,
            "voting_thresh": config.voting_thresh, "multiclass_voting": config.multiclass_voting}


def detections_of_batch(outputs: LevelOutputs, config: TestConfig, videos: Sequence[tuple[Grid, float]]) -> list[VideoDetections]:
    """Decode a batch, suppress (in grid units), convert to seconds and clamp to [0, duration].

    `videos`: feature grid and duration in seconds of each video of the batch.
    """
    return suppress(decode_batch(outputs, config), config, videos)


def suppress(candidates: BatchCandidates, config: TestConfig, videos: Sequence[tuple[Grid, float]]) -> list[VideoDetections]:
    """What follows decoding in `detections_of_batch`."""
    *kept, counts = nms_of_batch(*candidates, **nms_settings(config))
    parts = zip(*(t.cpu().split(counts.tolist()) for t in kept), videos, strict=True)
    return [VideoDetections(grid.grid_to_seconds(segments).clamp(min=0.0, max=duration_s), scores, labels)
            for segments, scores, labels, (grid, duration_s) in parts]


@torch.inference_mode()
def predict(model: nn.Module, dataset: VideoDataset, config: Config, device: torch.device,
            progress: Callable[[int, int], None] = lambda done, total: None, world: World = ALONE,
            collect: Callable[[Sequence[Sample], LevelOutputs], None] | None = None) -> Detections:
    """Detections of every video of `dataset`, in data set order, falling score inside a video (as NMS leaves them).

    The model is put into evaluation mode and left as it was.  `progress(videos done, of how many)` is called per batch, and
    `collect` gets what the network says about it.
    `world`: the processes that share the work; each calls this, each gets the detections of all, the same as one would get.
    """
    announce_fallback(device)
    external = external_scores(config, getattr(dataset, "label_ids", None), [v.id for v in dataset.videos])
    was_training = model.training
    model.eval()
    found: dict[str, VideoDetections] = {}
    loader = inference_loader(dataset, config, device.type == "cuda", world.rank, world.size)
    try:
        with matmul_precision(config.test_cfg.precision), low_weights(model, config.test_cfg.precision):
            ahead = ((batch.samples, _run(model, batch.to(device))) for batch in batches(loader))
            for samples, outputs in _one_ahead(ahead) if device.type == "cuda" else ahead:
                if collect is not None:
                    collect(samples, outputs)
                done = detections_of_batch(outputs, config.test_cfg, [(s.grid, s.duration_s) for s in samples])
                found.update(zip((s.video_id for s in samples), done, strict=True))
                progress(min(len(found) * world.size, len(dataset)), len(dataset))
    finally:
        model.train(was_training)
        close(loader)
    found = merged(world.all_gather(found))
    return fused(as_detections(found, [v.id for v in dataset.videos]), external, config)


def fused(detections: Detections, external: Mapping[str, np.ndarray] | None, config: Config) -> Detections:
    """The detections with the classes of `external_scores`, where there are any."""
    if external is None:
        return detections
    return fuse_external_scores(detections, external, source=str(config.test_cfg.ext_score_file),
                                keep_unscored=config.dataset.num_classes > 1)


def merged(parts: Sequence[dict[str, VideoDetections]]) -> dict[str, VideoDetections]:
    """The detections that several processes have found; ValueError if two of them had the same video."""
    found = {video: its for part in parts for video, its in part.items()}
    if len(found) < sum(map(len, parts)):
        raise ValueError("a video was evaluated by more than one process")
    return found


def external_scores(config: Config, label_ids: Mapping[str, int] | None, videos: Sequence[str]) -> dict[str, np.ndarray] | None:
    """The scores of test_cfg.ext_score_file, if it is set; a warning where they replace classes that the network knows.

    Arguments and errors as of `load_external_scores`.
    """
    path = config.test_cfg.ext_score_file
    if not path:
        return None
    scores = load_external_scores(path, label_ids, videos)
    if config.dataset.num_classes > 1:
        warnings.warn(f"test_cfg.ext_score_file: {path} replaces the classes that the network itself finds; that lowers results "
                      "where it knows them well (THUMOS14, by a user's measurement: average mAP 66.4 without, 61.8 with)",
                      stacklevel=3)
    return scores


def _run(model: nn.Module, batch: Batch) -> LevelOutputs:
    return model(batch.feats, batch.mask)


def _one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each asked for before the one in front of it is handed out: a GPU computes while the host waits."""
    waiting: list[Item] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


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
