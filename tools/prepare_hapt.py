"""Turn the UCI HAPT download into annotations and features.

    python tools/prepare_hapt.py "HAPT Data Set.zip" data/hapt

The source is the downloaded .zip, a .tar.gz/.tar.xz, or an unpacked folder that contains RawData/ and activity_labels.txt.
Writes data/hapt/annotations/hapt.json and data/hapt/features/*.npy (float32, T x 300); see libs/datasets/prepare/hapt.py.
"""
from __future__ import annotations

import argparse

from libs.core.arguments import some_path
from libs.core.errors import run_main
from libs.datasets.prepare.hapt import DEFAULT_VAL_USERS, prepare_hapt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="ZIP_OR_FOLDER", help="the HAPT download, packed or unpacked")
    parser.add_argument("out", type=some_path, metavar="OUT", help="where to write, e.g. data/hapt")
    parser.add_argument("--val-users", type=int, nargs="*", default=DEFAULT_VAL_USERS, metavar="USER",
                        help="users of the validation subset, all others train; none: everything trains "
                             f"(default: {' '.join(map(str, DEFAULT_VAL_USERS))})")
    args = parser.parse_args()
    print("\n".join(prepare_hapt(args.source, args.out, args.val_users)))
    print(f"written to {args.out}")


if __name__ == "__main__":
    run_main(main)
