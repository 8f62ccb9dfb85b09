#!/usr/bin/env python3
"""Find actions in your own videos, or in features of them; no annotations needed.

    python tools/predict.py ckpt/my_first holiday.mp4 --threshold 0.3      (the extractor of its training's features)
    python tools/predict.py ckpt/my_first holiday.mp4 -o holiday.html      (a page: the timeline, and the video playing in step)
    python tools/predict.py ckpt/my_first videos/ --rgb-model rgb_imagenet.pt -o found.json
    python tools/predict.py pretrained/demo_student.pth.tar pretrained/demo_video.npy --fps 25 --threshold 0.3
    python tools/predict.py ckpt/hapt_first data/hapt/features --fps 50 -o found.json
    python tools/predict.py ckpt/my_first data/my/features                     (with provenance.json of tools/extract_features.py)
    python tools/predict.py ckpt/thumos_i3d_first clips/ --info clips.csv --threshold 0.2 -o subtitles --format srt
    python tools/predict.py pretrained/CHECKPOINT.pth.tar clips/ --config configs/thumos_i3d.yaml --labels thumos14.json --fps 30

The configuration comes from the checkpoint (or the config.yaml beside it); a published checkpoint needs --config.  Without -o
the detections are printed.  Formats: .json (for tools/evaluate.py), .csv, .csv.gz, .pkl, .html; one file per
video: .srt, .vtt, .eaf, and .mp4, the video with labels and without its sound.
Features of videos are kept in features_<extractor>_<settings> beside them and used again.  docs/inference.md has the details.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from libs.core.arguments import count, frame_rate, pairs, refuse_source, some_path
from libs.core.errors import UserError, note, run_main
from libs.datasets.feature_videos import FeatureVideos, raw_videos
from libs.datasets.video.extract import refuse_failed
from libs.datasets.video.extractors import spellings
from libs.datasets.video.on_demand import named_settings
from libs.engine.api import Localizer, features_place, load_model
from libs.engine.inference.show import write_found
from libs.utils.evaluation.thresholds import check_threshold, read_thresholds
from libs.utils.evaluation.writers import FORMATS, VIDEO, per_video, plan_output
from libs.utils.progress import bar, no_progress


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", metavar="CKPT", help="checkpoint file, or a run's folder (its last epoch)")
    parser.add_argument("features", nargs="+", metavar="FEATURES", help="videos, feature files (T, C), folders of them, or .h5")
    parser.add_argument("--fps", type=frame_rate, help="frames per second of the videos (those of provenance.json beside the "
                        "features, else dataset.default_fps)")
    parser.add_argument("--duration", type=float, metavar="S", help="seconds that the video lasts (end of the last feature)")
    parser.add_argument("--info", type=Path, metavar="FILE", help="per video: CSV video,duration,fps, an annotation JSON, or a "
                        "provenance.json; what it says of a video wins over --fps and --duration")
    parser.add_argument("--stride", type=float, metavar="FRAMES", help="frames between two features, if not those of training")
    parser.add_argument("--num-frames", type=float, metavar="FRAMES", help="frames a feature sees, if not those of training")
    parser.add_argument("--stream", action="append", default=[], metavar="NAME=FOLDER", help="folder of a stream with own files")
    parser.add_argument("--join", nargs="+", default=[], metavar="FOLDER", help="more folders, joined along channels by name")
    add = parser.add_argument_group("videos").add_argument
    add("--extractor", metavar="NAME", help=f"one of {', '.join(spellings())} (that of the training's features)")
    add("--rgb-model", metavar="FILE", help="its network or weights for RGB")
    add("--flow-model", metavar="FILE", help="its network or weights for flow")
    add("--extractor-set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="its other settings, called as the "
        "options of tools/extract_features.py (as in training)")
    add("--features-folder", type=some_path, metavar="FOLDER", help="where features of videos are kept (beside each video)")
    add("--no-cache", dest="cache", action="store_false", help="do not keep them")
    parser.add_argument("--threshold", type=float, default=0.0, metavar="SCORE", help="least score of what is written (0: all)")
    parser.add_argument("--class-thresholds", type=Path, metavar="FILE", help="JSON or YAML {label: least score}; it wins")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="file or folder to write")
    parser.add_argument("--format", choices=FORMATS, help="what to write into a folder")
    parser.add_argument("--config", help="YAML configuration of a checkpoint that holds none")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names: annotation JSON, JSON list, or one per line")
    parser.add_argument("-epoch", "--epoch", type=int, metavar="N", help="epoch to load from a folder")
    parser.add_argument("--weights", choices=("ema", "raw"), help="averaged or raw weights (test_cfg.weights)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="videos per forward pass (test_cfg.batch_size)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read features (0)")
    parser.add_argument("-p", "--print-freq", type=count, default=50, metavar="FREQ", help="videos between progress lines (50)")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override configuration keys")
    return parser.parse_args()


def main() -> None:
    args = parse()
    threshold = check_threshold(args.threshold, "--threshold")
    per_class = read_thresholds(args.class_thresholds) if args.class_thresholds else {}
    if args.output is None and args.format:
        raise UserError(f"--format {args.format}: goes with -o, which names the file or the folder")
    sources = [video for path in args.features for video in raw_videos(path)]
    if args.output and (raw := [Path(video).stem for video in sources]):
        for file in plan_output(args.output, args.format, raw).files:  # before their features, which take time
            refuse_source(file, *sources)
    refuse_source(args.output, args.ckpt, args.info, args.class_thresholds, args.config, args.labels)
    model = load_model(args.ckpt, config=args.config, labels=args.labels, weights=args.weights, epoch=args.epoch,
                       device=args.device, overrides=args.set, stride=args.stride, num_frames=args.num_frames)
    model.no_predictions.above(threshold, per_class, str(args.class_thresholds))  # reports a mistyped class before the work
    with features_place(args.features_folder, args.cache) as folder:
        videos = model.videos(args.features, fps=args.fps, duration=args.duration, info=args.info, join=args.join,
                              streams=pairs(args.stream, "--stream", "NAME=FOLDER"), extractor=args.extractor,
                              settings=named_settings(args.extractor_set, args.rgb_model, args.flow_model),
                              features_folder=folder, progress=no_progress if args.output is None else None)
        detect(model, videos, args, threshold, per_class)
    refuse_failed(videos.failed, len(videos.failed) + len(videos))


def detect(model: Localizer, videos: FeatureVideos, args: argparse.Namespace, threshold: float, per_class: dict[str, float]
           ) -> None:
    """Print or write the detections of the videos."""
    ids = [video.id for video in videos.videos]
    output = plan_output(args.output, args.format, ids) if args.output else None
    note(f"{model.checkpoint}: epoch {model.epoch}, {model.weights} weights, {len(ids)} videos, {model.device}")
    quiet = output is None and not sys.stderr.isatty()  # no progress lines between the detections
    progress = (lambda done, total: None) if quiet else bar(len(ids), "videos", args.print_freq)
    found = model.predict_videos(videos, args.batch_size, args.workers, progress)
    kept = found.above(threshold, per_class, str(args.class_thresholds))
    if len(found) and not len(kept):
        note(f"note: none of {len(found)} segments reaches its threshold, the highest score is {found.score.max():.3f}; lower "
             f"{'--threshold' if not per_class else '--threshold or --class-thresholds'}")
    if output is None:
        print(kept)
        return
    write_found(output, kept.detections, model.label_names, found.videos, found.media, found.source, threshold or None)
    if per_video(output.kind) and not threshold and not per_class:
        what = "label" if output.kind == VIDEO else "subtitle"
        note(f"note: without --threshold every detection is a {what}, also the unlikely ones")
    place = output.files[0] if len(output.files) == 1 else f"{len(output.files)} files in {output.files[0].parent}"
    print(f"{len(kept)} of {len(found)} segments in {len(ids)} videos, written to {place}")


if __name__ == "__main__":
    run_main(main)
