"""The official THUMOS14 detection protocol and its ground-truth folder.

Per class and video: ground truths in file order each take the free detection with the highest IoU (not the highest score) if that
IoU is above the threshold; free detections that touch an `Ambiguous` segment are dropped, the other free ones are false
positives.  Then a stable sort of all videos, in name order, by descending score; average precision is the sum of the precision at
each true positive over the number of ground truths (no interpolation).
Source: the challenge's TH14evalDet_Updated.m, as described at the end of SPEC section 8.

Folder: `<Class>_test.txt` files with lines `<video> <start s> <end s>`, `Ambiguous_test.txt`, and `detclasslist.txt` with lines
`<class id> <class name>` (without it classes are numbered from 1 in the order of their names).
"""
from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from libs.core.errors import UserError, nearest
from libs.core.files import entries, exists, is_folder, read_text
from libs.utils.evaluation.matching import Groups, best_first, overlapping_pairs, pick_in_order
from libs.utils.evaluation.metrics import Scores, checked_tious, class_indices, codes_of, warn_about_unused
from libs.utils.evaluation.predictions import Detections, GroundTruth
from libs.utils.files.csv_files import to_number

AMBIGUOUS = "Ambiguous"
CLASS_LIST = "detclasslist.txt"


def evaluate_thumos14(detections: Detections, ground_truth: GroundTruth, tious: Sequence[float] | np.ndarray,
                      ambiguous: GroundTruth | None = None, label_names: Mapping[int, str] | None = None) -> Scores:
    """mAP by the official protocol, and recall after the last detection; inputs are not changed.

    ambiguous: segments (labels unused); unmatched detections that touch one are dropped.
    Duplicate ground truth is kept.  Predictions of a class without ground truth are ignored with one warning; without any
    prediction mAP is 0, with a warning.
    Raises UserError for non-finite numbers, a tIoU outside (0, 1], or no ground truth.
    """
    thresholds = checked_tious(tious)
    detections.check("detections")
    if len(ground_truth) == 0:
        raise UserError("the ground truth has no segment to find, so no mAP exists; check the split and the annotations")
    class_ids, gt_class = np.unique(ground_truth.label, return_inverse=True)
    num_classes = len(class_ids)
    det_class, known = class_indices(detections.label, class_ids)
    used = warn_about_unused(detections, known)

    codes = {name: rank for rank, name in enumerate(sorted(set(detections.video_id.tolist())))}
    name_rank = codes_of(detections.video_id, codes)[used]
    order = np.lexsort((name_rank, -detections.score[used], det_class[used]))
    used, name_rank = used[order], name_rank[order]  # class, descending score, video name, file order (lexsort is stable)
    det_class = det_class[used]
    det_segments = np.stack([detections.t_start[used], detections.t_end[used]])

    groups = Groups.of(name_rank * num_classes + det_class)
    gt_video = codes_of(ground_truth.video_id, codes)
    gt_group = groups.find(np.where(gt_video < 0, -1, gt_video * num_classes + gt_class))
    hit = np.zeros((len(thresholds), len(used)), bool)
    for gt_index, det_index, iou in overlapping_pairs(np.stack([ground_truth.t_start, ground_truth.t_end]), gt_group,
                                                      det_segments, groups, at_least=float(thresholds.min()), hull=True):
        order = best_first(gt_index, det_index, iou)
        hit |= pick_in_order(gt_index[order], det_index[order], iou[order] > thresholds[:, None], hit) >= 0
    excused = _touching(det_segments, name_rank, codes, ambiguous)

    totals = np.bincount(gt_class, minlength=num_classes)
    sizes = np.bincount(det_class, minlength=num_classes)
    ap, recall = np.zeros((2, len(thresholds), num_classes))
    for c, end in enumerate(np.cumsum(sizes)):
        rows = slice(end - sizes[c], end)
        for i, hits in enumerate(hit[:, rows]):
            hits = hits[hits | ~excused[rows]]
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            ap[i, c] = precision[hits].sum() / totals[c]
            recall[i, c] = hits.sum() / totals[c]
    counts = {"predictions": len(used), "ground_truth": len(ground_truth), "ambiguous": len(ambiguous or ()),
              "predictions_ignored": len(detections) - len(used)}
    return Scores(thresholds, class_ids, ap, recall[:, None], ("recall",), counts, label_names)


@dataclass(frozen=True, eq=False)
class ThumosFolder:
    """An official annotation folder: subset ('test' or 'val'), ground truth, ambiguous segments (label -1), class name -> id, and
    the ids of all videos in its files."""

    subset: str
    ground_truth: GroundTruth
    ambiguous: GroundTruth
    label_ids: Mapping[str, int]
    video_ids: frozenset[str]


