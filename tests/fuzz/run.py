"""Fuzz the readers of files from strangers: one clear error or a valid result, in bounded time and memory.

    python tests/fuzz/run.py --cases 10000                      every reader (about 20 minutes on one core)
    python tests/fuzz/run.py --cases 2000 --reader checkpoint --seed 3 --keep faults

Each case is a valid file with values or bytes changed (mutate.py), read under a time limit in a process whose memory is limited.
A fault is any exception but UserError, an error that does not name the file, a wrong or non-finite result, a case that takes
longer than --seconds or more memory than --mib, or a crash.  Prints a table and exits with 1 when there is a fault.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "fuzz")]

# ruff: noqa: E402  (the script runs by its path)
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from readers import Target, targets

from libs.core.errors import UserError

CRASHED = "the process died"


class Hang(BaseException):
    """Raised by the alarm; no `except Exception` swallows it."""


def alarm(_signal: int, _frame: Any) -> None:
    raise Hang


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def limit_memory(mib: int) -> None:
    """At most so much address space beyond what is mapped now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE") + (mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def fault_of(target: Target, path: Path, seconds: float) -> tuple[str, str]:
    """('refused' | 'accepted' | what went wrong, detail) of one file."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        target.read(path)
        return "accepted", ""
    except UserError as error:
        message = str(error)
        named = path.name in message or path.parent.name in message or "x.yaml" in message
        return ("refused", "") if named and len(message) < 3000 else ("an unclear error", message[:300])
    except Hang:
        return f"took longer than {seconds:g} s", traceback.format_exc(limit=-3)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if str(ROOT / "libs") in f.filename] or frames
        wrong = " (wrong result)" if isinstance(error, AssertionError) else ""
        return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}{wrong}", f"{error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def fuzz(name: str, cases: int, number: int, seconds: float, mib: float, work: Path, keep: Path | None) -> dict[str, Any]:
    """Run one reader in this process; counts, and per fault the first message."""
    target = targets(work)[name]()
    results: Counter[str] = Counter()
    faults: dict[str, str] = {}
    folder = work / "case"

    @seed(number)
    @settings(max_examples=cases, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def case(rng: Random) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            path = target.make(rng, folder)
            before = peak_mib()
            result, detail = fault_of(target, path, seconds)
        if peak_mib() - before > mib:
            result, detail = f"needed {(peak_mib() - before):.0f} MiB", result + detail
        results[result] += 1
        if result not in ("refused", "accepted") and result not in faults:
            faults[result] = detail
            if keep:
                kept = keep / f"{name.replace(' ', '_')}_{len(faults)}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(folder, kept)
    started = time.perf_counter()
    case()
    return {"reader": name, "cases": sum(results.values()), "refused": results["refused"], "accepted": results["accepted"],
            "faults": {k: [results[k], v] for k, v in faults.items()}, "seconds": time.perf_counter() - started}


def child(args: argparse.Namespace) -> int:
    """All readers that were asked for, one line of JSON each."""
    signal.signal(signal.SIGALRM, alarm)
    limit_memory(4096)
    with tempfile.TemporaryDirectory() as work:
        for name in args.reader:
            inner = Path(work, name.replace(" ", "_"))
            inner.mkdir()
            print(json.dumps(fuzz(name, args.cases, args.seed, args.seconds, args.mib, inner, args.keep)), flush=True)
    return 0


def main() -> int:
    names = list(targets(Path()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="per reader (10000)")
    parser.add_argument("--reader", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0, help="limit of a case (10)")
    parser.add_argument("--mib", type=float, default=700.0, help="memory that a case may add to the peak (700)")
    parser.add_argument("--keep", type=Path, help="folder for the first file of each fault")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    faults, waiting = 0, list(args.reader)
    print("| reader | cases | refused | accepted | faults | s |\n|---|---|---|---|---|---|", flush=True)
    while waiting:
        options = ["--cases", args.cases, "--seed", args.seed, "--seconds", args.seconds, "--mib", args.mib]
        options += ["--keep", args.keep] if args.keep else []
        command = [sys.executable, __file__, "--child", "--reader", *waiting, *map(str, options)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            for line in run.stdout:
                row = json.loads(line)
                waiting.remove(row["reader"])
                count = sum(n for n, _ in row["faults"].values())
                shown = (row["reader"], row["cases"], row["refused"], row["accepted"], count, round(row["seconds"]))
                print(f"| {' | '.join(map(str, shown))} |", flush=True)
                for fault, (n, detail) in row["faults"].items():
                    print(f"    {n} x {fault}: {detail}", flush=True)
                faults += count
        if waiting:
            print(f"| {waiting[0]} | {CRASHED} (code {run.returncode}) |", flush=True)
            faults += 1
            waiting.pop(0)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
