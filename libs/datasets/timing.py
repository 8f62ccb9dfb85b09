"""Whether the times of a dataset can be right: features against durations, frame rate, stride and what was recorded of them."""
from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from libs.core.schema import DatasetConfig
from libs.datasets.annotations import Video
from libs.datasets.features.provenance import VideoTiming, contradictions, read_provenance
from libs.datasets.grid import TOLERANCE, is_resampled, length_ratio
from libs.datasets.sample import Extent


def timing_warnings(data: DatasetConfig, source: str, subset: Collection[str], videos: Sequence[Video], extents: Sequence[Extent],
                    folders: Iterable[str]) -> Iterator[str]:
    """One text per cause; `source`: the configuration, as the texts begin; `extents`: of the videos; `folders`: of features."""
    odd = [e.mismatch for e in extents if e.mismatch]
    if odd:
        yield (f"{len(odd)} of {len(videos)} videos have features that do not match their duration (first: {odd[0]}); segments "
               "past the last feature are dropped in training")
    where = f"{source}subset {', '.join(subset)}: "
    fps = ("dataset.default_fps (null: the fps of the annotations)" if data.default_fps is not None
           else "the fps of the annotations (or set dataset.default_fps)")
    recorded = _recorded_otherwise(data, videos, extents, folders, fps)
    for text in recorded:
        yield where + text
    if not recorded and (mismatch := grid_mismatch(extents, data)):
        yield f"{where}{mismatch}: correct dataset.feat_stride, or {fps}"
    untimed = [(v.segments, e.end_s) for v, e in zip(videos, extents, strict=True) if not math.isfinite(v.duration_s)]
    late, count = sum(int((times[:, 0] >= end).sum()) for times, end in untimed), sum(len(times) for times, _ in untimed)
    if not recorded and late > TOLERANCE * count:
        yield (f"{where}{late} of {count} segments of videos without duration begin after the last feature: correct "
               f"dataset.feat_stride, or {fps}, or the segments")
    if is_resampled(data) and data.downsample_rate > 1:
        yield f"{source}dataset.downsample_rate: {data.downsample_rate} has no effect on resampled features"


def _recorded_otherwise(data: DatasetConfig, videos: Sequence[Video], extents: Sequence[Extent], folders: Iterable[str],
                        fps_remedy: str) -> list[str]:
    """Per folder, where its provenance.json contradicts fps, stride or window, which makes every time wrong."""
    if is_resampled(data):
        return []
    used = {video.id: VideoTiming(extent.grid.fps, None, data.feat_stride, data.num_frames)
            for video, extent in zip(videos, extents, strict=True)}
    texts = []
    for folder in folders:
        provenance = read_provenance(folder)
        if provenance and (found := contradictions(provenance, used)):
            vid, (name, ours, theirs) = next(iter(found.items()))
            remedy = {"fps": f"{fps_remedy}; tools/convert_annotations.py --features takes it from there",
                      "stride": "dataset.feat_stride"}.get(name, f"dataset.{name}")
            texts.append(f"{provenance.path} says otherwise of the features of {len(found)} of {len(used)} videos, so times "
                         f"are off: {name} of {vid!r} is {theirs:g} there and {ours:g} here; correct {remedy}")
    return texts


def grid_mismatch(extents: Sequence[Extent], data: DatasetConfig) -> str:
    """What is off, with the likely true values, if most videos have another length than fps and stride give; '' if they fit."""
    timed = [(e.file_length, e.expected, e.grid) for e in extents if e.expected is not None]
    ratio = length_ratio([length for length, _, _ in timed], [expected for _, expected, _ in timed])
    if ratio is None:
        return ""
    # half a step less: on average the last vector ends half a stride before the video does
    factor = float(np.median([(length - 0.5) / (expected - 0.5) for length, expected, _ in timed]))
    stride = timed[0][2].stride / data.downsample_rate
    fps, *others = {grid.fps for _, _, grid in timed}
    rate, likely = f"{fps:g} fps", f"{_likely(fps * factor)} fps"
    if others:
        rate, likely = "their fps", f"fps {factor:.3g} times as high"
    return (f"{len(timed)} videos have {ratio:.3g} times as many feature vectors (median) as their durations give at {rate}, "
            f"feat_stride {stride:g} and num_frames {timed[0][2].num_frames:g}, so times are off; feat_stride "
            f"{_likely(stride / factor)} would fit, or {likely}")


def _likely(value: float) -> str:
    """A stride or an fps as text; a whole number if one is within 2 %."""
    whole = round(value)
    return f"{whole}" if abs(value - whole) <= 0.02 * value else f"{value:.3g}"
