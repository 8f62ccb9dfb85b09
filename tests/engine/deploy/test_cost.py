"""Parameters, FLOPs, latency and memory of a network."""
from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_config
from networks import POOLER, TRIDET
from torch.utils.flop_counter import FlopCounterMode

from libs.core.config import load_config
from libs.core.errors import UserError
from libs.datasets.video.i3d_network import InceptionI3D
from libs.engine.deploy import cost
from libs.engine.deploy.cost import Cost, count, feature_flops, full_length, measure, part_of, run_forward
from libs.modeling.blocks.sgp import SGPBlock
from libs.modeling.model import build_model

THUMOS = Path(__file__).resolve().parents[3] / "configs" / "thumos_i3d.yaml"
TWO_STREAMS = {"modalities": {"rgb": [0, 4], "flow": [4, 6]}}
C, IN, CLASSES, STEPS = 16, 6, 3, (48, 24, 12)  # the tiny model: width, input channels, classes, steps per level


def conv_macs(steps, inputs, outputs, kernel):
    """Multiply-adds of a convolution, one by one over outputs, taps and inputs."""
    return sum(kernel * inputs for _ in range(steps) for _ in range(outputs))


def head_macs():
    towers = sum(2 * 2 * conv_macs(t, C, C, 3) for t in STEPS)
    return towers + sum(conv_macs(t, C, CLASSES, 3) + conv_macs(t, C, 2, 3) for t in STEPS)


def test_conv_by_hand():
    def block(t):
        return conv_macs(t, C, 2 * C, 3) + conv_macs(t, 2 * C, C, 3)

    got = count(tiny_config(model={"backbone_type": "conv"}))
    macs = {"embedding": conv_macs(48, IN, C, 3), "stem": block(48),
            "branch": sum(block(t) + conv_macs(t, C, C, 1) for t in STEPS[1:]), "heads": head_macs()}
    assert {name: part["flops"] for name, part in got.parts.items() if part["flops"]} == {n: 2 * m for n, m in macs.items()}
    block_params = (3 * C * 2 * C + 2 * C) + (3 * 2 * C * C + C)
    tower = 2 * (3 * C * C + 2 * C)  # no bias, but a norm's weight and bias
    params = {"embedding": 3 * IN * C + 2 * C, "stem": block_params, "branch": 2 * (block_params + C * C + C),
              "neck": 3 * 2 * C, "heads": 2 * tower + (3 * C * CLASSES + CLASSES) + (3 * C * 2 + 2) + 3}
    assert {name: part["params"] for name, part in got.parts.items() if part["params"]} == params


