"""Measures how much mAP checkpoints lose when the test features are corrupted (libs.datasets.corruptions).

    subjects = load_subjects(config, [("teacher", "ckpt/teacher"), ("student", "ckpt/student")])
    result = measure(config, subjects, Settings(), device)     the document of robustness.json, average mAP in percent
    print(tables(result));  svg(chart(result))

Each checkpoint has its own network; dataset, subset and inference settings come from one configuration.  Checkpoints with the
same name are seeds of one model: mean and standard deviation are reported.
"""
from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from libs.core.config import from_dict, to_dict
from libs.core.errors import UserError, nearest
from libs.core.schema import Config
from libs.datasets.corruptions import (
    CORRUPTIONS,
    PROTOCOLS,
    SEVERITIES,
    CorruptedDataset,
    another,
    features_in_memory,
    streams_of,
)
from libs.datasets.dataset import TalDataset
from libs.datasets.grid import Grid
from libs.engine.distill.streams import channel_ranges, moved_channels
from libs.engine.inference.evaluate import refuse_other_fold
from libs.engine.inference.predict import predict, score
from libs.engine.runs.checkpoint import Checkpoint, check_label_ids, find_checkpoint, load_checkpoint, own_config
from libs.engine.runs.network import load_network
from libs.engine.runtime.precision import check_precision
from libs.utils.plotting import Line, Panel, line_chart
from libs.utils.progress import Clock
from libs.utils.tables import format_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# settings of the dataset and the evaluation; all others are the checkpoint's
SHARED_SECTIONS = ("dataset_name", "val_split", "test_cfg", "loader", "devices")
SHARED_DATA = ("json_file", "feat_folder", "subset_folders", "file_prefix", "file_ext", "default_fps", "missing", "strict",
               "tiou_thresholds")

Values = Mapping[tuple[str | None, int], float]  # average mAP of one seed by (corruption, severity), clean: (None, 0)


@dataclass(frozen=True)
class Settings:
    """Corruptions and severities to measure; seed of the corruptions; modalities to corrupt (None: all that a model reads)."""

    corruptions: tuple[str, ...] = PROTOCOLS["features"]
    severities: tuple[int, ...] = SEVERITIES
    seed: int = 0
    modalities: tuple[str, ...] | None = None

    def of(self, corruption: str) -> tuple[int, ...]:
        """Those of the severities that a corruption has."""
        return tuple(s for s in self.severities if s in CORRUPTIONS[corruption].severities)

    def cases(self, corruptions: Sequence[str]) -> list[tuple[str, int]]:
        """Every (corruption, severity) of some corruptions."""
        return [(c, s) for c in corruptions for s in self.of(c)]

    def protocols(self) -> dict[str, tuple[str, ...]]:
        """The protocols that the corruptions belong to, with those that are measured."""
        chosen = {name: tuple(c for c in self.corruptions if c in known) for name, known in PROTOCOLS.items()}
        return {name: corruptions for name, corruptions in chosen.items() if corruptions}


@dataclass(frozen=True, eq=False)
class Subject:
    """One checkpoint, ready to be measured."""

    name: str
    path: Path
    config: Config
    model: nn.Module
    dataset: TalDataset


def network_config(config: Config, checkpoint: Checkpoint) -> Config:
    """The checkpoint's configuration with the dataset, subset and inference settings of `config`.

    `config` for a checkpoint without one (published).  Raises UserError when the checkpoint has another number of classes, cannot
    read these features, or was trained on the same files with another stride, window or other channels.
    """
    trained = own_config(checkpoint)
    if trained is None:
        return config
    source = trained.source
    values, ours = to_dict(trained), to_dict(config)
    values.pop("distill")  # inference needs no teachers
    values |= {name: ours[name] for name in SHARED_SECTIONS}
    values["dataset"] |= {name: ours["dataset"][name] for name in SHARED_DATA}
    if ours["dataset"]["modalities"] is not None:
        values["dataset"]["modalities"] = ours["dataset"]["modalities"]
    if trained.file_channels != config.file_channels:
        values["dataset"]["input_dim"] = ours["dataset"]["input_dim"]
    own = from_dict(values, source)
    if own.dataset.num_classes != config.dataset.num_classes:
        raise UserError(f"{source}: dataset.num_classes: {own.dataset.num_classes}, but {config.source} has "
                        f"{config.dataset.num_classes}; name a configuration of the dataset that this checkpoint was trained on")
    if own.model_channels != trained.model_channels:
        raise UserError(f"{source}: the network reads {trained.model_channels} channels, but of the features of {config.source} "
                        f"it would be given {own.model_channels}; correct dataset.input_dim or dataset.modalities there")
    _check_same_files(config, trained)
    return own


