"""What several test files share: tiny configurations, a tiny data set on disk, weights that show every term, one training run.

    config = tiny_config(model={"n_mha_win_size": 7})         no files needed
    data = write_data(tmp_path)                               annotations and features of 6 + 3 short videos
    path = write_config(tmp_path / "x.yaml", data, opt={"epochs": 2})
    code, out, err = run_script(capsys, train.main, "train.py", str(path), "--output", "a")
"""
from __future__ import annotations

import builtins
import copy
import errno
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from libs.core.config import dump_yaml, from_dict
from libs.core.errors import run_main
from libs.core.schema import Config
from libs.datasets.loading.padding import padding_of

FPS, STRIDE, NUM_FRAMES, CHANNELS, CLASSES = 25.0, 5, 10, 6, 3
TRAINING = {"t0": 40, "t1": 23, "t2": 31, "t3": 70, "t4": 12, "t5": 33}  # grid steps per video; t3 is longer than max_seq_len
VALIDATION = {"v0": 30, "v1": 52, "v2": 9}

TINY: dict[str, Any] = {
    "dataset_name": "generic",
    "devices": ["cpu"],
    "init_rand_seed": 3,
    "dataset": {"json_file": "a.json", "feat_folder": "feats", "feat_stride": STRIDE, "num_frames": NUM_FRAMES,
                "input_dim": CHANNELS, "num_classes": CLASSES, "max_seq_len": 48, "crop_ratio": [0.6, 0.9]},
    "loader": {"batch_size": 2, "num_workers": 0},
    "model": {"backbone_arch": [1, 1, 2], "n_head": 2, "n_mha_win_size": 5, "embd_dim": 16, "fpn_dim": 16, "head_dim": 16,
              "regression_range": [[0, 4], [4, 8], [8, 10000]]},
    "train_cfg": {"dropout": 0.1, "droppath": 0.2, "init_loss_norm": 20, "clip_grad_l2norm": 1.0},
    "test_cfg": {"min_score": 0.001, "max_seg_num": 20, "pre_nms_topk": 100, "voting_thresh": 0.7},
    "opt": {"learning_rate": 0.003, "weight_decay": 0.05, "warmup_epochs": 1, "epochs": 3},
}


def merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of `base` with the values of `extra`; sections are merged."""
    out = copy.deepcopy(dict(base))
    for name, value in extra.items():
        out[name] = merged(out[name], value) if isinstance(value, Mapping) and isinstance(out.get(name), dict) else value
    return out


def tiny_config(source: str = "tiny.yaml", **sections: Any) -> Config:
    """A checked configuration of a 16-wide model with three levels."""
    return from_dict(merged(TINY, sections), source)


@dataclass(frozen=True)
class Data:
    """A data set on disk."""

    annotations: Path
    features: Path

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the annotation document in place."""
        document = json.loads(self.annotations.read_text())
        change(document)
        self.annotations.write_text(json.dumps(document))


def write_data(folder: Path) -> Data:
    """Annotations (subsets training and validation) and float32 .npy features (T, 6) whose first channels show the class."""
    data = Data(folder / "annotations.json", folder / "features")
    data.features.mkdir(parents=True)
    database = {}
    for subset, videos in (("training", TRAINING), ("validation", VALIDATION)):
        for vid, steps in videos.items():
            rng = np.random.default_rng(sum(map(ord, vid)))
            feats = rng.normal(0, 0.3, (steps, CHANNELS)).astype(np.float32)
            items = []
            for start in range(1, steps - 5, 9):
                label, length = int(rng.integers(CLASSES)), int(rng.integers(2, 6))
                feats[start:start + length, label] += 2
                segment = [round((start + 1) * STRIDE / FPS, 3), round((start + 1 + length) * STRIDE / FPS, 3)]
                items.append({"segment": segment, "label": f"class {label}", "label_id": label})
            np.save(data.features / f"{vid}.npy", feats)
            duration = ((steps - 1) * STRIDE + NUM_FRAMES) / FPS
            database[vid] = {"subset": subset, "duration": duration, "fps": FPS, "annotations": items}
    data.annotations.write_text(json.dumps({"database": database}))
    return data


def data_config(data: Data, folder: Path, **sections: Any) -> Config:
    """`tiny_config` for a data set on disk, with runs written to `folder`/ckpt."""
    paths = {"dataset": {"json_file": str(data.annotations), "feat_folder": str(data.features)},
             "output_folder": str(folder / "ckpt")}
    return tiny_config(str(folder / "tiny.yaml"), **merged(paths, sections))


