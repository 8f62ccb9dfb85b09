"""When a run is saved, under which names, and which older files are then removed.

epoch_%03d.pth.tar after an epoch; interrupted.pth.tar in between, on request or by the clock: newer than every epoch's file, and
removed once there is a newer one.  A file is removed only after a newer one is on disk.
"""
from __future__ import annotations

import contextlib
from pathlib import Path

from libs.core.errors import Stopped, note
from libs.engine.runs.checkpoint import INTERRUPTED, checkpoint_name, epochs_of
from libs.engine.runs.run_folder import SilentRun
from libs.engine.runtime.stop_signals import Interruption, Wish
from libs.engine.training.trainer import Trainer
from libs.engine.training.training_state import save_state


class Saver:
    """Writes the checkpoints of one run; `keep`: how many epochs' files to keep (None: all)."""

    def __init__(self, run: SilentRun, trainer: Trainer, asked: Interruption, keep: int | None = None):
        self.run, self.trainer, self.asked, self.keep = run, trainer, asked, keep

    def tidy(self, resumed_from: Path | None) -> None:
        """Remove the older files that a killed run left, if the run resumes from the newest epoch's file."""
        if resumed_from == self.run.folder / checkpoint_name(self.trainer.epoch):
            self._remove_older()

    def after_step(self) -> None:
        """At the end of every step: save if it is time to, and if asked to stop, save and raise Stopped."""
        wish = self._wish()
        if wish is Wish.STOP:
            self.stop()
        elif wish is Wish.SAVE:
            self.run.say(f"saved {self._save(INTERRUPTED)} after iteration {self.trainer.iteration}")

    def after_epoch(self, due: bool, last: bool) -> None:
        """After an epoch and its evaluation: save if `due`; if asked to stop, save and raise Stopped, unless all is done."""
        if due:
            path = self._save(checkpoint_name(self.trainer.epoch))
            self._remove_older()
            self.run.say(f"saved {path}")
        if not last and self._wish() is Wish.STOP:
            self.stop(path if due else None)

    def stop(self, saved: Path | None = None) -> None:
        """Save, unless `saved` holds the present state, and raise Stopped."""
        path = saved or self._save(INTERRUPTED)
        why = self.asked.reason or "another process"
        raise Stopped(f"stopped by {why} after iteration {self.trainer.iteration}, saved {path};"
                      " the same command with --resume auto goes on from there")

    def _wish(self) -> Wish:
        """The largest wish of any process."""
        return Wish(self.trainer.world.all_reduce_max(self.asked.wish()))

    def _save(self, name: str) -> Path:
        path = self.run.folder / name
        self.trainer.raise_if_not_finite()
        self.run.sync()  # first the logs: what a checkpoint counts as done must be in them
        save_state(self.trainer, path)
        self.trainer.world.barrier()  # a process that stops before the first one has written would end it too
        self.asked.saved()
        return path

    def _remove_older(self) -> None:
        """Once an epoch is saved: the file of its middle, and with `keep` the files of the oldest epochs up to it."""
        if not self.trainer.world.is_main:
            return
        past = [path for epoch, path in epochs_of(self.run.folder) if epoch <= self.trainer.epoch]
        old = past[:-self.keep] if self.keep else []
        for path in (self.run.folder / INTERRUPTED, *old):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                with contextlib.suppress(OSError):
                    note(f"warning: {path}: cannot be removed ({error.strerror}); it is not needed any more")
