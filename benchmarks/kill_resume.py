#!/usr/bin/env python3
"""Kill training runs at random moments, resume them, and compare what they leave with an undisturbed run.

    python benchmarks/kill_resume.py --kills 50 --stops 10 --damage 10

A small run on the demo data (in a temporary folder) is started again and again with --resume auto, and gets a SIGKILL in the
middle of a step, of saving, of logging, of evaluating, or while it starts; SIGTERM instead for --stops of the starts; after
--damage of the kills the newest checkpoint is cut, zeroed in a page, or has a bit flipped.  A finished run must have every value
of the undisturbed one's checkpoints to the last bit, the bytes of its metrics.jsonl, the same TensorBoard points, each once, and
no file too many; then the next begins.

The runs are processes forked from this one, so that torch is imported once.  They run unchanged code, but pause between the
system calls of a write, so that kills happen there too, and report their phase through shared memory.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import runpy
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer's first step and a run import these two: here, once for all forked processes
import torch.utils.tensorboard
from common import add_record, report
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from libs.core.config import load_config
from libs.core.errors import UserError, run_main
from libs.datasets.synthetic.demo import ensure_demo_of
from libs.engine.runs.checkpoint import checkpoints_of
from libs.engine.runs.run_folder import Run, run_folder
from libs.engine.training import fit as fit_module
from libs.engine.training import training_state
from libs.engine.training.trainer import Trainer
from libs.utils.files import io

ROOT = Path(__file__).resolve().parent.parent
PHASES = ("starting", "step", "saving", "logging", "evaluating", "between")
SMALL = ["model.embd_dim=16", "model.fpn_dim=16", "model.head_dim=16", "model.n_head=2", "loader.batch_size=8",
         "train_cfg.dropout=0.1", "opt.warmup_epochs=1"]
ARGUMENTS = ["-c", "1", "-p", "3", "--eval-freq", "2", "--keep", "3", "--save-minutes", "0.002"]
WAIT_S = 120.0


class Marks:
    """Shared memory: the phase that a run is in, and how often it came into each."""

    FORMAT = struct.Struct(f"{1 + len(PHASES)}I")

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, self.FORMAT.size)

    def clear(self) -> None:
        self.FORMAT.pack_into(self.memory, 0, *[0] * (1 + len(PHASES)))

    def read(self) -> tuple[str, dict[str, int]]:
        phase, *counts = self.FORMAT.unpack_from(self.memory)
        return PHASES[phase], dict(zip(PHASES, counts, strict=True))

    def enter(self, phase: int) -> None:
        values = list(self.FORMAT.unpack_from(self.memory))
        values[1 + phase] += values[0] != phase
        values[0] = phase
        self.FORMAT.pack_into(self.memory, 0, *values)


def marked(owner: Any, name: str, phase: str, marks: Marks) -> None:
    """Wrap a function so that it marks the phase while it runs."""
    function, number = getattr(owner, name), PHASES.index(phase)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        before = PHASES.index(marks.read()[0])
        marks.enter(number)
        try:
            return function(*args, **kwargs)
        finally:
            marks.enter(before if before else PHASES.index("between"))
    setattr(owner, name, wrapper)


def slowed(owner: Any, name: str, seconds: float, rng: random.Random) -> None:
    """Wrap a system call with a random pause before and after it."""
    function = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        time.sleep(rng.random() * seconds)
        result = function(*args, **kwargs)
        time.sleep(rng.random() * seconds)
        return result
    setattr(owner, name, wrapper)


def start(config: Path, folder: Path, marks: Marks, seed: int, options: list[str], pace: float) -> int:
    """Fork a process that trains in `folder`, resuming the run there; its pid.  Its output goes to <folder>/log."""
    marks.clear()
    sys.stdout.flush()
    if child := os.fork():
        return child
    try:
        os.chdir(folder)
        handle = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        rng = random.Random(seed)  # not the global generator, which belongs to the run's state
        for owner, name, phase in (
                (Trainer, "step", "step"), (training_state, "save_checkpoint", "saving"), (fit_module, "log_steps", "logging"),
                (fit_module, "record_scores", "logging"), (Run, "sync", "logging"), (fit_module, "evaluate", "evaluating")):
            marked(owner, name, phase, marks)
        if pace:
            for name in ("fsync", "replace", "unlink", "chmod"):
                slowed(io.os, name, pace, rng)
        sys.argv = ["train.py", str(config), "--output", "x", "--resume", "auto", *ARGUMENTS, "--set", *options]
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(int(end.code or 0))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(99)


def waited(child: int) -> int:
    """The exit code of a process, -N for signal N."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def strike(child: int, marks: Marks, rng: random.Random, target: str, number: int) -> tuple[str | None, int]:
    """Send a signal once the run is in the phase `target` for some time; (the phase it struck, None: it was over before, its
    exit code)."""
    nth = 1 if target in ("starting", "evaluating") else rng.randint(1, 12)
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        phase, counts = marks.read()
        if phase == target and (target == "starting" or counts[target] >= nth):
            time.sleep(rng.random() * (0.3 if target == "starting" else 0.004))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
            code = waited(child)
            return (None if code == 0 else marks.read()[0]), code
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return None, os.waitstatus_to_exitcode(status)
    raise UserError(f"the run did not come to {target} in {WAIT_S:.0f} s")


