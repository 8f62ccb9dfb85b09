"""Keys of the sections dataset and loader."""
from __future__ import annotations

# ruff: noqa: E501, RUF009  (a table: one key per line; `key` makes an immutable field)
from dataclasses import dataclass
from typing import Literal

from libs.core.coerce import key
from libs.core.schema.values import Ints, Strings

FPS_LIMITS = (1e-3, 1e6)  # frames per second
MOST_FRAMES = 1_000_000  # of a stride or a window


@dataclass(frozen=True)
class FolderModality:
    """A stream of features in files of its own; listed in dataset.modalities."""

    folder: str = key("", "folder of feature files, or one .h5/.hdf5 file (required)")
    dim: int = key(0, "channels of these files (required)", above=0)
    file_prefix: str | None = key(None, "text before the video id in a file's name")
    file_ext: str | None = key(".npy", "extension of these files")
    resample: Literal["none", "linear"] = key("none", "none: same length as the other features; linear: stretched to the feature grid (audio windows)")


Modality = tuple[int, int] | FolderModality
Setting = bool | int | float | str | None | tuple[int | float, ...]


@dataclass(frozen=True)
class ExtractorConfig:
    """What made the features; dataset.extractor."""

    name: str = key("", "extractor of tools/extract_features.py (required)")
    settings: dict[str, Setting] = key(None, "its settings that features depend on (required)")
    streams: dict[str, dict[str, Setting]] = key(None, "its streams: channels, sha256 of the weights, parameters of the flow (required)")


@dataclass(frozen=True)
class DatasetConfig:
    json_file: str = key("", "annotation JSON in the ActivityNet layout (required)")
    feat_folder: Strings = key("", "folder of feature files, or one .h5/.hdf5 file; several folders are joined along channels (required)")
    file_prefix: str | None = key(None, "text before the video id in a feature file's name")
    file_ext: str | None = key(".npy", "extension of feature files: .npy, .npz, .h5, .hdf5, .pt or .pkl")
    feat_stride: float = key(16.0, "frames between two feature vectors; <= 0: the video is stretched to its feature count", high=MOST_FRAMES)
    num_frames: float = key(32.0, "frames that one feature vector sees", above=0, high=MOST_FRAMES)
    default_fps: float | None = key(None, "frames per second of every video; null: the annotation's own fps", low=FPS_LIMITS[0], high=FPS_LIMITS[1])
    input_dim: Ints = key(2304, "channels of the feature files (a list: one model input per entry)", above=0, high=1_000_000)
    num_classes: int = key(97, "number of action classes", above=0)
    downsample_rate: int = key(1, "keep every n-th feature vector", low=1)
    max_seq_len: int = key(2304, "longest training sequence, feature vectors", above=0)
    trunc_thresh: float = key(0.5, "share of a segment that must lie inside a training crop for it to be kept", low=0, high=1)
    crop_ratio: tuple[float, float] | None = key(None, "random training crop, [low, high] share of the length", above=0, high=1)
    force_upsampling: bool = key(False, "resize features to max_seq_len steps (ActivityNet)")
    missing: Literal["error", "skip"] = key("error", "(ours) a video without features: stop with the list, or leave it out with a warning")
    strict: bool = key(False, "(ours) refuse annotated segments outside their video or of zero length, and labels that differ in spelling only (case, spaces, hyphens, Unicode composition)")
    tiou_thresholds: tuple[float, ...] | None = key(None, "(ours) tIoU thresholds of the mAP; null: those of the preset", above=0, high=1)
    modalities: dict[str, Modality] | None = key(None, "(ours) named streams: channel ranges of feat_folder, e.g. {rgb: [0, 1024], flow: [1024, 2048]}, or folders of their own, e.g. audio: {folder: ./vggish, dim: 128, resample: linear}", low=0)
    feature_gflop: dict[str, float] | None = key(None, "(ours) GFLOP behind one feature vector of each of the modalities, e.g. {rgb: 55.6, flow: 51.2} (I3D, 16 frames, one crop); reports of cost then show what features cost beside the network; null: not shown", low=0)
    extractor: ExtractorConfig | None = key(None, "(ours) what made the features, with all settings and the checksums of its weights, for tools/predict.py on videos; train.py takes it from the provenance.json in feat_folder; null: from there, if it is there")
    subset_folders: bool = key(False, "(ours) the feature files of a subset (the first of train_split or val_split) lie in a folder of its name inside feat_folder, as HACS features are published")
    crop_offset: bool = key(True, "(ours) segments may reach beyond a training crop by half of what a feature vector sees, as published by ActionFormer; false: they end with the crop")
    speeds: tuple[float, ...] = key((1.0,), "(ours) speeds of training videos, e.g. [0.8, 1, 1.25]: one of them is drawn per video and epoch, features are interpolated linearly over time, and segments move along; a speed may be listed twice to be drawn more often", low=0.1, high=10)
    crop_align: int = key(1, "(ours) training crops start at multiples of this many feature vectors; cached teacher outputs need the coarsest level's stride", low=1)


@dataclass(frozen=True)
class LoaderConfig:
    batch_size: int = key(8, "training videos per process and forward pass; a step sees this many times processes times opt.accumulation_steps", low=1)
    num_workers: int = key(4, "data-loader workers (0: the main process reads)", low=0)
    padding: Literal["shortest", "max_seq_len"] = key("shortest", "(ours) training batches: as short as the outputs allow, or always max_seq_len (the published way)")
    pad_multiple: int = key(1, "(ours) training batches padded further, to a multiple of so many feature vectors where the outputs allow it: fewer shapes for train_cfg.cuda_graphs; 1: off", low=1)
    bucket: int = key(0, "(ours) training batches of videos of similar length: in every so many batches of an epoch videos are sorted by padded length and the batches shuffled; less padding, another order of videos; 0: off", low=0)
    cache: Literal["none", "ram", "device"] = key("none", "(ours) features in training and its evaluations: read from files in every epoch, or read once and kept as float32 in ram or on the training device; the numbers are the same")
