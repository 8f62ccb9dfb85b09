"""Clips of RGB frames through one network of a library: what `torchvision:NAME` and `transformers:FOLDER` share."""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from libs.core.errors import UserError, nearest
from libs.datasets.video.decoding import video_library
from libs.datasets.video.extractors.base import (
    Extractor,
    NetworkSettings,
    centre,
    check_precision,
    cropped_size,
    normalised,
    run_network,
)

MOST = 10 ** 6
ANY = range(1, MOST)
RESAMPLING = {  # None: of the four nearest pixels, as torchvision's video presets do it; otherwise averaging, as Pillow does it
    "bilinear": None, "antialiased-bilinear": Image.Resampling.BILINEAR, "antialiased-bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class ClipSettings(NetworkSettings):
    """Settings of a network of RGB clips.

    resize: pixels of the shorter side, or (height, width), or None; crop: side of a centre crop, or None; mean, std: per channel
    of RGB in [0, 1]; resampling: of `RESAMPLING`.
    """

    resize: int | tuple[int, int] | None
    crop: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resampling: str


class RGBClips(Extractor):
    """Clips (RGB / 255 - mean) / std through one network; a subclass loads it and says what it takes."""

    def __init__(self, settings: ClipSettings, preset: str | None = None) -> None:
        super().__init__(settings, preset)
        video_library()
        check_precision(settings)
        if settings.resampling not in RESAMPLING:
            raise UserError(f"--resampling {settings.resampling}: unknown{nearest(settings.resampling, RESAMPLING)}; there are "
                            f"{', '.join(RESAMPLING)}")
        frames, self.sides = self.takes()
        if settings.num_frames not in frames:
            raise UserError(f"--num-frames {settings.num_frames}: {self.label()} takes {_spelled(frames)} frames")
        if settings.crop and settings.crop not in self.sides:
            raise UserError(f"--crop {settings.crop}: {self.label()} takes sides of {_spelled(self.sides)} pixels")
        self.device = torch.device(settings.device)
        self.scale = [torch.tensor(values, device=self.device).view(1, 3, 1, 1, 1) for values in (settings.mean, settings.std)]
        self.path, self.network, recorded = self.load()
        self.streams = [{"name": "rgb", **recorded, "values": "RGB / 255", "mean": settings.mean, "std": settings.std}]

    @abstractmethod
    def takes(self) -> tuple[range, range]:
        """Numbers of frames of a clip, and of pixels of a side, that the network takes; a range of one number, or without end."""

    @abstractmethod
    def load(self) -> tuple[str, Callable[[Tensor], Tensor], dict[str, Any]]:
        """Path of the weights, network (B, 3, T, H, W) -> (B, C) on `self.device`, and what the provenance file says of them."""

    def label(self) -> str:
        """NAME:ARGUMENT, as in `--extractor`."""
        assert self.argument is not None
        return f"{self.name}:{getattr(self.settings, self.argument[0])}"

    def fit(self, path: str, width: int, height: int) -> None:
        size = cropped_size(path, width, height, scaled_size(height, width, self.settings.resize), self.settings.crop)
        if not self.settings.crop and not (size[0] in self.sides and size[1] in self.sides):
            raise UserError(f"{path}: frames of {size[0]} x {size[1]} pixels (height x width), while {self.label()} takes sides "
                            f"of {_spelled(self.sides)}; set --crop")

    def prepare(self, frames: Iterator[np.ndarray], path: str) -> Iterator[np.ndarray]:
        """Scaled and cropped frames, uint8."""
        for frame in frames:
            size = scaled_size(frame.shape[0], frame.shape[1], self.settings.resize)
            yield np.ascontiguousarray(self.cropped(resized(frame, size, self.settings.resampling), self.settings.crop))

    def cropped(self, frame: np.ndarray, crop: int | None) -> np.ndarray:
        """The centre of a frame."""
        return centre(frame, crop)

    def features(self, windows: Sequence[Sequence[np.ndarray]], path: str) -> np.ndarray:
        x = torch.from_numpy(np.stack([np.stack(window) for window in windows])).to(self.device).permute(0, 4, 1, 2, 3)
        return run_network(self.network, normalised(x, *self.scale), self.settings.precision, self.path, path,
                           "set --num-frames, --resize and --crop as the network wants them, or lower --batch-size").numpy()


def scaled_size(height: int, width: int, resize: int | tuple[int, int] | None) -> tuple[int, int]:
    """(height, width): `resize` itself, or the shorter side at `resize` pixels; None: as it is.

    The longer side is rounded down, as in both libraries.
    """
    if resize is None or isinstance(resize, tuple):
        return resize or (height, width)
    return max(resize, resize * height // width), max(resize, resize * width // height)


def resized(frame: np.ndarray, size: tuple[int, int], resampling: str) -> np.ndarray:
    """(H, W, 3) uint8 scaled to (height, width), uint8, in a way of `RESAMPLING`."""
    if frame.shape[:2] == size:
        return frame
    if (filter_ := RESAMPLING[resampling]) is not None:
        return np.asarray(Image.fromarray(frame).resize(size[::-1], filter_))
    x = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    return F.interpolate(x, size, mode="bilinear", align_corners=False).round_()[0].permute(1, 2, 0).byte().numpy()


def _spelled(values: range) -> str:
    if len(values) == 1:
        return f"exactly {values[0]}"
    return f"a multiple of {values.step}" if values.step > 1 else f"at least {values.start}"
