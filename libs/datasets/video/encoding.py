"""Frames -> an H.264 .mp4 file, which every browser plays (PyAV; an optional package).

    write_video(Path("a.mp4"), ((picture, Fraction(k, 25)) for k, picture in enumerate(pictures)), Fraction(25))
"""
from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np

from libs.core.errors import UserError
from libs.datasets.video.decoding import video_library
from libs.utils.files.io import write_atomic

CODEC = "libx264"
OPTIONS = {"crf": "23", "preset": "veryfast", "threads": "1", "mbtree": "0"}  # the same bytes on one machine
TIME_BASE = Fraction(1, 90000)  # of MPEG; 25, 30 and 24000 / 1001 frames per second are whole numbers of it


def encoder_library() -> Any:
    """The PyAV module; UserError as `video_library`, and where it cannot encode H.264."""
    av = video_library()
    if CODEC not in av.codecs_available:
        raise UserError(f'writing videos needs a PyAV with {CODEC}, as its wheels have: pip install --force-reinstall "av>=14.2"')
    return av


def write_video(path: Path, frames: Iterable[tuple[np.ndarray, Fraction]], rate: Fraction) -> int:
    """Write (picture (H, W, 3) uint8 RGB, second) pairs, in order of time, completely or not at all; returns their number.

    rate: frames per second that the header says.  4:2:0 needs even sides: an odd one is continued by its last pixels.  Raises
    UserError if the file cannot be written, and whatever `frames` raises.
    """
    av = encoder_library()
    count = 0

    def encode(file: IO[bytes]) -> None:
        nonlocal count
        with av.open(file, "w", format="mp4") as container:
            stream = None
            for picture, second in frames:
                even = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")
                if stream is None:
                    stream = container.add_stream(CODEC, rate=rate, options=OPTIONS)
                    stream.height, stream.width, stream.pix_fmt = *even.shape[:2], "yuv420p"
                    stream.codec_context.time_base = TIME_BASE
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
                frame.pts, frame.time_base = round(second / TIME_BASE), TIME_BASE
                container.mux(stream.encode(frame))
                count += 1
            if stream is not None:
                container.mux(stream.encode())

    write_atomic(path, encode)
    return count
