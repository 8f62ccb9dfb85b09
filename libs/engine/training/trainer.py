"""One training step and everything that must survive between steps."""
from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from libs.core.config import to_dict
from libs.core.errors import UserError, note, shown
from libs.core.schema import Config
from libs.datasets.loader import Batch
from libs.engine.runs.checkpoint import (
    Checkpoint,
    changed_settings,
    fitting_weights,
    load_optimizer,
    load_weights,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from libs.engine.runtime.determinism import ask_for_determinism
from libs.engine.runtime.world import ALONE, World
from libs.engine.training.cuda_graphs import check_graphs
from libs.engine.training.ema import WeightAverage
from libs.engine.training.objective import DetectionObjective
from libs.engine.training.optim import clip_gradients, gate, make_optimizer, set_learning_rate
from libs.engine.training.schedule import make_schedule, rate_factor
from libs.engine.training.step import Gradients

# keys that may change between a run and its continuation without a word
FREE_KEYS = ("devices", "output_folder", "loader.num_workers", "test_cfg.", "dataset.json_file", "dataset.feat_folder",
             "val_split")

TRAINING_KEYS = ("iteration", "iters_per_epoch", "ema_updates", "objective", "random", "best", "config")


def seed_everything(seed: int, strict: bool = False) -> None:
    """Seed Python, numpy and torch, and ask torch for deterministic kernels (without one a warning, `strict`: an error)."""
    seed_generators(seed)
    ask_for_determinism(strict)


def seed_generators(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Trainer:
    """Model, optimizer, schedule, weight average and objective of a run, and the step that advances them.

    Of several processes each has its own trainer; all do the same steps with equal weights, and every method is called by all.
    """

    def __init__(self, objective: DetectionObjective, config: Config, iters_per_epoch: int, world: World = ALONE,
                 label_names: Mapping[int, str] | None = None):
        """`label_names`: class id -> name, kept in checkpoints for inference without the annotation file."""
        self.label_names = dict(label_names or {})
        self.objective, self.model, self.config = objective, objective.model, config
        self.device, self.world = next(self.model.parameters()).device, world
        check_graphs(config, self.device, world.size)
        self.gradients = Gradients(objective, self.device, world)
        if config.train_cfg.cuda_graphs:
            self.gradients.record()
        self.optimizer = make_optimizer(objective.trained, config.opt)
        self.videos_per_step = config.videos_per_step(world.size)
        self.schedule = make_schedule(config.opt, iters_per_epoch, rate_factor(config.opt, self.videos_per_step))
        self.average = WeightAverage(self.model, config.train_cfg.ema_decay, config.train_cfg.ema_warmup)
        self.iters_per_epoch = iters_per_epoch
        self.iteration = 0  # steps done
        self.epoch = 0  # epochs done, warm-up and evaluation included
        self.steps = 0  # steps done of the next epoch
        self.unlogged: list[dict[str, Tensor]] = []  # what the steps since the last log line returned
        self.best: dict[str, float] = {}
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=self.device)
        self._recent: dict[int, tuple[str, ...]] = {}

    def step(self, *batches: Batch) -> dict[str, Tensor]:
        """Forward, backward, clip, update, average.  Returns scalars on the device: every loss term, `final_loss`, `grad_norm`.

        `batches`: the opt.accumulation_steps batches of this process (see `Gradients`).

        A non-finite loss or gradient changes neither weights nor moments (decided on the device); `raise_if_not_finite`
        reports it.
        """
        self.objective.train()
        set_learning_rate(self.optimizer, self.schedule.at(self.iteration))
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.gradients(batches)
        norm = clip_gradients(self._parameters(), self.config.train_cfg.clip_grad_l2norm)
        finite = torch.isfinite(losses.final) & torch.isfinite(norm)
        gate(self.optimizer, finite)
        self.optimizer.step()
        self.average.update()
        unseen = self._first_bad < 0
        self._first_bad.copy_(torch.where(unseen & ~finite, self.iteration, self._first_bad))
        self._recent[self.iteration] = tuple(v for batch in batches for v in batch.video_ids)
        self.iteration += 1
        self.steps += 1
        self.unlogged.append({**losses.terms, "final_loss": losses.final, "grad_norm": norm})
        return self.unlogged[-1]

    def end_epoch(self) -> None:
        """Count the epoch whose steps are done."""
        self.epoch, self.steps = self.epoch + 1, 0

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [p for module in self.objective.trained for p in module.parameters()]

    @property
    def learning_rate(self) -> float:
        """The rate that the last step used."""
        return self.schedule.at(max(self.iteration - 1, 0))

    def raise_if_not_finite(self) -> None:
        """UserError naming the videos of the first batch since the last call whose loss was not finite."""
        bad = int(self._first_bad)
        if bad >= 0:
            videos = ", ".join(v for own in self.world.all_gather(self._recent[bad]) for v in own)
            raise UserError(f"the loss is not finite at iteration {bad + 1}; videos of that batch: {videos}. The weights were "
                            "not touched by it. Look at the features of these videos, or lower opt.learning_rate "
                            f"(now {self.config.opt.learning_rate:g}) or set train_cfg.clip_grad_l2norm: 1.0")
        self._recent.clear()

    @property
    def logged(self) -> tuple[int, int]:
        """(steps whose records are in the logs, steps up to the last evaluation that may be there): what to keep of the logs."""
        return self.iteration - len(self.unlogged), self.iteration - self.steps

    def save(self, path: Path) -> None:
        """Write the state between two steps; continuing from it is exact, with the same number of processes."""
        states = self.world.all_gather(random_state())
        self._compare_processes()
        if not self.world.is_main:
            return
        training = {"iteration": self.iteration, "iters_per_epoch": self.iters_per_epoch, "ema_updates": self.average.updates,
                    "objective": self.objective.training_state(), "random": states[0], "best": dict(self.best),
                    "data_order": {"seed": self.config.init_rand_seed, "next_epoch": self.epoch, "next_step": self.steps},
                    "unlogged": [{k: v.float().cpu().clone() for k, v in step.items()} for step in self.unlogged],
                    "processes": {"videos_per_step": self.videos_per_step, "random_of_others": states[1:]},
                    "config": to_dict(self.config), "labels": self.label_names, "torch": str(torch.__version__)}
        save_checkpoint(path, self.epoch, self.model.state_dict(), self.average.state_dict(), self.optimizer.state_dict(),
                        self.schedule.state(self.iteration, len(self.optimizer.param_groups)), training)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; a published one lacks some state, which one warning names.  UserError if it cannot fit."""
        try:
            self._resume(checkpoint)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
            raise UserError(f"{checkpoint.path}: its optimizer or training state cannot be restored ({type(error).__name__}: "
                            f"{str(error)[:120]}); the file is damaged, use another epoch, or start with --init-from") from error

    def _resume(self, checkpoint: Checkpoint) -> None:
        load_weights(self.model, checkpoint, "raw")
        if checkpoint.optimizer is None:
            raise UserError(f"{checkpoint.path}: optimizer: missing, so training cannot go on from it; use --init-from")
        load_optimizer(self.optimizer, checkpoint.optimizer, checkpoint.path)
        self.epoch = checkpoint.epoch
        training = checkpoint.training
        if training is None:
            self.iteration = int((checkpoint.scheduler or {}).get("last_epoch", checkpoint.epoch * self.iters_per_epoch))
            ema = checkpoint.weights_ema
            self.average.load_state_dict(fitting_weights(self.model, checkpoint, "ema" if ema else "raw"), self.iteration)
            note(f"warning: {checkpoint.path}: has no loss normaliser, random state or data order (another program wrote it); "
                 f"they start anew{'' if ema else ', and so does the weight average'}, so the continuation is not exact")
            return
        if lacking := [k for k in TRAINING_KEYS if k not in training]:
            raise UserError(f"{checkpoint.path}: training: lacks {', '.join(lacking)}; the file is damaged, use another "
                            "epoch, or start with --init-from")
        if training["iters_per_epoch"] != self.iters_per_epoch:
            raise UserError(f"{checkpoint.path}: was trained with {shown(training['iters_per_epoch'])} iterations per epoch, the "
                            f"present data and loader.batch_size give {self.iters_per_epoch}; resume with the data of that run, "
                            "or start with --init-from")
        self._check_processes(checkpoint)
        settings = sorted(changed_settings(checkpoint, self.config).items())
        if changed := [line for key, line in settings if not key.startswith(FREE_KEYS)]:
            note(f"warning: {checkpoint.path}: the configuration has changed since: {'; '.join(changed)}; "
                 "the continuation is not exact")
        self.iteration = training["iteration"]
        self._resume_inside_epoch(training, checkpoint.path)
        self.average.load_state_dict(fitting_weights(self.model, checkpoint, "ema"), training["ema_updates"])
        self.objective.load_training_state(training["objective"])
        self.best = dict(training["best"])
        self._restore_random_state(training)

    def _compare_processes(self) -> None:
        """One warning if weights or averages of the processes are not equal, as they must be after equal steps."""
        if self.world.size == 1:
            return
        values = (*self.model.state_dict().values(), *self.average.state_dict().values())
        sums = self.world.all_gather(float(torch.stack([v.detach().double().sum() for v in values]).sum()))
        if wrong := [rank for rank, its in enumerate(sums) if its != sums[0]]:
            note(f"warning: epoch {self.epoch}: the weights of process {wrong[0]} are not those of process 0, which are saved; "
                 "do the processes run on different GPUs or versions?")

    def _check_processes(self, checkpoint: Checkpoint) -> None:
        """UserError if the run's steps were of another size, and that is due to the number of processes."""
        saved = checkpoint.training.get("processes", {"videos_per_step": self.videos_per_step, "random_of_others": []})
        before, now = 1 + len(saved["random_of_others"]), self.world.size
        if before != now and saved["videos_per_step"] != self.videos_per_step:
            raise UserError(f"{checkpoint.path}: was trained with {saved['videos_per_step']} videos per step, {now} "
                            f"process{'es' * (now > 1)} with the present loader.batch_size and opt.accumulation_steps make it "
                            f"{self.videos_per_step}; choose them so that their product stays, or start with --init-from")

    def _restore_random_state(self, training: dict[str, Any]) -> None:
        """The state of this process, or with another number of processes a new one for all but the first."""
        states = [training["random"], *training.get("processes", {}).get("random_of_others", [])]
        if self.world.is_main or len(states) == self.world.size:
            restore_random_state(states[self.world.rank])
        else:
            seed_generators(self.world.seed(self.config.init_rand_seed, self.epoch))

    def _resume_inside_epoch(self, training: dict[str, Any], source: Path) -> None:
        order, unlogged = training.get("data_order"), training.get("unlogged", [])
        steps = order.get("next_step", 0) if isinstance(order, dict) else 0
        whole = isinstance(steps, int) and 0 <= steps <= self.iters_per_epoch and isinstance(unlogged, list) and all(
            isinstance(step, dict) and all(isinstance(v, Tensor) and v.numel() == 1 for v in step.values()) for step in unlogged)
        if not whole or len(unlogged) > steps:
            raise UserError(f"{source}: training: data_order.next_step or unlogged do not say where in an epoch of "
                            f"{self.iters_per_epoch} steps it was saved; the file is damaged, use another epoch")
        self.steps, self.unlogged = steps, [{k: v.to(self.device) for k, v in step.items()} for step in unlogged]
