"""Which videos count: in training those with labels in use and all parts of them but one (cross-fitting), in evaluation all but a
list of them.

A cross-fitted teacher is several networks, one per part of the training videos, each trained on the other parts: every video is
taught by the network that has not seen it (cross-fitting: Chernozhukov et al., Double/debiased machine learning, 2018).
"""
from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable

from libs.core.errors import UserError, nearest
from libs.core.files import read_text
from libs.core.schema import Config
from libs.datasets.annotations import Annotations, Video
from libs.datasets.survey.subjects import subjects_of


def unlabelled_ids(videos: Iterable[Video], config: Config) -> frozenset[str]:
    """Videos of unlabelled_split, and all but a train_cfg.labelled_share of the others, chosen by a hash of their ids."""
    subsets = {v.id: v.subset for v in videos}
    further = {v for v, subset in subsets.items() if subset in config.unlabelled_split}
    ids = sorted(subsets.keys() - further, key=_hash)
    return frozenset(further | set(ids[max(round(config.train_cfg.labelled_share * len(ids)), 1):]))


def labelled_ids(config: Config, annotations: Annotations) -> set[str]:
    """The videos of train_split whose annotations are used, train_cfg.leave_out aside."""
    videos = annotations.of_subset([name.lower() for name in config.train_split])
    return {v.id for v in videos} - unlabelled_ids(videos, config)


def training_parts(config: Config, annotations: Annotations, parts: int) -> dict[str, int]:
    """Labelled training video -> its part, 0 to parts - 1.

    The parts are as equal in size as can be with all videos of a person or place (as their ids name them) in one part: the
    largest group first, then by a hash of its name, each goes to the smallest part.  UserError for fewer groups than parts.
    """
    subjects = subjects_of(list(annotations.videos), annotations.label_ids)
    groups: dict[str, list[str]] = defaultdict(list)
    for video in labelled_ids(config, annotations):
        groups[subjects.get(video, video)].append(video)
    if len(groups) < parts:
        what = "people or places" if subjects else "videos"
        raise UserError(f"{annotations.path}: subset {', '.join(config.train_split)} has {len(groups)} {what} to train on, too "
                        f"few for {parts} parts (train_cfg.leave_out, cross_fit of a teacher); use fewer parts")
    sizes, part_of = [0] * parts, {}
    for name in sorted(groups, key=lambda n: (-len(groups[n]), _hash(n))):
        part = sizes.index(min(sizes))
        sizes[part] += len(groups[name])
        part_of.update(dict.fromkeys(groups[name], part))
    return part_of


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def read_excluded(path: str | os.PathLike, known: Collection[str], source: str) -> frozenset[str]:
    """The ids of a file; empty lines and lines that begin with # count for nothing.

    UserError for a file without any id, and for ids that `known`, the videos of the annotations `source`, lacks.
    """
    lines = (line.strip() for line in read_text(path, "list of videos to leave out").splitlines())
    ids = [line for line in lines if line and not line.startswith("#")]
    if not ids:
        raise UserError(f"{path}: names no video; write one video id per line, or leave the option out")
    if strange := [video for video in ids if video not in known]:
        some = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        raise UserError(f"{path}: {len(strange)} of {len(ids)} videos are unknown to {source} ({some})"
                        f"{nearest(strange[0], known)}; write the ids as there, or take them out")
    return frozenset(ids)
