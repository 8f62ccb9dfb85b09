"""Learning rate per iteration, in closed form (SPEC item 36; cosine: Loshchilov and Hutter 2017)."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from libs.core.schema import OptConfig

ETA_MIN = 1e-8


@dataclass(frozen=True)
class Schedule:
    """Base learning rate, warm-up and total length in iterations, and the schedule after the warm-up."""

    base: float
    warmup: int  # iterations; 0: none
    total: int  # iterations, warm-up included
    kind: str = "cosine"  # cosine | multistep
    milestones: tuple[int, ...] = ()  # iterations after warm-up
    gamma: float = 0.1
    eta_min: float = ETA_MIN

    def at(self, iteration: int) -> float:
        """Learning rate of a 0-based iteration; past the end the cosine continues periodically."""
        if iteration < self.warmup:
            return self.base * iteration / (self.warmup - 1) if self.warmup > 1 else 0.0
        after = iteration - self.warmup
        if self.kind == "multistep":
            return self.base * self.gamma ** sum(after >= m for m in self.milestones)
        length = max(self.total - self.warmup, 1)
        return self.eta_min + (self.base - self.eta_min) / 2 * (1 + math.cos(math.pi * after / length))

    def state(self, iteration: int, groups: int) -> dict[str, Any]:
        """The `scheduler` entry of a checkpoint after `iteration` steps, in the published layout."""
        common = {"base_lrs": [self.base] * groups, "last_epoch": iteration, "_step_count": iteration + 1,
                  "_last_lr": [self.at(iteration)] * groups}
        if self.kind == "multistep":
            return {"warmup_epochs": self.warmup, "milestones": list(self.milestones), "gamma": self.gamma, **common}
        if self.warmup == 0:
            return {"T_max": self.total, "eta_min": self.eta_min, **common}
        return {"warmup_epochs": self.warmup, "max_epochs": self.total, "warmup_start_lr": 0.0, "eta_min": self.eta_min,
                **common}


def rate_factor(opt: OptConfig, videos_per_step: int) -> float:
    """The factor of the learning rate by opt.lr_scaling, with r = videos per step / opt.lr_reference_batch.

    linear: r, for SGD (Goyal et al., Accurate, large minibatch SGD, 2017); sqrt: the root of r, for Adam (Malladi et al., On the
    SDEs and scaling rules for adaptive gradient algorithms, 2022).
    """
    if opt.lr_scaling == "none" or opt.lr_reference_batch is None:
        return 1.0
    ratio = videos_per_step / opt.lr_reference_batch
    return ratio if opt.lr_scaling == "linear" else math.sqrt(ratio)


def make_schedule(opt: OptConfig, iters_per_epoch: int, factor: float = 1.0) -> Schedule:
    """The schedule of `opt` with `factor` times its learning rate; without warm-up, training starts at the base rate."""
    default = ETA_MIN if opt.warmup else 0.0
    warmup = opt.warmup_epochs * iters_per_epoch if opt.warmup else 0
    return Schedule(base=factor * opt.learning_rate, warmup=warmup, total=warmup + opt.epochs * iters_per_epoch,
                    kind=opt.schedule_type, milestones=tuple(m * iters_per_epoch for m in opt.schedule_steps),
                    gamma=opt.schedule_gamma, eta_min=default if opt.eta_min is None else opt.eta_min)