def test_transformer_by_hand():
    """Queries attend in blocks of 32 to 2 more keys on either side (window 5)."""
    def block(t):
        depthwise = 3 * t * C * 3
        products = (4 + 8) * t * C * C  # query, key, value, projection; MLP of four times the width
        attention = -(-t // 32) * 32 * (32 + 4) * C * 2  # scores and weighted sum
        return depthwise + products + attention

    got = count(tiny_config())
    macs = {"embedding": conv_macs(48, IN, C, 3), "stem": block(48), "branch": sum(map(block, STEPS[1:])), "heads": head_macs()}
    assert {name: part["flops"] for name, part in got.parts.items() if part["flops"]} == {n: 2 * m for n, m in macs.items()}
    assert got.flops == 2 * sum(macs.values())


def test_tridet_by_hand():
    """Stem block: depthwise kernels 1, 1, 1, odd(2 k) and the mean's factor at one step; the branch has windows of 3."""
    def block(t, window, wide):
        return t * C * (2 * window + 1 + wide) + C + 2 * t * C * 20

    got = count(tiny_config(model=TRIDET))
    macs = {"embedding": conv_macs(48, IN, C, 3), "stem": block(48, 1, 3), "branch": sum(block(t, 3, 7) for t in STEPS[1:]),
            "heads": sum(conv_macs(t, C, C, 3) * 8 + conv_macs(t, C, CLASSES, 3) * 3 + conv_macs(t, C, 8, 3) for t in STEPS)}
    assert {name: part["flops"] for name, part in got.parts.items() if part["flops"]} == {n: 2 * m for n, m in macs.items()}


def test_convolutions_that_stay_zero_are_skipped_as_in_evaluation(monkeypatch):
    living, dead = (count(tiny_config(model={**TRIDET, "init_conv_vars": std})) for std in (0.3, 0.0))
    assert living.params == dead.params
    mlps = {"stem": 4 * 48 * C * 20, "branch": 4 * (24 + 12) * C * 20}  # two products of 2 FLOPs
    assert {name: dead.parts[name]["flops"] for name in mlps} == mlps
    assert all(living.parts[name]["flops"] > flops for name, flops in mlps.items())
    seen = []
    monkeypatch.setattr(cost, "_forward_ms", lambda model, *_: float(seen.extend(
        m.dead for m in model.modules() if isinstance(m, SGPBlock)) or 1.0))
    run_forward(tiny_config(model={**TRIDET, "init_conv_vars": 0.0}), 48, "cpu", 1)
    assert seen
    assert all(seen)


@pytest.mark.parametrize("sections", [
    {"train_cfg": {"droppath": 0.0}},
    {"model": {"use_rel_pe": True, "use_abs_pe": True, "n_mha_win_size": [5, -1, 3]}},
    {"model": {"fpn_type": "fpn", "fpn_dim": 24, "fpn_start_level": 1, "regression_range": [[0, 8], [8, 100]]}},
    {"dataset": {"input_dim": [2, 4]}, "model": {"embd_dim": [6, 10]}},
    {"model": {"branch_type": "max_pool", "head_type": "separable"}},
    {"model": {"temporal_gate": "published"}},
    {"model": {"temporal_gate": "post_norm", "backbone_type": "conv"}},
    {"dataset": TWO_STREAMS, "model": {"backbone_type": "conv_dw", "modalities": ["rgb", "flow"], "fusion": "gated"}},
    {"dataset": TWO_STREAMS, "model": {"modalities": ["rgb"], "hallucinated": ["flow"], "hallucinator": "rgb2flow"}},
    {"dataset": TWO_STREAMS, "model": {"modalities": ["rgb"], "hallucinated": ["flow"], "hallucinator": "separable",
                                       "fusion": "gated"}},
    {"dataset": TWO_STREAMS, "model": {"modalities": ["rgb"], "hallucinated": ["flow"], "hallucinator": "bottleneck"}},
    {"model": {**TRIDET, "downsample_type": "avg"}}, {"model": POOLER},
], ids=["transformer", "positions", "fpn", "list input", "max pool, separable heads", "published gate", "gate after norm",
        "fusion", "rgb2flow", "separable, fusion", "bottleneck", "TriDet", "TemporalMaxer"])
def test_parts_are_the_whole(sections):
    config = tiny_config(**sections)
    got = count(config)
    params = sum(p.numel() for p in build_model(config).parameters())
    assert set(got.parts) == set(cost.PARTS)  # nothing is left over
    assert sum(part["params"] for part in got.parts.values()) == got.params == params
    assert sum(part["flops"] for part in got.parts.values()) == got.flops > 0
    assert min(value for part in got.parts.values() for value in part.values()) >= 0
    model = config.model
    for part, there in {"hallucinator": model.hallucinator != "none", "fusion": model.fusion != "none", "heads": True,
                        "branch": model.branch_type == "block" and model.backbone_type != "convPooler"}.items():
        assert (got.parts[part]["params"] > 0, got.parts[part]["flops"] > 0) == (there, there), part


RGB_ONLY = ("dataset.modalities={rgb: [0, 1024], flow: [1024, 2048]}", "model.modalities=[rgb]", "model.hallucinator=rgb2flow",
            "model.hallucinated=[flow]")


@pytest.mark.parametrize(("backbone", "overrides", "params_m", "gflop"), [
    ("convTransformer", (), 29.25, 90.5),
    ("conv", (), 30.47, 91.2),
    ("conv", RGB_ONLY, 36.76, 120.2),
    ("conv_dw", RGB_ONLY, 19.52, 79.5),
    ("conv_dw", (), 13.22, 50.5),
], ids=["convTransformer", "conv", "conv rgb2flow", "conv_dw rgb2flow", "conv_dw"])
def test_published_sizes(backbone, overrides, params_m, gflop):
    """SPEC section 12, at 2304 steps; block attention does somewhat more work than the published one."""
    got = count(load_config(THUMOS, [f"model.backbone_type={backbone}", *overrides]))
    assert round(got.params / 1e6, 2) == params_m
    assert got.flops / 1e9 == pytest.approx(gflop, rel=0.01)


def test_length():
    config = tiny_config(model={"backbone_type": "conv"})
    assert [full_length(config, n) for n in (None, 1, 4, 45, 48, 49)] == [48, 4, 4, 48, 48, 52]
    assert count(config, 96).flops == 2 * count(config, 45).flops
    assert count(config, 96).params == count(config).params
    gated = tiny_config(model={"temporal_gate": "published"})  # its networks over time have a fixed size
    assert [full_length(gated, n) for n in (None, 1, 49)] == [48, 48, 52]
    assert count(gated, 1) == count(gated)


def test_part_of_a_name():
    assert part_of("backbone.embd_norm.0.weight") == "embedding"
    assert part_of("backbone.stem.1") == "stem"
    assert part_of("backbone.position") == part_of("") == part_of("neckline.0") == "other"


def test_measure_in_its_own_process():
    config = tiny_config(model={"backbone_type": "conv"})
    threads = torch.get_num_threads()
    got = measure(config, 20, "cpu", runs=3)
    assert (got.length, got.channels, got.device, got.threads, got.runs) == (20, IN, "cpu", threads, 3)
    assert 0 < got.latency_ms_p10 <= got.latency_ms <= got.latency_ms_p90
    assert 4 * got.params + 30e6 < got.peak_bytes < 20e9  # Python and torch are in it
    assert (got.params, got.flops, got.parts) == count(config, 20)


def test_every_pass_is_timed_after_warm_up(monkeypatch):
    """A clock that advances by 1 s, 2 s, 3 s, ... per pass shows which passes count, and that it is ms."""
    clock = iter(np.repeat(np.cumsum(np.arange(10)), 2)[1:].tolist())
    monkeypatch.setattr(cost.time, "perf_counter", lambda: float(next(clock)))
    times, peak = run_forward(tiny_config(model={"backbone_type": "conv"}), 8, "cpu", 3)
    assert times == [1000.0 * (cost.WARMUP + i) for i in (1, 2, 3)]
    assert peak > 0


def test_percentiles_and_table(monkeypatch):
    monkeypatch.setattr(cost, "_in_own_process", lambda task: ([30.0, 10.0, 20.0, 50.0, 40.0], 3 * 2**20))
    got = measure(tiny_config(model={"backbone_type": "conv"}), device="cpu", runs=5)
    assert (got.latency_ms_p10, got.latency_ms, got.latency_ms_p90) == (14.0, 30.0, 46.0)
    table = got.table()
    assert all(name in table for name in (*cost.PARTS, "total", "30.00 ms", "3.0 MiB", "tiny.yaml: 48 steps of 6 channels"))
    assert set(got.as_dict()) == {*Cost.__dataclass_fields__, "torch"}
    total = next(line.split() for line in table.splitlines() if line.startswith("total"))
    assert total == ["total", f"{got.params / 1e6:.3f}", "100.0", f"{got.flops / 1e9:.3f}", "100.0"]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"length": 0}, "--length 0: a sequence has at least 1 step; leave --length out for dataset.max_seq_len (48)"),
    ({"length": 10**30}, f"--length {10**30}: no machine has the memory for so long a sequence"),
    ({"runs": 0}, "--runs 0: a latency needs at least 1 forward pass"),
    ({"device": "gpu"}, "tiny.yaml: devices: 'gpu' is not a device"),
    ({"device": "cuda:99"}, "tiny.yaml: devices: 'cuda:99', but"),
])
def test_refused(arguments, message):
    with pytest.raises(UserError) as error:
        measure(tiny_config(), **{"device": "cpu", **arguments})
    assert message in str(error.value)


