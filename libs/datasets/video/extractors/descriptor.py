"""`descriptor`: appearance and motion without weights, from histograms of gradients and of optical flow (NumPy and OpenCV).

Parts of each frame are computed once; a window's vector is made of their means, so overlapping windows cost nothing more.
After HOG (Dalal and Triggs, CVPR 2005), HOF and motion boundaries (Dalal et al., ECCV 2006).
"""
from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from libs.core.errors import UserError
from libs.datasets.video.extractors.base import Extractor, Settings
from libs.datasets.video.flow import flow_library, flow_method, flow_pairs, flow_parameters

GRID = 4  # cells along each side of the frame
LOBES = 8
EPS = 0.001  # of the norm of a block
LEAST_SIDE = 32
PARTS = {"hog": 8, "lab": 3, "hof": 9, "mbx": 8, "mby": 8}  # values per cell, in the order of a frame's array
SLICES = {name: slice(end - PARTS[name], end) for name, end in zip(PARTS, itertools.accumulate(PARTS.values()), strict=True)}
APPEARANCE = (GRID**2 + 1) * PARTS["hog"] + 2 * GRID**2 * PARTS["lab"]
MOTION = (GRID**2 + 1) * (PARTS["hof"] + PARTS["mbx"] + PARTS["mby"])


@dataclass(frozen=True, kw_only=True)
class DescriptorSettings(Settings):
    """Settings of the descriptor.

    resize: pixels of the shorter side, or (height, width), multiples of 4; flow: motion beside appearance; flow_method: of
    `METHODS`; still: flow below so many pixels counts as none; power: of the histograms before a block is normalised (0.5: the
    usual square root).
    """

    stride: int = 4
    num_frames: int = 16
    batch_size: int = 64
    resize: int | tuple[int, int] | None = 120
    flow: bool = True
    flow_method: str = "dis"
    still: float = 0.2
    power: float = 1.0


class Descriptor(Extractor):
    """(4, 4, 36) of each frame; 232 channels of appearance and 425 of motion of each window.

    Without flow (4, 4, 11) of each frame, and appearance alone.
    """

    name = "descriptor"
    settings_class = DescriptorSettings
    scaling = "AREA"
    in_streams = ("flow",)

    def __init__(self, settings: DescriptorSettings, preset: str | None = None) -> None:
        super().__init__(settings, preset)
        self.method = flow_method(settings.flow_method) if settings.flow else None
        sides = settings.resize if isinstance(settings.resize, tuple) else (settings.resize or 0,)
        if any(side % GRID or side < LEAST_SIDE for side in sides):
            raise UserError(f"--resize, --size {' '.join(map(str, sides))}: the descriptor takes multiples of {GRID} from "
                            f"{LEAST_SIDE} on")
        self.streams = [{"name": "rgb", "channels": [0, APPEARANCE]}]
        if settings.flow:
            self.streams.append({"name": "flow", "channels": [APPEARANCE, APPEARANCE + MOTION],
                                 "parameters": flow_parameters(settings.flow_method)})

    def fit(self, path: str, width: int, height: int) -> tuple[int, int]:
        return scaled_size(height, width, self.settings.resize)

    def prepare(self, frames: Iterator[np.ndarray], path: str) -> Iterator[np.ndarray]:
        """Parts (4, 4, 36 or 11) float32 of each frame."""
        cv2 = flow_library()
        for frame, flow in flow_pairs(frames, self.method) if self.method else ((frame, None) for frame in frames):
            grey, lab = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.cvtColor(frame, cv2.COLOR_RGB2LAB)
            yield parts(grey, lab, flow, self.settings.still)

    def features(self, windows: Sequence[Sequence[np.ndarray]], path: str) -> np.ndarray:
        return vectors(np.stack([np.stack(window) for window in windows]), self.settings.power)

    def libraries(self) -> dict[str, str]:
        return super().libraries() | {"opencv": flow_library().__version__}


