"""Export of the network as a graph that runs without this program: ONNX or torch.export.

    differences = export(model, config, names, "model.onnx", "onnx", with_decode=True)

Inputs:
    feats (B, T, C) float32, 0 at padded steps; mask (B, T) bool, valid steps first; T a multiple of the last stride
Outputs, for the P points of all FPN levels, fine to coarse, T / stride per level:
    logits (B, P, K), offsets (B, P, 2) in strides, valid (B, P); or, with decoding,
    scores (B, P, K), 0 at padded points, segments (B, P, 2) in units of the feature grid
    (with model.use_trident_head offsets and segments are (B, P, K, 2))
Choosing candidates, NMS and the conversion to seconds are not part of the graph (examples/onnx_inference.py).  The file holds
the padding rule (`libs.datasets.loading.padding.Padding`), the class names and the settings as JSON, named `tal`.
"""
from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import inspect
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from libs.core.errors import UserError
from libs.core.schema import Config
from libs.datasets.loading.padding import padding_of
from libs.modeling.kernels.band_attention import BLOCK
from libs.modeling.model import LocPointTransformer
from libs.utils.files.io import write_bytes_atomic

FORMATS = {"onnx": ".onnx", "torch_export": ".pt2"}
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": ()}
METADATA = "tal"  # the entry of the file that holds `describe` as JSON
TOLERANCE = 1e-4
LONGEST = 2**20  # steps
Run = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]


class Network(nn.Module):
    """The network with plain tensors as outputs: logits, offsets, valid."""

    names: tuple[str, ...] = ("logits", "offsets", "valid")

    def __init__(self, model: LocPointTransformer):
        super().__init__()
        self.model = model

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        out = self.model(feats, mask)
        return out.logits, out.all_offsets(), out.mask


