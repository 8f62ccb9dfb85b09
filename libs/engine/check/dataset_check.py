"""A user's data set, checked as a whole: annotations, features, how they fit each other, a configuration, the pyramid.

    report = check_dataset("my.json", ["features"], CheckOptions(config_path="configs/my.yaml"))
    report.problems, report.facts, report.suggestion

The parts are in libs/datasets (survey, survey_checks, feature_survey), libs/engine (coverage, suggest, dataset_report).
"""
from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from libs.core.config import load_config
from libs.core.errors import UserError
from libs.core.problems import Problems
from libs.core.schema import Config
from libs.datasets.annotations import Video
from libs.datasets.features.provenance import FILE_NAME as PROVENANCE
from libs.datasets.features.provenance import read_provenance
from libs.datasets.features.store import FeatureStore
from libs.datasets.grid import Grid, expected_length, implausible_length, plan_grid
from libs.datasets.survey.checks import Splits, check_labels, check_subsets, check_times, guess_splits
from libs.datasets.survey.features import FileFacts, Layout, check_orphans, guess_layout, survey_features
from libs.datasets.survey.survey import Survey, survey_annotations
from libs.engine.check.coverage import REASONS, level_strides, segment_coverage, why_unmatched
from libs.engine.check.suggest import DataFacts, GridGuess, guess_grid, suggest_config, suggest_yaml

SLACK_STEPS, SLACK_SHARE = 10, 0.05  # as for THUMOS14: durations of containers differ a little from the frames decoded
FAR_S = 1e9
FEW_LEFT = 0.5  # share of training videos longer than max_seq_len from which it is called too short


@dataclass(frozen=True)
class CheckOptions:
    """What a user may say beyond the two paths; None: from the configuration, the provenance file, or the data."""

    config_path: str | None = None
    feat_stride: float | None = None
    num_frames: float | None = None
    fps: float | None = None
    prefix: str | None = None
    extension: str | None = None
    read_values: bool = True
    progress: bool = True


@dataclass
class Report:
    """All findings, what is behind them, the grid with its source, coverage, a configuration as YAML (None: no data for it)."""

    problems: Problems
    survey: Survey
    splits: Splits
    features: list[str]
    files: dict[str, FileFacts] = field(default_factory=dict)
    grid: GridGuess | None = None
    grid_source: str = ""
    config: Config | None = None
    coverage: dict[str, Any] | None = None
    suggestion: str | None = None


def check_dataset(annotations: str, features: Sequence[str], options: CheckOptions = CheckOptions()) -> Report:
    """Check everything, in the order in which a user would look; nothing raises but a programming error.

    features: folders (or .h5 files) joined along channels, as dataset.feat_folder.
    """
    problems = Problems()
    given = _config(options.config_path, problems)
    survey = survey_annotations(annotations, problems)
    splits = Splits(given.train_split, given.val_split, given.unlabelled_split, given.source) if given else guess_splits(survey)
    report = Report(problems, survey, splits, list(features), config=given)
    if survey.videos:
        check_subsets(survey, splits, problems)
    layout = _read_features(report, options)
    _find_grid(report, options)
    spans = _spans(report, options)
    check_times(survey, spans, problems)
    check_labels(survey, splits, problems)
    _check_fps(report, options)
    _check_lengths(report, options)
    if given:
        _check_config(report, annotations, features)
    facts = _data_facts(report, layout, options)
    if facts is not None:
        report.suggestion = suggest_yaml(facts)
    config = given or (suggest_config(facts) if facts else None)
    if config is not None and report.files and len(level_strides(config)) == len(config.model.regression_range):
        _check_coverage(report, config, options)
    return report


def _config(path: str | None, problems: Problems) -> Config | None:
    """The configuration; a contradiction inside it is a finding, and its single values are used all the same."""
    if path is None:
        return None
    try:
        return load_config(path)
    except UserError as error:
        problems.caught("configuration", path, "", error)
    try:
        return load_config(path, check=False)
    except UserError:
        return None


def _read_features(report: Report, options: CheckOptions) -> Layout:
    """Fill report.files; returns how files are named."""
    ids, config = list(report.survey.videos), report.config
    layout = Layout("", ".npy")
    try:
        guess = guess_layout(report.features[0], ids)
        given = Layout(config.dataset.file_prefix or "", config.dataset.file_ext or "") if config else guess
        layout = Layout(given.prefix if options.prefix is None else options.prefix,
                        given.extension if options.extension is None else options.extension)
        store = FeatureStore(tuple(report.features), layout.prefix, layout.extension)
        with tqdm(total=len(ids), desc="features", leave=False, dynamic_ncols=True, disable=not options.progress) as bar:
            width = (config.file_channels, f"dataset.input_dim of {config.source}") if config else None
            skip = bool(config) and config.dataset.missing == "skip"
            report.files = survey_features(store, ids, report.problems, width, options.read_values, bar.update, skip)
        store.close()
        if ids:
            for folder in report.features:
                check_orphans(folder, layout, ids, report.problems)
    except UserError as error:
        report.problems.caught("feature-folder", report.features[0], "", error)
    return layout


