"""The device of each process, from the configuration key `devices`; what a CPU can do."""
from __future__ import annotations

import re

from libs.core.errors import UserError, note
from libs.core.files import system_text
from libs.core.schema import Config


def resolve_device(config: Config, process: int = 0, processes: int = 1) -> str:
    """The torch device ("cpu" or "cuda:N") of local rank `process` out of `processes` on this machine.

    `auto` is the first CUDA device, or the CPU with a line on stderr.  With several processes each gets its own CUDA device, from
    the list or by its rank.  Raises UserError if the device does not exist, or if devices and processes do not fit.
    """
    device = config.devices[0]
    if device == "cpu":
        return device
    import torch  # late, so that reading a configuration needs no torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto" and not count:
        note("devices: auto: no CUDA device here, running on the CPU")
        return "cpu"
    chosen, index = _gpu_of(config, process, processes, count)
    if index >= count:
        have = f"this machine has {count} (cuda:0 to cuda:{count - 1})" if count else "no CUDA device is available here"
        remedy = "--set devices=cpu" + (" or --set devices=cuda:0" if count else "")
        raise UserError(f"{config.source}: devices: {chosen!r}, but {have}; use {remedy}")
    return f"cuda:{index}"


def multiplies_bf16() -> bool:
    """Whether the CPU has instructions for bf16 products; True where the system does not tell (not Linux)."""
    text = system_text("/proc/cpuinfo")
    return not text or re.search(r"\b(amx_bf16|avx512_bf16|bf16)\b", text) is not None


def _gpu_of(config: Config, process: int, processes: int, count: int) -> tuple[str, int]:
    """The entry of `devices` for a local rank, and its GPU index; UserError if devices and processes do not fit."""
    device, listed = config.devices[0], len(config.devices)
    if listed > 1:
        if listed != processes:
            several = f"{processes} processes" if processes > 1 else "one process"
            raise UserError(f"{config.source}: devices: names {listed} devices, but on this machine runs {several}, and a "
                            f"process drives one; start torchrun --nproc_per_node={listed} train.py ..., or use --set "
                            f"devices={device}")
        return config.devices[process], int(config.devices[process].partition(":")[2])
    if processes == 1:
        return device, int(device.partition(":")[2] or 0)
    if device not in ("auto", "cuda", "cuda:0"):
        raise UserError(f"{config.source}: devices: {device!r} is one device, but torchrun has started {processes} processes on "
                        "this machine; use devices: cuda, which gives each its own, or list one per process")
    if 0 < count < processes:
        raise UserError(f"{config.source}: devices: {device!r}: torchrun has started {processes} processes on this machine, "
                        f"which has {count} GPU{'s' * (count > 1)}; use --nproc_per_node={count}, or --set devices=cpu")
    return device, process
