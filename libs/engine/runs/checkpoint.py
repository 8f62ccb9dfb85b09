"""Checkpoint files in the published format, and the map between parameter names on disk and in memory.

A file holds the dict {epoch, state_dict, state_dict_ema, optimizer, scheduler}, with the prefix `module.` on every weight name.
Our files also have the key `training`, the state needed to resume exactly, and a checksum (libs/utils/files/seal.py).
Files are read without executing pickled code.
"""
from __future__ import annotations

import collections
import dataclasses
import functools
import io
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from libs.core.config import config_diff, from_dict
from libs.core.errors import UserError, note, shown
from libs.core.files import entries, is_file, is_folder
from libs.core.schema import Config
from libs.engine.runs.checkpoint_mismatch import explain_difference, method_of
from libs.utils.files.io import write_atomic
from libs.utils.files.seal import seal, verify
from libs.utils.files.torch_files import load_plain

PREFIX = "module."
FORMAT_VERSION = 1
BEST = "best.pth.tar"  # of the evaluations during training
INTERRUPTED = "interrupted.pth.tar"  # saved in the middle of an epoch
PATTERN = re.compile(r"epoch_(\d{3,})\.pth\.tar$")
WEIGHTS = {"ema": "state_dict_ema", "raw": "state_dict"}


class DamagedCheckpoint(UserError):
    """The file was truncated or changed after it was written, or is not a checkpoint."""


def add_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names in memory -> names on disk."""
    return {PREFIX + name: value for name, value in state.items()}


def strip_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names on disk, with or without `module.` -> names in memory."""
    return {name.removeprefix(PREFIX): value for name, value in state.items()}


def checkpoint_name(epoch: int) -> str:
    """File name of an epoch (1-based)."""
    return f"epoch_{epoch:03d}.pth.tar"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a file: weights by their names in memory, the rest as stored."""

    path: Path
    epoch: int
    weights: dict[str, Tensor]
    weights_ema: dict[str, Tensor] | None
    optimizer: dict[str, Any] | None
    scheduler: dict[str, Any] | None
    training: dict[str, Any] | None  # None: a published checkpoint

    @property
    def counted_from_0(self) -> bool:
        """Whether `epoch` of a published file is the number of its last epoch from 0 on (TriDet), not that of epochs done."""
        return self.training is None and method_of(self.weights) == "TriDet"

    @property
    def epochs_done(self) -> int:
        """Epochs that the weights were trained for."""
        return self.epoch + self.counted_from_0

    def select(self, which: str) -> dict[str, Tensor]:
        """The `ema` or the `raw` weights.  UserError if the file lacks them."""
        state = self.weights_ema if which == "ema" else self.weights
        if state is None:
            raise UserError(f"{self.path}: has no averaged weights ({WEIGHTS['ema']}); use --weights raw")
        return state


def save_checkpoint(path: str | os.PathLike, epoch: int, weights: Mapping[str, Tensor], weights_ema: Mapping[str, Tensor],
                    optimizer: dict[str, Any], scheduler: dict[str, Any], training: dict[str, Any] | None) -> None:
    """Write a checkpoint; a crash or a full disk leaves a previous file of that name intact.

    `training` None writes exactly the published layout.  Raises UserError when the file cannot be written.
    """
    content: dict[str, Any] = {"epoch": epoch, "state_dict": _on_cpu(add_prefix(weights)), "scheduler": scheduler,
                               "optimizer": _on_cpu(optimizer), "state_dict_ema": _on_cpu(add_prefix(weights_ema))}
    if training is not None:
        content["training"] = {"format_version": FORMAT_VERSION, **training}
    _write(path, content)


def load_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Verify the checksum of a checkpoint and read it without executing pickled code.

    Raises UserError, or DamagedCheckpoint if the file is not as it was written.
    """
    path = Path(path)
    if not is_file(path):
        raise UserError(f"{path}: no such checkpoint; name a .pth.tar file or a folder that holds epoch_*.pth.tar")
    try:
        with open(path, "rb") as file:
            verify(file)
        content = load_plain(path, types=HARMLESS)
    except PermissionError as error:  # not damaged: --resume auto must not go on from an older one
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except pickle.UnpicklingError as error:
        raise DamagedCheckpoint(f"{path}: {_why_not_plain(error)}") from error
    except Exception as error:  # on arbitrary bytes the reader may raise any exception
        raise DamagedCheckpoint(f"{path}: cannot be read as a checkpoint ({_first_line(error)}); it is damaged or truncated: "
                                "use another epoch or copy it again") from error
    if not isinstance(content, dict) or not _is_state(content.get("state_dict")):
        found = ", ".join(shown(k).strip("'") for k in list(content)[:5]) if isinstance(content, dict) else type(content).__name__
        raise DamagedCheckpoint(f"{path}: state_dict: missing or not a dict of tensors (found: {found}); "
                                "expected {epoch, state_dict, state_dict_ema, optimizer, scheduler}")
    training, epoch = content.get("training"), content.get("epoch", 0)
    version = training.get("format_version", 0) if isinstance(training, dict) else 0
    if type(version) is not int or version > FORMAT_VERSION:
        raise UserError(f"{path}: training.format_version: {shown(version)} is newer than this program's {FORMAT_VERSION}, or "
                        "damaged; update the program")
    if type(epoch) is not int or not 0 <= epoch < 10**6:
        raise UserError(f"{path}: epoch: {shown(epoch)} is not a number of epochs; the file is damaged, use another epoch")
    ema = content.get("state_dict_ema")
    return Checkpoint(path, epoch, strip_prefix(content["state_dict"]),
                      strip_prefix(ema) if _is_state(ema) else None, content.get("optimizer"), content.get("scheduler"),
                      training if isinstance(training, dict) else None)


