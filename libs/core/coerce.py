"""Raw YAML values -> the types that the schema's annotations declare.

Accepted beyond the obvious: whole numbers for floats, 6.0 for an int, one string for a list of strings.  A bool is never a
number and text is never a number.  Lists become tuples and mappings `FrozenDict`, so the result is immutable.
"""
from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, Union

from libs.core.errors import nearest, shown

SINGULAR = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
PLURAL = {int: "whole numbers", float: "numbers", str: "texts"}


class FrozenDict(dict):
    """A dict that cannot change; hashable, and it pickles."""

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError("a configuration cannot be changed; use dataclasses.replace to make another one")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple:
        return FrozenDict, (dict(self),)


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Name -> resolved annotation of the fields that a user can set, in declaration order."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if not f.metadata.get("internal")}


def describe(kind: Any) -> str:
    """What an annotation accepts, in words: 'a whole number, or a list of whole numbers'."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return f"a mapping with {', '.join(field_types(kind))}"
    if origin in (Union, types.UnionType):
        return ", or ".join(describe(a) for a in args)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"a list of {_plural(args[0])}"
        return f"a list of {len(args)} {_plural(args[0])}"
    if origin is dict:
        return f"a mapping of names to {_plural(args[1])}"
    return SINGULAR[kind]


def coerce(value: Any, kind: Any) -> Any:
    """`value` as the annotation `kind`; ValueError says what was expected ('expected' is the caller's word)."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, kind, args)
    if origin is tuple:
        return _coerce_tuple(value, kind, args)
    if origin is dict:
        if not isinstance(value, Mapping):
            _fail(kind, value)
        if not all(isinstance(k, str) and k for k in value):
            raise ValueError(f"{describe(kind)}; the names must be text")
        return FrozenDict({k: _named(k, v, args[1]) for k, v in value.items()})
    if dataclasses.is_dataclass(kind):
        return _coerce_record(value, kind)
    if kind is float and type(value) in (int, float):
        return _finite(value)
    if kind is int and type(value) is float and math.isfinite(value) and value.is_integer():
        return int(value)
    if type(value) is not kind:
        _fail(kind, value)
    return value


def out_of_bounds(value: Any, metadata: Mapping[str, Any]) -> str:
    """What is wrong with `value` against the field's choices and bounds ('' when nothing is); checks every number inside."""
    choices = metadata.get("choices")
    if choices and value is not None and value not in choices:
        return f"must be {' or '.join(choices)}"
    low, high, above = (metadata.get(k) for k in ("low", "high", "above"))
    for number in _numbers(value):
        if low is not None and number < low:
            return f"{number} is too small; use at least {low}"
        if above is not None and number <= above:
            return f"{number} is too small; use more than {above}"
        if high is not None and number > high:
            return f"{number} is too large; use at most {high}"
    return ""


def _coerce_record(value: Any, cls: type) -> Any:
    """A mapping as the dataclass `cls`: known keys only, each of its type and inside its bounds; keys without a default given."""
    if isinstance(value, cls):
        return value
    kinds = field_types(cls)
    if not isinstance(value, Mapping):
        _fail(cls, value)
    if unknown := [k for k in value if k not in kinds]:
        raise ValueError(f"{describe(cls)}; {shown(unknown[0])} is not one of them{nearest(str(unknown[0]), kinds)}")
    given = {}
    for field in dataclasses.fields(cls):
        if field.name not in value:
            if "(required)" in field.metadata["doc"]:
                raise ValueError(f"{describe(cls)}; {field.name} is missing")
            continue
        try:
            given[field.name] = coerce(value[field.name], kinds[field.name])
        except ValueError as error:
            raise ValueError(f"{field.name}: {error}") from error
        if problem := out_of_bounds(given[field.name], field.metadata):
            raise ValueError(f"{field.name}: {shown(value[field.name])}: {problem}")
    return cls(**given)


def _named(name: str, value: Any, kind: Any) -> Any:
    try:
        return coerce(value, kind)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _coerce_union(value: Any, kind: Any, args: tuple) -> Any:
    fitting = next((arm for arm in args if _accepts(value, arm)), None)
    mappings = [arm for arm in args if dataclasses.is_dataclass(arm) or typing.get_origin(arm) is dict]
    if fitting is None and isinstance(value, Mapping) and mappings:
        return coerce(value, mappings[0])  # its error says which key is wrong
    if fitting is None:
        _fail(kind, value)
    return coerce(value, fitting)


def _coerce_tuple(value: Any, kind: Any, args: tuple) -> tuple:
    repeated = len(args) == 2 and args[1] is Ellipsis
    if repeated and args[0] is str and isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)):
        _fail(kind, value)
    if not repeated and len(value) != len(args):
        raise ValueError(f"{describe(kind)}, got {len(value)}")
    kinds = [args[0]] * len(value) if repeated else args
    try:
        return tuple(coerce(v, k) for v, k in zip(value, kinds, strict=True))
    except ValueError as error:
        wrong = next(v for v, k in zip(value, kinds, strict=True) if not _accepts(v, k))
        if isinstance(wrong, Mapping) and dataclasses.is_dataclass(kinds[0]):
            name = wrong.get("name") or f"entry {list(value).index(wrong) + 1}"
            raise ValueError(f"{describe(kind)}; in {name}: {error}") from error
        if isinstance(wrong, (list, tuple)):
            raise ValueError(f"{describe(kind)}; in {shown(wrong)}: {error}") from error
        raise ValueError(f"{describe(kind)}; {shown(wrong)} is not {describe(kinds[0])}{_hint(kinds[0], wrong)}") from error


def _accepts(value: Any, kind: Any) -> bool:
    try:
        coerce(value, kind)
    except ValueError:
        return False
    return True


def _finite(value: int | float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def _fail(kind: Any, value: Any) -> NoReturn:
    raise ValueError(describe(kind) + _hint(kind, value))


def _hint(kind: Any, value: Any) -> str:
    """The remedy for the two mistakes everybody makes: a quoted number, and a number where text is meant."""
    arms = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
    if isinstance(value, str):
        number = (int in arms or float in arms) and _reads_as_number(value)
        if number or (bool in arms and value.lower() in ("true", "false")):
            return f"; remove the quotes: {value}"
    elif str in arms and type(value) in (int, float, bool):
        return "; put it in quotes"
    return ""


def _reads_as_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for v in value:
            yield from _numbers(v)
    elif type(value) in (int, float):
        yield value


def _plural(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return f"mappings with {', '.join(field_types(kind))}"
    if typing.get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_plural(a) for a in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        args = typing.get_args(kind)
        return f"lists of {_plural(args[0])}" if args[-1] is Ellipsis else f"[{', '.join(PLURAL[a][:-1] for a in args)}] lists"
    return PLURAL[kind]
