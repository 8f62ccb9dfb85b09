"""Features of videos for a trained network: by the extractor of its training (dataset.extractor), kept beside the videos.

    extractor = extractor_for(config, "model.pth.tar", None, {"device": "cpu"})      only the streams that the network reads
    made, failed = features_beside(["clips/a.mp4"], extractor)                       clips/features_descriptor_1a2b3c4d/a.npy
"""
from __future__ import annotations

import hashlib
import json
import os
import typing
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from libs.core.arguments import pairs
from libs.core.coerce import UNBOUNDED, coerce
from libs.core.errors import UserError, nearest, note
from libs.core.schema import FPS_LIMITS, Config, ExtractorConfig, FolderModality
from libs.core.yaml_text import parse as parse_yaml
from libs.datasets.features.provenance import FILE_NAME, extractor_of, spans_of
from libs.datasets.features.streams import declared_ranges
from libs.datasets.video.decoding import video_library
from libs.datasets.video.extract import extract_videos
from libs.datasets.video.extractors import EXTRACTORS, OR_NONE, create, spellings
from libs.datasets.video.extractors.base import Extractor
from libs.utils.files.io import check_writable
from libs.utils.progress import Progress

STREAMS = ("rgb", "flow")  # of all extractors
ONE_ON = {"low": 1.0}
BOUNDS: dict[str, dict[str, float]] = {"stride": ONE_ON, "num_frames": ONE_ON, "batch_size": ONE_ON,
                                       "fps": {"low": FPS_LIMITS[0], "high": FPS_LIMITS[1]}}


def named_settings(texts: Sequence[str], rgb_model: str | None, flow_model: str | None) -> dict[str, Any]:
    """Settings of an extractor, by name, as the options --extractor-set KEY=VALUE, --rgb-model and --flow-model give them."""
    weights = {key: value for key, value in (("rgb_model", rgb_model), ("flow_model", flow_model)) if value is not None}
    settings = pairs(texts, "--extractor-set", "KEY=VALUE")
    return {key: parse_yaml(text, f"--extractor-set {key}={text}") for key, text in settings.items()} | weights


def extractor_for(config: Config, checkpoint: str, asked: str | None, given: Mapping[str, Any]) -> Extractor:
    """The extractor `asked` for (None: the recorded one) with the settings `given`, for the streams that the network reads.

    asked: as `--extractor`; NAME alone has the recorded settings, a preset its own.  A stream of which the network reads no
    channel is left out, with its weights or its flow.  Raises UserError if the features would be others than those of the
    training, and as `create`; one warning where the checkpoint does not say what these were.
    """
    video_library()
    record = config.dataset.extractor
    _refuse_other_files(config, checkpoint)
    if record is None:
        return _unchecked(config, checkpoint, asked, given)
    text, kind, recorded = _recorded(record, checkpoint, asked)
    wanted = streams_read(config, record)
    left_out = _left_out(kind, [name for name in STREAMS if name not in wanted])
    settings = {**recorded, **typed(given, kind, "settings of the extractor"), **left_out}
    if unused := [f"--{key.replace('_', '-')}" for key in left_out if given.get(key)]:
        note(f"note: {checkpoint}: reads {' and '.join(wanted)} only, so {' and '.join(unused)} is not used")
    hints = typing.get_type_hints(kind.settings_class)
    if lacking := [name for name in wanted if f"{name}_model" in hints and not settings.get(f"{name}_model")]:
        files = " and ".join(f"--{name}-model (sha256 {record.streams[name].get('sha256')})" for name in lacking)
        raise UserError(f"{checkpoint}: was trained on features of the extractor {record.name}; name its weights: {files}")
    extractor = create(text, settings)
    made = extractor_of(extractor.describe(), text)
    if made is not None and (differing := difference(record, made, wanted)):
        what, theirs, ours = differing
        raise UserError(f"{checkpoint}: was trained on features of {record.name} with {what} {theirs}, but {what} {ours} is "
                        "asked for; leave --extractor and its settings out, or use those of the training")
    return extractor


def streams_read(config: Config, made: ExtractorConfig) -> list[str]:
    """The streams that have to be extracted: those of which the network reads channels, if a file of them alone can be read.

    Such files hold the first channels of the training's files, or just the channels that are read, in that order.
    """
    names = config.model.modalities
    modalities = config.dataset.modalities or {}
    spans = [(0, config.file_channels)] if names is None else [
        m for n in names if not isinstance(m := modalities[n], FolderModality)]
    channels = spans_of(made)
    read = [name for name, (start, end) in channels.items() if any(low < end and start < high for low, high in spans)]
    leading = read == list(channels)[:len(read)] and config.dataset.extractor is not None
    return read if read and (leading or spans == [channels[name] for name in read]) else list(made.streams)


def difference(record: ExtractorConfig, made: ExtractorConfig, streams: Collection[str]) -> tuple[str, Any, Any] | None:
    """(what, recorded value, value now) of the first difference in settings or in these streams; None if features are alike."""
    for key, theirs in record.settings.items():
        if (ours := made.settings.get(key)) != theirs:
            return key, theirs, ours
    for name in streams:
        before, now = record.streams[name], made.streams.get(name, {})
        for key in {**before, **now}:
            if key != "channels" and before.get(key) != now.get(key):
                return f"{key} of {name}", before.get(key), now.get(key)
    return None


