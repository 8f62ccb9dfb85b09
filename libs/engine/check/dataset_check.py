"""Checks a dataset before training: annotations, features, whether they fit each other, a configuration, the pyramid.

    report = check_dataset("my.json", ["features"], CheckOptions(config_path="configs/my.yaml"))
    report.problems, report.suggestion

Checks of a single part are in libs/datasets (annotations, survey/), coverage and suggest; those here need several parts.
"""
from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from libs.core.config import load_config
from libs.core.errors import UserError
from libs.core.problems import Problems
from libs.core.relations.data import repeated_folder
from libs.core.schema import Config, as_tuple
from libs.core.time_units import FAR_OUTSIDE, LEAST_VIDEOS, REMEDIES, other_units
from libs.datasets.annotations import Annotations, Video, load_annotations
from libs.datasets.features.provenance import FILE_NAME as PROVENANCE
from libs.datasets.features.provenance import Provenance, read_provenance
from libs.datasets.features.store import FeatureStore
from libs.datasets.grid import Grid, expected_length, implausible_length, length_ratio, plan_grid
from libs.datasets.presets import PRESETS
from libs.datasets.survey.checks import (
    Splits,
    check_fps,
    check_ids,
    check_labels,
    check_subsets,
    check_times,
    correct_fps,
    guess_splits,
)
from libs.datasets.survey.features import FileFacts, Layout, check_orphans, guess_layout, survey_features
from libs.datasets.survey.subjects import check_subjects
from libs.engine.check.coverage import check_coverage, segments_on_grid
from libs.engine.check.suggest import DataFacts, GridGuess, guess_grid, suggest_config, suggest_yaml
from libs.utils.progress import terminal_bar

SLACK_STEPS, SLACK_SHARE = 10, 0.05  # as for THUMOS14: durations of containers differ a little from the frames decoded
SLOWEST_S = 2.0  # seconds between two feature vectors
DURATION_UNITS = ("unit-frames", "unit-milliseconds")
GUESSED = "guessed from durations and files"
MAX_SHARE_CROPPED = 0.5  # a larger share of training videos longer than max_seq_len gives a warning


@dataclass(frozen=True)
class CheckOptions:
    """Options besides the two paths; None: from the configuration, the provenance file or the data."""

    config_path: str | None = None
    feat_stride: float | None = None
    num_frames: float | None = None
    fps: float | None = None
    prefix: str | None = None
    extension: str | None = None
    read_values: bool = True
    progress: bool = True
    overrides: Sequence[str] = ()


@dataclass
class Report:
    """All problems and the data that they were found in.

    fps: by video id, where known; files: feature files by video id, the readable ones; grid: stride and window of the features,
    from grid_source; config: the user's; coverage: as from `check_coverage`; suggestion: a configuration as YAML (None: too
    little data).
    """

    problems: Problems
    annotations: Annotations
    splits: Splits
    features: list[str]
    config: Config | None = None
    fps: dict[str, float] = field(default_factory=dict)
    files: dict[str, FileFacts] = field(default_factory=dict)
    grid: GridGuess | None = None
    grid_source: str = ""
    coverage: dict[str, Any] | None = None
    suggestion: str | None = None


def check_dataset(path: str, features: Sequence[str], options: CheckOptions = CheckOptions()) -> Report:
    """Check annotations, features, their fit, the configuration and the pyramid; the report lists every problem.

    path: annotation JSON; features: folders (or .h5 files) joined along channels, as dataset.feat_folder.  UserError for a folder
    that is named twice.
    """
    if repeated := repeated_folder(features):
        raise UserError(f"{repeated}: is named twice, which would double its channels; name it once")
    problems = Problems()
    config = _config(options.config_path, options.overrides, problems)
    annotations = _annotations(path, config, problems)
    splits = (Splits(config.train_split, config.val_split, config.unlabelled_split, config.source) if config
              else guess_splits(annotations))
    report = Report(problems, annotations, splits, list(features), config)
    if annotations.videos:
        check_subsets(annotations, splits, problems)
        if config is None or config.dataset_name == "generic":  # official splits are as they are
            check_subjects(annotations, splits, problems)
    default_fps = options.fps or (config.dataset.default_fps if config else None)
    report.fps = {video.id: fps for video in annotations.videos.values() if (fps := default_fps or video.fps)}
    provenance = _provenance(report)
    correct_fps(annotations.path, report.fps, provenance, problems)
    layout = _read_features(report, options)
    check_ids(annotations, report.files, problems)
    report.grid, report.grid_source = _find_grid(report, options, provenance)
    _check_grid(report)
    check_times(annotations, _spans(report), problems)
    check_labels(annotations, splits, problems)
    check_fps(annotations, report.fps, provenance, problems)
    if report.grid is not None and report.grid.stride > 0:
        _check_lengths(report, report.grid)
    if config is not None:
        _check_config(report, config)
    facts = _data_facts(report, layout, default_fps)
    if facts is not None:
        report.suggestion = suggest_yaml(facts)
    used = config or (suggest_config(facts) if facts else None)
    if used is not None and report.files and len(used.level_strides) == len(used.model.regression_range):
        _check_pyramid(report, used, options.progress)
    return report


