"""`torchvision:NAME`: the video networks of torchvision with their Kinetics-400 weights, which the user fetches.

Each has the preprocessing of its weights, frames scaled without antialiasing and (RGB / 255 - mean) / std.  The feature is the
input of its last linear layer.
"""
from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from libs.core.errors import UserError, nearest, note
from libs.datasets.video.extractors.base import hashes
from libs.datasets.video.extractors.rgb_clips import ANY, MOST, ClipSettings, RGBClips
from libs.utils.files.torch_files import load_plain

WEIGHTS_AT = "https://download.pytorch.org/models/"
NAMED_HASH = re.compile(r"-([0-9a-f]{8,})\.pth$")  # torch.hub's convention: the first digits of the sha256
MISSING_OPERATOR = re.compile(r"operator torchvision::(\w+) does not exist")
MOST_OPERATORS = 10  # that are defined before `import torchvision` is given up; 0.28 needs two
KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
_defined: list[torch.library.Library] = []  # definitions end with their library


@dataclass(frozen=True)
class Network:
    """A network: published files of weights, last layer, size and values of frames, frames of a window, and all that it takes."""

    files: tuple[str, ...]
    head: str
    resize: int | tuple[int, int]
    crop: int
    scale: tuple[tuple[float, float, float], tuple[float, float, float]]
    num_frames: int = 16
    frames: range = ANY
    sides: range = ANY


RESNET: dict[str, Any] = {"head": "fc", "resize": (128, 171), "crop": 112, "scale": KINETICS}
S3D: dict[str, Any] = {"head": "classifier", "resize": (256, 256), "crop": 224, "scale": KINETICS, "frames": range(14, MOST),
                       "sides": range(209, MOST)}
MVIT: dict[str, Any] = {"head": "head.1", "resize": 256, "crop": 224, "scale": GREY, "frames": range(16, 17),
                        "sides": range(224, 225)}
SWIN: dict[str, Any] = {"head": "head", "resize": 256, "crop": 224, "scale": IMAGENET, "num_frames": 32,
                        "frames": range(2, MOST, 2)}
NETWORKS = {
    "r3d_18": Network(("r3d_18-b3b3357e.pth",), **RESNET),
    "mc3_18": Network(("mc3_18-a90a0ba3.pth",), **RESNET),
    "r2plus1d_18": Network(("r2plus1d_18-91a641e6.pth",), **RESNET),
    "s3d": Network(("s3d-d76dad2f.pth",), **S3D),
    "mvit_v1_b": Network(("mvit_v1_b-dbeb1030.pth",), **MVIT),
    "mvit_v2_s": Network(("mvit_v2_s-ae3be167.pth",), **MVIT),
    "swin3d_t": Network(("swin3d_t-7615ae03.pth",), **SWIN),
    "swin3d_s": Network(("swin3d_s-da41c237.pth",), **SWIN),
    "swin3d_b": Network(("swin3d_b_1k-24f7c7c6.pth", "swin3d_b_22k-7c6ae6fa.pth"), **SWIN),
}


@dataclass(frozen=True, kw_only=True)
class TorchvisionSettings(ClipSettings):
    """Settings of a network of torchvision: its name, and the file of its weights."""

    network: str
    rgb_model: str | None = None


