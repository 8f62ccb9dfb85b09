"""provenance.json beside feature files: their network, frames and times; written by tools/extract_features.py.

Feature vector t of a file covers frames t * stride .. t * stride + num_frames - 1 (counted at `fps`, where that is set).

    recorded = read_provenance("features").of("video_1")      what was recorded of a video
    known = combined("video_1", given, recorded, path)        with what the caller says; UserError where the two differ
    config = with_extractor(config)                           dataset.extractor, as the file beside the features says
"""
from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from libs.core.coerce import UNBOUNDED, coerce
from libs.core.errors import UserError
from libs.core.files import is_file
from libs.core.schema import Config, ExtractorConfig, as_tuple
from libs.datasets.annotations import LIMITS
from libs.utils.files.csv_files import to_number
from libs.utils.files.io import read_json

FILE_NAME = "provenance.json"
ROUNDING = {"fps": (1e-4, 0.0), "duration_s": (0.01, 0.5), "stride": (0.0, 0.0), "num_frames": (0.0, 0.0)}  # relative, absolute
NO_SETTINGS = ("format", "extractor", "preset", "offset", "streams", "channels", "libraries", "videos")
IN_STREAMS = {"mean": "mean", "std": "std", "method": "flow_method", "precision": "precision"}  # key of a stream -> setting
IDENTITY = ("channels", "sha256", "files", "parameters", "precision")  # keys of a stream: are its features the same?


class VideoTiming(NamedTuple):
    """What is known of a video's time, None: not known.

    fps: frames per second; duration_s: seconds; stride: frames between two feature vectors; num_frames: frames per vector.
    """

    fps: float | None = None
    duration_s: float | None = None
    stride: float | None = None
    num_frames: float | None = None

    def or_else(self, other: VideoTiming) -> VideoTiming:
        """These values, completed by those of `other`."""
        return VideoTiming(*(theirs if ours is None else ours for ours, theirs in zip(self, other, strict=True)))


class Provenance(NamedTuple):
    """A provenance file: stride in frames, frames per vector, fps of all videos (None: each has its own), what it lists."""

    path: str
    stride: float
    num_frames: float
    fps: float | None
    videos: dict[str, VideoTiming]

    def of(self, video_id: str) -> VideoTiming:
        """What the file says of a video; only what holds for all of them if it does not list this one."""
        return self.videos.get(video_id, VideoTiming(self.fps, None, self.stride, self.num_frames))


def read_provenance(folder: str | os.PathLike) -> Provenance | None:
    """The provenance of a folder of features, or of the folder of an .h5 file; None if there is no such file.

    Raises UserError as `parse_provenance`.
    """
    path = (Path(folder).parent if is_file(folder) else Path(folder)) / FILE_NAME
    return parse_provenance(str(path), read_json(path, "provenance file")) if is_file(path) else None


def parse_provenance(path: str, content: Any) -> Provenance:
    """The provenance in JSON `content`; UserError unless it has a stride and num_frames above 0, and videos with usable times."""
    content = content if isinstance(content, dict) else {}
    remedy = "correct the file, or remove it"
    try:
        stride, num_frames = (positive("", content.get(key), "frames") for key in ("stride", "num_frames"))
    except UserError:
        stride = num_frames = None
    if stride is None or num_frames is None:
        raise UserError(f"{path}: stride and num_frames are {content.get('stride')!r} and {content.get('num_frames')!r}; "
                        f"expected numbers of frames above 0, up to {LIMITS['frames'][1]:,}: {remedy}")
    entries = content.get("videos") or {}
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise UserError(f'{path}: videos: expected {{"<video id>": {{"fps": ..., "duration": ...}}}}; {remedy}')
    fps = positive(f"{path}: fps", content.get("fps"), "fps")
    return Provenance(path, stride, num_frames, fps, {
        vid: VideoTiming(positive(f"{path}: video {vid}: fps", entry.get("fps"), "fps") or fps,
                         positive(f"{path}: video {vid}: duration", entry.get("duration"), "duration"), stride, num_frames)
        for vid, entry in entries.items()})