def _fps(report: Report, options: CheckOptions, video: Video) -> float | None:
    default = report.config.dataset.default_fps if report.config else None
    return options.fps or default or video.fps


def _find_grid(report: Report, options: CheckOptions) -> None:
    """Stride and window: options, else the configuration, else the provenance file, else a guess."""
    if report.config is not None:
        data = report.config.dataset
        report.grid, report.grid_source = GridGuess(data.feat_stride, data.num_frames, 1.0), report.config.source
    else:
        try:
            noted = read_provenance(report.features[0])
        except UserError as error:
            report.problems.caught("provenance", os.path.join(report.features[0], PROVENANCE), "", error)
            noted = None
        measured = [(video.duration_s * fps, report.files[video.id].length) for video in report.survey.videos.values()
                    if video.id in report.files and math.isfinite(video.duration_s) and (fps := _fps(report, options, video))]
        if noted is not None:
            report.grid, report.grid_source = GridGuess(noted.stride, noted.num_frames, 1.0), noted.path
        elif measured:
            report.grid, report.grid_source = guess_grid(*np.array(measured, np.float64).T), "guessed from durations and files"
    if options.feat_stride is not None or options.num_frames is not None:
        before = report.grid or GridGuess(0, 0, 1.0)
        stride = options.feat_stride or before.stride or options.num_frames
        report.grid = GridGuess(stride, options.num_frames or before.num_frames or stride, 1.0)
        report.grid_source = "command line"
    if report.grid is None and report.files:
        report.problems.warning("grid-unknown", report.survey.path, "", "no video has a duration, an fps and features, so the "
                                "stride of the features is not known",
                                "name it with --feat-stride and --num-frames, or use --config")
    elif report.grid and report.grid_source.startswith("guessed") and report.grid.share < 0.9:
        report.problems.warning("grid-guess", report.features[0], "", f"feat_stride {report.grid.stride:g} and num_frames "
                                f"{report.grid.num_frames:g} are guessed and explain {report.grid.share:.0%} of the files",
                                "name them with --feat-stride and --num-frames")


def _spans(report: Report, options: CheckOptions) -> dict[str, float]:
    """Seconds per video: its duration, else the time that its features cover."""
    spans = {}
    for video in report.survey.videos.values():
        fact, fps = report.files.get(video.id), _fps(report, options, video)
        if math.isfinite(video.duration_s):
            spans[video.id] = video.duration_s
        elif fact and fps and report.grid and report.grid.stride > 0:
            spans[video.id] = ((fact.length - 1) * report.grid.stride + report.grid.num_frames) / fps
    return spans


def _check_fps(report: Report, options: CheckOptions) -> None:
    survey, problems = report.survey, report.problems
    known = {(p.kind, p.where) for p in problems.found}
    for video in survey.videos.values():
        place = f"video {video.id!r}"
        if _fps(report, options, video) is None and ("fps", place) not in known:
            problems.error("fps", survey.path, place, "has no fps", "add it, or set dataset.default_fps")
        elif video.fps and not 1 <= video.fps <= 1000:
            problems.warning("fps", survey.path, place, f"an fps of {video.fps:g} is unusual", "expected frames per second")
        if not math.isfinite(video.duration_s) and ("duration", place) not in known:
            problems.warning("duration", survey.path, place, "has no duration, so nothing is checked against it",
                             "add it, in seconds")


