"""The inference loop: features of videos -> detections in seconds."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from libs.core.errors import UserError
from libs.core.schema import Config, TestConfig
from libs.datasets.corruptions import CorruptedDataset
from libs.datasets.dataset import TalDataset
from libs.datasets.grid import Grid
from libs.datasets.loading.batch import Batch
from libs.datasets.loading.loader import batches, close, inference_loader
from libs.datasets.sample import Sample, VideoDataset
from libs.engine.runtime.precision import low_weights, matmul_precision
from libs.engine.runtime.world import ALONE, World
from libs.modeling.decode import decode_batch
from libs.modeling.model import LevelOutputs
from libs.utils.evaluation.metrics import Scores, codes_of, evaluate_detections
from libs.utils.evaluation.predictions import Detections
from libs.utils.evaluation.score_fusion import fuse_external_scores, load_external_scores
from libs.utils.nms.api import Candidates, announce_fallback, nms_of_batch
from libs.utils.progress import Progress, no_progress

Item = TypeVar("Item")


class Timeline(NamedTuple):
    """Feature grid and duration of a video, to convert its segments from grid units to seconds."""

    video_id: str
    grid: Grid
    duration_s: float

    @classmethod
    def of(cls, sample: Sample) -> Timeline:
        """The timeline of a sample."""
        return cls(sample.video_id, sample.grid, sample.duration_s)


def nms_settings(config: TestConfig) -> dict[str, Any]:
    """The keywords of `nms_of_batch`."""
    return {"method": config.nms_method, "iou_threshold": config.iou_threshold, "min_score": config.min_score,
            "max_seg_num": config.max_seg_num, "sigma": config.nms_sigma, "multiclass": config.multiclass_nms,
            "voting_thresh": config.voting_thresh, "multiclass_voting": config.multiclass_voting,
            "voting_iou_weight": config.voting_iou_weight}


def detections_of_batch(outputs: LevelOutputs, config: TestConfig, videos: Sequence[Timeline]) -> Detections:
    """Decode the outputs of a batch of `videos`, then `suppress`."""
    return suppress(decode_batch(outputs, config), config, videos)


def suppress(candidates: Candidates, config: TestConfig, videos: Sequence[Timeline]) -> Detections:
    """NMS (in grid units), conversion to seconds, segments clamped to [0, duration]; video after video."""
    kept = nms_of_batch(candidates, **nms_settings(config))
    counts = kept.counts.tolist()
    seconds = torch.cat([v.grid.grid_to_seconds(segments).clamp(min=0.0, max=v.duration_s)
                         for segments, v in zip(kept.segments.cpu().split(counts), videos, strict=True)]).numpy()
    video_ids = np.repeat(np.array([v.video_id for v in videos], dtype=np.str_), counts)
    return Detections.from_arrays(video_ids, seconds[:, 0], seconds[:, 1], kept.labels.cpu().numpy(), kept.scores.cpu().numpy())


@torch.inference_mode()
def predict(model: nn.Module, dataset: VideoDataset, config: Config, device: torch.device,
            progress: Progress = no_progress, world: World = ALONE,
            collect: Callable[[Sequence[Sample], LevelOutputs], None] | None = None,
            wanted: Collection[str] | None = None) -> Detections:
    """Detections of every video of `dataset`, in dataset order, descending score inside a video (as NMS leaves them).

    The model is set to evaluation mode and back.  `progress(videos done, of how many)` and `collect(samples, outputs)` are called
    per batch.  `world`: the processes that share the work; each calls this and returns the detections of all videos.
    `wanted`: only batches with one of these video ids.
    Raises UserError for unusable features, and for a video for which the network's outputs are not finite.
    """
    announce_fallback(device)
    external = external_scores(config, getattr(dataset, "label_ids", None), [v.id for v in dataset.videos])
    was_training = model.training
    model.eval()
    parts: list[Detections] = []
    done = 0
    loader = inference_loader(dataset, config, device.type == "cuda", world.rank, world.size, wanted)
    total = len(dataset) if wanted is None else len(wanted)
    try:
        with matmul_precision(config.test_cfg.precision), low_weights(model, config.test_cfg.precision):
            ahead = ((batch.samples, _run(model, batch.to(device))) for batch in batches(loader))
            for samples, outputs in _one_ahead(ahead) if device.type == "cuda" else ahead:
                finite_B = _finite(outputs)  # read after decoding, for which a GPU's host waits anyway
                if collect is not None:
                    collect(samples, outputs)
                candidates = decode_batch(outputs, config.test_cfg)
                _refuse_non_finite(finite_B, samples, dataset)
                parts.append(suppress(candidates, config.test_cfg, [Timeline.of(s) for s in samples]))
                done += len(samples)
                progress(min(done * world.size, total), total)
    finally:
        model.train(was_training)
        close(loader)
    found = merged(world.all_gather(Detections.concat(parts)), [v.id for v in dataset.videos])
    return fused(found, external, config)


def fused(detections: Detections, external: Mapping[str, np.ndarray] | None, config: Config) -> Detections:
    """The detections with the classes and scores of `external_scores`; unchanged for None."""
    if external is None:
        return detections
    return fuse_external_scores(detections, external, source=str(config.test_cfg.ext_score_file),
                                keep_unscored=config.dataset.num_classes > 1)


def merged(parts: Sequence[Detections], order: Sequence[str]) -> Detections:
    """The detections of several processes as one, videos in the given order; ValueError if two processes had the same video."""
    places = {video: i for i, video in enumerate(order)}
    places_of_parts = [codes_of(part.video_id, places) for part in parts]
    place = np.concatenate(places_of_parts)
    if len(np.unique(place)) < sum(len(np.unique(p)) for p in places_of_parts):
        raise ValueError("a video was evaluated by more than one process")
    return Detections.concat(parts).take(np.argsort(place, kind="stable"))


def external_scores(config: Config, label_ids: Mapping[str, int] | None, videos: Sequence[str]) -> dict[str, np.ndarray] | None:
    """The scores of test_cfg.ext_score_file, if it is set; a warning if they replace classes of the network.

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


def _finite(outputs: LevelOutputs) -> Tensor:
    """(B,) bool: whether all outputs of a video are finite."""
    tensors = (outputs.logits, outputs.offsets, *(outputs.boundaries or ())[:2])
    return torch.stack([torch.isfinite(tensor).flatten(1).all(1) for tensor in tensors]).all(0)


def _refuse_non_finite(finite_B: Tensor, samples: Sequence[Sample], dataset: VideoDataset) -> None:
    """UserError naming the videos of a batch with NaN or infinite outputs, which decoding drops without a word."""
    bad = [sample for sample, finite in zip(samples, finite_B.tolist(), strict=True) if not finite]
    if bad:
        largest = float(dataset.features(bad[0]).abs().max())
        videos = ", ".join(repr(sample.video_id) for sample in bad)
        raise UserError(f"video {videos}: the network's outputs are NaN or infinite; the features of {bad[0].video_id!r} reach "
                        f"{largest:.3g}: if those of training do not, extract them again, else the weights are at fault: use "
                        "those of another epoch, or test_cfg.weights: raw")


def _one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each computed before the previous one is yielded: the GPU works on it while the host uses the previous."""
    waiting: list[Item] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def score(detections: Detections, dataset: TalDataset | CorruptedDataset) -> Scores:
    """mAP and recall of detections against the ground truth of a dataset, at its tIoU thresholds."""
    return evaluate_detections(detections, dataset.ground_truth(), dataset.tious, label_names=dataset.label_names)
