#!/usr/bin/env python3
"""Everything that differs on a GPU, in order of value: does it run, are its numbers those of the CPU, how fast is it?

    python benchmarks/gpu_day.py --minutes 8 --json OUT                all parts, 8 minutes at most
    python benchmarks/gpu_day.py --only nms golden steps               some of them
    python benchmarks/gpu_day.py --device cpu --tiny                   a rehearsal on the CPU with tiny networks
    python benchmarks/gpu_day.py --annotations thumos14.json           also trains configs/planted.yaml on the planted features

Every part runs in a process of its own under its own time limit.  A part that fails or runs out of time keeps the rows that
it had measured, and the next one starts.  The data are generated.  gpu_checks.py and gpu_speed.py hold the parts.
Exit code 1 if a part failed, ran out of time, or found numbers that differ.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import gpu_checks
import gpu_speed
from common import add_record, device_of, machine, markdown, save
from gpu_common import Day, Part

from libs.core.errors import UserError, nearest, run_main
from libs.utils.files.io import write_json_atomic

PARTS = {  # in order of value
    "build": Part("the compiled NMS libraries", gpu_checks.build, 120),
    "nms": Part("NMS against the CPU", gpu_checks.compare_nms, 60),
    "golden": Part("fixtures of the reference", gpu_checks.golden, 60),
    "steps": Part("forward passes and training steps", gpu_speed.steps, 90),
    "family": Part("forward passes and training steps of TriDet and TemporalMaxer", gpu_speed.family, 90),
    "distillation": Part("training steps of students against the CPU", gpu_checks.distillation, 90),
    "extraction": Part("features of videos against the CPU", gpu_checks.extraction, 90),
    "lengths": Part("steps of new lengths", gpu_speed.lengths, 60),
    "postprocess": Part("decoding and NMS", gpu_speed.postprocess, 30),
    "test_set": Part("the whole test set of THUMOS14's size", gpu_speed.test_set, 60),
    "data": Part("training steps with reading", gpu_speed.data, 60),
    "repeat": Part("two deterministic trainings", gpu_checks.repeat, 30),
    "nccl": Part("DistributedDataParallel with NCCL", gpu_checks.nccl, 40),
    "resume": Part("SIGTERM and resume", gpu_checks.resume, 70),
    "planted": Part("planted features on the THUMOS14 annotations", gpu_checks.planted, 120),
    "epoch": Part("whole epochs of THUMOS14's size", gpu_speed.epoch, 60),
    "profile": Part("kernels of a training step", gpu_speed.profile_step, 45),
    "kernels": Part("forms of convolution and attention", gpu_speed.kernels, 60),
    "memory": Part("memory of inference", gpu_speed.memory, 30),
    "demo": Part("the demo trained and evaluated", gpu_checks.demo, 200),
    "students": Part("the demo's teacher and students trained and evaluated", gpu_checks.students, 240),
    "compiled": Part("torch.compile", gpu_speed.compiled, 150),
}
SHORTEST_S = 10.0  # a part with less time left is not started


def run_part(name: str, day: Day, rows: Path) -> None:
    """In the part's own process: append each row to the file `rows` as soon as it is measured; exit code 1 after an exception."""
    os.setsid()  # with the programs that it starts it can be ended as one group
    try:
        with rows.open("a", encoding="utf-8") as out:
            for row in PARTS[name].run(day):
                out.write(json.dumps(row) + "\n")
                out.flush()
                print(f"  {name}: " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
                      flush=True)
    except BaseException as error:
        traceback.print_exc()
        rows.with_suffix(".error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        os._exit(1)


def measure(name: str, day: Day, limit: float, context: Any) -> dict[str, Any]:
    """Run one part for `limit` seconds at most: status, seconds, rows, and the error if there was one."""
    rows = day.folder / f"{name}.rows"
    started = time.monotonic()
    process = context.Process(target=run_part, args=(name, day, rows))
    process.start()
    process.join(limit)
    status = "done" if process.exitcode == 0 else "failed"
    if process.exitcode is None:
        status = "out of time"
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it had not made its group yet, or has just ended
            process.kill()
        process.join()
    error = rows.with_suffix(".error")
    text = error.read_text(encoding="utf-8") if error.exists() else None
    if status == "failed" and text is None:
        text = f"the process ended with code {process.exitcode}"
    found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()] if rows.exists() else []
    if status == "done" and any(row.get("equal") is False for row in found):
        status = "numbers differ"
    return {"status": status, "seconds": time.monotonic() - started, "error": text, "rows": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (cuda)")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (8)")
    parser.add_argument("--only", nargs="+", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--annotations", type=Path, default=None, help="thumos14.json, for the part planted")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and few steps, for a rehearsal")
    parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write all numbers here")
    add_record(parser)
    args = parser.parse_args()
    if unknown := [name for name in args.only if name not in PARTS]:
        raise UserError(f"--only {unknown[0]}: no such part{nearest(unknown[0], PARTS)}; use {', '.join(PARTS)}")
    device_of(args.device)
    print(machine(), flush=True)
    end = time.monotonic() + 60 * args.minutes
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gpu_checks", "gpu_speed"])  # torch is imported once; nothing there has touched the GPU
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        day = Day(args.device, args.tiny, Path(name), args.annotations)
        for part in (p for p in PARTS if p in args.only):
            limit = min(PARTS[part].limit_s, end - time.monotonic())
            if limit < SHORTEST_S:
                found[part] = {"status": "not run: no time left", "seconds": 0.0, "error": None, "rows": []}
                continue
            print(f"{part}: {PARTS[part].what} ({limit:.0f} s at most)", flush=True)
            found[part] = measure(part, day, limit, context)
            if args.json:  # after every part, so that nothing is lost
                write_json_atomic(args.json, {"machine": machine(), "device": args.device, "parts": found,
                                              "rows": rows_of(found)})
    for part, result in found.items():
        if result["rows"]:
            print(markdown(f"{part}: {PARTS[part].what}", result["rows"]))
    print(markdown("parts", [{"part": p, "status": r["status"], "seconds": r["seconds"], "error": r["error"]}
                             for p, r in found.items()]), flush=True)
    save(argparse.Namespace(json=None, record=args.record, device=args.device), "GPU", rows_of(found), key=["part", "case"])
    return int(any(result["status"] not in ("done", "not run: no time left") for result in found.values()))


def rows_of(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows, each with the name of its part; booleans as yes and no."""
    return [{"part": part, **{k: {True: "yes", False: "no"}[v] if isinstance(v, bool) else v for k, v in row.items()}}
            for part, result in found.items() for row in result["rows"]]


if __name__ == "__main__":
    run_main(main)