def scaled_size(height: int, width: int, resize: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width), multiples of 4: `resize` itself, or with a shorter side of `resize` pixels."""
    if isinstance(resize, tuple):
        return resize
    longer = GRID * round(resize / GRID * max(height, width) / min(height, width))
    return (resize, longer) if height <= width else (longer, resize)


def parts(grey: np.ndarray, lab: np.ndarray, flow: np.ndarray | None, still: float) -> np.ndarray:
    """(4, 4, 36) float32 of a frame: hog, lab, hof, mbx, mby per cell; without flow (4, 4, 11): hog, lab.

    grey (H, W) and lab (H, W, 3) uint8; flow (H, W, 2) pixels; H and W multiples of 4.
    """
    hog, = votes([gradient(grey, 1 / 255)], signed=False)
    colours = cell_means(lab.transpose(2, 0, 1).astype(np.float32)) / 255
    motion = [] if flow is None else motion_parts(flow, still)
    return np.concatenate([hog, colours, *motion]).transpose(1, 2, 0)


def motion_parts(flow: np.ndarray, still: float) -> list[np.ndarray]:
    """(n, 4, 4) float32 each: directions of flow, share at rest, directions of the gradients of x and of y."""
    u, v = (np.ascontiguousarray(flow[..., i], np.float32) for i in range(2))
    at_rest = lengths(u, v) < still
    moving = [np.where(at_rest, np.float32(0), part) for part in (u, v)]
    hof, mbx, mby = votes([moving, gradient(u, 1), gradient(v, 1)], signed=True)
    return [hof, cell_means(at_rest[None].astype(np.float32)), mbx, mby]


def lengths(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """sqrt(p^2 + q^2); OpenCV's magnitude would change its last bit with the place in memory."""
    return np.sqrt(p * p + q * q)


def gradient(image: np.ndarray, scale: float) -> list[np.ndarray]:
    """[d/dx, d/dy] of (H, W) times `scale`, float32: half the difference of the neighbours, edge pixels repeated."""
    cv2 = flow_library()
    return [cv2.Sobel(image, cv2.CV_32F, dx, 1 - dx, ksize=1, scale=scale / 2, borderType=cv2.BORDER_REPLICATE) for dx in (1, 0)]


def votes(fields: Sequence[Sequence[np.ndarray]], signed: bool) -> np.ndarray:
    """(n, 8, 4, 4): mean votes per direction and cell of n vector fields, each [(H, W), (H, W)] float32.

    With step s = 45 degrees (22.5 unsigned, where opposite directions count as one), a vector of length m at angle x from
    direction d votes m max(0, cos x - cos s) / (1 - cos s): all of m in its own direction, nothing a step away.
    """
    step = 2 * np.pi / LOBES if signed else np.pi / LOBES
    height, width = fields[0][0].shape
    found = np.empty((len(fields), LOBES, GRID, GRID), np.float32)
    for out, (p, q) in zip(found, fields, strict=True):
        vectors = np.stack([p.ravel(), q.ravel(), lengths(p, q).ravel()])
        weights = _lobes(step)
        if signed:
            lobes = weights @ vectors
        else:
            lobes = np.abs(weights[:, :2] @ vectors[:2])
            lobes += weights[:, 2:] * vectors[2]
        np.maximum(lobes, 0, out=lobes)
        out[:] = cell_means(lobes.reshape(LOBES, height, width))
    return found


@functools.cache
def _lobes(step: float) -> np.ndarray:
    """(8, 3) weights of p, q and length."""
    angles = np.arange(LOBES) * step
    weights = np.stack([np.cos(angles), np.sin(angles), np.full(LOBES, -np.cos(step))], axis=1)
    return (weights / (1 - np.cos(step))).astype(np.float32)


def cell_means(images: np.ndarray) -> np.ndarray:
    """(n, 4, 4) means over the cells of (n, H, W) float32."""
    n, height, width = images.shape
    columns = images.reshape(n, GRID, height // GRID, width).mean(2)
    return columns.reshape(n, GRID, GRID, width // GRID).mean(3)


def vectors(windows: np.ndarray, power: float) -> np.ndarray:
    """(B, 657) float32 of the parts (B, T, 4, 4, 36) of windows: appearance (232), then motion (425); of (..., 11) appearance."""
    mean = windows.mean(1)
    lab = windows[..., SLICES["lab"]]
    colours = [((mean[..., SLICES["lab"]] - 0.5) / 2).reshape(len(mean), -1), lab.std(1).reshape(len(mean), -1)]
    appearance = [*blocks(mean[..., SLICES["hog"]], power), *colours]
    moving = ("hof", "mbx", "mby") if windows.shape[-1] > SLICES["lab"].stop else ()
    motion = [block for name in moving for block in blocks(mean[..., SLICES[name]], power)]
    return np.concatenate([*appearance, *motion], axis=1)


def blocks(histograms: np.ndarray, power: float) -> list[np.ndarray]:
    """Histograms (B, 4, 4, b) as two normalised vectors: of the cells (B, 16 b), and of the whole frame (B, b)."""
    raised = [part**power for part in (histograms.reshape(len(histograms), -1), histograms.mean((1, 2)))]
    return [part / np.sqrt((part**2).sum(1, keepdims=True) + EPS**2) for part in raised]
