"""The result of a golden check, and errors measured against the tolerances of the fixtures' README."""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

device = torch.device("cpu")  # of the networks under test; check_golden.py --device sets it


@dataclass(frozen=True)
class Check:
    """One comparison: `error` is already divided by its tolerance, so 1.0 is the limit; informational ones never fail."""

    name: str
    error: float
    informational: bool = False

    @property
    def passed(self) -> bool:
        return bool(self.error <= 1.0)  # NaN fails


def load(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz fixture, read without pickle."""
    with np.load(path, allow_pickle=False) as archive:
        return {k: archive[k] for k in archive.files}


def text(array: np.ndarray) -> Any:
    """A JSON value stored as a 0-d unicode array."""
    return json.loads(str(array))


def agree(name: str, equal: bool, informational: bool = False) -> Check:
    """A comparison without tolerance."""
    return Check(name, 0.0 if equal else float("inf"), informational)


def compare(name: str, got: Any, want: Any, *, atol: float = 0.0, rtol: float = 0.0, to_largest: bool = False,
            informational: bool = False) -> Check:
    """Largest |got - want| / (atol + rtol |want|); `to_largest` scales rtol by max |want|.  Shapes must agree."""
    got, want = (np.asarray(x.detach().cpu() if isinstance(x, torch.Tensor) else x) for x in (got, want))
    if got.shape != want.shape:
        return agree(f"{name} (shape {got.shape}, expected {want.shape})", False, informational)
    if want.size == 0:
        return agree(name, True, informational)
    if (want.dtype.kind in "biuUS" and got.dtype.kind == want.dtype.kind) or (atol == 0 and rtol == 0):
        return agree(name, np.array_equal(got, want), informational)
    got, want = got.astype(np.float64), want.astype(np.float64)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    scale = np.abs(want).max() if to_largest else np.abs(want)
    limit = np.broadcast_to(np.maximum(atol + rtol * scale, 1e-300), want.shape)
    error = np.where(same, 0.0, np.abs(got - want) / limit)
    return Check(name, float(np.nan_to_num(error, nan=np.inf).max()), informational)
