"""The dataset of annotated videos: annotations + feature files + config -> samples and their features.

    dataset = TalDataset(config, config.train_split, training=True)
    sample = dataset.sample((epoch, i))   training: the crop of (seed, epoch, video), the same in every process
    sample = dataset.sample(i)            evaluation: the whole video
    feats = dataset.features(sample)      (T, C)

Everything that needs no feature values (missing files, widths, lengths, labels) is checked once, in the constructor.
"""
from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import random
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from libs.core.devices import resolve_device
from libs.core.errors import UserError
from libs.core.schema import Config, as_tuple
from libs.core.time_units import refuse_other_unit
from libs.datasets.annotations import Annotations, Video, load_annotations, without_duplicates
from libs.datasets.features.cache import FeatureCache, available_memory
from libs.datasets.features.store import Keys
from libs.datasets.features.streams import StreamReader
from libs.datasets.grid import is_resampled
from libs.datasets.presets import get_preset
from libs.datasets.sample import Extent, Sample, VideoDataset, measure
from libs.datasets.survey.parts import read_excluded, training_parts, unlabelled_ids
from libs.datasets.timing import timing_warnings
from libs.datasets.transforms import random_crop, resize, runs_inside, trim_to_features
from libs.utils.evaluation.metrics import refuse_empty
from libs.utils.evaluation.predictions import Detections, GroundTruth

UNKNOWN_DURATION_S = 1e8
AGNOSTIC = "action"  # class name of class-agnostic detections
LISTED = 10


