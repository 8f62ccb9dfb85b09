"""Pack the features that a configuration reads into one HDF5 file per stream, for data beyond main memory and network disks.

    python tools/pack_features.py configs/thumos_i3d.yaml --out data/thumos_packed
    python tools/pack_features.py configs/thumos_i3d.yaml --out data/thumos_packed --verify

Writes OUT/<stream>.h5 and prints the configuration lines that read it.
After an interruption, the same command resumes where it stopped; repeated, it packs only what has changed.
"""
from __future__ import annotations

import argparse

from libs.core.arguments import some_path
from libs.core.config import load_config
from libs.core.errors import UserError, note, run_main
from libs.datasets.features.packing import DTYPES, describe, pack_stream, stored_streams, verify, videos_of


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--out", required=True, type=some_path, metavar="FOLDER", help="folder of the packed files")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="subsets to pack (default: all that CONFIG reads)")
    parser.add_argument("--streams", nargs="+", metavar="NAME", help="of features, features_0, ... and modalities with "
                        "folders of their own (default: all)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="float32 keeps every bit (default)")
    parser.add_argument("--verify", action="store_true", help="write nothing: read a pack and compare every checksum")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of CONFIG")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    config = load_config(args.config, args.set)
    streams = stored_streams(config)
    known = [s.name for s in streams]
    if unknown := [name for name in args.streams or () if name not in known]:
        raise UserError(f"--streams {unknown[0]}: {args.config} has the streams {', '.join(known)}; name some of them")
    streams = [s for s in streams if args.streams is None or s.name in args.streams]
    videos = videos_of(config, args.split)
    for stream in streams:
        path, skip = stream.packed_in(args.out), config.dataset.missing == "skip"
        if args.verify:
            wanted = [] if skip else [stream.prefix + i for ids in videos.values() for i in ids]
            print(f"{path}: {verify(path, wanted)} videos agree with their checksums", flush=True)
        else:
            count = pack_stream(stream, videos, args.out, args.dtype, skip, note)
            print(f"{path}: {count} videos, {path.stat().st_size / 2**20:.1f} MiB", flush=True)
    print("\n".join(describe(streams, args.out)))


if __name__ == "__main__":
    run_main(main)
