"""The machine: processor, cores, threads, GPU, versions for records of measurements; memory allocation."""
from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from typing import NamedTuple

import torch

from libs.core.errors import UserError
from libs.core.files import system_text


class Machine(NamedTuple):
    """Processor and GPU by name (None: no GPU, or none in use), cores of the machine, threads that torch uses, versions."""

    processor: str
    cores: int
    threads: int
    gpu: str | None
    torch: str
    python: str

    def line(self) -> str:
        """The machine in one line."""
        gpu = "" if self.gpu is None else f", {self.gpu}"
        return f"{self.processor}, {self.cores} cores, {self.threads} threads{gpu}, torch {self.torch}, Python {self.python}"


def this_machine(device: str | None = None) -> Machine:
    """The machine of this process; its GPU is that of `device` (cuda or cuda:N; cpu: none), or torch's current one for None."""
    gpu = torch.cuda.get_device_name(device) if device != "cpu" and torch.cuda.is_available() else None
    return Machine(_processor(), os.cpu_count() or 1, torch.get_num_threads(), gpu, str(torch.__version__),
                   platform.python_version())


def device_of(name: str) -> torch.device:
    """The device of the option `--device`; UserError where this machine has no such one."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: no such kind of device; use cpu, cuda or cuda:N") from error
    if device.type != "cpu" and (device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices here; use cpu")
    return device


def keep_freed_memory() -> None:
    """Make the C library of this process keep freed blocks for reuse instead of returning them to the system (glibc only).

    Every training step allocates and frees the same gigabytes; fetching fresh pages takes 5 to 10 % of it.  Peak memory stays the
    same, but freed memory is not available to other processes.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def _processor() -> str:
    lines = system_text("/proc/cpuinfo").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
