"""Optimizer: parameter groups for weight decay (SPEC item 35), and a fused update that is skipped if a loss is not finite."""
from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from libs.core.schema import OptConfig
from libs.modeling.blocks.layers import AffineDropPath, LayerNorm, Scale

Named = list[tuple[str, nn.Parameter]]
UNDECAYED = (LayerNorm, nn.LayerNorm, nn.GroupNorm, Scale, AffineDropPath)


def parameter_groups(model: nn.Module) -> tuple[Named, Named]:
    """(decay, no decay): weights of convolutions and linear layers decay; biases, norms, scales and rel_pe do not.

    Each list is sorted by name, which is the order of published optimizer states.  TypeError for a parameter of an unknown kind:
    decide whether it decays.
    """
    decay, no_decay = [], []
    for prefix, module in model.named_modules():
        for short, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{short}" if prefix else short
            if short in ("bias", "rel_pe") or isinstance(module, UNDECAYED):
                no_decay.append((name, parameter))
            elif short == "weight" and isinstance(module, (nn.Conv1d, nn.Linear)):
                decay.append((name, parameter))
            else:
                raise TypeError(f"{name}: decide whether a parameter of {type(module).__name__} decays")
    return sorted(decay, key=lambda item: item[0]), sorted(no_decay, key=lambda item: item[0])


def make_optimizer(modules: nn.Module | Sequence[nn.Module], opt: OptConfig) -> torch.optim.Optimizer:
    """AdamW (default betas and eps) or SGD with momentum, fused: its step can be gated on the device (`gate`).

    Of several modules, each group holds the parameters of the first, then those of the next.
    """
    modules = (modules,) if isinstance(modules, nn.Module) else modules
    split = [parameter_groups(module) for module in modules]
    decay, no_decay = ([item for groups in split for item in groups[i]] for i in (0, 1))
    groups = [{"params": [p for _, p in decay], "weight_decay": opt.weight_decay},
              {"params": [p for _, p in no_decay], "weight_decay": 0.0}]
    if opt.type == "SGD":
        optimizer = torch.optim.SGD(groups, lr=opt.learning_rate, momentum=opt.momentum, fused=True)
        for _, parameter in (*decay, *no_decay):  # zeros, since a skipped first step would leave it uninitialized
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(groups, lr=opt.learning_rate, fused=True)


def gate(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Make the next optimizer step a no-op unless `finite` (a bool scalar on the device) is true; nothing is read back."""
    vars(optimizer).update(grad_scale=None, found_inf=(~finite).to(torch.float32))  # as GradScaler does for fused optimizers


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients to an L2 norm of at most `limit` (<= 0: leave them); returns the norm before, on the device."""
    with_gradient = [p for p in parameters if p.grad is not None]
    return torch.nn.utils.clip_grad_norm_(with_gradient, limit if limit > 0 else float("inf"))
