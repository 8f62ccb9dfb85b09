"""Mutations of valid files: of their bytes, and of the values they hold before these are written.

Everything is drawn from a `random.Random`, which hypothesis provides.
"""
from __future__ import annotations

import copy
import re
from random import Random
from typing import Any

import numpy as np
import torch

NUMBERS = [0, 1, -1, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**53 + 1, 2**63, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"),
    float("inf"), -float("inf"), "", "a", "1", "nan", "1_0", "1e400", "true", "class 1", "v0", "training", "\0", "a\0", "\ud800",
    "\u202e", "ä" * 3, "x" * 100_000, "../../etc/passwd", "/etc/passwd", "a/b", [], {}, [1], [[]], [1, 2, 3], ["a", "b"],
    {"a": 1}, [None, None], [[0, 1], [1, 2]], {"segment": [0, 1], "label": "class 1", "score": 0.5}]


def deep(levels: int) -> list:
    """A list in a list in a list ..."""
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def odd_array(rng: Random) -> np.ndarray:
    """An array of an unusual type, shape or content."""
    dtype = rng.choice(["f4", "f8", "f2", "i4", "i8", "u8", "u1", "?", "c8", "c16", "S5", "U3", ">f4", ">i8", "O", "M8[s]",
                        "f4,i4", "longdouble"])
    shape = rng.choice([(), (0,), (3,), (7, 6), (7, 6), (7, 6), (6, 7), (0, 6), (7, 0), (1, 1), (2, 7, 6), (1, 7)])
    array = np.zeros(shape, dtype)
    if array.dtype.kind in "fc" and array.size:
        with np.errstate(over="ignore"):
            array.reshape(-1)[rng.randrange(array.size)] = rng.choice([1.5, np.nan, np.inf, 6e4, 3e38, 1e-30, -2])
    return np.asfortranarray(array) if rng.random() < 0.3 else array


def odd_tensor(rng: Random) -> torch.Tensor:
    """A tensor of an unusual type, layout or content."""
    kind = rng.randrange(10)
    if kind == 0:
        return torch.zeros(1).expand(10**9)
    if kind == 1:
        return torch.eye(3).to_sparse()
    if kind == 2:
        return torch.zeros(2, 3, device="meta")
    if kind == 3:
        return torch.zeros(2, 3, dtype=rng.choice([torch.complex64, torch.int8, torch.bool, torch.bfloat16, torch.float16]))
    if kind == 4:
        return torch.quantize_per_tensor(torch.ones(7, 6), 0.1, 0, torch.qint8)
    if kind == 5:
        return torch.full((7, 6), rng.choice([float("nan"), float("inf"), 1e38]))
    if kind == 6:
        return torch.randn(7, 6).t()
    return torch.zeros(rng.choice([(), (0,), (3,), (7, 6), (0, 6), (2, 7, 6), (1, 16, 1)]))


def odd_value(rng: Random, arrays: bool, tensors: bool) -> Any:
    """Something that does not belong there."""
    draw = rng.random()
    if tensors and draw < 0.5:
        return odd_tensor(rng)
    if arrays and draw < 0.5:
        return odd_array(rng)
    if draw > 0.98:
        return deep(rng.choice([20, 60, 2000]))
    return copy.deepcopy(rng.choice(VALUES))


def change_value(rng: Random, document: Any, arrays: bool = False, tensors: bool = False) -> Any:
    """The document with one place changed: replaced, removed, doubled, renamed, or swapped with another."""
    holder: dict = {"": document}
    where, key = holder, ""
    for _ in range(rng.randrange(1, 9)):  # down to some depth
        below = where[key]
        if isinstance(below, dict) and below:
            where, key = below, rng.choice(list(below))
        elif isinstance(below, list) and below:
            where, key = below, rng.randrange(len(below))
        else:
            break
    action = rng.randrange(6)
    if action == 0 and where is not holder:
        del where[key]
    elif action == 1 and isinstance(where, list):
        where.insert(key, where[key])
    elif action == 2 and isinstance(where, dict) and where is not holder:
        new = rng.choice(["", "a", "v0", "label", "\0", "__proto__", "x" * 5000, "A b", "segment", "é"])
        where[new] = where.pop(key)
    elif action == 3 and len(where) > 1:
        other = rng.choice(list(where) if isinstance(where, dict) else range(len(where)))
        where[key], where[other] = where[other], where[key]
    elif action == 4 and type(where[key]) in (int, float) and abs(where[key]) < 1e100:
        number = where[key]
        where[key] = rng.choice([-number, number * 10**9, number / 1e9, str(number), [number], int(number)])
    else:
        where[key] = odd_value(rng, arrays, tensors)
    return holder[""]


def change_bytes(rng: Random, data: bytes) -> bytes:
    """One edit: flipped bits, a cut, an insertion, a repetition, or a number written over."""
    if not data:
        return rng.choice([b"\x80", b"[", b"PK\x03\x04", b"\xff\xfe"])
    at, size = rng.randrange(len(data)), rng.choice([1, 1, 2, 4, 8, 30])
    action = rng.randrange(8)
    if action == 0:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1:]
    if action == 1:
        return data[:at]
    if action == 2:
        return data[:at] + data[at + size:]
    if action == 3:
        what = rng.choice([b"\0", b"\xff", b"[", b"{", b'"', b"\n", b",", b"9", b"-", b"\xef\xbb\xbf", b"*a", b"\xc3"])
        return data[:at] + what * size + data[at:]
    if action == 4:
        width = rng.choice([1, 2, 4, 8])
        number = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, rng.choice(["little", "big"]))
        return data[:at] + number + data[at + width:]
    if action == 5:
        return data[:at] + data[max(at - size, 0):at] * 2 + data[at:]
    if action == 6:
        found = list(re.finditer(rb"\d+", data))
        if found:
            match = rng.choice(found)
            new = rng.choice([b"0", b"-1", b"999999999999", b"1e999", b"1" * 5000, b"18446744073709551616", b"3.5"])
            return data[:match.start()] + new + data[match.end():]
    if action == 7 and rng.random() < 0.3:
        low, high = sorted((at, rng.randrange(len(data))))
        return data[:low] + data[high:]
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1:]
