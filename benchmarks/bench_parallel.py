#!/usr/bin/env python3
"""N processes x batch b, and k accumulated batches, against one process with the whole batch; how fast all end after one dies.

    python benchmarks/bench_parallel.py --json parallel.json                 # every case and split: minutes
    python benchmarks/bench_parallel.py --cases "auto loss weight" "c2ms cross_modal" --splits 2x1 1x3
    python benchmarks/bench_parallel.py --device cuda --splits 2x1           # NCCL; needs two GPUs

Small networks on the generated demo, six videos per step, drop rates 0, float32, teachers with random weights; torchrun starts
the processes.  Per case: the largest difference of any weight after the run, of any EMA weight, and of any weight but the
biases of attention keys (whose gradient is 0 but for rounding, which AdamW blows up); for comparison that between weights and
their average (how far they have moved lately); and the largest relative difference of a logged loss.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import arguments, device_of, markdown, report

from libs.core.config import dump_yaml, load_config, to_dict
from libs.core.errors import UserError, run_main
from libs.core.schema import Config
from libs.datasets.synthetic.demo import ensure_demo_of
from libs.engine.runs.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from libs.engine.runtime.world import launched
from libs.engine.training.fit import FitOptions, fit
from libs.modeling.model import build_model

ROOT = Path(__file__).resolve().parent.parent
VIDEOS = 6  # per step; the demo has 40: six steps per epoch
SPLITS = ("2x1", "3x1", "1x2", "1x3", "2x3", "3x2")  # processes x accumulation steps
SMALL = ["model.embd_dim=16", "model.fpn_dim=16", "model.head_dim=16", "train_cfg.dropout=0", "train_cfg.droppath=0",
         "train_cfg.input_dropout=0", "opt.warmup=false", f"loader.batch_size={VIDEOS}", "opt.learning_rate=0.01"]
DISTILL = "distill/demo"
KEY_BIASES = ("attn.key.bias", "attn.key_norm.bias")
EVERY_TERM = ["distill.stem.weight=1", "distill.pyramid.weight=1"]


def cases(teachers: dict[str, str]) -> dict[str, tuple[str, list[str]]]:
    """Name -> (configuration in configs/, overrides)."""
    def taught(*names: str) -> str:
        return "distill.teachers=[" + ", ".join(f"{{name: {n}, checkpoint: '{teachers[n]}'}}" for n in names) + "]"

    hallucinating = ["model.modalities=[rgb]", "model.hallucinator=separable", "model.hallucinated=[flow]",
                     "distill.outputs=online"]
    student = [*hallucinating, taught("transformer")]
    return {
        "transformer": ("demo.yaml", []),
        "transformer, AdamW": ("demo.yaml", ["opt.type=AdamW", "opt.learning_rate=0.002"]),
        "no clipping": ("demo.yaml", ["train_cfg.clip_grad_l2norm=-1", "opt.learning_rate=0.002"]),
        "auto loss weight": ("demo.yaml", ["train_cfg.loss_weight=0"]),
        "label smoothing": ("demo.yaml", ["train_cfg.label_smoothing=0.1"]),
        "buckets": ("demo.yaml", ["loader.bucket=3"]),
        "padding max_seq_len": ("demo.yaml", ["loader.padding=max_seq_len"]),
        "conv": ("demo.yaml", ["model.backbone_type=conv"]),
        "convnext": ("demo.yaml", ["model.backbone_type=convnext", "model.head_type=separable"]),
        "fpn, relative positions": ("demo.yaml", ["model.fpn_type=fpn", "model.use_rel_pe=true"]),
        "corrected, student.yaml": (f"{DISTILL}/student.yaml", ["distill.outputs=online", taught("transformer")]),
        "corrected, cached": (f"{DISTILL}/student.yaml", [taught("transformer"), "distill.outputs=cache"]),
        "corrected, every term, projections": (f"{DISTILL}/student.yaml", [*hallucinating, *EVERY_TERM, taught("wide")]),
        "corrected, two teachers": (f"{DISTILL}/student.yaml", [*hallucinating, taught("transformer", "conv")]),
        "corrected, 40 % annotated": (f"{DISTILL}/student.yaml", [*student, "train_cfg.labelled_share=0.4"]),
        "corrected, auto loss weight": (f"{DISTILL}/student.yaml", [*student, "train_cfg.loss_weight=0"]),
        "corrected, unmasked": (f"{DISTILL}/student.yaml", [
            *student, *EVERY_TERM, "distill.weight=0.1", *(f"distill.{t}.mask=false" for t in (
                "cls", "offsets", "stem", "pyramid", "inputs")), "distill.offsets.reduction=levels"]),
        "c2ms structure_teacher": (f"{DISTILL}/structure_teacher.yaml", [taught("transformer")]),
        "c2ms cross_modal": (f"{DISTILL}/cross_modal.yaml", [taught("structure")]),
        "c2ms cross_structure": (f"{DISTILL}/cross_structure.yaml", [taught("modal")]),
        "c2ms multi_teacher": (f"{DISTILL}/multi_teacher.yaml", [taught("modal", "structure")]),
    }


TEACHERS = {"transformer": ("teacher.yaml", []), "wide": ("teacher.yaml", ["model.embd_dim=24", "model.fpn_dim=24"]),
            "conv": ("structure_teacher.yaml", ["distill.teachers=[]", "distill.stage=~"]),
            "structure": ("structure_teacher.yaml", ["distill.teachers=[]", "distill.stage=~"]),
            "modal": ("teacher.yaml", [])}


def paths(work: Path) -> list[str]:
    """Overrides for data and runs in the folder `work`."""
    return [f"dataset.json_file={work}/demo/annotations/demo.json", f"dataset.feat_folder={work}/demo/features",
            f"output_folder={work}/ckpt", f"distill.cache_folder={work}/cache"]


def make_teachers(work: Path) -> dict[str, str]:
    """Checkpoints of random weights, by name."""
    found = {}
    for seed, (name, (file, overrides)) in enumerate(TEACHERS.items()):
        config = load_config(ROOT / "configs" / DISTILL / file, [*paths(work), *SMALL, *overrides])
        torch.manual_seed(seed)
        weights = build_model(config).state_dict()
        found[name] = str(work / "teachers" / f"{name}.pth.tar")
        save_checkpoint(found[name], 1, weights, weights, {}, {}, {"config": to_dict(config)})
    return found


def train_all(files: list[str]) -> None:
    """In every process: train these configurations, each into a folder of the same name."""
    with launched() as world:
        device = None
        for file in files:
            config = load_config(file)
            device = device or world.start(config)
            fit(config, Path(file).with_suffix(""), device, FitOptions(checkpoint_every=1000), world)


def run(work: Path, chosen: dict[str, Config], processes: int, accumulation: int, folder: str) -> dict[str, Path]:
    """Train the chosen cases in parts; folders by case."""
    files = {}
    for i, (name, config) in enumerate(chosen.items()):
        file = work / folder / f"case{i}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dump_yaml(config))
        part = [f"loader.batch_size={VIDEOS // (processes * accumulation)}", f"opt.accumulation_steps={accumulation}"]
        file.write_text(dump_yaml(load_config(file, part)))
        files[name] = file
    start([__file__, "--train", *map(str, files.values())], processes)
    return {name: file.with_suffix("") for name, file in files.items()}


def torchrun(script: list[str], processes: int) -> list[str]:
    """Command line of a script in one or several processes."""
    several = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [sys.executable, *several, *script]


def start(script: list[str], processes: int) -> None:
    done = subprocess.run(torchrun(script, processes), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{processes} processes have failed:\n{done.stderr[-3000:]}")


def difference(one: Path, other: Path) -> dict[str, Any]:
    """Differences between two runs, and between the weights and the EMA weights of the first."""
    a, b = (load_checkpoint(find_checkpoint(folder)) for folder in (one, other))
    if a.training["iteration"] != b.training["iteration"]:
        raise UserError(f"{other}: {b.training['iteration']} steps instead of {a.training['iteration']}")
    logs = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, other)]
    losses = [abs(x["final_loss"] - y["final_loss"]) / abs(x["final_loss"]) for x, y in zip(*logs, strict=True)]

    def apart(x: dict[str, torch.Tensor], y: dict[str, torch.Tensor]) -> float:
        return max(float((x[k].double() - y[k].double()).abs().max()) for k in x)
    return {"steps": a.training["iteration"], "weights": apart(a.weights, b.weights),
            "average": apart(a.weights_ema, b.weights_ema),
            "without key biases": apart({k: v for k, v in a.weights.items() if not k.endswith(KEY_BIASES)}, b.weights),
            "weights to average": apart(a.weights, a.weights_ema),
            "loss": max(losses)}


def seconds_to_end(work: Path, config: Config, kill: int, processes: int) -> dict[str, Any]:
    """Start training with torchrun, kill one process, and measure how long torchrun keeps running."""
    file = work / f"kill{kill}.yaml"
    file.write_text(dump_yaml(config))
    log = work / f"kill{kill}.log"
    with open(log, "w", encoding="utf-8") as out:
        script = [str(ROOT / "train.py"), str(file), "--output", "killed", "-p", "1", "--set", "opt.epochs=1000"]
        running = subprocess.Popen(torchrun(script, processes), cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        try:
            while "epoch   2" not in log.read_text() and running.poll() is None:
                time.sleep(0.1)
            victim = next(pid for pid in children(running.pid) if f"RANK={kill}".encode() in environment(pid))
            os.kill(victim, signal.SIGKILL)
            started = time.monotonic()
            code = running.wait(60)
        finally:
            running.kill()
    lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    return {"killed process": f"{kill} of {processes}", "seconds until all had ended": time.monotonic() - started,
            "exit code of torchrun": code, "errors shown": len(lines), "error": lines[0] if lines else ""}


def children(pid: int) -> list[int]:
    """Processes that `pid` has started (Linux)."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def environment(pid: int) -> list[bytes]:
    """The variables that a process was started with (Linux)."""
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        train_all(sys.argv[2:])
        return
    parser = arguments(__doc__)
    parser.add_argument("--cases", nargs="+", default=None, help="names of cases (all)")
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), metavar="NxK", help="processes x accumulation steps")
    parser.add_argument("--epochs", type=int, default=4, help="of six steps (4)")
    parser.add_argument("--kill", type=int, nargs="*", default=[0, 1, 2], metavar="RANK", help="of three processes, in turn")
    args = parser.parse_args()
    device = device_of(args.device)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        common = [*paths(work), *SMALL, f"opt.epochs={args.epochs}", f"devices={device.type}"]
        all_cases = cases(make_teachers(work))
        if unknown := [name for name in args.cases or () if name not in all_cases]:
            raise UserError(f"--cases {unknown[0]}: no such case; the cases are {', '.join(all_cases)}")
        chosen = {name: load_config(ROOT / "configs" / file, [*common, "opt.type=SGD", *overrides])
                  for name, (file, overrides) in all_cases.items() if args.cases is None or name in args.cases}
        ensure_demo_of(next(iter(chosen.values())))
        whole = run(work, chosen, 1, 1, "whole")
        rows = []
        for split in args.splits:
            processes, _, accumulation = split.partition("x")
            possible = {name: c for name, c in chosen.items() if accumulation == "1" or c.train_cfg.loss_weight > 0}
            parts = run(work, possible, int(processes), int(accumulation), split)
            found = [{"case": name, "processes x accumulation": split, **difference(whole[name], parts[name])}
                     for name in possible]
            print(f"{split}: largest difference of a weight {max((r['weights'] for r in found), default=0):.2g}", flush=True)
            rows += found
        ends = [seconds_to_end(work, next(iter(chosen.values())), rank, 3) for rank in args.kill]
    report("Differences from one process with the whole batch", rows, args, ends=ends)
    if ends:
        print(markdown("A process killed", ends), flush=True)


if __name__ == "__main__":
    run_main(main)
