#!/usr/bin/env python3
"""ActionFormer, TriDet, TemporalMaxer and a small convolutional network side by side: size, time and memory.

    python benchmarks/bench_models.py --config configs/planted.yaml
    python benchmarks/bench_models.py --set model.embd_dim=64 model.fpn_dim=64 model.head_dim=64

The models have the width, levels and schedule of the configuration.  Step and network are timed in rounds, one run of every model
after the other, on noise of dataset.max_seq_len steps: a training step of loader.batch_size videos, and the network in evaluation
mode on one video.  Memory is the peak above what was held before, in a process of its own.
"""
from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from bench_memory import GB, inference, padded, training
from common import arguments, device_of, in_fresh_process, machine, report, seconds_of

from libs.core.config import load_config
from libs.core.errors import UserError, run_main
from libs.core.schema import Config
from libs.engine.deploy.cost import as_evaluated, count
from libs.engine.training.objective import DetectionObjective
from libs.engine.training.trainer import Trainer
from libs.modeling.model import build_model

ROOT = Path(__file__).resolve().parent.parent


def settings(config: Config) -> dict[str, list[str]]:
    """--set values of each model on top of an ActionFormer configuration."""
    levels, width = config.model.backbone_arch[2], config.model.embd_dim
    tridet = ["model_name=TriDet", "model.n_mha_win_size=-1", "model.n_sgp_win_size=1", "model.k=5",
              f"model.sgp_mlp_dim={3 * width // 2}", "model.iou_weight_power=0.2"]
    living = [*tridet, "model.init_conv_vars=0.1"]
    return {
        "actionformer": [], "tridet_published": [*tridet, "model.init_conv_vars=0"],
        "tridet_living": [*living, "model.masked_stats=true"], "tridet_living_padded": living,
        "temporalmaxer": ["model_name=TemporalMaxerArchitecture", "model.n_mha_win_size=-1",
                          f"model.backbone_arch=[2,0,{levels}]", "model.fpn_norm=layernorm",
                          "model.assigner.center_radius=1.5", "model.assigner.iou_weight=2",
                          "model.assigner.cls_weight=1", "model.assigner.keep_percent=1", "model.assigner.confuse_weight=0"],
        "convnext": ["model.backbone_type=convnext", f"model.backbone_arch=[2,1,{levels}]", "model.block_kernel_size=19",
                     "model.head_type=separable", "train_cfg.droppath=0"]}


def parameters_m(config: Config) -> float:
    """Millions of parameters."""
    return sum(p.numel() for p in build_model(config).parameters()) / 1e6


def step_of(config: Config, device: torch.device) -> Any:
    """A function that makes one training step on noise of max_seq_len steps."""
    torch.manual_seed(0)
    trainer = Trainer(DetectionObjective(build_model(config), config).to(device), config, iters_per_epoch=100)
    batch = padded(config, config.dataset.max_seq_len, config.loader.batch_size, device)
    return lambda: trainer.step(batch)


def network_of(config: Config, device: torch.device) -> Any:
    """A function that runs the network on one video of max_seq_len steps, as evaluation does."""
    torch.manual_seed(0)
    model, batch = as_evaluated(config).to(device), padded(config, config.dataset.max_seq_len, 1, device)
    return torch.inference_mode()(lambda: model(batch.feats, batch.mask))


def peak_gb(work: str, path: Path, overrides: list[str], name: str) -> float:
    """Rise of memory, GB, of a training step or of network, decoding and NMS; run in a new process."""
    config = load_config(path, overrides)
    torch.manual_seed(0)
    call = training if work == "training" else inference
    return call(config, config.dataset.max_seq_len, device_of(name))[0].rise / GB


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "hapt_reference.yaml", help="an ActionFormer")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override configuration keys")
    parser.add_argument("--models", nargs="+", default=None, metavar="NAME", help="only these (all)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds of timing (7)")
    args = parser.parse_args()
    device = device_of(args.device)
    print(machine(), flush=True)
    known = settings(load_config(args.config, args.set))
    if unknown := [name for name in args.models or () if name not in known]:
        raise UserError(f"--models {unknown[0]}: is not one of {', '.join(known)}")
    overrides = {name: [*args.set, *known[name]] for name in args.models or known}
    configs = {name: load_config(args.config, texts) for name, texts in overrides.items()}
    seconds: dict[tuple[str, str], list[float]] = {(name, work): [] for name in configs for work in ("step", "network")}
    calls = {(name, work): (step_of if work == "step" else network_of)(configs[name], device) for name, work in seconds}
    for i in range(args.rounds):
        for key, call in calls.items():
            seconds[key] += seconds_of(call, device, 1, warmup=2 if i == 0 else 0)
    calls.clear()
    rows = []
    for name, config in configs.items():
        memory = {work: statistics.median(in_fresh_process(peak_gb, work, args.config, overrides[name], args.device)
                                          for _ in range(max(args.rounds // 3, 1))) for work in ("training", "inference")}
        rows.append({"model": name, "parameters_M": parameters_m(config), "GFLOP": count(config).flops / 1e9,
                     "step_ms": 1e3 * statistics.median(seconds[name, "step"]),
                     "network_ms": 1e3 * statistics.median(seconds[name, "network"]),
                     "training_GB": memory["training"], "inference_GB": memory["inference"], "runs": args.rounds})
        print(f"{name}: done", flush=True)
    report("models side by side", rows, args)


if __name__ == "__main__":
    run_main(main)