def load_thumos14_folder(folder: str | Path, subset: str | None = None) -> ThumosFolder:
    """Read the `<Class>_<subset>.txt` files; subset: 'test' or 'val', optional if the folder has only one.

    Raises UserError with the file and the line for malformed lines, classes that the class list lacks, and missing files.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise UserError(f"{folder}: is not a folder; name the one with the official <Class>_test.txt files")
    found = [(match[1], match[2], path) for path in entries(folder)
             if (match := re.fullmatch(r"(\w+)_(test|val)\.txt", path.name))]
    subsets = sorted({suffix for _, suffix, _ in found})
    if not subsets:
        raise UserError(f"{folder}: has no <Class>_test.txt file; name the folder with the official THUMOS14 annotations")
    if subset is None and len(subsets) > 1:
        raise UserError(f"{folder}: has files for {' and '.join(subsets)}; choose one with --split")
    subset = subset or subsets[0]
    if subset not in subsets:
        raise UserError(f"{folder}: has no <Class>_{subset}.txt file; its split is {' or '.join(subsets)}")
    files = {name: path for name, suffix, path in found if suffix == subset}
    label_ids = _class_list(folder, files)
    segments: list[tuple[str, float, float, int]] = []
    ambiguous: list[tuple[str, float, float, int]] = []
    for name, path in files.items():
        rows = ambiguous if name == AMBIGUOUS else segments
        rows += [(*row, label_ids.get(name, -1)) for row in _segment_lines(path)]
    ground_truth, excused = (_as_ground_truth(rows, str(folder)) for rows in (segments, ambiguous))
    return ThumosFolder(subset, ground_truth, excused, label_ids, frozenset(row[0] for row in segments + ambiguous))


def _as_ground_truth(rows: Sequence[tuple[str, float, float, int]], source: str) -> GroundTruth:
    video_id, t_start, t_end, label = zip(*rows, strict=True) if rows else ((), (), (), ())
    return GroundTruth.from_arrays(video_id, t_start, t_end, label, source)


def _touching(segments: np.ndarray, name_rank: np.ndarray, codes: Mapping[str, int], ambiguous: GroundTruth | None) -> np.ndarray:
    """Whether each detection shares more than a point in time with an ambiguous segment of its video."""
    touching = np.zeros(segments.shape[1], bool)
    if ambiguous is not None and len(ambiguous):
        groups = Groups.of(codes_of(ambiguous.video_id, codes))
        others = np.stack([ambiguous.t_start, ambiguous.t_end])
        for index, _, _ in overlapping_pairs(segments, groups.find(name_rank), others, groups, math.ulp(0.0), hull=True):
            touching[index] = True
    return touching


def _class_list(folder: Path, files: Mapping[str, Path]) -> dict[str, int]:
    classes = [name for name in files if name != AMBIGUOUS]
    if not exists(folder / CLASS_LIST):
        return {name: i for i, name in enumerate(sorted(classes), start=1)}
    label_ids: dict[str, int] = {}
    for number, line in _lines(folder / CLASS_LIST, "class list"):
        parts = line.split()
        if len(parts) != 2 or not parts[0].isdecimal() or parts[1] in label_ids or int(parts[0]) in label_ids.values():
            raise UserError(f"{folder / CLASS_LIST}: line {number} is {line!r}; expected '<class id> <class name>', each once")
        label_ids[parts[1]] = int(parts[0])
    for name in classes:
        if name not in label_ids:
            raise UserError(f"{files[name]}: the class {name!r} is not in {CLASS_LIST}{nearest(name, label_ids)}; add it there")
    return label_ids


def _segment_lines(path: Path) -> list[tuple[str, float, float]]:
    rows = []
    for number, line in _lines(path, "THUMOS14 annotation file"):
        parts = line.split()
        try:
            video, start, end = parts[0], to_number(parts[1]), to_number(parts[2])
            legal = len(parts) == 3 and math.isfinite(start) and math.isfinite(end) and start <= end
        except (IndexError, ValueError):
            legal = False
        if not legal:
            raise UserError(f"{path}: line {number} is {line!r}; expected '<video> <start> <end>', seconds, start before end")
        rows.append((video, start, end))
    return rows


def _lines(path: Path, what: str) -> list[tuple[int, str]]:
    return [(number, line.strip()) for number, line in enumerate(read_text(path, what).splitlines(), start=1) if line.strip()]
