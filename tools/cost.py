#!/usr/bin/env python3
"""Cost of a network: parameters and FLOPs per part, latency, peak memory; and of a video, from pixels to detections.

    python tools/cost.py configs/thumos_i3d.yaml
    python tools/cost.py configs/hapt.yaml --length 256 --device cpu --runs 50 --json cost.json
    OMP_NUM_THREADS=1 python tools/cost.py configs/thumos_i3d.yaml --set model.backbone_type=conv
    python tools/cost.py configs/hapt.yaml --pipeline ckpt/hapt_first
    python tools/cost.py ckpt/video_first --video holiday.mp4
    python tools/cost.py ckpt/teacher_first --beside ckpt/student_first --video holiday.mp4
    python tools/cost.py configs/thumos_i3d.yaml --video holiday.mp4 --extractor thumos-i3d-center --rgb-model rgb_imagenet.pt \\
        --set dataset.input_dim=1024

The network is freshly initialised; neither data nor a checkpoint is needed.  FLOPs are 2 x multiply-adds of matrix products,
convolutions and attention.  Latency is that of the network alone: no feature extraction, no decoding, no NMS.

With --pipeline: time from feature file to detections by stage (reading, network, decoding, NMS), over the videos of val_split,
one at a time, with the weights of a checkpoint, on which the number of candidates for NMS depends.

With --video: seconds and GFLOP per minute of that video for decoding, optical flow, features, detector and NMS.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from libs.core.arguments import refuse_repeated, refuse_source
from libs.core.config import load_config
from libs.core.devices import resolve_device
from libs.core.errors import UserError, note, run_main
from libs.datasets.synthetic.demo import ensure_demo_of
from libs.datasets.video.extractors import create, spellings
from libs.datasets.video.on_demand import extractor_for, named_settings
from libs.engine.api import load_model
from libs.engine.deploy.cost import full_length, measure
from libs.engine.deploy.pipeline import measure_pipeline
from libs.engine.deploy.video_cost import compared, untrained, video_cost
from libs.utils.files.io import write_json_atomic
from libs.utils.progress import bar

RUNS, VIDEO_RUNS = 20, 3


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML configuration; with --video also a checkpoint file, or a run's folder")
    parser.add_argument("--length", type=int, default=None, metavar="T",
                        help="feature steps, padded to a multiple of the coarsest level's stride (dataset.max_seq_len)")
    parser.add_argument("--device", default=None, metavar="D", help="cpu, auto, cuda or cuda:N; short for --set devices=D")
    parser.add_argument("--runs", type=int, metavar="N",
                        help="timed forward passes, or rounds over the videos (20; 3 with --video)")
    parser.add_argument("--pipeline", metavar="CKPT", help="time each video of val_split from file to detections")
    parser.add_argument("--video", metavar="FILE", help="from pixels to detections: of this video")
    add = parser.add_argument_group("--video").add_argument
    add("--beside", nargs="+", default=[], metavar="CKPT", help="more checkpoints, in one table, each by its own extractor")
    add("--extractor", metavar="NAME", help=f"one of {', '.join(spellings())} (that of the checkpoint)")
    add("--rgb-model", metavar="FILE", help="its network or weights for RGB")
    add("--flow-model", metavar="FILE", help="its network or weights for flow")
    add("--extractor-set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="its other settings")
    parser.add_argument("--json", type=Path, default=None, metavar="OUT", help="write the numbers here too")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override configuration keys")
    return parser.parse_args()


def main() -> None:
    args = parse()
    refuse_source(args.json, args.config, args.video)
    if args.video:
        (several if args.beside else of_video)(args)
        return
    if given := [name for name in ("beside", "extractor", "rgb_model", "flow_model", "extractor_set") if getattr(args, name)]:
        raise UserError(f"--{given[0].replace('_', '-')}: goes with --video, which names the video")
    device = [] if args.device is None else [f"devices={args.device}"]
    config = load_config(args.config, [*device, *args.set])
    runs = RUNS if args.runs is None else args.runs
    if args.pipeline:
        if args.length is not None:
            raise UserError("--length: has no effect on the videos of --pipeline; leave it out")
        ensure_demo_of(config)
        pipeline = measure_pipeline(config, args.pipeline, bar(runs, "rounds", 5), rounds=runs)
        print(pipeline.table())
        if args.json:
            write_json_atomic(args.json, {**pipeline.as_dict(), "set": args.set})
        return
    length = full_length(config, args.length)
    if args.length not in (None, length):
        note(f"--length {args.length}: padded to {length}, which is the least that the network takes")
    cost = measure(config, length, runs=runs)
    print(cost.table())
    if args.json:
        write_json_atomic(args.json, {**cost.as_dict(), "set": args.set})


def several(args: argparse.Namespace) -> None:
    """The costs of --video by several checkpoints, in one table."""
    if given := [name for name in ("length", "pipeline", "extractor", "rgb_model", "flow_model", "extractor_set") if
                 getattr(args, name)]:
        raise UserError(f"--{given[0].replace('_', '-')}: does not go with --beside, where each checkpoint has its own")
    refuse_repeated("--beside", [args.config, *args.beside])
    costs = {}
    for path in (args.config, *args.beside):
        model = load_model(path, device=args.device or "auto", overrides=args.set)
        costs[Path(path).name] = video_cost(model, args.video, rounds=VIDEO_RUNS if args.runs is None else args.runs)
    print(compared(costs))
    if args.json:
        write_json_atomic(args.json, {name: {**cost.as_dict(), "set": args.set} for name, cost in costs.items()})


def of_video(args: argparse.Namespace) -> None:
    """The cost of --video, by a checkpoint, or by an untrained network of a configuration."""
    if args.length is not None or args.pipeline:
        raise UserError(f"{'--pipeline' if args.pipeline else '--length'}: does not go with --video; leave one of them out")
    settings = named_settings(args.extractor_set, args.rgb_model, args.flow_model)
    if args.config.endswith((".yaml", ".yml")):
        if args.extractor is None:
            raise UserError(f"{args.config}: a configuration has no extractor; name one with --extractor, of "
                            f"{', '.join(spellings())}")
        device = [] if args.device is None else [f"devices={args.device}"]
        config = load_config(args.config, [*device, *args.set])
        extractor = create(args.extractor, {**settings, "device": resolve_device(config)})
        model = untrained(config, extractor)
    else:
        model = load_model(args.config, device=args.device or "auto", overrides=args.set)
        extractor = extractor_for(model.config, args.config, args.extractor, {**settings, "device": str(model.device)})
    for line in extractor.told():
        print(line)
    cost = video_cost(model, args.video, extractor, VIDEO_RUNS if args.runs is None else args.runs)
    print(cost.table())
    if args.json:
        write_json_atomic(args.json, {**cost.as_dict(), "set": args.set})


if __name__ == "__main__":
    run_main(main)
