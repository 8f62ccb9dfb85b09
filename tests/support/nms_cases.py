"""The NMS libraries compiled from the sources of this checkout."""
from __future__ import annotations

import functools
import importlib.util
import tempfile
from pathlib import Path

import pytest

from libs.utils.nms import native as nms_native

ROOT = Path(__file__).resolve().parents[2]


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
