"""Detections for people: as a page with a timeline, or burnt into the video; other formats by libs/utils/evaluation/writers.py.

    write_found(plan_output("found.html", None, ids), detections, label_names, durations_s, media, "model.pth.tar")
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from libs.core.arguments import refuse_source
from libs.core.errors import UserError
from libs.datasets.video.labelled import write_labelled
from libs.utils.diagnosis.found import found_content
from libs.utils.diagnosis.html_page import page
from libs.utils.evaluation.predictions import Detections
from libs.utils.evaluation.subtitles import cues
from libs.utils.evaluation.writers import PAGE, VIDEO, Output, write_output
from libs.utils.files.io import write_text_atomic


def write_found(output: Output, detections: Detections, label_names: Mapping[int, str], durations_s: Mapping[str, float],
                media: Mapping[str, str], source: str, threshold: float | None = None) -> None:
    """Write each file of any format, completely or not at all.

    durations_s: of every video, in the order of the files; media: the file of each that is a video; source: the checkpoint;
    threshold: the score at which the page begins, None: a quarter of the best.  Raises UserError for a video of labels where
    there is no video, or in its place, and as `write_labelled`.
    """
    if output.kind == PAGE:
        title = "Actions in " + (next(iter(durations_s)) if len(durations_s) == 1 else f"{len(durations_s)} videos")
        content = found_content(title, source, detections, label_names, durations_s, media, threshold)
        write_text_atomic(output.files[0], page(content, "predictions"))
    elif output.kind == VIDEO:
        if lacking := [name for name in durations_s if name not in media]:
            raise UserError(f"{output.files[0]}: labels are drawn on pictures, and of {lacking[0]!r} there are features only; "
                            "name the video itself")
        for file, name in zip(output.files, durations_s, strict=True):
            refuse_source(file, *media.values())
            write_labelled(media[name], Path(file), cues(detections.take(detections.video_id == name), label_names))
    else:
        write_output(output, detections, label_names, list(durations_s))
