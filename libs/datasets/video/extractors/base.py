"""What every extractor is: settings, frames to items, windows of items to vectors.

A new one is a file with a subclass of `Extractor` and a line in `EXTRACTORS` (libs/datasets/video/extractors/__init__.py).
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from libs.core.devices import multiplies_bf16
from libs.core.errors import UserError, nearest, note
from libs.datasets.video.decoding import fitted_size, video_library
from libs.datasets.video.flow import FlowMethod

FORMAT = 1
FIRST = ("stride", "num_frames", "fps")  # of the provenance file, in this place
RUN_ONLY = ("batch_size", "device", "allow_truncated")  # do not change a feature
PRECISIONS = ("fp32", "bf16")


class NetworkError(UserError):
    """The network fails, so that the remaining videos would fail too."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every extractor; a subclass adds its own.  Command-line options have the same names.

    stride, num_frames: of the windows, in frames; fps: of the frame grid, None: each file's own average; batch_size: windows at a
    time; device: torch device; allow_truncated: use what can be decoded of a cut file.
    """

    stride: int
    num_frames: int
    fps: float | None = None
    batch_size: int = 4
    device: str = "cpu"
    allow_truncated: bool = False


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Settings):
    """Settings of extractors with a network; precision: of `PRECISIONS`, of its products."""

    precision: str = "fp32"


class Extractor(ABC):
    """Frames of a video -> feature vectors; an instance has its networks loaded.

    `prepare` makes one item of each frame: an array, or a tuple of arrays, small if it can be, since a window of items is held.
    `features` makes a vector of each window.  Neither keeps state between videos, so that one may run beside the other.

    name: in `--extractor NAME`; argument: (setting, placeholder) of what follows in NAME:...; presets: name -> values of
    settings, the first is the default; scaling: FFmpeg's method for `fit`; in_streams: settings that `streams` records, or that
    its hashes stand for.  method: of the optical flow that `prepare` computes, None: it needs none.
    """

    name: ClassVar[str]
    settings_class: ClassVar[type[Settings]] = Settings
    argument: ClassVar[tuple[str, str] | None] = None
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    scaling: ClassVar[str] = "BILINEAR"
    in_streams: ClassVar[Sequence[str]] = ("rgb_model", "flow_model")
    method: FlowMethod | None = None

    def __init__(self, settings: Any, preset: str | None = None) -> None:
        self.settings, self.preset = settings, preset
        self.streams: list[dict[str, Any]] = []  # of the provenance file: name and whatever makes the stream's values

    @classmethod
    def defaults(cls, argument: str | None) -> Mapping[str, Any]:
        """Values of settings that follow from the argument, as NETWORK in `torchvision:NETWORK`."""
        return {}

    def fit(self, path: str, width: int, height: int) -> tuple[int, int] | None:
        """(height, width) to which the decoder scales by `scaling`, as FFmpeg does it; None: frames come as stored.

        Raises UserError for a size that cannot be used.
        """
        return None

    @abstractmethod
    def prepare(self, frames: Iterator[np.ndarray], path: str) -> Iterator[Any]:
        """Items, one per frame (H, W, 3) uint8 RGB, lazily and in order; UserError for a video that cannot be used."""

    @abstractmethod
    def features(self, windows: Sequence[Sequence[Any]], path: str) -> np.ndarray:
        """(B, C) float32 of B <= batch_size windows of num_frames items; NetworkError for a network that fails."""

    def describe(self) -> dict[str, Any]:
        """Head of the provenance file: all settings that the features depend on."""
        values, streams = dataclasses.asdict(self.settings), self.streams
        own = {k: v for k, v in values.items() if k not in (*FIRST, *RUN_ONLY, *self.in_streams, "precision")}
        if values.get("precision", "fp32") != "fp32":  # features of before there was a choice stay as they are
            streams = [{"precision": values["precision"], **stream} for stream in streams]
        head = {"format": FORMAT, "extractor": self.name, "preset": self.preset, "stride": values["stride"],
                "num_frames": values["num_frames"], "offset": 0, "fps": values["fps"], **own, "streams": streams}
        return json.loads(json.dumps({k: v for k, v in head.items() if k != "preset" or v}))  # tuples become lists

    def libraries(self) -> dict[str, str]:
        """Versions of the libraries that the features depend on."""
        av = video_library()
        found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "av": av.__version__}
        return found | {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}

    def told(self) -> list[str]:
        """Lines for the user before the first video: what was loaded."""
        return []


def cropped_size(path: str, width: int, height: int, resize: int | tuple[int, int] | None, crop: int | None) -> tuple[int, int]:
    """`fitted_size`; UserError if a crop of side `crop` does not fit into it."""
    size = fitted_size(width, height, resize)
    if crop and crop > min(size):
        raise UserError(f"{path}: frames of {size[0]} x {size[1]} pixels (height x width) are smaller than --crop {crop}"
                        "; raise --resize or lower --crop")
    return size


def centre(frame: np.ndarray, crop: int | None) -> np.ndarray:
    """The centre crop of side `crop` of (H, W, c), rounded to the top left; None: all of it."""
    if not crop:
        return frame
    top, left = (frame.shape[0] - crop) // 2, (frame.shape[1] - crop) // 2
    return frame[top:top + crop, left:left + crop]


def normalised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x / 255 - mean) / std of RGB (B, 3, T, H, W), contiguous float32; mean, std: (1, 3, 1, 1, 1) on its device."""
    values = torch.empty(x.shape, device=x.device).copy_(x)
    return values.div_(255).sub_(mean).div_(std)  # in place: large temporaries would fragment the heap


