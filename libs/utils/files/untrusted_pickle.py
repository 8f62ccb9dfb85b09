"""Untrusted pickles of plain data (dicts, lists, numbers, text, numpy arrays), read without running anything they name.

A pickle may name any function to be called while it loads.  Here a name leads to a method of `_Reader` or is refused; arrays are
made of checked parts, and all of them together may take no more bytes than twice the file's.  Python's own unpickler is used,
not the compiled one: a few bytes make the latter allocate tables of any size.
"""
from __future__ import annotations

import codecs
import io
import math
import os
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from libs.core.errors import UserError
from libs.core.files import read_bytes

_DTYPE_CODE = re.compile(r"[<>=|]?(b1|[iuf][1248]|f16|[SU][1-9]\d{0,5}|O8)")
_MAX_DEPTH = 50
_MAX_DIMENSIONS = 32
_PLAIN = (str, bytes, bytearray, int, float, complex, type(None), np.generic)
_KEYS = (str, bytes, int, float, type(None))
_UNFILLED = np.dtype("V1")  # of arrays that BUILD is to fill
_NDARRAY = object()  # stands for the class numpy.ndarray, which a pickle hands to _reconstruct


def read_plain_pickle(path: str | os.PathLike, what: str) -> Any:
    """The content of a pickle file; `what` says in errors what the file should be.

    Raises UserError naming the file when it is missing, damaged, or holds anything but plain data and numpy arrays.
    """
    return load_plain_pickle(read_bytes(path, what), str(path), what)


def read_plain_npy(path: str | os.PathLike, what: str) -> Any:
    """The content of an .npy file: an array, or the object (such as a dict) that `numpy.save` pickled into it."""
    content = read_bytes(path, what)
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if not dtype.hasobject:
            if math.prod(shape) * dtype.itemsize > len(content):
                raise ValueError(f"its header declares {math.prod(shape)} values, more than it holds")
            return np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header can raise nearly anything
        raise UserError(f"{path}: is not an .npy file ({str(error)[:120]}); expected a {what}") from error
    array = load_plain_pickle(content[file.tell():], str(path), what)
    return array.item() if isinstance(array, np.ndarray) and shape == () and array.size == 1 else array


def load_plain_pickle(content: bytes, source: str, what: str) -> Any:
    """`read_plain_pickle` for bytes; `source` names them in errors."""
    try:
        value = _Reader(content).load()
        _check(value, {}, 0)
        return value
    except _Refused as error:
        raise UserError(f"{source}: {error}; a {what} holds only dicts, lists, numbers, text and numpy arrays. "
                        "Files that ask for anything else are not opened, since loading them could run their code") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{source}: is not a readable pickle ({type(error).__name__}: {str(error)[:120]}); "
                        f"expected a {what}") from error


class _Refused(Exception):
    """The pickle asks for something that is not plain data."""


@dataclass
class _Dtype:
    """Stands for a numpy.dtype, whose byte order BUILD sets."""

    numpy: np.dtype