def fitting_weights(model: nn.Module, checkpoint: Checkpoint, which: str) -> dict[str, Tensor]:
    """The `ema` or `raw` weights, checked against the model.

    Raises UserError naming the parameters that differ and the likely config key, or the weight that is not finite.
    """
    state = checkpoint.select(which)
    _check_shared(model, checkpoint.path, state)
    difference = explain_difference(model.state_dict(), state)
    if difference:
        own = ("\n  the checkpoint holds the configuration of its training: leave the other one out to use that"
               if "config" in (checkpoint.training or {}) else "")
        raise UserError(f"{checkpoint.path}: is for another architecture than the configuration\n{difference}{own}")
    for name, value in state.items():
        if not value.is_floating_point():
            raise UserError(f"{checkpoint.path}: {name}: holds values of type {value.dtype}, weights are floating-point; use "
                            "another file")
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{checkpoint.path}: {name}: holds NaN or infinite values ({WEIGHTS[which]}); use another epoch")
    return state


def _check_shared(model: nn.Module, path: Path, state: Mapping[str, Tensor]) -> None:
    """UserError if a file holds different values for one parameter that the model lists under several names."""
    names: dict[int, str] = {}
    for name, parameter in model.state_dict(keep_vars=True).items():
        first = names.setdefault(id(parameter), name)
        if first != name and first in state and name in state and not torch.equal(state[first], state[name]):
            raise UserError(f"{path}: {name}: differs from {first}, but the configuration has one norm for all levels; set "
                            "model.fpn_shared_norm: false")


def load_weights(model: nn.Module, checkpoint: Checkpoint, which: str) -> None:
    """Copy the `ema` or `raw` weights into the model; raises as `fitting_weights`."""
    model.load_state_dict(fitting_weights(model, checkpoint, which))


def copy_matching(model: nn.Module, checkpoint: Checkpoint, which: str | None = None) -> tuple[list[str], list[str], list[str]]:
    """Copy the weights whose name and shape match, for fine-tuning: `ema`, `raw`, or (None) EMA weights if the file has them.

    Returns the names that were copied, those that keep their initial values (absent from the file or of another shape) and those
    of the file that the model lacks.  Raises UserError when nothing matches.
    """
    source = checkpoint.select(which) if which else checkpoint.weights_ema or checkpoint.weights
    own = model.state_dict()
    _check_shared(model, checkpoint.path, source)
    copied = [n for n, v in own.items() if n in source and source[n].shape == v.shape]
    # a class head with another number of classes is initialised as a whole, its bias too
    if any(n.startswith("cls_head.cls_head.") and n not in copied for n in own):
        copied = [n for n in copied if not n.startswith("cls_head.cls_head.")]
    if not copied:
        raise UserError(f"{checkpoint.path}: no weight fits this configuration\n{explain_difference(own, source)}")
    with torch.no_grad():
        for name in copied:
            own[name].copy_(source[name])
    return copied, [n for n in own if n not in copied], [n for n in source if n not in own]


