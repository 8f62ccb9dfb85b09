"""Candidates for the tests of NMS, and for its check on a GPU (benchmarks/gpu_checks.py)."""
from __future__ import annotations

import numpy as np
import torch

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
