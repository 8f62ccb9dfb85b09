"""One thread and deterministic kernels, so that a test gives the same numbers on every run."""
from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)