def test_a_length_beyond_the_memory_is_refused_before_anything_runs(monkeypatch):
    started = []
    monkeypatch.setattr(cost, "_in_own_process", lambda task: started.append(task["length"]) or ([1.0], 1))
    needed = 4 * (800 * IN + 2 * (800 + 400 + 200) * C)  # input; three levels, twice while they are joined
    monkeypatch.setattr(cost, "available_memory", lambda device: needed)
    assert measure(tiny_config(), 800, "cpu").length == 800
    monkeypatch.setattr(cost, "available_memory", lambda device: needed - 1)
    with pytest.raises(UserError, match=r"--length 800: .* take 0.0 GiB, but cpu has .*use at most about --length 799"):
        measure(tiny_config(), 800, "cpu")
    assert started == [800]


@pytest.mark.parametrize(("code", "stderr", "kind", "message"), [
    (-9, "", UserError, "tiny.yaml: a forward pass of 48 steps does not fit into the memory of cpu; use a smaller --length"),
    (1, "RuntimeError: DefaultCPUAllocator: can't allocate memory", UserError, "does not fit into the memory of cpu"),
    (1, "ZeroDivisionError", RuntimeError, "exit code 1:\nZeroDivisionError"),
])
def test_measuring_process_fails(monkeypatch, code, stderr, kind, message):
    monkeypatch.setattr(cost.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, code, "", stderr))
    with pytest.raises(kind) as error:
        measure(tiny_config(), device="cpu")
    assert message in str(error.value)


