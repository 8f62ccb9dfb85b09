#!/usr/bin/env python3
"""Compare features that you extracted with published ones of the same videos: does the chain match?

    python tools/compare_features.py features/video_test_0000004.npy official/video_test_0000004.npy
    python tools/compare_features.py features official --csv steps.csv

Prints, per video and stream, the cosine of the steps, the best shift and the ratio of sizes, and one line with the verdict; exit
code 1 where something differs.  Streams are those of provenance.json beside the features, or RGB and flow of 2048 channels.
"""
from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import numpy as np

from libs.core.arguments import refuse_existing, some_path
from libs.core.errors import UserError, run_main
from libs.datasets.features.compare import Compared, compare, pairs, read, streams_of, verdict
from libs.datasets.features.provenance import read_provenance
from libs.utils.files.io import write_text_atomic
from libs.utils.tables import format_table

SHOWN = 20  # videos in the table
COLUMNS = ("video", "stream", "ours", "theirs", "cosine", "5 %", "lowest", "shift", "then", "other steps", "size")


def main() -> int:
    args = parse()
    refuse_existing(args.csv, args.overwrite)
    results: dict[str, list[Compared]] = {}
    for name, files in pairs(args.ours, args.theirs).items():
        ours, theirs = map(read, files)
        if ours.shape[1] != theirs.shape[1]:
            turned = ours.shape[1] == theirs.shape[0] or ours.shape[0] == theirs.shape[1]
            raise UserError(f"{files[0]}, {files[1]}: have {ours.shape[1]} and {theirs.shape[1]} channels"
                            f"{' (one of them looks transposed)' if turned else ''}; compare features of one kind, (T, C)")
        results[name] = compare(ours, theirs, streams_of(files, ours.shape[1]))
    rows = [row(name, result) for name, found in results.items() for result in found]
    rows.sort(key=lambda row: row[4])
    print(format_table(rows[:SHOWN], COLUMNS, left=("stream",), digits=4))
    if len(rows) > SHOWN:
        print(f"the {SHOWN} lowest of {len(rows)}")
    if args.csv:
        write_text_atomic(args.csv, steps(results))
    recorded = read_provenance(args.ours)
    good, line = verdict(results, recorded.stride if recorded else None)
    print(f"verdict: {line}")
    return 0 if good else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=some_path, metavar="OURS", help="feature file, or folder of them")
    parser.add_argument("theirs", type=some_path, metavar="THEIRS", help="feature file, or folder: files of the same names")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the cosine of every step")
    parser.add_argument("--overwrite", action="store_true", help="replace the CSV file")
    return parser.parse_args()


def row(video: str, result: Compared) -> list[object]:
    """Row of the table; its fifth entry is the mean cosine."""
    best = max(result.shifted, key=lambda s: result.shifted[s])
    return [video, result.stream, *result.steps, result.mean, float(np.quantile(result.cosines, 0.05)),
            float(result.cosines.min()), f"{best:+d}" if best else "0", result.shifted[best], result.elsewhere, result.size]


def steps(results: dict[str, list[Compared]]) -> str:
    """CSV with the columns video, step, stream, cosine."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["video", "step", "stream", "cosine"])
    table.writerows([video, t, result.stream, f"{cosine:.6f}"]
                    for video, found in results.items() for result in found for t, cosine in enumerate(result.cosines))
    return text.getvalue()


if __name__ == "__main__":
    run_main(main)
