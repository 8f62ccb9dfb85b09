"""Saves the state of a trainer between two steps to a checkpoint, and restores it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from libs.core.config import to_dict
from libs.core.errors import UserError, note, shown
from libs.engine.runs.checkpoint import (
    Checkpoint,
    changed_settings,
    check_label_ids,
    fitting_weights,
    load_optimizer,
    load_weights,
    save_checkpoint,
)
from libs.engine.runtime.determinism import random_state, restore_random_state, seed_generators
from libs.engine.training.trainer import Trainer

# keys that may change without a warning when a run is resumed
FREE_KEYS = ("devices", "output_folder", "loader.num_workers", "test_cfg.", "dataset.json_file", "dataset.feat_folder",
             "dataset.extractor", "val_split")

TRAINING_KEYS = ("iteration", "iters_per_epoch", "ema_updates", "objective", "random", "best", "config")


def save_state(trainer: Trainer, path: Path) -> None:
    """Write the state between two steps to a checkpoint; called by all processes, written by the main one.

    Continuing from it is exact with the same number of processes.
    """
    states = trainer.world.all_gather(random_state())
    _compare_processes(trainer)
    if not trainer.world.is_main:
        return
    training = {"iteration": trainer.iteration, "iters_per_epoch": trainer.iters_per_epoch, "ema_updates": trainer.ema.updates,
                "objective": trainer.objective.training_state(), "random": states[0], "best": dict(trainer.best),
                "data_order": {"seed": trainer.config.init_rand_seed, "next_epoch": trainer.epoch, "next_step": trainer.steps},
                "unlogged": [{k: v.float().cpu().clone() for k, v in step.items()} for step in trainer.unlogged],
                "processes": {"videos_per_step": trainer.videos_per_step, "random_of_others": states[1:]},
                "config": to_dict(trainer.config), "labels": trainer.label_names, "torch": str(torch.__version__)}
    save_checkpoint(path, trainer.epoch, trainer.model.state_dict(), trainer.ema.state_dict(), trainer.optimizer.state_dict(),
                    trainer.schedule.state(trainer.iteration, len(trainer.optimizer.param_groups)), training)


def restore_state(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Restore the state of a checkpoint.

    A checkpoint of another program lacks some state, which a warning names.  UserError if the checkpoint does not fit.
    """
    check_label_ids(checkpoint, trainer.label_names, trainer.config.dataset.json_file)
    try:
        load_weights(trainer.model, checkpoint, "raw")
        if checkpoint.optimizer is None:
            raise UserError(f"{checkpoint.path}: optimizer: missing, so training cannot go on from it; use --init-from")
        load_optimizer(trainer.optimizer, checkpoint.optimizer, checkpoint.path)
        trainer.epoch = checkpoint.epochs_done
        if checkpoint.training is None:
            _restore_published(trainer, checkpoint)
        else:
            _restore_training(trainer, checkpoint, checkpoint.training)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"{checkpoint.path}: its optimizer or training state cannot be restored ({type(error).__name__}: "
                        f"{str(error)[:120]}); the file is damaged, use another epoch, or start with --init-from") from error


def _restore_published(trainer: Trainer, checkpoint: Checkpoint) -> None:
    trainer.iteration = int((checkpoint.scheduler or {}).get("last_epoch", checkpoint.epochs_done * trainer.iters_per_epoch))
    ema = checkpoint.weights_ema
    trainer.ema.load_state_dict(fitting_weights(trainer.model, checkpoint, "ema" if ema else "raw"), trainer.iteration)
    note(f"warning: {checkpoint.path}: has no loss normaliser, random state or data order (another program wrote it); "
         f"they start anew{'' if ema else ', and so does the weight average'}, so the continuation is not exact")


def _restore_training(trainer: Trainer, checkpoint: Checkpoint, training: dict[str, Any]) -> None:
    if lacking := [k for k in TRAINING_KEYS if k not in training]:
        raise UserError(f"{checkpoint.path}: training: lacks {', '.join(lacking)}; the file is damaged, use another "
                        "epoch, or start with --init-from")
    if training["iters_per_epoch"] != trainer.iters_per_epoch:
        raise UserError(f"{checkpoint.path}: was trained with {shown(training['iters_per_epoch'])} iterations per epoch, the "
                        f"present data and loader.batch_size give {trainer.iters_per_epoch}; resume with the data of that run, "
                        "or start with --init-from")
    _check_processes(trainer, checkpoint.path, training)
    settings = sorted(changed_settings(checkpoint, trainer.config).items())
    if changed := [line for key, line in settings if not key.startswith(FREE_KEYS)]:
        note(f"warning: {checkpoint.path}: the configuration has changed since: {'; '.join(changed)}; "
             "the continuation is not exact")
    trainer.iteration = training["iteration"]
    _restore_inside_epoch(trainer, training, checkpoint.path)
    trainer.ema.load_state_dict(fitting_weights(trainer.model, checkpoint, "ema"), training["ema_updates"])
    trainer.objective.load_training_state(training["objective"])
    trainer.best = dict(training["best"])
    states = [training["random"], *training.get("processes", {}).get("random_of_others", [])]
    if trainer.world.is_main or len(states) == trainer.world.size:
        restore_random_state(states[trainer.world.rank])
    else:  # another number of processes: new random numbers in all but process 0
        seed_generators(trainer.world.seed(trainer.config.init_rand_seed, trainer.epoch))


def _restore_inside_epoch(trainer: Trainer, training: dict[str, Any], source: Path) -> None:
    order, unlogged = training.get("data_order"), training.get("unlogged", [])
    steps = order.get("next_step", 0) if isinstance(order, dict) else 0
    whole = isinstance(steps, int) and 0 <= steps <= trainer.iters_per_epoch and isinstance(unlogged, list) and all(
        isinstance(step, dict) and all(isinstance(v, Tensor) and v.numel() == 1 for v in step.values()) for step in unlogged)
    if not whole or len(unlogged) > steps:
        raise UserError(f"{source}: training: data_order.next_step or unlogged do not say where in an epoch of "
                        f"{trainer.iters_per_epoch} steps it was saved; the file is damaged, use another epoch")
    trainer.steps, trainer.unlogged = steps, [{k: v.to(trainer.device) for k, v in step.items()} for step in unlogged]


def _check_processes(trainer: Trainer, source: Path, training: dict[str, Any]) -> None:
    """UserError if another number of processes changes the number of videos per step."""
    saved = training.get("processes", {"videos_per_step": trainer.videos_per_step, "random_of_others": []})
    before, now = 1 + len(saved["random_of_others"]), trainer.world.size
    if before != now and saved["videos_per_step"] != trainer.videos_per_step:
        raise UserError(f"{source}: was trained with {saved['videos_per_step']} videos per step, {now} "
                        f"process{'es' * (now > 1)} with the present loader.batch_size and opt.accumulation_steps make it "
                        f"{trainer.videos_per_step}; choose them so that their product stays, or start with --init-from")


def _compare_processes(trainer: Trainer) -> None:
    """Warn if the weights or the EMA differ between processes."""
    if trainer.world.size == 1:
        return
    values = (*trainer.model.state_dict().values(), *trainer.ema.state_dict().values())
    sums = trainer.world.all_gather(float(torch.stack([v.detach().double().sum() for v in values]).sum()))
    if wrong := [rank for rank, total in enumerate(sums) if total != sums[0]]:
        note(f"warning: epoch {trainer.epoch}: the weights of process {wrong[0]} are not those of process 0, which are saved; "
             "do the processes run on different GPUs or versions?")
