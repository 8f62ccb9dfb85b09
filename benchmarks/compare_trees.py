#!/usr/bin/env python3
"""Is one checkout as fast as another?  The same benchmarks of both, in turn, in one run.

    git worktree add ../before main
    python benchmarks/compare_trees.py ../before .                          ratios new / old, one row per measured case
    python benchmarks/compare_trees.py ../before . --only forward map --rounds 5

Each round runs a script of benchmarks/ in the first tree and then in the second (the next round the other way round), so that a
machine that slows down slows both.  A row has the median over rounds of both times and of the ratio; its spread is min to max.
Every script gets the options in BENCHMARKS; `demo` times `train.py configs/demo.yaml` and `eval.py` as whole processes.
"""
from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import arguments, machine, report

from libs.core.errors import UserError, run_main

BENCHMARKS = {
    "train_step": ["--variants", "bucket", "--steps", "12", "--videos", "32"],
    "forward": ["--precisions", "fp32", "bf16", "--runs", "6"],
    "test_set": ["--videos", "24"],
    "map": ["--runs", "5"],
    "postprocess": ["--runs", "30"],
    "demo": [],
}


def run(tree: Path, arguments: list[str]) -> float:
    """Seconds of a Python program in a tree.  UserError with the end of its output if it fails."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=tree, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(tree)})
    if done.returncode != 0:
        raise UserError(f"{tree}: {' '.join(arguments[:2])} failed: {(done.stderr or done.stdout)[-400:]}")
    return time.perf_counter() - started


def measure(tree: Path, name: str, folder: Path) -> dict[str, float]:
    """Case -> seconds of one benchmark in a tree."""
    if name == "demo":
        output = ["--output", "trees", "--set", f"output_folder={folder}"]
        training = run(tree, ["train.py", "configs/demo.yaml", *output])
        evaluation = run(tree, ["eval.py", "configs/demo.yaml", str(folder / "demo_trees")])
        return {"train.py configs/demo.yaml": training, "eval.py": evaluation}
    out = folder / "out.json"
    run(tree, [f"benchmarks/bench_{name}.py", "--json", str(out), *BENCHMARKS[name]])
    return {f"{name}: {case_name(row)}": row["median_s"] for row in json.loads(out.read_text())["rows"] if row.get("median_s")}


def case_name(row: dict[str, Any]) -> str:
    """The texts and whole numbers with which a row begins."""
    parts = []
    for value in row.values():
        if isinstance(value, float):
            break
        parts.append(str(value))
    return " ".join(parts)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("old", type=Path, help="checkout to compare with, its libraries built")
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    args = parser.parse_args()
    trees = {"old": args.old.resolve(), "new": args.new.resolve()}
    for tree in trees.values():
        if not (tree / "benchmarks").is_dir():
            raise UserError(f"{tree}: is no checkout of this project; name two folders that hold train.py and benchmarks/")
    print(machine(), flush=True)
    times: dict[str, dict[str, list[float]]] = {}
    for name in args.only:
        for number in range(args.rounds):
            for which in sorted(trees, reverse=number % 2 == 0):  # old first, then new first
                with tempfile.TemporaryDirectory() as folder:
                    for case, seconds in measure(trees[which], name, Path(folder)).items():
                        times.setdefault(case, {"old": [], "new": []})[which].append(seconds)
        print(f"{name}: {args.rounds} rounds", flush=True)
    rows = []
    for case, found in times.items():
        if len(found["old"]) == len(found["new"]) == args.rounds:
            ratios = [new / old for old, new in zip(found["old"], found["new"], strict=True)]
            rows.append({"case": case, "old_s": statistics.median(found["old"]), "new_s": statistics.median(found["new"]),
                         "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
                         "runs": args.rounds})
    report("Two checkouts side by side", rows, args)


if __name__ == "__main__":
    run_main(main)
