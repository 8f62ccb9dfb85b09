"""The folder of a run: resolved configuration, checkpoints, logs (TensorBoard and metrics.jsonl); printing of log lines."""
from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from libs.core.config import dump_text, dump_yaml, from_dict
from libs.core.errors import UserError, note
from libs.core.files import exists, is_file
from libs.core.schema import Config
from libs.engine.runs.checkpoint import BEST, Checkpoint, checkpoints_of, epochs_of, is_whole, load_checkpoint
from libs.utils.files.io import remove_leftovers, write_atomic, write_text_atomic
from libs.utils.progress import terminal_bar

METRICS = "metrics.jsonl"
CHARTS = {"validation": {"mAP by tIoU": ["Multiline", [r"validation/mAP@.*", "validation/average_mAP"]]},
          "training": {"losses": ["Multiline", [r"loss/.*"]]}}  # of TensorBoard's tab "custom scalars": tags, as patterns


def run_folder(config: Config, name: str) -> Path:
    """<output_folder>/<config file's name>_<name>."""
    return Path(config.output_folder) / f"{Path(config.source).stem}_{name}"


def note_better(last: Checkpoint) -> None:
    """A note if best.pth.tar, beside a run's last epoch, was better in the evaluations during training."""
    path = last.path.with_name(BEST)
    if not is_whole(path):
        return
    best = load_checkpoint(path)
    training = best.training or {}
    value = training["best"].get("average_mAP") if isinstance(training.get("best"), dict) else None
    if not isinstance(value, float) or "config" not in training or best.epoch == last.epoch:
        return
    own = _average_mAP(path.with_name(METRICS), last.epoch)
    if own is not None and own >= value:
        return
    split = ", ".join(from_dict(training["config"], f"{path}: training.config", check=False).val_split)
    measured = "" if own is None else f", average mAP {100 * own:.2f}"
    note(f"note: {last.path}: epoch {last.epoch} is the last one{measured}; {BEST} (epoch {best.epoch}) was the best of the "
         f"evaluations during training, average mAP {100 * value:.2f} on {split}, by which it was chosen; name {path} to use it")


def _average_mAP(metrics: Path, epoch: int) -> float | None:
    """Average mAP of the last evaluation after an epoch; None without one."""
    found = None
    for line in metrics.read_bytes().splitlines() if is_file(metrics) else ():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a damaged line, or one of losses
            record = json.loads(line)
            found = float(record["average_mAP"]) if record["epoch"] == epoch else found
    return found


class SilentRun:
    """Same interface as `Run`, without output: for processes other than the main one."""

    def __init__(self, folder: Path):
        self.folder = folder

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a record to metrics.jsonl.  This and every other method that writes: UserError when the disk is full."""

    def flush(self) -> None:
        """Flush metrics.jsonl to the operating system."""

    def sync(self) -> None:
        """Write all logs to disk (fsync); call before writing a checkpoint."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write named scalars to TensorBoard."""

    def text(self, name: str, content: str, step: int) -> None:
        """Write a text (Markdown) to TensorBoard."""

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Write a picture (height, width, 3) uint8 to TensorBoard."""

    def print(self, line: str) -> None:
        """Print a line, above the progress bar if there is one."""

    def progress(self, total: int, label: str) -> tqdm:
        """A progress bar on a terminal; elsewhere it shows nothing, since log lines do."""
        return tqdm(total=total, desc=label, disable=True)

    def close(self) -> None:
        """Close the logs."""


class Run(SilentRun):
    """The logs of a training run.

    Of earlier logs in the folder, steps up to `logged` and evaluations up to step `evaluated` are kept: later records are removed
    from metrics.jsonl, and TensorBoard ignores later events.  `finished`: nothing will be trained, so the configuration of the
    training stays in the folder.
    """

    def __init__(self, folder: Path, config: Config, logged: int = 0, evaluated: int = 0, finished: bool = False):
        from torch.utils.tensorboard import SummaryWriter  # here, since importing it takes a second
        super().__init__(folder)
        logs = folder / "logs"
        if not (finished and is_file(folder / "config.yaml")):
            write_text_atomic(folder / "config.yaml", dump_yaml(config))
            write_text_atomic(folder / "config.txt", dump_text(config))
        with self._writing():
            logs.mkdir(exist_ok=True)
            for place in (folder, logs):
                remove_leftovers(place)
            _cut_metrics(folder / METRICS, logged, evaluated)
            self._metrics = open(folder / METRICS, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
            self._board = SummaryWriter(str(logs), purge_step=logged + 1)
            self._board.add_text("config", "```\n" + dump_yaml(config) + "\n```", logged)
            self._board.add_custom_scalars(CHARTS)
        self._hook, threading.excepthook = threading.excepthook, self._thread_failed

    @staticmethod
    def refuse_used(folder: Path) -> None:
        """UserError if the folder already contains checkpoints, so that no run is overwritten by accident."""
        if found := checkpoints_of(folder):
            epochs = epochs_of(folder)
            what = f"checkpoints up to epoch {epochs[-1][0]}" if epochs else found[-1].name
            raise UserError(f"{folder}: holds {what}; go on with --resume auto, choose another --output, or remove the folder")

    def log(self, record: Mapping[str, Any]) -> None:
        with self._writing():
            self._metrics.write(json.dumps(record) + "\n")

    def flush(self) -> None:
        with self._writing():
            self._metrics.flush()

    def sync(self) -> None:
        with self._writing():
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
            self._board.flush()
            for path in self.folder.glob("logs/events.out.tfevents.*"):
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        with self._writing():
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def text(self, name: str, content: str, step: int) -> None:
        with self._writing():
            self._board.add_text(name, content, step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        with self._writing():
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def print(self, line: str) -> None:
        with tqdm.external_write_mode():  # clears and redraws bars
            print(line, flush=True)

    def progress(self, total: int, label: str) -> tqdm:
        return terminal_bar(total, label)

    def close(self) -> None:
        with self._writing(), contextlib.ExitStack() as stack:
            stack.callback(setattr, threading, "excepthook", self._hook)
            stack.callback(self._board.close)
            stack.callback(self._metrics.close)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.folder}: the logs cannot be written ({error.strerror or error}); free some space, or choose "
                            "another --output or output_folder") from error

    def _thread_failed(self, failure: Any) -> None:
        # no traceback from TensorBoard's writer thread: the next call raises the same error, which becomes a UserError
        if not (type(failure.thread).__name__ == "_AsyncWriterThread" and issubclass(failure.exc_type, OSError)):
            self._hook(failure)


def _cut_metrics(path: Path, logged: int, evaluated: int) -> None:
    """Remove records beyond these steps and half-written ones, left by a killed run, from metrics.jsonl."""
    if not exists(path):
        return
    whole = path.read_bytes()
    kept, damaged = [], 0
    for line in whole.splitlines(keepends=True):
        try:
            record = json.loads(line)
            if record["iteration"] <= (logged if "lr" in record else evaluated):
                kept.append(line if line.endswith(b"\n") else line + b"\n")
        except (ValueError, TypeError, KeyError):
            damaged += line.endswith(b"\n")  # a half-written last line is expected
    if damaged:
        note(f"warning: {path}: {damaged} lines are damaged and left out")
    if b"".join(kept) != whole:
        write_atomic(path, lambda file: file.writelines(kept))
