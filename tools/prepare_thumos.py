"""Unpack the published THUMOS14 archive (annotations and I3D features) into data/thumos and check it.

    python tools/prepare_thumos.py thumos.tar.gz

The archive (zip or tar.gz) must have the published md5; --allow-other takes any archive of the same layout.  Afterwards every
annotated video is compared with its feature file; mismatches are listed and the exit code is 2.
"""
from __future__ import annotations

import argparse
import functools
from pathlib import Path

from libs.core.arguments import some_path
from libs.core.errors import UserError, run_main
from libs.datasets.prepare.thumos import ANNOTATIONS, FEATURES, check_features, check_md5, unpack_thumos

say = functools.partial(print, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", metavar="ARCHIVE", help="the downloaded zip or tar.gz")
    parser.add_argument("--allow-other", action="store_true", help="go on when the md5 is not the published one")
    parser.add_argument("--out", type=some_path, default="data/thumos", help="where to write (default: data/thumos)")
    args = parser.parse_args()
    check_md5(args.archive, args.allow_other, say)
    unpack_thumos(args.archive, args.out, say)
    videos, problems = check_features(Path(args.out, ANNOTATIONS), Path(args.out, FEATURES))
    for line in problems:
        say(f"  {line}")
    if problems:
        raise UserError(f"{args.archive}: {len(problems)} of {videos} annotated videos lack usable features (listed above); "
                        f"everything was unpacked into {args.out}; get a complete archive, or train without missing files by "
                        "`dataset.missing: skip`")
    say(f"all {videos} annotated videos have features of a plausible length")


if __name__ == "__main__":
    run_main(main)
