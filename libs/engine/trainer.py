"""One training step and everything that must survive between steps."""
from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from libs.core.config import to_dict
from libs.core.errors import UserError, note, shown
from libs.core.schema import Config
from libs.datasets.loader import Batch
from libs.engine.checkpoint import (
    Checkpoint,
    changed_settings,
    fitting_weights,
    load_optimizer,
    load_weights,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from libs.engine.objective import DetectionObjective
from libs.engine.optim import clip_gradients, gate, make_optimizer, set_learning_rate
from libs.utils.ema import WeightAverage
from libs.utils.schedule import make_schedule

# keys that may change between a run and its continuation without a word
FREE_KEYS = ("devices", "output_folder", "loader.num_workers", "test_cfg.", "dataset.json_file", "dataset.feat_folder",
             "val_split")

TRAINING_KEYS = ("iteration", "iters_per_epoch", "ema_updates", "objective", "random", "best", "config")


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, and ask torch for deterministic kernels (a warning where there is none)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs a pass over memory, and nothing here reads it unset


class Trainer:
    """Model, optimizer, schedule, weight average and objective of a run, and the step that advances them."""

    def __init__(self, objective: DetectionObjective, config: Config, iters_per_epoch: int):
        self.objective, self.model, self.config = objective, objective.model, config
        self.device = next(self.model.parameters()).device
        self.optimizer = make_optimizer(objective.trained, config.opt)
        self.schedule = make_schedule(config.opt, iters_per_epoch)
        self.average = WeightAverage(self.model, config.train_cfg.ema_decay, config.train_cfg.ema_warmup)
        self.iters_per_epoch = iters_per_epoch
        self.iteration = 0  # steps done
        self.epoch = 0  # epochs done, warm-up included
        self.best: dict[str, float] = {}
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=self.device)
        self._recent: dict[int, tuple[str, ...]] = {}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Forward, backward, clip, update, average.  Returns scalars on the device: every loss term, `final_loss`, `grad_norm`.

        A non-finite loss or gradient changes neither weights nor moments (decided on the device); `raise_if_not_finite`
        reports it.
        """
        self.objective.train()
        set_learning_rate(self.optimizer, self.schedule.at(self.iteration))
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.objective(batch)
        losses.final.backward()
        norm = clip_gradients(self._parameters(), self.config.train_cfg.clip_grad_l2norm)
        finite = torch.isfinite(losses.final.detach()) & torch.isfinite(norm)
        gate(self.optimizer, finite)
        self.optimizer.step()
        self.average.update()
        unseen = self._first_bad < 0
        self._first_bad.copy_(torch.where(unseen & ~finite, self.iteration, self._first_bad))
        self._recent[self.iteration] = batch.video_ids
        self.iteration += 1
        return {**{k: v.detach() for k, v in losses.terms.items()}, "final_loss": losses.final.detach(), "grad_norm": norm}

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
            videos = ", ".join(self._recent[bad])
            raise UserError(f"the loss is not finite at iteration {bad + 1}; videos of that batch: {videos}. The weights were "
                            "not touched by it. Look at the features of these videos, or lower opt.learning_rate "
                            f"(now {self.config.opt.learning_rate:g}) or set train_cfg.clip_grad_l2norm: 1.0")
        self._recent.clear()

    def save(self, path: Path) -> None:
        """Write the state after whole epochs; continuing from it is exact."""
        training = {"iteration": self.iteration, "iters_per_epoch": self.iters_per_epoch, "ema_updates": self.average.updates,
                    "objective": self.objective.training_state(), "random": random_state(), "best": dict(self.best),
                    "data_order": {"seed": self.config.init_rand_seed, "next_epoch": self.epoch},
                    "config": to_dict(self.config), "torch": str(torch.__version__)}
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
        settings = sorted(changed_settings(checkpoint, self.config).items())
        if changed := [line for key, line in settings if not key.startswith(FREE_KEYS)]:
            note(f"warning: {checkpoint.path}: the configuration has changed since: {'; '.join(changed)}; "
                 "the continuation is not exact")
        self.iteration = training["iteration"]
        self.average.load_state_dict(fitting_weights(self.model, checkpoint, "ema"), training["ema_updates"])
        self.objective.load_training_state(training["objective"])
        self.best = dict(training["best"])
        restore_random_state(training["random"])
