"""Score a predictions file against annotations, or compare what several results were measured under.

    python tools/evaluate.py ckpt/thumos_i3d_run/predictions.json data/thumos/annotations/thumos14.json
    python tools/evaluate.py detections.csv.gz annotation_test/ --protocol thumos14 --tiou 0.5 --json scores.json
    python tools/evaluate.py predictions.json anet1.3.json --class-scores cuhk_val_simp_share.json --tiou 0.5 0.75 0.95
    python tools/evaluate.py predictions.json thumos14.json --protocol all
    python tools/evaluate.py --results ours/results.json theirs.json

PREDICTIONS: ActivityNet JSON, CSV (video_id,t_start,t_end,label,score; may be .gz) or the published result pickle; labels are
class names or ids.  ANNOTATIONS: an annotation JSON, or the official THUMOS14 folder of <Class>_test.txt files.
Protocols: activitynet; thumos14 (the challenge's); opentad (activitynet without the two test videos of THUMOS14 that OpenTAD's
tables leave out); all: the three in one table.  --results: JSON files of eval.py or of --json.
"""
from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from libs.core.arguments import refuse_repeated, refuse_source
from libs.core.errors import UserError, note, run_main
from libs.datasets.ground_truth import (
    TIES,
    AnnotatedSplit,
    check_time_unit,
    check_videos,
    read_with_ground_truth,
    settle_ties,
    without_videos,
)
from libs.datasets.survey.parts import read_excluded
from libs.utils.evaluation.conditions import OPENTAD_LEFT_OUT, chosen_on_reported, conditions, conditions_text, differences
from libs.utils.evaluation.metrics import DEFAULT_TIOUS, Scores, evaluate_detections, unique_rank_scores
from libs.utils.evaluation.predictions import Detections
from libs.utils.evaluation.thumos_protocol import evaluate_thumos14
from libs.utils.files.io import read_json, write_json_atomic
from libs.utils.tables import format_table

PROTOCOLS = ("activitynet", "thumos14", "opentad")
OPENTAD_CAP = 2000  # segments per video in OpenTAD's THUMOS14 configurations


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    if args.results:
        if args.predictions or args.json:
            raise UserError("--results: takes result files alone; leave PREDICTIONS, ANNOTATIONS and --json out")
        compare_results(args.results)
        return
    if not args.annotations:
        raise UserError("PREDICTIONS ANNOTATIONS: name both files, or --results with the JSON files of evaluations")
    refuse_source(args.json, args.predictions, args.annotations, args.labels_from, args.class_scores, args.exclude)
    refuse_repeated("--tiou", args.tiou)
    if args.count_ambiguous and args.protocol not in ("thumos14", "all"):
        raise UserError("--count-ambiguous: goes with --protocol thumos14 only; add that, or leave it out")
    (detections,), annotated = read_with_ground_truth([args.predictions], args.annotations, args.split, args.labels_from,
                                                       args.class_scores, args.class_agnostic, args.merge_labels)
    excluded: frozenset[str] = frozenset()
    if args.exclude:
        excluded = read_excluded(args.exclude, annotated.videos | set(annotated.elsewhere), args.annotations) & annotated.videos
        annotated, detections = annotated.without(excluded), without_videos(detections, excluded)
    check_videos(detections, annotated, args.predictions)
    check_time_unit(detections, annotated, args.predictions)
    detections = settle_ties(detections, args.predictions, args.ties)
    if args.unique_rank_scores:
        detections = dataclasses.replace(detections, score=unique_rank_scores(detections.score))
    chosen = PROTOCOLS if args.protocol == "all" else (args.protocol,)
    found = {protocol: score(protocol, detections, annotated, args, excluded) for protocol in chosen}
    if args.protocol == "all":
        print(_one_table(found))
    else:
        ((scores, about),) = found.values()
        print(f"{args.protocol} protocol, split {annotated.split}: {scores.counts['predictions']} predictions, "
              f"{scores.counts['ground_truth']} segments, {about['videos']} videos, {len(scores.class_ids)} classes (percent)")
        print(scores.table(args.per_class))
    for _, about in found.values():
        print(conditions_text(about))
    if args.json:
        parts = {protocol: {**scores.as_dict(), "conditions": about} for protocol, (scores, about) in found.items()}
        content = {"protocols": parts} if args.protocol == "all" else parts[args.protocol]
        write_json_atomic(args.json, {"predictions": args.predictions, "annotations": args.annotations,
                                      "protocol": args.protocol, "split": annotated.split, **content})