def _check_lengths(report: Report, options: CheckOptions) -> None:
    """Vectors in each file against duration x fps / stride; one finding where all files are off by the same factor."""
    grid, problems = report.grid, report.problems
    if grid is None or grid.stride <= 0:
        return
    off: list[tuple[Video, FileFacts, float, int]] = []
    ratios, measured = [], []
    for video in report.survey.videos.values():
        fact, fps = report.files.get(video.id), _fps(report, options, video)
        if fact is None or not fps or not math.isfinite(video.duration_s):
            continue
        expected = expected_length(video.duration_s, fps, grid.stride, grid.num_frames)
        ratios.append(fact.length / expected)
        measured.append((video.duration_s * fps, fact.length))
        if abs(fact.length - expected) > max(SLACK_STEPS, SLACK_SHARE * expected) or implausible_length(fact.length, expected):
            off.append((video, fact, fps, expected))
    usual = float(np.median(ratios)) if ratios else 1.0
    if len(ratios) > 2 and abs(usual - 1) > 0.1 and np.mean(np.abs(np.array(ratios) / usual - 1) < 0.1) >= 0.8:
        fit = guess_grid(*np.array(measured).T)
        problems.error("stride-mismatch", report.grid_source, "dataset.feat_stride",
                       f"with feat_stride {grid.stride:g} and the fps of the videos, {len(ratios)} files have {usual:.3g} "
                       "times as many vectors as their durations need", f"feat_stride {fit.stride:g} with num_frames "
                       f"{fit.num_frames:g} would fit, or an fps (annotations or dataset.default_fps) {usual:.3g} times as high")
        off = [row for row in off if abs(row[1].length / row[3] / usual - 1) > 0.5]
    for video, fact, fps, expected in off:
        seconds = ((fact.length - 1) * grid.stride + grid.num_frames) / fps
        text = (f"{fact.length} vectors cover {seconds:.4g} s, but the video lasts {video.duration_s:g} s, which needs "
                f"{expected} (fps {fps:g}, feat_stride {grid.stride:g}, num_frames {grid.num_frames:g})")
        unit = next((name for name, factor in (("frames", fps), ("milliseconds", 1000.0))
                     if abs(video.duration_s / factor / seconds - 1) < 0.05), None)
        remedy = f"the duration looks like {unit}: write seconds" if unit else (
            "the duration is too long or the file is cut" if fact.length < expected
            else "the duration is too short or the features are another video's") + ": correct one of them"
        add = problems.error if implausible_length(fact.length, expected) else problems.warning
        add("length-mismatch", fact.path, f"video {video.id!r}", text, remedy)


def _check_config(report: Report, annotations: str, features: Sequence[str]) -> None:
    """A configuration against the data: paths, classes, lengths."""
    config, problems, survey = report.config, report.problems, report.survey
    data, source = config.dataset, config.source
    folders = data.feat_folder if isinstance(data.feat_folder, tuple) else (data.feat_folder,)
    for key, named, used in (("json_file", (data.json_file,), [annotations]), ("feat_folder", folders, features)):
        if [os.path.realpath(name) for name in named] != [os.path.realpath(name) for name in used]:
            problems.warning("config-paths", source, f"dataset.{key}", f"names {', '.join(named)}, but {', '.join(used)} was "
                             "checked", "check the files that you will train on")
    needed = max([len(survey.names), *(number + 1 for number in survey.ids.values())])
    if survey.names and needed > data.num_classes:
        problems.error("num-classes", source, "dataset.num_classes", f"{data.num_classes}, but {survey.path} needs {needed}",
                       f"write {needed}")
    elif survey.names and needed < data.num_classes:
        problems.warning("num-classes", source, "dataset.num_classes", f"{data.num_classes}, but {survey.path} has {needed} "
                         "classes", f"write {needed}, unless the others come later")


def _grids(report: Report, config: Config | None, options: CheckOptions) -> dict[str, tuple[Grid, int]]:
    """Grid and length of every video whose features, fps and, where needed, duration are known."""
    found = {}
    keys = ("downsample_rate", "max_seq_len", "force_upsampling")
    extra = {} if config is None else {key: getattr(config.dataset, key) for key in keys}
    for vid, fact in report.files.items():
        video = report.survey.videos[vid]
        fps = _fps(report, options, video)
        if report.grid and fps and (report.grid.stride > 0 or math.isfinite(video.duration_s)):
            found[vid] = plan_grid(fact.length, fps, video.duration_s, feat_stride=report.grid.stride,
                                   num_frames=report.grid.num_frames, **extra)
    return found


def _data_facts(report: Report, layout: Layout, options: CheckOptions) -> DataFacts | None:
    survey, grids = report.survey, _grids(report, None, options)
    train = [video for video in survey.of_subset(report.splits.train) if video.id in grids]
    if not train or not survey.names:
        return None
    lengths = np.array([grids[video.id][1] for video in train])
    inside = [np.clip(_on_grid(grid, video), 0, length + 2 * grid.offset)
              for video in train for grid, length in (grids[video.id],)]
    segments = np.concatenate([np.diff(pairs, axis=1)[:, 0] for pairs in inside])
    lacking = options.fps or (report.config.dataset.default_fps if report.config else None)
    width = Counter(fact.width for fact in report.files.values()).most_common(1)[0][0]
    classes = max([len(survey.names), *(number + 1 for number in survey.ids.values())])
    folder = report.features[0] if len(report.features) == 1 else list(report.features)
    return DataFacts(survey.path, folder, layout.prefix, layout.extension, report.splits.train, report.splits.val, width, classes,
                     report.grid, lacking, lengths, segments, overlap_share(train))


