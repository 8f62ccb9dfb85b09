"""What is fuzzed: for every reader valid files, how to change them, and a call that asserts a valid result.

A `Target` makes a file from a `random.Random` and reads it; `read` raises UserError for a refused file and AssertionError for a
result that is not what the file says.
"""
from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
import yaml
from helpers import CLASSES, TINY, data_config, item, merged, tiny_config, write_data
from mutate import change_bytes, change_value, odd_array, odd_tensor

from libs.core.config import dump_yaml, from_dict, load_config, to_dict
from libs.core.errors import UserError
from libs.datasets.annotations import load_annotations
from libs.datasets.dataset import TalDataset
from libs.datasets.features.store import FeatureStore
from libs.engine.runs.checkpoint import changed_settings, load_checkpoint, load_weights
from libs.engine.training.objective import DetectionObjective
from libs.engine.training.trainer import Trainer
from libs.engine.training.training_state import restore_state, save_state
from libs.modeling.model import build_model
from libs.utils.evaluation.predictions import Detections, read_predictions, write_predictions
from libs.utils.evaluation.score_fusion import fuse_external_scores, load_external_scores
from libs.utils.files import archives

FEATS = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
LABELS = {f"class {i}": i for i in range(CLASSES)}


class Target(NamedTuple):
    """make(rng, folder) writes a changed file and returns its path; read(path) reads it and asserts."""

    make: Callable[[Random, Path], Path]
    read: Callable[[Path], None]


def edited(rng: Random, data: bytes, always: bool = False) -> bytes:
    """The bytes with up to three edits (`always`: at least one)."""
    for _ in range(rng.choice([1, 1, 2, 3] if always else [0, 0, 1, 2])):
        data = change_bytes(rng, data)
    return data


def documents(name: str, document: Any, write: Callable[[Any], bytes]) -> Callable[[Random, Path], Path]:
    """A maker for text formats: values changed, then bytes."""
    def make(rng: Random, folder: Path) -> Path:
        value = json.loads(json.dumps(document))
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            value = change_value(rng, value)
        try:
            data = write(value)
        except (RecursionError, ValueError, yaml.YAMLError):
            data = write(document)
        path = folder / name
        path.write_bytes(edited(rng, data))
        return path
    return make


def json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


# ---- configuration

def read_config(path: Path) -> None:
    config = load_config(path)
    again = from_dict(to_dict(config), config.source)
    assert to_dict(again) == to_dict(config)
    (path.parent / "again.yaml").write_text(dump_yaml(config), encoding="utf-8")
    assert to_dict(load_config(path.parent / "again.yaml")) == to_dict(config)


