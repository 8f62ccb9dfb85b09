"""A picture of one video: predictions under the ground truth, for TensorBoard; drawn with Pillow, which TensorBoard needs too."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from libs.utils.plotting import COLOURS, ticks

WIDTH, GUTTER, MARGIN, TITLE = 900, 130, 14, 24
TRUTH, LANE, GAP, AXIS = 12, 40, 10, 22
MOST_CLASSES = 8
INK, SOFT, LINE = (28, 36, 48), (90, 100, 114), (217, 222, 229)


def timeline_image(title: str, ground_truth: tuple[np.ndarray, np.ndarray],
                   predictions: tuple[np.ndarray, np.ndarray, np.ndarray], label_names: Mapping[int, str]) -> np.ndarray:
    """(height, 900, 3) uint8: for each class a row of ground truths over a lane of predictions, whose height is the score.

    ground_truth: segments (N, 2) in seconds and labels (N,); predictions: segments (M, 2), labels (M,), scores (M,) in [0, 1].
    Classes of the ground truth come first, then those of the best predictions, `MOST_CLASSES` at most; a note counts the others.
    """
    segments, labels = ground_truth
    found, found_labels, scores = predictions
    classes = list(dict.fromkeys([*labels.tolist(), *found_labels[np.argsort(-scores, kind="stable")].tolist()]))
    shown = classes[:MOST_CLASSES]
    row = TRUTH + 4 + LANE + GAP
    height = TITLE + max(len(shown), 1) * row + AXIS
    image = Image.new("RGB", (WIDTH, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=12)
    more = f"   ({len(classes) - len(shown)} more classes predicted)" if len(classes) > len(shown) else ""
    draw.text((8, 5), _printable(title) + more, fill=INK, font=font)
    ends = np.concatenate([segments.reshape(-1, 2)[:, 1], found.reshape(-1, 2)[:, 1]])
    marks = ticks(0.0, max(float(ends.max(initial=0.0)), 1e-3), 8)
    scale = (WIDTH - GUTTER - MARGIN) / marks[-1]
    for mark in marks:
        x = GUTTER + mark * scale
        draw.line((x, TITLE, x, height - AXIS), fill=LINE)
        draw.text((x, height - AXIS + 4), f"{mark:g}", fill=SOFT, font=font, anchor="ma")
    for i, label in enumerate(shown):
        top = TITLE + i * row
        colour = COLOURS[i % len(COLOURS)]
        draw.text((8, top), _printable(label_names.get(label, str(label)))[:20], fill=INK, font=font)
        for start, end in segments[labels == label].tolist():
            left = GUTTER + start * scale
            draw.rectangle((left, top, max(GUTTER + end * scale, left + 1), top + TRUTH), fill=INK)
        lane = top + TRUTH + 4
        draw.rectangle((GUTTER, lane, WIDTH - MARGIN, lane + LANE), outline=LINE)
        mine = np.flatnonzero(found_labels == label)
        for k in mine[np.argsort(scores[mine], kind="stable")].tolist():  # the best on top
            y = lane + (LANE - 4) * (1 - float(np.clip(scores[k], 0, 1)))
            left = GUTTER + found[k, 0] * scale
            draw.rectangle((left, y, max(GUTTER + found[k, 1] * scale, left + 1), y + 4), fill=colour)
    return np.asarray(image)


def _printable(text: str) -> str:
    """Text on one line: Pillow's own font draws a box for what it lacks, but a line break would move the rest."""
    return " ".join(text.split())
