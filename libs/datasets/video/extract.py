"""Raw videos -> feature files, through a video network that the user brings (torch.export .pt2 or TorchScript .pt).

    streams = load_streams(settings)                   the networks, with their sha256
    extract_videos(videos, folder, settings, streams)  one .npy (T, C) per video and provenance.json

Feature t sees frames t * stride .. t * stride + num_frames - 1 of a grid of constant fps (libs/datasets/grid.py).
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from libs.core.errors import UserError, note
from libs.core.files import entries, exists, is_file, is_folder
from libs.datasets.features.formats import VIDEO_EXTENSIONS
from libs.datasets.features.provenance import FILE_NAME
from libs.datasets.video.decoding import Decoded, fitted_size, probe, read_frames, video_library
from libs.datasets.video.flow import BOUND, FARNEBACK, flow_library, flow_method, with_flow
from libs.utils.files.io import read_json, write_atomic, write_json_atomic
from libs.utils.progress import lines, no_progress, terminal_bar

FORMAT = 1
MOST_REPEATED = 10  # times that --fps may use one frame


class NetworkError(UserError):
    """The network fails, so that the remaining videos would fail too."""


@dataclass(frozen=True)
class ExtractSettings:
    """Settings of the extraction; the provenance file records them.

    resize: pixels of the shorter side, or (height, width), or None; crop: side of a centre crop, or None; mean, std: per channel
    of RGB in [0, 1]; fps: of the frame grid, None: each file's own average; device: torch device of the networks.
    """

    rgb_model: str | None
    flow_model: str | None
    stride: int
    num_frames: int
    fps: float | None = None
    resize: int | tuple[int, int] | None = 256
    crop: int | None = 224
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    flow_method: str = "farneback"
    batch_size: int = 4
    device: str = "cpu"
    allow_truncated: bool = False


@dataclass(frozen=True)
class Stream:
    """A network, (B, 2 or 3, T, H, W) -> (B, C): name ('rgb' or 'flow'), file, its sha256 and kind of program."""

    name: str
    path: str
    sha256: str
    kind: str
    network: Callable[[Tensor], Tensor]


def load_streams(settings: ExtractSettings) -> list[Stream]:
    """Load the networks, RGB first; UserError for a missing file or one that holds no program."""
    video_library()
    if settings.flow_model:
        flow_method(settings.flow_method)
    given = [(name, path) for name, path in (("rgb", settings.rgb_model), ("flow", settings.flow_model)) if path]
    if not given:
        raise UserError("no network: name one with --rgb-model or --flow-model")
    return [_load(name, path, torch.device(settings.device)) for name, path in given]


def _load(name: str, path: str, device: torch.device) -> Stream:
    try:
        with open(path, "rb") as file:
            digest = _sha256(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); --{name}-model names a .pt2 or .pt file of yours") from error
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


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def clips(frames: Iterable[np.ndarray], num_frames: int, stride: int) -> Iterator[np.ndarray]:
    """Windows t * stride .. t * stride + num_frames - 1 of a sequence of arrays, stacked along a new first axis.

    A sequence shorter than a window gives one window, padded with its last array; an empty one gives none.
    """
    held: deque[np.ndarray] = deque(maxlen=num_frames)
    count = 0
    for count, frame in enumerate(frames, 1):
        held.append(frame)
        if count >= num_frames and (count - num_frames) % stride == 0:
            yield np.stack(held)
    if 0 < count < num_frames:
        yield np.stack([*held, *[held[-1]] * (num_frames - count)])


def extract_features(path: str, settings: ExtractSettings, streams: Sequence[Stream], step: Callable[[], Any] = lambda: None
                     ) -> tuple[np.ndarray, dict[str, Any]]:
    """(T, C) float32 features of one video, streams joined along channels, and its entry in the provenance file.

    Memory is a window and a batch of windows, independent of the length.  A network's output is (B, C), or (B, C, ...), averaged
    over the further dimensions.  Raises UserError for an unusable video, and NetworkError for a network that fails.
    """
    info = probe(path)
    if settings.fps and settings.fps > MOST_REPEATED * info.fps:
        raise UserError(f"{path}: has {info.fps:g} frames per second, so --fps {settings.fps:g} would repeat every frame "
                        f"{settings.fps / info.fps:.3g} times; use at most {MOST_REPEATED * info.fps:g}")
    size = fitted_size(info.width, info.height, settings.resize)
    if settings.crop and settings.crop > min(size):
        raise UserError(f"{path}: frames of {size[0]} x {size[1]} pixels (height x width) are smaller than --crop {settings.crop}"
                        "; raise --resize or lower --crop")
    found, device = Decoded(), torch.device(settings.device)
    frames = _counted(read_frames(path, settings.fps, size, settings.allow_truncated, found), step)
    names = [stream.name for stream in streams]
    flow = with_flow(frames, flow_method(settings.flow_method)) if "flow" in names else ((frame, None) for frame in frames)
    packed = (_packed(frame, motion, names, settings.crop) for frame, motion in flow)
    scale = [torch.tensor(values, device=device).view(1, 3, 1, 1, 1) for values in (settings.mean, settings.std)]
    rows: list[np.ndarray] = []
    batch: list[np.ndarray] = []
    for clip in clips(packed, settings.num_frames, settings.stride):
        batch.append(clip)
        if len(batch) == settings.batch_size:
            rows.append(_run(path, batch, streams, settings, scale))
            batch = []
            _give_back(len(rows))
    if batch:
        rows.append(_run(path, batch, streams, settings, scale))
    fps = settings.fps or info.fps
    if found.rotation:
        note(f"warning: {path}: is stored turned by {found.rotation} degrees; frames are used as stored")
    if found.variable_rate and settings.fps is None:
        note(f"warning: {path}: has a variable frame rate; frames were taken at its average of {fps:g} fps: --fps makes all "
             "videos alike")
    return np.concatenate(rows), {
        "source": path, "bytes": os.path.getsize(path), "fps": fps, "native_fps": info.fps,
        "frames": found.frames, "decoded_frames": found.source_frames, "duration": round(found.duration_s, 6),
        "width": info.width, "height": info.height, "variable_frame_rate": found.variable_rate, "vectors": sum(map(len, rows))}


def _give_back(batches: int) -> None:
    """Return freed memory to the system every 32 batches: glibc would keep a gigabyte of fragments for a long video."""
    if batches % 32 == 0 and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _counted(frames: Iterable[np.ndarray], step: Callable[[], Any]) -> Iterator[np.ndarray]:
    for frame in frames:
        step()
        yield frame


def _packed(frame: np.ndarray, motion: np.ndarray | None, names: Sequence[str], crop: int | None) -> np.ndarray:
    """Centre crop; RGB stays uint8, with flow everything is float32 (H, W, 3 + 2), or (H, W, 2) without RGB."""
    parts = [frame] if "rgb" in names else []
    if motion is not None:
        parts = [part.astype(np.float32) for part in parts] + [motion]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
    if crop:
        top, left = (whole.shape[0] - crop) // 2, (whole.shape[1] - crop) // 2
        whole = whole[top:top + crop, left:left + crop]
    return np.ascontiguousarray(whole)


def _run(path: str, batch: list[np.ndarray], streams: Sequence[Stream], settings: ExtractSettings, scale: list[Tensor]
         ) -> np.ndarray:
    """Features (len(batch), C) of clips (T, H, W, c); padded to the batch size, since a program may be exported for one size."""
    filled = batch + [batch[-1]] * (settings.batch_size - len(batch))
    x = torch.from_numpy(np.stack(filled)).to(settings.device).permute(0, 4, 1, 2, 3)  # (B, c, T, H, W)
    outputs = []
    for stream in streams:
        if stream.name == "rgb":
            taken = torch.empty((len(filled), 3, *x.shape[2:]), device=x.device).copy_(x[:, :3])
            taken.div_(255).sub_(scale[0]).div_(scale[1])  # in place: large temporaries would fragment the heap
        else:
            taken = x[:, -2:].contiguous()
        where = f"{stream.path}: on {path}, input {tuple(taken.shape)} (batch, channels, frames, height, width)"
        try:
            with torch.inference_mode(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                y = stream.network(taken)
        except Exception as error:  # a program can raise anything
            reason = " ".join(str(error).split())[:300]
            raise NetworkError(f"{where}: the program fails ({reason}); set --batch-size, --num-frames, --resize and --crop as "
                               "it was exported") from error
        if not isinstance(y, Tensor) or y.dim() < 2 or len(y) != len(filled):
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise NetworkError(f"{where}: the program returns {got}; expected a tensor (batch, channels)")
        y = y.float().flatten(2).mean(2) if y.dim() > 2 else y.float()
        if not torch.isfinite(y).all():
            raise NetworkError(f"{where}: the program returns NaN or infinite values; check --mean, --std and the network")
        outputs.append(y[:len(batch)].cpu())
    return torch.cat(outputs, dim=1).numpy()


def describe(settings: ExtractSettings, streams: Sequence[Stream]) -> dict[str, Any]:
    """Head of the provenance file: all settings that the features depend on."""
    parts = []
    for stream in streams:
        part: dict[str, Any] = {"name": stream.name, "model": os.path.basename(stream.path), "sha256": stream.sha256,
                                "kind": stream.kind}
        if stream.name == "rgb":
            part |= {"values": "RGB / 255", "mean": list(settings.mean), "std": list(settings.std)}
        else:
            part |= {"values": f"pixels per frame, cut at +-{BOUND:g}, / {BOUND:g}", "method": settings.flow_method,
                     "parameters": FARNEBACK if settings.flow_method == "farneback" else "OpenCV's defaults"}
        parts.append(part)
    resize = list(settings.resize) if isinstance(settings.resize, tuple) else settings.resize
    return {"format": FORMAT, "stride": settings.stride, "num_frames": settings.num_frames, "offset": 0, "fps": settings.fps,
            "resize": resize, "crop": settings.crop, "streams": parts}


def libraries(streams: Sequence[Stream]) -> dict[str, str]:
    """Versions of the libraries that the features depend on."""
    av = video_library()
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "av": av.__version__}
    found |= {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
    if any(stream.name == "flow" for stream in streams):
        found["opencv"] = flow_library().__version__
    return found


def extract_videos(videos: Sequence[str], folder: str | os.PathLike, settings: ExtractSettings, streams: Sequence[Stream],
                   overwrite: bool = False) -> tuple[int, int, list[str]]:
    """Write folder/<name>.npy for every video without one; returns (made, skipped, one line per video that failed).

    videos: files, and folders of them.
    The provenance file is written after each video, so the videos that it lists are complete.  Raises UserError for two videos of
    one name and, unless `overwrite`, for features there of other settings or of another video of one name; NetworkError for a
    network that fails.
    """
    names: dict[str, str] = {}
    for path in _video_files(videos):
        if names.setdefault(Path(path).stem, path) != path:
            raise UserError(f"{path}: has the same name as {names[Path(path).stem]}; both would become {Path(path).stem}.npy: "
                            "rename one of them, or extract each to a folder of its own")
    folder = Path(folder)
    head = describe(settings, streams)
    done = _done(folder / FILE_NAME, head, overwrite)
    for name, path in names.items():
        _refuse_another_video(path, folder / f"{name}.npy", done.get(name))
    failed: list[str] = []
    todo = [(name, path) for name, path in names.items()
            if not (is_file(folder / f"{name}.npy") and exists(path)
                    and done.get(name, {}).get("bytes") == os.path.getsize(path))]
    advance = no_progress if sys.stderr.isatty() else lines("videos", 1)
    with terminal_bar(_frames(path for _, path in todo), "frames", unit="frame") as bar:
        for i, (name, path) in enumerate(todo, 1):
            bar.set_postfix_str(name, refresh=False)
            try:
                feats, entry = extract_features(path, settings, streams, bar.update)
            except NetworkError:
                raise
            except UserError as error:
                failed.append(str(error))
            else:
                write_atomic(folder / f"{name}.npy", functools.partial(np.save, arr=feats))
                head["channels"] = int(feats.shape[1])
                done[name] = entry
                write_json_atomic(folder / FILE_NAME, {**head, "libraries": libraries(streams), "videos": done})
            advance(i, len(todo))
    return len(todo) - len(failed), len(names) - len(todo), failed


def _video_files(paths: Iterable[str]) -> Iterator[str]:
    """The paths, with the videos in a folder in its place; UserError for a folder without any."""
    for path in paths:
        if not is_folder(path) or path.lower().endswith(VIDEO_EXTENSIONS):  # a folder named as a video fails as one
            yield path
        elif inside := [str(p) for p in entries(path) if p.suffix.lower() in VIDEO_EXTENSIONS]:
            yield from inside
        else:
            raise UserError(f"{path}: holds no videos ({', '.join(VIDEO_EXTENSIONS)}); name the files themselves")


def _refuse_another_video(path: str, features: Path, entry: dict[str, Any] | None) -> None:
    """UserError if the feature file is there and of another video; one of equal size whose path is gone has been moved."""
    if entry is None or not is_file(features) or not exists(path) or entry.get("source") == path:
        return
    source = str(entry.get("source"))
    same = os.path.samefile(source, path) if exists(source) else entry.get("bytes") == os.path.getsize(path)
    if not same:
        raise UserError(f"{path}: {features} holds the features of another video of this name, {source}; rename one of the "
                        "videos, choose another folder, or remove that file to replace it")


def _frames(paths: Iterable[str]) -> int | None:
    total = 0
    for path in paths:
        with contextlib.suppress(UserError):
            info = probe(path)
            total += round((info.duration_s or 0) * info.fps)
    return total or None


def _done(path: Path, head: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Entries of videos that an earlier run with the same settings finished."""
    if overwrite or not exists(path):
        return {}
    before = read_json(path, "provenance file")
    if not isinstance(before, dict) or not isinstance(before.get("videos"), dict):
        raise UserError(f"{path}: is not a provenance file of this tool; choose another folder")
    for key, value in head.items():
        if before.get(key) != value:
            raise UserError(f"{path}: the features there were made with another {key} ({str(before.get(key))[:150]}, now "
                            f"{str(value)[:150]}); choose another folder, or add --overwrite to replace them")
    return before["videos"]
