"""Pickle files of plain data (dicts, lists, numbers, text, numpy arrays), read without running anything they name.

A pickle may name any function to be called while it loads.  Here every name resolves to a small class of this file that only
collects what an array is made of; the arrays are then built from checked parts.  Everything else is refused.  Python's own
unpickler is used, not the compiled one: a few bytes make the latter allocate tables of any size.
"""
from __future__ import annotations

import codecs
import functools
import io
import math
import os
import pickle
import re
from typing import Any, ClassVar

import numpy as np

from libs.core.errors import UserError
from libs.core.files import read_bytes

_DTYPE_CODE = re.compile(r"b1|[iuf][1248]|f16|[SU]\d{1,9}|O8")
_MAX_DEPTH = 50
_MAX_EMPTY_ITEMS = 1_000_000  # elements of an array that takes no bytes in the file
_KEYS = (str, bytes, int, float, bool, type(None))


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
        return _built(_Reader(io.BytesIO(content)).load(), {}, 0)
    except _Refused as error:
        raise UserError(f"{source}: {error}; a {what} holds only dicts, lists, numbers, text and numpy arrays. "
                        "Files that ask for anything else are not opened, since loading them could run their code") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{source}: is not a readable pickle ({type(error).__name__}: {str(error)[:120]}); "
                        f"expected a {what}") from error


class _Refused(Exception):
    """The pickle asks for something that is not plain data."""


class _Dtype:
    """Stands for numpy.dtype: keeps the type code and the byte order of a plain type."""

    def __init__(self, code: Any, *_flags: Any) -> None:
        if not isinstance(code, str) or not _DTYPE_CODE.fullmatch(code.lstrip("<>=|")):
            raise _Refused(f"it holds an array of type {str(code)[:60]!r}")
        self.code, self.order = code.lstrip("<>=|"), code[0] if code[0] in "<>=|" else "="

    def __setstate__(self, state: tuple) -> None:
        _version, order, subdtype, names, fields = state[:5]
        if subdtype is not None or names is not None or fields is not None or order not in ("<", ">", "=", "|"):
            raise _Refused("it holds an array with named fields")
        self.order = order

    def build(self) -> np.dtype:
        return np.dtype("O") if self.code == "O8" else np.dtype(self.order + self.code)


class _Array:
    """Stands for an array under construction."""

    state: tuple | None = None

    def __setstate__(self, state: tuple) -> None:
        _version, *self_state = state
        self.state = tuple(self_state)

    def build(self) -> np.ndarray:
        shape, dtype, fortran, data = self.state
        dtype = dtype.build()
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise _Refused("it holds an array of no shape")
        if dtype.hasobject:
            if not isinstance(data, list) or len(data) != int(np.prod(shape, dtype=np.int64)):
                raise _Refused("it holds a damaged array of objects")
            array = np.empty(len(data), object)
            for i, item in enumerate(data):  # a slice assignment would spread lists of equal length over two dimensions
                array[i] = item
        elif dtype.itemsize == 0:
            if math.prod(shape) > _MAX_EMPTY_ITEMS:
                raise _Refused(f"it holds an array of {math.prod(shape)} empty texts")
            array = np.zeros(shape, dtype)
        else:
            # protocol 2 and older keep the bytes as Latin-1 text
            data = data.encode("latin-1") if isinstance(data, str) else bytes(data)
            array = np.frombuffer(data, dtype).copy()
        return array.reshape(shape, order="F" if fortran else "C")


class _NumpyArrayType:
    """Stands for the class numpy.ndarray, which a pickle hands to _reconstruct."""


def _reconstruct(*_type_shape_code: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: _Dtype, shape: tuple, order: str) -> _Array:
    array = _Array()
    array.state = (shape, dtype, order == "F", data)
    return array


def _scalar(dtype: _Dtype, data: Any = b"") -> _Array:
    return _from_buffer(data, dtype, (), "C")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if codecs.lookup(encoding).name != "iso8859-1":
        raise _Refused(f"it asks for the encoding {encoding!r}")
    return text.encode("latin-1")


def _empty_bytes() -> bytes:
    return b""


_STAND_INS = {("numpy", "ndarray"): _NumpyArrayType, ("numpy", "dtype"): _Dtype, ("_codecs", "encode"): _encode,
              ("collections", "OrderedDict"): dict,
              # how protocols 0 to 2 write empty bytes
              ("builtins", "bytes"): _empty_bytes, ("__builtin__", "bytes"): _empty_bytes}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS.update({(f"{_core}.multiarray", "_reconstruct"): _reconstruct, (f"{_core}.multiarray", "scalar"): _scalar,
                       (f"{_core}.numeric", "_frombuffer"): _from_buffer})


class _Reader(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return functools.partial(_STAND_INS[module, name])  # fresh, so that a file cannot set attributes on ours
        except KeyError:
            raise _Refused(f"it asks for {f'{module}.{name}'[:160]}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to data outside the file")

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        _check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        _check_keys(self.stack)
        super().load_frozenset()

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        data = self.read(size)  # the original makes room for what is announced before it looks whether that is there
        if len(data) < size:
            raise EOFError("pickle data was truncated")
        self.append(data)

    for _opcode, _load in ((pickle.SETITEM, load_setitem), (pickle.SETITEMS, load_setitems), (pickle.DICT, load_dict),
                           (pickle.ADDITEMS, load_additems), (pickle.FROZENSET, load_frozenset),
                           (pickle.BYTEARRAY8, load_bytearray8)):
        dispatch[_opcode[0]] = _load


def _check_keys(keys: list[Any]) -> None:
    for key in keys:  # to hash a tuple of tuples that share parts may take for ever
        if not isinstance(key, _KEYS):
            raise _Refused(f"it holds a {type(key).__name__} as a key")


def _built(value: Any, done: dict[int, Any], depth: int) -> Any:
    """`value` with every stand-in replaced by its array; `done` keeps shared parts shared (and finished only once)."""
    if isinstance(value, (str, bytes, bytearray, int, float, complex, bool, type(None))):
        return value
    if id(value) in done:
        return done[id(value)][1]
    if depth > _MAX_DEPTH:
        raise _Refused("it is nested too deeply")
    if isinstance(value, _Array):
        if value.state is None:
            raise _Refused("it holds an array without content")
        if isinstance(value.state[3], list):
            value.state = (*value.state[:3], _built(value.state[3], done, depth + 1))
        built: Any = value.build()
        built = built[()] if built.ndim == 0 and built.dtype != object else built  # a numpy scalar
    elif isinstance(value, dict):
        built = {_built(k, done, depth + 1): _built(v, done, depth + 1) for k, v in value.items()}
    elif isinstance(value, (list, tuple, set, frozenset)):
        built = type(value)(_built(v, done, depth + 1) for v in value)
    else:
        raise _Refused(f"it holds a {type(value).__name__}")
    done[id(value)] = (value, built)  # holding `value` keeps its id from being reused
    return built
