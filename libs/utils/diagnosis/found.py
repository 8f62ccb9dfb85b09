"""Detections without ground truth as plain numbers, for the page of them.

    page(found_content("Actions in holiday", "model.pth.tar", detections, label_names, durations_s, media), "predictions")
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from libs.utils.evaluation.columns import rows_by_video
from libs.utils.evaluation.predictions import Detections

MOST = 200  # detections of a video that the page holds


def found_content(title: str, source: str, detections: Detections, label_names: Mapping[int, str],
                  durations_s: Mapping[str, float], media: Mapping[str, str | Path], threshold: float | None = None,
                  most: int = MOST) -> dict[str, Any]:
    """Content of the page `predictions`: the `most` best detections of each video, and the classes that could be found.

    source: the checkpoint; durations_s: of every video; media: the video file of each video that has one; threshold: the score at
    which the page's slider stands at first, None: a quarter of the best one.
    """
    numbers = sorted(label_names)
    place = {number: i for i, number in enumerate(numbers)}
    rows = rows_by_video(detections.video_id, np.arange(len(detections)), -detections.score)
    videos = []
    for name, duration in durations_s.items():
        here = rows.get(name, np.empty(0, np.int64))
        best = here[:most]
        columns = {"start": detections.t_start[best].round(3).tolist(), "end": detections.t_end[best].round(3).tolist(),
                   "class": [place[i] for i in detections.label[best].tolist()],
                   "score": detections.score[best].round(5).tolist()}
        entry = {"id": name, "duration": round(float(duration), 3), "predictions": [{**columns, "total": len(here)}],
                 "ground_truth": {"start": [], "end": [], "class": [], "found": []}}
        videos.append({**entry, "media": media_url(media[name])} if name in media else entry)
    return {"title": title, "classes": [label_names[i] for i in numbers], "threshold": threshold,
            "predictions": [{"name": "checkpoint", "file": source}], "timeline": {"most": most, "videos": videos}}


def media_url(path: str | Path) -> str:
    """The address of a file on this computer, for a page."""
    return Path(path).resolve().as_uri()
