"""Shared by all benchmarks: the machine line, the unit G, timing, peak memory, tables and JSON.

    parser = arguments(__doc__)                                  --device, --json, --record, --g-runs, and what the script adds
    row = {"case": "typical", **timing(seconds_of(call, device, 7), g, reference_g=8.3)}
    report("network", [row], args, g_seconds=g)      prints a markdown table, writes {"machine", "title", "rows", ...}

`--record NAME` writes benchmarks/results/NAME.json, from which make_results.py makes RESULTS.md.
"""
from __future__ import annotations

import argparse
import ctypes
import itertools
import math
import multiprocessing
import re
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import make_results
import numpy as np
import torch

from libs.core.errors import UserError
from libs.engine.runtime.machine import device_of as device_of  # for the scripts
from libs.engine.runtime.machine import this_machine
from libs.utils.files.io import write_json_atomic, write_text_atomic

Result = TypeVar("Result")
G_FLOPS = 2 * 2304 * 2048 * 2048  # FLOPs of one G


def machine() -> str:
    """Processor, cores, threads, GPU and versions in one line."""
    return this_machine().line()


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark: --device, --json, --record, --g-runs."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write all numbers here")
    add_record(parser)
    parser.add_argument("--g-runs", type=int, default=10, metavar="N", help="products that measure G (10)")
    return parser


def add_record(parser: argparse.ArgumentParser) -> None:
    """The option --record, for `save`."""
    parser.add_argument("--record", default=None, metavar="NAME", help="write or renew benchmarks/results/NAME.json")


def synchronize(device: torch.device | None = None) -> None:
    """Wait for the GPU (None: torch's current one, if there is any)."""
    if torch.cuda.is_available() and (device is None or device.type == "cuda"):
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device | None, runs: int, warmup: int = 1) -> list[float]:
    """Wall-clock seconds of `runs` calls after `warmup` unmeasured ones, GPU work finished (device None: torch's current GPU)."""
    seconds = []
    for i in range(warmup + runs):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        if i >= warmup:
            seconds.append(time.perf_counter() - started)
    return seconds


def median_seconds(call: Callable[[], object], runs: int) -> float:
    """Median wall-clock time of `runs` calls after an unmeasured one."""
    return statistics.median(seconds_of(call, None, runs))


def unit_g(runs: int = 10) -> float:
    """Seconds of one G: a float32 product (2304 x 2048) @ (2048 x 2048) on the CPU with the threads at hand."""
    a, b = torch.randn(2304, 2048), torch.randn(2048, 2048)
    return median_seconds(lambda: a @ b, runs)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
    return low, middle, high


def timing(seconds: Sequence[float], g: float, reference_g: float | None = None) -> dict[str, Any]:
    """Columns of one row: median and quartiles in seconds, G, runs; with `reference_g` also the reference's G and the ratio."""
    low, middle, high = spread(seconds)
    row = {"median_s": middle, "q1_s": low, "q3_s": high, "G": middle / g, "runs": len(seconds)}
    return row if reference_g is None else row | {"reference_G": reference_g, "ratio": reference_g / row["G"]}


