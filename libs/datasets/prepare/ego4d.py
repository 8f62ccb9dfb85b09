"""Ego4D Moment Queries, official annotation files and features of whole videos -> our JSON and features of clips.

    moments_train.json, moments_val.json:  {"videos": [{"video_uid", "split", "clips": [{"clip_uid", "video_start_sec",
        "video_end_sec", "annotations": [{"labels": [{"start_time", "end_time", "label", "primary"}]}]}]}]}

Each clip becomes one of our videos: times are seconds from the start of the clip, `offset` is its start in its video (s), `video`
the id of that video.  Only primary labels count (the 110 classes of the benchmark); the labels of all annotators are kept.
"""
from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from libs.core.errors import UserError, nearest
from libs.core.files import entries
from libs.datasets.features.store import FeatureStore
from libs.datasets.grid import expected_length
from libs.datasets.prepare.document import Document, entries_of, number
from libs.utils.files.io import read_json
from libs.utils.files.staging import refuse_foreign, staged

FPS, STRIDE, NUM_FRAMES = 30, 16, 32
SUBSETS = {"train": "training", "val": "validation", "test": "testing"}
ANNOTATIONS = "annotations/ego4d.json"


def convert_ego4d(paths: Sequence[str | os.PathLike]) -> Document:
    """Convert all files (train and val in any order; test clips have no labels) to one document.

    Clips of train and val without a primary label are left out and counted.  Raises UserError for another layout, and for a clip
    that is there twice.
    """
    document, bare = Document(", ".join(Path(p).name for p in paths), "Ego4D MQ"), []
    for path in paths:
        content = read_json(path, "Ego4D moments file (JSON)")
        if not isinstance(content, dict):
            raise UserError(f"{path}: holds a {type(content).__name__}; expected a moments file, {{\"videos\": [...]}}")
        for i, video in enumerate(entries_of(str(path), content, "videos")):
            where = f"{path}: videos[{i}]"
            subset = _text(where, video, "split")
            if subset not in SUBSETS:
                raise UserError(f"{where}.split: {subset!r}; expected {', '.join(SUBSETS)}")
            for j, clip in enumerate(entries_of(where, video, "clips")):
                clip_id = _add_clip(document, f"{where}.clips[{j}]", _text(where, video, "video_uid"), clip, SUBSETS[subset])
                if subset != "test" and not document.videos[clip_id]["annotations"]:
                    bare.append(clip_id)
    document.leave_out(bare, "(clips) without a primary label")
    return document


def cut_features(document: Document, sets: Mapping[str, str], out: str | os.PathLike, extension: str = ".pt") -> Iterator[str]:
    """Cut the features of every clip out of those of its video: `sets` maps a name to the folder of <video_uid><extension>,
    stride 16, 30 frames per second; written to out/<name>_features/<clip_uid>.npy, float32 (T, C).

    All sets get the same T, so that they can be joined.  A clip starts at the nearest feature vector.  Yields a line per set when
    everything is in place.  Raises UserError for missing features and for a video whose features end long before a clip does;
    then nothing is written.
    """
    stores = {name: FeatureStore(folder, None, extension) for name, folder in sets.items()}
    folders, out = [f"{name}_features" for name in sets], Path(out)
    missing = sorted({path for video in document.videos.values() for store in stores.values()
                      if (path := store.missing_path(video["video"]))})
    if missing:
        raise UserError(f"{missing[0]}: no such feature file ({len(missing)} are missing); download the features of all videos, "
                        "or correct the folder or --ext")
    for name in folders:
        ours = {path.name for path in entries(out / name) if path.suffix == ".npy" and path.stem in document.videos}
        refuse_foreign(out / name, ours, "move them away or choose another output folder")
    widths: dict[str, int] = {}
    rows, off_by = 0, 0.0
    with staged(out, folders) as work:
        for name in folders:
            (work / name).mkdir()
        for clip_id, clip in document.videos.items():
            first, count, off = _rows(clip, {store.path(clip["video"]): store.length(clip["video"]) for store in stores.values()})
            rows, off_by = rows + count, max(off_by, abs(off))
            for (name, store), folder in zip(stores.items(), folders, strict=True):
                feats = store.read(clip["video"], slice(first, first + count))
                if widths.setdefault(name, feats.shape[1]) != feats.shape[1]:
                    raise UserError(f"{store.path(clip['video'])}: has {feats.shape[1]} channels, the files before have "
                                    f"{widths[name]}; extract it again")
                np.save(work / folder / f"{clip_id}.npy", feats)
    for name, folder in zip(sets, folders, strict=True):
        yield (f"{out / folder}: {len(document.videos):,} clips, {rows:,} steps of {widths[name]} channels, starts off by at "
               f"most {off_by:.3f} s")


def _rows(clip: Mapping[str, Any], lengths: Mapping[str, int]) -> tuple[int, int, float]:
    """Index of the first feature vector of a clip, number of vectors, and seconds from the clip's start to the first one's."""
    start = clip["offset"] * FPS / STRIDE
    first = max(math.floor(start + 0.5), 0)
    wanted = expected_length(clip["duration"], FPS, STRIDE, NUM_FRAMES)
    path = min(lengths, key=lengths.__getitem__)
    count = min(wanted, lengths[path] - first)
    if count <= wanted // 2:
        raise UserError(f"{path}: has {lengths[path]} feature vectors, but a clip of {clip['duration']:g} s from "
                        f"{clip['offset']:g} s on needs the vectors {first} to {first + wanted - 1}; the features are not those "
                        f"of this video at stride {STRIDE} and {FPS} frames per second")
    return first, count, (first - start) * STRIDE / FPS


def _add_clip(document: Document, where: str, video: str, clip: Mapping[str, Any], subset: str) -> str:
    clip_id = _text(where, clip, "clip_uid")
    start, end = (number(f"{where}.{key}", clip.get(key)) for key in ("video_start_sec", "video_end_sec"))
    if not 0 <= start < end:
        raise UserError(f"{where}: goes from {start:g} to {end:g} s of its video; expected 0 <= video_start_sec < video_end_sec")
    document.add_video(clip_id, subset, end - start, FPS, offset=start, video=video)
    for k, annotation in enumerate(entries_of(where, clip, "annotations", optional=True)):
        for n, label in enumerate(entries_of(f"{where}.annotations[{k}]", annotation, "labels")):
            at = f"clip {clip_id!r}, annotations[{k}].labels[{n}]"
            if not isinstance(label.get("primary"), bool):
                raise UserError(f"{where}.annotations[{k}].labels[{n}].primary: {label.get('primary')!r}; expected true or false")
            if label["primary"]:
                document.add_segment(clip_id, at, label.get("start_time"), label.get("end_time"), label.get("label"))
    return clip_id


def _text(where: str, holder: Mapping[str, Any], key: str) -> str:
    value = holder.get(key)
    if not isinstance(value, str) or not value or "/" in value or "\\" in value or value.startswith("."):
        found = repr(value)[:60] if key in holder else f"missing{nearest(key, holder)}"
        raise UserError(f"{where}.{key}: {found}; expected a name")
    return value
