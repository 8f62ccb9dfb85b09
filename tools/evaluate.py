"""Score a predictions file against annotations.

    python tools/evaluate.py ckpt/thumos_i3d_run/predictions.json data/thumos/annotations/thumos14.json
    python tools/evaluate.py detections.csv.gz annotation_test/ --protocol thumos14 --tiou 0.5 --json scores.json
    python tools/evaluate.py predictions.json anet1.3.json --class-scores cuhk_val_simp_share.json --tiou 0.5 0.75 0.95

PREDICTIONS: ActivityNet JSON, CSV (video_id,t_start,t_end,label,score; may be .gz) or the published result pickle; labels are
class names or ids.  ANNOTATIONS: an annotation JSON, or the official THUMOS14 folder of <Class>_test.txt files.
"""
from __future__ import annotations

import argparse
import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from libs.core.errors import UserError, run_main
from libs.datasets.annotations import load_annotations
from libs.utils.io import write_json_atomic
from libs.utils.metrics import DEFAULT_TIOUS, evaluate_detections, unique_rank_scores
from libs.utils.predictions import Detections, GroundTruth, read_predictions
from libs.utils.score_fusion import fuse_external_scores, load_external_scores
from libs.utils.thumos_protocol import evaluate_thumos14, load_thumos14_folder


@dataclass(frozen=True)
class Truth:
    """What the predictions are held against: one split's segments, the videos it has, class name -> id."""

    split: str
    ground_truth: GroundTruth
    ambiguous: GroundTruth | None
    videos: frozenset[str]
    label_ids: Mapping[str, int]


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    if Path(args.annotations).is_dir():
        detections, truth = _against_folder(args)
    else:
        detections, truth = _against_json(args)
    _warn_about_videos(detections, truth)
    if args.unique_rank_scores:
        detections = dataclasses.replace(detections, score=unique_rank_scores(detections.score))
    names = {class_id: name for name, class_id in truth.label_ids.items()}
    if args.protocol == "thumos14":
        ambiguous = None if args.count_ambiguous else truth.ambiguous
        scores = evaluate_thumos14(detections, truth.ground_truth, args.tiou, ambiguous, names)
    else:
        scores = evaluate_detections(detections, truth.ground_truth, args.tiou, label_names=names)
    print(f"{args.protocol} protocol, split {truth.split}: {scores.counts['predictions']} predictions, "
          f"{scores.counts['ground_truth']} segments, {len(truth.videos)} videos, {len(scores.class_ids)} classes (percent)")
    print(scores.table(args.per_class))
    if args.json:
        write_json_atomic(args.json, {"predictions": args.predictions, "annotations": args.annotations,
                                      "protocol": args.protocol, "split": truth.split, **scores.as_dict()})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", metavar="PREDICTIONS")
    parser.add_argument("annotations", metavar="ANNOTATIONS")
    parser.add_argument("--protocol", choices=("activitynet", "thumos14"), default="activitynet",
                        help="thumos14: ground truth in file order, IoU above the threshold, detections on Ambiguous segments "
                             "dropped, no interpolation (default: activitynet)")
    parser.add_argument("--tiou", type=float, nargs="+", default=DEFAULT_TIOUS, metavar="T", help="IoU thresholds "
                        f"(default: {' '.join(map(str, DEFAULT_TIOUS))})")
    parser.add_argument("--split", metavar="NAME", help="subset of the annotations (default: the one that has the predicted "
                        "videos); for a THUMOS14 folder test or val")
    parser.add_argument("--labels-from", metavar="JSON", help="with a THUMOS14 folder: the annotation JSON whose class ids the "
                        "predictions use (default: the ids of detclasslist.txt)")
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument("--class-scores", metavar="FILE", help="drop the predicted labels and fuse the segments with these "
                         "class scores per video (.json, .npy, .pkl; annotation JSON only)")
    classes.add_argument("--class-agnostic", action="store_true", help="treat all labels as one class (annotation JSON only)")
    parser.add_argument("--count-ambiguous", action="store_true",
                        help="thumos14 protocol: count detections on Ambiguous segments as false positives")
    parser.add_argument("--unique-rank-scores", action="store_true",
                        help="replace each score by its rank (stable, file order), so that no two are equal")
    parser.add_argument("--per-class", action="store_true", help="print the average precision of every class too")
    parser.add_argument("--json", metavar="OUT", help="write everything to a JSON file (rates as fractions of 1)")
    return parser


