"""Inference on your own videos or their features, in Python.

    model = load_model("pretrained/demo_student.pth.tar")
    found = model.predict("pretrained/demo_video.npy", fps=25)       or "video.mp4", where the features' extractor is known
    print(found.above(0.3))                      # a table; .t_start, .t_end, .label, .score are columns; .save("out.srt")
"""
from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np
import torch
from torch import Tensor

from libs.core.config import from_dict, load_config, to_dict, with_overrides
from libs.core.devices import resolve_device
from libs.core.errors import UserError, note
from libs.core.files import is_file, is_folder
from libs.core.schema import Config
from libs.datasets.annotations import load_annotations
from libs.datasets.convert.video_info import read_video_info, with_bare_names
from libs.datasets.dataset import AGNOSTIC, is_single_class
from libs.datasets.feature_videos import FeatureArray, FeatureFile, FeatureVideos, Timing, find_videos, raw_videos
from libs.datasets.features.provenance import VideoTiming
from libs.datasets.labels import read_labels
from libs.datasets.presets import get_preset
from libs.datasets.video.extract import refuse_failed
from libs.datasets.video.on_demand import extractor_for, features_beside
from libs.engine.inference.predict import predict
from libs.engine.inference.show import write_found
from libs.engine.runs.checkpoint import (
    WEIGHTS,
    Checkpoint,
    check_label_ids,
    find_checkpoint,
    load_checkpoint,
    own_config,
    own_labels,
)
from libs.engine.runs.network import load_network
from libs.engine.runs.run_folder import note_better
from libs.engine.runtime.precision import check_precision
from libs.modeling.model import LocPointTransformer
from libs.utils.evaluation import thresholds
from libs.utils.evaluation.predictions import Detections
from libs.utils.evaluation.writers import plan_output
from libs.utils.progress import Progress, no_progress
from libs.utils.tables import format_table

if TYPE_CHECKING:
    import pandas

Path_ = Union[str, os.PathLike]
Features = Union[Path_, np.ndarray, Tensor]


