"""A small dataset for any configuration: annotations, and planted features of the shape that the configuration reads.

    data = plant(load_config("configs/ego4d_slowfast_egovlp.yaml"), "data/planted_ego4d", training=8, validation=4)

Same folders, widths, file names, stride, frames per feature, frame rate and number of classes as the real data; the signal is
that of libs/datasets/synthetic/planted.py, its channels split among the folders in their order.  Annotations are generated, or
those of a file (e.g. the real ActivityNet annotations) with class ids modulo the configuration's number of classes.
"""
from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from libs.core.config import dump_yaml, from_dict, to_dict
from libs.core.errors import UserError
from libs.core.schema import Config, as_tuple
from libs.datasets.annotations import Annotations, load_annotations
from libs.datasets.features.formats import NPZ_KEY, format_of
from libs.datasets.grid import expected_length
from libs.datasets.synthetic.planted import Difficulty, generator, make_video, make_world
from libs.utils.files.io import write_json_atomic, write_text_atomic
from libs.utils.files.staging import refuse_foreign, staged

ANNOTATIONS = "annotations.json"
AGNOSTIC_CLASSES = 5  # classes in generated annotations of a configuration with one class for all
USUAL = Difficulty()
LEFT_OUT = "left out"  # subset of the videos of an annotation file that get no features; they keep its classes complete


def plant(config: Config, out: str | os.PathLike, training: int, validation: int, annotations: str | None = None, seed: int = 0,
          seconds: tuple[float, float] = (60.0, 180.0), level: Difficulty = USUAL) -> Path:
    """Write annotations, features and a configuration that reads them into the folder `out`; returns the configuration's path.

    training, validation: videos of the first subset of train_split and of val_split; annotations: a file to take them from,
    evenly spread over its ids, None: generated ones of `seconds` length.  An earlier result is replaced.  Raises UserError for a
    file with too few videos, and for a configuration of features that cannot be planted (named modalities, .h5, .pt).
    """
    data, out = config.dataset, Path(out)
    if data.modalities is not None or data.feat_stride <= 0 or format_of(_extension(config) or "") not in (".npy", ".npz"):
        raise UserError(f"{config.source}: planted features need dataset.feat_stride above 0, dataset.file_ext .npy or .npz and "
                        "no dataset.modalities")
    if training < 1 or validation < 1 or seed < 0:
        raise UserError(f"{training} training and {validation} validation videos, seed {seed}: give at least one video of each "
                        "and a seed from 0 on")
    if config.train_split[0] == config.val_split[0]:
        raise UserError(f"{config.source}: train_split and val_split are both {config.train_split[0]}; name two subsets")
    fps = data.default_fps or 30.0
    subsets = {config.train_split[0]: training, config.val_split[0]: validation}
    if annotations is None:
        classes = data.num_classes if data.num_classes > 1 else AGNOSTIC_CLASSES
        database = _generated(seed, subsets, classes, fps, seconds)
    else:
        database = _chosen(load_annotations(annotations), subsets, data.num_classes, fps)
    folders, name = _folders(config), Path(config.source).stem or "planted"
    written = (*folders, ANNOTATIONS, f"{name}.yaml")
    refuse_foreign(out, set(written), "choose another folder")
    with staged(out, written) as work:
        for folder in folders:
            (work / folder).mkdir()
        _write_features(work, config, folders, database, seed, fps, level)
        write_json_atomic(work / ANNOTATIONS, {"version": f"planted for {name}", "database": database}, indent=None)
        write_text_atomic(work / f"{name}.yaml", _configuration(config, out, folders))
    return out / f"{name}.yaml"