def with_extractor(config: Config) -> Config:
    """The configuration with dataset.extractor from the provenance file of dataset.feat_folder; unchanged where there is none.

    Raises UserError for a configuration that says otherwise.
    """
    data, folders = config.dataset, as_tuple(config.dataset.feat_folder)
    if len(folders) > 1 or not folders[0]:
        return config
    path = Path(folders[0], config.train_split[0] if data.subset_folders else "", FILE_NAME)
    path = Path(folders[0]).parent / FILE_NAME if is_file(folders[0]) else path
    found = extractor_of(read_json(path, "provenance file"), str(path)) if is_file(path) else None
    if found is None or found == data.extractor:
        return config
    if data.extractor is not None:
        raise UserError(f"{config.source}: dataset.extractor: differs from what {path} says of these features; remove the key, "
                        "train.py fills it in")
    return dataclasses.replace(config, dataset=dataclasses.replace(data, extractor=found))


def extractor_of(content: Any, path: str) -> ExtractorConfig | None:
    """What the features of a provenance file depend on, without names of files; None if it does not say (another tool's)."""
    streams = content.get("streams") if isinstance(content, dict) else None
    if not isinstance(streams, list) or not all(isinstance(s, dict) and isinstance(s.get("name"), str) for s in streams):
        return None
    settings = {key: value for key, value in content.items() if key not in NO_SETTINGS}
    for stream in streams:
        settings |= {setting: stream[key] for key, setting in IN_STREAMS.items() if key in stream}
    parts = {stream["name"]: {key: _plain(stream[key]) for key in IDENTITY if key in stream} for stream in streams}
    try:
        return coerce({"name": content.get("extractor", "program"), "streams": parts,  # older files are all of programs
                       "settings": {key: _plain(value) for key, value in settings.items()}}, ExtractorConfig, UNBOUNDED)
    except ValueError as error:
        raise UserError(f"{path}: {error}; correct the file, or remove it") from error


def spans_of(made: ExtractorConfig) -> dict[str, tuple[int, int]]:
    """The channels [start, end) of each stream; {} where those of some are not known."""
    spans = {name: stream.get("channels") for name, stream in made.streams.items()}
    known = {name: (int(span[0]), int(span[1])) for name, span in spans.items() if isinstance(span, tuple) and len(span) == 2}
    return known if len(known) == len(spans) else {}


def _plain(value: Any) -> Any:
    """The value as one of a configuration's `Setting`s; a mapping and a list of other things than numbers as JSON text."""
    numbers = isinstance(value, (list, tuple)) and all(type(item) in (int, float) for item in value)
    return json.dumps(value) if isinstance(value, (dict, list, tuple)) and not numbers else value


def combined(video_id: str, given: VideoTiming, recorded: VideoTiming, path: str) -> VideoTiming:
    """What is given, completed by what the file `path` records; UserError, with both values, where they differ."""
    if differing := difference(given, recorded):
        name, ours, theirs = differing
        raise UserError(f"{path}: the features of video {video_id!r} have {name} {theirs:g}, but {name} {ours:g} is given; "
                        f"leave the {name} out, or correct {FILE_NAME}")
    return given.or_else(recorded)


def difference(ours: VideoTiming, theirs: VideoTiming) -> tuple[str, float, float] | None:
    """(name, our value, their value) of the first in which the two differ by more than rounding; None if they agree."""
    for field, (relative, absolute) in ROUNDING.items():
        a, b = getattr(ours, field), getattr(theirs, field)
        if None not in (a, b) and not math.isclose(a, b, rel_tol=relative, abs_tol=absolute):
            return field.removesuffix("_s"), a, b
    return None


def contradictions(provenance: Provenance, used: Mapping[str, VideoTiming]) -> dict[str, tuple[str, float, float]]:
    """Video -> (name, value used, value recorded), for the videos whose features have other times than those used."""
    found = {vid: difference(timing, provenance.of(vid)) for vid, timing in used.items()}
    return {vid: differing for vid, differing in found.items() if differing}


def positive(where: str, value: Any, kind: str) -> float | None:
    """A finite float above 0 from a number or text, within LIMITS[kind]; None where it is not given."""
    if value is None:
        return None
    try:
        number = to_number(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    low, high = LIMITS[kind]
    if not (math.isfinite(number) and number > 0):
        raise UserError(f"{where}: {value!r} is not a positive number; correct it")
    if not low <= number <= high:
        raise UserError(f"{where}: {value!r} is not between {low:g} and {high:g}; correct it")
    return number
