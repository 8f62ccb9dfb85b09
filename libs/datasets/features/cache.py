"""Features of all videos of a dataset in memory, each read once (loader.cache: ram or device).

In main memory they are one shared block, which forked data-loader workers read without a copy.  On a GPU every video is a tensor,
and batches are cut and padded there.
"""
from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from libs.core.errors import UserError
from libs.core.files import system_text

SHARE = 0.9  # of the available memory; the network needs some too


class FeatureCache:
    """Videos as float32 (T, C) tensors on one device: `cache[i]`.

    read(i, out): writes video i into a CPU tensor `out` of (lengths[i], channels); called once per video, in `threads` threads.
    where: start of messages, e.g. "a.yaml: loader.cache: ram".
    Raises UserError, before reading, if the videos need more than SHARE of the available memory; and what `read` raises.
    """

    def __init__(self, read: Callable[[int, Tensor], object], lengths: Sequence[int], channels: int, device: torch.device,
                 where: str, threads: int = 1) -> None:
        needed, available = 4 * channels * sum(lengths), available_memory(device)
        if needed > SHARE * available:
            raise UserError(f"{where}: the features of {len(lengths)} videos take {_size(needed)} as float32, but {device} has "
                            f"{_size(available)} available, of which at most {SHARE:.0%} are used; use loader.cache: none"
                            + (", or ram" if device.type != "cpu" else ""))
        self.device = device
        self._videos = _shared(lengths, channels) if device.type == "cpu" else [
            torch.empty(n, channels, device=device) for n in lengths]

        def fill(i: int) -> None:
            if device.type == "cpu":
                read(i, self._videos[i])
            else:
                host = torch.empty(lengths[i], channels)
                read(i, host)
                self._videos[i].copy_(host)

        with ThreadPoolExecutor(min(threads, os.cpu_count() or 1)) as pool:
            for _ in pool.map(fill, range(len(lengths))):  # raises the error of the first bad video and cancels the rest
                pass

    def __getitem__(self, index: int) -> Tensor:
        return self._videos[index]


def _shared(lengths: Sequence[int], channels: int) -> list[Tensor]:
    """Views of one anonymous shared mapping, freed with the last view; unlike /dev/shm it has no size limit."""
    block = torch.frombuffer(mmap.mmap(-1, 4 * channels * sum(lengths)), dtype=torch.float32)
    return [part.view(-1, channels) for part in block.split([n * channels for n in lengths])]


def available_memory(device: torch.device) -> int:
    """Free bytes of a device; for main memory, without swapping and within the limits of the control group."""
    if device.type != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    return min(_system_memory(), *_group_memory())


def _system_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    for line in system_text(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS has no better number


def _group_memory(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes left below each memory limit of this process (containers); cached file pages count as free."""
    for line in system_text(groups).splitlines():
        _, kind, path = line.split(":", 2)
        if kind not in ("", "memory"):
            continue
        base = root / kind
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kind else ("memory.max", "memory.current")
        own = base / path.strip("/")
        for folder in {base, own, *(p for p in own.parents if base in p.parents)}:
            limit, used = (system_text(folder / name).strip() for name in names)
            if used and limit not in ("", "max"):
                yield max(int(limit) - int(used) + _inactive_files(folder / "memory.stat"), 0)


def _inactive_files(stat: Path) -> int:
    found = dict(line.split() for line in system_text(stat).splitlines())
    return int(found.get("total_inactive_file", found.get("inactive_file", 0)))


def _size(size: float) -> str:
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1000:
            return f"{size:.2f} {unit}"
    return f"{size / 1024:.2f} GiB"