def _write_features(work: Path, config: Config, folders: Mapping[str, int], database: Mapping[str, Any], seed: int, fps: float,
                    level: Difficulty) -> None:
    data, width = config.dataset, sum(folders.values())
    last_id = max(a["label_id"] for entry in database.values() for a in entry["annotations"])
    world = make_world(seed, max(data.num_classes, last_id + 1), width - width // 2, width // 2)
    borders = np.cumsum(list(folders.values()))[:-1]
    for video, entry in database.items():
        if entry["subset"] == LEFT_OUT:
            continue
        steps = expected_length(entry["duration"], fps, data.feat_stride, data.num_frames)
        events = [(*a["segment"], a["label_id"]) for a in entry["annotations"]]
        feats = make_video(world, seed, video, steps, events, fps, level, data.feat_stride, data.num_frames)
        for folder, part in zip(folders, np.split(feats, borders, axis=1), strict=True):
            path = work / folder / f"{data.file_prefix or ''}{video}{_extension(config)}"
            if path.suffix.lower() == ".npz":
                arrays: dict[str, Any] = {NPZ_KEY: part}
                np.savez(path, **arrays)
            else:
                np.save(path, part)


def _extension(config: Config) -> str | None:
    """The extension of the planted files: .npy for a format that is only read."""
    return ".npy" if config.dataset.file_ext == ".pkl" else config.dataset.file_ext


def _folders(config: Config) -> dict[str, int]:
    """Names of the feature folders and their widths, in order."""
    data = config.dataset
    paths, widths = as_tuple(data.feat_folder), as_tuple(data.input_dim)
    if len(paths) != len(widths):
        raise UserError(f"{config.source}: dataset.input_dim: {list(widths)} does not tell the width of each of the {len(paths)} "
                        "folders; write one per folder")
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        raise UserError(f"{config.source}: dataset.feat_folder: {', '.join(names)}: folders of one name cannot lie side by side")
    return dict(zip(names, widths, strict=True))


def _generated(seed: int, subsets: Mapping[str, int], classes: int, fps: float,
               seconds: tuple[float, float]) -> dict[str, dict[str, Any]]:
    """Videos with an action every 12 s or so, 1 to 30 s long; every class occurs in the first video of the first subset."""
    database: dict[str, dict[str, Any]] = {}
    first = True
    for subset, count in subsets.items():
        for i in range(count):
            rng = generator(seed, len(database), 4711)
            duration = round(float(rng.uniform(*seconds)), 2)
            number = max(round(duration / 12), 1)
            lengths = np.clip(np.exp(rng.normal(1.5, 0.7, number)), 1, min(30.0, 0.9 * duration))
            starts, labels = rng.uniform(0, duration - lengths), rng.integers(0, classes, number)
            items = [_item(s, s + n, k) for s, n, k in zip(starts.tolist(), lengths.tolist(), labels.tolist(), strict=True)]
            if first:  # short ones: the file must name all classes
                items += [_item(0.0, 0.5, k) for k in sorted(set(range(classes)) - set(labels.tolist()))]
            database[f"{subset}_{i:04d}"] = {"subset": subset, "duration": duration, "fps": fps, "annotations": items}
            first = False
    return database


def _chosen(annotations: Annotations, subsets: Mapping[str, int], classes: int, fps: float) -> dict[str, dict[str, Any]]:
    """Videos of a file, evenly spread over the sorted ids of each of its subsets of these names; the rest as LEFT_OUT."""
    kept: dict[str, str] = {}
    for subset, count in subsets.items():
        ids = sorted(v.id for v in annotations.of_subset((subset,)) if len(v.segments) and v.duration_s < math.inf)
        if len(ids) < count:
            raise UserError(f"{annotations.path}: has {len(ids)} videos of subset {subset!r} with segments and duration, {count} "
                            "are asked for; ask for fewer, or give another file")
        kept |= dict.fromkeys((ids[int((i + 0.5) * len(ids) / count)] for i in range(count)), subset)
    names = {i: name for name, i in annotations.label_ids.items()} if classes == 1 else {}
    database = {}
    for video in annotations.videos.values():
        labels = video.labels.tolist() if classes == 1 else (video.labels % classes).tolist()
        items = [_item(start, end, label, names.get(label))
                 for (start, end), label in zip(video.segments.tolist(), labels, strict=True)]
        duration = min(video.duration_s, 1e6)
        database[video.id] = {"subset": kept.get(video.id, LEFT_OUT), "duration": duration, "fps": fps, "annotations": items}
    return database


def _item(start: float, end: float, label: int, name: str | None = None) -> dict[str, Any]:
    return {"segment": [round(start, 3), round(end, 3)], "label": name or f"class {label:03d}", "label_id": label}


def _configuration(config: Config, out: Path, folders: Mapping[str, int]) -> str:
    """The configuration with the paths of the planted data, as YAML."""
    values = json.loads(json.dumps(to_dict(config)))
    paths = [str(out / folder) for folder in folders]
    values["dataset"] |= {"json_file": str(out / ANNOTATIONS), "feat_folder": paths if len(paths) > 1 else paths[0],
                          "file_ext": _extension(config), "subset_folders": False}
    return dump_yaml(from_dict(values, config.source))
