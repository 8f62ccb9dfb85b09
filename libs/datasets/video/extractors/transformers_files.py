"""The files of a folder of the package transformers: which network it is, what clips that takes, and how its frames are prepared.

Read without the package, so that its own processors, which need torchvision, and code of the folder play no part.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from libs.core.errors import UserError, note, shown
from libs.core.files import entries, is_file, is_folder
from libs.datasets.video.extractors.rgb_clips import MOST, RESAMPLING
from libs.utils.files.io import read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")
VIDEOMAE_CLASSIFIER = "VideoMAEForVideoClassification"  # the one class whose head makes the feature: its fc_norm
EXPORT = "export its network to program:FILE"
HALF = [0.5, 0.5, 0.5]
VALUES: dict[str, Any] = {  # of a preprocessor file; some types have others
    "do_resize": True, "size": {"shortest_edge": 224}, "resample": 2, "do_center_crop": True, "crop_size": 224,
    "do_rescale": True, "rescale_factor": 1 / 255, "offset": False,
    "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Kind:
    """A type of network: its class, whether a class token is its feature (else the mean of all tokens), keys of config.json for
    frames and side of a clip with the package's values, the package's values for frames where they differ from `VALUES`."""

    model: str
    class_token: bool
    frames: tuple[str, int]
    side: tuple[str, int]
    values: Mapping[str, Any] = field(default_factory=dict)


KINDS = {
    "videomae": Kind("VideoMAEModel", False, ("num_frames", 16), ("image_size", 224), {"image_mean": HALF, "image_std": HALF}),
    "timesformer": Kind("TimesformerModel", True, ("num_frames", 8), ("image_size", 224)),
    "vjepa2": Kind("VJEPA2Model", False, ("frames_per_clip", 64), ("crop_size", 256),
                   {"size": {"shortest_edge": 292}, "crop_size": 256}),
    "vivit": Kind("VivitModel", True, ("num_frames", 32), ("image_size", 224), {
        "size": {"shortest_edge": 256}, "rescale_factor": 1 / 127.5, "offset": True, "image_mean": HALF, "image_std": HALF}),
}


@dataclass(frozen=True)
class ModelFolder:
    """What config.json says: type of network, its class, whether the feature is a class token, frames of a clip and, as ranges,
    all numbers of frames and of pixels of a side that it takes."""

    model_type: str
    network: str
    class_token: bool
    num_frames: int
    frames: range
    sides: range


def read_folder(folder: str) -> ModelFolder:
    """UserError for what is no local model of a type of `KINDS`, or one that needs code of its own."""
    path = Path(folder, CONFIG)
    if not is_folder(folder):
        raise UserError(f"{folder}: no such folder; name one with {CONFIG} and {WEIGHTS}, since nothing is downloaded")
    if not is_file(path):
        raise UserError(f"{folder}: holds no {CONFIG}; name the folder of a model of transformers, with {CONFIG} and {WEIGHTS}")
    config = _mapping(path, "configuration of a network")
    if "auto_map" in config:
        raise UserError(f"{path}: auto_map names code of its author, which is not run; {EXPORT}")
    kind = KINDS.get(str(config.get("model_type")))
    if kind is None:
        raise UserError(f"{path}: model_type {shown(config.get('model_type'))} is none of {', '.join(KINDS)}; {EXPORT}")
    frames, side = _whole(path, config, *kind.frames), _whole(path, config, *kind.side)
    taken = range(frames, frames + 1)
    if config["model_type"] == "vjepa2":  # its positions are rotary, so that it takes clips of any length
        tubelet = _whole(path, config, "tubelet_size", 2)
        taken = range(tubelet, MOST, tubelet)
    classifier = VIDEOMAE_CLASSIFIER in str(config.get("architectures")) and config.get("use_mean_pooling", True)
    network = VIDEOMAE_CLASSIFIER if classifier and config["model_type"] == "videomae" else kind.model
    return ModelFolder(config["model_type"], network, kind.class_token, frames, taken, range(side, side + 1))


def weight_files(folder: str) -> list[Path]:
    """model.safetensors of a folder, or its shards; UserError if there are none."""
    files = entries(folder)
    found = [path for path in files if path.name == WEIGHTS] or [
        path for path in files if path.name.startswith("model-") and path.suffix == ".safetensors"]
    if not found:
        pickled = next((path.name for path in files if path.suffix in (".bin", ".pt", ".pth")), None)
        remedy = (f", only {pickled}; a pickle can run code and is not read: fetch {WEIGHTS}, or let transformers write it with "
                  "save_pretrained" if pickled else "; fetch it, too")
        raise UserError(f"{folder}: holds no {WEIGHTS}{remedy}")
    return found


def read_preprocessing(folder: str, model_type: str) -> dict[str, Any]:
    """`preprocessing` of a folder; a warning where it holds no file of it, and the package's values are used."""
    path = next((path for name in PROCESSORS if is_file(path := Path(folder, name))), None)
    if path is None:
        note(f"warning: {folder}: holds no {PROCESSORS[1]}, so frames are prepared as transformers does it for {model_type}, "
             "which may not be how these weights were trained: fetch that file, or give --resize, --crop, --mean and --std")
        path, given = Path(folder, CONFIG), {}
    else:
        given = _mapping(path, "preprocessor file")
    return preprocessing(path, {**VALUES, **KINDS[model_type].values, **given})