def write_config(path: Path, data: Data, **sections: Any) -> Path:
    """Write `data_config` as a YAML file."""
    path.write_text(dump_yaml(data_config(data, path.parent, **sections)))
    return path


def show_every_term(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights with non-zero norm biases and visible residual scales, so that padding and every branch count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = torch.randn(p.shape, generator=generator)
            if name.endswith("cls_head.conv.bias"):
                p.copy_(-1 + 0.1 * r)
            elif name.endswith("offset_head.conv.bias"):
                p.copy_(2 + 0.1 * r)
            elif "drop_path" in name:
                p.copy_(0.5 + 0.2 * r)
            elif p.dim() == 3 and p.shape[0] == 1 and name.endswith("weight"):
                p.copy_(1 + 0.2 * r)
            elif p.dim() == 3 and name.endswith("weight"):
                p.copy_(r / (p.shape[1] * p.shape[2]) ** 0.5)
            else:
                p.add_(0.3 * r)
    return model


def identical(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ, to the last bit."""
    if isinstance(a, dict):
        if list(a) != list(b):
            return [f"{where}: keys"]
        return [d for k in a for d in identical(a[k], b[k], f"{where}/{k}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{where}: length"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in identical(x, y, f"{where}[{i}]")]
    same = a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, Tensor) else a == b and type(a) is type(b)
    return [] if same else [where]


def padded_batch(lengths: list[int], total: int, channels: int = CHANNELS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random features (B, total, C), zero behind each length, and their mask; a video depends on its own number only."""
    feats = torch.zeros(len(lengths), total, channels)
    for i, n in enumerate(lengths):
        feats[i, :n] = torch.randn(n, channels, generator=torch.Generator().manual_seed(seed + 100 * n))
    return feats, torch.arange(total) < torch.tensor(lengths).unsqueeze(1)


def published_length(config: Config, steps: int) -> int:
    """The padded length of the published program."""
    return padding_of(config).published(steps)


def run_script(capsys: pytest.CaptureFixture[str], main: Callable[[], int | None], *argv: str) -> tuple[int, str, str]:
    """Run a script's `main` under `run_main` in this process; exit code (0 without one), stdout and stderr."""
    before = sys.argv
    sys.argv = list(argv)
    capsys.readouterr()
    try:
        run_main(main)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    return code, out, err


def without_permission(monkeypatch: pytest.MonkeyPatch, folder: Path,
                       calls: Sequence[str] = ("open", "stat", "lstat", "mkdir", "listdir", "scandir")) -> None:
    """Let `open` and these calls of os refuse what is in `folder`, as the system would, for root too."""
    def refusing(call: Callable) -> Callable:
        def refuse(path: Any, *args: Any, **options: Any) -> Any:
            if isinstance(path, (str, os.PathLike)) and str(path).startswith(f"{folder}/"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *args, **options)
        return refuse
    for module, name in ((builtins, "open"), (io, "open"), *((os, name) for name in calls)):
        monkeypatch.setattr(module, name, refusing(getattr(module, name)))


def one_error(code: int, err: str) -> str:
    """The error of a run that must have been refused: exit code 2, one `error:` line, no traceback."""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1), err
    assert "Traceback" not in err, err
    return err[err.index("error: "):]


def run_scripts_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Let libs.engine.experiments.launch run train.py and eval.py in this process; the command lines, as they come."""
    import eval as eval_script
    import train
    from libs.engine.experiments import launch
    commands: list[list[str]] = []
    lock = threading.Lock()

    def here(_programs, command, output, _environment):
        scripts = {"train.py": train.main, "eval.py": eval_script.main}
        name = command[1].rsplit("/", 1)[1]
        with lock:  # sys.argv and the captured output are one for all threads
            code, out, err = run_script(capsys, scripts[name], name, *command[2:])
            commands.append([name, *command[2:]])
        output.write(out + err)
        output.flush()
        return code
    monkeypatch.setattr(launch.Programs, "run", here)
    return commands


def item(dataset, index):
    """A sample of a dataset together with its features: what `dataset.sample(index)` has, and `feats`."""
    sample = dataset.sample(index)
    return SimpleNamespace(**vars(sample), feats=dataset.features(sample))