class TalDataset(VideoDataset):
    """Videos of some subsets with their features; see the module's docstring.

    config: the whole configuration; subset: names of annotation subsets (in any case); training: apply the rules of training
    (trimming); modalities: the streams to read, from dataset.modalities, joined along channels in this order, None:
    model.modalities, and all channels of dataset.feat_folder if that is None too; speed: of whole videos (`Sample.at_speed`).
    Attributes: `videos` (tuple of Video, those with features), `missing_ids` (those without, left out),
    `unreachable_segments` (ground-truth segments in them), `unlabelled_ids` (training videos whose annotations are not used),
    `pseudo_labels` (Detections that annotate some of these, `annotate`),
    `label_ids` (class name -> id, whole file), `tious`, `empty_classes` (ids without any annotation, where the preset asks for
    them), `preset`.
    Raises UserError for bad annotations, bad features of the streams that are read, an empty subset, labels that do not fit
    num_classes, and training on videos without any segment.
    """

    def __init__(self, config: Config, subset: str | Iterable[str], training: bool,
                 modalities: Sequence[str] | None = None, speed: float = 1.0) -> None:
        self.config, self.training, self.speed = config, training, speed
        self._data = data = config.dataset
        self._where = f"{config.source}: " if config.source else ""
        self.preset = get_preset(config.dataset_name)
        self.subset = (subset.lower(),) if isinstance(subset, str) else tuple(name.lower() for name in subset)
        if training and config.distill.teachers:
            self.subset += config.unlabelled_split
        annotations = load_annotations(data.json_file, data.strict, self.preset.unlabelled, config.unlabelled_split)
        self.label_ids = annotations.label_ids
        self.tious = tuple(data.tiou_thresholds or self.preset.tious)
        self._single_class = is_single_class(config)
        self._check_labels(annotations.path)
        self.empty_classes = self._find_empty_classes(annotations)
        self._annotated = self._select(annotations)
        self.unlabelled_ids = unlabelled_ids(self._annotated, config) if training else frozenset()
        left_out = self._left_out(annotations)
        self.left_out_ids = tuple(v.id for v in self._annotated if v.id in left_out)
        self._annotated = tuple(v for v in self._annotated if v.id not in left_out)
        streams = config.model.modalities if modalities is None else modalities
        self._reader = StreamReader(_of_subset(config, self.subset[0]), streams)
        missing = {v.id: where for v in self._annotated if (where := self._reader.missing(v.id)) is not None}
        self.videos: tuple[Video, ...] = tuple(v for v in self._annotated if v.id not in missing)
        self.missing_ids = tuple(missing)
        self.unreachable_segments = sum(len(v.segments) for v in self._annotated if v.id in missing)
        if missing:
            self._report_missing(list(missing.values()))
        self._extents = [self._measured(annotations.path, video) for video in self.videos]
        self._check_segments(annotations.path)
        self._check_memory()
        for text in timing_warnings(self._data, self._where, self.subset, self.videos, self._extents, self._reader.grid_folders):
            warnings.warn(text, stacklevel=2)
        self.pseudo_labels = Detections.empty()
        self._kept: FeatureCache | None = None
        self._reader.close()  # workers are forked later and open their own

    def sample(self, index: int | tuple[int, int]) -> Sample:
        """`i`: the whole video; `(epoch, i)`: the training crop of that epoch.  Features are not read."""
        if isinstance(index, tuple):
            epoch, i = index
            rng, drop = crop_rng(self.config.init_rand_seed, epoch, self.videos[i].id), self.config.train_cfg.frame_drop
            speeds = self._data.speeds
            crop = self.crop(self._whole(i, speeds[0] if len(speeds) == 1 else rng.choice(speeds)), rng)
            return dataclasses.replace(crop, hidden=runs_inside(crop.segments.numpy(), crop.steps, probability=drop.probability,
                                                                share=drop.share, rng=rng)) if drop.probability > 0 else crop
        return self._whole(index, self.speed)

    def _whole(self, index: int, speed: float) -> Sample:
        video, extent = self.videos[index], self._extents[index]
        grid, length = extent.grid, extent.length
        segments, labels = grid.seconds_to_grid(video.segments), video.labels
        labelled = video.id not in self.unlabelled_ids
        if not labelled:
            segments, labels = segments[:0], labels[:0]
        if self._single_class:
            labels = np.zeros_like(labels)
        if self.training and self.preset.trim:
            end, share = (length, 0.0) if self.preset.trim_any else (length + grid.offset, self._data.trunc_thresh)
            segments, labels = trim_to_features(segments, labels, end, share)
        duration_s = video.duration_s if math.isfinite(video.duration_s) else UNKNOWN_DURATION_S
        sample = Sample(index, video.id, grid, duration_s, length, length, torch.from_numpy(np.array(segments, np.float32)),
                        torch.from_numpy(np.array(labels, np.int64)), labelled=labelled)
        return sample if speed == 1 else sample.at_speed(speed)

    def crop(self, whole: Sample, rng: random.Random) -> Sample:
        """The training crop of a whole video that `rng` draws (SPEC item 10)."""
        data = self._data
        offset = whole.grid.offset if data.crop_offset else 0.0
        start, steps, segments, labels = random_crop(
            whole.steps, whole.segments.numpy(), whole.labels.numpy(), max_seq_len=data.max_seq_len,
            trunc_thresh=data.trunc_thresh, offset=offset, crop_ratio=data.crop_ratio, rng=rng, align=data.crop_align)
        return dataclasses.replace(whole, start=start, steps=steps, segments=torch.from_numpy(segments),
                                   labels=torch.from_numpy(labels))

    def read(self, sample: Sample, out: torch.Tensor) -> None:
        start, stop = sample.start, sample.start + sample.steps
        if sample.speed != 1:
            whole = self._whole(sample.index, 1.0)
            feats = out.new_empty(whole.steps, self.channels)
            self.read(whole, feats)
            out.copy_(resize(feats, sample.source_length)[start:stop])
        elif self._kept is not None:
            out.copy_(self._kept[sample.index][start:stop], non_blocking=out.is_cuda)
        else:
            self._read_file(sample.index, start, stop, out)

    def annotate(self, detections: Detections) -> None:
        """Take detections, none of length 0, as the annotations of their videos, which count as labelled from now on."""
        self.pseudo_labels = detections
        times = np.stack([detections.t_start, detections.t_end], axis=1)
        rows = {video: detections.video_id == video for video in np.unique(detections.video_id).tolist()}
        self.videos = tuple(dataclasses.replace(v, segments=times[rows[v.id]], labels=detections.label[rows[v.id]])
                            if v.id in rows else v for v in self.videos)
        self.unlabelled_ids = self.unlabelled_ids.difference(rows)

    def keep(self, device: torch.device | None = None) -> None:
        """Read every video now and keep it in memory, as loader.cache is set; call it before the loaders are made.

        device: of the training, for loader.cache: device (None: that of the configuration).  A second call does nothing.
        Raises UserError for unusable features, and when they do not fit into the available memory.
        """
        loader = self.config.loader
        if loader.cache == "none" or self._kept is not None:
            return
        place = torch.device("cpu")
        if loader.cache == "device":
            place = device or torch.device(resolve_device(self.config))
        self._kept = FeatureCache(self._read_whole, [e.length for e in self._extents], self.channels, place,
                                  f"{self._where}loader.cache: {loader.cache}", max(loader.num_workers, 1))
        self._reader.close()

    @property
    def feature_device(self) -> torch.device:
        return self._kept.device if self._kept is not None else torch.device("cpu")

    @property
    def kept(self) -> bool:
        return self._kept is not None

    @property
    def channels(self) -> int:
        return self._reader.channels

    @property
    def annotated_ids(self) -> tuple[str, ...]:
        """The ids of all videos that count, videos without features included."""
        return tuple(video.id for video in self._annotated)

    @property
    def class_agnostic(self) -> bool:
        """True if evaluation too treats all segments as one class: a single class, and no external class scores."""
        return self._single_class and not self.config.test_cfg.ext_score_file

    @property
    def label_names(self) -> dict[int, str]:
        """Class id -> name: the classes of the whole annotation file, or the one class if `class_agnostic`."""
        if self.class_agnostic:
            return {0: AGNOSTIC}
        return {number: name for name, number in self.label_ids.items()}

    def lengths(self) -> np.ndarray:
        if self.speed != 1:
            return np.array([self.sample(i).steps for i in range(len(self.videos))], np.int64)
        return np.array([e.length for e in self._extents], np.int64)

    def ground_truth(self) -> GroundTruth:
        """Every segment of the subset, in file order, videos without features included.

        Labels are 0 if the evaluation is `class_agnostic`.
        """
        return ground_truth_of(self._annotated, self.config)

    def _read_file(self, index: int, start: int, stop: int, out: torch.Tensor) -> None:
        extent = self._extents[index]
        self._reader.read(self.videos[index].id, extent.file_length, extent.length, start, stop, out)

    def _read_whole(self, index: int, out: torch.Tensor) -> None:
        self._read_file(index, 0, self._extents[index].length, out)

    def _check_labels(self, path: str) -> None:
        classes, found = self._data.num_classes, len(self.label_ids)
        if self._single_class:
            return
        key = f"{self._where}dataset.num_classes"
        for name, number in self.label_ids.items():
            if number >= classes:
                raise UserError(f"{path}: label_id {number} ({name!r}) needs at least {number + 1} classes, but {key} is "
                                f"{classes}; raise it, or correct the annotation")
        if self.preset.all_classes and found != classes:
            raise UserError(f"{path}: names {found} classes, but {key} is {classes}; dataset {self.preset.name!r} needs "
                            "them equal (dataset_name: generic accepts classes without annotations)")

    def _find_empty_classes(self, annotations: Annotations) -> tuple[int, ...]:
        if not self.preset.find_empty_classes:
            return ()
        return tuple(sorted(set(range(self._data.num_classes)) - set(annotations.label_ids.values())))

    def _select(self, annotations: Annotations) -> tuple[Video, ...]:
        counts = annotations.subset_counts()
        for name in self.subset or ("",):
            if name not in counts:
                found = ", ".join(f"{subset} ({n})" for subset, n in counts.items())
                raise UserError(f"{annotations.path}: has no video of subset {name!r}; it has {found}: correct "
                                f"{self._where}{self._split_key(name)}")
        videos = annotations.of_subset(self.subset)
        if self.preset.needs_duration or self._data.feat_stride <= 0:
            reason = f"dataset_name: {self.preset.name}" if self.preset.needs_duration else "dataset.feat_stride <= 0"
            for video in videos:
                if not math.isfinite(video.duration_s):
                    raise UserError(f"{annotations.path}: video {video.id!r}: duration is missing; {reason} needs it, add it")
        return tuple(without_duplicates(v) if self.preset.drop_duplicates else v for v in videos)

    def _split_key(self, name: str) -> str:
        return "unlabelled_split" if name in self.config.unlabelled_split else "train_split" if self.training else "val_split"

    def _left_out(self, annotations: Annotations) -> set[str]:
        """Videos that this run leaves out: in evaluation those of test_cfg.exclude; in training those of train_cfg.leave_out, and
        without teachers the unlabelled ones."""
        if not self.training and self.config.test_cfg.exclude:
            return set(read_excluded(self.config.test_cfg.exclude, annotations.videos, annotations.path))
        left_out = set() if self.config.distill.teachers else set(self.unlabelled_ids)
        if self.training and self.config.train_cfg.leave_out is not None:
            part, parts = self.config.train_cfg.leave_out
            left_out |= {v for v, p in training_parts(self.config, annotations, parts).items() if p == part}
        return left_out

    def _report_missing(self, missing: list[tuple[str, Keys]]) -> None:
        """UserError, or a warning with dataset.missing: skip; missing: path and configuration keys of each video."""
        count = f"{len(missing)} of {len(self._annotated)} videos of subset {', '.join(self.subset)}"
        rest = f", ... ({len(missing)} in all)" if len(missing) > LISTED else ""
        path, keys = missing[0]
        remedy = f"check {keys.folder}, file_prefix and file_ext"
        if self._data.missing != "skip":
            paths = ", ".join(path for path, _ in missing[:LISTED])
            raise UserError(f"{self._where}{keys.section}.{keys.folder}: {count} have no features: {paths}{rest}; {remedy}, or "
                            "set dataset.missing: skip to leave them out")
        if not self.videos:
            raise UserError(f"{self._where}{keys.section}.{keys.folder}: none of the {count} has features (first: {path}); "
                            f"{remedy}")
        fate = (f"are left out, with their {self.unreachable_segments} segments" if self.training else
                f"get no predictions, so that their {self.unreachable_segments} ground-truth segments count as missed")
        warnings.warn(f"{count} have no features and {fate}: "
                      f"{', '.join(self.missing_ids[:LISTED])}{rest}", stacklevel=3)

    def _measured(self, path: str, video: Video) -> Extent:
        """Length and grid of a video, from headers only; `path`: of the annotations."""
        data = self._data
        fps = data.default_fps if data.default_fps is not None else video.fps
        if fps is None:
            lacking = sum(v.fps is None for v in self.videos)
            raise UserError(f"{path}: video {video.id!r}: fps is missing ({lacking} of {len(self.videos)} videos of subset "
                            f"{', '.join(self.subset)} lack it); set dataset.default_fps, or add it")
        extent = measure(self._reader.path(video.id), self._reader.length(video.id), fps, video.duration_s, data,
                         "raise it, or set dataset.force_upsampling: true")
        if extent.mismatch and not self.preset.trim:
            raise UserError(f"{extent.mismatch}; check dataset.feat_stride ({data.feat_stride:g}), dataset.num_frames "
                            f"({data.num_frames:g}), the fps (dataset.default_fps or the annotation's) and the video's duration "
                            f"in {path}")
        return extent

    def _check_segments(self, path: str) -> None:
        """UserError for times in another unit, also where the annotations lack durations, and for training on nothing."""
        spans = {v.id: v.duration_s if math.isfinite(v.duration_s) else e.end_s
                 for v, e in zip(self.videos, self._extents, strict=True)}
        refuse_other_unit(path, {v.id: v.segments for v in self.videos}, spans,
                          {v.id: e.grid.fps for v, e in zip(self.videos, self._extents, strict=True)})
        labelled = (video for video in self.videos if video.id not in self.unlabelled_ids)
        if self.training and not self.config.distill.teachers and not any(np.diff(v.segments).any() for v in labelled):
            raise UserError(f"{path}: the {len(self.videos)} videos of {self._where}train_split ({', '.join(self.subset)}) have "
                            "no segment to learn from; annotate them, or choose another subset")

    def _check_memory(self) -> None:
        """UserError for a video that must be read whole and does not fit into the available memory."""
        resampled = is_resampled(self._data)
        if self.training and not resampled and set(self._data.speeds) == {1.0}:
            return
        whole = [e.file_length if resampled else e.length for e in self._extents]
        needed, available = 4 * self.channels * max(whole), available_memory(torch.device("cpu"))
        if needed > available:
            video = self.videos[whole.index(max(whole))]
            raise UserError(f"{self._reader.path(video.id)}: has {max(whole)} feature vectors of {self.channels} channels, "
                            f"{needed / 2**30:.2f} GiB, but {available / 2**30:.2f} GiB of memory are available; split the video")


