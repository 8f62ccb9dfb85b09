"""Keys that earlier versions stored in checkpoints and results, and that exist no more."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# dotted key (`*`: every entry of a list) -> values at which it did nothing
GONE: dict[str, tuple[Any, ...]] = {
    "model.motion_branch": (False,),
    "distill.relations.weight": (None, 0),
    "distill.relations.mask": (None, False, True),
    "distill.teachers.*.branch": ("fused",),
}


def without_gone(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Stored values in nested dicts, without the keys of `GONE` where they did nothing; other values stay, and are refused."""
    for key, neutral in GONE.items():
        values = _without(values, key.split("."), neutral)
    return values


def _without(values: Any, path: list[str], neutral: tuple[Any, ...]) -> Any:
    first, rest = path[0], path[1:]
    if first == "*":
        return [_without(entry, rest, neutral) for entry in values] if isinstance(values, (list, tuple)) else values
    if not isinstance(values, Mapping) or first not in values:
        return values
    others = {k: v for k, v in values.items() if k != first}
    if not rest:
        return others if values[first] in neutral else values
    inner = _without(values[first], rest, neutral)
    return others if inner == {} else {**others, first: inner}
