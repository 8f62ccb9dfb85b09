"""`transformers:FOLDER`: a video network of the package transformers, from a local folder with config.json and safetensors.

The feature is the usual one of each type, and frames are prepared as the folder's preprocessor file says.  Nothing is downloaded,
and no code of the folder runs.
"""
from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from libs.core.errors import UserError
from libs.datasets.video.extractors.base import hashes
from libs.datasets.video.extractors.rgb_clips import ClipSettings, RGBClips
from libs.datasets.video.extractors.torchvision_networks import torchvision_library
from libs.datasets.video.extractors.transformers_files import (
    CONFIG,
    VIDEOMAE_CLASSIFIER,
    WEIGHTS,
    read_folder,
    read_preprocessing,
    weight_files,
)

INSTALL = 'pip install -e ".[video-transformers]"'
ARGUMENTS: dict[str, dict[str, Any]] = {  # of loading; attention is named, since config.json could ask for foreign code
    "TimesformerModel": {"attn_implementation": "eager"},  # it has no other
    "VivitModel": {"add_pooling_layer": False},
}


@dataclass(frozen=True, kw_only=True)
class TransformersSettings(ClipSettings):
    """Settings of a network of transformers: its folder."""

    folder: str


class Transformers(RGBClips):
    """Clips through a network of transformers."""

    name = "transformers"
    settings_class = TransformersSettings
    argument = ("folder", "FOLDER")
    in_streams = ("folder", "mean", "std")

    @classmethod
    def defaults(cls, argument: str | None) -> Mapping[str, Any]:
        if not argument:
            raise UserError(f"--extractor {cls.name}: expected {cls.name}:FOLDER, a folder with {CONFIG} and {WEIGHTS}")
        found = read_folder(argument)
        return {"num_frames": found.num_frames, "stride": max(found.num_frames // 4, 1),
                **read_preprocessing(argument, found.model_type)}

    def takes(self) -> tuple[range, range]:
        found = read_folder(self.settings.folder)
        return found.frames, found.sides

    def load(self) -> tuple[str, Callable[[Tensor], Tensor], dict[str, Any]]:
        folder = self.settings.folder
        found, files = read_folder(folder), [Path(folder, CONFIG), *weight_files(folder)]
        feature, network = headless(load_network(folder, found.network).to(self.device), found.class_token)
        digests = {path.name: hashes(str(path), f"--extractor {self.name}", "a folder").sha256 for path in files}
        return folder, network, {"model": os.path.basename(os.path.abspath(folder)), "files": digests,
                                 "kind": f"transformers {found.network}", "feature": feature}

    def told(self) -> list[str]:
        stream = self.streams[0]
        return [f"rgb: {os.path.join(self.path, file)} ({stream['kind']}, {stream['feature']}, sha256 {sha256})"
                for file, sha256 in stream["files"].items() if file != CONFIG]

    def libraries(self) -> dict[str, str]:
        used = {"pillow": "PIL", "transformers": "transformers", "safetensors": "safetensors"}
        return super().libraries() | {name: importlib.import_module(module).__version__ for name, module in used.items()}


def transformers_library() -> Any:
    """The module transformers; UserError that says how to install it where it is missing."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f"the package transformers is needed: {INSTALL}")
    if importlib.util.find_spec("torchvision") is not None:
        torchvision_library()  # transformers imports it where it is installed, and would fail with it
    try:
        return importlib.import_module("transformers")
    except Exception as error:  # ImportError, and whatever the packages under it raise
        raise UserError(f"the package transformers cannot be used ({' '.join(str(error).split())[:200]}): {INSTALL}") from error


def load_network(folder: str, name: str) -> Any:
    """The network of class `name` with its weights, float32, in evaluation mode; UserError unless the folder has them all."""
    library = transformers_library()
    library.utils.logging.set_verbosity_error()  # it would list the weights of heads that are not used
    library.utils.logging.disable_progress_bar()
    try:
        network, found = getattr(library, name).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
            **{"attn_implementation": "sdpa", **ARGUMENTS.get(name, {})})
    except Exception as error:  # of the package, its configurations and safetensors
        raise UserError(f"{folder}: cannot be loaded as {name} of transformers {library.__version__} "
                        f"({' '.join(str(error).split())[:200]}); fetch its files again") from error
    if missing := sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"]))):
        raise UserError(f"{folder}: {len(missing)} weights of {name} are missing or have another shape, as {missing[0]}; "
                        f"{CONFIG} and weights are not of one network: fetch them again")
    return network.float().eval()


def headless(network: Any, class_token: bool) -> tuple[str, Callable[[Tensor], Tensor]]:
    """What the feature of a network is, and the function (B, 3, T, H, W) -> (B, C); the network itself takes (B, T, 3, H, W)."""
    name = type(network).__name__
    if name == VIDEOMAE_CLASSIFIER:
        return "mean of the tokens, then fc_norm", lambda x: network.fc_norm(
            network.videomae(x.transpose(1, 2)).last_hidden_state.mean(1))
    if name == "VJEPA2Model":
        return "mean of the tokens", lambda x: network(x.transpose(1, 2), skip_predictor=True).last_hidden_state.mean(1)
    if class_token:
        return "class token", lambda x: network(x.transpose(1, 2)).last_hidden_state[:, 0]
    return "mean of the tokens", lambda x: network(x.transpose(1, 2)).last_hidden_state.mean(1)