def yaml_bytes(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")


# ---- annotations

class Annotations:
    """A data set on disk whose annotation file is changed, read through the data set class as training does."""

    def __init__(self, folder: Path) -> None:
        self.data = write_data(folder / "annotated")
        self.config = data_config(self.data, folder, dataset={"missing": "skip"})
        self.make = documents("a.json", json.loads(self.data.annotations.read_text()), json_bytes)

    def read(self, path: Path) -> None:
        found = load_annotations(path)
        for video in found.videos.values():
            assert np.isfinite(video.segments).all()
            assert (video.segments[:, 1] >= video.segments[:, 0]).all()
            assert len(video.labels) == len(video.segments)
            assert set(video.labels.tolist()) <= set(found.label_ids.values())
        config = from_dict(merged(to_dict(self.config), {"dataset": {"json_file": str(path)}}), "x.yaml")
        dataset = TalDataset(config, "training", True)
        for i in range(len(dataset)):
            for index in (i, (0, i)):
                sample = item(dataset, index)
                assert torch.isfinite(sample.feats).all()
                assert torch.isfinite(sample.segments).all()
                assert len(sample.feats) <= (48 if index != i else 10**6)


# ---- features

def oracle(kind: str, path: Path) -> np.ndarray | None:
    """The features as the format's own library reads them, or None."""
    try:
        if kind == "npy":
            return np.load(path, allow_pickle=False)
        if kind == "npz":
            return np.load(path, allow_pickle=False)["feats"]
        if kind == "h5":
            with h5py.File(path, "r") as file:
                return file["feats"][...] if "feats" in file else None
        value = torch.load(path, map_location="cpu", weights_only=True)
        value = value["feats"] if isinstance(value, dict) else value
        return value.detach().float().numpy() if value.dtype == torch.bfloat16 else value.detach().numpy()
    except Exception:
        return None


def write_features(kind: str, rng: Random, path: Path) -> None:
    """A valid or an odd array in a file, its bytes perhaps changed."""
    array = FEATS if rng.random() < 0.5 else odd_array(rng)
    buffer = io.BytesIO()
    try:
        if kind == "npy":
            np.save(buffer, array, allow_pickle=True)
        elif kind == "npz":
            name = rng.choice(["feats", "feats", "feats", "other"])
            (np.savez_compressed if rng.random() < 0.5 else np.savez)(buffer, **{name: array})
        elif kind == "h5":
            with h5py.File(buffer, "w") as file:
                layout = rng.randrange(8)
                if layout == 0:
                    file["feats"] = h5py.ExternalLink("/etc/hostname", "/")
                elif layout == 1:
                    file["feats"] = h5py.SoftLink("/feats")
                elif layout == 2:
                    file.create_dataset("feats", (10**9, 6), "f4", chunks=(1000, 6), compression="gzip")
                elif layout == 3 and array.ndim and array.size:
                    file.create_dataset("feats", data=array, chunks=True, compression="gzip")
                elif layout == 4:
                    file.create_group("feats")["x"] = FEATS
                else:
                    file["feats"] = array
        else:
            value = odd_tensor(rng) if rng.random() < 0.3 else torch.from_numpy(FEATS)
            value = {"feats": value} if rng.random() < 0.3 else value
            torch.save(value, buffer, _use_new_zipfile_serialization=rng.random() < 0.7)
    except (TypeError, ValueError, RuntimeError, OSError, NotImplementedError):
        buffer = io.BytesIO()
        np.save(buffer, FEATS)
    path.write_bytes(edited(rng, buffer.getvalue()))


def features(kind: str) -> Target:
    def make(rng: Random, folder: Path) -> Path:
        path = folder / f"v0.{kind}"
        write_features(kind, rng, path)
        return path

    def read(path: Path) -> None:
        store = FeatureStore(str(path.parent), None, f".{kind}")
        if not store.exists("v0"):
            return
        check_store(store, "v0", oracle(kind, path))
    return Target(make, read)


def check_store(store: FeatureStore, video: str, want: np.ndarray | None) -> None:
    """Shape, whole and windows agree with each other and with `want`."""
    T, C = store.shape(video)
    rows = store.read(video, slice(0, min(T, 100)))
    assert rows.shape == (min(T, 100), C)
    assert np.isfinite(rows).all()
    if want is not None:
        assert want.shape == (T, C)
        with np.errstate(over="ignore"):
            assert np.array_equal(rows, want[:100].astype(np.float32))
    if T > 2 and C > 1:
        assert np.array_equal(store.read(video, slice(1, min(T, 100), 2), ((1, C),)), rows[1::2, 1:])


def bundle(rng: Random, folder: Path) -> Path:
    write_features("h5", rng, folder / "all.h5")
    return folder / "all.h5"


def read_bundle(path: Path) -> None:
    store = FeatureStore(str(path))
    if store.exists("feats"):
        check_store(store, "feats", oracle("h5", path))
    store.close()


# ---- predictions

DETECTIONS = Detections.from_arrays(["v0", "v0", "v1", "v2"], [0, 1.5, 2, 3], [1, 2.5, 3, 9], [0, 1, 2, 1], [0.9, 0.8, 0.1, 0])
PREDICTED = {"version": "1", "results": {"v0": [{"segment": [0, 1], "label": "class 1", "score": 0.5},
                                                {"segment": [1.5, 2.5], "label": 2, "score": 0.25}],
                                         "v1": [{"segment": [2, 3], "label": "0", "score": 1}], "v2": []}, "external_data": {}}


def read_detections(path: Path) -> None:
    found = read_predictions(path, LABELS)
    assert np.isfinite([found.t_start, found.t_end, found.score]).all()
    assert (found.t_end >= found.t_start).all()
    assert found.label.dtype == np.int64
    if path.suffix == ".json":
        want = json.loads(path.read_text(encoding="utf-8-sig"))["results"]
        rows = [(video, float(e["segment"][0]), float(e["segment"][1]), float(e["score"])) for video, entries in want.items()
                for e in entries if e["label"] in LABELS or not isinstance(e["label"], str) or _is_number(e["label"])]
        assert rows == list(zip(found.video_id.tolist(), found.t_start.tolist(), found.t_end.tolist(), found.score.tolist(),
                                strict=True))
    elif path.suffix == ".csv":
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file) if line]
        assert len(found) <= len(lines) - 1
        assert set(found.score.tolist()) <= {float(v) for line in lines[1:] for v in line if _is_number(v)}


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        float(text)
        return "_" not in text
    return False


