"""Exponential moving average (EMA) of the weights."""
from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """`ema <- decay * ema + (1 - decay) * weights` over every entry of a model's state dict.

    With `warmup` the decay of update i (from 0) is min(decay, (1 + i) / (10 + i)), so that a short run does not keep its
    initial weights.  Without it the decay is constant, as published.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False):
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self._sources = list(model.state_dict(keep_vars=True).values())
        self._names = list(model.state_dict())
        self._values = [v.detach().clone() for v in self._sources]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's current weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        torch._foreach_lerp_(self._values, [s.detach() for s in self._sources], 1 - decay)  # one pass over memory
        self.updates += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The EMA weights under the model's names (not copies)."""
        return dict(zip(self._names, self._values, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], updates: int) -> None:
        """Continue from EMA weights after `updates` updates."""
        for name, value in zip(self._names, self._values, strict=True):
            value.copy_(state[name])
        self.updates = updates