def markdown(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """A markdown table: a column per key in order of appearance, numbers to four digits, empty where a row lacks the key."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"\n{title}\n", f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return "\n".join(lines + [f"| {' | '.join(_cell(row.get(name)) for name in names)} |" for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def save(args: argparse.Namespace, title: str, rows: Sequence[dict[str, Any]], key: Sequence[str] | None = None,
         **more: Any) -> None:
    """With --json: write machine, title, device, rows and `more`; with --record: a result.  UserError: not writable."""
    if args.json:
        write_json_atomic(args.json, {"machine": machine(), "title": title, "device": args.device, "rows": list(rows), **more})
    if args.record:
        path = write_result(args.record, title, rows, args.device, key)
        print(f"{path} written; complete its texts, then run python benchmarks/make_results.py", flush=True)


def write_result(name: str, title: str, rows: Sequence[dict[str, Any]], device: str = "cpu",
                 key: Sequence[str] | None = None, command: str | None = None, section: str = "Speed and memory",
                 folder: Path | None = None) -> Path:
    """Write the measured rows as benchmarks/results/NAME.json with command, date and environment (format: make_results.py).

    `command` is this program's by default, `folder` another place.  An older file of that name gives section, texts, and
    titles and units of columns that stay; its rows are replaced.  Rows are named by the columns of `key` (see `row_names`).
    None and values that are not finite are left out.  Raises UserError for rows that cannot be told apart and for a name
    that is no file name.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise UserError(f"--record {name}: use lower-case letters, digits and _")
    path = (folder or make_results.FOLDER) / f"{name}.json"
    old = make_results.read(path) if path.exists() else {"columns": {}}
    named = dict(zip(row_names(rows, key), map(_measured, rows), strict=True))
    names = dict.fromkeys(column for row in named.values() for column in row)
    columns = {column: old["columns"].get(column) or {"title": column, "unit": _unit(column)} for column in names}
    result = {
        "section": old.get("section", section), "title": old.get("title", title),
        "question": old.get("question", f"{title}: what is measured?"), "answer": old.get("answer", "See the table."),
        "commands": [command or shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])],
        "date": time.strftime("%Y-%m-%d"), "environment": this_machine(device)._asdict(),
        "runs": next((row["runs"] for row in rows if "runs" in row), 1),
        "columns": columns, "rows": named, "notes": old.get("notes", [])}
    if "shown" in old:
        result["shown"] = [row for row in old["shown"] if row in named]
    if problems := make_results.problems_of(result):
        raise UserError(f"{path}: {'; '.join(problems)}")
    write_text_atomic(path, make_results.json_text(result))
    return path


def row_names(rows: Sequence[dict[str, Any]], key: Sequence[str] | None = None) -> list[str]:
    """A name of each row: the columns of `key`, by default all before the first number that is not whole; UserError if equal."""
    names = []
    for row in rows:
        keys = key or list(itertools.takewhile(lambda name, row=row: isinstance(row[name], (str, int)), row))
        names.append(re.sub(r"[^a-z0-9]+", "_", " ".join(str(row[name]) for name in keys).lower()).strip("_"))
    if not all(names) or len(set(names)) < len(rows):
        raise UserError(f"--record: {', '.join(names)} do not tell the rows apart; measure each case once")
    return names


def _measured(row: dict[str, Any]) -> dict[str, Any]:
    return {key: x for key, x in row.items() if x is not None and not (isinstance(x, float) and not math.isfinite(x))}


def _unit(column: str) -> str:
    """The unit at the end of a column's name, as in median_s; none: empty."""
    ending = column.rpartition("_")[2]
    return ending if ending in ("s", "ms", "GB", "GiB", "MB", "MiB", "%") else ""


def report(title: str, rows: Sequence[dict[str, Any]], args: argparse.Namespace, **more: Any) -> None:
    """Print the rows as a markdown table and `save` them, with a `key` for --record if given."""
    print(markdown(title, rows), flush=True)
    save(args, title, rows, **more)


def peak_gib() -> float:
    """Peak resident memory of this process so far, GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


class Memory(NamedTuple):
    """Bytes held before a call, and how far the peak during the call rose above them."""

    before: int
    rise: int


def memory_of(call: Callable[[], object], device: torch.device) -> Memory:
    """Peak memory of one call.  CPU: resident memory of this process (Linux); CUDA: what torch allocated.

    Memory that was freed but is still held is given back first, so that it does not hide a rise.  A process that used more
    memory before may still hold some: use `in_fresh_process`.  Raises UserError on systems that do not report it.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return Memory(before, torch.cuda.max_memory_allocated(device) - before)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS (Linux, proc(5))
        before = _status("VmRSS")
    except (OSError, AttributeError) as error:
        raise UserError(f"/proc/self/clear_refs: the peak of resident memory cannot be reset here ({error}); measure on Linux "
                        "with glibc, or with --device cuda") from error
    call()
    return Memory(before, _status("VmHWM") - before)


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name + ":")).split()[1]) * 1024


def in_fresh_process(function: Callable[..., Result], *args: Any) -> Result:
    """`function(*args)` in a new process, whose memory shows nothing of earlier work; UserErrors are raised here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise UserError(f"{function.__name__}{args}: the process was killed, as a rule for lack of memory; make the case "
                            "smaller or free some memory") from error