def csv_predictions(rng: Random, folder: Path) -> Path:
    path = folder / "p.csv"
    write_predictions(path, DETECTIONS, {i: name for name, i in LABELS.items()} if rng.random() < 0.5 else None)
    rows = [line.split(",") for line in path.read_text().splitlines()]
    for _ in range(rng.choice([0, 1, 2])):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(["", "nan", "-inf", "1e999", "1_0", "-5", "class 1", "0x10", '"', "1" * 400,
                                                   "é", "\0", "v0", " 1 ", "2.5"])
    data = edited(rng, "\n".join(",".join(row) for row in rows).encode())
    if rng.random() < 0.2:
        path = folder / "p.csv.gz"
        data = edited(rng, gzip.compress(data, mtime=0))
    path.write_bytes(data)
    return path


def pickled(name: str, document: dict[str, Any]) -> Callable[[Random, Path], Path]:
    """A maker for pickles of plain data and arrays, in every protocol."""
    def make(rng: Random, folder: Path) -> Path:
        value = {k: v.copy() if isinstance(v, (np.ndarray, list, dict)) else v for k, v in document.items()}
        for _ in range(rng.choice([0, 1, 2])):
            value = change_value(rng, value, arrays=True)
        path = folder / name
        try:
            data = pickle.dumps(value, protocol=rng.randrange(6))
        except (RecursionError, ValueError, TypeError):
            data = pickle.dumps(document)
        path.write_bytes(edited(rng, data))
        return path
    return make


PUBLISHED = {"video-id": DETECTIONS.video_id.tolist(), "t-start": DETECTIONS.t_start, "t-end": DETECTIONS.t_end,
             "label": DETECTIONS.label, "score": DETECTIONS.score}


# ---- external scores

SCORES = {"v0": [0.1, 0.7, 0.2], "v1": [0.5, 0.25, 0.25]}


def read_scores(path: Path) -> None:
    scores = load_external_scores(path)
    for values in scores.values():
        assert values.dtype == np.float64
        assert values.ndim == 1
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    fused = fuse_external_scores(DETECTIONS, scores)
    assert np.isfinite(fused.score).all()
    fused.check("fused")


def npy_scores(rng: Random, folder: Path) -> Path:
    path, buffer = folder / "s.npy", io.BytesIO()
    value: Any = {k: np.array(v) for k, v in SCORES.items()}
    for _ in range(rng.choice([0, 1, 2])):
        value = change_value(rng, value, arrays=True)
    try:
        np.save(buffer, np.array(value, dtype=object) if isinstance(value, dict) else value, allow_pickle=True)
    except (ValueError, RecursionError, TypeError):
        np.save(buffer, odd_array(rng), allow_pickle=True)
    path.write_bytes(edited(rng, buffer.getvalue()))
    return path


# ---- checkpoints

