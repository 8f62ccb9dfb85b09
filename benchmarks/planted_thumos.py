"""THUMOS14-shaped data for the benchmarks: real or stand-in lengths, features of full width, and an untrained network that
answers with as many candidates as a trained one.

    source, base = prepare(folder, annotations, train=20, test=5)       then load_config(source, base + overrides)

Features are slices of one block of noise: cheap to make, and their values do not matter for speed.
"""
from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from libs.core.config import load_config
from libs.core.errors import UserError
from libs.core.schema import Config
from libs.datasets.grid import expected_length
from libs.modeling.decode import decode_batch
from libs.utils.files.io import read_json, write_json_atomic

ROOT = Path(__file__).resolve().parent.parent
THUMOS = ROOT / "configs" / "thumos_i3d.yaml"
VIDEOS = {"validation": 200, "test": 212}  # of THUMOS14, with segments
FPS, SECONDS_PER_SEGMENT = 30.0, 13.8  # of THUMOS14: nearly all videos; mean over both subsets
# durations (s) of THUMOS14's videos at these percentiles
PERCENTILES = (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 99.5, 100)
DURATIONS = {
    "validation": (8.9, 30.8, 37.0, 67.4, 100.4, 128.5, 150.5, 180.7, 210.3, 276.0, 311.1, 450.5, 549.7, 700.0, 812.2, 898.7,
                   950.8, 1150.5, 1409.4),
    "test": (15.0, 33.7, 47.8, 77.7, 107.3, 128.6, 161.7, 184.8, 214.5, 245.3, 299.7, 412.9, 547.5, 688.5, 847.7, 951.4, 1245.6,
             1312.5, 1673.4)}
ABOVE = 0.34  # share of scores above 0.001 with which 2304 steps give as many candidates as a trained network does: 9,350


def stand_in(train: int, test: int, classes: int = 20) -> dict[str, Any]:
    """An annotation document with the lengths of THUMOS14 and about as many segments (median 3 s), 30 frames per second.

    `train` and `test` videos, evenly spread over the percentiles of their subset, in random order; every class occurs.
    """
    rng, database = np.random.default_rng(0), {}
    for subset, count in (("validation", train), ("test", test)):
        durations = np.interp((np.arange(count) + 0.5) / max(count, 1) * 100, PERCENTILES, DURATIONS[subset])
        for i, duration in enumerate(rng.permutation(durations).round(2).tolist()):
            lengths = np.clip(rng.lognormal(math.log(3), 0.8, max(round(duration / SECONDS_PER_SEGMENT), 1)), 0.2, 0.5 * duration)
            starts, labels = rng.uniform(0, duration - lengths), rng.integers(0, classes, len(lengths))
            entries = [_segment(t, n, k) for t, n, k in zip(starts.tolist(), lengths.tolist(), labels.tolist(), strict=True)]
            entries += [_segment(0.0, 3.0, k) for k in range(classes) if i == 0]
            database[f"{subset}_{i:04d}"] = {"subset": subset, "duration": duration, "fps": FPS, "annotations": entries}
    return {"version": "stand-in", "database": database}


def _segment(start: float, length: float, label: int) -> dict[str, Any]:
    return {"segment": [start, start + length], "label": f"class{label:02d}", "label_id": label}


def chosen(path: Path, train: int, test: int) -> dict[str, Any]:
    """An annotation file with `train` and `test` videos, evenly spread over the durations of their subset; the others stay in it
    as subset `left out`, so that it names the same classes.

    UserError when it has fewer videos.
    """
    database, kept = read_json(path, "annotation file (thumos14.json)")["database"], set()
    for subset, count in (("validation", train), ("test", test)):
        names = sorted((n for n, v in database.items() if v["subset"].lower() == subset), key=lambda n: database[n]["duration"])
        if count > len(names):
            raise UserError(f"{path}: subset {subset} has {len(names)} videos, {count} are asked for; ask for fewer")
        kept |= {names[int((i + 0.5) * len(names) / count)] for i in range(count)}
    return {"version": path.name, "database": {n: v if n in kept else v | {"subset": "left out"} for n, v in database.items()}}


def prepare(folder: Path, annotations: Path | None, train: int, test: int, config: Path = THUMOS,
            overrides: tuple[str, ...] = ()) -> tuple[Path, list[str]]:
    """Write annotations and float32 features (T, input_dim) of `train` + `test` videos into `folder`.

    annotations: thumos14.json for its lengths and segments, None: `stand_in`.  Returns the configuration file and the overrides
    that make it read these data.  Raises UserError, before features are written, when the disk has no room for them.
    """
    paths = [f"dataset.json_file={folder / 'annotations.json'}", f"dataset.feat_folder={folder / 'features'}",
             "train_split=[validation]", "val_split=[test]"]
    loaded = load_config(config, [*overrides, *paths])
    settings, width = loaded.dataset, loaded.file_channels
    document = chosen(annotations, train, test) if annotations else stand_in(train, test, settings.num_classes)
    write_json_atomic(folder / "annotations.json", document)
    steps = {name: expected_length(v["duration"], v["fps"], settings.feat_stride, settings.num_frames)
             for name, v in document["database"].items() if v["subset"] != "left out"}
    needed, free = 4 * width * sum(steps.values()), shutil.disk_usage(folder).free
    if needed * 1.05 > free:
        raise UserError(f"{folder}: features of {len(steps)} videos take {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; "
                        "set TMPDIR to a folder with more room, or ask for fewer videos")
    (folder / "features").mkdir()
    rng = np.random.default_rng(0)
    block = rng.standard_normal((max(steps.values()), width), dtype=np.float32)
    for name, count in steps.items():
        first = int(rng.integers(0, len(block) - count + 1))
        np.save(folder / "features" / f"{name}.npy", block[first:first + count])
    return config, paths


def describe(annotations: Path | None) -> str:
    """Where the lengths come from, for the line above a table."""
    return f"lengths and segments of {annotations.name}" if annotations else "stand-in with THUMOS14's quantiles of length"


@torch.inference_mode()
def answer_like_trained(model: nn.Module, config: Config, device: torch.device, steps: int | None = None) -> int:
    """Change the last layers of an untrained network so that post-processing has realistic work; returns the candidates of one
    video of `steps` steps (None: max_seq_len) of noise.

    Class logits get a spread of 2 and a bias with which a share ABOVE of the scores passes 0.001; segments are some strides long.
    """
    steps = steps or config.dataset.max_seq_len
    feats = torch.randn(1, steps, config.file_channels, generator=torch.Generator().manual_seed(0)).to(device)
    mask = torch.ones(1, steps, dtype=torch.bool, device=device)
    training = model.training
    model.eval()
    out = model(feats, mask)
    logits, cls, reg = out.logits.float(), model.cls_head.cls_head, model.reg_head.offset_head
    scale = 2 / logits.std().item()
    threshold = logits.flatten().kthvalue(int((1 - ABOVE) * logits.numel())).values.item()
    _last_weight(cls).mul_(scale)
    cls.bias.sub_(threshold).mul_(scale).add_(math.log(0.001 / 0.999))
    _last_weight(reg).mul_(0.5 / out.offsets.float().std().item())
    reg.bias.fill_(2.0)
    count = len(decode_batch(model(feats, mask), config.test_cfg).scores)
    model.train(training)
    return count


def _last_weight(layer: nn.Module) -> torch.Tensor:
    return [p for name, p in layer.named_parameters() if name.endswith("weight")][-1]