def damage(path: Path, rng: random.Random) -> str:
    """Cut a file, zero a page of it, or flip a bit; what was done."""
    content, kind = bytearray(path.read_bytes()), rng.choice(("cut", "zeroed page", "flipped bit"))
    place = rng.randrange(len(content))
    if kind == "cut":
        del content[place:]
    elif kind == "zeroed page":
        first = place // 4096 * 4096
        if not any(content[first:first + 4096]):  # all zeros already: nothing would be damaged
            first = len(content) // 4096 * 4096
        content[first:first + 4096] = bytes(len(content[first:first + 4096]))
    else:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return kind


def points(folder: Path) -> list[tuple[int, str, float]]:
    """(step, tag, value) of every scalar that TensorBoard shows, by step; an evaluation that was done again counts once."""
    events = EventAccumulator(str(folder / "logs"), size_guidance={"scalars": 0})
    events.Reload()
    return sorted({(e.step, tag, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)})


def unlike(a: Any, b: Any, where: str = "") -> str | None:
    """The first place where two values of checkpoints differ, in a bit or in type; None if they do not."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        return None if same else where
    if type(a) is not type(b):
        return where
    if isinstance(a, dict):
        if list(a) != list(b):
            return where
        return next((found for key in a if (found := unlike(a[key], b[key], f"{where}/{key}"))), None)
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return where
        return next((found for i, pair in enumerate(zip(a, b, strict=True)) if (found := unlike(*pair, f"{where}[{i}]"))), None)
    return None if a == b else where


def differences(ours: Path, whole: Path) -> list[str]:
    """What a finished run left otherwise than the undisturbed one."""
    wrong = []
    names = [{p.name for p in folder.iterdir()} for folder in (ours, whole)]
    if names[0] != names[1]:
        wrong.append(f"files: {sorted(names[0] ^ names[1])}")
    for name in sorted(names[0] & names[1]):
        if name.endswith(".pth.tar"):  # their bytes depend on which strings share memory, too
            found = unlike(*(torch.load(folder / name, weights_only=True) for folder in (ours, whole)), name)
            wrong += [found] if found else []
        elif name in ("metrics.jsonl", "config.yaml", "config.txt") and (ours / name).read_bytes() != (whole / name).read_bytes():
            wrong.append(name)
    if points(ours) != points(whole):
        wrong.append("TensorBoard points")
    return wrong


def campaign(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All strikes, run after run; counts of what was done and found."""
    rng, marks = random.Random(args.seed), Marks()
    options = [*args.set, f"opt.epochs={args.epochs}"]
    config = args.config.resolve()
    (folder / "whole").mkdir()
    with _chdir(folder):
        loaded = load_config(config, options)
        ensure_demo_of(loaded)
    _share_data(folder, folder / "whole")
    if code := waited(start(config, folder / "whole", marks, 0, options, 0)):
        raise UserError(f"the undisturbed run failed ({code}): {(folder / 'whole' / 'log').read_text()[-500:]}")
    whole = folder / "whole" / run_folder(loaded, "x")

    kinds = [signal.SIGKILL] * args.kills + [signal.SIGTERM] * args.stops
    rng.shuffle(kinds)
    hurt = set(rng.sample(range(len(kinds)), min(args.damage, len(kinds))))
    result = {"kills": Counter(), "stops": Counter(), "damage": Counter(), "fallbacks": 0, "runs": 0, "losses": [], "starts": 0}
    targets, strikes, pending, unfinished = [], 0, 0, True
    while strikes < len(kinds) or result["runs"] == 0 or unfinished:
        place = folder / f"run{result['runs']}"
        if not place.is_dir():
            place.mkdir()
            _share_data(folder, place)
        ours = place / run_folder(loaded, "x")
        log_before = (place / "log").read_text() if (place / "log").exists() else ""
        result["starts"] += 1
        child = start(config, place, marks, rng.randrange(10**6), options, args.pace)
        unfinished = True
        if strikes < len(kinds):
            targets = targets or rng.sample(PHASES, len(PHASES))
            number = kinds[strikes]
            target = targets.pop() if number == signal.SIGKILL else rng.choice(("step", "saving", "logging", "evaluating"))
            phase, code = strike(child, marks, rng, target, number)
        else:
            phase, code = None, waited(child)
        printed = (place / "log").read_text()[len(log_before):]
        if "Traceback" in printed or code not in (0, 75, -signal.SIGKILL):
            result["losses"].append(f"run {result['runs']}: exit code {code}: {printed[-300:]}")
            break
        if pending:
            fell_back = sum(line.startswith("warning: ") and "going on from" in line for line in printed.splitlines())
            if "resumed after" in printed or code == 0:
                if fell_back != pending:
                    result["losses"].append(f"{pending} damaged, {fell_back} reported: {printed[:300]}")
                result["fallbacks"] += fell_back
                pending = 0
        if phase is None:
            unfinished = False
            result["losses"] += [f"run {result['runs']}: {what}" for what in differences(ours, whole)]
            starts = json.loads((ours / "environment.json").read_text())["starts"]
            if not starts or starts[0]["iteration"] != 0:
                result["losses"].append("environment.json: the first start is missing")
            result["runs"] += 1
            continue
        result["kills" if kinds[strikes] == signal.SIGKILL else "stops"][phase] += 1
        if kinds[strikes] == signal.SIGTERM and code == 75 and "stopped by SIGTERM" not in printed:
            result["losses"].append(f"no message of a stop: {printed[-300:]}")
        if strikes in hurt and not pending and len(files := checkpoints_of(ours)) > 1:
            newest = max(files, key=lambda p: p.stat().st_mtime_ns)
            result["damage"][damage(newest, rng)] += 1
            pending = 1
        strikes += 1
    return result