class _Reader(pickle._Unpickler):
    """Every operation of a pickle that could run code or take memory that the file does not have is replaced or refused."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]  # these four are the base class's
    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.bytes_left = 2 * len(content)  # protocols 0 to 2 hold the bytes of an array as text, so these are counted twice
        self.allowed = {"numpy.ndarray": _NDARRAY, "numpy.dtype": self.dtype, "_codecs.encode": self.encode,
                        "collections.OrderedDict": self.ordered_dict, "builtins.bytes": self.empty_bytes,
                        "numpy.core.multiarray._reconstruct": self.reconstruct, "numpy.core.multiarray.scalar": self.scalar,
                        "numpy.core.numeric._frombuffer": self.from_buffer}

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module).replace("numpy._core.", "numpy.core.")
        if f"{module}.{name}" not in self.allowed:
            raise _Refused(f"it asks for {f'{module}.{name}'[:160]}")
        return self.allowed[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to data outside the file")

    def take(self, size: int) -> None:
        """Count bytes or elements that are made; a few bytes of a pickle could make copies of a large part again and again."""
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise _Refused("it makes more data than it holds")

    # what a name stands for

    def dtype(self, code: Any, *_flags: Any) -> _Dtype:
        if not isinstance(code, str) or not _DTYPE_CODE.fullmatch(code):
            raise _Refused(f"it holds an array of type {str(code)[:60]!r}")
        return _Dtype(np.dtype(code))

    def reconstruct(self, *_type_shape_code: Any) -> np.ndarray:
        return np.empty(0, _UNFILLED)

    def from_buffer(self, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        array = self.reconstruct()
        self.fill(array, (1, shape, dtype, order == "F", data))
        return array

    def scalar(self, dtype: Any, data: Any = b"") -> Any:
        return self.from_buffer(data, dtype, (), "C")[()]

    def encode(self, text: str, encoding: str = "latin1") -> bytes:
        if codecs.lookup(encoding).name != "iso8859-1":
            raise _Refused(f"it asks for the encoding {encoding!r}")
        self.take(len(text))
        return text.encode("latin-1")

    def ordered_dict(self, pairs: Sequence[Any] = ()) -> dict:
        self.take(len(pairs))
        made: dict[Any, Any] = {}
        self.set_items(made, [key for key, _ in pairs], [value for _, value in pairs])
        return made

    def empty_bytes(self) -> bytes:  # how protocols 0 to 2 write them
        return b""

    # operations

    def fill(self, array: np.ndarray, state: tuple) -> None:
        """Give an empty array its contents, as numpy.ndarray.__setstate__ does, which is called with checked parts only."""
        _version, shape, dtype, fortran, data = state
        if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
            raise _Refused("it holds an array of no shape")
        of_objects = dtype.numpy.hasobject
        if isinstance(data, str) and not of_objects:
            data = self.encode(data)
        self.take(len(data))
        size = math.prod(shape) * (1 if of_objects else dtype.numpy.itemsize)
        if not isinstance(data, list if of_objects else (bytes, bytearray)) or len(data) != size:
            raise _Refused("it holds a damaged array")
        checked: Any = (1, shape, dtype.numpy, bool(fortran), data if of_objects else bytes(data))
        array.__setstate__(checked)

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, np.ndarray) and target.dtype == _UNFILLED:
            self.fill(target, state)
        elif isinstance(target, _Dtype):
            _version, order, subdtype, names, fields = state[:5]
            if subdtype is not None or names is not None or fields is not None or order not in ("<", ">", "=", "|"):
                raise _Refused("it holds an array with named fields")
            target.numpy = target.numpy.newbyteorder(order)
        else:
            raise _Refused(f"it fills a {type(target).__name__}")

    def set_items(self, target: Any, keys: Sequence[Any], values: Sequence[Any]) -> None:
        if type(target) is not dict:
            raise _Refused(f"it sets an item of a {type(target).__name__}")
        for key, value in zip(keys, values, strict=True):
            # to hash a tuple of tuples that share parts may take for ever, as may large integers of equal hash
            if not isinstance(key, _KEYS) or (isinstance(key, int) and key.bit_length() > 64):
                raise _Refused(f"it holds a {type(key).__name__} as a key")
            target[key] = value

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items(self.stack[-1], [key], [value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self.set_items(self.stack[-1], items[::2], items[1::2])

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.set_items(self.stack[-1], items[::2], items[1::2])

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        data = self.read(size)  # the original makes room for what is announced before it looks whether that is there
        if len(data) < size:
            raise EOFError("pickle data was truncated")
        self.append(data)

    def refuse(self) -> None:
        raise _Refused("it holds a set or an object")


_Reader.dispatch |= {pickle.BUILD[0]: _Reader.load_build, pickle.SETITEM[0]: _Reader.load_setitem,
                     pickle.SETITEMS[0]: _Reader.load_setitems, pickle.DICT[0]: _Reader.load_dict,
                     pickle.BYTEARRAY8[0]: _Reader.load_bytearray8,
                     **{code[0]: _Reader.refuse for code in (
                         pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4,
                         pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)}}


def _check(value: Any, done: dict[int, Any], depth: int) -> None:
    """Refuse what is no plain value and what is nested more than `_MAX_DEPTH` levels; `done` holds each part that is checked."""
    if isinstance(value, _PLAIN) or id(value) in done:
        return
    if depth > _MAX_DEPTH:
        raise _Refused("it is nested too deeply")
    if isinstance(value, dict):
        parts: Any = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    elif isinstance(value, np.ndarray) and value.dtype != _UNFILLED:
        parts = value.flat if value.dtype.hasobject else ()
    else:
        raise _Refused(f"it holds a {type(value).__name__}")
    for part in parts:
        _check(part, done, depth + 1)
    done[id(value)] = value