def load_subjects(config: Config, named: Sequence[tuple[str, str]]) -> list[Subject]:
    """Load (name, checkpoint file or run folder) pairs with the weights of test_cfg.weights.

    Raises UserError unless all have the same feature grid for every video, and those of one name the same network.
    """
    datasets: dict[tuple, TalDataset] = {}  # by dataset section and modalities
    subjects: list[Subject] = []
    for name, where in named:
        path = find_checkpoint(where)
        checkpoint = load_checkpoint(path)
        refuse_other_fold(config, checkpoint)
        own = network_config(config, checkpoint)
        model = load_network(own, checkpoint, config.test_cfg.weights)
        key = (own.dataset, own.model.modalities)
        if key not in datasets:
            datasets[key] = TalDataset(own, own.val_split, training=False)
        check_label_ids(checkpoint, datasets[key].label_names, own.dataset.json_file)
        if subjects:
            _check_grid(datasets[key], subjects[0].dataset, path, subjects[0].path)
        for other in subjects:
            if other.name == name and (other.path == path or other.config.model != own.model):
                what = "is named twice" if other.path == path else f"is another network than {other.path}"
                raise UserError(f"{path}: {what}, but checkpoints of one name ({name!r}) are seeds of one model; give it "
                                "another name with --names, or leave it out")
        subjects.append(Subject(name, path, own, model, datasets[key]))
    return subjects