def check_precision(settings: NetworkSettings) -> None:
    """UserError for an unknown precision; a warning for bf16 on a processor without it."""
    if settings.precision not in PRECISIONS:
        raise UserError(f"--precision {settings.precision}: unknown{nearest(settings.precision, PRECISIONS)}; there are "
                        f"{', '.join(PRECISIONS)}")
    if settings.precision == "bf16" and settings.device == "cpu" and not multiplies_bf16():
        note("warning: --precision bf16: this processor has no bf16 products (AMX or AVX512-BF16), so it takes several times as "
             "long as fp32; leave it out")


def run_network(network: Callable[[Tensor], Any], x: Tensor, precision: str, model: str, path: str, remedy: str) -> Tensor:
    """(B, C) float32 on the CPU: the network's (B, C, ...), averaged over the further dimensions.

    precision: of `PRECISIONS`; bf16 is torch's autocast, on values that lie channels last, as its convolutions want them.
    fp32 is no TF32 on a GPU, PyTorch's default for convolutions.
    Raises NetworkError, naming the file `model`, the video and the input's shape, if it fails or returns no such tensor.
    """
    where = f"{model}: on {path}, input {tuple(x.shape)} (batch, channels, frames, height, width)"
    cudnn = torch.backends.cudnn
    exact = cudnn.flags(enabled=True, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)
    try:
        low = precision == "bf16"
        x = x.clone(memory_format=torch.channels_last_3d) if low else x  # a view of one clip would not count as such
        with (exact, torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=low),
              warnings.catch_warnings()):
            warnings.simplefilter("ignore")
            y = network(x)
    except Exception as error:  # a program can raise anything
        reason = " ".join(str(error).split())[:300]
        raise NetworkError(f"{where}: the network fails ({reason}); {remedy}") from error
    if not isinstance(y, Tensor) or y.dim() < 2 or len(y) != len(x):
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise NetworkError(f"{where}: the network returns {got}; expected a tensor (batch, channels)")
    y = y.float().flatten(2).mean(2) if y.dim() > 2 else y.float()
    if not torch.isfinite(y).all():
        raise NetworkError(f"{where}: the network returns NaN or infinite values; check its weights, and --mean and "
                           "--std")
    return y.cpu()


@dataclass(frozen=True)
class Hashes:
    """Identity of a file: SHA-256, the SHA-1 that git gives it, size in bytes."""

    sha256: str
    git_blob: str
    size: int


def hashes(path: str, option: str, what: str) -> Hashes:
    """Hashes of a file, read once; UserError, naming the option and what it wants, for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
                blob.update(chunk)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); {option} names {what}") from error
    return Hashes(sha256.hexdigest(), blob.hexdigest(), size)
