#!/usr/bin/env python3
"""Turn annotations of other tools into the JSON that this program reads.

    python tools/convert_annotations.py labels.csv -o data/my/annotations.json --val-share 0.2 --group person
    python tools/convert_annotations.py elan/*.eaf -o data/my/annotations.json --tier actions
    python tools/convert_annotations.py project-1.json -o data/my/annotations.json --fps 25          (Label Studio)
    python tools/convert_annotations.py export/labels.json -o data/my/annotations.json --fps 30      (FiftyOne)

Formats: CSV (video,start,end,label), ELAN .eaf, Label Studio JSON and JSON-MIN, FiftyOne temporal detections; the format is
detected from the contents.  Afterwards, check annotations and features with tools/check_dataset.py.
"""
from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping

from libs.core.arguments import above_zero, refuse_existing, refuse_source, share
from libs.core.errors import UserError, note, run_main
from libs.datasets.annotations import check_database
from libs.datasets.convert.readers import FORMATS, read_source, source_files
from libs.datasets.convert.rows import UNITS, ConvertOptions, Row, entries_of, feature_durations, to_document, with_merged_labels
from libs.datasets.convert.video_info import read_durations
from libs.datasets.features.provenance import VideoTiming, combined, read_provenance
from libs.datasets.survey.features import guess_layout
from libs.utils.files.io import write_json_atomic

COLUMNS = ("video", "start", "end", "label", "subset", "duration", "fps")


def main() -> None:
    args = parse()
    refuse_source(args.output, *source_files(args.input), args.durations)
    refuse_existing(args.output, args.overwrite)
    options = ConvertOptions(args.time_unit, args.fps, dict(args.columns), args.tier, args.label_from, args.subset,
                             args.val_share, args.ids, args.group)
    if args.group and not args.val_share:
        raise UserError(f"--group {args.group}: goes with --val-share, the share that becomes validation; add it")
    kind, rows = read_source(args.input, args.format, options)
    if args.tier and kind != "eaf":
        raise UserError(f"--tier {' '.join(args.tier)}: is for ELAN files, but {', '.join(args.input)} is {kind}; leave it out")
    _warn_of_repeated(rows)
    rows = with_merged_labels(rows) if args.merge_labels else rows
    lengths = read_durations(args.durations, args.ids) if args.durations else {}
    rows += [Row(args.durations, vid) for vid in lengths]  # those without a segment have no actions
    if args.features:
        known = {vid: lengths.get(vid, VideoTiming()).or_else(VideoTiming(entry["fps"], entry["duration"]))
                 for vid, entry in entries_of(rows).items()}
        covered = feature_lengths(args, known, None if any(row.unit == "frames" for row in rows) else args.fps)
        lengths = {vid: lengths.get(vid, VideoTiming()).or_else(covered.get(vid, VideoTiming())) for vid in known}
    document = to_document(rows, options, lengths, ", ".join(args.input))
    found = check_database(document["database"], ", ".join(args.input))  # warns of suspicious segments
    write_json_atomic(args.output, document)
    subsets = ", ".join(f"{name} {count}" for name, count in found.subset_counts().items())
    print(f"{kind}: {len(found.videos)} videos ({subsets}), {sum(len(v.segments) for v in found.videos.values())} segments, "
          f"{len(found.label_ids)} classes: {', '.join(found.label_ids)}")
    for key, remedy in (("fps", "--fps (or a column fps, --durations or --features)"), ("duration", "--durations or --features")):
        if unknown := sum(key not in entry for entry in document["database"].values()):
            print(f"{unknown} videos have no {key}; {remedy} adds it")
    print(f"written to {args.output}")


def _warn_of_repeated(rows: list[Row]) -> None:
    """One warning for segments that occur twice, as in a file that is named twice."""
    counts = Counter((row.video, row.start, row.end, row.label) for row in rows if row.label is not None)
    repeated = [(key, n) for key, n in counts.items() if n > 1]
    if repeated:
        (video, start, end, label), n = repeated[0]
        note(f"warning: {len(repeated)} segments occur more than once and are all written (first: {label!r} of video {video!r}, "
             f"{start} to {end}, {n} times); remove the repetitions, or name each file once")


