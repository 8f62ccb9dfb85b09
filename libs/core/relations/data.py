"""Relations between the keys of the dataset section, and of the streams that a network reads."""
from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from libs.core.errors import nearest
from libs.core.relations.fail import Fail
from libs.core.schema import Config, FolderModality, as_tuple


def repeated_folder(folders: Sequence[str]) -> str | None:
    """The first folder of features that is named twice; None: there is none."""
    known = [os.path.normpath(folder) for folder in folders]
    return next((folder for i, folder in enumerate(folders) if known[i] in known[:i]), None)


def check_paths(config: Config, fail: Fail) -> None:
    """Annotation file, folders of features, output folder."""
    data, modalities = config.dataset, config.dataset.modalities or {}
    if not data.json_file:
        fail("dataset.json_file", "is not set; name the annotation file, e.g. ./data/thumos/annotations/thumos14.json")
    own_folders = bool(modalities) and all(isinstance(m, FolderModality) for m in modalities.values())
    if own_folders and config.model.modalities is None:
        fail("model.modalities", f"is not set, but every modality has a folder of its own; name those that the model reads, of "
             f"{', '.join(modalities)}")
    if not own_folders and (not data.feat_folder or (isinstance(data.feat_folder, tuple) and not all(data.feat_folder))):
        fail("dataset.feat_folder", "is not set; name the folder of feature files, e.g. ./data/thumos/i3d_features")
    if repeated := repeated_folder(as_tuple(data.feat_folder)):
        fail("dataset.feat_folder", f"names {repeated} twice, which would double its channels; name it once")
    if not config.output_folder:
        fail("output_folder", "is empty; name the folder that runs are written to, e.g. ./ckpt/")


def check_subsets(config: Config, fail: Fail) -> None:
    """Names of subsets."""
    for name in ("train_split", "val_split"):
        if not getattr(config, name) or not all(getattr(config, name)):
            fail(name, "names no subset of the annotation file; write e.g. [validation]")
    if both := set(config.unlabelled_split) & set(config.train_split + config.val_split):
        fail("unlabelled_split", f"{sorted(both)[0]!r} is in train_split or val_split too; a subset belongs to one of them")


def check_channels(config: Config, fail: Fail) -> None:
    """dataset.input_dim and the channel ranges of dataset.modalities."""
    data, width = config.dataset, config.file_channels
    if isinstance(data.input_dim, tuple) and not data.input_dim:
        fail("dataset.input_dim", "is an empty list; write the number of channels of the feature files")
    ranges = {n: m for n, m in (data.modalities or {}).items() if not isinstance(m, FolderModality)}
    for name, (low, high) in ranges.items():
        if not low < high <= width:
            fail("dataset.modalities", f"{name}: [{low}, {high}] is not a range of channels; write [first, last + 1] inside the "
                 f"{width} channels of dataset.input_dim")
    for (a, (first, end)), (b, (start, stop)) in itertools.combinations(ranges.items(), 2):
        if max(first, start) < min(end, stop):
            fail("dataset.modalities", f"{a}: [{first}, {end}] and {b}: [{start}, {stop}] overlap; a channel belongs to one "
                 "modality")


def check_modalities(config: Config, fail: Fail) -> None:
    """Names in model.modalities and dataset.feature_gflop."""
    chosen, known = config.model.modalities, list(config.dataset.modalities or {})
    if (costs := config.dataset.feature_gflop) is not None and set(costs) != set(known):
        wrong = next((name for name in costs if name not in known), None)
        what = f"has no {next(n for n in known if n not in costs)}" if wrong is None else (
            f"{wrong!r} is not declared in dataset.modalities{nearest(wrong, known)}")
        fail("dataset.feature_gflop", f"{what}; give one number for each of {', '.join(known) or 'them, and declare them'}")
    if chosen is None:
        return
    if not known:
        fail("model.modalities", f"names {', '.join(chosen) or 'nothing'}, but dataset.modalities declares no channel ranges; "
             "declare them, e.g. {rgb: [0, 1024], flow: [1024, 2048]}")
    for name in chosen:
        if name not in known:
            guess = nearest(name, known)
            fail("model.modalities", f"{name!r} is not declared in dataset.modalities{guess}; use {', '.join(known)}")
    if not chosen or len(set(chosen)) < len(chosen):
        fail("model.modalities", f"{list(chosen)} must name one or more of {', '.join(known)}, each once; null reads all")


def check_dropped_modalities(config: Config, fail: Fail) -> None:
    """train_cfg.modality_dropout and test_cfg.drop_modalities against the streams that the network reads."""
    streams, dropped = list(config.stream_spans), config.test_cfg.drop_modalities
    if config.train_cfg.modality_dropout > 0 and len(streams) < 2:
        fail("train_cfg.modality_dropout", f"{config.train_cfg.modality_dropout:g}: the network reads {len(streams)} declared "
             "streams, and one must be left; declare two or more in dataset.modalities, or set modality_dropout: 0")
    if config.train_cfg.modality_dropout > 0 and config.train_cfg.cuda_graphs:
        fail("train_cfg.cuda_graphs", "true cannot record steps with train_cfg.modality_dropout; set it to false")
    for name in dropped:
        if name not in streams:
            fail("test_cfg.drop_modalities", f"{name!r} is not a stream that the network reads{nearest(name, streams)}; use "
                 f"{', '.join(streams) or 'none'}")
    if dropped and not set(streams) - set(dropped):
        fail("test_cfg.drop_modalities", f"{list(dropped)}: leaves no stream; keep one of them")
