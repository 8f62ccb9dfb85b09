"""Small videos made by the tests."""
from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import extract_features
import numpy as np
import pytest
from helpers import run_script

av = pytest.importorskip("av")
H, W, FPS, FRAMES = 48, 64, 10, 40


def level(k: int) -> int:
    return 20 + 4 * k


def make_video(path: Path, times: list[Fraction] | None = None, frames: int = FRAMES, size: tuple[int, int] = (H, W),
               codec: str = "mpeg4", rate: int = FPS, first: int = 0, pix_fmt: str = "yuv420p",
               picture: Callable[[int], np.ndarray] | None = None) -> Path:
    """Frame k is grey with value 20 + 4 (k + first), or picture(k), (H, W, 3) uint8; its time is k / rate, or times[k]."""
    picture = picture or (lambda k: np.full((*size, 3), level(k + first), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.bit_rate = 2_000_000
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(k), format="rgb24")
            frame.pts = round(times[k] * 1000) if times else k
            frame.time_base = Fraction(1, 1000) if times else Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn(path: Path, quarters: int) -> None:
    """Write a rotation into the header of an .mp4, as phones do: the matrix of its track."""
    data = bytearray(path.read_bytes())
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarters]
    start = data.index(b"tkhd") + 44
    data[start:start + 20] = struct.pack(">5i", cos << 16, sin << 16, 0, -sin << 16, cos << 16)
    path.write_bytes(data)


def moving(k: int, size: tuple[int, int] = (H, W)) -> np.ndarray:
    """Frame k of a smooth random texture that moves two pixels to the right per frame."""
    coarse = np.random.default_rng(0).integers(0, 255, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8)
    return np.roll(coarse.repeat(8, 0).repeat(8, 1)[:size[0], :size[1]], 2 * k, axis=1)


def run_extract(capsys, *argv: str) -> tuple[int, str, str]:
    """Exit code, output and errors of tools/extract_features.py."""
    return run_script(capsys, extract_features.main, "extract_features.py", *argv)
