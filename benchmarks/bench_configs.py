#!/usr/bin/env python3
"""What a training step of a configuration takes: CPU time and memory, for the Cost line of its head.

    OMP_NUM_THREADS=1 python benchmarks/bench_configs.py configs/hapt.yaml configs/planted.yaml [--steps 3] [--record NAME]

Each configuration runs in a process of its own: steps of loader.batch_size videos, every one dataset.max_seq_len long, of noise.
CPU time adds up all threads and depends little on other programs.  Memory is the peak of the process, PyTorch and data included.
A student's teachers are the untrained networks of the stages beside it: they cost the same.
"""
from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

from common import arguments, device_of, in_fresh_process, machine, peak_gib, report
from gpu_common import ROOT, made_batch, made_trainer

from libs.core.config import FOLD, load_config, to_dict
from libs.core.errors import UserError, run_main
from libs.core.schema import Config
from libs.datasets.loading.batch import Batch
from libs.engine.distill.streams import streams_to_read
from libs.engine.distill.teachers import RUN, Teacher, load_teachers
from libs.engine.runs.checkpoint import save_checkpoint
from libs.engine.runtime.determinism import seed_everything
from libs.engine.training.trainer import Trainer
from libs.modeling.losses.distillation import resolve
from libs.modeling.model import build_model


def configuration(path: Path, device: str, *overrides: str) -> Config:
    """The configuration on this device; of the first fold where its dataset has folds."""
    folds = FOLD in load_config(path, check=False).dataset.json_file
    return load_config(path, [f"devices=[{device}]", *(["fold=1"] if folds else []), *overrides])


def untrained_teachers(config: Config, path: Path, device: str) -> tuple[Teacher, ...]:
    """Networks of the stages that the teachers' checkpoints name, as they are initialised, the same in every call."""
    settings, entries = resolve(config), []
    seed_everything(0)
    if settings.teachers and settings.outputs == "cache":
        raise UserError(f"{path}: distill.outputs: cache: what a step costs depends on the data; measure it with online teachers "
                        "(set distill.outputs: online)")
    with tempfile.TemporaryDirectory() as folder:
        for entry in settings.teachers:
            stage = Path(entry.checkpoint).name.removesuffix(f"_{RUN}")
            file, teacher = f"{folder}/{stage}.pth.tar", configuration(path.parent / f"{stage}.yaml", device)
            weights = build_model(teacher).state_dict()
            save_checkpoint(file, 0, weights, weights, {}, {}, {"config": to_dict(teacher)})
            entries.append(dataclasses.replace(entry, checkpoint=file))
        return load_teachers(config, dataclasses.replace(settings, teachers=tuple(entries)), device_of(device))


def prepared(path: Path, device: str, *overrides: str) -> tuple[Config, Trainer, Batch]:
    """The configuration, a freshly initialised trainer and a batch, of the streams that the student and its teachers read."""
    config = configuration(path, device, *overrides)
    teachers = untrained_teachers(config, path, device)
    streams = streams_to_read(config, [teacher.config for teacher in teachers])
    channels = None if streams is None else sum(map(config.modality_dim, streams))
    return config, made_trainer(config, teachers, streams), made_batch(config, device_of(device), channels=channels)


def measure(path: Path, steps: int, device: str) -> dict[str, float | int | str]:
    """The row of a configuration: median CPU time of `steps` training steps after one that is not counted."""
    config, trainer, batch = prepared(path, device)
    seconds = []
    for _ in range(1 + steps):
        started = time.process_time()
        trainer.step(batch)
        seconds.append(time.process_time() - started)
    inside = path.resolve().is_relative_to(ROOT / "configs")
    name = path.resolve().relative_to(ROOT / "configs").with_suffix("").as_posix() if inside else path.stem
    return {"config": name, "videos": config.loader.batch_size, "length": config.dataset.max_seq_len, "runs": steps,
            "step_cpu_s": statistics.median(seconds[1:]), "peak_GiB": peak_gib()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("configs", nargs="*", type=Path, metavar="CONFIG", default=[ROOT / "configs" / "hapt.yaml"])
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="that are measured (3)")
    args = parser.parse_args()
    device_of(args.device)
    print(machine(), flush=True)
    rows = []
    for path in args.configs:
        rows.append(in_fresh_process(measure, path, args.steps, args.device))
        print(", ".join(f"{name} {x:.3g}" if isinstance(x, float) else f"{name} {x}" for name, x in rows[-1].items()), flush=True)
    report("Training steps of the configurations", rows, args, key=["config"])


if __name__ == "__main__":
    run_main(main)
