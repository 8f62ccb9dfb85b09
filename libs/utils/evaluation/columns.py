"""Convert columns of predictions and ground truth to arrays of one length, check them, and group their rows by video."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from libs.core.errors import UserError


def as_columns(source: str, names: Sequence[str], video_id: Any, *numbers: Any) -> list[np.ndarray]:
    """(N,) arrays, copied: `video_id` as str, `label` as int64, the others as float64; `names`: those of all columns.

    Raises UserError with `source` and the column for values that are not numbers, and for columns of different lengths.
    """
    columns = [np.array(video_id, dtype=np.str_).reshape(-1)]
    for name, values in zip(names[1:], numbers, strict=True):
        try:
            column = as_integers(source, values) if name == "label" else as_reals(values)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{source}: the column {name} does not hold numbers ({str(error)[:160]})") from error
        columns.append(column)
    lengths = {name: len(column) for name, column in zip(names, columns, strict=True)}
    if len(set(lengths.values())) != 1:
        raise UserError(f"{source}: the columns have different lengths {lengths}; every row needs all of them")
    return columns


def as_reals(values: Any) -> np.ndarray:
    """(N,) float64 of a flat list or array of real numbers; TypeError for other types (text, complex), ValueError for shapes."""
    kinds = (list, tuple, dict, str, bytes, bool, set, np.ndarray)
    if isinstance(values, (list, tuple)) and any(issubclass(kind, kinds) for kind in {*map(type, values)}):
        raise TypeError("it holds values that are not numbers")
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"it has the shape {array.shape}, not one value per row")
    if array.size and array.dtype.kind not in "iuf":
        raise TypeError(f"it holds values of type {array.dtype}")
    return array.astype(np.float64)


def as_integers(source: str, values: Any) -> np.ndarray:
    """(N,) int64 of whole numbers; UserError for other numbers and beyond 64 bits."""
    values = np.array(values).reshape(-1)
    whole = values.dtype.kind in "iuf" and np.isfinite(values).all() and (values % 1 == 0).all()
    if values.size and not (whole and float(values.min()) >= -2.0**63 and float(values.max()) < 2.0**63):
        raise UserError(f"{source}: the labels are not integer class ids ({values.dtype}, for example {str(values[0])[:60]!r}); "
                        "give whole numbers")
    return values.astype(np.int64)


def check_segments(source: str, video_id: np.ndarray, t_start: np.ndarray, t_end: np.ndarray) -> None:
    """UserError naming `source`, row and video unless all times are finite and no segment ends before it starts."""
    check_finite(source, video_id, "t_start", t_start)
    check_finite(source, video_id, "t_end", t_end)
    reversed_rows = np.flatnonzero(t_end < t_start)
    if reversed_rows.size:
        i = reversed_rows[0]
        raise UserError(f"{source}: entry {i} (video {video_id[i]}): the segment [{t_start[i]}, {t_end[i]}] ends before it "
                        f"starts ({reversed_rows.size} such); give start and end in seconds")


def check_finite(source: str, video_id: np.ndarray, name: str, values: np.ndarray) -> None:
    """UserError naming `source`, row, video and column `name` unless all values are finite."""
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        i = bad[0]
        raise UserError(f"{source}: entry {i} (video {video_id[i]}): {name} is {values[i]} ({bad.size} such); every score and "
                        "time must be a finite number")


def rows_by_video(video_id: np.ndarray, *keys: np.ndarray) -> dict[str, np.ndarray]:
    """Video id -> its row numbers, in the order of the ids; rows of a video by ascending `keys` (the last one first; stable)."""
    names, video = np.unique(video_id, return_inverse=True)
    order = np.lexsort((*keys, video))
    ends = np.cumsum(np.bincount(video, minlength=len(names)))
    return dict(zip(names.tolist(), np.split(order, ends[:-1]), strict=False))  # no rows: split gives one empty part
