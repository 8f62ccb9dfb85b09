"""ActivityNet-1.3 and HACS Segments, official annotation files -> our JSON (libs/datasets/annotations.py).

    activity_net.v1-3.min.json, HACS_segments_v1.1.1.json:
        {"database": {id: {"subset", "duration", "annotations": [{"segment": [s, e], "label"}]}}, "taxonomy": ..., "version": ...}
    the file that comes with BMN (anet_anno_action.json), which has no subsets:
        {"v_" + id: {"duration_second", "duration_frame", "feature_frame", "annotations"}}

If all ids start with "v_", the prefix of the feature files, it is removed.  Class ids follow the sorted names.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from libs.core.errors import UserError, article, nearest
from libs.datasets.features.store import FeatureStore
from libs.datasets.prepare.document import Document, entries_of, read_official
from libs.utils.files.csv_files import numbered_rows, read_csv

SUBSETS = ("training", "validation", "testing")
PREFIX = "v_"


def convert_activitynet(path: str | os.PathLike, version: str, what: str, video_info: str | os.PathLike | None = None,
                        validation_every: int | None = None) -> Document:
    """Convert an official annotation file.

    For a file without subsets, give video_info, a CSV with the columns video and subset (as in BMN), or validation_every n: every
    n-th id in sorted order is validation, the others training.  Raises UserError for any other layout than the official one.
    """
    database = read_official(path, what)
    subsets = _subsets(path, database, video_info, validation_every)
    document = Document(path, version)
    prefix = PREFIX if all(key.startswith(PREFIX) for key in database) else ""
    for key in sorted(database):
        entry, video = database[key], key.removeprefix(prefix)
        where = f"{path}: video {key!r}"
        duration = entry.get("duration", entry.get("duration_second"))
        if duration is None:
            raise UserError(f"{where}: has no duration{nearest('duration', entry)}; expected {article(what)}")
        document.add_video(video, subsets[key], duration)
        for i, item in enumerate(entries_of(where, entry, "annotations")):
            segment = item.get("segment")
            if not isinstance(segment, list) or len(segment) != 2:
                raise UserError(f"{where}: annotations[{i}].segment is {str(segment)[:60]}; expected [start, end] in seconds")
            start, end = segment
            document.add_segment(video, f"video {key!r}, annotations[{i}]", start, end, item.get("label"))
    return document


def add_arguments(parser: argparse.ArgumentParser, prefix: str) -> None:
    """The arguments that the scripts for files of this layout share; prefix: the usual one of the feature files."""
    parser.add_argument("out", metavar="OUT", help="annotation file to write")
    parser.add_argument("--features", metavar="FOLDER", help="feature files (a folder, or one .h5/.hdf5): keep only their videos")
    parser.add_argument("--prefix", default=prefix,
                        help=f"before the id in a feature file's name (default: {prefix or 'nothing'})")
    parser.add_argument("--ext", default=".npy", help="extension of the feature files (default: .npy)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def keep_videos_with_features(document: Document, folder: str, prefix: str = PREFIX, extension: str = ".npy") -> None:
    """Leave out videos without a feature file (many are no longer available); UserError if none has one."""
    store = FeatureStore(folder, prefix, extension)
    missing = [video for video in document.videos if not store.exists(video)]
    if len(missing) == len(document.videos):
        raise UserError(f"{folder}: has features of none of the {len(missing)} videos (first looked for: "
                        f"{store.path(missing[0])}); check the folder, --prefix and --ext")
    document.leave_out(missing, f"without features in {folder}")


def _subsets(path: str | os.PathLike, database: Mapping[str, Mapping[str, Any]], video_info: str | os.PathLike | None,
             validation_every: int | None) -> dict[str, str]:
    """Subset of every key of the database."""
    given = [key for key, entry in database.items() if entry.get("subset") is not None]
    if given and (video_info is not None or validation_every is not None):
        raise UserError(f"{path}: has subsets of its own (first: {given[0]!r}); leave out --video-info and "
                        "--validation-every")
    if validation_every is not None:
        if video_info is not None or validation_every < 2:
            raise UserError(f"--validation-every {validation_every}: give a number from 2 on, or --video-info, not both")
        chosen = set(sorted(database)[validation_every - 1::validation_every])
        return {key: "validation" if key in chosen else "training" for key in database}
    if video_info is not None:
        return _subsets_of_table(path, database, video_info)
    for key, entry in database.items():
        if str(entry.get("subset")).lower() not in SUBSETS:
            missing = ("missing; a file without subsets needs --video-info or --validation-every" if "subset" not in entry
                       else f"{entry['subset']!r}; expected {', '.join(SUBSETS)}")
            raise UserError(f"{path}: video {key!r}.subset: {missing}")
    return {key: entry["subset"] for key, entry in database.items()}


def _subsets_of_table(path: str | os.PathLike, database: Mapping[str, Any], video_info: str | os.PathLike) -> dict[str, str]:
    subsets = {}
    for line, row in numbered_rows(read_csv(video_info, required=("video", "subset"), what="list of videos")):
        if row["subset"].lower() not in SUBSETS:
            raise UserError(f"{video_info}: line {line}: subset {row['subset']!r}; expected {', '.join(SUBSETS)}")
        subsets[row["video"]] = row["subset"]
    if missing := [key for key in database if key not in subsets]:
        raise UserError(f"{video_info}: does not name {len(missing)} of the {len(database)} videos of {Path(path).name} "
                        f"(first: {missing[0]}); give the list that belongs to it")
    return subsets
