"""What every benchmark reports beside its numbers: the machine, the versions, the unit G and the peak memory."""
from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch

from libs.utils.machine import this_machine


def machine() -> str:
    """Processor, cores, threads, GPU and versions in one line."""
    return this_machine().line()


def median_seconds(call: Callable[[], object], runs: int, warmup: int = 1) -> float:
    """Median wall-clock time of `runs` calls after `warmup` unmeasured ones."""
    times = []
    for i in range(warmup + runs):
        started = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if i >= warmup:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def unit_g(runs: int = 10) -> float:
    """Seconds of one G: a float32 product (2304 x 2048) @ (2048 x 2048) on the CPU with the threads at hand."""
    a, b = torch.randn(2304, 2048), torch.randn(2048, 2048)
    return median_seconds(lambda: a @ b, runs)


def peak_gib() -> float:
    """Peak resident memory of this process so far, GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
