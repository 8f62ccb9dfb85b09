"""Read untrusted files of torch.save: no code runs, and sizes are checked before they are used."""
from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


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
