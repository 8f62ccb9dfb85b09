"""Writes environment.json: machine, command, code and versions of a run or an evaluation."""
from __future__ import annotations

import datetime
import importlib.metadata
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from libs.core.errors import UserError, note
from libs.core.files import exists, system_text
from libs.core.schema import Config
from libs.engine.runtime.machine import this_machine
from libs.utils.files.io import read_json, write_json_atomic

NAME = "environment.json"
ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("numpy", "h5py", "PyYAML", "tensorboard")
ROUNDING = ("torch", "cuda", "processor", "threads", "gpus", "ranks")  # may change how sums are rounded


def environment(config: Config, device: torch.device) -> dict[str, Any]:
    """Command, versions, machine, code and seed of this process, as plain JSON values; without host and user names."""
    machine = this_machine(str(device))
    cuda = device.type == "cuda"
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "config": config.source,
        "seed": config.init_rand_seed,
        "device": str(device),
        "ranks": dist.get_world_size() if dist.is_initialized() else 1,
        "deterministic": torch.are_deterministic_algorithms_enabled()
        and not torch.is_deterministic_algorithms_warn_only_enabled(),
        "python": machine.python,
        "torch": machine.torch,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "driver": _driver(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "processor": machine.processor,
        "cores": machine.cores,
        "threads": machine.threads,
        "system": _system(),
        "git": git_state(ROOT),
    }


def record_start(folder: Path, config: Config, device: torch.device, resumed_from: Path | None, iteration: int) -> None:
    """Append this start of a run to <folder>/environment.json, {"starts": [...]}.

    Prints a note on differences to the last start that may change rounding.  UserError if the file cannot be written.
    """
    path = folder / NAME
    starts = _starts(path)
    entry = {**environment(config, device), "resumed_from": None if resumed_from is None else str(resumed_from),
             "iteration": iteration}
    if resumed_from is not None and starts:
        changed = [f"{key}: {starts[-1].get(key)!r} -> {entry[key]!r}" for key in ROUNDING if starts[-1].get(key) != entry[key]]
        if changed:
            note(f"note: {folder}: goes on in another environment: {'; '.join(changed)}; sums may round differently")
    write_json_atomic(path, {"starts": [*starts, entry]})


def git_state(root: Path) -> dict[str, Any] | None:
    """{commit, changed: whether tracked files differ from it} of the working tree `root`; None if it is none, or without git."""
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != root.resolve():  # e.g. installed inside another project
            return None
        return {"commit": _git(root, "rev-parse", "HEAD"),
                "changed": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "--no-optional-locks", "-C", str(root), *words], capture_output=True, text=True, check=True,
                          timeout=20)
    return done.stdout.strip()


def _starts(path: Path) -> list[Mapping[str, Any]]:
    if not exists(path):
        return []
    try:
        content = read_json(path, "record of the environment")
        return [dict(entry) for entry in content["starts"]]
    except (UserError, TypeError, KeyError, ValueError):
        note(f"warning: {path}: is damaged, begun anew")
        return []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """Version of the NVIDIA driver, None without one."""
    found = re.search(r"Kernel Module\D*([\d.]+)", system_text("/proc/driver/nvidia/version"))
    return found.group(1) if found else None


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name}, {platform.platform()}"
