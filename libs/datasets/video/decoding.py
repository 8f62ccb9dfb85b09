"""Video files -> frames on a constant time grid, one at a time (PyAV; an optional package).

    info = probe(path)
    for frame in read_frames(path, fps=25.0, size=(256, 340)): ...      # (H, W, 3) uint8 RGB; frame k is that of second k / fps

PyAV and not torchcodec: its wheels contain FFmpeg, while torchcodec needs an installed FFmpeg and one certain release of torch.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from libs.core.errors import UserError, note

JITTER = 0.3  # of a frame: tolerance of the time stamps of a constant rate
LATE = 0.25  # of a frame: a grid point this close to the end of the last frame gets no frame
COMPLETE = 0.95  # share of its header's duration that a complete file must have
TAKE_THE_REST = "--allow-truncated (of tools/predict.py: --extractor-set allow_truncated=true) to use what is there"


@dataclass(frozen=True)
class VideoInfo:
    """Header of a video: average frames per second, size in pixels, duration in seconds (None: unknown)."""

    path: str
    fps: float
    width: int
    height: int
    duration_s: float | None


@dataclass
class Decoded:
    """Results of decoding: frames in the file, frames on the grid, duration, uneven time stamps, size as shown in pixels."""

    source_frames: int = 0
    frames: int = 0
    duration_s: float = 0.0
    variable_rate: bool = False
    width: int = 0
    height: int = 0


def video_library() -> Any:
    """The PyAV module; UserError naming the extra to install where it is missing, or too old to tell a video's rotation."""
    try:
        import av
    except ImportError as error:
        raise UserError('reading videos needs the package av (PyAV): pip install -e ".[video]"') from error
    if not hasattr(av.VideoFrame, "rotation"):
        raise UserError(f'reading videos needs PyAV 14.2 or newer, here is {av.__version__}: pip install -U "av>=14.2"')
    return av


def probe(path: str) -> VideoInfo:
    """Header of a video; UserError for a missing file, and for one that is not a video or lacks a video stream or frame rate."""
    av = video_library()
    with _opened(av, path) as container:
        return _info(path, container)


