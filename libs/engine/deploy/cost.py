"""Cost of a network: parameters and FLOPs per part, latency and peak memory.

    count(config, length)                     parameters and FLOPs; shapes only, no arithmetic, well below a second
    measure(config, length, device, runs)     the same with latency and memory, measured in a process of its own

One FLOP is an addition or a multiplication, so a multiply-add counts twice.  Matrix products, convolutions and attention are
counted at every step of the sequence; norms, activations, pooling and sums are not.  Neither is extracting the features from
video, nor decoding and NMS, nor convolutions that evaluation skips since they stay zero (model.init_conv_vars: 0).
"""
from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from libs.core.config import from_dict, to_dict
from libs.core.devices import resolve_device
from libs.core.errors import UserError
from libs.core.files import system_text
from libs.core.relations.checks import check_relations
from libs.core.schema import Config
from libs.datasets.features.cache import available_memory
from libs.engine.runtime.machine import this_machine
from libs.engine.runtime.precision import matmul_precision
from libs.modeling.blocks.sgp import SGPBlock
from libs.modeling.model import LocPointTransformer, build_model
from libs.utils.tables import format_table

ROOT = Path(__file__).resolve().parents[3]
WARMUP = 2
MOST_STEPS = 10**9  # far beyond any memory; sizes fit into 64 bits
PARTS = {  # part -> modules of the network
    "hallucinator": ("rgb2flow", "hallucinator"),
    "fusion": ("fusion",),
    "embedding": ("backbone.proj", "backbone.embd", "backbone.embd_norm"),
    "stem": ("backbone.stem",),
    "branch": ("backbone.branch",),
    "neck": ("neck",),
    "heads": ("cls_head", "start_head", "end_head", "reg_head"),
}
OTHER = "other"  # modules of no part; listed only if not zero


def feature_flops(config: Config) -> dict[str, float]:
    """Modality that the network reads -> FLOPs behind one feature vector (dataset.feature_gflop); {} where they are not given."""
    known = config.dataset.feature_gflop or {}
    return {name: 1e9 * gflop for name, gflop in known.items() if name in (config.model.modalities or known)}


class Count(NamedTuple):
    """Parameters and FLOPs (2 x multiply-adds) of a network, and part -> {params, flops}, which add up to the totals."""

    params: int
    flops: int
    parts: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Cost:
    """A network's cost on one sequence of `length` steps (batch 1, float32, evaluation mode).

    Latencies in ms are the median, 10th and 90th percentile of `runs` forward passes.  `peak_bytes`: on a GPU, the most
    memory that tensors took (torch.cuda.max_memory_allocated: weights, input and intermediate results); on the CPU, the
    peak resident memory of a fresh process, Python and torch included.
    """

    config: str
    length: int
    channels: int
    device: str
    threads: int
    machine: str
    runs: int
    params: int
    flops: int
    parts: dict[str, dict[str, int]]
    latency_ms: float
    latency_ms_p10: float
    latency_ms_p90: float
    peak_bytes: int
    feature_flops: dict[str, float]  # `feature_flops` of the configuration

    def as_dict(self) -> dict[str, Any]:
        """Every field, and the torch version, as plain values for JSON."""
        return {**dataclasses.asdict(self), "torch": torch.__version__}

    def table(self) -> str:
        """The numbers as text."""
        memory = "the process, with Python and torch" if self.device == "cpu" else "tensors on the device"
        parts = [*self.parts.items(), ("total", {"params": self.params, "flops": self.flops})]
        rows = [[name, part["params"] / 1e6, _percent(part["params"], self.params),
                 part["flops"] / 1e9, _percent(part["flops"], self.flops)] for name, part in parts]
        return "\n".join([
            f"{self.config}: {self.length} steps of {self.channels} channels, batch 1, float32",
            f"{self.device}: {self.machine}, CPU threads: {self.threads}, torch {torch.__version__}", "",
            format_table(rows, ["part", "params M", "%", "GFLOP", "%"], digits=3), "",
            f"latency       {self.latency_ms:.2f} ms, median of {self.runs} forward passes of the network alone "
            f"(10 %: {self.latency_ms_p10:.2f}, 90 %: {self.latency_ms_p90:.2f})",
            f"peak memory   {self.peak_bytes / 2**20:.1f} MiB ({memory})",
            *self._features(),
            "not included  extracting the features from video, decoding, NMS"])

    def _features(self) -> list[str]:
        """What features cost beside the network, where it is known."""
        if not self.feature_flops:
            return []
        own, total = self.flops / self.length, sum(self.feature_flops.values())
        parts = ", ".join(f"{name} {flops / 1e9:.1f}" for name, flops in self.feature_flops.items())
        return [f"features      {total / 1e9:.1f} GFLOP per step ({parts}), {total / own:.0f} times the network's "
                f"{own / 1e9:.4f}; without the optical flow itself"]