def score(protocol: str, detections: Detections, annotated: AnnotatedSplit, args: argparse.Namespace,
          excluded: Collection[str]) -> tuple[Scores, dict[str, Any]]:
    """The scores by a protocol, and what they were measured under."""
    names, left_out = annotated.label_names(), {f"--exclude {args.exclude}": excluded}
    if protocol == "opentad":
        known = annotated.videos | set(annotated.elsewhere) | set(excluded)
        if OPENTAD_LEFT_OUT[0] not in known:
            raise UserError(f"{args.annotations}: has no {OPENTAD_LEFT_OUT[0]}, so it is not THUMOS14; the opentad protocol is "
                            "for its test split alone: use --protocol activitynet")
        dropped = annotated.videos & set(OPENTAD_LEFT_OUT)
        annotated, detections = annotated.without(dropped), without_videos(detections, dropped)
        left_out["the opentad protocol"] = dropped
    most = int(np.unique(detections.video_id, return_counts=True)[1].max(initial=0))
    if protocol == "opentad" and most < OPENTAD_CAP:
        note(f"note: {args.predictions}: has at most {most} segments per video; OpenTAD's tables have up to {OPENTAD_CAP}, which "
             f"eval.py -t {OPENTAD_CAP} writes")
    if protocol == "thumos14":
        ambiguous = None if args.count_ambiguous else annotated.ambiguous
        scores = evaluate_thumos14(detections, annotated.ground_truth, args.tiou, ambiguous, names)
    else:
        scores = evaluate_detections(detections, annotated.ground_truth, args.tiou, label_names=names)
    return scores, conditions(protocol, args.annotations, [annotated.split], len(annotated.videos), scores, most, left_out,
                              args.class_scores)


def compare_results(paths: Sequence[str]) -> None:
    """Print the average mAP of several result files, and in a line each why two of them cannot be compared.

    UserError for a file that does not hold what its number was measured under.
    """
    found = {}
    for path in paths:
        content = read_json(path, "results file")
        parts = content.get("protocols", {"": content}) if isinstance(content, dict) else {}
        for name, part in parts.items():
            if not isinstance(part, dict) or not {"conditions", "average_mAP"} <= set(part):
                raise UserError(f"{path}: does not say what its mAP was measured under (conditions); evaluate again with eval.py "
                                "or tools/evaluate.py --json")
            found[f"{path} {name}".strip()] = part
    print(format_table([[name, 100 * part["average_mAP"], part["conditions"].get("chosen", "-")] for name, part in found.items()],
                       ["result", "average mAP", "epoch"], left=("epoch",)))
    (first, one), *others = found.items()
    for name, part in others:
        reasons = differences(one["conditions"], part["conditions"])
        print(f"{first} and {name}: " + (f"not comparable: {'; '.join(reasons)}" if reasons else "comparable"))
    for name, part in found.items():
        if chosen_on_reported(part["conditions"]):
            print(f"{name}: not comparable with others: its epoch was chosen by mAP on the split that it reports")


def _one_table(found: dict[str, tuple[Scores, dict[str, Any]]]) -> str:
    """mAP per tIoU and average, a row per protocol."""
    tious = next(iter(found.values()))[0].tious
    rows = [[protocol, about["videos"], about["ground_truth"], *(100 * scores.mAP).tolist(), 100 * scores.average_mAP]
            for protocol, (scores, about) in found.items()]
    return format_table(rows, ["mAP (percent)", "videos", "segments", *(f"{t:.2f}" for t in tious), "average"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", metavar="PREDICTIONS", nargs="?")
    parser.add_argument("annotations", metavar="ANNOTATIONS", nargs="?")
    parser.add_argument("--protocol", choices=(*PROTOCOLS, "all"), default="activitynet",
                        help="thumos14: ground truth in file order, IoU above the threshold, detections on Ambiguous segments "
                             f"dropped, no interpolation; opentad: activitynet without {' and '.join(OPENTAD_LEFT_OUT)}; all: "
                             "these in one table (default: activitynet)")
    parser.add_argument("--exclude", metavar="FILE", help="leave out the videos of this file, one id per line")
    parser.add_argument("--results", nargs="+", metavar="JSON", help="compare what these results were measured under: files of "
                        "eval.py (results.json) or of --json")
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
