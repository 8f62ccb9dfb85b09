"""The rules that differ between datasets, by `dataset_name`.  A new dataset is one more `Preset`."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from libs.core.errors import UserError, nearest


def _grid(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(np.linspace(low, high, count).tolist())


@dataclass(frozen=True)
class Preset:
    """Rules of one dataset (SPEC 2, 3, 6 to 9).

    tious: default thresholds of the mAP; all_classes: the file must name exactly num_classes classes (else at most);
    class_agnostic: with num_classes 1, every label becomes 0; find_empty_classes: report class ids without annotations;
    unlabelled: videos may lack the `annotations` key; needs_duration: every video must have a duration; drop_duplicates: remove
    repeated segments; trim: in training, clamp or drop segments past the last feature, and only warn of features that are much
    too short for their video; trim_any: keep every segment that starts before the last feature (SPEC_FAMILY F21), not only those
    with a share of dataset.trunc_thresh before it.
    """

    name: str
    tious: tuple[float, ...]
    all_classes: bool = False
    class_agnostic: bool = False
    find_empty_classes: bool = False
    unlabelled: bool = False
    needs_duration: bool = False
    drop_duplicates: bool = False
    trim: bool = False
    trim_any: bool = False


PRESETS = {preset.name: preset for preset in (
    Preset("thumos", _grid(0.3, 0.7, 5), all_classes=True),
    Preset("demo", _grid(0.3, 0.7, 5), all_classes=True),
    Preset("generic", _grid(0.3, 0.7, 5)),
    Preset("anet", _grid(0.5, 0.95, 10), all_classes=True, class_agnostic=True, needs_duration=True, drop_duplicates=True,
           trim=True),
    Preset("hacs", _grid(0.5, 0.95, 10), all_classes=True, needs_duration=True, drop_duplicates=True, trim=True,
           trim_any=True),
    Preset("multithumos", _grid(0.1, 0.9, 9), all_classes=True),
    Preset("epic", _grid(0.1, 0.5, 5), find_empty_classes=True),
    Preset("ego4d", _grid(0.1, 0.5, 5), all_classes=True, unlabelled=True),
)}


def get_preset(name: str) -> Preset:
    """The preset called `name`; UserError listing the names for any other."""
    if name not in PRESETS:
        raise UserError(f"dataset_name: {name!r} is not a known dataset{nearest(name, PRESETS)}; use one of "
                        f"{', '.join(PRESETS)} (generic: your own annotation file)")
    return PRESETS[name]
