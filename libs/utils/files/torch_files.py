"""Read untrusted files of torch.save: no code runs, and sizes are checked before they are used."""
from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from libs.core.files import read_bytes
from libs.utils.files.untrusted_pickle import load_plain_pickle


def load_plain(path: str | os.PathLike, mapped: bool = False, types: Sequence[Any] = ()) -> Any:
    """The content of a file on the CPU: plain values and dense tensors.

    mapped: memory-map the tensors; types: further classes to allow.  Raises ValueError for a compressed archive, for tensors that
    claim more values than the file holds, and for sparse, quantised or unallocated tensors, and whatever torch.load raises.
    """
    size = os.path.getsize(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
            raise ValueError("its archive is compressed or claims more bytes than the file has")
    with torch.serialization.safe_globals(list(types)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # an error follows, if any
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    storages: dict[int, int] = {}
    for tensor in _tensors(content):
        if (tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized
                or type(tensor) not in (Tensor, torch.nn.Parameter)):
            raise ValueError("it holds a sparse, quantised or unallocated tensor")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} repeats itself in {storage.nbytes()} bytes")
    if sum(storages.values()) > size:
        raise ValueError(f"its tensors claim {sum(storages.values())} bytes, the file has {size}")
    return content


def read_tensor_pickle(path: str | os.PathLike, what: str) -> Any:
    """The content of a pickle of plain data and torch tensors, these as numpy arrays; `what`: the kind of file, for errors.

    Raises UserError as `read_plain_pickle`.
    """
    names: dict[str, Callable] = {"torch._utils._rebuild_tensor_v2": _as_array,
                                  "torch.storage._load_from_bytes": _storage}
    return load_plain_pickle(read_bytes(path, what), str(path), what, names)


def _storage(content: Any) -> torch.TypedStorage:
    """The stand-in for torch's function of that purpose, which runs pickled code."""
    storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.TypedStorage) or storage.nbytes() > len(content):
        raise ValueError("a tensor claims more values than the file holds")
    return storage


def _as_array(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> np.ndarray:
    if not isinstance(storage, torch.TypedStorage) or math.prod(size) > len(storage):
        raise ValueError(f"a tensor of shape {size} claims more values than the file holds")
    tensor = torch.empty(0, dtype=storage.dtype).set_(storage.untyped(), offset, size, stride)  # checks the bounds
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _tensors(content: Any) -> list[Tensor]:
    found, waiting, seen = [], [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += value
    return found
