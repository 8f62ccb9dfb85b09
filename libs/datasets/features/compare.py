"""Whether two feature files of one video come from the same chain: cosine per stream and step, search for a shift, a verdict.

    for result in compare(ours, theirs, {"rgb": (0, 1024), "flow": (1024, 2048)}): ...
    print(verdict(results))
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from libs.core.errors import UserError, nearest
from libs.core.files import entries, exists, is_file, is_folder
from libs.datasets.features.formats import OPENERS, format_of
from libs.datasets.features.provenance import FILE_NAME
from libs.datasets.features.store import FeatureStore
from libs.utils.files.io import read_json

MOST_SHIFT = 8  # steps
SAME, NEAR = 0.995, 0.95  # mean cosine from which on features count as those of one chain, and as nearly so
SAME_STEP, NEAR_STEP = 0.9, 0.5  # and the share of the way from `elsewhere` to 1
GAIN = 0.002  # by which a shift, or the other stream, has to be better
SIZES = (0.95, 1.05)  # of the ratio of norms that still counts as equal
HALVES = 2048  # width of the published I3D features, RGB first


@dataclass(frozen=True)
class Compared:
    """One stream of one video.

    steps: (ours, theirs); cosines: of the common steps; shifted: mean cosine by shift s, our step t beside their step t + s;
    elsewhere: mean cosine with their steps half a video away; size: median ratio of the norms, ours to theirs; crossed: stream of
    theirs, of equal width, that is nearer than this one, and its mean cosine.
    """

    stream: str
    steps: tuple[int, int]
    cosines: np.ndarray
    shifted: dict[int, float]
    elsewhere: float
    size: float
    crossed: tuple[str, float] | None = None

    @property
    def mean(self) -> float:
        """Mean cosine of the common steps."""
        return float(self.cosines.mean())

    @property
    def shift(self) -> int:
        """The best shift in steps; 0 unless another is clearly better and then at least near."""
        best = max(self.shifted, key=lambda s: self.shifted[s])
        return best if self.shifted[best] > max(self.shifted[0] + GAIN, NEAR) else 0

    @property
    def level(self) -> str:
        """'matches', 'is near' or 'differs', without a shift."""
        share = 1 - (1 - self.mean) / max(1 - self.elsewhere, 1e-6)
        if self.mean >= SAME and share >= SAME_STEP and SIZES[0] <= self.size <= SIZES[1]:
            return "matches"
        return "is near" if self.mean >= NEAR and share >= NEAR_STEP else "differs"


def feature_files(path: Path) -> dict[str, Path]:
    """Name without extension -> file: a feature file, or all in a folder; UserError if there is none."""
    if is_file(path) and format_of(path.suffix):
        return {path.stem: path}
    found = {p.stem: p for p in entries(path) if is_file(p) and format_of(p.suffix)} if is_folder(path) else {}
    if not found:
        what = "holds no feature files" if is_folder(path) else "is no feature file" if exists(path) else "no such file or folder"
        raise UserError(f"{path}: {what}; name a file ({', '.join(OPENERS)}), or a folder of them")
    return found


def pairs(ours: Path, theirs: Path) -> dict[str, tuple[Path, Path]]:
    """Name -> (our file, their file): two files, whatever their names, or those of one name; UserError if there are none."""
    a, b = feature_files(ours), feature_files(theirs)
    if is_file(ours) and is_file(theirs):
        return {ours.stem: (ours, theirs)}
    if not (common := [name for name in a if name in b]):
        name = next(iter(a))
        raise UserError(f"{ours}, {theirs}: no file of one name in both, e.g. {name!r}{nearest(name, b)}; rename files, or name "
                        "two")
    return {name: (a[name], b[name]) for name in common}


def read(path: Path) -> np.ndarray:
    """(T, C) float32; UserError as `FeatureStore.read`."""
    return FeatureStore(str(path.parent), "", path.suffix).read(path.stem)


def streams_of(files: Sequence[Path], width: int) -> dict[str, tuple[int, int]]:
    """Stream -> range of channels: as a provenance file beside one of the files says, else halves of 2048, else one stream."""
    for folder in dict.fromkeys(path.parent for path in files):
        if is_file(folder / FILE_NAME):
            content: Any = read_json(folder / FILE_NAME, "provenance file")
            parts = content.get("streams", []) if isinstance(content, dict) else []
            found = {part["name"]: tuple(part["channels"]) for part in parts if isinstance(part, dict) and "channels" in part}
            if found and max(high for _, high in found.values()) == width:
                return found
    return {"rgb": (0, HALVES // 2), "flow": (HALVES // 2, HALVES)} if width == HALVES else {"all": (0, width)}


def compare(ours: np.ndarray, theirs: np.ndarray, streams: Mapping[str, tuple[int, int]]) -> list[Compared]:
    """Features (T, C) and (T', C) of one video, stream by stream."""
    unit = {name: [_unit(x[:, low:high]) for x in (ours, theirs)] for name, (low, high) in streams.items()}
    results = []
    for name, (a, b) in unit.items():
        cosines = _at(a, b, 0)
        reach = min(MOST_SHIFT, min(len(a), len(b)) - 1)
        shifted = {s: float(_at(a, b, s).mean()) for s in range(-reach, reach + 1)}
        crossed = {other: float(_at(a, y, 0).mean()) for other, (_, y) in unit.items()
                   if other != name and y.shape[1] == a.shape[1]}
        best = max(crossed.items(), key=lambda item: item[1], default=None)
        low, high = streams[name]
        common = len(cosines)
        norms = [np.linalg.norm(x[:common, low:high], axis=1) for x in (ours, theirs)]
        results.append(Compared(name, (len(ours), len(theirs)), cosines, shifted,
                                float(_at(np.roll(a[:common], common // 2, axis=0), b, 0).mean()),
                                float(np.median(norms[0] / np.maximum(norms[1], 1e-12))),
                                best if best and best[1] > max(cosines.mean() + GAIN, NEAR) else None))
    return results


def verdict(results: Mapping[str, Sequence[Compared]], stride: float | None = None) -> tuple[bool, str]:
    """(whether all streams match or are near, one line for the user) of the results by video.

    stride: frames between steps, if known.
    """
    streams: dict[str, list[Compared]] = {}
    for result in (r for video in results.values() for r in video):
        streams.setdefault(result.stream, []).append(result)
    videos = next(iter(streams.values()))
    uneven = [r.steps for r in videos if r.steps[0] != r.steps[1]]
    lengths = f"; {len(uneven)} of {len(videos)} videos differ in length, as {uneven[0]} steps" if uneven else ""
    for name, found in streams.items():
        crossed = [r.crossed for r in found if r.crossed]
        if len(crossed) > len(found) / 2:
            other, cosine = crossed[0]
            return False, f"other order of streams: our {name} is like their {other} (cosine {cosine:.3f}){lengths}"
    for name, found in streams.items():
        shifts = [r.shift for r in found]
        if shift := max(set(shifts), key=shifts.count):
            told = f"{shift:+d} steps" + (f", {shift * stride:+g} frames" if stride else "")
            cosine = float(np.mean([r.shifted[shift] for r in found if shift in r.shifted]))
            return False, (f"shifted: our {name} at step t is theirs at t {told} (cosine {cosine:.3f}); check the dropped first "
                           f"frame, fps and stride{lengths}")
    order = ("differs", "is near", "matches")
    levels = {name: min((r.level for r in found), key=order.index) for name, found in streams.items()}
    told = ", ".join(f"{name} {levels[name]} (cosine {np.mean([r.mean for r in found]):.4f}, with other steps "
                     f"{np.mean([r.elsewhere for r in found]):.2f}, size {np.median([r.size for r in found]):.2f})"
                     for name, found in streams.items())
    return "differs" not in levels.values(), told + lengths


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _at(a: np.ndarray, b: np.ndarray, shift: int) -> np.ndarray:
    """Cosines of a[t] and b[t + shift], unit vectors, where both exist."""
    first, second = a[max(-shift, 0):], b[max(shift, 0):]
    common = min(len(first), len(second))
    return (first[:common] * second[:common]).sum(1)
