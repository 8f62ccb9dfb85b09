"""Searches for the settings of decoding and NMS with the best mAP, on saved candidates.

    sweep = Sweep(load_candidates("candidates.npz"), config)
    trials = sweep.run(settings_of(config, {"nms_sigma": [0.4, 0.5, 0.6]}), jobs=2)
    print(table(trials, config.test_cfg))
"""
from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from libs.core.config import with_overrides
from libs.core.errors import UserError, nearest
from libs.core.schema import Config, TestConfig
from libs.core.yaml_text import parse
from libs.datasets.annotations import load_annotations, without_duplicates
from libs.datasets.dataset import ground_truth_of
from libs.datasets.presets import get_preset
from libs.engine.inference.candidates import CandidateSet
from libs.engine.inference.predict import external_scores
from libs.utils.evaluation.metrics import evaluate_detections
from libs.utils.progress import Progress, no_progress
from libs.utils.tables import format_table

KEYS = ("nms_method", "nms_sigma", "iou_threshold", "min_score", "max_seg_num", "voting_thresh", "multiclass_nms",
        "multiclass_voting", "voting_iou_weight", "pre_nms_thresh", "pre_nms_topk", "duration_thresh")
USUAL: dict[str, Sequence[Any]] = {  # the default grid: both methods with values of their own parameter, voting off and on
    "nms_method": ("soft", "hard"), "nms_sigma": (0.25, 0.4, 0.5, 0.6, 0.75, 0.9), "iou_threshold": (0.1, 0.2, 0.3, 0.4, 0.5),
    "voting_thresh": (0.0, 0.6, 0.75, 0.9)}


@dataclass(frozen=True)
class Trial:
    """One setting with its mAP per tIoU and the mean of these (or the mAP at one tIoU), from 0 to 1."""

    config: TestConfig
    mAP: tuple[float, ...]
    value: float


