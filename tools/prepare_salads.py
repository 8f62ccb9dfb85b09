"""Turn the published files of 50 Salads into annotations of its five splits and features.

    python tools/prepare_salads.py AP_TCN data/salads50
    python tools/prepare_salads.py salads50.tar.xz data/salads50

The source is a zip, a tar or a folder with features/50Salads/SpatialCNN_mid/, splits/50Salads/ and labels/, whose MATLAB files
need scipy, or with annotations/ and features/ as this script writes them.
Writes data/salads50/annotations/split{1..5}.json and data/salads50/features/*.npy (float32, T x 48); see
libs/datasets/prepare/salads.py.
"""
from __future__ import annotations

import argparse

from libs.core.arguments import some_path
from libs.core.errors import run_main
from libs.datasets.prepare.salads import prepare_salads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="RAW_FOLDER", help="the published files, or these in our layout; packed or unpacked")
    parser.add_argument("out", type=some_path, metavar="OUT", help="where to write, e.g. data/salads50")
    args = parser.parse_args()
    print("\n".join(prepare_salads(args.source, args.out)))
    print(f"written to {args.out}")


if __name__ == "__main__":
    run_main(main)
