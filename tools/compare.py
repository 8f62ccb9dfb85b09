"""Is B really better than A?  Compare the predictions of two methods on the same videos, and on random halves of them.

    python tools/compare.py A.json B.json data/thumos/annotations/thumos14.json
    python tools/compare.py A0.json B0.json thumos14.json --more-a A1.json A2.json --more-b B1.json B2.json

Prints average mAP of both, their difference (B - A) with its 95 % interval, the probability that B is better, and how many videos
it takes to see a difference of this size (at 95 %, with a chance of 80 %); also for each tIoU and class.  Several seeds of a
method (--more-a, --more-b) count as their mean, and the noise of training is part of the interval.
A, B, ANNOTATIONS: as for tools/evaluate.py, by the ActivityNet rules.  docs/comparing.md explains it.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from libs.core.arguments import count, refuse_repeated, refuse_source
from libs.core.errors import UserError, run_main
from libs.datasets.ground_truth import TIES, check_time_unit, check_videos, read_with_ground_truth, settle_ties
from libs.utils.evaluation.metrics import DEFAULT_TIOUS, evaluate_detections
from libs.utils.files.io import write_json_atomic
from libs.utils.significance.bootstrap import video_codes
from libs.utils.significance.comparison import RESAMPLES, compare


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    first, second = [args.a, *args.more_a], [args.b, *args.more_b]
    files = [*first, *second]
    refuse_source(args.json, *files, args.annotations, args.labels_from)
    refuse_repeated("--tiou", args.tiou)
    refuse_repeated("predictions files", files)
    found, annotated = read_with_ground_truth(files, args.annotations, args.split, args.labels_from,
                                              merge_labels=args.merge_labels)
    sides: list[list] = [[], []]
    for i, (path, detections) in enumerate(zip(files, found, strict=True)):
        check_videos(detections, annotated, path)
        check_time_unit(detections, annotated, path)
        detections = settle_ties(detections, path, args.ties)
        scores = evaluate_detections(detections, annotated.ground_truth, args.tiou, label_names=annotated.label_names())
        sides[i >= len(first)].append((detections, scores))
    videos = video_codes(annotated.videos, *(detections.video_id.tolist() for detections, _ in (*sides[0], *sides[1])))
    result = compare(*sides, videos, tuple(args.names), args.paired, args.resamples, args.seed)
    print(f"split {annotated.split}: {len(videos)} videos, {len(first)} and {len(second)} runs, {args.resamples} resamples "
          "(percent)")
    print(f"{result.table()}\n{result.verdict()}")
    if args.json:
        write_json_atomic(args.json, {"predictions_A": first, "predictions_B": second, "annotations": args.annotations,
                                      "split": annotated.split, **result.as_dict()})


def _resamples(text: str) -> int:
    if count(text) < 100:
        raise UserError(f"--resamples {text}: an interval takes 100 or more; leave it out for {RESAMPLES}")
    return count(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="predictions of one method")
    parser.add_argument("b", metavar="B", help="predictions of the other")
    parser.add_argument("annotations", metavar="ANNOTATIONS")
    parser.add_argument("--more-a", nargs="+", default=[], metavar="FILE", help="predictions of A's other seeds")
    parser.add_argument("--more-b", nargs="+", default=[], metavar="FILE", help="predictions of B's other seeds")
    parser.add_argument("--paired", action="store_true", help="the seeds of A and B belong together one by one, in this order "
                        "(two evaluations of one run, a student of its teacher): their differences count")
    parser.add_argument("--names", nargs=2, default=("A", "B"), metavar=("NAME_A", "NAME_B"), help="names in the table (A B)")
    parser.add_argument("--tiou", type=float, nargs="+", default=DEFAULT_TIOUS, metavar="T", help="IoU thresholds "
                        f"(default: {' '.join(map(str, DEFAULT_TIOUS))})")
    parser.add_argument("--split", metavar="NAME", help="subset of the annotations (default: the one that has A's videos)")
    parser.add_argument("--labels-from", metavar="JSON", help="with a THUMOS14 folder: the annotation JSON whose class ids the "
                        "predictions use")
    parser.add_argument("--merge-labels", action="store_true", help="as in tools/evaluate.py")
    parser.add_argument("--ties", choices=TIES, default="file", help="as in tools/evaluate.py")
    parser.add_argument("--resamples", type=_resamples, default=RESAMPLES, metavar="N", help=f"of the videos ({RESAMPLES})")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the resamples (0)")
    parser.add_argument("--json", metavar="OUT", help="write everything to a JSON file (rates as fractions of 1)")
    return parser


if __name__ == "__main__":
    run_main(main)
