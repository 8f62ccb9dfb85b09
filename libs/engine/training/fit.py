"""The training loop: epochs of steps, log lines, checkpoints and, optionally, evaluation on the validation split."""
from __future__ import annotations

import contextlib
import copy
import time
from pathlib import Path

import torch
from torch import Tensor

from libs.core.errors import UserError, note
from libs.core.schema import Config
from libs.datasets.dataset import TalDataset
from libs.datasets.loading.loader import steps
from libs.engine.inference.predict import predict, score
from libs.engine.runs.lock import FolderLock
from libs.engine.runtime.determinism import strict_determinism
from libs.engine.runtime.world import ALONE, World
from libs.engine.training.reports import record_scores, show_detections
from libs.engine.training.run import FitOptions, TrainingRun
from libs.engine.training.setup import setup
from libs.utils.evaluation.metrics import Scores
from libs.utils.evaluation.predictions import Detections
from libs.utils.progress import Clock


class _StopEvaluation(Exception):
    """A signal arrived in the middle of an evaluation."""


def fit(config: Config, folder: Path, device: torch.device, options: FitOptions, world: World = ALONE) -> Scores | None:
    """Train a configuration into `folder`; returns the scores of the last evaluation, if there was one.

    `world`: the processes that train together; each calls this.
    Raises Stopped once everything is saved, after a signal (libs/engine/runtime/stop_signals.py).
    """
    lock = FolderLock(folder)
    if world.is_main:
        lock.take()  # before reading: a process that still writes there may write the checkpoint to resume from
    try:
        with strict_determinism(options.deterministic), contextlib.ExitStack() as cleanup:
            return train(setup(config, folder, device, options, world, lock, cleanup))
    finally:
        lock.release()


def train(run: TrainingRun) -> Scores | None:
    """All epochs that are not done yet."""
    trainer, clock = run.trainer, StepClock(run)
    scores: Scores | None = None
    while trainer.epoch < trainer.config.total_epochs:
        train_epoch(run, clock)
        epoch = trainer.epoch + 1
        last = epoch == trainer.config.total_epochs
        evaluation = None
        if run.val_set is not None and (last or epoch % run.options.eval_every == 0):
            try:
                evaluation = evaluate(run, run.val_set)
            except _StopEvaluation:
                run.saver.stop()
            except UserError as error:
                run.saver.evaluation_failed(error)
        warn_of_dead_offsets(run)
        trainer.end_epoch()
        if run.val_set is not None and evaluation is not None:
            scores, detections = evaluation
            record_scores(run, scores)
            show_detections(run, run.val_set, detections)
        run.saver.after_epoch(due=last or epoch % run.options.checkpoint_every == 0, last=last)
    return scores


def train_epoch(run: TrainingRun, clock: StepClock) -> None:
    """The steps of the next epoch that are not done yet."""
    trainer = run.trainer
    run.sampler.epoch, run.sampler.skip = trainer.epoch, trainer.steps
    clock.start()
    with run.log.progress(trainer.iters_per_epoch, f"epoch {trainer.epoch + 1}/{trainer.config.total_epochs}") as shown:
        shown.update(trainer.steps)
        for micro_batches in steps(run.loader, trainer.config):
            trainer.step(*micro_batches)
            shown.update(1)
            if trainer.steps % run.options.print_every == 0 or trainer.steps == trainer.iters_per_epoch:
                log_steps(run, clock)
            run.saver.after_step()


def warn_of_dead_offsets(run: TrainingRun) -> None:
    """One line if the offsets to starts or ends have learnt nothing in this epoch."""
    trainer = run.trainer
    if (dead := " and ".join(trainer.dead_offsets())) and trainer.world.is_main:
        note(f"warning: epoch {trainer.epoch + 1}: the offset to the {dead} is zero at every positive point, so that it gets no "
             f"gradient (a dead ReLU) and no segment its {dead}; start again with model.offset_bias: 1")


class StepClock:
    """Seconds per iteration since the last log line, and what is left of the run."""

    def __init__(self, run: TrainingRun):
        self._trainer, self._clock, self._first = run.trainer, Clock(), run.trainer.iteration
        self._total = run.trainer.config.total_epochs * run.trainer.iters_per_epoch
        self.start()

    def start(self) -> None:
        """Count seconds and iterations from now on."""
        self._started, self._counted = time.perf_counter(), self._trainer.iteration

    def text(self) -> str:
        """Time per iteration since `start` and the time left, evaluations included; starts anew."""
        seconds = (time.perf_counter() - self._started) / (self._trainer.iteration - self._counted)
        self.start()
        left = self._clock.left(self._trainer.iteration - self._first, self._total - self._first)
        return f"{seconds:.3f} s/iteration  {left}"


def log_steps(run: TrainingRun, clock: StepClock) -> None:
    """Write the steps since the last log line, with one transfer from the device for all of them, and print their mean."""
    trainer, pending = run.trainer, run.trainer.unlogged
    names, epoch = list(pending[0]), run.trainer.epoch + 1
    table: Tensor = torch.stack([torch.stack([step[k].float() for k in names]) for step in pending]).cpu()
    first = trainer.iteration - len(pending)
    trainer.raise_if_not_finite()
    for i, row in enumerate(table.tolist()):
        values = dict(zip(names, row, strict=True))
        run.log.log({"iteration": first + i + 1, "epoch": epoch, "lr": trainer.schedule.at(first + i), **values})
    run.log.flush()
    trainer.unlogged = []
    mean = dict(zip(names, table.mean(0).tolist(), strict=True))
    tags = {f"{'optimizer' if k == 'grad_norm' else 'loss'}/{k}": v for k, v in mean.items()}
    run.log.scalars({"optimizer/lr": trainer.learning_rate, **tags}, trainer.iteration)
    terms = "  ".join(f"{k} {v:.4f}" for k, v in mean.items())
    run.log.print(f"epoch {epoch:3d}  {trainer.steps:5d}/{trainer.iters_per_epoch}  {terms}  lr {trainer.learning_rate:.3e}  "
                  f"{clock.text()}")


def evaluate(run: TrainingRun, val_set: TalDataset) -> tuple[Scores, Detections]:
    """Predict and score the validation split with the weights that test_cfg.weights names.

    Raises _StopEvaluation after a signal in the middle: the evaluation would be repeated anyway.
    """
    trainer, config = run.trainer, run.trainer.config
    model = trainer.model
    if config.test_cfg.weights == "ema":
        model = copy.deepcopy(trainer.model)
        model.load_state_dict(trainer.ema.state_dict())
    with run.log.progress(len(val_set), "validation") as shown:
        def advance(done: int, _total: int) -> None:
            shown.update(done - shown.n)
            if run.saver.interruption.stopping and trainer.world.size == 1:  # of several processes, all must reach the end
                raise _StopEvaluation
        detections = predict(model, val_set, config, trainer.device, advance, trainer.world)
    scores = trainer.world.broadcast(score(detections, val_set) if trainer.world.is_main else None)
    assert scores is not None  # process 0 has computed them
    return scores, detections