class Row(NamedTuple):
    """One detection: seconds, class name, score."""

    video_id: str
    t_start: float
    t_end: float
    label: str
    score: float


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Detections of some videos, descending score inside a video.

    Columns (N,): video_id str, t_start and t_end float64 seconds, label (class names, str), label_id int64, score float64.
    `videos`: id -> duration in seconds of every video that was processed, also those without detections; `failed`: a line for
    each video whose features could not be extracted; `media`: id -> file of those that are videos; `source`: the checkpoint.
    Iterating gives rows.
    """

    detections: Detections
    label_names: dict[int, str]
    videos: dict[str, float]
    failed: tuple[str, ...] = ()
    media: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""

    @property
    def video_id(self) -> np.ndarray:
        return self.detections.video_id

    @property
    def t_start(self) -> np.ndarray:
        return self.detections.t_start

    @property
    def t_end(self) -> np.ndarray:
        return self.detections.t_end

    @property
    def label_id(self) -> np.ndarray:
        return self.detections.label

    @property
    def label(self) -> np.ndarray:
        return np.array([self.label_names.get(i, str(i)) for i in self.detections.label.tolist()], dtype=np.str_)

    @property
    def score(self) -> np.ndarray:
        return self.detections.score

    def __len__(self) -> int:
        return len(self.detections)

    def __iter__(self) -> Iterator[Row]:
        columns = (self.video_id, self.t_start, self.t_end, self.label, self.score)
        return (Row(*row) for row in zip(*(c.tolist() for c in columns), strict=True))

    def to_dataframe(self) -> pandas.DataFrame:
        """The columns video_id, t_start, t_end, label, label_id and score as a table, a row per detection, in the same order."""
        import pandas
        columns = ("video_id", "t_start", "t_end", "label", "label_id", "score")
        return pandas.DataFrame({name: getattr(self, name) for name in columns})

    def of(self, video_id: str) -> Predictions:
        """The rows of one video; UserError for a video that was not processed."""
        if video_id not in self.videos:
            raise UserError(f"video {video_id!r} is not among the {len(self.videos)} videos of these predictions")
        rows = self.detections.take(self.detections.video_id == video_id)
        return dataclasses.replace(self, detections=rows, videos={video_id: self.videos[video_id]}, failed=())

    def above(self, threshold: float, per_class: Mapping[str, float] | None = None, source: str = "per_class") -> Predictions:
        """The rows with at least this score, or the score of their class in `per_class`; UserError for an unknown class name."""
        kept = thresholds.above(self.detections, threshold, per_class or {}, self.label_names, source)
        return dataclasses.replace(self, detections=kept)

    def save(self, path: Path_, fmt: str | None = None) -> tuple[Path, ...]:
        """Write a .json, .csv(.gz), .pkl, .srt, .vtt, .eaf, .html or .mp4 file, or `fmt` files into a folder; returns the files.

        html: a page with the timeline of every video; mp4: the video with the labels of its best detections, without sound.  Each
        file is written atomically.  Raises UserError as `libs.utils.evaluation.writers.plan_output`, and as `write_found`.
        """
        output = plan_output(path, fmt, list(self.videos))
        write_found(output, self.detections, self.label_names, self.videos, self.media, self.source)
        return output.files

    def __str__(self) -> str:
        return format_table([(r.video_id, r.t_start, r.t_end, f"{r.score:.3f}", r.label) for r in self],
                            ("video", "start s", "end s", "score", "label"), left=["label"])


@dataclasses.dataclass(frozen=True, eq=False)
class Localizer:
    """A trained network with its configuration and class names; made by `load_model`.

    given: stride, num_frames and fps where the caller of `load_model` set them.
    """

    model: LocPointTransformer
    config: Config
    label_names: dict[int, str]
    device: torch.device
    checkpoint: Path
    epoch: int
    weights: str
    given: VideoTiming

    @property
    def no_predictions(self) -> Predictions:
        """Predictions of no video, with the class names: for checking thresholds."""
        return Predictions(Detections.empty(), self.label_names, {})

    def predict(self, features: Features | Sequence[Features] | Mapping[str, Features], *, batch_size: int | None = None,
                workers: int = 0, progress: Progress = no_progress, cache: bool = True, features_folder: Path_ | None = None,
                **options: Any) -> Predictions:
        """Detections of the videos in `features`; `features` and options as for `videos`, the others as for `predict_videos`.

        Equal to eval.py's for the same videos, fps and durations.  progress(videos done, of how many) is called per batch.
        cache: keep the features of videos, in features_folder or beside them.
        """
        with features_place(features_folder, cache) as folder:
            return self.predict_videos(self.videos(features, features_folder=folder, **options), batch_size, workers, progress)

    def videos(self, features: Features | Sequence[Features] | Mapping[str, Features], *, fps: float | None = None,
               duration: float | None = None, info: Path_ | None = None, streams: Mapping[str, str] | None = None,
               join: Sequence[str] = (), extractor: str | None = None, settings: Mapping[str, Any] | None = None,
               features_folder: Path_ | None = None, progress: Progress | None = no_progress) -> FeatureVideos:
        """The videos in `features`, checked but not read; features of video files are extracted, unless they are there already.

        features: a feature file, a folder of them, an .h5 file with a dataset per video, a video file or a folder of them, an
        array or tensor (T, C), or a list of these, or id -> array.  fps: frames per second; duration: of each video in seconds;
        info: file with both per video, as for `read_video_info`; None: as in `Timing`; streams, join: as `FeatureVideos`.
        For video files: extractor: NAME, NAME:ARGUMENT or PRESET, None: that of the training; settings: of it, by name; both as
        for `extractor_for`; features_folder, progress (None: lines): as for `features_beside`.
        Raises UserError for arguments that do not fit together, or contradict the provenance.json beside the features, and if
        the features of no video can be extracted.
        """
        by_video = {} if info is None else with_bare_names(read_video_info(info))
        timing = Timing(self.given.fps if fps is None else fps, duration, by_video, self.given.stride, self.given.num_frames,
                        "info" if info is None else str(info))
        named = _named(features)
        raw = [path for _, value in named if isinstance(value, (str, os.PathLike)) for path in raw_videos(value)]
        made: dict[str, Path] = {}
        failed: dict[str, str] = {}
        if raw:
            chosen = extractor_for(self.config, str(self.checkpoint), extractor, {**(settings or {}), "device": str(self.device)})
            made, failed = features_beside(raw, chosen, features_folder, progress)
        elif extractor is not None or settings:
            raise UserError("--extractor and its settings are for videos, and no video is named; leave them out, or name one")
        videos = _as_videos(named, self.config, made)
        if not videos:
            refuse_failed(failed.values(), len(raw))
        media = {file.stem: path for path, file in made.items()}
        return FeatureVideos(videos, self.config, timing, streams, join, tuple(failed.values()), media)

    def predict_videos(self, videos: FeatureVideos, batch_size: int | None = None, workers: int = 0,
                       progress: Progress = no_progress) -> Predictions:
        """Detections of videos, `batch_size` per forward pass (None: test_cfg.batch_size), read by `workers` processes."""
        config = with_overrides(self.config, [f"loader.num_workers={workers}",
                                              *([] if batch_size is None else [f"test_cfg.batch_size={batch_size}"])])
        check_precision(config.test_cfg.precision, self.device, config.source, "test_cfg.precision")
        found = predict(self.model, videos, config, self.device, progress)
        return Predictions(found, self.label_names, videos.durations_s, videos.failed, videos.media, str(self.checkpoint))


def load_model(path: Path_, *, config: Path_ | None = None, labels: Path_ | None = None, weights: str | None = None,
               epoch: int | None = None, device: str = "auto", overrides: Sequence[str] = (),
               stride: float | None = None, num_frames: float | None = None) -> Localizer:
    """Load a checkpoint file, or the last (or the given) epoch of a run's folder, for prediction.

    config: YAML for a checkpoint that holds none (published ones); labels: file of class names (see `read_labels`); weights:
    `ema` or `raw` (None: test_cfg.weights); device: cpu, cuda, cuda:N, or auto: CUDA where there is one; overrides:
    "dotted.key=value"; stride, num_frames: of the features in frames, where they differ from those of training (one warning).
    Raises UserError for arguments that do not fit together.
    """
    checkpoint = load_checkpoint(find_checkpoint(path, epoch))
    if epoch is None and is_folder(path):
        note_better(checkpoint)
    if device == "auto" and not torch.cuda.is_available():
        device = "cpu"
    settings = with_feature_grid(config_for(checkpoint, config, overrides), checkpoint, stride, num_frames)
    settings = with_overrides(settings, [f"devices={device}"])
    place = torch.device(resolve_device(settings))
    which = weights or settings.test_cfg.weights
    if which not in WEIGHTS:
        raise UserError(f"weights: {which!r} are not known; use {' or '.join(WEIGHTS)}")
    model = load_network(settings, checkpoint, which)
    model.requires_grad_(False).eval().to(place)
    names = label_names_for(checkpoint, settings, labels)
    set_here = {text.partition("=")[0].strip() for text in overrides}
    data = settings.dataset
    given = VideoTiming(data.default_fps if "dataset.default_fps" in set_here else None, None,
                        data.feat_stride if stride is not None or "dataset.feat_stride" in set_here else None,
                        data.num_frames if num_frames is not None or "dataset.num_frames" in set_here else None)
    return Localizer(model, settings, names, place, checkpoint.path, checkpoint.epoch, which, given)


def config_for(checkpoint: Checkpoint, path: Path_ | None = None, overrides: Sequence[str] = (),
               remedy: str = "--config, e.g. --config configs/thumos_i3d.yaml") -> Config:
    """The configuration for a checkpoint: the file `path`, else the one it holds, else config.yaml beside it; with `overrides`.

    Its `source` names the file.  Raises UserError when there is none; `remedy`: how the user names one.
    """
    if path is not None:
        return load_config(path, overrides)
    config = own_config(checkpoint)
    beside = checkpoint.path.parent / "config.yaml"
    if config is not None:
        return with_overrides(from_dict(to_dict(config), str(checkpoint.path)), overrides)
    if is_file(beside):
        return load_config(beside, overrides)
    raise UserError(f"{checkpoint.path}: holds no configuration (another program wrote it), and there is no {beside}; name one "
                    f"with {remedy}")


def label_names_for(checkpoint: Checkpoint, config: Config, path: Path_ | None = None) -> dict[int, str]:
    """Class id -> name: from the file `path`, else the checkpoint, else dataset.json_file if it exists, else the ids as text,
    with a note.  Raises UserError as `read_labels`."""
    classes = config.dataset.num_classes
    preset = get_preset(config.dataset_name)
    if path is not None:
        given = read_labels(path, classes)
        check_label_ids(checkpoint, given, path)
        return given
    if is_single_class(config) and not config.test_cfg.ext_score_file:
        return {0: AGNOSTIC}
    names = own_labels(checkpoint)
    if names is None and is_file(config.dataset.json_file):
        ids = load_annotations(config.dataset.json_file, False, preset.unlabelled, config.unlabelled_split).label_ids
        names = {number: name for name, number in ids.items()}
    if names is None:
        note(f"{checkpoint.path}: names no classes, so labels are ids from 0 to {classes - 1}; --labels gives them names")
        names = {}
    return {**{i: str(i) for i in range(classes)}, **names}


def with_feature_grid(config: Config, checkpoint: Checkpoint, stride: float | None, num_frames: float | None) -> Config:
    """The configuration with this stride and window of the features (None: as it is); a warning where that changes it."""
    wanted = {"feat_stride": stride, "num_frames": num_frames}
    changed = {k: v for k, v in wanted.items() if v is not None and v != getattr(config.dataset, k)}
    if not changed:
        return config
    changes = "; ".join(f"dataset.{k}: {getattr(config.dataset, k):g} -> {v:g}" for k, v in changed.items())
    note(f"warning: {checkpoint.path}: was trained on other features: {changes}; durations look different to it, so expect "
         "worse results")
    return with_overrides(config, [f"dataset.{k}={v}" for k, v in changed.items()])


@contextlib.contextmanager
def features_place(folder: Path_ | None, cache: bool) -> Iterator[Path_ | None]:
    """The folder for features of videos, None: beside them; without `cache` one that is removed at the end."""
    if cache:
        yield folder
    elif folder is not None:
        raise UserError(f"--features-folder {folder}: --no-cache keeps no features; leave one of them out")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            yield temporary


def _named(features: Any) -> list[tuple[str, Any]]:
    """(name of an array, path or array) of each entry."""
    if isinstance(features, Mapping):
        return [(str(name), value) for name, value in features.items()]
    if isinstance(features, (str, os.PathLike, np.ndarray, Tensor)):
        return [("video", features)]
    if isinstance(features, Sequence):
        return [(f"video_{i}", value) for i, value in enumerate(features)]
    raise UserError(f"features: a {type(features).__name__}; give a path, an array (T, C), or a list or dict of these")


def _as_videos(named: list[tuple[str, Any]], config: Config, made: Mapping[str, Path]) -> list[FeatureFile | FeatureArray]:
    """The videos in their order; made: the feature file of each video file that has one."""
    videos: list[FeatureFile | FeatureArray] = []
    for name, value in named:
        if not isinstance(value, (str, os.PathLike)):
            videos.append(FeatureArray(name, _array(value, name)))
        elif raw := raw_videos(value):
            files = [made[path] for path in raw if path in made]
            videos += [FeatureFile(file.stem, str(file.parent), "", file.suffix) for file in files]
        else:
            videos += find_videos([value], config)
    return videos


def _array(value: Any, name: str) -> np.ndarray:
    try:
        return value.detach().float().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"features of {name!r}: a {type(value).__name__}; give a path or an array (T, C)") from error
