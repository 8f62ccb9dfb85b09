"""Cost of a video from pixels to detections, by stage: seconds and GFLOP per minute of video.

    cost = video_cost(load_model("model.pth.tar"), "video.mp4")          by the extractor of its training
    print(cost.table())
    print(compared({"teacher": cost, "student": other}))

    decoding    frames out of the file, scaled where FFmpeg scales them
    flow        optical flow
    features    frames to the input of the extractor's networks, and these; the descriptor's histograms
    detector    the network, from feature vectors to outputs
    NMS         candidates from its outputs, suppression, conversion to seconds

The stages run one after the other here, decoding in one thread; tools/extract_features.py decodes beside the network.
"""
from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from libs.core.config import with_overrides
from libs.core.errors import UserError
from libs.core.schema import Config
from libs.datasets.features.provenance import VideoTiming
from libs.datasets.features.streams import declared_ranges
from libs.datasets.loading.padding import padding_of
from libs.datasets.video.decoding import Decoded, probe, read_frames
from libs.datasets.video.extractors.base import Extractor
from libs.datasets.video.on_demand import extractor_for
from libs.datasets.video.one_video import batches, clips
from libs.engine.api import Localizer
from libs.engine.deploy.cost import as_evaluated, count, time_on
from libs.engine.deploy.pipeline import stage_seconds
from libs.engine.runtime.machine import this_machine
from libs.engine.runtime.precision import matmul_precision
from libs.utils.tables import format_table

STAGES = ("decoding", "flow", "features", "detector", "NMS")
MINUTE = 60.0
Now = Callable[[], float]
Item = TypeVar("Item")


@dataclass(frozen=True)
class VideoCost:
    """What a minute of a video costs, by stage of `STAGES`.

    seconds: the median of `rounds`, on a CPU processor time of all threads, which other programs do not change, on a GPU wall
    clock; flops: 2 x multiply-adds of matrix products, convolutions and attention, None where there are none to count; vectors:
    of a minute; steps: to which the detector pads them.
    """

    video: str
    checkpoint: str
    extractor: str
    device: str
    machine: str
    threads: int
    rounds: int
    fps: float
    width: int
    height: int
    vectors: int
    steps: int
    seconds: Mapping[str, float]
    flops: Mapping[str, float | None]

    def as_dict(self) -> dict[str, Any]:
        """Every field, as plain values for JSON."""
        return {**dataclasses.asdict(self), "torch": torch.__version__}

    def table(self) -> str:
        """The numbers as text."""
        return "\n".join([
            f"{self.checkpoint}, {self.extractor} on {self.video} ({self.width} x {self.height}, {self.fps:g} fps): per minute "
            f"of video {self.vectors} vectors; the median of {self.rounds} rounds",
            f"{self.device}: {self.machine}, CPU threads: {self.threads}, torch {torch.__version__}; "
            f"{'processor time of all threads' if self.device == 'cpu' else 'wall clock'}", "", compared({"": self})])

    def ratio(self) -> str:
        """What the features cost beside the detector, in words."""
        features, detector = (sum(self.seconds[stage] for stage in part) for part in (STAGES[:3], STAGES[3:]))
        products, own = self.flops["features"], self.flops["detector"]
        flops = f", and {products / own:,.0f} times its FLOPs" if products and own else ""
        return f"up to the features {features / detector:,.1f} times the seconds of detector and NMS{flops}"


def compared(costs: Mapping[str, VideoCost]) -> str:
    """Seconds and GFLOP per minute of video, stage by stage, of several ways from pixels to detections; name -> cost."""
    rows = [[stage, *_cells(costs, lambda values, stage=stage: values[stage])] for stage in STAGES]
    rows.append(["total", *_cells(costs, lambda values: sum(x or 0.0 for x in values.values()))])
    units = [f"{name} {unit}".strip() for name in costs for unit in ("s", "GFLOP")]
    told = [f"{name}: {cost.ratio()}".removeprefix(": ") for name, cost in costs.items()]
    return "\n".join([
        format_table(rows, ["stage", *units], digits=3), "", *told,
        "Per minute of video.  A multiply-add counts as two; decoding, optical flow, histograms and NMS have none to count (-)."])


def _cells(costs: Mapping[str, VideoCost], value: Any) -> Iterator[Any]:
    for cost in costs.values():
        flops = value(cost.flops)
        yield value(cost.seconds)
        yield None if flops is None else flops / 1e9


