"""The device that a process gets."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from config_files import small

from libs.core.config import load_config
from libs.core.devices import resolve_device
from libs.core.errors import UserError


def test_resolve_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def resolve(device: str, count: int) -> str:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        return resolve_device(load_config(small(tmp_path), [f"devices={device}"]))

    assert [resolve(d, 2) for d in ("cpu", "auto", "cuda", "cuda:1")] == ["cpu", "cuda:0", "cuda:0", "cuda:1"]
    assert capsys.readouterr().err == ""
    assert resolve("auto", 0) == "cpu"
    assert capsys.readouterr().err == "devices: auto: no CUDA device here, running on the CPU\n"
    with pytest.raises(UserError, match=r"no CUDA device is available here; use --set devices=cpu$"):
        resolve("cuda", 0)
    with pytest.raises(UserError, match=r"this machine has 2 \(cuda:0 to cuda:1\)"):
        resolve("cuda:2", 2)


@pytest.mark.parametrize(("devices", "gpus", "expected"), [
    ("cuda", 4, "cuda:1"), ("cuda:0", 4, "cuda:1"), ("auto", 3, "cuda:1"), ("auto", 0, "cpu"), ("cpu", 4, "cpu"),
    ("[cuda:0,cuda:3,cuda:2]", 4, "cuda:3"),
    ("cuda", 2, r"started 3 processes on this machine, which has 2 GPUs; use --nproc_per_node=2, or --set devices=cpu"),
    ("cuda", 0, r"'cuda', but no CUDA device is available here"),
    ("cuda:1", 4, r"'cuda:1' is one device, but torchrun has started 3 processes on this machine; use devices: cuda"),
    ("[cuda:0,cuda:1]", 4, r"names 2 devices, but on this machine runs 3 processes.*--nproc_per_node=2"),
    ("[cuda:0,cuda:5,cuda:2]", 4, r"'cuda:5', but this machine has 4")])
def test_device_of_one_of_three_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: str, gpus: int,
                                          expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = load_config(small(tmp_path), [f"devices={devices}"])
    if expected == "cpu" or expected.startswith("cuda:"):
        assert resolve_device(config, 1, 3) == expected
        return
    with pytest.raises(UserError, match=expected):
        resolve_device(config, 1, 3)
