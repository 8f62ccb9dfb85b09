"""`i3d`: two-stream Inception-I3D, as the published THUMOS14 and ActivityNet features were made, as far as that is known.

The presets and what is certain about them: docs/features.md.  The weights are the user's download.
"""
from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from libs.core.errors import UserError, note
from libs.datasets.video.decoding import fitted_size, video_library
from libs.datasets.video.extractors.base import Extractor, NetworkSettings, check_precision, cropped_size, run_network
from libs.datasets.video.extractors.i3d_weights import Weights, load_weights
from libs.datasets.video.flow import BOUND, flow_levels, flow_library, flow_method, flow_pairs, flow_parameters
from libs.datasets.video.i3d_network import FEATURES, LEAST_FRAMES, LEAST_SIDE

CROPS = ("ten", "center", "squeeze")
POOLS = ("first", "mean")
FLOW_RULES = ("bytes", "video_features")
Item = TypeVar("Item")
THUMOS: dict[str, Any] = {"num_frames": 16, "stride": 4, "resize": (256, 340), "crops": "ten", "batch_size": 1}


@dataclass(frozen=True, kw_only=True)
class I3DSettings(NetworkSettings):
    """Settings of I3D.

    rgb_model, flow_model: files of weights, at least one; resize: pixels of the shorter side, or (height, width), or None,
    bilinear as OpenCV does it; crop: side of the network's input; crops: 'ten' (corners, centre, and these mirrored; the mean of
    their features), 'center', or 'squeeze' (the whole frame, Lanczos); pool: of the T' values of a window the 'first', or their
    'mean'; drop_first: frame 0 is not used, so that every frame has a flow from the one before; flow_method, flow_median (TV-L1:
    side of its median filter, 1: none), flow_bound (pixels), flow_rule (`flow_levels`): of the flow; jpeg: quality of a JPEG
    between frames or flow and network, None: none.
    """

    rgb_model: str | None = None
    flow_model: str | None = None
    resize: int | tuple[int, int] | None = (256, 340)
    crop: int = 224
    crops: str = "center"
    pool: str = "first"
    drop_first: bool = True
    flow_method: str = "tvl1"
    flow_median: int = 1
    flow_bound: float = BOUND
    flow_rule: str = "bytes"
    jpeg: int | None = None


