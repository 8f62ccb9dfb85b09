"""The line that names the machine of a measurement."""
from __future__ import annotations

import platform

import pytest
import torch

from libs.engine.runtime import machine
from libs.engine.runtime.machine import this_machine


@pytest.mark.parametrize("gpu", [None, "some GPU"])
def test_line(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"{gpu} {device}")
    got = this_machine("cuda:1")
    assert got.gpu == (gpu and "some GPU cuda:1")
    assert this_machine().gpu == (gpu and "some GPU None")
    assert this_machine("cpu").gpu is None
    threads = torch.get_num_threads()
    between = "" if gpu is None else ", some GPU cuda:1"
    assert got.line() == (f"{got.processor}, {got.cores} cores, {threads} threads{between}, torch {torch.__version__}, "
                          f"Python {platform.python_version()}")
    assert got.processor
    assert got.cores >= 1


@pytest.mark.parametrize(("text", "name"), [
    ("processor\t: 0\nmodel name\t: A: B @ 2 GHz\nmodel name\t: C\n", "A: B @ 2 GHz"),
    ("processor\t: 0\n", platform.processor() or platform.machine()),  # as on ARM
    ("", platform.processor() or platform.machine()),  # no such file
])
def test_processor(monkeypatch, text, name):
    monkeypatch.setattr(machine, "system_text", lambda path: {"/proc/cpuinfo": text}[path])
    assert this_machine().processor == name


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    asked = []

    class Library:
        """A C library that takes notes."""

        def mallopt(self, option, value):
            asked.append((option, value))
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: Library())
    machine.keep_freed_memory()
    assert asked == [(-3, 2**30), (-1, 2**31 - 1)]
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: object())
    machine.keep_freed_memory()  # no such function: nothing happens
    assert len(asked) == 2
