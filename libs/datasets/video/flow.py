"""Optical flow between successive frames (OpenCV; an optional package), as input of two-stream networks."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from libs.core.errors import UserError

BOUND = 20.0
METHODS = ("farneback", "dis", "tvl1")
FARNEBACK = {"pyr_scale": 0.5, "levels": 3, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0}
DIS_FAST = 1  # OpenCV's DISOPTICAL_FLOW_PRESET_FAST
FlowMethod = Callable[[np.ndarray, np.ndarray], np.ndarray]


def flow_library() -> Any:
    """The OpenCV module; UserError naming the extra to install where it is missing."""
    try:
        import cv2
    except ImportError as error:
        raise UserError('this needs the package opencv-python-headless: pip install -e ".[video]"') from error
    return cv2


def flow_method(name: str, median: int | None = None) -> FlowMethod:
    """Function of two grey images (H, W) uint8 -> (H, W, 2) float32 pixels (x, y).

    median: side of TV-L1's median filter, 1: none, None: OpenCV's 5.  Raises UserError where OpenCV lacks the method.
    """
    cv2 = flow_library()
    if name == "farneback":
        return lambda before, after: cv2.calcOpticalFlowFarneback(before, after, None, **FARNEBACK)
    if name == "dis":
        return lambda before, after: cv2.DISOpticalFlow_create(DIS_FAST).calc(before, after, None)
    if not hasattr(cv2, "optflow"):
        raise UserError("--flow-method tvl1: this OpenCV has no TV-L1; pip install opencv-contrib-python-headless in place of "
                        "opencv-python-headless, or use --flow-method dis (or farneback), other flow than the published")
    method = cv2.optflow.createOptFlow_DualTVL1()
    if median:
        method.setMedianFiltering(median)
    return lambda before, after: method.calc(before, after, None)


def flow_parameters(name: str, median: int | None = None) -> Any:
    """Parameters of a method for the provenance file; of DIS OpenCV's major version, too, with which its results change."""
    if name == "farneback":
        return FARNEBACK
    if name == "dis":
        return f"preset FAST of OpenCV {flow_library().__version__.split('.')[0]}"
    return f"OpenCV's defaults, median filter {median}" if median else "OpenCV's defaults"


def flow_levels(flow: np.ndarray, bound: float, rule: str) -> np.ndarray:
    """Flow in pixels as levels of a grey image, which the network takes as 2 level / 255 - 1; same shape, computed in float64.

    rule 'bytes', of dense_flow: uint8, the range -bound to bound on 0 to 255; no motion is 127.5, so 128.  Rule 'video_features',
    of the program of that name: float32 from 0 to 256, no motion is 128.
    """
    if rule == "video_features":
        return np.rint(np.float32(128) + np.float32(255 / (2 * bound)) * np.clip(flow, -bound, bound, dtype=np.float32))
    return np.rint(255 * (np.clip(flow, -bound, bound).astype(np.float64) + bound) / (2 * bound)).astype(np.uint8)


def flow_pairs(frames: Iterable[np.ndarray], method: FlowMethod) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(frame k, flow k) for frames (H, W, 3) uint8 RGB; flow k, (H, W, 2) float32 pixels, is the motion from frame k - 1 to k.

    Flow 0 repeats flow 1, so that both streams have one entry per frame; a single frame gets zeros.
    """
    cv2 = flow_library()
    first = before = None
    for frame in frames:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if before is None:
            first = frame
        else:
            flow = np.asarray(method(before, grey), np.float32)
            if first is not None:
                yield first, flow
                first = None
            yield frame, flow
        before = grey
    if first is not None:
        yield first, np.zeros((*first.shape[:2], 2), np.float32)


def with_flow(frames: Iterable[np.ndarray], method: FlowMethod) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `flow_pairs`, flow clipped at +-BOUND pixels and divided by it, so in [-1, 1] (Carreira and Zisserman, CVPR 2017)."""
    return ((frame, np.clip(flow / BOUND, -1, 1)) for frame, flow in flow_pairs(frames, method))
