"""Stopping a run in the middle of an epoch, and comparing the checkpoints of two runs."""
from __future__ import annotations

from libs.engine.training.trainer import Trainer


def unplaced(checkpoint):
    """Without what names the folder of the run and the number of workers."""
    config = checkpoint["training"]["config"]
    config["output_folder"] = config["loader"]["num_workers"] = None
    return checkpoint


def stop_in_epoch(monkeypatch, epoch):
    """Ctrl-C in the middle of an epoch (1-based)."""
    step = Trainer.step

    def interrupted(self, batch):
        if self.epoch == epoch - 1 and self.iteration % self.iters_per_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch)
    monkeypatch.setattr(Trainer, "step", interrupted)