class DecodingNetwork(Network):
    """The network and the decoding of every point: scores, segments."""

    names = ("scores", "segments")

    def forward(self, feats: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        out = self.model(feats, mask)
        offsets = out.all_offsets()
        t, stride = (out.points[:, i].view(-1, *(1,) * (offsets.dim() - 3)) for i in (0, 3))  # (P,), per class (P, 1)
        segments = torch.stack((t - offsets[..., 0] * stride, t + offsets[..., 1] * stride), dim=-1)
        return torch.sigmoid(out.logits) * out.mask.unsqueeze(-1), segments


def describe(model: LocPointTransformer, config: Config, label_names: Mapping[int, str], with_decode: bool) -> dict[str, Any]:
    """What a program needs to use the graph: channels, strides, padding rule, feature grid, class names, test_cfg."""
    data, padding = config.dataset, padding_of(config)
    return {"version": 1, "outputs": list((DecodingNetwork if with_decode else Network).names), "channels": config.model_channels,
            "strides": list(model.strides), "padding": dataclasses.asdict(padding),
            "grid": {k: getattr(data, k) for k in ("feat_stride", "num_frames", "downsample_rate", "default_fps",
                                                   "force_upsampling")},
            "modalities": config.model.modalities, "labels": [label_names.get(i, str(i)) for i in range(data.num_classes)],
            "test_cfg": dataclasses.asdict(config.test_cfg)}


def export(model: LocPointTransformer, config: Config, label_names: Mapping[int, str], path: str | os.PathLike, fmt: str,
           with_decode: bool = False, lengths: Sequence[int] | None = None,
           say: Callable[[str], None] = lambda line: None) -> dict[int, float]:
    """Trace a network in evaluation mode on the CPU, compare the graph with PyTorch and write it.

    fmt: `onnx` or `torch_export`; lengths: feature steps to compare at (None: `check_lengths`); say: gets a line before
    each step, which may take minutes.  Returns steps -> the largest
    absolute difference of an output (for segments, which grow with the video: relative above 1).
    Raises UserError for missing packages, lengths that the graph does not accept, differences above `TOLERANCE` (nothing is
    written then) and a path that cannot be written.
    """
    missing = [name for name in NEEDED[fmt] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format {fmt}: needs {', '.join(missing)}, which is not installed: pip install -e '.[export]'")
    if model.test_precision == "bf16":
        raise UserError(f"{config.source}: test_cfg.precision: bf16: graphs are exported in float32; use --set "
                        "test_cfg.precision=fp32")
    lengths = check_lengths(config) if lengths is None else list(lengths)
    if config.model.use_abs_pe and (long := [n for n in lengths if n > config.dataset.max_seq_len]):
        raise UserError(f"{config.source}: model.use_abs_pe: a graph with a position table takes at most dataset.max_seq_len = "
                        f"{config.dataset.max_seq_len} steps, not {long[0]}; leave longer videos to PyTorch")
    wrapper = (DecodingNetwork if with_decode else Network)(model).eval()
    about = json.dumps(describe(model, config, label_names, with_decode))
    with tempfile.TemporaryDirectory() as folder, _quiet():
        made = Path(folder) / f"graph{FORMATS[fmt]}"
        say(f"tracing the network ({sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters)")
        program = _trace(wrapper, config)
        say(f"writing the graph ({'ONNX: minutes for a large network' if fmt == 'onnx' else 'torch.export'})")
        run = _write_onnx(program, wrapper, made, about) if fmt == "onnx" else _write_torch(program, made, about)
        say(f"comparing it with PyTorch at {', '.join(map(str, lengths))} steps")
        differences = {n: _difference(wrapper, run, config, n) for n in lengths}
        worst = max(differences, key=lambda n: differences[n])
        if not differences[worst] < TOLERANCE:
            raise UserError(f"{path}: the exported graph differs from PyTorch by {differences[worst]:.1e} at {worst} steps "
                            f"(allowed: {TOLERANCE:g}), so it is not written; try the other --format, and report this")
        content = made.read_bytes()
    write_bytes_atomic(path, content)
    return differences


def check_lengths(config: Config) -> list[int]:
    """Five lengths in feature steps: the shortest, odd ones, the training length, and one beyond it if the graph accepts it."""
    longest = config.dataset.max_seq_len
    fixed = config.model.use_abs_pe or config.model.temporal_gate == "published"
    return [1, 7, longest // 2 + 1, longest, longest // 3 if fixed else 2 * longest + 3]


def _trace(wrapper: Network, config: Config) -> Any:
    """The torch.export program, for any number of videos and any length that the network accepts."""
    stride, longest, channels = wrapper.model.coarsest_stride, config.dataset.max_seq_len, config.model_channels
    # long enough for several attention blocks on every level, so that tracing does not specialise on a single one
    blocks = 2 * max(BLOCK, *config.level_windows) + 5
    steps = longest if config.model.temporal_gate == "published" else min(blocks * stride, longest // stride * stride)
    feats, mask = torch.zeros(2, steps, channels), torch.ones(2, steps, dtype=torch.bool)
    shape: dict[int, Any] = {0: torch.export.Dim("videos", min=1, max=4096)}
    if config.model.temporal_gate != "published":  # the published gate has one length
        most = longest if config.model.use_abs_pe else LONGEST
        shape[1] = stride * torch.export.Dim("steps", min=1, max=most // stride)
    with torch.enable_grad():  # without gradients, layers write in place and return overlapping views
        return torch.export.export(wrapper, (feats, mask), dynamic_shapes=(shape, shape), strict=False)


def _write_onnx(program: Any, wrapper: Network, path: Path, about: str) -> Run:
    import onnxruntime
    made: Any = torch.onnx.export(program, dynamo=True, input_names=["feats", "mask"], output_names=list(wrapper.names),
                                  verbose=False)
    made.model.metadata_props[METADATA] = about
    made.save(str(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feats, mask: session.run(list(wrapper.names), {"feats": feats, "mask": mask})


def _write_torch(program: Any, path: Path, about: str) -> Run:
    torch.export.save(program, str(path), extra_files={METADATA: about})
    module = load_program(path)
    return lambda feats, mask: [t.numpy() for t in module(torch.from_numpy(feats), torch.from_numpy(mask))]


def load_program(path: str | os.PathLike) -> nn.Module:
    """The module of a .pt2 file, (feats, mask) -> outputs.

    Newer versions of torch guard against inputs that tracing would have handled differently inside torch (e.g. strides of a
    single step), although the graph is right for them, as `export` has checked.  These guards are off here.
    """
    program = torch.export.load(str(path))
    takes = inspect.signature(program.module).parameters
    return program.module(**({"check_guards": False} if "check_guards" in takes else {}))


@torch.no_grad()
def _difference(wrapper: Network, run: Run, config: Config, steps: int) -> float:
    """Largest difference of an output for a video of `steps` steps, alone and in a batch with one of half the length."""
    generator, padded, worst = torch.Generator().manual_seed(steps), padding_of(config).shortest(steps), 0.0
    relative = wrapper.names[1] == "segments"
    for lengths in ([steps], [steps, max(steps // 2, 1)]):
        feats = torch.zeros(len(lengths), padded, config.model_channels)
        mask = torch.zeros(len(lengths), padded, dtype=torch.bool)
        for i, n in enumerate(lengths):
            feats[i, :n], mask[i, :n] = torch.randn(n, config.model_channels, generator=generator), True
        for ours, theirs in zip(wrapper(feats, mask), run(feats.numpy(), mask.numpy()), strict=True):
            a, b = ours.double().numpy(), np.asarray(theirs, np.float64)
            if a.shape != b.shape or not np.isfinite(b).all():
                return float("inf")
            worst = max(worst, float((np.abs(a - b) / (np.maximum(np.abs(a), 1.0) if relative else 1.0)).max()))
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' messages about packages that are not needed here."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