def video_cost(model: Localizer, video: str, extractor: Extractor | None = None, rounds: int = 3) -> VideoCost:
    """The cost of `video` by the extractor (None: that of the checkpoint) and the detector.

    What is done per frame and per vector is scaled to a minute; the detector sees the video's vectors, repeated to fill a minute.
    Raises UserError for a video that cannot be used, and for features that the detector does not take.
    """
    if rounds < 1:
        raise UserError(f"--runs {rounds}: use a number from 1 on")
    extractor = extractor or extractor_for(model.config, str(model.checkpoint), None, {"device": str(model.device)})
    settings = extractor.settings
    per_vector, channels = _flops_per_vector(video, extractor)  # a first batch, which warms up, too
    _refuse_width(model.config, extractor, channels)
    found, parts = Decoded(), []
    now = process_time if model.device.type == "cpu" else functools.partial(time_on, model.device)
    for _ in range(rounds):
        feats, seconds = _extraction(video, extractor, found := Decoded(), now)
        parts.append(seconds)
    fps = settings.fps or probe(video).fps
    vectors = MINUTE * fps / settings.stride
    scale = {"vectors": vectors / len(feats)}
    before = {name: float(np.median([part[name] for part in parts])) * scale.get(name, MINUTE / found.duration_s)
              for name in ("decoding", "flow", "frames", "vectors")}
    steps, after = _detection(model, np.resize(feats, (max(round(vectors), len(feats)), channels)), fps, rounds, now)
    machine = this_machine(str(model.device))
    return VideoCost(
        video, str(model.checkpoint), extractor.preset or extractor.name, str(model.device), machine.gpu or machine.processor,
        machine.threads, rounds, fps, found.width, found.height, round(vectors), steps,
        {"decoding": before["decoding"], "flow": before["flow"], "features": before["frames"] + before["vectors"],
         **{name: value * vectors / max(vectors, len(feats)) for name, value in after.items()}},
        {"decoding": None, "flow": None, "features": per_vector * vectors or None,
         "detector": count(model.config, steps).flops * vectors / max(vectors, len(feats)), "NMS": None})


def untrained(config: Config, extractor: Extractor) -> Localizer:
    """A detector with fresh weights, on the grid of an extractor's features; its scores are all alike, so NMS has most to do."""
    settings = extractor.settings
    config = with_overrides(config, [f"dataset.feat_stride={settings.stride}", f"dataset.num_frames={settings.num_frames}"])
    device = torch.device(settings.device)
    torch.manual_seed(config.init_rand_seed)
    return Localizer(as_evaluated(config).to(device), config, {}, device, Path(config.source), 0, "raw", VideoTiming())


def _flops_per_vector(video: str, extractor: Extractor) -> tuple[float, int]:
    """FLOPs of the extractor's networks for one vector, and its channels, from the first batch of a video."""
    settings = extractor.settings
    frames = read_frames(video, settings.fps, functools.partial(extractor.fit, video), True, None, extractor.scaling)
    windows = next(batches(clips(extractor.prepare(frames, video), settings.num_frames, settings.stride), settings.batch_size))
    # attention as matrix products: FlopCounterMode cannot count every fused kernel
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        feats = extractor.features(windows, video)
    return counter.get_total_flops() / len(windows), feats.shape[1]


def _extraction(video: str, extractor: Extractor, found: Decoded, now: Now) -> tuple[np.ndarray, dict[str, float]]:
    """(T, C) features, and the seconds of decoding, flow, the rest of the work per frame, and the work per vector."""
    clock = Stopwatch(now)
    timed, settings = copy.copy(extractor), extractor.settings
    if (method := extractor.method) is not None:
        def flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
            with clock.running("flow"):
                return method(before, after)
        timed.method = flow
    frames = read_frames(video, settings.fps, functools.partial(extractor.fit, video), settings.allow_truncated, found,
                         extractor.scaling, "NONE")
    items = clock.timed(timed.prepare(clock.timed(frames, "decoding"), video), "frames")
    rows = []
    for windows in batches(clips(items, settings.num_frames, settings.stride), settings.batch_size):
        with clock.running("vectors"):
            rows.append(timed.features(windows, video))
    clock.seconds["frames"] -= clock.seconds["decoding"] + clock.seconds["flow"]
    return np.concatenate(rows), clock.seconds


def _detection(model: Localizer, feats: np.ndarray, fps: float, rounds: int, now: Now) -> tuple[int, dict[str, float]]:
    """Steps to which the detector pads a video, and the seconds of detector and NMS."""
    videos = model.videos({"video": feats}, fps=fps)
    sample = videos.sample(0)
    with torch.inference_mode(), matmul_precision(model.config.test_cfg.precision):
        times = [stage_seconds(model.model, videos, sample, model.config, model.device, now)[0] for _ in range(rounds + 1)][1:]
    _, network, decoding, nms = np.median(times, axis=0).tolist()
    return padding_of(model.config).of_batch([sample.steps]), {"detector": network, "NMS": decoding + nms}


def _refuse_width(config: Config, extractor: Extractor, channels: int) -> None:
    """UserError, before the work, for features of another width than those of the training."""
    if channels not in (config.file_channels, config.model_channels, *(end for _, end in declared_ranges(config.dataset))):
        raise UserError(f"{config.source}: takes {config.file_channels} channels, but the extractor {extractor.name} makes "
                        f"{channels}; name the extractor of its training, or a YAML configuration and --set "
                        f"dataset.input_dim={channels}")


class Stopwatch:
    """Seconds by name, by the clock `now`."""

    def __init__(self, now: Now) -> None:
        self.now = now
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Context whose time is added to `name`."""
        started = self.now()
        try:
            yield
        finally:
            self.seconds[name] += self.now() - started

    def timed(self, items: Iterator[Item], name: str) -> Iterator[Item]:
        """The items; the time that making them takes is added to `name`."""
        with contextlib.suppress(StopIteration):
            while True:
                with self.running(name):
                    item = next(items)
                yield item
