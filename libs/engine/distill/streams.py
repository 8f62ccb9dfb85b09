"""The streams (modalities) that a batch holds, and the channels of each network's input among them."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from libs.core.errors import UserError
from libs.core.schema import Config, FolderModality


def streams_to_read(config: Config, teachers: Sequence[Config]) -> tuple[str, ...] | None:
    """Modalities that a batch must hold for a student and its teachers, the student's first; None: all channels as stored."""
    wanted = [c.model.modalities for c in (config, *teachers)]
    if all(names is None for names in wanted):
        return None
    return tuple(dict.fromkeys(name for names in wanted for name in (all_streams(config) if names is None else names)))


def all_streams(config: Config) -> tuple[str, ...]:
    """The declared modalities in channel order; UserError unless they cover all channels of the files without gaps."""
    ranges = sorted((span, name) for name, span in channel_ranges(config).items())
    borders = [0, *(end for (_, end), _ in ranges)]
    if [start for (start, _), _ in ranges] != borders[:-1] or borders[-1] != config.file_channels:
        raise UserError(f"{config.source}: dataset.modalities: a model that reads all channels learns from, or teaches, one that "
                        f"reads some, so the ranges must make up all {config.file_channels} channels without gaps; declare them")
    return tuple(name for _, name in ranges)


def channel_ranges(config: Config) -> dict[str, tuple[int, int]]:
    """The modalities that are channel ranges of dataset.feat_folder: name -> (first channel, end)."""
    return {name: m for name, m in (config.dataset.modalities or {}).items() if not isinstance(m, FolderModality)}


def moved_channels(first: Config, second: Config, names: Sequence[str]) -> list[str]:
    """Those of `names` that two configurations place at different channels of the same dataset.feat_folder."""
    if first.dataset.feat_folder != second.dataset.feat_folder:
        return []
    one, other = channel_ranges(first), channel_ranges(second)
    return [name for name in names if name in one and name in other and one[name] != other[name]]


class Columns:
    """Picks the channels of the streams `wanted` out of a tensor that holds the streams `held`; None: all channels."""

    def __init__(self, config: Config, held: tuple[str, ...] | None, wanted: tuple[str, ...] | None):
        self.slices: list[slice] = []  # empty: all channels, as they are
        if held is None:
            return
        names = all_streams(config) if wanted is None else wanted
        if names != held:
            ends = accumulate(config.modality_dim(name) for name in held)
            place = {name: slice(end - config.modality_dim(name), end) for name, end in zip(held, ends, strict=True)}
            self.slices = [place[name] for name in names]

    def __call__(self, feats_BTC: Tensor) -> Tensor:
        """(B, T, channels held) -> (B, T, channels wanted)."""
        if not self.slices:
            return feats_BTC
        return torch.cat([feats_BTC[..., s] for s in self.slices], dim=-1)


def input_columns(student: Config, teacher: Config, name: str) -> Columns:
    """Brings the backbone input of the teacher `name` into the student's channel order.

    UserError if the student's backbone reads a modality that the teacher's does not.
    """
    if student.model.modalities is None and teacher.model.modalities is None:
        return Columns(student, None, None)
    wanted, held = (all_streams(student) if c.model.modalities is None else c.model.modalities + c.model.hallucinated
                    for c in (student, teacher))
    if absent := [n for n in wanted if n not in held]:
        raise UserError(f"{student.source}: distill.inputs: the student's backbone sees {absent[0]!r}, the backbone of "
                        f"{name} does not; set the factor of inputs to 0 for this teacher, or choose one that does")
    return Columns(student, held, wanted)
