"""Several processes, or several batches per step, train as one process does on their videos in one batch (float32)."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_cases import CPU, EVERY_TERM, RGB_ONLY, save_teacher, student, two_stream
from helpers import data_config, merged, write_data
from networks import TRIDET
from processes import run_processes

from libs.core.config import dump_yaml, load_config
from libs.core.schema import Config
from libs.engine.runtime.world import launched
from libs.engine.training.fit import FitOptions, fit

pytestmark = pytest.mark.slow

STEPS = 20
STILL: dict[str, Any] = {"loader": {"batch_size": 6}, "train_cfg": {"dropout": 0.0, "droppath": 0.0, "clip_grad_l2norm": 1.0},
                         "opt": {"type": "SGD", "learning_rate": 0.02, "epochs": STEPS, "warmup": False}}
# The true gradient of what shifts all keys is 0 (softmax).  AdamW divides a gradient by its own size, so there it steps by the
# sign of the rounding error, in one process as well as in several.
KEY_BIASES = ("attn.key.bias", "attn.key_norm.bias")
BUCKETS = {"loader": {"batch_size": 3, "bucket": 2}, "opt": {"epochs": STEPS // 2}}  # two steps per epoch


def train_all() -> None:
    """A script: train every configuration of the command line, one after the other, in the processes that are there."""
    with launched() as world:
        device = None
        for path in sys.argv[1:]:
            config = load_config(path)
            device = device or world.start(config)
            fit(config, folder_of(path), device, FitOptions(checkpoint_every=100, print_every=5, eval_every=100), world)


def folder_of(path: str | Path) -> Path:
    return Path(path).with_suffix("")


def split(config: Config, processes: int, accumulation: int = 1) -> dict[str, Any]:
    """The same step in parts."""
    return {"loader": {"batch_size": config.loader.batch_size // (processes * accumulation)},
            "opt": {"accumulation_steps": accumulation}}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """(folder, configurations of one process by name)."""
    folder = tmp_path_factory.mktemp("parallel")
    data = write_data(folder)
    transformer, conv, narrow, trident = (save_teacher(two_stream(data, folder, model=model), folder / f"{name}.pth.tar", seed)
                                 for seed, (name, model) in enumerate({
                                     "transformer": {}, "conv": {"backbone_type": "conv"},
                                     "narrow": {"embd_dim": 12, "fpn_dim": 12},
                                     "trident": {**TRIDET, "embd_dim": 16, "fpn_dim": 16}}.items()))

    def taught(teachers, **sections):
        return student(data, folder, teachers, **merged(STILL, {"model": RGB_ONLY, **sections}))
    return folder, {
        "plain": data_config(data, folder, **STILL),
        "adamw": data_config(data, folder, **merged(STILL, {"opt": {"type": "AdamW", "learning_rate": 0.003}})),
        "auto weight": data_config(data, folder, **merged(STILL, {"train_cfg": {"loss_weight": 0, "label_smoothing": 0.1}})),
        "buckets": data_config(data, folder, **merged(STILL, BUCKETS)),
        "temporalmaxer": data_config(data, folder, model_name="TemporalMaxerArchitecture", **merged(STILL, {"model": {
            "backbone_type": "convPooler", "backbone_arch": [1, 2], "n_mha_win_size": -1, "fpn_norm": "layernorm",
            "assigner": {"keep_percent": 0.3}}})),
        "tridet": data_config(data, folder, **merged(STILL, {"model": TRIDET})),
        "tridet taught": taught([trident, transformer], distill=EVERY_TERM, train_cfg={"labelled_share": 0.4},
                                model={**RGB_ONLY, **TRIDET, "embd_dim": 16, "fpn_dim": 16, "masked_stats": True}),
        "corrected": taught([transformer, narrow], distill=EVERY_TERM, train_cfg={"labelled_share": 0.4, "loss_weight": -1}),
        "fixed weight": taught([transformer, narrow], distill=EVERY_TERM, train_cfg={"labelled_share": 0.4}),
        "frame drop": taught([transformer], train_cfg={"frame_drop": {"probability": 0.7, "share": 0.5}, "consistency": 1.0}),
        "unmasked": taught([transformer], distill={
            "weight": 0.1, "cls": {"mask": False}, "offsets": {"mask": False, "points": "all", "reduction": "levels"},
            "inputs": {"mask": False}, "stem": {"weight": 1.0, "mask": False}, "pyramid": {"weight": 1.0, "mask": False}}),
        "c2ms": taught([transformer, conv], distill={"preset": "c2ms", "stage": "multi_teacher"},
                       model={**RGB_ONLY, "backbone_type": "conv_dw"}),
    }


def write(folder: Path, name: str, config: Config, changes: dict[str, Any] | None = None) -> str:
    from libs.core.config import from_dict, to_dict
    path = folder / f"{name}.yaml"
    path.write_text(dump_yaml(from_dict(merged(to_dict(config), changes or {}), str(path))))
    return str(path)


@pytest.fixture(scope="module")
def whole(work):
    """What one process makes of the whole batches: folders by name."""
    folder, configs = work
    made = {}
    for name, config in configs.items():
        made[name] = folder / f"whole {name}"
        fit(config, made[name], CPU, FitOptions(checkpoint_every=100, print_every=5, eval_every=100))
    return made


def last(folder: Path) -> dict[str, Any]:
    return torch.load(max(folder.glob("epoch_*.pth.tar")), weights_only=True)


def compare(one: Path, other: Path) -> None:
    """Weights, their average, momentum, the normaliser, projections and every logged number of two runs."""
    a, b = last(one), last(other)
    assert a["training"]["iteration"] == b["training"]["iteration"] == STEPS
    adamw = "exp_avg" in a["optimizer"]["state"][0]
    for part in ("state_dict", "state_dict_ema"):
        assert list(a[part]) == list(b[part])
        names = [k for k in a[part] if not (adamw and k.endswith(KEY_BIASES))]
        assert max(float((a[part][k] - b[part][k]).abs().max()) for k in names) < 1e-5, part
    moments = [[m["exp_avg" if adamw else "momentum_buffer"] for m in x["optimizer"]["state"].values()] for x in (a, b)]
    assert max(float(m.abs().max()) for m in moments[0]) > 1e-2  # there was something to learn
    for m, n in zip(*moments, strict=True):
        assert torch.allclose(m, n, atol=2e-5)
    state, its = (x["training"]["objective"] for x in (a, b))
    assert state["loss_normalizer"] == pytest.approx(its["loss_normalizer"], rel=1e-6)
    for name, value in state.get("projections", {}).items():
        assert torch.allclose(value, its["projections"][name], atol=1e-5), name
    logs = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, other)]
    for x, y in zip(*logs, strict=True):
        assert x == {k: v if isinstance(v, str) else pytest.approx(v, rel=2e-4, abs=1e-6) for k, v in y.items()}


@pytest.mark.parametrize(("processes", "accumulation", "names"), [
    (2, 1, ["adamw", "auto weight", "c2ms", "temporalmaxer", "tridet", "tridet taught"]),
    (3, 1, ["buckets", "corrected", "unmasked", "frame drop"]), (2, 3, ["plain"])])
def test_processes_equal_one(work, whole, processes, accumulation, names):
    folder, configs = work
    paths = [write(folder, f"{processes} x {accumulation} {name}", configs[name], split(configs[name], processes, accumulation))
             for name in names]
    ends = run_processes(processes, train_all, "train_all", *paths)
    assert [e.code for e in ends] == [0] * processes, ends[0].err
    assert ends[0].err == ""
    assert f"{processes} processes, 6 videos per step, base learning rate 0.02" in ends[0].out
    assert ends[0].out.count("average mAP") == len(names)
    assert all(e.out == e.err == "" for e in ends[1:])  # the first process alone speaks
    for name, path in zip(names, paths, strict=True):
        compare(whole[name], folder_of(path))


@pytest.mark.parametrize("name", ["fixed weight", "frame drop", "unmasked", "tridet taught"])
def test_accumulation_equals_one_batch(work, whole, name):
    folder, configs = work
    path = write(folder, f"accumulated {name}", configs[name], split(configs[name], 1, 3))
    fit(load_config(path), folder_of(path), CPU, FitOptions(checkpoint_every=100, print_every=5, eval_every=100))
    compare(whole[name], folder_of(path))