def own_config(checkpoint: Checkpoint) -> Config | None:
    """The configuration that a checkpoint holds; None for one of another program."""
    values = (checkpoint.training or {}).get("config")
    return None if values is None else from_dict(values, f"{checkpoint.path}: training.config")


def own_labels(checkpoint: Checkpoint) -> dict[int, str] | None:
    """Class id -> name, as stored in the checkpoint; None if it holds none (older, or of another program)."""
    labels = (checkpoint.training or {}).get("labels")
    if not isinstance(labels, dict) or not labels:
        return None
    if not all(isinstance(k, int) and isinstance(v, str) for k, v in labels.items()):
        raise UserError(f"{checkpoint.path}: training.labels: is not {{class id: name}}; the file is damaged, use another epoch")
    return dict(labels)


def check_label_ids(checkpoint: Checkpoint, names: Mapping[int, str], source: str | os.PathLike) -> None:
    """UserError if a class of `names` (id -> name, of the file `source`) has another id in the checkpoint."""
    known = {name: i for i, name in (own_labels(checkpoint) or {}).items()}
    moved = sorted((name, i) for i, name in names.items() if known.get(name, i) != i)
    if moved:
        name, i = moved[0]
        raise UserError(f"{source}: {len(moved)} classes have other ids than in {checkpoint.path}: {name!r} is {i} here, "
                        f"{known[name]} there; give them the ids of the training (label_id, or the order of a list)")


def slim_checkpoint(checkpoint: Checkpoint, which: str, path: str | os.PathLike) -> None:
    """Write a checkpoint for inference: one set of weights (under both names, stored once), configuration and class names.

    It can be used for evaluation, prediction, as a teacher and for fine-tuning (--init-from), but not to resume training.  Raises
    UserError when the weights are missing (also in a slim checkpoint of the others) or the file cannot be written.
    """
    if (kept := (checkpoint.training or {}).get("slim", which)) != which:
        raise UserError(f"{checkpoint.path}: holds its {kept} weights alone, so there are no {which} ones; use --weights {kept}, "
                        "or the checkpoint that it was made from")
    weights = _on_cpu(add_prefix(checkpoint.select(which)))
    training = {k: v for k, v in (checkpoint.training or {}).items() if k in ("config", "labels", "torch", "format_version")}
    content = {"epoch": checkpoint.epoch, "state_dict": weights, "state_dict_ema": weights, "optimizer": None, "scheduler": None,
               **({"training": {**training, "slim": which}} if training else {})}
    _write(path, content)


def changed_settings(checkpoint: Checkpoint, config: Config, base: Config | None = None) -> dict[str, str]:
    """Dotted key -> "key: old -> new" where `config` differs from the checkpoint's configuration, or, if it holds none, from
    `base`; {} without that."""
    values = (checkpoint.training or {}).get("config")
    own = base if values is None else from_dict(values, f"{checkpoint.path}: training.config", check=False)
    if own is None:
        return {}
    changes = config_diff(own, config)
    if not config.train_cfg.head_empty_cls:  # older versions stored the classes without annotations here
        changes.pop("train_cfg.head_empty_cls", None)
    return {key: f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items()}


def find_checkpoint(path: str | os.PathLike, epoch: int | None = None) -> Path:
    """The checkpoint file of a path: the path itself, or the last (or the given) epoch of a folder.  UserError if none."""
    path = Path(path)
    if not is_folder(path):
        if epoch is not None:
            raise UserError(f"{path}: -epoch {epoch} needs the folder of a run, not a file; leave -epoch out or name the folder")
        return path
    if epoch is not None:
        file = path / checkpoint_name(epoch)
        if not is_file(file):
            have = ", ".join(str(e) for e, _ in epochs_of(path)) or "none"
            raise UserError(f"{file}: no such checkpoint; epochs in that folder: {have}")
        return file
    found = epochs_of(path)
    if not found:
        raise UserError(f"{path}: holds no epoch_*.pth.tar; train first or name a checkpoint file")
    return found[-1][1]


def epochs_of(folder: str | os.PathLike) -> list[tuple[int, Path]]:
    """(epoch, file) of every checkpoint in a folder, by epoch."""
    found = [(int(m.group(1)), p) for p in entries(folder) if (m := PATTERN.match(p.name))]
    return sorted(found)