def full_length(config: Config, length: int | None = None) -> int:
    """`length` in feature steps (None: dataset.max_seq_len), rounded up to a multiple of the coarsest level's stride; at least
    dataset.max_seq_len for a published temporal gate.  Raises UserError below 1 and above `MOST_STEPS`."""
    length = config.dataset.max_seq_len if length is None else length
    if length < 1:
        raise UserError(f"--length {length}: a sequence has at least 1 step; leave --length out for dataset.max_seq_len "
                        f"({config.dataset.max_seq_len})")
    if length > MOST_STEPS:
        raise UserError(f"--length {length}: no machine has the memory for so long a sequence; use at most {MOST_STEPS}")
    if config.model.temporal_gate == "published":
        length = max(length, config.dataset.max_seq_len)
    coarsest = config.level_strides[-1]
    return -(-length // coarsest) * coarsest


def count(config: Config, length: int | None = None) -> Count:
    """Parameters and FLOPs of a configuration's network on a sequence of `full_length` steps.

    The network runs on torch's meta device, with shapes but no data.  Raises UserError.
    """
    length = full_length(config, length)
    with torch.device("meta"):
        model = as_evaluated(config)
        inputs = torch.empty(1, length, config.model_channels), torch.empty(1, length, dtype=torch.bool)
    # attention as matrix products: FlopCounterMode cannot count every fused kernel
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs)
    parts = {name: {"params": 0, "flops": 0} for name in (*PARTS, OTHER)}
    for name, parameter in model.named_parameters():
        parts[part_of(name)]["params"] += parameter.numel()
    for name, flops in _own_flops(counter, model).items():
        parts[part_of(name)]["flops"] += flops
    if not any(parts[OTHER].values()):
        del parts[OTHER]
    return Count(sum(p.numel() for p in model.parameters()), counter.get_total_flops(), parts)


def measure(config: Config, length: int | None = None, device: str | None = None, runs: int = 20) -> Cost:
    """The cost of a configuration's network, freshly initialised, on a sequence of `full_length` valid steps.

    `device`: cpu, auto, cuda or cuda:N (None: config.devices).  Latency and memory come from a process of its own with as
    many threads as this one.  Raises UserError for a device that does not exist, for a length or a number of runs below 1,
    and where memory does not suffice.
    """
    if runs < 1:
        raise UserError(f"--runs {runs}: a latency needs at least 1 forward pass, e.g. --runs 20")
    if device is not None:
        config = dataclasses.replace(config, devices=(device,))
        check_relations(config)
    device, length, threads = resolve_device(config), full_length(config, length), torch.get_num_threads()
    _refuse_beyond_memory(config, length, device)
    params, flops, parts = count(config, length)
    machine = this_machine(device)
    times, peak = _in_own_process({"config": to_dict(config), "source": config.source, "length": length, "device": device,
                                   "runs": runs, "threads": threads})
    low, median, high = np.percentile(times, (10, 50, 90)).tolist()
    return Cost(config=config.source, length=length, channels=config.model_channels, device=device, threads=threads,
                machine=machine.gpu or machine.processor, runs=runs, params=params, flops=flops, parts=parts,
                latency_ms=median, latency_ms_p10=low, latency_ms_p90=high, peak_bytes=peak,
                feature_flops=feature_flops(config))


