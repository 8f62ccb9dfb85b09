"""Diagnose detections: an HTML page with a timeline, curves and an analysis of errors, and its numbers as JSON.

    python tools/diagnose.py ckpt/demo_first/eval/epoch_030_ema/predictions.json data/demo/annotations/demo.json -o report.html
    python tools/diagnose.py ours.json thumos14.json --compare theirs.csv --buckets thumos14 --png-folder figures -o report.html

PREDICTIONS and ANNOTATIONS: as for tools/evaluate.py, with the same mAP.  Writes the page (self-contained, works offline) and
the numbers beside it as report.json; --png-folder also writes PNG figures.  docs/diagnosis.md explains every part.
"""
from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from libs.core.arguments import refuse_repeated, refuse_source
from libs.core.errors import UserError, run_main
from libs.core.files import entries, is_folder
from libs.datasets.ground_truth import TIES, AnnotatedSplit, check_fit, check_videos, read_with_ground_truth, settle_ties
from libs.utils.diagnosis.analysis import diagnose
from libs.utils.diagnosis.characteristics import BUCKETS
from libs.utils.diagnosis.figures import write_figures
from libs.utils.diagnosis.found import media_url
from libs.utils.diagnosis.html_page import page
from libs.utils.diagnosis.report import Subject, report, summary, timeline
from libs.utils.evaluation.metrics import DEFAULT_TIOUS, unique_rank_scores
from libs.utils.files.io import check_writable, write_json_atomic, write_text_atomic

ENDING = re.compile(r"\.(json|csv|pkl|pickle)(\.gz)?$", re.IGNORECASE)
OUR_FILES = ("predictions", "eval_results")  # written by eval.py in every run
VIDEO_ENDINGS = (".mp4", ".webm", ".mkv", ".mov", ".m4v", ".ogv", ".avi")


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    refuse_repeated("--tiou", args.tiou)
    files = [args.predictions, *([args.compare] if args.compare else [])]
    names = _names(files, args.names)
    out = Path(args.output)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"-o {out}: name the page *.html; the numbers are written beside it as .json")
    for written in (out, out.with_suffix(".json")):
        refuse_source(written, *files, args.annotations)
    for written in (out, *([Path(args.png_folder, "map.png")] if args.png_folder else [])):
        check_writable(written)
    if args.most_drawn < 1:
        raise UserError(f"--most-drawn {args.most_drawn}: must be at least 1")
    found, annotated = read_with_ground_truth(files, args.annotations, args.split, args.labels_from,
                                              merge_labels=args.merge_labels)
    subjects = []
    for path, name, detections in zip(files, names, found, strict=True):
        detections = settle_ties(detections, path, args.ties)
        if args.unique_rank_scores:
            detections = dataclasses.replace(detections, score=unique_rank_scores(detections.score))
        check_fit(detections, annotated, path, args.allow_unknown)
        check_videos(detections, annotated, path)
        found_here = diagnose(detections, annotated.ground_truth, args.tiou, annotated.label_names())
        subjects.append(Subject(name, detections, found_here))
    content = _content(args, files, subjects, annotated)
    drawn = timeline(subjects, annotated.videos, annotated.durations_s, args.most_drawn)
    if args.video_folder:
        _add_media(drawn, Path(args.video_folder))
    text = page({**content, "timeline": drawn})
    print(summary(content), flush=True)  # before writing, which may fail
    write_json_atomic(out.with_suffix(".json"), content, indent=None)
    if args.png_folder:
        write_figures(content, Path(args.png_folder))
    write_text_atomic(out, text)
    print(f"written: {out} ({len(text.encode()) / 1e6:.1f} MB), {out.with_suffix('.json')}"
          + (f", {args.png_folder}/*.png" if args.png_folder else ""), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", metavar="PREDICTIONS")
    parser.add_argument("annotations", metavar="ANNOTATIONS")
    parser.add_argument("-o", "--output", required=True, metavar="HTML", help="the page to write, e.g. report.html")
    parser.add_argument("--compare", metavar="PREDICTIONS2", help="a second predictions file, shown beside the first")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="names in the report (default: from the file names)")
    parser.add_argument("--tiou", type=float, nargs="+", default=DEFAULT_TIOUS, metavar="T",
                        help=f"IoU thresholds (default: {' '.join(map(str, DEFAULT_TIOUS))})")
    parser.add_argument("--split", metavar="NAME", help="subset of the annotations (default: that of the predicted videos)")
    parser.add_argument("--labels-from", metavar="JSON", help="with a THUMOS14 folder: the annotation JSON whose class ids the "
                        "predictions use")
    parser.add_argument("--merge-labels", action="store_true", help="labels of the annotations that differ in spelling only are "
                        "one class, as in tools/evaluate.py")
    parser.add_argument("--buckets", choices=BUCKETS, default="quantiles", help="of length, coverage and number of instances: "
                        "five of equal number of segments (quantiles), or the bounds for a dataset in docs/diagnosis.md")
    parser.add_argument("--video-folder", metavar="DIR", help="where <video id>.mp4 (.webm, .mkv, ...) are, played in step "
                        "with the timeline; the page refers to their paths on this computer")
    parser.add_argument("--png-folder", metavar="DIR", help="write the figures there as PNG files")
    parser.add_argument("--most-drawn", type=int, default=200, metavar="N", help="predictions per video and file that the "
                        "timeline holds, best first (200); all are counted everywhere else")
    parser.add_argument("--allow-unknown", action="store_true", help="count predictions of videos that the annotations do not "
                        "have as false positives, as tools/evaluate.py does, instead of refusing them")
    parser.add_argument("--ties", choices=TIES, default="file", help="equal scores of a class count in the order of the file's "
                        "rows (default), or by video id, start and end (segment): the same for any order of rows")
    parser.add_argument("--unique-rank-scores", action="store_true",
                        help="replace each score by its rank (stable, in the order of --ties): for scores outside [0, 1]")
    return parser