def _of_subset(config: Config, subset: str) -> Config:
    """The configuration with the feature folders of a subset (dataset.subset_folders)."""
    data = config.dataset
    if not data.subset_folders:
        return config
    folders = tuple(os.path.join(folder, subset) for folder in as_tuple(data.feat_folder))
    return dataclasses.replace(config, dataset=dataclasses.replace(data, feat_folder=folders))


def is_single_class(config: Config) -> bool:
    """Whether every label counts as class 0."""
    return get_preset(config.dataset_name).class_agnostic and config.dataset.num_classes == 1


def ground_truth_of(videos: Sequence[Video], config: Config) -> GroundTruth:
    """`TalDataset.ground_truth` of these videos; UserError if they have no segment."""
    ground_truth = GroundTruth.from_videos(((v.id, v.segments, v.labels) for v in videos), config.dataset.json_file)
    subsets = ", ".join(sorted({v.subset for v in videos}))
    refuse_empty(ground_truth, f"{config.dataset.json_file}: subset {subsets}")
    if is_single_class(config) and not config.test_cfg.ext_score_file:
        return dataclasses.replace(ground_truth, label=np.zeros_like(ground_truth.label))
    return ground_truth


def crop_rng(seed: int, epoch: int, video_id: str) -> random.Random:
    """Generator of the training window of a video in an epoch: a hash of the three, the same in every process."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{video_id}".encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "little"))