def _on_grid(grid: Grid, video: Video) -> np.ndarray:
    """(N, 2) float64 grid units; times that float32 cannot hold are cut, they are findings already."""
    return grid.seconds_to_grid(np.clip(video.segments, -FAR_S, FAR_S)).astype(np.float64)


def overlap_share(videos: Sequence[Video]) -> float:
    """Share of the segments that overlap another one of their class in the same video."""
    total = overlapping = 0
    for video in videos:
        for label in np.unique(video.labels):
            inside = video.segments[video.labels == label]
            inside = inside[np.argsort(inside[:, 0], kind="stable")]
            reached = np.maximum.accumulate(inside[:, 1])
            overlapping += int((inside[1:, 0] < reached[:-1]).sum())
        total += len(video.segments)
    return overlapping / total if total else 0.0


def _check_coverage(report: Report, config: Config, options: CheckOptions) -> None:
    """Segments per level of the pyramid, and those that no point answers for; fills report.coverage."""
    survey, problems, levels = report.survey, report.problems, len(level_strides(config))
    source = config.source if report.config else "the suggested configuration"
    reached, points = np.zeros(levels, np.int64), np.zeros(levels, np.int64)
    reasons: Counter[str] = Counter()
    first: dict[str, str] = {}
    per_subset: dict[str, list[int]] = {}
    total, longest, below_stride = 0, 0.0, 0
    grids = _grids(report, config, options)
    for vid, (grid, length) in tqdm(grids.items(), desc="pyramid", leave=False, dynamic_ncols=True, disable=not options.progress):
        video = survey.videos[vid]
        segments = _on_grid(grid, video)
        if len(segments) == 0:
            continue
        found = segment_coverage(config, length, segments)
        reached += (found.points_NL > 0).sum(0)
        points += found.points_NL.sum(0)
        total += len(segments)
        spans = segments[:, 1] - segments[:, 0]
        longest, below_stride = max(longest, float(spans.max())), below_stride + int((spans < 1).sum())
        lost = per_subset.setdefault(video.subset, [0, 0])
        lost[1] += len(segments)
        for n in np.flatnonzero(found.points_NL.sum(1) == 0):
            reason = why_unmatched(config, length, segments[n], bool(found.alone_N[n]))
            reasons[reason] += 1
            lost[0] += 1
            start, end = video.segments[n]
            first.setdefault(reason, f"video {vid!r}, annotations[{survey.entries[vid][n]}], [{start:g}, {end:g}] s, "
                                     f"{spans[n]:.3g} grid steps")
    for reason, count in reasons.items():
        add = problems.error if reason == "long" else problems.warning
        add(f"unmatched-{reason}", source, "", f"{count} of {total} segments get no point of the pyramid, so nothing learns them "
            f"(first: {first[reason]})", REASONS[reason])
    data, train = config.dataset, [grids[v.id][1] for v in survey.of_subset(report.splits.train) if v.id in grids]
    if report.config and not data.force_upsampling:
        too_long = sum(length > data.max_seq_len for length in train)
        if longest * data.trunc_thresh > data.max_seq_len:
            problems.error("max-seq-len", source, "dataset.max_seq_len", f"{data.max_seq_len} steps: the longest segment has "
                           f"{longest:.4g}, so no training crop holds {data.trunc_thresh:.0%} of it", "raise it")
        elif train and too_long / len(train) > FEW_LEFT:
            problems.warning("max-seq-len", source, "dataset.max_seq_len", f"{data.max_seq_len} steps: {too_long} of "
                             f"{len(train)} training videos are longer (the longest: {max(train)}) and are always cropped",
                             "raise it if memory allows")
    report.coverage = {
        "config": source, "segments": total, "shorter_than_a_step": below_stride, "unmatched": dict(reasons),
        "unmatched_per_subset": {name: {"unmatched": lost, "segments": all_} for name, (lost, all_) in per_subset.items()},
        "levels": [{"stride": stride, "range": list(bounds), "segments": int(n), "points": int(p)} for stride, bounds, n, p in
                   zip(level_strides(config), config.model.regression_range, reached, points, strict=True)]}
