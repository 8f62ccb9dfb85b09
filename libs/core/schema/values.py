"""Types of values that several sections use."""
from __future__ import annotations

from typing import Literal, TypeVar, get_args

T = TypeVar("T")
Ints = int | tuple[int, ...]
Strings = str | tuple[str, ...]
Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS = get_args(Precision)


def as_tuple(value: T | tuple[T, ...]) -> tuple[T, ...]:
    """One value, or several, as a tuple."""
    return value if isinstance(value, tuple) else (value,)
