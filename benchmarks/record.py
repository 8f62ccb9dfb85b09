"""Record what a tool measured: the JSON of `tools/run_seeds.py --json` or `tools/run_distill.py --json` as a result.

    python tools/run_seeds.py configs/hapt.yaml --seeds 3 --json hapt.json
    python benchmarks/record.py hapt_again hapt.json --command "python tools/run_seeds.py configs/hapt.yaml --seeds 3"

writes or renews benchmarks/results/hapt_again.json, with the environment of this machine: run it where the tool ran.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import write_result

from libs.core.errors import UserError, run_main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the result")
    parser.add_argument("file", type=Path, help="JSON that the tool wrote")
    parser.add_argument("--command", required=True, help="command line that gave the numbers")
    parser.add_argument("--device", default="cpu", help="that they were measured on (cpu)")
    args = parser.parse_args()
    try:
        key, rows = rows_of(json.loads(args.file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{args.file}: is no JSON of tools/run_seeds.py or tools/run_distill.py ({error})") from error
    path = write_result(args.name, args.file.stem, rows, args.device, [key], command=args.command, section="Accuracy")
    print(f"{path} written; complete its texts, then run python benchmarks/make_results.py")


def rows_of(content: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The column that names the rows, and the rows with numbers, texts and lists of numbers alone."""
    if "rows" in content:  # run_distill.py: a row per stage; the environment record holds the rest
        rows = [{name: x for name, x in row.items() if name not in ("machine", "threads")} for row in content["rows"]]
        return "stage", [{name: cell(x) for name, x in row.items()} for row in rows]
    kinds = {kind: content[kind] for kind in ("ema", "raw")}  # run_seeds.py: a summary per kind of weights
    return "weights", [{"config": content["config"], "weights": kind, **{name: cell(x) for name, x in summary.items()}}
                       for kind, summary in kinds.items()]


def cell(x: Any) -> Any:
    """Values by seed become a list, lists of names a text."""
    if isinstance(x, dict):
        return list(x.values())
    return ", ".join(map(str, x)) if isinstance(x, list) else x


if __name__ == "__main__":
    run_main(main)