def _config(path: str | None, overrides: Sequence[str], problems: Problems) -> Config | None:
    """Load the configuration; one that fails its checks is reported, and its values are used nevertheless."""
    if path is None:
        return None
    try:
        return load_config(path, overrides)
    except UserError as error:
        problems.caught("configuration", path, "", error)
    try:
        return load_config(path, overrides, check=False)
    except UserError:
        return None


def _annotations(path: str, config: Config | None, problems: Problems) -> Annotations:
    """Read the annotations; `annotations` keys may be missing where training with this configuration allows it."""
    if config is None:
        return load_annotations(path, problems=problems)
    preset = PRESETS.get(config.dataset_name)
    return load_annotations(path, False, preset is not None and preset.unlabelled, config.unlabelled_split, problems)


def _read_features(report: Report, options: CheckOptions) -> Layout:
    """Fill report.files; returns prefix and extension of the files."""
    ids, config, problems = list(report.annotations.videos), report.config, report.problems
    layout = Layout("", ".npy")
    width, may_lack = None, False
    try:
        layout = guess_layout(report.features[0], ids)
        if config is not None:
            layout = Layout(config.dataset.file_prefix or "", config.dataset.file_ext or "")
            width = (config.file_channels, f"dataset.input_dim of {config.source}")
            may_lack = config.dataset.missing == "skip"
        layout = Layout(layout.prefix if options.prefix is None else options.prefix,
                        layout.extension if options.extension is None else options.extension)
        store = FeatureStore(tuple(report.features), layout.prefix, layout.extension)
        with terminal_bar(len(ids), "features", options.progress) as bar:
            report.files = survey_features(store, ids, problems, width, options.read_values, bar.update, may_lack)
        store.close()
        for folder in report.features if ids else ():
            check_orphans(folder, layout, ids, problems)
    except UserError as error:
        problems.caught("feature-folder", report.features[0], "", error)
    return layout


def _provenance(report: Report) -> Provenance | None:
    try:
        return read_provenance(report.features[0])
    except UserError as error:
        report.problems.caught("provenance", os.path.join(report.features[0], PROVENANCE), "", error)
        return None


def _find_grid(report: Report, options: CheckOptions, provenance: Provenance | None) -> tuple[GridGuess | None, str]:
    """(stride and window, source): from the options, the configuration, the provenance file or a guess, in this order."""
    grid, source = _grid_of_data(report, provenance)
    given = options.feat_stride or options.num_frames
    if given is None:
        return grid, source
    stride = options.feat_stride or (grid.stride if grid else 0) or given
    return GridGuess(stride, options.num_frames or (grid.num_frames if grid else 0) or stride, 1.0), "command line"


def _grid_of_data(report: Report, provenance: Provenance | None) -> tuple[GridGuess | None, str]:
    if report.config is not None:
        data = report.config.dataset
        return GridGuess(data.feat_stride, data.num_frames, 1.0), report.config.source
    if provenance is not None:
        return GridGuess(provenance.stride, provenance.num_frames, 1.0), provenance.path
    return None if _durations_in_other_unit(report, None) else _guess(report, _timed(report)), GUESSED


def _timed(report: Report) -> list[tuple[Video, FileFacts]]:
    """Videos with a duration, an fps and features."""
    return [(video, report.files[video.id]) for video in report.annotations.videos.values()
            if video.id in report.files and video.id in report.fps and math.isfinite(video.duration_s)]


def _check_grid(report: Report) -> None:
    grid, problems = report.grid, report.problems
    if grid is None and report.files and report.fps and not any(p.kind in DURATION_UNITS for p in problems.found):
        problems.warning("grid-unknown", report.annotations.path, "", "no video with an fps and features has a duration, "
                         "so the stride of the features is not known", "name it with --feat-stride and --num-frames, or use "
                         "--config")
    elif grid is not None and report.grid_source == GUESSED and grid.share < 0.9:
        problems.warning("grid-guess", report.features[0], "", f"feat_stride {grid.stride:g} and num_frames {grid.num_frames:g} "
                         f"are guessed and explain {grid.share:.0%} of the files",
                         "name them with --feat-stride and --num-frames")