class I3D(Extractor):
    """Clips of bytes through I3D, RGB and flow; 1024 channels each."""

    name = "i3d"
    settings_class = I3DSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "thumos-i3d": THUMOS,
        "thumos-i3d-center": THUMOS | {"crops": "center", "batch_size": 4},
        "thumos-i3d-resize": THUMOS | {"crops": "squeeze", "batch_size": 4},
        "anet-i3d": THUMOS | {"stride": 16, "fps": 25.0},
        "i3d-64": {"num_frames": 64, "stride": 8, "resize": 256, "crops": "center", "pool": "mean", "batch_size": 1},
    }

    def __init__(self, settings: I3DSettings, preset: str | None = None) -> None:
        super().__init__(settings, preset)
        video_library()
        flow_library()  # resizes the frames, too
        self._check()
        check_precision(settings)
        self.method = flow_method(settings.flow_method, settings.flow_median) if settings.flow_model else None
        self.networks = [load_weights(name, path, torch.device(settings.device))
                         for name, path in (("rgb", settings.rgb_model), ("flow", settings.flow_model)) if path]
        if not self.networks:
            raise UserError(f"--extractor {preset}: needs weights; name rgb_imagenet.pt with --rgb-model and "
                            "flow_imagenet.pt with --flow-model, or one of them (docs/features.md says where to get them)")
        self.streams = [self._recorded(weights, i) for i, weights in enumerate(self.networks)]

    def fit(self, path: str, width: int, height: int) -> None:
        cropped_size(path, width, height, self.settings.resize, None if self.settings.crops == "squeeze" else self.settings.crop)

    def prepare(self, frames: Iterator[np.ndarray], path: str) -> Iterator[tuple[np.ndarray, ...]]:
        """Images of the streams: RGB (H, W, 3) uint8, levels of flow (H, W, 2); squeezed, not yet cropped."""
        resized = map(self._resized, frames)
        pairs = flow_pairs(resized, self.method) if self.method else ((frame, None) for frame in resized)
        dropped = int(self.settings.drop_first)
        used = long_enough(itertools.islice(pairs, dropped, None), self.settings.num_frames, dropped, path)
        for frame, flow in used:
            images = [frame] if self.settings.rgb_model else []
            if flow is not None:
                images.append(flow_levels(flow, self.settings.flow_bound, self.settings.flow_rule))
            yield tuple(map(self._stored, images))

    def features(self, windows: Sequence[Sequence[tuple[np.ndarray, ...]]], path: str) -> np.ndarray:
        """(B, 1024 per stream): the mean over the crops, which go through the network as one batch."""
        outputs = []
        for i, weights in enumerate(self.networks):
            images = np.stack([np.stack([item[i] for item in window]) for window in windows])
            x = crops(torch.from_numpy(images).to(self.settings.device), self.settings.crop, self.settings.crops)
            y = run_network(self._pooled(weights), x, self.settings.precision, weights.path, path,
                            "lower --batch-size where memory is short")
            outputs.append(y.view(len(windows), -1, FEATURES).mean(1))
        return torch.cat(outputs, dim=1).numpy()

    def libraries(self) -> dict[str, str]:
        return super().libraries() | {"opencv": flow_library().__version__, "pillow": Image.__version__}

    def told(self) -> list[str]:
        lines = [weights.told() for weights in self.networks]
        if self.settings.flow_model:
            lines.append(
                "flow: TV-L1 of OpenCV's CPU code, seconds per frame; close to the published features, not equal: no CPU code "
                "reproduces their GPU flow bit by bit" if self.settings.flow_method == "tvl1" else
                f"flow: {self.settings.flow_method}, quick; not the published features, whose flow is TV-L1")
        for weights in self.networks:
            if not weights.published:
                note(weights.warning())
        return lines

    def _check(self) -> None:
        """UserError for values that do not fit together."""
        values = self.settings
        for option, allowed in (("crops", CROPS), ("pool", POOLS), ("flow_rule", FLOW_RULES)):
            if (value := getattr(values, option)) not in allowed:
                raise UserError(f"--{option.replace('_', '-')} {value}: unknown; there are {', '.join(allowed)}")
        if values.num_frames < LEAST_FRAMES or not values.crop or values.crop < LEAST_SIDE:
            raise UserError(f"--num-frames {values.num_frames}, --crop {values.crop}: I3D needs {LEAST_FRAMES} frames of "
                            f"{LEAST_SIDE} x {LEAST_SIDE} pixels; the published features have 16 of 224 x 224")
        if values.jpeg is not None and (values.flow_rule != "bytes" or not 1 <= values.jpeg <= 100):
            raise UserError(f"--jpeg {values.jpeg}: takes a quality from 1 to 100, and --flow-rule bytes")

    def _resized(self, frame: np.ndarray) -> np.ndarray:
        height, width = fitted_size(frame.shape[1], frame.shape[0], self.settings.resize)
        return frame if frame.shape[:2] == (height, width) else flow_library().resize(frame, (width, height))

    def _stored(self, image: np.ndarray) -> np.ndarray:
        """The image after JPEG and squeezing, where they are asked for."""
        if self.settings.jpeg:
            image = as_jpeg(image, self.settings.jpeg)
        if self.settings.crops != "squeeze":
            return image
        side = self.settings.crop, self.settings.crop
        planes = [Image.fromarray(image[..., i]).resize(side, Image.Resampling.LANCZOS) for i in range(image.shape[2])]
        return np.stack([np.asarray(plane) for plane in planes], axis=2)

    def _pooled(self, weights: Weights) -> Callable[[Tensor], Tensor]:
        def network(x: Tensor) -> Tensor:
            over_time = weights.network(x)[..., 0, 0]  # (B, 1024, T')
            return over_time[..., 0] if self.settings.pool == "first" else over_time.mean(2)
        return network

    def _recorded(self, weights: Weights, position: int) -> dict[str, Any]:
        part = {"name": weights.name, "model": os.path.basename(weights.path), "sha256": weights.hashes.sha256,
                "git_blob": weights.hashes.git_blob, "published": weights.published, "values": "2 byte / 255 - 1",
                "channels": [FEATURES * position, FEATURES * (position + 1)]}
        if weights.name == "flow":
            part["parameters"] = flow_parameters(self.settings.flow_method, self.settings.flow_median)
        return part


def long_enough(items: Iterable[Item], num_frames: int, dropped: int, path: str) -> Iterator[Item]:
    """The items; after them UserError if they are too few for a window and, as in the published program, one frame more."""
    count = 0
    for item in items:
        count += 1
        yield item
    if count < num_frames + dropped:
        raise UserError(f"{path}: gives {count + dropped} frames, but windows of {num_frames} need {num_frames + 2 * dropped}; "
                        "leave the video out, or raise --fps or lower --num-frames for all")


def ten_crops(height: int, width: int, side: int) -> list[tuple[int, int, bool]]:
    """(top, left, mirrored) of the corners and the centre of a frame, then the same of its mirror image."""
    places = [(0, 0), (0, width - side), ((height - side) // 2, (width - side) // 2), (height - side, 0),
              (height - side, width - side)]
    return [(top, left, mirrored) for mirrored in (False, True) for top, left in places]


def crops(images: Tensor, side: int, kind: str) -> Tensor:
    """(B, T, H, W, c) levels -> (B * crops, c, T, side, side) float32, 2 level / 255 - 1; the sign of flow is not mirrored."""
    x = images.permute(0, 4, 1, 2, 3)
    height, width = x.shape[-2:]
    boxes = ten_crops(height, width, side)
    if kind != "ten":
        boxes = boxes[2:3]
    taken = [(x.flip(-1) if mirrored else x)[..., top:top + side, left:left + side] for top, left, mirrored in boxes]
    return torch.stack(taken, dim=1).flatten(0, 1).float().mul_(2).sub_(255).div_(255)


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """(H, W, 3) RGB through a colour JPEG with 4:2:0, or each plane of (H, W, 2) through a grey one; uint8."""
    cv2 = flow_library()

    def coded(plane: np.ndarray) -> np.ndarray:
        _, data = cv2.imencode(".jpg", plane, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if image.shape[2] == 3:
        return np.ascontiguousarray(coded(image[..., ::-1])[..., ::-1])
    return np.stack([coded(np.ascontiguousarray(image[..., i])) for i in range(image.shape[2])], axis=2)