def _against_json(args: argparse.Namespace) -> tuple[Detections, Truth]:
    if args.labels_from:
        raise UserError(f"{args.annotations}: --labels-from goes with a THUMOS14 folder only; leave it out")
    annotations = load_annotations(args.annotations)
    detections = read_predictions(args.predictions, annotations.label_ids, bool(args.class_scores) or args.class_agnostic)
    if args.class_scores:
        scores = load_external_scores(args.class_scores, annotations.label_ids, np.unique(detections.video_id).tolist())
        detections = fuse_external_scores(detections, scores, source=args.class_scores, keep_unscored=False)
    subsets = annotations.subset_counts()
    if args.split is not None:
        split = args.split.lower()
        if split not in subsets:
            raise UserError(f"{args.annotations}: has no split {args.split!r}; it has {', '.join(sorted(subsets))}")
    elif len(subsets) == 1:
        split = next(iter(subsets))
    else:
        predicted = Counter(annotations.videos[video].subset for video in set(detections.video_id.tolist())
                            if video in annotations.videos)
        if len(predicted) != 1:
            found = ", ".join(f"{name} ({count} videos)" for name, count in sorted(predicted.items())) or "none of its splits"
            raise UserError(f"{args.predictions}: has predictions for {found}; choose one of {', '.join(sorted(subsets))} with "
                            "--split")
        split = next(iter(predicted))
    videos = [video for video in annotations.videos.values() if video.subset == split]
    truth = GroundTruth.from_videos(((v.id, v.segments, v.labels) for v in videos), args.annotations)
    if args.class_agnostic:
        truth = dataclasses.replace(truth, label=np.zeros_like(truth.label))
    label_ids = {"any class": 0} if args.class_agnostic else annotations.label_ids
    return detections, Truth(split, truth, None, frozenset(v.id for v in videos), label_ids)


def _against_folder(args: argparse.Namespace) -> tuple[Detections, Truth]:
    if args.class_scores or args.class_agnostic:
        raise UserError(f"{args.annotations}: --class-scores and --class-agnostic go with an annotation JSON; leave them out")
    official = load_thumos14_folder(args.annotations, args.split)
    if args.labels_from:
        ids = load_annotations(args.labels_from).label_ids
        detections = read_predictions(args.predictions, ids)
        official_id = {class_id: official.label_ids.get(name, -1) for name, class_id in ids.items()}
        labels = np.array([official_id.get(label, -1) for label in detections.label.tolist()], np.int64)
        detections = dataclasses.replace(detections, label=labels)
    else:
        detections = read_predictions(args.predictions, official.label_ids)
        lowest = min(official.label_ids.values())
        if len(detections) and detections.label.min() < lowest:
            raise UserError(f"{args.predictions}: has the class id {detections.label.min()}, but the ids of {args.annotations} "
                            f"begin at {lowest}; if the ids are those of an annotation JSON, name it with --labels-from")
    return detections, Truth(official.subset, official.ground_truth, official.ambiguous, official.video_ids, official.label_ids)


def _warn_about_videos(detections: Detections, truth: Truth) -> None:
    predicted, counts = np.unique(detections.video_id, return_counts=True)
    strange = np.array([video not in truth.videos for video in predicted.tolist()], bool)
    if strange.any():
        some = ", ".join(predicted[strange][:5].tolist()) + (", ..." if strange.sum() > 5 else "")
        warnings.warn(f"{counts[strange].sum()} predictions of {strange.sum()} videos that split {truth.split} does not have "
                      f"count as false positives ({some})", stacklevel=2)


if __name__ == "__main__":
    run_main(main)
