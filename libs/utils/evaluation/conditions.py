"""What a number was measured under: stored with every result, printed beside it, and compared.

    found = conditions("activitynet", "thumos14.json", ["test"], videos=212, scores=scores, max_segments=200, left_out={})
    print(conditions_text(found))
    differences(found, other)           why two numbers cannot be compared: [] if they can

Numbers of one dataset differ by what was counted and how (videos left out, segments per video, thresholds), and a result whose
epoch was chosen on the split that it reports is too high.
"""
from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from libs.core.files import entries, is_folder, read_bytes
from libs.utils.evaluation.metrics import Scores

# another value of these and two numbers answer different questions; annotations are compared by their content
COMPARED = {"protocol": "protocol", "tiou": "tIoUs", "annotations_sha256": "annotations", "subset": "subset", "videos": "videos",
            "ground_truth": "ground-truth segments", "classes": "classes", "left_out": "videos left out",
            "max_segments": "segments per video", "external_scores": "external class scores"}
OPENTAD_LEFT_OUT = ("video_test_0000270", "video_test_0001292")  # wrong annotations; no annotations (OpenTAD's THUMOS14 page)


def conditions(protocol: str, annotations: str | os.PathLike, subset: Sequence[str], videos: int, scores: Scores,
               max_segments: int | None, left_out: Mapping[str, Collection[str]], external_scores: str | None = None,
               **method: Any) -> dict[str, Any]:
    """The block for results.json.

    annotations: a file, or the official THUMOS14 folder; left_out: reason -> video ids; max_segments: most segments of a video;
    method: what else is known of it (nms, pre_nms, weights, epoch, chosen).
    """
    return {"protocol": protocol, "tiou": scores.tious.tolist(), "annotations": str(annotations),
            "annotations_sha256": _sha256(Path(annotations)), "subset": sorted(subset), "videos": videos,
            "ground_truth": scores.counts["ground_truth"], "classes": len(scores.class_ids), "max_segments": max_segments,
            "left_out": {reason: sorted(ids) for reason, ids in left_out.items() if ids},
            "external_scores": None if external_scores is None else _sha256(Path(external_scores)), **method}


def conditions_text(found: Mapping[str, Any]) -> str:
    """Two or three lines for people."""
    fate = "; ".join(f"{len(ids)} videos left out ({reason})" for reason, ids in found["left_out"].items())
    lines = [f"{found['protocol']} protocol on {', '.join(found['subset'])} of {found['annotations']} (sha256 "
             f"{found['annotations_sha256'][:12]}): {found['videos']} videos, {found['ground_truth']} segments, "
             f"{found['classes']} classes; {fate or 'no video left out'}; at most {found['max_segments']} segments per video"
             + ("; external class scores" if found["external_scores"] else "")]
    if "epoch" in found:
        lines.append(f"{found['weights']} weights of epoch {found['epoch']}: {found['chosen']}")
    lines += [f"{name}: " + ", ".join(f"{key} {value}" for key, value in found[name].items())
              for name in ("pre_nms", "nms") if found.get(name)]
    return "\n".join(lines)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Why two numbers cannot be compared, one reason each; [] if they can."""
    out = []
    for key, name in COMPARED.items():
        ours, theirs = first.get(key), second.get(key)
        if ours != theirs:
            out.append(f"{name} {_short(key, first)} and {_short(key, second)}")
    return out


def chosen_on_reported(found: Mapping[str, Any]) -> bool:
    """Whether the epoch was chosen by its mAP on the split that is reported."""
    return bool(set(found.get("chosen_on") or ()) & set(found["subset"]))


def _short(key: str, found: Mapping[str, Any]) -> str:
    value = found.get(key)
    if key == "annotations_sha256":
        return f"{Path(found['annotations']).name} ({str(value)[:8]})"
    if key == "left_out":
        return str(sum(map(len, (value or {}).values())))
    if key == "external_scores":
        return "none" if value is None else str(value)[:8]
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _sha256(path: Path) -> str:
    """Of a file's bytes; of a folder, of the names and digests of its files."""
    if not is_folder(path):
        return hashlib.sha256(read_bytes(path, "file")).hexdigest()
    lines = [f"{file.name} {_sha256(file)}\n" for file in sorted(entries(path)) if not is_folder(file)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
