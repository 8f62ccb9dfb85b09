"""Loss and gradients of one step, in whatever parts its batch lies: one, several one after the other, several processes'.

Of several parts each has its losses divided by the sums of the whole batch, which are known before its backward pass, so the
gradients of all parts add up to those of the batch in one piece.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from libs.datasets.loader import Batch
from libs.engine.runtime.world import World
from libs.engine.training.cuda_graphs import Record, StepGraphs
from libs.engine.training.objective import DetectionObjective, Prepared
from libs.modeling.losses import Losses, Sums


class Gradients:
    """Runs an objective forwards and backwards; several processes hold equal copies of its parameters from here on."""

    def __init__(self, objective: DetectionObjective, device: torch.device, world: World):
        self.objective, self.device, self.world = objective, device, world
        self._copies = world.wrap(objective)  # what learns in step with the other processes
        self._alone = self.of_one_batch

    def __call__(self, batches: Sequence[Batch]) -> Losses:
        """Losses of the step whose batch lies in `batches`, and in those of the other processes; adds up the gradients.

        Every process returns the losses of the whole batch, without a graph, on the device.
        """
        if len(batches) == self.world.size == 1:
            return self._alone(batches[0])
        batches = [self.objective.augment(batch) for batch in batches]
        prepared = [self.objective.prepare(batch.to(self.device)) for batch in batches]
        sums = self._whole([p.sums for p in prepared])
        self.objective.advance(sums)
        prepared = [p._replace(sums=sums) for p in prepared]
        everywhere = self._balanced(batches, prepared)
        names: list[str] = []
        values: Tensor | None = None
        for i, (batch, known) in enumerate(zip(batches, prepared, strict=True), start=1):
            with self._together(i == len(batches)):
                losses = self._copies(batch.to(self.device), known, everywhere)
                (losses.final * self.world.size).backward()  # the copies' gradients are averaged, these losses add up
            names = list(losses.terms)
            own = torch.stack([losses.final, *losses.terms.values()]).detach().double()
            values = own if values is None else values + own
        final, *terms = self.world.all_reduce(values).float().unbind()
        return Losses(final, dict(zip(names, terms, strict=True)))

    def of_one_batch(self, batch: Batch) -> Losses:
        """Losses of a step of one process and one batch, without a graph; adds up the gradients."""
        losses = self.objective(batch.to(self.device))
        losses.final.backward()
        return Losses(losses.final.detach(), {k: v.detach() for k, v in losses.terms.items()})

    def record(self, record: Record | None = None) -> None:
        """From now on replay recorded steps (see `StepGraphs`)."""
        parameters = [p for module in self.objective.trained for p in module.parameters()]
        self._alone = StepGraphs(self.of_one_batch, parameters, [self.objective.criterion.normalizer], record)

    def _together(self, last: bool) -> contextlib.AbstractContextManager:
        """Only the last backward pass of a step sends gradients to the other processes."""
        return contextlib.nullcontext() if last or self.world.size == 1 else self._copies.no_sync()

    def _whole(self, parts: Sequence[Sums]) -> Sums:
        """The sums of all parts, here and elsewhere; one message, in float64, since counts may exceed what float32 holds."""
        flat = torch.stack([torch.cat([v.flatten() for v in part.values()]).double() for part in parts]).sum(0)
        pieces = self.world.all_reduce(flat).float().split([v.numel() for v in parts[0].values()])
        return {name: piece.view(v.shape) for (name, v), piece in zip(parts[0].items(), pieces, strict=True)}

    def _balanced(self, batches: Sequence[Batch], prepared: Sequence[Prepared]) -> Callable[[Tensor], Tensor]:
        """How the automatic loss weight gets from the losses of a part to those of the whole batch.

        It must be known before the first backward pass.  So with accumulation, and only then, the batches run forward twice: once
        without a graph for their losses, with the same random numbers.
        """
        if len(batches) == 1 or not self.objective.criterion.balances:
            return self.world.all_reduce
        devices = [self.device] if self.device.type == "cuda" else []
        found = torch.zeros(2, device=self.device)
        with torch.no_grad(), torch.random.fork_rng(devices):
            for batch, known in zip(batches, prepared, strict=True):
                terms = self.objective(batch.to(self.device), known, lambda own: own).terms
                found += torch.stack([terms["cls_loss"], terms["reg_loss"]])
        self.world.all_reduce(found)
        return lambda _own: found
