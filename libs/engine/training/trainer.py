"""The training step, and the state that it advances."""
from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from libs.core.errors import UserError
from libs.core.relations.checks import check_trainable
from libs.core.schema import Config
from libs.datasets.loading.batch import Batch
from libs.engine.runtime.precision import matmul_precision
from libs.engine.runtime.world import ALONE, World
from libs.engine.training.cuda_graphs import Record, StepGraphs, check_graphs
from libs.engine.training.ema import EMA
from libs.engine.training.objective import DetectionObjective
from libs.engine.training.optim import clip_gradients, gate, make_optimizer, set_learning_rate
from libs.engine.training.schedule import make_schedule, rate_factor
from libs.modeling.losses.detection import Denominators, Losses


class Trainer:
    """Model, optimizer, schedule, EMA and objective of a run, and the step that advances them.

    With several processes each has its own trainer; all take the same steps with equal weights, and all call every method.
    """

    def __init__(self, objective: DetectionObjective, config: Config, iters_per_epoch: int, world: World = ALONE,
                 label_names: Mapping[int, str] | None = None):
        """`label_names`: class id -> name, kept in checkpoints for inference without the annotation file."""
        self.label_names = dict(label_names or {})
        self.objective, self.model, self.config = objective, objective.model, config
        self.device, self.world = next(self.model.parameters()).device, world
        check_trainable(config)
        check_graphs(config, self.device, world.size)
        self.replica = world.data_parallel(objective)  # the objective; with several processes inside DistributedDataParallel
        self.graphs: StepGraphs | None = None
        if config.train_cfg.cuda_graphs:
            self.record_graphs()
        self.optimizer = make_optimizer(objective.trainable_modules, config.opt)
        self.videos_per_step = config.videos_per_step(world.size)
        self.schedule = make_schedule(config.opt, iters_per_epoch, rate_factor(config.opt, self.videos_per_step))
        self.ema = EMA(self.model, config.train_cfg.ema_decay, config.train_cfg.ema_warmup)
        self.iters_per_epoch = iters_per_epoch
        self.iteration = 0  # steps done
        self.epoch = 0  # epochs done, warm-up and evaluation included
        self.steps = 0  # steps done of the next epoch
        self.unlogged: list[dict[str, Tensor]] = []  # results of the steps since the last log line
        self.best: dict[str, float] = {}
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=self.device)
        self._recent: dict[int, tuple[str, ...]] = {}
        self._learnt = torch.zeros(3, dtype=torch.bool, device=self.device)  # in this epoch: start, end, whether there was a loss

    def step(self, *micro_batches: Batch) -> dict[str, Tensor]:
        """One optimizer step over the opt.accumulation_steps batches of this process and those of all others.

        Returns scalars on the device: every loss term, `final_loss`, `grad_norm`.  A non-finite loss or gradient changes neither
        weights nor moments (decided on the device); `raise_if_not_finite` reports it.
        """
        self.objective.train()
        set_learning_rate(self.optimizer, self.schedule.at(self.iteration))
        self.optimizer.zero_grad(set_to_none=True)
        with matmul_precision(self.config.train_cfg.precision):
            losses = self.graphs(*micro_batches) if self.graphs is not None else self.losses_and_gradients(*micro_batches)
        if (grad := self.model.reg_head.offset_head.bias.grad) is not None and grad.numel() == 2:  # no bins
            self._learnt |= torch.cat([grad, losses.terms["reg_loss"].detach().view(1)]) != 0
        norm = clip_gradients(self.parameters, self.config.train_cfg.clip_grad_l2norm)
        finite = torch.isfinite(losses.final) & torch.isfinite(norm)
        gate(self.optimizer, finite)
        self.optimizer.step()
        self.ema.update()
        self._remember_if_not_finite(finite, micro_batches)
        self.iteration += 1
        self.steps += 1
        self.unlogged.append({**losses.terms, "final_loss": losses.final, "grad_norm": norm})
        return self.unlogged[-1]

    def losses_and_gradients(self, *micro_batches: Batch) -> Losses:
        """Losses of the whole step, without a graph; adds up its gradients in the parameters.

        Micro-batches and processes divide by the denominators of the whole step, so their gradients add up to those of one large
        batch.
        """
        parts = [self.objective.prepare(batch.to(self.device)) for batch in micro_batches]
        total = self._add_denominators([part.denominators for part in parts])
        self.objective.update_normalizer(total)
        scalars: list[Tensor] = []
        for part in parts:
            with self._sync_gradients(last=part is parts[-1]):
                losses = self.replica(part, total)
                (losses.final * self.world.size).backward()  # DDP averages gradients; these losses add up
            scalars.append(torch.stack([losses.final, *losses.terms.values()]).detach().double())
        final, *terms = self.world.all_reduce(torch.stack(scalars).sum(0)).float().unbind()
        return Losses(final, dict(zip(losses.terms, terms, strict=True)))

    def record_graphs(self, record: Record | None = None) -> None:
        """Replay recorded steps from now on (see `StepGraphs`)."""
        self.graphs = StepGraphs(self.losses_and_gradients, self.parameters, [self.objective.criterion.normalizer], record)

    def end_epoch(self) -> None:
        """Count the epoch whose steps are done."""
        self.epoch, self.steps = self.epoch + 1, 0
        self._learnt.zero_()

    def dead_offsets(self) -> list[str]:
        """Those of `start` and `end` whose offset was zero at every positive point of this epoch's steps.

        Such an offset has no gradient, and stays zero (a dead ReLU).  Not looked for in the bins of model.use_trident_head.
        """
        start, end, any_loss = self._learnt.tolist()
        return [name for name, learns in (("start", start), ("end", end)) if any_loss and not learns]

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All parameters that the optimizer updates."""
        return [p for module in self.objective.trainable_modules for p in module.parameters()]

    @property
    def learning_rate(self) -> float:
        """The rate that the last step used."""
        return self.schedule.at(max(self.iteration - 1, 0))

    @property
    def logged(self) -> tuple[int, int]:
        """(steps whose records are in the logs, steps up to the last evaluation that may be there): what to keep of the logs."""
        return self.iteration - len(self.unlogged), self.iteration - self.steps

    def raise_if_not_finite(self) -> None:
        """UserError naming the videos of the first step since the last call whose loss was not finite."""
        bad = int(self._first_bad)
        if bad >= 0:
            videos = ", ".join(v for own in self.world.all_gather(self._recent[bad]) for v in own)
            raise UserError(f"the loss is not finite at iteration {bad + 1}; videos of that batch: {videos}. The weights were "
                            "not touched by it. Look at the features of these videos, or lower opt.learning_rate "
                            f"(now {self.config.opt.learning_rate:g}) or set train_cfg.clip_grad_l2norm: 1.0")
        self._recent.clear()

    def _add_denominators(self, parts: Sequence[Denominators]) -> Denominators:
        """Denominators of the whole step; one message, in float64, since counts may exceed what float32 holds."""
        flat = torch.stack([torch.cat([v.flatten() for v in part.values()]).double() for part in parts]).sum(0)
        pieces = self.world.all_reduce(flat).float().split([v.numel() for v in parts[0].values()])
        return {name: piece.view(v.shape) for (name, v), piece in zip(parts[0].items(), pieces, strict=True)}

    def _sync_gradients(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Only the last backward pass of a step averages gradients over the processes."""
        if last or not isinstance(self.replica, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.replica.no_sync()

    def _remember_if_not_finite(self, finite: Tensor, micro_batches: Sequence[Batch]) -> None:
        unseen = self._first_bad < 0
        self._first_bad.copy_(torch.where(unseen & ~finite, self.iteration, self._first_bad))
        self._recent[self.iteration] = tuple(v for batch in micro_batches for v in batch.video_ids)