def measure(config: Config, subjects: Sequence[Subject], settings: Settings, device: torch.device,
            log: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Average mAP (percent) of every subject, clean and with every corruption and severity; the content of robustness.json.

    `log` is called with a line per evaluation.  Raises UserError for a modality that no subject reads, a corruption that has none
    of the severities, and one that needs a second video where there is none.
    """
    _check_modalities(subjects, settings.modalities)
    _check_corruptions(subjects[0], settings)
    check_precision(config.test_cfg.precision, device, config.source, "test_cfg.precision")
    cases = [(None, 0), *settings.cases(settings.corruptions)]
    found: dict[str, list[Values]] = {}
    dataset, features, clock = None, None, Clock()
    for number, subject in enumerate(subjects, start=1):
        if subject.dataset is not dataset:  # models that read the same features share one copy in memory
            dataset, features = subject.dataset, None  # frees the previous copy first
            features = features_in_memory(dataset)
        own = subject.config
        if features is not None:  # data-loader workers would only cost time
            own = dataclasses.replace(own, loader=dataclasses.replace(own.loader, num_workers=0))
        streams = {k: v for k, v in streams_of(own).items() if settings.modalities is None or k in settings.modalities}
        model, values = subject.model.to(device), {}
        for done, (corruption, severity) in enumerate(cases, start=1):
            corrupted = CorruptedDataset(dataset, features, streams, corruption, severity, settings.seed)
            values[corruption, severity] = 100 * score(predict(model, corrupted, own, device), corrupted).average_mAP
            what = "clean" if corruption is None else f"{corruption} {severity}"
            left = clock.left((number - 1) * len(cases) + done, len(subjects) * len(cases))
            log(f"[{number}/{len(subjects)} {done}/{len(cases)}] {subject.name}: {what}: {values[corruption, severity]:.2f}, "
                f"{left}")
        subject.model.to("cpu")
        found.setdefault(subject.name, []).append(values)
    return {
        "config": config.source, "val_split": list(config.val_split), "weights": config.test_cfg.weights, "seed": settings.seed,
        "modalities": None if settings.modalities is None else list(settings.modalities),
        "severities": sorted({severity for _, severity in cases[1:]}), "tiou": list(subjects[0].dataset.tious),
        "levels": {c: {"unit": CORRUPTIONS[c].unit, **{str(s): CORRUPTIONS[c].level(s) for s in settings.of(c)}}
                   for c in settings.corruptions},
        "models": {name: {"checkpoints": [str(s.path) for s in subjects if s.name == name],
                          "reads": next(list(streams_of(s.config)) for s in subjects if s.name == name),
                          **_model_result(seeds, settings)} for name, seeds in found.items()},
    }


def _model_result(seeds: Sequence[Values], settings: Settings) -> dict[str, Any]:
    """Statistics over the seeds; means over severities and corruptions are taken per seed first."""
    per_corruption = {c: {**{str(s): _over([v[c, s] for v in seeds]) for s in settings.of(c)},
                          "mean": _over(_means(seeds, settings, [c]))} for c in settings.corruptions}
    return {"clean": _over([v[None, 0] for v in seeds]), "corruptions": per_corruption,
            **_loss(seeds, settings, settings.corruptions),
            "protocols": {name: _loss(seeds, settings, known) for name, known in settings.protocols().items()}}


def _loss(seeds: Sequence[Values], settings: Settings, corruptions: Sequence[str]) -> dict[str, Any]:
    """The mean over all settings of some corruptions, and the share (percent) of the clean mAP that is lost."""
    clean, corrupted = [v[None, 0] for v in seeds], _means(seeds, settings, corruptions)
    drops = [100 * (a - b) / a for a, b in zip(clean, corrupted, strict=True)] if all(clean) else None
    return {"mean_corrupted": _over(corrupted), "relative_drop": None if drops is None else _over(drops)}


def _means(seeds: Sequence[Values], settings: Settings, corruptions: Sequence[str]) -> list[float]:
    return [statistics.mean(v[case] for case in settings.cases(corruptions)) for v in seeds]


def _over(values: Sequence[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"values": list(values), "mean": statistics.mean(values), "standard_deviation": spread}


def tables(result: Mapping[str, Any]) -> str:
    """One table per model (rows: corruptions, columns: severities and their mean) and a summary (means over all settings, of each
    protocol where both were measured); average mAP in percent, `+- standard deviation` where a name has several checkpoints."""
    severities = [str(s) for s in result["severities"]]
    lines, summary = [], []
    for name, model in result["models"].items():
        count = len(model["checkpoints"])
        several = count > 1
        lines += [f"{name}: {count} checkpoint{'s' * several}, reads {', '.join(model['reads'])}; average mAP (percent), clean "
                  f"{_cell(model['clean'], several)}",
                  format_table([[c, *(_cell(row.get(s), several) for s in [*severities, "mean"])]
                                for c, row in model["corruptions"].items()], ["corruption", *severities, "mean"]), ""]
        parts = model["protocols"] if len(model.get("protocols", ())) > 1 else {"corrupted": model}
        summary.append([name, *(_cell(value, several) for value in (model["clean"], *(
            part[key] for part in parts.values() for key in ("mean_corrupted", "relative_drop"))))])
    columns = [name for part in parts for name in (part, "relative drop %")]
    return "\n".join([*lines, format_table(summary, ["model", "clean", *columns])])


def chart(result: Mapping[str, Any]) -> Figure:
    """Average mAP against severity (0: clean), one panel per corruption, one line per model, bands of one standard deviation."""
    panels = []
    for corruption, levels in result["levels"].items():
        severities = [s for s in result["severities"] if str(s) in levels]
        lines = []
        for name, model in result["models"].items():
            points = [model["clean"], *(model["corruptions"][corruption][str(s)] for s in severities)]
            lines.append(Line(name, (0, *severities), tuple(p["mean"] for p in points),
                              tuple(p["standard_deviation"] for p in points)))
        span = " to ".join(dict.fromkeys(f"{levels[str(s)]:g}" for s in (severities[0], severities[-1])))
        panels.append(Panel(f"{corruption}: {span} {levels['unit']}", tuple(lines)))
    which = f" ({', '.join(result['modalities'])})" if result["modalities"] else ""
    title = f"Corrupted features{which}, {Path(result['config']).stem}"
    return line_chart(panels, title, "severity (0: clean)", "average mAP (%)")


def _check_same_files(config: Config, trained: Config) -> None:
    """UserError if both configurations read the same feature folder with different strides, windows or channels."""
    folder = config.dataset.feat_folder
    keys = ("feat_stride", "num_frames") if folder and folder == trained.dataset.feat_folder else ()
    settings: list[tuple[str, Any, Any]] = [(key, getattr(config.dataset, key), getattr(trained.dataset, key)) for key in keys]
    settings += [(f"modalities.{name}", list(channel_ranges(config)[name]), list(channel_ranges(trained)[name]))
                 for name in moved_channels(config, trained, trained.model.modalities or ())]
    for key, ours, theirs in settings:
        if ours != theirs:
            raise UserError(f"{config.source}: dataset.{key}: {ours}, but {trained.source} has {theirs} for the same files, "
                            f"{folder}; correct it, or name other files")


def _check_grid(dataset: TalDataset, reference: TalDataset, path: Path, first: Path) -> None:
    if dataset is reference:
        return
    here, there = ({s.video_id: (s.grid, s.steps) for s in map(d.sample, range(len(d)))} for d in (dataset, reference))
    for video in [*there, *here]:
        if here.get(video) != there.get(video):
            raise UserError(f"{path}: works on another feature grid than {first} (video {video}: {_grid(here.get(video))}, there "
                            f"{_grid(there.get(video))}), so they cannot see the same corruption; compare checkpoints of equal "
                            "dataset.feat_stride, num_frames, downsample_rate and force_upsampling, on the same videos")


def _grid(grid: tuple[Grid, int] | None) -> str:
    return "no features" if grid is None else f"{grid[1]} steps of {grid[0].stride:g} frames"


def _check_modalities(subjects: Sequence[Subject], modalities: Sequence[str] | None) -> None:
    known = list(dict.fromkeys(name for s in subjects for name in streams_of(s.config)))
    for name in modalities or ():
        if name not in known:
            raise UserError(f"--modalities {name}: no checkpoint reads it{nearest(name, known)}; use {', '.join(known)}")


def _check_corruptions(subject: Subject, settings: Settings) -> None:
    for corruption in settings.corruptions:
        if not settings.of(corruption):
            raise UserError(f"--severities {' '.join(map(str, settings.severities))}: {corruption} has the severities "
                            f"{', '.join(map(str, CORRUPTIONS[corruption].severities))}; name one of them")
        if corruption == "gap_other":
            another(0, subject.dataset.videos, corruption, 1, settings.seed)


def _cell(value: Mapping[str, Any] | None, several: bool) -> str | None:
    return None if value is None else f"{value['mean']:.2f}" + (f" +- {value['standard_deviation']:.2f}" if several else "")