def _names(files: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """The given names, else those of the files, with as many of their folders as it takes to tell them apart."""
    if given is not None:
        if len(given) != len(files) or len(set(given)) != len(given):
            raise UserError(f"--names {' '.join(given)}: expected {len(files)} different names, one per predictions file")
        return list(given)
    paths = [Path(file) for file in files]
    for depth in (0, 1, 2, 3):
        names = [_name(path, depth) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{chr(ord('A') + i)}: {path.name}" for i, path in enumerate(paths)]


def _name(path: Path, depth: int) -> str:
    """ckpt/first/eval/epoch_030_ema/predictions.json -> first/epoch_030_ema; other names keep `depth` folders."""
    stem, folders = ENDING.sub("", path.name), [part for part in path.parts[:-1] if part not in ("eval", path.anchor)]
    if stem in OUR_FILES and folders:
        return "/".join(folders[-max(depth, 2):])
    return "/".join([*folders[max(len(folders) - depth, 0):], stem])


def _content(args: argparse.Namespace, files: Sequence[str], subjects: Sequence[Subject],
             annotated: AnnotatedSplit) -> dict[str, Any]:
    """The report, and the sources that the page names."""
    content = report(subjects, annotated.videos, annotated.durations_s, args.buckets)
    for one, file in zip(content["predictions"], files, strict=True):
        one["file"] = str(file)
    return {"title": "Diagnosis of " + " and ".join(s.name for s in subjects), "annotations": str(args.annotations),
            "split": annotated.split, "videos": len(annotated.videos),
            "ground_truth": subjects[0].diagnosis.scores.counts["ground_truth"], **content}


def _add_media(drawn: dict[str, Any], folder: Path) -> None:
    """Add to each video of the timeline the file in `folder` of its name."""
    if not is_folder(folder):
        raise UserError(f"--video-folder {folder}: no such folder")
    files = {path.stem: path for ending in reversed(VIDEO_ENDINGS) for path in entries(folder) if path.suffix == ending}
    here = [video for video in drawn["videos"] if video["id"] in files]
    if not here:
        raise UserError(f"--video-folder {folder}: has no file named after a video, such as {drawn['videos'][0]['id']}.mp4")
    for video in here:
        video["media"] = media_url(files[video["id"]])


if __name__ == "__main__":
    run_main(main)