def fitted_size(width: int, height: int, resize: int | tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of frames: `resize` itself, or the shorter side scaled to `resize` pixels; None: as stored."""
    if isinstance(resize, tuple):
        return resize
    if resize is None:
        return height, width
    scale = resize / min(width, height)
    return max(round(height * scale), resize), max(round(width * scale), resize)


def read_frames(path: str, fps: float | None, fit: Callable[[int, int], tuple[int, int] | None] = lambda width, height: None,
                allow_truncated: bool = False, found: Decoded | None = None, scaling: str = "BILINEAR", threads: str = "AUTO"
                ) -> Iterator[np.ndarray]:
    """Frames k = 0, 1, ... as (H, W, 3) uint8 RGB: for each the decoded frame nearest to k / fps seconds after the first one.

    fps: of the grid, None: the file's average rate (a file of constant rate then gives each of its frames once); fit: (W, H) as
    shown -> (H, W) to scale to by FFmpeg's method `scaling`, None: as stored.  Frames are turned as the file says.  `found` is
    filled in.  threads: FFmpeg's, NONE: it decodes in this one.  One frame is held at a time.
    Raises UserError for a damaged file and, unless `allow_truncated`, for one that ends before `COMPLETE` of its duration.
    """
    av, found = video_library(), found if found is not None else Decoded()
    with _opened(av, path) as container:
        info = _info(path, container)
        container.streams.video[0].thread_type = threads
        rate = fps or info.fps
        held: tuple[float, Any] | None = None
        gaps: list[float] = []
        for time, frame in _timed(av, path, container, info.fps, allow_truncated):
            found.source_frames += 1
            if held is None:
                turns = _quarter_turns(path, frame)
                found.height, found.width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
                size = fit(found.width, found.height) or (found.height, found.width)  # all frames as the first
            else:
                if time <= held[0]:
                    continue
                if len(gaps) < 10_000:
                    gaps.append(time - held[0])
                picture = None
                while found.frames / rate <= (held[0] + time) / 2:
                    picture = _pixels(held[1], size, turns, scaling) if picture is None else picture
                    found.frames += 1
                    yield picture
            held = (time, frame)
        if held is None:
            raise UserError(f"{path}: no frame can be decoded; it is damaged: repair it, e.g. by encoding it again")
        last = 1 / info.fps
        found.duration_s = held[0] + last
        found.variable_rate = bool(gaps) and max(abs(gap - last) for gap in gaps) > JITTER * last
        if not allow_truncated and info.duration_s and found.duration_s < COMPLETE * info.duration_s - last:
            raise UserError(f"{path}: ends after {found.duration_s:.2f} s of the {info.duration_s:.2f} s that its header says; "
                            f"the file is cut: fetch it again, or add {TAKE_THE_REST}")
        picture = _pixels(held[1], size, turns, scaling)
        while found.frames == 0 or found.frames / rate < found.duration_s - LATE / rate:
            found.frames += 1
            yield picture


def timed_pictures(path: str) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds after the first frame, picture (H, W, 3) uint8 RGB) of each frame of a file, turned as the file says.

    All have the size of the first, its pixels made square; one that is not later than that before it is left out.  Raises
    UserError for a damaged file.
    """
    av = video_library()
    with _opened(av, path) as container:
        info, before, turns, size = _info(path, container), -1.0, 0, None
        aspect = container.streams.video[0].sample_aspect_ratio or 1  # width over height of a pixel
        aspect = aspect if 0.1 < aspect < 10 else 1  # else it is damaged
        for time, frame in _timed(av, path, container, info.fps, allow_truncated=True):
            if time <= before:
                continue
            turns = _quarter_turns(path, frame) if size is None else turns
            width = frame.width if aspect == 1 else 2 * round(frame.width * aspect / 2)
            size = size or ((width, frame.height) if turns % 2 else (frame.height, width))
            before = time
            yield time, _pixels(frame, size, turns, "BILINEAR")


def _opened(av: Any, path: str) -> Any:
    try:
        return av.open(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such video; check the path") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a video ({_reason(error)}); it is damaged, cut or of another "
                        "format") from error


def _info(path: str, container: Any) -> VideoInfo:
    if not container.streams.video:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise UserError(f"{path}: holds no video stream (only {kinds}); name a video")
    stream = container.streams.video[0]
    rate = stream.average_rate or stream.guessed_rate
    if not rate or not math.isfinite(float(rate)):
        raise UserError(f"{path}: does not say its frame rate; encode it again, e.g. with a constant rate")
    duration = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else (
        container.duration / 1e6 if container.duration else None)
    if stream.width <= 0 or stream.height <= 0:
        raise UserError(f"{path}: its frames have no size; it is damaged")
    return VideoInfo(path, float(rate), stream.width, stream.height, duration)


def _timed(av: Any, path: str, container: Any, fps: float, allow_truncated: bool) -> Iterator[tuple[float, Any]]:
    """(seconds since the first frame, frame), in order of presentation; one without a time comes 1 / fps after the last."""
    start, stamp, stamped, count = None, 0.0, 0, 0
    has_times = container.format.name != "avi"  # which stores frames in order of decoding, and FFmpeg guesses times from that
    try:
        for frame in container.decode(container.streams.video[0]):
            if (given := frame.time if has_times else frame.dts and frame.dts * frame.time_base) is not None:
                stamp, stamped = float(given), count
            time = stamp + (count - stamped) / fps
            start = time if start is None else start
            count += 1
            yield time - start, frame
    except (av.FFmpegError, OSError, ValueError) as error:
        if not (allow_truncated and count):
            raise UserError(f"{path}: decoding stops after frame {count} ({_reason(error)}); the file is damaged or cut: fetch "
                            f"it again, or add {TAKE_THE_REST}") from error


def _quarter_turns(path: str, frame: Any) -> int:
    """Quarter turns counterclockwise that the file asks for, as phones write it; a warning for another angle."""
    turns, rest = divmod(frame.rotation, 90)
    if rest:
        note(f"warning: {path}: is stored turned by {frame.rotation} degrees; only multiples of 90 are applied, so frames are "
             "used as stored")
    return 0 if rest else turns % 4


def _pixels(frame: Any, size: tuple[int, int], turns: int, scaling: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, scaled to `size` (as shown) and turned."""
    stored = size[::-1] if turns % 2 else size
    if (frame.height, frame.width) == stored:
        pixels = frame.to_ndarray(format="rgb24")
    else:
        pixels = frame.to_ndarray(format="rgb24", height=stored[0], width=stored[1], interpolation=scaling)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