def as_evaluated(config: Config) -> LocPointTransformer:
    """A fresh network in evaluation mode; convolutions that start at zero stay zero, so that evaluation skips them."""
    model = build_model(config).eval()
    for module in model.modules():
        if isinstance(module, SGPBlock):
            module.dead = config.model.init_conv_vars == 0
    return model


def _refuse_beyond_memory(config: Config, length: int, device: str) -> None:
    """UserError where the input and the levels of the neck, twice while they are joined, do not fit into the free memory."""
    points, available = sum(length // stride for stride in config.level_strides), available_memory(torch.device(device))
    needed = 4 * (length * config.model_channels + 2 * points * config.model.fpn_dim)
    if needed > available:
        raise UserError(f"--length {length}: the input and the levels of the neck alone take {needed / 2**30:.1f} GiB, but "
                        f"{device} has {available / 2**30:.1f} GiB available; use at most about "
                        f"--length {int(length * available / needed)}")


def part_of(name: str) -> str:
    """The part that a module or a parameter belongs to, by its dotted name in the network."""
    owners = (part for part, modules in PARTS.items() if any(f"{name}.".startswith(f"{module}.") for module in modules))
    return next(owners, OTHER)


def run_forward(config: Config, length: int, device: str, runs: int) -> tuple[list[float], int]:
    """Times in ms of `runs` forward passes in this process, and its peak memory in bytes (see `Cost`)."""
    torch.manual_seed(0)
    model = as_evaluated(config).to(device)
    x_BTC = torch.randn(1, length, config.model_channels, device=device)
    mask_BT = torch.ones(1, length, dtype=torch.bool, device=device)
    with torch.inference_mode(), matmul_precision("fp32"):
        times = [_forward_ms(model, x_BTC, mask_BT) for _ in range(WARMUP + runs)]
    return times[WARMUP:], _resident_peak() if device == "cpu" else torch.cuda.max_memory_allocated(device)


def child() -> None:
    """Main function of the process that `measure` starts: task as JSON on stdin, [times in ms, peak bytes] on stdout."""
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    config = from_dict(task["config"], task["source"])
    print(json.dumps(run_forward(config, task["length"], task["device"], task["runs"])))


def _in_own_process(task: dict[str, Any]) -> tuple[list[float], int]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run([sys.executable, "-c", "from libs.engine.deploy.cost import child; child()"], input=json.dumps(task),
                          capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    if done.returncode == 0:
        times, peak = json.loads(done.stdout.splitlines()[-1])
        return times, peak
    lacks_memory = ("out of memory", "can't allocate memory", "MemoryError")
    if done.returncode == -9 or any(text in done.stderr for text in lacks_memory):  # -9: killed by the system
        raise UserError(f"{task['source']}: a forward pass of {task['length']} steps does not fit into the memory of "
                        f"{task['device']}; use a smaller --length or another --device")
    raise RuntimeError(f"the measuring process failed with exit code {done.returncode}:\n{done.stderr}")


def _forward_ms(model: nn.Module, x_BTC: Tensor, mask_BT: Tensor) -> float:
    started = time_on(x_BTC.device)
    model(x_BTC, mask_BT)
    return 1000 * (time_on(x_BTC.device) - started)


def time_on(device: torch.device) -> float:
    """time.perf_counter() once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _own_flops(counter: FlopCounterMode, model: nn.Module) -> dict[str, int]:
    """FLOPs by module name ('': the network itself), without those of the module's submodules."""
    root = type(model).__name__
    total = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items() if name.split(".")[0] == root}
    own = dict(total)
    for name, flops in total.items():
        caller = name.rpartition(".")[0]
        while caller and caller not in total:  # containers such as ModuleList have no FLOPs
            caller = caller.rpartition(".")[0]
        if caller:
            own[caller] -= flops
    return {name.partition(".")[2]: flops for name, flops in own.items()}


def _resident_peak() -> int:
    """Peak resident memory of this process, bytes."""
    for line in system_text("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):  # on Linux, ru_maxrss of a child includes its parent's memory
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"
