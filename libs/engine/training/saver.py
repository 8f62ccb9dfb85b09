"""Saves the checkpoints of a run and removes older ones.

epoch_%03d.pth.tar after an epoch; interrupted.pth.tar inside an epoch, after a signal or by the clock, newer than every epoch's
file.  A file is removed only after a newer one is on disk.
"""
from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NoReturn

from libs.core.errors import Stopped, UserError, note
from libs.engine.runs.checkpoint import INTERRUPTED, checkpoint_name, epochs_of
from libs.engine.runs.run_folder import SilentRun
from libs.engine.runtime.stop_signals import Action, Interruption
from libs.engine.training.trainer import Trainer
from libs.engine.training.training_state import save_state


class Saver:
    """Saves one run; `keep`: number of epochs' files to keep (None: all)."""

    def __init__(self, log: SilentRun, trainer: Trainer, interruption: Interruption, keep: int | None = None):
        self.log, self.trainer, self.interruption, self.keep = log, trainer, interruption, keep

    def remove_leftovers(self, resumed_from: Path | None) -> None:
        """Remove older files that a killed run has left, if this run resumes from the last epoch's file."""
        if resumed_from == self.log.folder / checkpoint_name(self.trainer.epoch):
            self._remove_older()

    def after_step(self) -> None:
        """At the end of every step: save if due by the clock; after a signal, save and raise Stopped."""
        action = self._action()
        if action is Action.STOP:
            self.stop()
        elif action is Action.SAVE:
            self.log.print(f"saved {self._save(INTERRUPTED)} after iteration {self.trainer.iteration}")

    def after_epoch(self, due: bool, last: bool) -> None:
        """After an epoch and its evaluation: save if `due`; after a signal, save and raise Stopped, unless it was the last."""
        if due:
            path = self._save(checkpoint_name(self.trainer.epoch))
            self._remove_older()
            self.log.print(f"saved {path}")
        if not last and self._action() is Action.STOP:
            self.stop(path if due else None)

    def stop(self, saved: Path | None = None) -> None:
        """Save, unless the file `saved` holds the current state, and raise Stopped."""
        path = saved or self._save(INTERRUPTED)
        why = self.interruption.reason or "another process"
        raise Stopped(f"stopped by {why} after iteration {self.trainer.iteration}, saved {path};"
                      " the same command with --resume auto goes on from there")

    def evaluation_failed(self, error: UserError) -> NoReturn:
        """Save the steps before an evaluation that failed, and raise the error again."""
        if self.trainer.world.size > 1:  # the others wait for this process in the evaluation: no saving together
            raise error
        path = self._save(INTERRUPTED)
        raise UserError(f"{error}. The training up to this evaluation is saved in {path}: go on with --resume auto") from error

    def _action(self) -> Action:
        """The largest action of any process."""
        return Action(self.trainer.world.all_reduce_max(self.interruption.action()))

    def _save(self, name: str) -> Path:
        path = self.log.folder / name
        self.trainer.raise_if_not_finite()
        self.log.sync()  # first the logs: they must hold every step that the checkpoint counts
        save_state(self.trainer, path)
        self.trainer.world.barrier()  # a process that ended before process 0 has written would end that too
        self.interruption.saved()
        return path

    def _remove_older(self) -> None:
        """Remove interrupted.pth.tar and, with `keep`, the files of the oldest epochs; call once the epoch is saved."""
        if not self.trainer.world.is_main:
            return
        past = [path for epoch, path in epochs_of(self.log.folder) if epoch <= self.trainer.epoch]
        old = past[:-self.keep] if self.keep else []
        for path in (self.log.folder / INTERRUPTED, *old):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                with contextlib.suppress(OSError):
                    note(f"warning: {path}: cannot be removed ({error.strerror}); it is not needed any more")