def preprocessing(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings resize, crop, mean, std and resampling from the values of a preprocessor file; UserError for others.

    The network sees (scale x - offset - image_mean) / image_std of bytes x.  That is (x / 255 - mean) / std with
    mean = (offset + image_mean) / (255 scale) and std = image_std / (255 scale).
    """
    size, crop = _pixels(path, values, "size"), _pixels(path, values, "crop_size")
    if isinstance(crop, tuple) and crop[0] != crop[1]:
        raise _refused(path, "crop_size", values["crop_size"], "a square")
    filters = {f"antialiased-{filter_.name.lower()}": filter_.value for filter_ in Image.Resampling}
    resampling = [name for name, number in filters.items() if number == values["resample"] and name in RESAMPLING]
    if not resampling:
        raise _refused(path, "resample", values["resample"], "2 (bilinear) or 3 (bicubic)")
    scale = 255 * _numbers(path, values, "rescale_factor")[0] if values["do_rescale"] else 255.0
    offset = float(bool(values["offset"] and values["do_rescale"]))
    mean, std = [0.0] * 3, [1.0] * 3
    if values["do_normalize"]:
        mean, std = _numbers(path, values, "image_mean"), _numbers(path, values, "image_std")
    for key, number in (("rescale_factor", scale), ("image_std", min(std))):
        if number <= 0:
            raise _refused(path, key, values[key], "more than 0")
    return {"resize": size if values["do_resize"] else None, "resampling": resampling[0],
            "crop": (crop[0] if isinstance(crop, tuple) else crop) if values["do_center_crop"] else None,
            "mean": tuple(round((offset + m) / scale, 9) for m in mean), "std": tuple(round(s / scale, 9) for s in std)}


def _pixels(path: Path, values: Mapping[str, Any], key: str) -> int | tuple[int, int]:
    """A number of pixels, as 224 or {"shortest_edge": 224}, or {"height": 224, "width": 224} as (height, width)."""
    value = values[key]
    if isinstance(value, dict):
        value = value.get("shortest_edge") or (value.get("height"), value.get("width"))
    if not all(type(n) is int and 0 < n < MOST for n in (value if isinstance(value, tuple) else (value,))):
        raise _refused(path, key, values[key], "a number of pixels, shortest_edge, or height and width")
    return value


def _numbers(path: Path, values: Mapping[str, Any], key: str) -> list[float]:
    """A number for each of R, G and B; one stands for three."""
    found = values[key] if isinstance(values[key], list) else [values[key]] * 3
    if len(found) != 3 or not all(type(number) in (int, float) and abs(number) < MOST for number in found):
        raise _refused(path, key, values[key], "a number, or one for each of R, G and B")
    return [float(number) for number in found]


def _whole(path: Path, config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if type(value) is not int or not 0 < value < MOST:
        raise _refused(path, key, value, "a whole number above 0")
    return value


def _mapping(path: Path, what: str) -> dict[str, Any]:
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a {what}, which is a JSON object; fetch it again")
    return content


def _refused(path: Path, key: str, value: Any, expected: str) -> UserError:
    return UserError(f"{path}: {key} is {shown(value)}; expected {expected}")