class Sweep:
    """Candidates and their ground truth.

    config: for annotations (dataset.json_file, val_split), classes and tIoUs; at: the tIoU of the mAP to compare, None: the mean
    over tIoUs.  Raises UserError for annotations that cannot be read or lack videos, and for an `at` that is no tIoU of the data.
    """

    def __init__(self, candidates: CandidateSet, config: Config, at: float | None = None):
        self.candidates, self.config, self.at = candidates, config, at
        preset, data = get_preset(config.dataset_name), config.dataset
        self.tious = np.array(data.tiou_thresholds or preset.tious)
        if at is not None and not np.isclose(self.tious, at).any():
            raise UserError(f"--at {at:g}: is no tIoU of this dataset; use one of {', '.join(f'{t:g}' for t in self.tious)}")
        annotations = load_annotations(data.json_file, data.strict, preset.unlabelled, config.unlabelled_split)
        videos = [v for v in annotations.videos.values() if v.subset in config.val_split]
        if absent := sorted(set(candidates.video_ids) - {v.id for v in videos}):
            raise UserError(f"{data.json_file}: subset {', '.join(config.val_split)} lacks {len(absent)} of the "
                            f"{len(candidates.video_ids)} videos of {candidates.path} (first: {absent[0]}); name the annotations "
                            "and the split that they were made from")
        self._external = external_scores(config, annotations.label_ids, candidates.video_ids)
        videos = [without_duplicates(v) if preset.drop_duplicates else v for v in videos]
        self.ground_truth = ground_truth_of(videos, config)

    def trial(self, config: TestConfig) -> Trial:
        """The mAP of one setting, equal to that of eval.py."""
        scores = evaluate_detections(self.candidates.detections(config, self._external), self.ground_truth, self.tious)
        value = scores.average_mAP if self.at is None else scores.mAP[int(np.isclose(self.tious, self.at).argmax())]
        return Trial(config, tuple(scores.mAP.tolist()), float(value))

    def run(self, settings: Sequence[TestConfig], jobs: int = 1,
            progress: Progress = no_progress) -> list[Trial]:
        """The trials of `settings`, in their order, in `jobs` processes; progress(settings done, of how many)."""
        for config in settings:  # fail before the work
            self.candidates.check(config)
        trials: list[Trial] = []
        for trial in map(self.trial, settings) if jobs == 1 else self._in_processes(settings, jobs):
            trials.append(trial)
            progress(len(trials), len(settings))
        return trials

    def _in_processes(self, settings: Sequence[TestConfig], jobs: int) -> Iterator[Trial]:
        """joblib writes the columns of the candidates to a file once, and every worker maps it into its memory."""
        from joblib import Parallel, delayed

        threads = max((os.cpu_count() or 1) // jobs, 1)
        pool = Parallel(jobs, return_as="generator", mmap_mode="c")
        try:
            yield from pool(delayed(_trial)(self, config, threads) for config in settings)
        except BrokenProcessPool as error:
            raise UserError(f"--jobs {jobs}: a process of the sweep was killed, perhaps for want of memory; use fewer") from error


def _trial(sweep: Sweep, config: TestConfig, threads: int) -> Trial:
    torch.set_num_threads(threads)
    return sweep.trial(config)


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """["nms_sigma=0.4,0.5", ...] -> key -> values; UserError for an unknown key or no value."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().removeprefix("test_cfg.")
        if name not in KEYS:
            raise UserError(f"--grid {text}: {name!r} is no setting of decoding or NMS{nearest(name, KEYS)}; use "
                            f"{', '.join(KEYS)}")
        if name in grid:
            raise UserError(f"--grid {text}: {name} is listed before; give all its values in one, {name}=VALUE,VALUE,...")
        if not equals or not values.strip():
            raise UserError(f"--grid {text}: expected KEY=VALUE,VALUE,..., e.g. nms_sigma=0.4,0.5,0.6")
        grid[name] = [parse(value, f"--grid {text}") for value in values.split(",")]
    return grid


def settings_of(config: Config, grid: Mapping[str, Sequence[Any]]) -> list[TestConfig]:
    """The configured setting, then every combination of `grid`'s values; of those that differ only in settings without effect
    (e.g. the sigma of hard NMS) the first one.  UserError for a value that the configuration refuses."""
    base = config.test_cfg
    found = {_effect(base): base}
    for values in itertools.product(*grid.values()):
        pairs = dict(zip(grid, values, strict=True))
        # the threshold has an effect only with voting per class
        if "voting_thresh" in pairs and "multiclass_voting" not in pairs:
            pairs["multiclass_voting"] = pairs["voting_thresh"] is not None and pairs["voting_thresh"] > 0
        trial = with_overrides(config, [f"test_cfg.{k}={_yaml(v)}" for k, v in pairs.items()]).test_cfg
        found.setdefault(_effect(trial), _without_idle_changes(trial, base))
    return list(found.values())


def _without_idle_changes(config: TestConfig, base: TestConfig) -> TestConfig:
    """The setting with `base`'s values where they make no difference."""
    for keys in (("nms_sigma",), ("iou_threshold",), ("voting_thresh", "multiclass_voting", "voting_iou_weight"),
                 ("min_score", "max_seg_num")):
        plain = dataclasses.replace(config, **{k: getattr(base, k) for k in keys})
        config = plain if _effect(plain) == _effect(config) else config
    return config


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _effect(config: TestConfig) -> tuple[Any, ...]:
    """The values of a setting that change results."""
    voting = config.voting_thresh > 0 and (config.multiclass_voting or not config.multiclass_nms)
    if config.nms_method == "none":
        return (config.nms_method, config.pre_nms_thresh, config.pre_nms_topk, config.duration_thresh)
    return (config.nms_method, config.nms_sigma if config.nms_method == "soft" else config.iou_threshold, config.min_score,
            config.max_seg_num, (config.voting_thresh, config.voting_iou_weight) if voting else None, config.multiclass_nms,
            config.pre_nms_thresh, config.pre_nms_topk, config.duration_thresh)


def changes(config: TestConfig, base: TestConfig) -> dict[str, Any]:
    """Keys of `KEYS` whose values differ from those of `base`."""
    return {k: getattr(config, k) for k in KEYS if getattr(config, k) != getattr(base, k)}


def set_line(config: TestConfig, base: TestConfig) -> str:
    """The --set option that turns `base` into `config`; empty when they are equal."""
    values = [f"test_cfg.{k}={_yaml(v)}" for k, v in changes(config, base).items()]
    return " ".join(["--set", *values]) if values else ""


def table(trials: Sequence[Trial], base: TestConfig, tious: Sequence[float], top: int = 10) -> str:
    """The configured setting (the first trial) and the best `top`, in percent, with their gain and their changes."""
    configured = trials[0]
    best = sorted(trials, key=lambda t: -t.value)[:top]
    rows = []
    for name, trial in [("configured", configured), *((f"{i}.", t) for i, t in enumerate(best, start=1))]:
        setting = ", ".join(f"{k} {_yaml(v)}" for k, v in changes(trial.config, base).items()) or "as configured"
        gain = f"{100 * (trial.value - configured.value):+.2f}"
        rows.append([name, 100 * trial.value, gain, *(100 * m for m in trial.mAP), setting])
    return format_table(rows, ["", "chosen by", "gain", *(f"{t:.2f}" for t in tious), "setting"], left=["setting"])
