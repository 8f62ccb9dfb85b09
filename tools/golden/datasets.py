"""Dataset fixtures (datasets_seed*.npz): annotation files and features through `TalDataset`, crops through `random_crop`."""
from __future__ import annotations

import dataclasses
import pickle
import random
import tempfile
import unittest.mock
import warnings
from pathlib import Path

import numpy as np
import torch

from golden.common import Check, agree, compare, load, text
from libs.core.schema import Config, DatasetConfig, ModelConfig
from libs.datasets.dataset import TalDataset
from libs.datasets.transforms import random_crop

SAME_NAMES = ("feat_stride", "num_frames", "default_fps", "downsample_rate", "max_seq_len", "trunc_thresh", "crop_ratio",
              "num_classes", "force_upsampling", "file_prefix", "file_ext")


def check(path: Path) -> list[Check]:
    """Compare every dataset and every crop of one fixture."""
    data = load(Path(path))
    return [c for tag in text(data["tags"]) for c in _check_dataset(data, tag, Path(path).name)] + _check_crops(data)


def check_crops(path: Path) -> list[Check]:
    """Compare every crop of a fixture that holds crops alone."""
    return _check_crops(load(Path(path)))


def _check_crops(data: dict[str, np.ndarray]) -> list[Check]:
    crops = sorted({key.split("/")[0] for key in data if key.startswith("trunc")}, key=lambda name: int(name[5:]))
    return [c for name in crops for c in _check_crop(data, name)]


def _check_dataset(data: dict[str, np.ndarray], tag: str, source: str) -> list[Check]:
    kwargs, checks = text(data[f"{tag}/kwargs"]), []
    odd_lengths = unittest.mock.patch("libs.datasets.sample.implausible_length", return_value=False)  # the check is ours alone
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), odd_lengths:
        warnings.simplefilter("ignore")  # the fixtures hold odd segments and missing features on purpose
        config = _config(data, tag, kwargs, Path(folder), source)
        for mode in ("eval", "train"):
            dataset = TalDataset(config, kwargs["split"], training=mode == "train")
            name = f"{tag}/{mode}"
            checks.append(compare(f"{name}/len", len(dataset), data[f"{name}/len"]))
            for i in range(min(len(dataset), int(data[f"{name}/len"]))):
                checks += _check_item(data, f"{name}/item{i}", dataset, i)
        checks.append(compare(f"{tag}/tiou", dataset.tious, data[f"{tag}/tiou"], atol=1e-12))
        checks.append(compare(f"{tag}/empty", np.array(dataset.empty_classes, np.int64), data[f"{tag}/empty"]))
        checks.append(agree(f"{tag}/label_dict", dataset.label_ids == text(data[f"{tag}/label_dict"])))
    return checks


def _config(data: dict[str, np.ndarray], tag: str, kwargs: dict, folder: Path, source: str) -> Config:
    """Write the annotation and feature files, and the configuration that reads them."""
    (folder / "annotations.json").write_text(str(data[f"{tag}/json"]), encoding="utf-8")
    for key, feats in data.items():
        if key.startswith(f"{tag}/file/") and ".pkl/" not in key:
            file = folder / key.removeprefix(f"{tag}/file/")
            file.parent.mkdir(exist_ok=True)
            if file.suffix == ".npz":
                np.savez(file, feats=feats)
            else:
                np.save(file, feats)
    for pickled in {key.rpartition("/")[0] for key in data if key.startswith(f"{tag}/file/") and ".pkl/" in key}:
        file = folder / pickled.removeprefix(f"{tag}/file/")
        file.parent.mkdir(exist_ok=True, parents=True)
        names = ("fast_feature", "slow_feature")  # the order in the file does not count
        file.write_bytes(pickle.dumps({name: torch.from_numpy(data[f"{pickled}/{name}"]) for name in names}))
    hacs = kwargs.get("backbone_type")
    same = {"file_prefix": "v_" if hacs == "tsp" else None, "subset_folders": hacs == "slowfast",
            **{key: kwargs[key] for key in SAME_NAMES if key in kwargs}}
    same["crop_ratio"] = tuple(same["crop_ratio"]) if same["crop_ratio"] else None
    folders = tuple(str(folder / name) for name in kwargs["folders"])
    width, read = _width(data, tag, kwargs["folders"]), {}
    if kwargs["dataset"] == "multithumos" and kwargs["input_dim"] < width:  # TemporalMaxer reads the first half alone
        same["modalities"], read = {"rgb": (0, kwargs["input_dim"])}, {"modalities": ("rgb",)}
    dataset = DatasetConfig(json_file=str(folder / "annotations.json"), feat_folder=folders,
                            input_dim=width, missing="skip", crop_offset="tridet" not in source, **same)
    return dataclasses.replace(Config(), dataset_name=kwargs["dataset"], dataset=dataset, model=ModelConfig(**read))


def _width(data: dict[str, np.ndarray], tag: str, folders: list[str]) -> int:
    """Channels of one video's files, all folders together; a .pkl file holds two arrays."""
    width = 0
    for name in folders:
        keys = sorted(key for key in data if key.startswith(f"{tag}/file/{name}/"))
        pair = ".pkl/" in keys[0]
        width += sum(data[key].shape[1] for key in keys[:2 if pair else 1])
    return width


def _check_item(data: dict[str, np.ndarray], name: str, dataset: TalDataset, i: int) -> list[Check]:
    has_segments = bool(data[f"{name}/has_gt"])
    # the published code leaves videos without annotations uncropped
    sample = dataset.sample(i)
    if dataset.training and has_segments:
        sample = dataset.crop(sample, random.Random(1234 + i))
    video, meta = dataset.videos[i], text(data[f"{name}/meta"])
    numbers = {"fps": sample.grid.fps, "duration": sample.duration_s, "feat_stride": sample.grid.stride,
               "feat_num_frames": sample.grid.num_frames}
    checks = [compare(f"{name}/feats", dataset.features(sample).numpy().T, data[f"{name}/feats"], atol=1e-6),
              agree(f"{name}/id", sample.video_id == meta["video_id"]),
              compare(f"{name}/meta", list(numbers.values()), [meta[key] for key in numbers], rtol=1e-12)]
    if "offset" in meta:
        checks.append(agree(f"{name}/offset", video.offset == meta["offset"]))
    want = data[f"{name}/segments"] if has_segments else np.zeros((0, 2), np.float32)
    labels = data[f"{name}/labels"] if has_segments else np.zeros(0, np.int64)
    return [*checks, compare(f"{name}/segments", sample.segments.numpy(), want, atol=1e-6),
            compare(f"{name}/labels", sample.labels.numpy(), labels)]


def _check_crop(data: dict[str, np.ndarray], name: str) -> list[Check]:
    args = text(data[f"{name}/args"])
    ratio = args["crop_ratio"]
    crop = random_crop(args["feat_len"], data[f"{name}/in_segments"], data[f"{name}/in_labels"], max_seq_len=args["max_seq_len"],
                       trunc_thresh=args["trunc_thresh"], offset=args["offset"] or 0.0,
                       crop_ratio=tuple(ratio) if ratio else None, rng=random.Random(args["seed"]))
    return [compare(f"{name}/window", np.array([crop.start, crop.length]), data[f"{name}/window"]),
            compare(f"{name}/segments", crop.segments, data[f"{name}/segments"], atol=1e-6),
            compare(f"{name}/labels", crop.labels, data[f"{name}/labels"])]
