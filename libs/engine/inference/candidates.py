"""A file of the network's candidates before NMS, to tune NMS without running the network.

candidates.npz holds, videos in dataset order, levels fine to coarse, descending score inside a level:
    segments (M, 2) float32, grid units; scores (M,) float32; labels (M,) int16 or int32; levels (M,) uint8
    video_ids (V,), counts (V,) candidates of each video, grids (V, 4) float64 stride, num_frames, offset, fps, durations (V,) s
    about: JSON of the checkpoint and the whole configuration
duration_thresh is not applied, so that every test_cfg that needs no further candidates gives exactly its own results.
"""
from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from libs.core.config import from_dict, to_dict
from libs.core.errors import UserError
from libs.core.files import is_file, is_folder
from libs.core.schema import Config, TestConfig
from libs.datasets.grid import Grid
from libs.datasets.sample import Sample
from libs.engine.inference.predict import Timeline, fused, suppress
from libs.engine.runs.checkpoint import find_checkpoint
from libs.modeling.decode import ALL_LENGTHS, decode_batch, decode_numbers
from libs.modeling.model import LevelOutputs
from libs.utils.evaluation.predictions import Detections
from libs.utils.files.io import write_atomic
from libs.utils.nms.api import Candidates

CANDIDATES = "candidates.npz"
ARRAYS = ("segments", "scores", "labels", "levels", "video_ids", "counts", "grids", "durations", "about")


class CandidateCollector:
    """Keeps the candidates of every batch (the `collect` of libs/engine/inference/predict.py), and writes the file."""

    def __init__(self, config: TestConfig):
        self.config = dataclasses.replace(config, duration_thresh=ALL_LENGTHS)
        self._found: dict[str, tuple[tuple[Tensor, ...], Timeline]] = {}

    def __call__(self, samples: Sequence[Sample], outputs: LevelOutputs) -> None:
        """Keep the candidates of a batch, on the CPU."""
        *columns, counts = decode_batch(outputs, self.config)
        level_P = torch.cat([torch.full((n,), float(i)) for i, n in enumerate(outputs.level_sizes)]).to(outputs.points.device)
        columns.append(decode_numbers(outputs, level_P, self.config).segments[:, 0].to(torch.uint8))
        parts = zip(*(t.cpu().split(counts.tolist()) for t in columns), strict=True)
        for sample, part in zip(samples, parts, strict=True):
            self._found[sample.video_id] = (part, Timeline.of(sample))

    def write(self, path: str | os.PathLike, order: Sequence[str], config: Config, about: dict[str, Any]) -> int:
        """Write the candidates of the videos `order`; returns how many.  UserError when the file cannot be written."""
        parts, timelines = zip(*(self._found[v] for v in order), strict=True)
        segments, scores, labels, levels = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        grids = [t.grid for t in timelines]
        buffer = io.BytesIO()
        np.savez(buffer, segments=segments, scores=scores, levels=levels,
                 labels=labels.astype(np.int16 if config.dataset.num_classes < 2**15 else np.int32),
                 video_ids=np.array(order, dtype=np.str_), counts=np.array([len(p[1]) for p in parts], np.int64),
                 grids=np.array([(g.stride, g.num_frames, g.offset, g.fps) for g in grids], np.float64),
                 durations=np.array([t.duration_s for t in timelines], np.float64),
                 about=np.array(json.dumps({**about, "config": to_dict(config)})))
        write_atomic(path, lambda file: file.write(buffer.getbuffer()))
        return len(scores)


