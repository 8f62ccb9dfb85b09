"""Time of inference on a video, from its feature file to detections, by stage.

    reading     features from their file into a padded batch of one, and onto the device
    network     forward pass
    decoding    candidates from its outputs
    NMS         suppression, conversion to seconds
"""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from libs.core.devices import resolve_device
from libs.core.errors import UserError
from libs.core.schema import Config
from libs.datasets.dataset import UNKNOWN_DURATION_S, TalDataset
from libs.datasets.loading.batch import read_batch
from libs.datasets.loading.padding import padding_of
from libs.datasets.sample import Sample, VideoDataset
from libs.engine.deploy.cost import time_on
from libs.engine.inference.predict import Timeline, suppress
from libs.engine.runs.checkpoint import find_checkpoint, load_checkpoint
from libs.engine.runs.network import load_network
from libs.engine.runtime.machine import this_machine
from libs.engine.runtime.precision import check_precision, matmul_precision
from libs.modeling.decode import decode_batch
from libs.modeling.model import LocPointTransformer
from libs.utils.nms.api import implementation
from libs.utils.progress import Progress, no_progress
from libs.utils.tables import format_table

STAGES = ("reading", "network", "decoding", "NMS")


@dataclass(frozen=True)
class Pipeline:
    """Milliseconds per video and stage, (rounds, videos, stages); `steps`, `candidates`, `kept`: per video."""

    checkpoint: str
    device: str
    threads: int
    machine: str
    nms: str
    video_ids: tuple[str, ...]
    steps: tuple[int, ...]
    seconds: tuple[float, ...]  # duration of each video, 1e8 where unknown
    candidates: tuple[int, ...]
    kept: tuple[int, ...]
    ms: np.ndarray

    @property
    def per_video(self) -> np.ndarray:
        """(videos, stages) ms: the median over rounds."""
        return np.median(self.ms, axis=0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: what `table` shows, and the stages of every video."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k != "ms"}
        stages = {name: {"mean_ms": float(column.mean()), "median_ms": float(np.median(column)),
                         "p90_ms": float(np.percentile(column, 90))} for name, column in self._columns()}
        return {**fields, "rounds": len(self.ms), "stages": stages, "per_video_ms": self.per_video.tolist(),
                "torch": torch.__version__}

    def table(self) -> str:
        """The numbers as text."""
        rounds, videos, _ = self.ms.shape
        total = self.per_video.sum()
        lines = [f"{self.checkpoint}: {videos} videos of {int(np.median(self.steps))} steps (median), one at a time; per video "
                 f"the median of {rounds} rounds",
                 f"{self.device}: {self.machine}, CPU threads: {self.threads}, NMS: {self.nms}, torch {torch.__version__}", "",
                 format_table([[name, column.mean(), np.median(column), np.percentile(column, 90),
                                f"{100 * column.sum() / total:.1f}"] for name, column in self._columns()],
                              ["stage", "mean ms", "median ms", "90 % ms", "share %"]), "",
                 f"{np.mean(self.candidates):.0f} candidates and {np.mean(self.kept):.0f} detections per video (mean)"]
        if max(self.seconds) < UNKNOWN_DURATION_S:
            lines.append(f"{sum(self.seconds):.0f} s of video in {total / 1000:.2f} s: {1000 * sum(self.seconds) / total:.0f} "
                         "times real time, without extracting the features")
        return "\n".join(lines)

    def _columns(self) -> list[tuple[str, np.ndarray]]:
        stages = self.per_video
        return [*((name, stages[:, i]) for i, name in enumerate(STAGES)), ("total", stages.sum(axis=1))]


def measure_pipeline(config: Config, ckpt: str, progress: Progress = no_progress, rounds: int = 20) -> Pipeline:
    """Time `rounds` rounds over the videos of val_split on `devices`, after a warm-up round that also fills the file cache.

    progress(rounds done, of how many).  Raises UserError as evaluation does.
    """
    if rounds < 1:
        raise UserError(f"--runs {rounds}: use a number from 1 on")
    device = torch.device(resolve_device(config))
    check_precision(config.test_cfg.precision, device, config.source, "test_cfg.precision")
    checkpoint = load_checkpoint(find_checkpoint(ckpt))
    model = load_network(config, checkpoint, config.test_cfg.weights)
    model.eval().to(device)
    dataset = TalDataset(config, config.val_split, training=False)
    samples = [dataset.sample(i) for i in range(len(dataset))]
    times, candidates, kept = np.zeros((rounds + 1, len(dataset), len(STAGES))), [], []
    with torch.inference_mode(), matmul_precision(config.test_cfg.precision):
        for r in range(rounds + 1):
            for i, sample in enumerate(samples):
                times[r, i], *counts = stage_seconds(model, dataset, sample, config, device, functools.partial(time_on, device))
                if r == 0:
                    candidates.append(counts[0])
                    kept.append(counts[1])
            if r:
                progress(r, rounds)
    machine = this_machine(str(device))
    return Pipeline(str(checkpoint.path), str(device), machine.threads, machine.gpu or machine.processor, implementation(device),
                    tuple(v.id for v in dataset.videos), tuple(s.steps for s in samples),
                    tuple(s.duration_s for s in samples), tuple(candidates), tuple(kept), 1000 * times[1:])


def stage_seconds(model: LocPointTransformer, dataset: VideoDataset, sample: Sample, config: Config,
                  device: torch.device, now: Callable[[], float]) -> tuple[np.ndarray, int, int]:
    """Seconds of each of `STAGES` for one video by the clock `now`, its candidates and its detections."""
    marks = [now()]
    batch = read_batch(dataset, [sample], padding_of(config).of_batch([sample.steps])).to(device)
    marks.append(now())
    outputs = model(batch.feats, batch.mask)
    marks.append(now())
    candidates = decode_batch(outputs, config.test_cfg)
    marks.append(now())
    found = suppress(candidates, config.test_cfg, [Timeline.of(sample)])
    marks.append(now())
    return np.diff(marks), len(candidates.scores), len(found)
