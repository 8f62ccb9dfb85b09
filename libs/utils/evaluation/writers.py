"""Write detections into one file for all videos (json, csv, pkl) or one file per video (srt, vtt, eaf).

Pages (html) and videos (mp4) are planned here, too, and written by libs/engine/inference/show.py.

    target = plan_output("out.json", None, ["a", "b"])     # fails before the work begins
    write_output(target, detections, label_names, videos)
"""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from libs.core.errors import UserError, nearest
from libs.core.files import is_folder
from libs.utils.evaluation.predictions import Detections, write_predictions
from libs.utils.evaluation.subtitles import eaf_text, srt_text, vtt_text
from libs.utils.files.io import check_writable, write_text_atomic

TABLES = (".json", ".csv", ".csv.gz", ".pkl")
PER_VIDEO = {".srt": srt_text, ".vtt": vtt_text, ".eaf": eaf_text}
PAGE, VIDEO = ".html", ".mp4"
KINDS = (*TABLES, *PER_VIDEO, PAGE, VIDEO)
FORMATS = tuple(kind.lstrip(".") for kind in KINDS)
NAME = "predictions"  # of a single file in a folder


@dataclass(frozen=True)
class Output:
    """kind: the file name extension; files: the single file, or one per video."""

    kind: str
    files: tuple[Path, ...]


def plan_output(path: str | os.PathLike, fmt: str | None, videos: Sequence[str]) -> Output:
    """The files to write: `path` itself, if it ends in a known format, or files of the format `fmt` in the folder `path`.

    Creates folders.  Raises UserError for an unknown format, one subtitle file for several videos, and paths that are not
    writable.
    """
    path = Path(path)
    if fmt is not None and fmt not in FORMATS:
        raise UserError(f"format {fmt!r} is not known{nearest(fmt, FORMATS)}; use {', '.join(FORMATS)}")
    ending = next((kind for kind in KINDS if path.name.lower().endswith(kind)), None)
    if is_folder(path) or (fmt is not None and f".{fmt}" != ending):
        if fmt is None:
            raise UserError(f"{path}: is a folder; say what to write there: --format {'|'.join(FORMATS)}")
        if ending is not None and not is_folder(path):
            raise UserError(f"{path}: ends in {ending}, but the format is {fmt}; leave one of them out, or name a folder")
        kind = f".{fmt}"
        files = tuple(path / f"{_file_name(v)}{kind}" for v in videos) if per_video(kind) else (path / f"{NAME}{kind}",)
    elif ending is None:
        shown = path.suffix or "no ending"
        raise UserError(f"{path}: {shown!r} is no known format{nearest(path.suffix, KINDS)}; end the name in "
                        f"{', '.join(KINDS)}, or name a folder and --format")
    else:
        kind, files = ending, (path,)
        if per_video(kind) and len(videos) > 1:
            raise UserError(f"{path}: one {kind} file holds one video, and there are {len(videos)}; name a folder and --format "
                            f"{kind[1:]}")
    for file in files:
        check_writable(file)
    return Output(kind, files)


def per_video(kind: str) -> bool:
    """True for a format of one file per video."""
    return kind in PER_VIDEO or kind == VIDEO


def write_output(output: Output, detections: Detections, label_names: Mapping[int, str], videos: Sequence[str]) -> None:
    """Write each file atomically, no page or video; a video without detections gets an empty list, or a file without cues."""
    if output.kind in TABLES:
        write_predictions(output.files[0], detections, label_names, videos)
    else:
        for file, video in zip(output.files, videos, strict=True):
            text = PER_VIDEO[output.kind](detections.take(detections.video_id == video), label_names)
            write_text_atomic(file, text)


def _file_name(video: str) -> str:
    if "/" in video or "\\" in video or video in ("", ".", ".."):
        raise UserError(f"video {video!r}: cannot be the name of a file; give the video another id")
    return video
