"""Stopping a run in the middle of an epoch, and comparing the checkpoints of two runs."""
from __future__ import annotations

import pytest
import torch

from libs.engine.training.fit import FitOptions, fit
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


def whole_and_resumed(config, folder, monkeypatch, stop):
    """The last checkpoint of a run without a stop, and of one that was stopped in epoch `stop` (1-based) and resumed."""
    cpu, options = torch.device("cpu"), {"checkpoint_every": 1, "print_every": 1}
    fit(config, folder / "whole", cpu, FitOptions(**options))
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            fit(config, folder / "run", cpu, FitOptions(**options))
    torch.manual_seed(99)  # a new process has other random states
    fit(config, folder / "run", cpu, FitOptions(resume="auto", **options))
    last = f"epoch_{config.total_epochs:03d}.pth.tar"
    return [unplaced(torch.load(folder / name / last, weights_only=True)) for name in ("whole", "run")]