@dataclass(frozen=True, eq=False)
class CandidateSet:
    """The content of a candidates file; `config`: of the evaluation that wrote it.

    columns: segments, scores, labels and counts as in `Candidates`, and levels (M,) int64; arrays, so that joblib can share them.
    """

    path: Path
    columns: Mapping[str, np.ndarray]
    videos: tuple[Timeline, ...]
    config: Config
    about: dict[str, Any]

    def check(self, config: TestConfig) -> None:
        """UserError if decoding with `config` needs candidates that the file lacks."""
        stored = self.config.test_cfg
        for key, more in (("pre_nms_thresh", config.pre_nms_thresh < stored.pre_nms_thresh),
                          ("pre_nms_topk", config.pre_nms_topk > stored.pre_nms_topk)):
            if more:
                raise UserError(f"{self.path}: test_cfg.{key}: {getattr(config, key)} asks for candidates that are not in it (it "
                                f"was written with {getattr(stored, key)}); run eval.py --save-candidates --set test_cfg.{key}="
                                f"{getattr(config, key)}")

    @property
    def candidates(self) -> Candidates:
        """All candidates of the file."""
        return Candidates(*(torch.from_numpy(self.columns[name]) for name in Candidates._fields))

    @property
    def video_ids(self) -> list[str]:
        """The ids of the videos, in dataset order."""
        return [video.video_id for video in self.videos]

    def select(self, config: TestConfig) -> Candidates:
        """The candidates that decoding with `config` gives; raises as `check`."""
        self.check(config)
        segments, scores, labels, counts = self.candidates
        video = torch.repeat_interleave(torch.arange(len(counts)), counts)
        levels = torch.from_numpy(self.columns["levels"])
        group = video * (int(levels.max()) + 1 if len(levels) else 1) + levels
        found = torch.bincount(group)
        rank = torch.arange(len(scores)) - (found.cumsum(0) - found)[group]
        keep = (scores > config.pre_nms_thresh) & (rank < config.pre_nms_topk)
        keep &= (segments[:, 1] - segments[:, 0]) > config.duration_thresh
        return Candidates(segments[keep], scores[keep], labels[keep], torch.bincount(video[keep], minlength=len(counts)))

    def detections(self, config: TestConfig, external: Mapping[str, np.ndarray] | None = None) -> Detections:
        """The detections of `predict` with `config`; external: the scores of its ext_score_file."""
        found = suppress(self.select(config), config, self.videos)
        return fused(found, external, dataclasses.replace(self.config, test_cfg=config))


def find_candidates(path: str | os.PathLike) -> Path:
    """The candidates file of a path: the path itself, or the one in an evaluation's folder, or of the last epoch of a run's.

    UserError if a folder holds none, or the last epoch has several.
    """
    path = Path(path)
    if not is_folder(path):
        return path
    if is_file(path / CANDIDATES):
        return path / CANDIDATES
    name = find_checkpoint(path).name.removesuffix(".pth.tar")
    found = sorted((path / "eval").glob(f"{name}_*/{CANDIDATES}"))
    if not found:
        raise UserError(f"{path}: its last epoch, {name}, has no {CANDIDATES}; write it with eval.py {path} --save-candidates")
    if len(found) > 1:
        raise UserError(f"{path}: its last epoch, {name}, has {len(found)}: {', '.join(map(str, found))}; name one of them")
    return found[0]


def load_candidates(path: str | os.PathLike) -> CandidateSet:
    """Read a file of `eval.py --save-candidates`; UserError if it is missing, damaged or another file."""
    path = Path(path)
    if not is_file(path):
        raise UserError(f"{path}: no such candidates file; write one with eval.py --save-candidates")
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):  # np.load would advise to read it as a pickle
                raise ValueError("it is another or a damaged file")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS}
        about = json.loads(str(arrays["about"]))
        config = from_dict(about.pop("config"), f"{path}: about.config")
        grids = [Grid(*row) for row in arrays["grids"].tolist()]
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as candidates ({' '.join(str(error).split())[:200]}); write them again with "
                        "eval.py --save-candidates") from error
    rows = len(arrays["scores"])
    same = {len(arrays[n]) for n in ("segments", "labels", "levels")} == {rows} and int(arrays["counts"].sum()) == rows
    if not same or len({len(arrays[n]) for n in ("video_ids", "counts", "grids", "durations")}) != 1:
        raise UserError(f"{path}: its columns have different lengths; write it again with eval.py --save-candidates")
    for name in ("segments", "scores", "durations"):  # Grid checks itself
        values = arrays[name]
        if bad := values.size - int(np.isfinite(values).sum() if values.dtype.kind in "fiu" else 0):
            raise UserError(f"{path}: {bad} of {values.size} {name} are not finite numbers; write it again with eval.py "
                            "--save-candidates")
    columns = {name: arrays[name].astype(np.int64) if name in ("labels", "levels") else arrays[name]
               for name in (*Candidates._fields, "levels")}
    videos = map(Timeline, arrays["video_ids"].tolist(), grids, arrays["durations"].tolist())
    return CandidateSet(path, columns, tuple(videos), config, about)
