#!/usr/bin/env python3
"""Cost of a network: parameters and FLOPs per part, latency, peak memory.

    python tools/cost.py configs/thumos_i3d.yaml
    python tools/cost.py configs/hapt.yaml --length 256 --device cpu --runs 50 --json cost.json
    OMP_NUM_THREADS=1 python tools/cost.py configs/thumos_i3d.yaml --set model.backbone_type=conv
    python tools/cost.py configs/hapt.yaml --pipeline ckpt/hapt_first

The network is freshly initialised; neither data nor a checkpoint is needed.  FLOPs are 2 x multiply-adds of matrix products,
convolutions and attention.  Latency is that of the network alone: no feature extraction, no decoding, no NMS.

With --pipeline: time from feature file to detections by stage (reading, network, decoding, NMS), over the videos of val_split,
one at a time, with the weights of a checkpoint, on which the number of candidates for NMS depends.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from libs.core.arguments import refuse_source
from libs.core.config import load_config
from libs.core.errors import UserError, note, run_main
from libs.datasets.synthetic.demo import ensure_demo_of
from libs.engine.deploy.cost import full_length, measure
from libs.engine.deploy.pipeline import measure_pipeline
from libs.utils.files.io import write_json_atomic
from libs.utils.progress import bar


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML configuration")
    parser.add_argument("--length", type=int, default=None, metavar="T",
                        help="feature steps, padded to a multiple of the coarsest level's stride (dataset.max_seq_len)")
    parser.add_argument("--device", default=None, metavar="D", help="cpu, auto, cuda or cuda:N; short for --set devices=D")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="timed forward passes, or rounds over the videos (20)")
    parser.add_argument("--pipeline", metavar="CKPT", help="time each video of val_split from file to detections")
    parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write the numbers here too")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override configuration keys")
    return parser.parse_args()


def main() -> None:
    args = parse()
    refuse_source(args.json, args.config)
    device = [] if args.device is None else [f"devices={args.device}"]
    config = load_config(args.config, [*device, *args.set])
    if args.pipeline:
        if args.length is not None:
            raise UserError("--length: has no effect on the videos of --pipeline; leave it out")
        ensure_demo_of(config)
        pipeline = measure_pipeline(config, args.pipeline, bar(args.runs, "rounds", 5), rounds=args.runs)
        print(pipeline.table())
        if args.json:
            write_json_atomic(args.json, {**pipeline.as_dict(), "set": args.set})
        return
    length = full_length(config, args.length)
    if args.length not in (None, length):
        note(f"--length {args.length}: padded to {length}, which is the least that the network takes")
    cost = measure(config, length, runs=args.runs)
    print(cost.table())
    if args.json:
        write_json_atomic(args.json, {**cost.as_dict(), "set": args.set})


if __name__ == "__main__":
    run_main(main)
