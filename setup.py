"""Install the package and build its NMS libraries, each only where its compiler exists.

    pip install -e . --no-build-isolation      editable, libraries beside their sources in libs/utils/csrc
    python setup.py build_ext --inplace        (re)build the libraries alone; --force rebuilds what is up to date

The libraries have a plain C interface, so neither Python headers nor torch are needed here.  A compiler that is missing or fails
is a warning, never a failed install: the package then runs a slower path with the same results.
Environment: CXX names the C++ compiler, CUDA_HOME the CUDA toolkit where nvcc is not on PATH.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = Path("libs/utils/csrc")
SUFFIX = ".dll" if sys.platform == "win32" else ".so"
CPU_NAME, CUDA_NAME = f"libtal_nms{SUFFIX}", f"libtal_nms_cuda{SUFFIX}"  # as libs/utils/nms/native.py looks for them

# No -march=native (the library may travel), no -ffast-math, no contraction to fused multiply-add: the same results everywhere.
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-ffp-contract=off", "-fvisibility=hidden"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-shared", "--fmad=false", "--threads", "0",
              "-Xcompiler", "-fPIC,-ffp-contract=off,-fvisibility=hidden"]
GPU_ARCHITECTURES = (75, 80, 90)  # code for 80 runs on 86 and 89 too; newer GPUs compile the embedded PTX of the last one


def cxx_command() -> list[str] | None:
    """The C++ compiler with its flags, or None."""
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        if shutil.which(name.split()[0]):
            return [*name.split(), *CXX_FLAGS]
    return None


def nvcc_command() -> list[str] | None:
    """nvcc with its flags, or None."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc") or (shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None)
    if nvcc is None:
        return None
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout.split()
    known = [a for a in GPU_ARCHITECTURES if f"compute_{a}" in listed]
    targets = [flag for a in known for flag in ("-gencode", f"arch=compute_{a},code=sm_{a}")]
    if known:
        targets += ["-gencode", f"arch=compute_{known[-1]},code=compute_{known[-1]}"]
    return [nvcc, *NVCC_FLAGS, *targets]


def compile_library(command: list[str] | None, compiler: str, source: Path, target: Path, force: bool) -> bool:
    """Compile `source` to `target` (replaced atomically) unless it is up to date; False, after a warning, when that fails."""
    newest = max(path.stat().st_mtime for path in (source, *(ROOT / CSRC).glob("*.h")))
    if not force and target.is_file() and target.stat().st_mtime >= newest:
        return True
    if command is None:
        problem = f"no {compiler} found"
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as folder:
            made = Path(folder) / target.name
            run = subprocess.run([*command, "-o", str(made), str(source)], capture_output=True, text=True, check=False)
            if run.returncode == 0 and made.is_file():
                os.replace(made, target)
                print(f"built {target}")
                return True
        problem = f"{command[0]} failed:\n{(run.stderr or run.stdout).strip()}\n"
    target.unlink(missing_ok=True)  # a library of older sources would be used unnoticed
    print(f"warning: {target.name} is not built ({problem}); NMS runs without it, with the same results", file=sys.stderr)
    return False


class BuildLibraries(build_ext):
    """`build_ext` that compiles the two NMS libraries instead of Python extensions."""

    def run(self) -> None:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        folder = ROOT / CSRC if in_place else Path(self.build_lib).resolve() / CSRC
        self.built = []
        for name, source, compiler, command in ((CPU_NAME, "nms.cpp", "C++ compiler", cxx_command()),
                                                (CUDA_NAME, "nms_cuda.cu", "nvcc", nvcc_command())):
            if compile_library(command, compiler, ROOT / CSRC / source, folder / name, bool(self.force)):
                self.built.append(str(folder / name))

    def get_outputs(self) -> list[str]:
        return list(getattr(self, "built", []))

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []  # listed as package data


class WithLibraries(Distribution):
    """Makes `build` and `bdist_wheel` treat the distribution as one with compiled code."""

    def has_ext_modules(self) -> bool:
        return True


if __name__ == "__main__":
    setup(cmdclass={"build_ext": BuildLibraries}, distclass=WithLibraries, zip_safe=False)  # the rest is in pyproject.toml