def feature_lengths(args: argparse.Namespace, known: Mapping[str, VideoTiming], fps: float | None) -> dict[str, VideoTiming]:
    """What features tell of videos, by id; UserError where options and provenance.json differ.

    known: what the annotations and --durations say of all videos; fps: of the features, if an option says so.
    """
    provenance = read_provenance(args.features)
    if provenance and provenance.videos:  # of tools/extract_features.py
        typed = VideoTiming(fps, None, args.feat_stride, args.num_frames)
        return {vid: combined(vid, typed, provenance.videos[vid], provenance.path) for vid in known if vid in provenance.videos}
    stride = args.feat_stride or (provenance.stride if provenance else None)
    num_frames = args.num_frames or (provenance.num_frames if provenance else None)
    rates = {vid: rate for vid, timing in known.items() if (rate := args.fps or timing.fps)}
    lacking = [vid for vid, timing in known.items() if timing.duration_s is None]
    if not (stride and num_frames and rates.keys() >= set(lacking)):
        if not lacking:
            return {}
        raise UserError(f"{args.features}: no provenance.json there says how long {len(lacking)} videos are (first: "
                        f"{lacking[0]!r}); add --feat-stride, --num-frames and --fps (or a column fps), or durations (a column "
                        "duration, or --durations)")
    layout = guess_layout(args.features, list(known))
    return feature_durations(args.features, rates, layout.prefix, layout.extension, stride, num_frames)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="INPUT", nargs="+", help="exported files, or a folder of .eaf files or of a FiftyOne "
                        "export")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="JSON to write")
    parser.add_argument("--overwrite", action="store_true", help="OUT may exist")
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="format of INPUT (auto)")
    parser.add_argument("--columns", nargs="+", type=column, default=[], metavar="FIELD=NAME",
                        help=f"CSV: the file's own column names; fields: {', '.join(COLUMNS)}")
    parser.add_argument("--time-unit", choices=UNITS, help="of CSV numbers, Label Studio time series and FiftyOne timestamps (s)")
    parser.add_argument("--fps", type=above_zero, metavar="F", help="frames per second of videos without their own")
    parser.add_argument("--tier", nargs="+", default=[], metavar="NAME", help="ELAN: tiers to read")
    parser.add_argument("--label-from", choices=("value", "tier"), default="value",
                        help="ELAN: labels are the annotations' values (default), or the names of their tiers")
    parser.add_argument("--merge-labels", action="store_true", help="write one spelling of labels that differ in case, spaces, "
                        "hyphens or Unicode composition only")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--subset", metavar="NAME", help="subset of all videos without one (training)")
    group.add_argument("--val-share", type=share, metavar="P", help="this share of the videos becomes validation, chosen by a "
                       "hash of their ids, the rest training")
    parser.add_argument("--group", metavar="NAME|REGEX", help="with --val-share: a column of the CSV, or a regular expression on "
                        "the ids (its group 1, if any), that names the person or place; all videos of one share a subset")
    parser.add_argument("--ids", choices=("path", "stem"), help="ids of videos: path with folders, or bare name even where "
                        "several files share it (the bare name, and an error where files share it)")
    parser.add_argument("--durations", metavar="FILE", help="columns video,duration (s),fps of a CSV, an annotation JSON or a "
                        "provenance.json; videos that only this file names become videos without actions")
    parser.add_argument("--features", metavar="FOLDER", help="take durations and fps from the provenance.json there; without "
                        "it durations, from --feat-stride, --num-frames and --fps (or a column fps)")
    parser.add_argument("--feat-stride", type=above_zero, metavar="N")
    parser.add_argument("--num-frames", type=above_zero, metavar="N")
    return parser.parse_args()


def column(text: str) -> tuple[str, str]:
    field, equals, name = text.partition("=")
    if field not in COLUMNS or not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: expected FIELD=NAME with a field of {', '.join(COLUMNS)}")
    return field, name


if __name__ == "__main__":
    run_main(main)
