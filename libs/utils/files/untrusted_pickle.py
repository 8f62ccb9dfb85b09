"""Read untrusted pickles of plain data (dicts, lists, numbers, text, numpy arrays) without running code from them.

A pickle may name any function for the unpickler to call.  `_Reader` maps the few allowed names to its own methods and refuses
all others.  It builds arrays from checked parts and limits their total size to twice the size of the file.  It extends the
unpickler written in Python, since a few bytes can make the compiled one allocate tables of any size.
"""
from __future__ import annotations

import codecs
import io
import math
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from libs.core.errors import UserError, article
from libs.core.files import read_bytes

_DTYPE_CODE = re.compile(r"[<>=|]?(b1|[iuf][1248]|f16|[SU][1-9]\d{0,5}|O8)")
_MAX_DEPTH = 50
_MAX_DIMENSIONS = 32
_PLAIN = (str, bytes, bytearray, int, float, complex, type(None), np.generic)
_KEYS = (str, bytes, int, float, type(None))
_UNFILLED = np.dtype("V1")  # dtype of an array until BUILD fills it
_NDARRAY = object()  # stand-in for the class numpy.ndarray, an argument of _reconstruct


def read_plain_pickle(path: str | os.PathLike, what: str) -> Any:
    """The content of a pickle file; `what`: the expected kind of file, for errors.

    Raises UserError with the path if it is missing, damaged, or holds anything but plain data and numpy arrays.
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
    except Exception as error:  # a damaged header can raise almost any exception
        raise UserError(f"{path}: is not an .npy file ({str(error)[:120]}); expected {article(what)}") from error
    array = load_plain_pickle(content[file.tell():], str(path), what)
    return array.item() if isinstance(array, np.ndarray) and shape == () and array.size == 1 else array


def load_plain_pickle(content: bytes, source: str, what: str, extra: Mapping[str, Callable] = MappingProxyType({})) -> Any:
    """`read_plain_pickle` for bytes; `source` names them in errors; extra: stand-ins for further names, which must check their
    arguments."""
    try:
        value = _Reader(content, extra).load()
        _check(value, {}, 0)
        return value
    except _Refused as error:
        raise UserError(f"{source}: {error}; {article(what)} holds only dicts, lists, numbers, text and numpy arrays. "
                        "Files that ask for anything else are not opened, since loading them could run their code") from error
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise UserError(f"{source}: is not a readable pickle ({type(error).__name__}: {str(error)[:120]}); "
                        f"expected {article(what)}") from error


class _Refused(Exception):
    """The pickle contains something other than plain data."""


@dataclass
class _Dtype:
    """Stand-in for a numpy.dtype, whose byte order BUILD sets."""

    numpy: np.dtype


class _Reader(pickle._Unpickler):
    """An unpickler without the operations that could run code or allocate more memory than the file justifies."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]  # these four are the base class's
    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes, extra: Mapping[str, Callable]) -> None:
        super().__init__(io.BytesIO(content))
        self.bytes_left = 2 * len(content)  # twice: protocols 0 to 2 store the bytes of an array as text, which is counted too
        self.allowed = {"numpy.ndarray": _NDARRAY, "numpy.dtype": self.dtype, "_codecs.encode": self.encode,
                        "collections.OrderedDict": self.ordered_dict, "builtins.bytes": self.empty_bytes,
                        "numpy.core.multiarray._reconstruct": self.reconstruct, "numpy.core.multiarray.scalar": self.scalar,
                        "numpy.core.numeric._frombuffer": self.from_buffer, **extra}

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module).replace("numpy._core.", "numpy.core.")
        if f"{module}.{name}" not in self.allowed:
            raise _Refused(f"it asks for {f'{module}.{name}'[:160]}")
        return self.allowed[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to data outside the file")

    def take(self, size: int) -> None:
        """Count allocated bytes or elements: a few bytes of a pickle could copy a large part many times."""
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise _Refused("it makes more data than it holds")

    # stand-ins for the allowed names

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

    def empty_bytes(self) -> bytes:  # b"" in protocols 0 to 2
        return b""

    # pickle operations

    def fill(self, array: np.ndarray, state: tuple) -> None:
        """Check the state of an array, then call numpy.ndarray.__setstate__."""
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
            # hashing nested tuples with shared parts can take forever, as can colliding large integers
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
        data = self.read(size)  # the base class allocates the declared size before it reads
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
    """Refuse everything but plain values, and nesting deeper than `_MAX_DEPTH`; `done`: the parts already checked, by id."""
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
