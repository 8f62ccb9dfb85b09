"""Score thresholds for deployment: keep only confident detections (mAP, in contrast, needs the low scores too)."""
from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from libs.core.errors import UserError, nearest
from libs.core.files import read_text
from libs.core.yaml_text import parse
from libs.utils.evaluation.predictions import Detections


def read_thresholds(path: str | os.PathLike) -> dict[str, float]:
    """{class name: least score} from a JSON or YAML file; UserError with the file, the class and the value."""
    content = parse(read_text(path, "file of thresholds"), str(path))
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: expected {{class name: least score, ...}}")
    return {str(name): check_threshold(value, f"{path}: {name}") for name, value in content.items()}


def check_threshold(value: object, where: str) -> float:
    """`value` as a float; UserError with `where` unless it is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UserError(f"{where}: {value!r} is not a score; use a number from 0 to 1")
    return float(value)


def above(detections: Detections, threshold: float, per_class: Mapping[str, float], label_names: Mapping[int, str],
          source: str = "thresholds") -> Detections:
    """The rows with a score of at least the threshold of their class in `per_class`, else `threshold`; order is kept.

    Raises UserError for an unknown class name (`source`: the origin of `per_class`) and a threshold outside [0, 1].
    """
    ids = {name: number for number, name in label_names.items()}
    least = np.full(max([*label_names, *detections.label.tolist(), 0]) + 1, check_threshold(threshold, "threshold"))
    for name, value in per_class.items():
        if name not in ids:
            known = ", ".join(list(ids)[:10]) + (", ..." if len(ids) > 10 else "")
            raise UserError(f"{source}: {name!r} is no class of this model{nearest(name, ids)}; its classes: {known}")
        least[ids[name]] = check_threshold(value, f"{source}: {name}")
    return detections.take(detections.score >= least[detections.label])
