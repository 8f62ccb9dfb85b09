"""`program:FILE`: a video network that the user brings, as a program of torch.export (.pt2) or TorchScript (any other ending)."""
from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from libs.core.errors import UserError
from libs.datasets.video.decoding import video_library
from libs.datasets.video.extractors.base import (
    Extractor,
    Hashes,
    NetworkSettings,
    centre,
    check_precision,
    cropped_size,
    hashes,
    normalised,
    run_network,
)
from libs.datasets.video.flow import BOUND, flow_library, flow_method, flow_parameters, with_flow


@dataclass(frozen=True, kw_only=True)
class ProgramSettings(NetworkSettings):
    """Settings of a program.

    rgb_model, flow_model: files, at least one; resize: pixels of the shorter side, or (height, width), or None; crop: side of a
    centre crop, or None; mean, std: per channel of RGB in [0, 1]; flow_method: of `FLOW_METHODS`.
    """

    rgb_model: str | None = None
    flow_model: str | None = None
    resize: int | tuple[int, int] | None = 256
    crop: int | None = 224
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    flow_method: str = "farneback"


@dataclass(frozen=True)
class Stream:
    """A network, (B, 2 or 3, T, H, W) -> (B, C): name ('rgb' or 'flow'), file, its hashes and kind of program."""

    name: str
    path: str
    hashes: Hashes
    kind: str
    network: Callable[[Tensor], Tensor]


class Program(Extractor):
    """Clips through one program or two; RGB is normalised with mean and std, flow is in [-1, 1]."""

    name = "program"
    settings_class = ProgramSettings
    argument = ("rgb_model", "FILE")
    in_streams = ("rgb_model", "flow_model", "mean", "std", "flow_method")

    def __init__(self, settings: ProgramSettings, preset: str | None = None) -> None:
        super().__init__(settings, preset)
        video_library()
        check_precision(settings)
        self.method = flow_method(settings.flow_method) if settings.flow_model else None
        given = [(name, path) for name, path in (("rgb", settings.rgb_model), ("flow", settings.flow_model)) if path]
        if not given:
            raise UserError("no network: name one with --rgb-model or --flow-model")
        self.device = torch.device(settings.device)
        self.programs = [_load(name, path, self.device) for name, path in given]
        self.names = [program.name for program in self.programs]
        self.streams = [self._recorded(program) for program in self.programs]
        self.scale = [torch.tensor(values, device=self.device).view(1, 3, 1, 1, 1) for values in (settings.mean, settings.std)]

    def fit(self, path: str, width: int, height: int) -> tuple[int, int]:
        return cropped_size(path, width, height, self.settings.resize, self.settings.crop)

    def prepare(self, frames: Iterator[np.ndarray], path: str) -> Iterator[np.ndarray]:
        """Centre crops: RGB stays uint8, with flow everything is float32 (H, W, 3 + 2), or (H, W, 2) without RGB."""
        if self.method is None:
            for frame in frames:
                yield np.ascontiguousarray(centre(frame, self.settings.crop))
            return
        for frame, motion in with_flow(frames, self.method):
            whole = np.concatenate([frame.astype(np.float32), motion], axis=2) if "rgb" in self.names else motion
            yield np.ascontiguousarray(centre(whole, self.settings.crop))

    def features(self, windows: Sequence[Sequence[np.ndarray]], path: str) -> np.ndarray:
        """(B, C); padded to the batch size, since a program may be exported for one size."""
        filled = [*windows, *[windows[-1]] * (self.settings.batch_size - len(windows))]
        x = torch.from_numpy(np.stack([np.stack(window) for window in filled])).to(self.device).permute(0, 4, 1, 2, 3)
        outputs = []
        for program in self.programs:
            taken = normalised(x[:, :3], *self.scale) if program.name == "rgb" else x[:, -2:].contiguous()
            outputs.append(run_network(
                program.network, taken, self.settings.precision, program.path, path,
                "set --batch-size, --num-frames, --resize and --crop as it was exported")[:len(windows)])
        return torch.cat(outputs, dim=1).numpy()

    def libraries(self) -> dict[str, str]:
        return super().libraries() | ({"opencv": flow_library().__version__} if "flow" in self.names else {})

    def told(self) -> list[str]:
        return [f"{program.name}: {program.path} ({program.kind}, sha256 {program.hashes.sha256})" for program in self.programs]

    def _recorded(self, program: Stream) -> dict[str, Any]:
        part: dict[str, Any] = {"name": program.name, "model": os.path.basename(program.path), "sha256": program.hashes.sha256,
                                "kind": program.kind}
        if program.name == "rgb":
            return part | {"values": "RGB / 255", "mean": list(self.settings.mean), "std": list(self.settings.std)}
        method = self.settings.flow_method
        return part | {"values": f"pixels per frame, cut at +-{BOUND:g}, / {BOUND:g}", "method": method,
                       "parameters": flow_parameters(method)}


def _load(name: str, path: str, device: torch.device) -> Stream:
    digest = hashes(path, f"--{name}-model", "a .pt2 or .pt file of yours")
    kind = "torch.export" if path.endswith(".pt2") else "torchscript"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, but many networks exist only as such
            if kind == "torch.export":
                network = torch.export.load(path).module().to(device)
            else:
                network = torch.jit.load(path, map_location=device).eval()
    except Exception as error:  # the loaders raise nearly anything on foreign files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: cannot be loaded as a {kind} program ({reason}); save it with torch.export.save (.pt2) or "
                        "torch.jit.save (.pt): a state dict is not enough") from error
    return Stream(name, path, digest, kind, network)
