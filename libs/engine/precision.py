"""The arithmetic of products on a device, as `precision` in the configuration asks for it."""
from __future__ import annotations

import torch

from libs.core.errors import UserError


def set_products(precision: str, device: torch.device, source: str, key: str) -> None:
    """Let CUDA products and convolutions round to TF32 for `tf32`, and only then (torch's own default mixes the two).

    bf16 is the network's own affair (`LocPointTransformer`).  Raises UserError where the device has no TF32.
    """
    if precision == "tf32":
        if device.type != "cuda":
            raise UserError(f"{source}: {key}: tf32 is arithmetic of CUDA devices, this run is on {device}; use fp32 or bf16")
        if torch.cuda.get_device_capability(device) < (8, 0):
            raise UserError(f"{source}: {key}: {torch.cuda.get_device_name(device)} has no TF32 (it came with Ampere); use fp32")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