class Checkpoints:
    """A checkpoint of a tiny run, read, evaluated and resumed."""

    def __init__(self, folder: Path) -> None:
        self.config = tiny_config(train_cfg={"dropout": 0.0})
        self.trainer = Trainer(DetectionObjective(build_model(self.config), self.config), self.config, 3)
        for p in self.trainer.objective.model.parameters():
            p.grad = torch.zeros_like(p)
        self.trainer.optimizer.step()
        save_state(self.trainer, folder / "whole.pth.tar")
        self.content = torch.load(folder / "whole.pth.tar", weights_only=True)
        self.whole = (folder / "whole.pth.tar").read_bytes()

    def make(self, rng: Random, folder: Path) -> Path:
        path, data = folder / "epoch_001.pth.tar", self.whole
        if rng.random() < 0.7:
            content = _copied(self.content)
            for _ in range(rng.choice([1, 1, 2])):
                content = change_value(rng, content, tensors=True)
            buffer = io.BytesIO()
            with contextlib.suppress(RecursionError, NotImplementedError, RuntimeError):
                torch.save(content, buffer, _use_new_zipfile_serialization=rng.random() < 0.8)
                data = buffer.getvalue()
        path.write_bytes(edited(rng, data))
        return path

    def read(self, path: Path) -> None:
        checkpoint = load_checkpoint(path)
        for which in ("raw", "ema"):
            with contextlib.suppress(UserError):
                load_weights(self.trainer.model, checkpoint, which)
            assert all(torch.isfinite(v).all() for v in self.trainer.model.state_dict().values())
        if checkpoint.training is not None and "config" in checkpoint.training:
            changed_settings(checkpoint, self.config)
        restore_state(self.trainer, checkpoint)
        assert all(torch.isfinite(v).all() for v in self.trainer.model.state_dict().values())


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


# ---- archives

def archive(rng: Random, folder: Path) -> Path:
    names = ["a.txt", "b/c.txt", "../out.txt", "/abs.txt", "b/../../out.txt", "b\\..\\out.txt", "C:x", ".DS_Store", "x" * 300]
    buffer, kind = io.BytesIO(), rng.choice(["zip", "tar", "gz", "xz", "bz2"])
    if kind == "zip":
        method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
        with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as out:
            warnings.simplefilter("ignore")
            for _ in range(rng.randrange(4)):
                info = zipfile.ZipInfo(rng.choice(names[:2] if rng.random() < 0.7 else names))
                info.external_attr = rng.choice([0, 0, 0, 0o120777, 0o060777]) << 16
                out.writestr(info, b"content" * rng.randrange(5))
    else:
        with tarfile.open(fileobj=buffer, mode="w" if kind == "tar" else f"w:{kind}") as out:
            for _ in range(rng.randrange(4)):
                info = tarfile.TarInfo(rng.choice(names[:2] if rng.random() < 0.7 else names))
                info.type = rng.choice([tarfile.REGTYPE] * 5 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
                info.linkname, data = "/etc/passwd", b"content" * rng.randrange(5)
                info.size = len(data) if info.isreg() else 0
                out.addfile(info, io.BytesIO(data))
    path = folder / "archive"
    path.write_bytes(edited(rng, buffer.getvalue()))
    return path


def read_archive(path: Path) -> None:
    out = path.parent / "unpacked"
    out.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: _inside(path, out))
        for i, member in enumerate(archives.members(path)):
            assert not os.path.isabs(member.name)
            assert ".." not in member.path.parts
            archives.copy(member, out / str(i))
            assert (out / str(i)).stat().st_size == member.size


def _inside(path: Path, out: Path) -> None:
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, out.name])


def targets(folder: Path) -> dict[str, Callable[[], Target]]:
    """Name -> what makes the target (some need files in `folder`)."""
    def of(kind: type) -> Callable[[], Target]:
        def made() -> Target:
            (folder / kind.__name__).mkdir()
            one = kind(folder / kind.__name__)
            return Target(one.make, one.read)
        return made
    document = to_dict(from_dict(TINY, "tiny.yaml"))
    return {
        "config": lambda: Target(documents("c.yaml", document, yaml_bytes), read_config),
        "annotations": of(Annotations),
        **{f"features {kind}": (lambda kind=kind: features(kind)) for kind in ("npy", "npz", "h5", "pt")},
        "features one h5": lambda: Target(bundle, read_bundle),
        "predictions json": lambda: Target(documents("p.json", PREDICTED, json_bytes), read_detections),
        "predictions csv": lambda: Target(csv_predictions, read_detections),
        "predictions pickle": lambda: Target(pickled("p.pkl", PUBLISHED), read_detections),
        "scores json": lambda: Target(documents("s.json", {"results": SCORES}, json_bytes), read_scores),
        "scores npy": lambda: Target(npy_scores, read_scores),
        "scores pickle": lambda: Target(pickled("s.pkl", {k: np.array(v) for k, v in SCORES.items()}), read_scores),
        "checkpoint": of(Checkpoints),
        "archive": lambda: Target(archive, read_archive),
    }