def _spans(report: Report) -> dict[str, float]:
    """Seconds per video: its duration, else the time that its features cover."""
    spans = {}
    for video in report.annotations.videos.values():
        fact, fps = report.files.get(video.id), report.fps.get(video.id)
        if math.isfinite(video.duration_s):
            spans[video.id] = video.duration_s
        elif fact and fps and report.grid and report.grid.stride > 0:
            spans[video.id] = _covered_s(fact.length, fps, report.grid)
    return spans


def _covered_s(length: int, fps: float, grid: GridGuess) -> float:
    """Seconds that `length` feature vectors cover."""
    return ((length - 1) * grid.stride + grid.num_frames) / fps


def why_no_suggestion(report: Report) -> str:
    """Why a report suggests no configuration: what is missing, and the option that mends it."""
    usable = [v.id for v in report.annotations.of_subset(report.splits.train) if v.id in report.files]
    if usable and report.annotations.label_ids and not any(vid in report.fps for vid in usable):
        return "no training video has an fps; give one for all with --fps"
    if usable and report.annotations.label_ids and report.grid is None:
        return "the stride of the features is not known; name it with --feat-stride and --num-frames"
    return "no training video has segments and usable features to suggest a configuration from"


def _check_lengths(report: Report, grid: GridGuess) -> None:
    """Compare the length of each file with duration x fps / stride; one problem if all differ by the same factor."""
    if _durations_in_other_unit(report, grid):
        return
    timed, problems = _timed(report), report.problems
    expected = {video.id: expected_length(video.duration_s, report.fps[video.id], grid.stride, grid.num_frames)
                for video, _ in timed}
    ratios = np.array([fact.length / expected[video.id] for video, fact in timed])
    usual = length_ratio([fact.length for _, fact in timed], list(expected.values())) or 1.0
    same_factor = len(timed) > 2 and usual != 1 and np.mean(np.abs(ratios / usual - 1) < 0.1) >= 0.8
    if same_factor and (fit := _guess(report, timed)) is not None:
        problems.error("stride-mismatch", report.grid_source, "dataset.feat_stride",
                       f"with feat_stride {grid.stride:g} and the fps of the videos, {len(timed)} files have {usual:.3g} "
                       "times as many vectors as their durations need", f"feat_stride {fit.stride:g} with num_frames "
                       f"{fit.num_frames:g} would fit, or an fps (annotations or dataset.default_fps) {usual:.3g} times as high")
    for (video, fact), ratio in zip(timed, ratios.tolist(), strict=True):
        wanted, fps = expected[video.id], report.fps[video.id]
        implausible = implausible_length(fact.length, wanted)
        off = implausible or abs(fact.length - wanted) > max(SLACK_STEPS, SLACK_SHARE * wanted)
        if off and not (same_factor and abs(ratio / usual - 1) <= 0.5):
            add = problems.error if implausible else problems.warning
            add("length-mismatch", fact.path, f"video {video.id!r}", *_length_mismatch(video, fact, fps, grid, wanted))


def _durations_in_other_unit(report: Report, grid: GridGuess | None) -> bool:
    """Report durations in frames or milliseconds, whole numbers that make the features too far apart; whether it is so."""
    timed = _timed(report)
    if len(timed) < LEAST_VIDEOS or any(video.duration_s % 1 for video, _ in timed):
        return False
    rate = float(np.median([report.fps[video.id] for video, _ in timed]))
    apart = float(np.median([video.duration_s / fact.length for video, fact in timed]))
    for unit, per_second in (("frames", rate), ("milliseconds", 1000.0)):
        if grid is None:
            fits = apart > SLOWEST_S and 1 / rate <= apart / per_second <= SLOWEST_S
        else:
            fits = per_second > FAR_OUTSIDE and abs(apart / per_second * rate / grid.stride - 1) < 0.2
        if fits:
            ends = {video.id: float(video.segments.max()) for video, _ in timed if len(video.segments)}
            too = other_units(ends, {video.id: video.duration_s / per_second for video, _ in timed}, report.fps)
            what = "the durations and the segments look" if unit in too.values() else "the durations look"
            report.problems.error(f"unit-{unit}", report.annotations.path, "duration", f"{len(timed)} videos have one feature "
                                  f"vector per {apart:.3g} units of their duration: {what} like {unit}",
                                  f"{REMEDIES[unit]}: both are in seconds")
            return True
    return False


def _guess(report: Report, timed: Sequence[tuple[Video, FileFacts]]) -> GridGuess | None:
    """The grid that explains the lengths of most files; None without files."""
    frames = np.array([video.duration_s * report.fps[video.id] for video, _ in timed])
    return guess_grid(frames, np.array([fact.length for _, fact in timed]))


