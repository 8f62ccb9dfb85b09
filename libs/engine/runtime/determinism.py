"""Seeds, states of random generators, deterministic kernels; with --deterministic others are an error."""
from __future__ import annotations

import contextlib
import os
import random
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from libs.core.errors import UserError, note

REFUSED = re.compile(r"(\S+) does not have a deterministic implementation|Deterministic behavior was enabled")


def seed_everything(seed: int, strict: bool = False) -> None:
    """`seed_generators`, then `use_deterministic_kernels`."""
    seed_generators(seed)
    use_deterministic_kernels(strict)


def seed_generators(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The states of all global random generators, as plain types and tensors."""
    numpy = np.random.get_state(legacy=False)
    keys, position = numpy["state"]["key"], numpy["state"]["pos"]
    version, internal, gauss = random.getstate()
    return {"torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [numpy["bit_generator"], torch.from_numpy(keys.astype(np.int64)), int(position), int(numpy["has_gauss"]),
                      float(numpy["gauss"])],
            "python": [version, list(internal), gauss]}


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore `random_state`.  With another number of GPUs their generators are left as they are, with a note."""
    torch.set_rng_state(state["torch"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(state["cuda"]) == devices and devices:
        torch.cuda.set_rng_state_all(state["cuda"])
    elif len(state["cuda"]) != devices:
        note("note: the checkpoint was written with another number of GPUs; dropout will draw other numbers than it would have")
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def use_deterministic_kernels(strict: bool = False) -> None:
    """Use deterministic kernels of torch and cuBLAS; where there is none, torch warns, or with `strict` raises RuntimeError."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    # what --deterministic is for; without it nobody needs to be told in every run
    warnings.filterwarnings("ignore", message=".* attention defaults to a non-deterministic algorithm")
    # would cost a pass over memory, and nothing here reads uninitialized memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # made at import


@contextlib.contextmanager
def strict_determinism(wanted: bool) -> Iterator[None]:
    """If `wanted`, an operation without a deterministic kernel raises a UserError that names it, and cuDNN uses deterministic
    kernels without benchmarking.  The previous settings are restored at the end."""
    if not wanted:
        yield
        return
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True,
                                    allow_tf32=torch.backends.cudnn.allow_tf32):
        use_deterministic_kernels(strict=True)
        try:
            yield
        except RuntimeError as error:
            if (found := REFUSED.search(str(error))) is None:
                raise
            what = f"{found.group(1)} has no deterministic kernel on this device" if found.group(1) else (
                f"cuBLAS is not deterministic with CUBLAS_WORKSPACE_CONFIG={os.environ['CUBLAS_WORKSPACE_CONFIG']}; unset it")
            raise UserError(f"--deterministic: {what}; or leave --deterministic out, and accept sums in any order") from error
        finally:
            torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