def _share_data(folder: Path, place: Path) -> None:
    """The configuration's paths are relative: one copy of the data for all."""
    if (folder / "data").is_dir():
        (place / "data").symlink_to(folder / "data")


@contextlib.contextmanager
def _chdir(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.yaml", help="what to train (configs/demo.yaml)")
    parser.add_argument("--set", nargs="+", default=SMALL, metavar="KEY=VALUE", help=f"settings ({' '.join(SMALL)})")
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="SIGKILLs (50)")
    parser.add_argument("--stops", type=int, default=10, metavar="N", help="SIGTERMs (10)")
    parser.add_argument("--damage", type=int, default=10, metavar="N", help="damaged checkpoints (10)")
    parser.add_argument("--epochs", type=int, default=15, metavar="N", help="opt.epochs of a run (15)")
    parser.add_argument("--pace", type=float, default=0.003, metavar="S", help="longest pause around a system call (0.003 s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write all numbers here")
    add_record(parser)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    args.device = "cpu"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = campaign(args, Path(folder))
    rows = [{"what": f"{kind} while {phase}", "times": n} for kind in ("kills", "stops") for phase, n in
            sorted(result[kind].items())]
    rows += [{"what": f"newest checkpoint then damaged: {kind}", "times": n} for kind, n in sorted(result["damage"].items())]
    rows += [{"what": "starts", "times": result["starts"]}, {"what": "finished runs, compared", "times": result["runs"]},
             {"what": "losses", "times": len(result["losses"])}]
    report("killed and resumed", rows, args, key=("what",), losses=result["losses"], fallbacks=result["fallbacks"])
    for loss in result["losses"]:
        print(loss)
    return 1 if result["losses"] else 0


if __name__ == "__main__":
    run_main(main)
