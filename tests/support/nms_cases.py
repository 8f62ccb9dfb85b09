"""Candidates for the NMS tests, and the libraries compiled from the sources of this checkout."""
from __future__ import annotations

import functools
import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from libs.utils.nms import native as nms_native

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("random", "tied", "empty_segments", "same_segments")


def candidates(kind: str, n: int, seed: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Overlapping segments on [-2, 100); tied: scores in steps of 1/20; empty_segments: every 5th has length 0."""
    random = np.random.default_rng(seed)
    start = random.uniform(-2, 90, n)
    segments = np.stack([start, start + random.exponential(6, n)], axis=1).astype(np.float32)
    scores = random.beta(1, 4, n).astype(np.float32)
    if kind == "tied":
        scores = (np.round(scores * 20) / 20).astype(np.float32)
        segments = np.round(segments * 2) / 2
    elif kind == "empty_segments":
        segments[::5, 1] = segments[::5, 0]
        segments[::10] = segments[:1]
    elif kind == "same_segments":
        segments = segments[random.integers(0, max(1, n // 8), n)]
    return torch.from_numpy(segments), torch.from_numpy(scores), torch.from_numpy(random.integers(0, classes, n))


@functools.cache
def build_script():
    """setup.py as a module."""
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("build_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="nms-test-")


@functools.cache
def compiled_cpu() -> nms_native.CpuLibrary:
    """csrc/nms.cpp as it stands now, whatever was built before; skips without a C++ compiler."""
    script, target = build_script(), Path(_scratch().name) / nms_native.CPU_PATH.name
    command = script.cxx_command()
    if command is None:
        pytest.skip("no C++ compiler")
    assert script.compile_library(command, "C++ compiler", ROOT / script.CSRC / "nms.cpp", target, force=True)
    return nms_native.CpuLibrary(target)