def typed(settings: Mapping[str, Any], kind: type[Extractor], place: str) -> dict[str, Any]:
    """Settings as the extractor declares them; UserError, beginning with `place`, for an unknown name or an impossible value."""
    hints = typing.get_type_hints(kind.settings_class)
    found = {}
    for key, value in settings.items():
        if key not in hints:
            raise UserError(f"{place}: {key}: the extractor {kind.name} has no such setting{nearest(key, hints)}; it has "
                            f"{', '.join(hints)}")
        try:
            unset = value is None or (value == 0 and key in OR_NONE)  # 0 and not False: `create` takes it for None
            found[key] = value if unset else coerce(value, hints[key], {**UNBOUNDED, **BOUNDS.get(key, {})})
        except ValueError as error:
            raise UserError(f"{place}: {key}: {value!r}: {error}") from error
    return found


def features_beside(paths: Sequence[str], extractor: Extractor, folder: str | os.PathLike | None = None,
                    advance: Progress | None = None) -> tuple[dict[str, Path], dict[str, str]]:
    """Feature file of each video, extracted unless it is there; the line of each video that failed.

    folder: of the feature files; None: `features_<extractor>_<8 digits of its settings>` beside each video.  Raises UserError
    for videos of one name, for a folder that cannot be written, and as `extract_videos`.
    """
    names: dict[str, str] = {}
    for path in paths:
        if names.setdefault(Path(path).stem, path) != path:
            raise UserError(f"{path}: another video is called {Path(path).stem!r} too ({names[Path(path).stem]}); results go by "
                            "that name, so rename one file or run them apart")
    by_folder = defaultdict(list)
    for path in dict.fromkeys(paths):
        by_folder[Path(folder) if folder else Path(path).parent / folder_name(extractor)].append(path)
    for place in by_folder:
        try:
            check_writable(place / FILE_NAME)
        except UserError as error:
            raise UserError(f"{error}: --features-folder FOLDER keeps the features elsewhere, --no-cache nowhere") from error
    for line in extractor.told():
        note(line)
    made: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for place, videos in by_folder.items():
        new, _, lines = extract_videos(videos, place, extractor, advance=advance)
        failed |= lines
        made |= {path: place / f"{Path(path).stem}.npy" for path in videos if path not in lines}
        note(f"{place}: features of {len(videos) - len(lines)} videos by {extractor.name}, {new} of them new")
    return made, failed


def folder_name(extractor: Extractor) -> str:
    """Name of the folder beside a video, another one for other settings."""
    head = {key: value for key, value in extractor.describe().items() if key != "preset"}
    return f"features_{extractor.name}_{hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()[:8]}"


def _refuse_other_files(config: Config, checkpoint: str) -> None:
    modalities = config.dataset.modalities or {}
    if own := [n for n in config.model.modalities or () if isinstance(modalities[n], FolderModality)]:
        raise UserError(f"{checkpoint}: reads {own[0]} from files of its own, so its features cannot be made from a video alone; "
                        "extract the features of each stream, and name their folders here and with --stream")


def _unchecked(config: Config, checkpoint: str, asked: str | None, given: Mapping[str, Any]) -> Extractor:
    """The extractor for a checkpoint that does not say what made its features."""
    if asked is None:
        raise UserError(f"{checkpoint}: does not say which extractor made the features of its training (no {FILE_NAME} was "
                        f"beside them); name it: --extractor, of {', '.join(spellings())}, or name features in place of videos")
    kind = _kind(asked)
    settings = given if kind is None else typed(given, kind, "settings of the extractor")
    extractor = create(asked, settings)
    note(f"warning: {checkpoint}: does not say what made the features that it was trained on, so whether {asked} is that "
         "extractor, with these settings and weights, cannot be checked")
    made = extractor_of(extractor.describe(), asked)
    assert kind is not None
    assert made is not None
    width = sum(end - start for start, end in spans_of(made).values())
    if width and width not in (config.file_channels, config.model_channels, *(end for _, end in declared_ranges(config.dataset))):
        raise UserError(f"{checkpoint}: takes {config.file_channels} channels, as in training, but the extractor {asked} makes "
                        f"{width}; use the extractor, and all of the weights, of its training")
    left_out = _left_out(kind, [name for name in made.streams if name not in streams_read(config, made)])
    return create(asked, {**settings, **left_out}) if left_out else extractor


def _recorded(record: ExtractorConfig, checkpoint: str, asked: str | None) -> tuple[str, type[Extractor], dict[str, Any]]:
    """(spelling, class, settings that are as recorded) of the extractor asked for; UserError if it is another than recorded."""
    kind = EXTRACTORS.get(record.name)
    if kind is None:
        raise UserError(f"{checkpoint}: was trained on features of the extractor {record.name!r}, which this version does not "
                        f"have{nearest(record.name, EXTRACTORS)}; extract them with the version that has it, and name them here")
    if asked is not None and _kind(asked) not in (kind, None):
        raise UserError(f"{checkpoint}: was trained on features of the extractor {record.name}, but --extractor {asked} is asked "
                        "for; leave --extractor out")
    settings = typed(record.settings, kind, f"{checkpoint}: dataset.extractor")
    settings |= {key: 0 for key in OR_NONE if key in settings and settings[key] is None}  # None would be the preset's
    named = kind.argument[0] if kind.argument else ""
    if asked is None:
        argument = settings.get(named)
        return f"{kind.name}:{argument}" if argument else kind.name, kind, settings
    if ":" in asked:
        settings[named] = asked.partition(":")[2]
    return asked, kind, {} if asked in kind.presets else settings


def _kind(asked: str) -> type[Extractor] | None:
    """The class of a spelling; None for an unknown one."""
    return next((kind for kind in EXTRACTORS.values() if asked in kind.presets), EXTRACTORS.get(asked.partition(":")[0]))


def _left_out(kind: type[Extractor], streams: Collection[str]) -> dict[str, Any]:
    """Settings that leave out these streams, as far as the extractor can: their weights, or a switch of their name."""
    hints = typing.get_type_hints(kind.settings_class)
    return {key: value for name in streams for key, value in ((f"{name}_model", None), (name, False)) if key in hints}
