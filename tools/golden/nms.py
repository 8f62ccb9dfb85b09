"""NMS against its fixture (nms_seed<S>.npz): every case through the compiled library, where it is built, and the fallback."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from golden import common
from golden.common import Check, compare, load, text
from libs.utils.nms import api as nms
from libs.utils.nms import native as nms_native

SOFT = ("vanilla", "linear", "gaussian")  # by the fixture's method number
OPERATOR = {"iou_threshold": 0.3, "sigma": 0.5, "min_score": 0.01}  # of every op_soft entry, see the fixtures' README
VOTING_THRESHOLD = 0.5
TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}


def check(path: Path) -> list[Check]:
    """One Check per stored result and implementation: picks, labels and unvoted segments exactly, the rest to 1e-6."""
    data = load(path)
    library = nms_native.cuda_library() if common.device.type == "cuda" else nms_native.cpu_library()
    names = [library.name] if library else []
    checks = []
    for name in [*names, "torch fallback"]:
        with nms.using(name):
            for case in text(data["cases"]):
                checks += _case(data, case, f"{name}: {case}")
    return checks


def check_voting(path: Path) -> list[Check]:
    """Boundary voting of TriDet (by score) or TemporalMaxer (by score x IoU) by each implementation."""
    data = load(path)
    library = nms_native.cuda_library() if common.device.type == "cuda" else nms_native.cpu_library()
    checks, case = [], 0
    while f"case{case}/segs" in data:
        segments, scores = (torch.from_numpy(data[f"case{case}/{k}"]).to(common.device) for k in ("segs", "scores"))
        for name in [*([library.name] if library else []), "torch fallback"]:
            with nms.using(name):
                voted = nms.vote(segments[data[f"case{case}/kept"]], segments, scores, float(data[f"case{case}/thr"]),
                                 by_iou="tridet" not in path.name)
            checks.append(compare(f"{name}: case{case}", voted, data[f"case{case}/voted"], atol=1e-5, rtol=1e-5))
        case += 1
    return checks


def _case(data: dict[str, np.ndarray], case: str, title: str) -> list[Check]:
    segments, scores, labels = (torch.from_numpy(data[f"{case}/{k}"]).to(common.device) for k in ("segs", "scores", "labels"))
    unstable = case == "ties"  # these follow an unstable sort: op_nms and batched are informational
    checks = []
    for key in sorted(k for k in data if k.startswith(f"{case}/op_nms_")):
        kept = nms.hard_nms(segments, scores, float(key.rsplit("_", 1)[1]))
        checks.append(compare(f"{title} {key.split('/')[1]}", kept, data[key], informational=unstable))
    for number, method in enumerate(SOFT):
        key = f"{case}/op_soft_{number}"
        if f"{key}/inds" not in data:
            continue
        index, rows = nms.soft_nms(segments, scores, method=method, **OPERATOR)
        checks.append(compare(f"{title} soft {method} picks", index, data[f"{key}/inds"]))
        checks.append(compare(f"{title} soft {method} rows", rows, data[f"{key}/dets"], **TOLERANCE))
    if f"{case}/voting" in data:
        refined = nms.vote(segments[:len(data[f"{case}/voting"])], segments, scores, VOTING_THRESHOLD)
        checks.append(compare(f"{title} voting", refined, data[f"{case}/voting"], **TOLERANCE))
    for k in range(int(data[f"{case}/n_batched"])):
        args = text(data[f"{case}/batched{k}/args"])
        args["method"] = "soft" if args.pop("use_soft_nms") else "hard"
        got = nms.batched_nms(segments, scores, labels, **args)
        for name, value in zip(("segs", "scores", "labels"), got, strict=True):
            tolerance = {} if name == "labels" else TOLERANCE
            checks.append(compare(f"{title} batched{k} {name}", value, data[f"{case}/batched{k}/{name}"],
                                  informational=unstable, **tolerance))
    return checks
