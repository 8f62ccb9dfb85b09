"""Convert raw YAML values to the types that the schema's annotations declare.

Also accepted: an integer for a float, 6.0 for an int, one string for a list of strings.  Bools and strings are never numbers.
Lists become tuples and mappings become `FrozenDict`, so the result is immutable.
"""
from __future__ import annotations

import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, Union

from libs.core.errors import UserError, nearest, shown
from libs.core.yaml_text import parse

WORDS = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers"), str: ("text", "texts"),
         bool: ("true or false", "true or false"), type(None): ("null", "null")}
UNIONS = (Union, types.UnionType)
UNBOUNDED = {"low": None, "high": None, "above": None, "odd": None}


class FrozenDict(dict):
    """A dict that cannot change; it is hashable and can be pickled."""

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError("a configuration is immutable; use dataclasses.replace to make another one")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]  # dict says None
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple:
        return FrozenDict, (dict(self),)


class _WrongType(ValueError):
    """The value has the wrong type; a plain ValueError means that its type fits, but not what it contains."""


def key(default: Any, doc: str, low: float | None = None, high: float | None = None, above: float | None = None,
        odd: str | None = None) -> Any:
    """A documented field.  Bounds of every number in it: `low` and `high` inclusive, `above` exclusive; `odd`: even numbers above
    1 are refused, as sizes of the thing that it names (kernel, window)."""
    meta = {"doc": doc, "low": low, "high": high, "above": above, "odd": odd}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


@functools.cache
def field_types(cls: Any) -> dict[str, Any]:
    """Name -> resolved annotation of each field that a user can set, in declaration order."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if not f.metadata.get("internal")}


def is_record(kind: Any) -> bool:
    """Whether an annotation is one of the schema's dataclasses (dataclasses.is_dataclass would narrow its type for mypy)."""
    return dataclasses.is_dataclass(kind)


def describe(kind: Any, plural: bool = False) -> str:
    """The values that an annotation accepts, as text: 'a whole number, or a list of whole numbers'."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if is_record(kind):
        return f"{'mappings' if plural else 'a mapping'} with {', '.join(field_types(kind))}"
    if origin in UNIONS:
        return (" or " if plural else ", or ").join(describe(a, plural) for a in args)
    if origin is tuple:
        length = "" if args[-1] is Ellipsis else f"{len(args)} "
        return f"{'lists' if plural else 'a list'} of {length}{describe(args[0], True)}"
    if origin is dict:
        return f"{'mappings' if plural else 'a mapping'} of names to {describe(args[1], True)}"
    return WORDS[str if origin is Literal else kind][plural]


def coerce(value: Any, kind: Any, bounds: Mapping[str, Any]) -> Any:
    """`value` as the annotation `kind`, with every number inside `bounds` (a field's metadata); ValueError with the remedy."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in UNIONS:
        return _coerce_union(value, kind, bounds)
    if origin is tuple:
        return _coerce_list(value, kind, bounds)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) and name for name in value):
            _fail(kind, value)
        return FrozenDict({name: _inside(name, entry, args[1], bounds) for name, entry in value.items()})
    if is_record(kind):
        return value if isinstance(value, kind) else _coerce_record(value, kind)
    if origin is Literal:
        if isinstance(value, str) and value not in args:
            raise ValueError(f"must be {' or '.join(args)}")
        kind = str
    if kind is float and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:
            raise ValueError("expected a finite number")
        value = float(value)
    elif kind is int and type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not kind:
        _fail(kind, value)
    return _bounded(value, bounds) if kind in (int, float) else value


def _bounded(number: float, bounds: Mapping[str, Any]) -> float:
    low, high, above, odd = (bounds[name] for name in ("low", "high", "above", "odd"))
    if low is not None and number < low:
        raise ValueError(f"{shown(number)} is too small; use at least {low}")
    if above is not None and number <= above:
        raise ValueError(f"{shown(number)} is too small; use more than {above}")
    if high is not None and number > high:
        raise ValueError(f"{shown(number)} is too large; use at most {high}")
    if odd and number > 1 and number % 2 == 0:
        raise ValueError(f"{shown(number)} is even; a {odd} needs a centre, use {shown(number - 1)} or {shown(number + 1)}")
    return number


def _coerce_union(value: Any, kind: Any, bounds: Mapping[str, Any]) -> Any:
    """The value as the first type of the union that accepts it; else the error of a type that fits on the outside."""
    inner: ValueError | None = None
    for arm in typing.get_args(kind):
        try:
            return coerce(value, arm, bounds)
        except _WrongType:
            pass
        except ValueError as error:
            inner = inner or error
    if inner is not None:
        raise inner
    return _fail(kind, value)


def _coerce_list(value: Any, kind: Any, bounds: Mapping[str, Any]) -> tuple:
    element, *rest = typing.get_args(kind)
    repeated = rest == [Ellipsis]
    if repeated and element is str and isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)):
        _fail(kind, value)
    if not repeated and len(value) != 1 + len(rest):
        raise ValueError(f"expected {describe(kind)}, got {len(value)}")
    return tuple(_inside(f"in {_name(item, n)}", item, element, bounds) for n, item in enumerate(value, start=1))


def _coerce_record(value: Any, cls: type) -> Any:
    """A mapping as the dataclass `cls`.  Unknown keys, invalid values and missing required keys raise ValueError."""
    kinds = field_types(cls)
    if not isinstance(value, Mapping):
        _fail(cls, value)
    for name in value:
        if name not in kinds:
            raise ValueError(f"expected {describe(cls)}; {shown(name)} is not one of them{nearest(str(name), kinds)}")
    given = {}
    for field in dataclasses.fields(cls):
        if field.name in value:
            raw = value[field.name]
            given[field.name] = _inside(f"{field.name}: {shown(raw)}", raw, kinds[field.name], field.metadata)
        elif "(required)" in field.metadata["doc"]:
            raise ValueError(f"expected {describe(cls)}; {field.name} is missing")
    return cls(**given)


def _inside(place: str, value: Any, kind: Any, bounds: Mapping[str, Any]) -> Any:
    try:
        return coerce(value, kind, bounds)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _name(item: Any, position: int) -> str:
    """The name of a list entry in messages."""
    return shown(item) if not isinstance(item, Mapping) else shown(item["name"]) if item.get("name") else f"entry {position}"


def _accepts(kind: Any, value: Any) -> bool:
    try:
        coerce(value, kind, UNBOUNDED)
    except ValueError:
        return False
    return True


def _fail(kind: Any, value: Any) -> NoReturn:
    raise _WrongType(f"expected {describe(kind)}{_hint(kind, value)}")


def _hint(kind: Any, value: Any) -> str:
    """The remedy for the two common mistakes: a number in quotes, and a number in place of text."""
    if type(value) in (int, float, bool):
        return "; put it in quotes" if _accepts(kind, "text") else ""
    try:
        meant = parse(value, "") if isinstance(value, str) and len(value) <= 80 else None
    except UserError:
        return ""
    return f"; remove the quotes: {value}" if type(meant) in (int, float, bool) and _accepts(kind, meant) else ""
