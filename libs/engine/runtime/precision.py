"""The precision of matrix products and convolutions: `train_cfg.precision` and `test_cfg.precision`.

bf16 is autocast inside the network (`LocPointTransformer`); TF32 is a process-wide switch, set here within a context.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from libs.core.devices import multiplies_bf16
from libs.core.errors import UserError, note


def check_precision(precision: str, device: torch.device, source: str, key: str) -> None:
    """Raise UserError if `precision`, the value of `key` in the configuration `source`, is tf32 and the device has no TF32.

    bf16 on a processor that does not multiply it, which takes four times as long as float32, is a line on stderr.
    """
    if precision == "bf16" and device.type == "cpu" and not multiplies_bf16():
        note(f"warning: {source}: {key}: bf16: this processor has no bf16 products (AMX or AVX512-BF16), so it takes about four "
             f"times as long as fp32; use --set {key}=fp32")
    if precision != "tf32":
        return
    if device.type != "cuda":
        raise UserError(f"{source}: {key}: tf32 is arithmetic of CUDA devices, this run is on {device}; use fp32 or bf16")
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise UserError(f"{source}: {key}: {torch.cuda.get_device_name(device)} has no TF32 (it came with Ampere); use fp32")


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Context in which CUDA matrix products and convolutions use TF32 if and only if `precision` is tf32.

    (PyTorch's default is TF32 in convolutions, float32 in products.)
    """
    if precision == "bf16":  # oneDNN compiles a kernel per shape and caches 1024 of them by default
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def low_weights(model: nn.Module, precision: str) -> Iterator[None]:
    """Context for inference: with bf16, dense weights are rounded once instead of in every forward pass.

    The results are the same.  The last layers of the heads stay float32.  The exact weights are restored at the end.
    """
    kept = []
    if precision == "bf16":
        last = {id(m) for name, layer in model.named_modules() if name.endswith((".cls_head", ".offset_head"))
                for m in layer.modules()}
        kept = [(m.weight, m.weight.data) for m in model.modules()
                if isinstance(m, (nn.Conv1d, nn.Linear)) and getattr(m, "groups", 1) == 1 and id(m) not in last]
    try:
        with torch.inference_mode(False), torch.no_grad():
            for weight, data in kept:
                weight.data = data.to(torch.bfloat16)
        yield
    finally:
        for weight, data in kept:
            weight.data = data