class Torchvision(RGBClips):
    """Clips through a network of torchvision."""

    name = "torchvision"
    settings_class = TorchvisionSettings
    argument = ("network", "NAME")
    in_streams = ("rgb_model", "mean", "std")

    @classmethod
    def defaults(cls, argument: str | None) -> Mapping[str, Any]:
        network = NETWORKS.get(argument or "")
        if network is None:
            told = f":{argument}: unknown network{nearest(argument, NETWORKS)}" if argument else f": expected {cls.name}:NAME"
            raise UserError(f"--extractor {cls.name}{told}; there are {', '.join(NETWORKS)}")
        mean, std = network.scale
        return {"num_frames": network.num_frames, "stride": 4, "resize": network.resize, "crop": network.crop, "mean": mean,
                "std": std, "resampling": "bilinear"}

    def takes(self) -> tuple[range, range]:
        network = NETWORKS[self.settings.network]
        return network.frames, network.sides

    def load(self) -> tuple[str, Callable[[Tensor], Tensor], dict[str, Any]]:
        name, path = self.settings.network, self.settings.rgb_model
        network = NETWORKS[name]
        wanted = " or ".join(f"{WEIGHTS_AT}{file}" for file in network.files)
        if not path:
            raise UserError(f"--extractor {self.label()}: needs weights; fetch {wanted} and name the file with --rgb-model")
        found = hashes(path, "--rgb-model", f"the weights of {name}: {wanted}")
        promised = NAMED_HASH.search(path)
        if promised and not found.sha256.startswith(promised[1]):
            raise UserError(f"{path}: its sha256 begins with {found.sha256[:8]}, not with {promised[1]} as its name says: "
                            f"it is cut or damaged ({found.size:,} bytes); fetch it again: {wanted}")
        published = [file for file in network.files if found.sha256.startswith(file[-12:-4])]
        model = headless(torchvision_library().models.get_model(name, weights=None), network.head)
        try:
            state = load_plain(path)
            model.load_state_dict({key: value for key, value in state.items() if not key.startswith(f"{network.head}.")})
        except Exception as error:  # whatever torch.load and load_state_dict raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: is not a state dict of {name} ({reason}); use {wanted}") from error
        return path, model.to(self.device), {
            "model": os.path.basename(path), "sha256": found.sha256, "git_blob": found.git_blob,
            "published": published[0] if published else None, "kind": f"torchvision {name}",
            "feature": f"input of the last layer, {network.head}"}

    def cropped(self, frame: np.ndarray, crop: int | None) -> np.ndarray:
        """The centre of a frame; half a pixel is rounded to the even one, as torchvision does it."""
        if not crop:
            return frame
        top, left = (round((n - crop) / 2) for n in frame.shape[:2])
        return frame[top:top + crop, left:left + crop]

    def told(self) -> list[str]:
        stream, files = self.streams[0], NETWORKS[self.settings.network].files
        if not stream["published"]:
            note(f"warning: {self.path}: is not the published {' or '.join(files)}; features are those of your weights")
        return [f"rgb: {self.path} ({stream['kind']}, sha256 {stream['sha256']})"]

    def libraries(self) -> dict[str, str]:
        return super().libraries() | {"torchvision": torchvision_library().__version__}


def headless(model: nn.Module, head: str) -> nn.Module:
    """The network in evaluation mode, with its features (B, C) in place of the scores of its last layer."""
    model.set_submodule(head, nn.Identity())
    return model.eval()


def torchvision_library() -> Any:
    """The module torchvision; UserError that says how to install it where it is missing or does not fit PyTorch.

    PyPI's torchvision is built for CUDA.  Beside a CPU build of PyTorch its compiled operators cannot be loaded, and the import
    fails at the first that it describes.  The video networks use none, so these names are defined, without code, and it is
    imported again.
    """
    for _ in range(MOST_OPERATORS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of compiled parts that only images need
                return importlib.import_module("torchvision")
        except Exception as error:  # ImportError, RuntimeError, and what its compiled parts raise
            failure = error
            missing = MISSING_OPERATOR.search(str(error))
            if missing is None:
                break
            _define(missing[1])
    raise UserError(f"the package torchvision cannot be used ({' '.join(str(failure).split())[:200]}): {_fitting()}") from failure


def _define(operator: str) -> None:
    """Define an operator of torchvision without code, and forget the half-imported package."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _defined.append(library)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def _fitting() -> str:
    """How to install the torchvision of this PyTorch: 0.21 belongs to 2.6, 0.28 to 2.13."""
    major, minor = torch.__version__.split(".")[:2]
    pinned = f"torchvision==0.{int(minor) + 15}.*" if major == "2" else "torchvision"
    return (f'pip install --no-deps "{pinned}", from where PyTorch came, is the release for PyTorch {torch.__version__} '
            "(INSTALL.md, extra video-torchvision)")