def test_features_of_the_configurations_for_i3d_cost_what_the_network_does():
    counted = {}
    for name, channels in (("rgb", 3), ("flow", 2)):
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            InceptionI3D(channels).eval()(torch.empty(1, channels, 16, 224, 224))
        counted[name] = counter.get_total_flops()
    stem = 2 * 64 * 7 ** 3 * 8 * 112 ** 2  # of one channel: what a third one adds
    assert counted["rgb"] - counted["flow"] == stem
    folder = THUMOS.parent / "distill" / "thumos"
    teacher, student = (load_config(str(folder / f"{name}.yaml")) for name in ("teacher", "student"))
    assert feature_flops(teacher) == pytest.approx(counted, rel=1e-3)
    assert feature_flops(student) == {"rgb": pytest.approx(counted["rgb"], rel=1e-3)}
    assert feature_flops(load_config(str(THUMOS))) == {}


def test_what_features_cost_is_shown_beside_the_network(monkeypatch):
    monkeypatch.setattr(cost, "_in_own_process", lambda task: ([1.0], 1))
    both = {"dataset": {**TWO_STREAMS, "feature_gflop": {"rgb": 3.0, "flow": 1.5}}}
    got = measure(tiny_config(**both), device="cpu", runs=1)
    line = next(line for line in got.table().splitlines() if line.startswith("features"))
    assert line.startswith("features      4.5 GFLOP per step (rgb 3.0, flow 1.5), ")
    assert f"{4.5e9 * got.length / got.flops:.0f} times" in line
    assert got.as_dict()["feature_flops"] == {"rgb": 3e9, "flow": 1.5e9}
    assert "features      " not in measure(tiny_config(), device="cpu", runs=1).table()


@pytest.mark.parametrize(("dataset", "message"), [
    ({"feature_gflop": {"rgb": 1.0}}, "dataset.feature_gflop: 'rgb' is not declared in dataset.modalities; give one number"),
    ({**TWO_STREAMS, "feature_gflop": {"rgb": 1.0, "flwo": 1.0}}, "'flwo' is not declared .*did you mean 'flow'.* of rgb, flow"),
    ({**TWO_STREAMS, "feature_gflop": {"rgb": 1.0}}, "has no flow; give one number for each of rgb, flow"),
    ({**TWO_STREAMS, "feature_gflop": {"rgb": -1.0, "flow": 1}}, "dataset.feature_gflop.*-1")], ids=str)
def test_costs_of_features_that_do_not_fit_the_modalities(dataset, message):
    with pytest.raises(UserError, match=message):
        tiny_config(dataset=dataset)
