"""Processes that train or evaluate together, started by torchrun (docs/distributed.md).

    with launched() as world:                 # without torchrun: ALONE, one process
        device = world.start(config)          # the device of this process; collective operations work from here on
        world.in_turn(lambda: ensure_demo_of(config))
        ...

Process 0 alone prints, logs and writes.  A process that fails ends the others (`libs.engine.runtime.lifeline`).
"""
from __future__ import annotations

import contextlib
import datetime
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from libs.core.devices import resolve_device
from libs.core.errors import Stopped, UserError, failure
from libs.core.schema import Config
from libs.engine.runtime.lifeline import Lifeline

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
START_TIMEOUT = datetime.timedelta(minutes=10)  # for all processes to start
COLLECTIVE_TIMEOUT = datetime.timedelta(hours=2)  # long, since a disk may be slow; Lifeline notices dead processes
Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """Process `rank` of `size`, the `local_rank`-th of `local_size` on its machine; every method is called by all of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    store: Any = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def start(self, config: Config) -> torch.device:
        """The device of this process; connects several processes, with NCCL between GPUs and gloo between CPUs.

        UserError if `devices` and the processes do not fit.
        """
        device = torch.device(resolve_device(config, self.local_rank, self.local_size))
        if self.size > 1:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.size, timeout=COLLECTIVE_TIMEOUT)
        return device

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """The module itself, or with several processes a DistributedDataParallel around it, with the weights of process 0."""
        if self.size == 1:
            return module
        # the strides of depthwise kernels (C, 1, K) differ in the dimension of size 1 only, which does not matter
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
        replica = nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
        replica.broadcast_buffers = False  # buffers are equal anyway; newer versions of torch deprecate it as an argument
        return replica

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place; nothing is read back from a GPU."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def all_reduce_max(self, value: int) -> int:
        """The maximum of a number over all processes, on the CPU, so that it does not wait for a GPU."""
        if self.size == 1:
            return value
        box = torch.tensor(value)
        dist.all_reduce(box, dist.ReduceOp.MAX)
        return int(box)

    def all_gather(self, value: Value) -> list[Value]:
        """The value of every process, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: Value) -> Value:
        """Process 0's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        self.all_reduce(torch.zeros(1))

    def in_turn(self, work: Callable[[], object]) -> None:
        """Call `work` in process 0, then in the first of every machine, then in the others: for work needed once per disk."""
        turn = 0 if self.is_main else 1 if self.local_rank == 0 else 2
        for now in range(3 if self.size > 1 else 1):
            if now == turn:
                work()
            self.barrier()

    def seed(self, seed: int, epoch: int) -> int:
        """A seed for this process, for processes other than process 0."""
        return int(np.random.SeedSequence([seed, self.rank, epoch]).generate_state(1, np.uint64)[0] >> 1)


ALONE = World()


@contextlib.contextmanager
def launched() -> Iterator[World]:
    """The processes that torchrun has started, or ALONE.

    Only process 0 prints.  An exception in any process ends all of them, with the same exit code as in a run of one process, and
    is printed once.  UserError if only some of torchrun's environment variables are set, or if a process does not start.
    """
    size = _number("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1
    if size == 1:
        yield ALONE
        return
    if lacking := [name for name in VARIABLES if name not in os.environ]:
        raise UserError(f"WORLD_SIZE is {size}, so this is one of {size} processes, but {', '.join(lacking)} is not set; start "
                        "them with torchrun, or unset WORLD_SIZE")
    rank, local_rank, local_size = map(_number, ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    store = _connect(rank, size)
    shown = sys.stdout, sys.stderr
    lifeline = Lifeline(rank, size, sys.stderr)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            if rank > 0:
                sys.stdout = sys.stderr = nowhere
            yield World(rank, size, local_rank, local_size, store)
            lifeline.close()
    except BaseException as error:
        code, text = failure(error)
        if code == 0 or isinstance(error, Stopped):  # in all processes at once
            lifeline.close()
            raise error if rank == 0 else SystemExit(code) from None
        unexpected = text is None  # e.g. a collective operation that failed because another process has ended
        if text is None:
            text = f"process {rank} of {size}:\n{''.join(traceback.format_exception(error))}".rstrip()
        lifeline.fail(code, text, maybe_consequence=unexpected)
    finally:
        sys.stdout, sys.stderr = shown
    if dist.is_initialized():
        dist.destroy_process_group()


def _connect(rank: int, size: int) -> dist.Store:
    """The key-value store of all processes.  UserError if they do not start within START_TIMEOUT."""
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=START_TIMEOUT))
    except RuntimeError as error:
        raise UserError(f"process {rank} of {size} has waited {START_TIMEOUT} for the others at {os.environ['MASTER_ADDR']}, "
                        f"port {os.environ['MASTER_PORT']} ({str(error).splitlines()[0]}); are all started, and is that port "
                        "open between the machines?") from error
    store.set_timeout(COLLECTIVE_TIMEOUT)
    return store


def _number(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise UserError(f"{name}: {text!r} is not a number; torchrun sets this variable: start with torchrun, or unset it")
    return int(text)
