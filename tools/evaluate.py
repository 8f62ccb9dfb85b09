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
from collections.abc import Sequence

from libs.core.arguments import refuse_repeated, refuse_source
from libs.core.errors import UserError, run_main
from libs.datasets.ground_truth import TIES, check_time_unit, check_videos, read_with_ground_truth, settle_ties
from libs.utils.evaluation.metrics import DEFAULT_TIOUS, evaluate_detections, unique_rank_scores
from libs.utils.evaluation.thumos_protocol import evaluate_thumos14
from libs.utils.files.io import write_json_atomic


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    refuse_source(args.json, args.predictions, args.annotations, args.labels_from, args.class_scores)
    refuse_repeated("--tiou", args.tiou)
    if args.count_ambiguous and args.protocol != "thumos14":
        raise UserError("--count-ambiguous: goes with --protocol thumos14 only; add that, or leave it out")
    (detections,), annotated = read_with_ground_truth([args.predictions], args.annotations, args.split, args.labels_from,
                                                       args.class_scores, args.class_agnostic, args.merge_labels)
    check_videos(detections, annotated, args.predictions)
    check_time_unit(detections, annotated, args.predictions)
    detections = settle_ties(detections, args.predictions, args.ties)
    if args.unique_rank_scores:
        detections = dataclasses.replace(detections, score=unique_rank_scores(detections.score))
    names = annotated.label_names()
    if args.protocol == "thumos14":
        ambiguous = None if args.count_ambiguous else annotated.ambiguous
        scores = evaluate_thumos14(detections, annotated.ground_truth, args.tiou, ambiguous, names)
    else:
        scores = evaluate_detections(detections, annotated.ground_truth, args.tiou, label_names=names)
    print(f"{args.protocol} protocol, split {annotated.split}: {scores.counts['predictions']} predictions, "
          f"{scores.counts['ground_truth']} segments, {len(annotated.videos)} videos, {len(scores.class_ids)} classes (percent)")
    print(scores.table(args.per_class))
    if args.json:
        write_json_atomic(args.json, {"predictions": args.predictions, "annotations": args.annotations,
                                      "protocol": args.protocol, "split": annotated.split, **scores.as_dict()})


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
    parser.add_argument("--merge-labels", action="store_true", help="labels of the annotations that differ in case, spaces, "
                        "hyphens or Unicode composition only are one class (annotation JSON only)")
    parser.add_argument("--count-ambiguous", action="store_true",
                        help="thumos14 protocol: count detections on Ambiguous segments as false positives")
    parser.add_argument("--ties", choices=TIES, default="file", help="equal scores of a class count in the order of the file's "
                        "rows (default), or by video id, start and end (segment): the same for any order of rows")
    parser.add_argument("--unique-rank-scores", action="store_true",
                        help="replace each score by its rank (stable, in the order of --ties), so that no two are equal")
    parser.add_argument("--per-class", action="store_true", help="print the average precision of every class too")
    parser.add_argument("--json", metavar="OUT", help="write everything to a JSON file (rates as fractions of 1)")
    return parser


if __name__ == "__main__":
    run_main(main)