def _length_mismatch(video: Video, fact: FileFacts, fps: float, grid: GridGuess, wanted: int) -> tuple[str, str]:
    """(problem, remedy) of a file that does not have the `wanted` number of vectors."""
    seconds = _covered_s(fact.length, fps, grid)
    text = (f"{fact.length} vectors cover {seconds:.4g} s, but the video lasts {video.duration_s:g} s, which needs {wanted} (fps "
            f"{fps:g}, feat_stride {grid.stride:g}, num_frames {grid.num_frames:g})")
    for unit, per_second in (("frames", fps), ("milliseconds", 1000.0)):
        if abs(video.duration_s / per_second / seconds - 1) < 0.05:
            return text, f"the duration looks like {unit}: write seconds"
    if fact.length < wanted:
        return text, "the duration is too long or the file is cut: correct one of them"
    return text, "the duration is too short or the features are another video's: correct one of them"


def _check_config(report: Report, config: Config) -> None:
    """Paths and number of classes of a configuration against the data."""
    problems, path, data, source = report.problems, report.annotations.path, config.dataset, config.source
    for key, named, used in (("json_file", (data.json_file,), [path]),
                             ("feat_folder", as_tuple(data.feat_folder), report.features)):
        if [os.path.realpath(name) for name in named] != [os.path.realpath(name) for name in used]:
            problems.warning("config-paths", source, f"dataset.{key}", f"names {', '.join(named)}, but {', '.join(used)} was "
                             "checked", "check the files that you will train on")
    needed = _num_classes(report.annotations)
    if needed > data.num_classes:
        problems.error("num-classes", source, "dataset.num_classes", f"{data.num_classes}, but {path} needs {needed}",
                       f"write {needed}")
    elif 0 < needed < data.num_classes:
        problems.warning("num-classes", source, "dataset.num_classes", f"{data.num_classes}, but {path} has {needed} classes",
                         f"write {needed}, unless the others come later")


def _num_classes(annotations: Annotations) -> int:
    """Number of classes that a model needs; ids may have gaps."""
    return max(len(annotations.label_ids), 1 + max(annotations.file_ids.values(), default=-1))


def _grids(report: Report, config: Config | None) -> dict[str, tuple[Grid, int]]:
    """Grid and length of every video whose features, fps and, where needed, duration are known."""
    keys = ("downsample_rate", "max_seq_len", "force_upsampling")
    extra = {} if config is None else {key: getattr(config.dataset, key) for key in keys}
    found = {}
    for vid, fact in report.files.items():
        video = report.annotations.videos[vid]
        if report.grid and vid in report.fps and (report.grid.stride > 0 or math.isfinite(video.duration_s)):
            found[vid] = plan_grid(fact.length, report.fps[vid], video.duration_s, feat_stride=report.grid.stride,
                                   num_frames=report.grid.num_frames, **extra)
    return found


def _data_facts(report: Report, layout: Layout, default_fps: float | None) -> DataFacts | None:
    annotations, splits, grids = report.annotations, report.splits, _grids(report, None)
    train = [video for video in annotations.of_subset(splits.train) if video.id in grids]
    if not train or not annotations.label_ids or report.grid is None:
        return None
    lengths, segments = [], []
    for video in train:
        grid, length = grids[video.id]
        lengths.append(length)
        inside = np.clip(segments_on_grid(grid, video), 0, length + 2 * grid.offset)
        segments.append(inside[:, 1] - inside[:, 0])
    width = Counter(fact.width for fact in report.files.values()).most_common(1)[0][0]
    folder = report.features[0] if len(report.features) == 1 else list(report.features)
    return DataFacts(annotations.path, folder, layout.prefix, layout.extension, splits.train, splits.val, width,
                     _num_classes(annotations), report.grid, default_fps, np.array(lengths), np.concatenate(segments))


def _check_pyramid(report: Report, config: Config, progress: bool) -> None:
    """Check segments per pyramid level, segments without points, and max_seq_len; fills report.coverage."""
    grids, problems, data = _grids(report, config), report.problems, config.dataset
    source = config.source if report.config else "the suggested configuration"
    report.coverage, longest = check_coverage(config, source, report.annotations, grids, problems, progress)
    if report.config is None or data.force_upsampling:
        return
    train = [grids[video.id][1] for video in report.annotations.of_subset(report.splits.train) if video.id in grids]
    too_long = sum(length > data.max_seq_len for length in train)
    if longest * data.trunc_thresh > data.max_seq_len:
        problems.error("max-seq-len", source, "dataset.max_seq_len", f"{data.max_seq_len} steps: the longest segment has "
                       f"{longest:.4g}, so no training crop holds {data.trunc_thresh:.0%} of it", "raise it")
    elif train and too_long / len(train) > MAX_SHARE_CROPPED:
        problems.warning("max-seq-len", source, "dataset.max_seq_len", f"{data.max_seq_len} steps: {too_long} of {len(train)} "
                         f"training videos are longer (the longest: {max(train)}) and are always cropped",
                         "raise it if memory allows")
