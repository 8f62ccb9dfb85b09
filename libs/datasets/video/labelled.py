"""A video with the labels of its detections burnt into the pictures.

    write_labelled("holiday.mp4", Path("labelled.mp4"), cues(detections, label_names))
"""
from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from libs.core.errors import note
from libs.datasets.video.decoding import probe, timed_pictures
from libs.datasets.video.encoding import write_video
from libs.utils.evaluation.subtitles import Cue

MOST = 3  # labels at a time, the best
FONT = "fonts/ttf/DejaVuSans.ttf"  # of matplotlib: Latin, Greek, Cyrillic; OpenCV would draw ASCII only
LINES = 16  # of text that would fit on a picture


def write_labelled(source: str, target: Path, cues: Sequence[Cue]) -> None:
    """Write the pictures of `source`, as a player shows them and at their times, with the best cues of each moment in a corner.

    Rate and size stay (an odd side gets one pixel more, which is said; pixels become square); sound is left out,
    which is said.  Raises UserError as `timed_pictures` and `write_video`.
    """
    info = probe(source)
    write_video(target, _labelled(source, cues), Fraction(info.fps).limit_denominator(10_000))
    odd = "" if info.width % 2 == info.height % 2 == 0 else "; its odd size was made even by one pixel"
    note(f"note: {target}: has the pictures of {source} with labels, without its sound{odd}")


def _labelled(source: str, cues: Sequence[Cue]) -> Iterator[tuple[np.ndarray, Fraction]]:
    for second, picture in timed_pictures(source):
        now = sorted((cue for cue in cues if cue.start_ms <= 1000 * second < cue.end_ms), key=lambda cue: -cue.score)[:MOST]
        yield (draw_labels(picture, [f"{cue.label} {cue.score:.2f}" for cue in now]) if now else picture), Fraction(second)


def draw_labels(picture: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """A copy of the picture (H, W, 3) uint8 with the texts below each other in its upper left corner, as far as they fit."""
    out, top = picture.copy(), 0
    for text in texts:
        box = _box(text, max(8, picture.shape[0] // LINES))[:picture.shape[0] - top, :picture.shape[1]]
        out[top:top + len(box), :box.shape[1]] = box
        top += len(box)
    return out


@functools.lru_cache(maxsize=512)
def _box(text: str, size: int) -> np.ndarray:
    """White text on black, (h, w, 3) uint8."""
    import matplotlib
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / FONT, size)
    width, height = round(font.getlength(text)) + size, round(1.5 * size)
    image = Image.new("RGB", (width, height))
    ImageDraw.Draw(image).text((size // 2, height // 2), text, fill="white", font=font, anchor="lm")
    return np.asarray(image)
