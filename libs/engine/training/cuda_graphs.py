"""Training steps replayed as CUDA graphs.

For small batches, launching kernels from Python takes longer than running them.  A CUDA graph launches all kernels of a forward
and backward pass at once.  It is valid for the shapes that it was recorded with, so there is one graph per batch shape
(`loader.pad_multiple` keeps their number small).
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.core.errors import UserError
from libs.core.relations.checks import check_relations
from libs.core.schema import Config
from libs.datasets.loading.batch import Batch
from libs.modeling.losses.detection import Losses

TENSORS = ("feats", "mask", "segments", "labels", "present")
FEWEST_SEGMENTS = 8  # ground truth is padded to this or a larger power of two, so that batches have few shapes
WARMUP = 3  # passes before recording, in which libraries choose their kernels and allocate their workspaces

Work = Callable[[], Losses]
Record = Callable[[Work], tuple[Callable[[], None], Losses]]


def check_graphs(config: Config, device: torch.device, processes: int) -> None:
    """UserError if train_cfg.cuda_graphs is set and a step cannot be recorded."""
    if not config.train_cfg.cuda_graphs:
        return
    if device.type != "cuda":
        raise UserError(f"{config.source}: train_cfg.cuda_graphs: true needs a CUDA device, this run is on {device}; set it to "
                        "false")
    if processes > 1 or config.opt.accumulation_steps > 1:
        raise UserError(f"{config.source}: train_cfg.cuda_graphs: true records steps of one process and one batch; set it to "
                        "false, or train in one process with opt.accumulation_steps: 1")


def graphs_hint(config: Config, device: torch.device, processes: int) -> str | None:
    """A line on how to train faster, for a run on a GPU whose steps could be recorded but are not."""
    if device.type != "cuda" or config.train_cfg.cuda_graphs:
        return None
    recorded = dataclasses.replace(config, train_cfg=dataclasses.replace(config.train_cfg, cuda_graphs=True))
    try:
        check_relations(recorded)
        check_graphs(recorded, device, processes)
    except UserError:
        return None
    multiple = max(config.dataset.max_seq_len // 8, 1)
    return (f"note: {config.source}: a GPU waits for Python in most of a step; --set train_cfg.cuda_graphs=true "
            f"loader.pad_multiple={multiple} makes steps several times faster, with the same losses (docs/performance.md)")


class _Recorded(NamedTuple):
    batch: Batch  # the graph reads this one
    replay: Callable[[], None]
    losses: Losses  # the graph writes these
    gradients: tuple[Tensor | None, ...]


class StepGraphs:
    """Computes the losses and gradients of a batch: recorded once per batch shape, replayed from then on.

    work(batch) returns losses without an autograd graph and leaves gradients in the `parameters`; it must not copy anything from
    the device.  `state`: other tensors that it updates (the loss normalizer); recording leaves their values unchanged.
    """

    def __init__(self, work: Callable[[Batch], Losses], parameters: Sequence[nn.Parameter], state: Sequence[Tensor],
                 record: Record | None = None):
        self._work, self._parameters, self._state = work, tuple(parameters), tuple(state)
        self._record = record or CudaRecorder()
        self._recorded: dict[tuple[torch.Size, ...], _Recorded] = {}

    def __len__(self) -> int:
        return len(self._recorded)

    def __call__(self, batch: Batch) -> Losses:
        """Losses of the batch on the device; every parameter's `grad` holds its gradient until the next call."""
        batch = pad_ground_truth(batch)
        key = tuple(getattr(batch, name).shape for name in TENSORS)
        if key not in self._recorded:
            self._recorded[key] = self._record_step(batch)
        recorded = self._recorded[key]
        for name in TENSORS:
            getattr(recorded.batch, name).copy_(getattr(batch, name), non_blocking=True)
        recorded.replay()
        for parameter, gradient in zip(self._parameters, recorded.gradients, strict=True):
            parameter.grad = gradient
        return Losses(recorded.losses.final.clone(), {name: value.clone() for name, value in recorded.losses.terms.items()})

    def _record_step(self, batch: Batch) -> _Recorded:
        device = self._parameters[0].device
        own = dataclasses.replace(batch, **{name: getattr(batch, name).to(device, copy=True) for name in TENSORS})

        def work() -> Losses:
            for parameter in self._parameters:
                parameter.grad = None  # the backward pass allocates gradients in the memory of the graph
            return self._work(own)

        before = [value.clone() for value in self._state]
        replay, losses = self._record(work)
        for value, old in zip(self._state, before, strict=True):
            value.copy_(old)
        return _Recorded(own, replay, losses, tuple(p.grad for p in self._parameters))


class CudaRecorder:
    """Records work as CUDA graphs that share one memory pool, since only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> tuple[Callable[[], None], Losses]:
        """(replay, the losses that it overwrites)."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            losses = work()
        return graph.replay, losses


def pad_ground_truth(batch: Batch) -> Batch:
    """The batch with its ground truth padded to a power of two, at least FEWEST_SEGMENTS; `present` is False at the padding."""
    count = batch.labels.shape[1]
    more = max(FEWEST_SEGMENTS, 1 << max(count - 1, 0).bit_length()) - count
    if more == 0:
        return batch
    return dataclasses.replace(batch, segments=F.pad(batch.segments, (0, 0, 0, more)), labels=F.pad(batch.labels, (0, more)),
                               present=F.pad(batch.present, (0, more)))