def checkpoints_of(folder: str | os.PathLike) -> list[Path]:
    """Every checkpoint that `--resume auto` considers, damaged or not: those of epochs, by epoch, then interrupted.pth.tar."""
    middle = Path(folder) / INTERRUPTED
    return [path for _, path in epochs_of(folder)] + ([middle] if is_file(middle) else [])


def is_whole(path: Path) -> bool:
    """Whether a file exists and its checksum matches (published files: the CRC-32 of the archive's records)."""
    try:
        about = path.stat()
    except OSError:
        return False
    return _verified(path, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=1024)
def _verified(path: Path, _changed_ns: int, _size: int) -> bool:
    try:
        with open(path, "rb") as file:
            return verify(file) or zipfile.is_zipfile(file)
    except (OSError, ValueError):
        return False


def newest_checkpoint(folder: str | os.PathLike) -> Checkpoint | None:
    """The undamaged checkpoint of a folder with the most training steps; None if the folder has no checkpoints.

    Warns of newer ones that are damaged.  DamagedCheckpoint if all are damaged.
    """
    damaged: list[DamagedCheckpoint] = []

    def read(path: Path) -> Checkpoint | None:
        try:
            return load_checkpoint(path)
        except DamagedCheckpoint as error:
            damaged.append(error)
            return None

    middle = Path(folder) / INTERRUPTED
    best = read(middle) if is_file(middle) else None
    for epoch, path in reversed(epochs_of(folder)):
        if best is not None and best.epoch >= epoch:  # interrupted.pth.tar was saved after that epoch
            break
        if (found := read(path)) is not None:
            best = found
            break
    if best is None:
        if damaged:
            raise DamagedCheckpoint(f"{folder}: no checkpoint there is whole, {damaged[0]}; remove them to start anew")
        return None
    for error in damaged:
        note(f"warning: {error}; going on from {best.path}")
    return best


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], source: Path) -> None:
    """Restore the moments and learning rates; all other options stay those of `optimizer`.  UserError if they do not fit."""
    groups = []
    unusable = f"{source}: optimizer: missing or of another kind; use --init-from to start from its weights alone"
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict) or not state["state"]:
        raise UserError(unusable)
    for own, saved in zip(optimizer.state_dict()["param_groups"], state.get("param_groups", []), strict=False):
        if len(own["params"]) != len(saved["params"]):
            raise UserError(f"{source}: optimizer: holds {len(saved['params'])} parameters where this model has "
                            f"{len(own['params'])}; resume with the configuration of that run, or start with --init-from")
        groups.append({**own, "lr": saved["lr"]})
    if len(groups) != len(optimizer.param_groups):
        raise UserError(unusable)
    kind = "exp_avg" if isinstance(optimizer, torch.optim.AdamW) else "momentum_buffer"
    if any(kind not in moments for moments in state["state"].values()):
        raise UserError(f"{source}: optimizer: is not the state of opt.type {type(optimizer).__name__}; set opt.type to that of "
                        "the run")
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if value.shape == parameter.shape:  # the fused update needs moments with the memory layout of the weight
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _write(path: str | os.PathLike, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch.save to a file would not raise OSError when the disk is full
    torch.save(content, buffer)
    parts = seal(buffer.getbuffer())
    write_atomic(path, lambda file: file.writelines(parts))


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous()  # files do not depend on memory layout
    if isinstance(value, dict):
        return {k: _on_cpu(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_on_cpu(v) for v in value]
    return value


def _is_state(value: Any) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(value, dict) and bool(value) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _why_not_plain(error: Exception) -> str:
    """Why torch cannot unpickle a file, without its advice to read it unsafely."""
    code = re.search(r"Unsupported (?:global|class)[^:]*: (?:GLOBAL )?([\w.]+)", str(error))
    return (f"not a checkpoint, or one that needs code to be executed{f' ({code[1]})' if code else ''}, which is refused; name "
            "another .pth.tar file or the folder of a run, or save it again with plain tensors and numbers")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _harmless_types() -> list[Any]:
    """Plain number types that published checkpoints contain: counters of schedulers, the mAP of a bestmodel.pth.tar."""
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # as numpy before 2.0, and since, stores it
    dtypes = [type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    return [collections.Counter, collections.defaultdict, *((scalar, name) for name in names), np.dtype, *dtypes]


HARMLESS = _harmless_types()
