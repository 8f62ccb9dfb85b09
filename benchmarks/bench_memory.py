#!/usr/bin/env python3
"""Peak memory of inference (network, decoding, NMS) above model and inputs at 2304 and 12,535 steps, and of a training step.

    python benchmarks/bench_memory.py                               on the CPU (Linux)
    python benchmarks/bench_memory.py --device cuda --json OUT      on a GPU: what torch allocates there

Every run is a new process: it builds model and inputs, runs a short sequence, then resets the peak.  CPU: resident
memory of the process, libraries included; "rise" is the peak above the memory before the call (model, inputs, libraries).
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import Memory, arguments, device_of, in_fresh_process, machine, memory_of, report, spread
from planted_thumos import THUMOS, answer_like_trained

from libs.core.config import load_config
from libs.core.errors import run_main
from libs.core.schema import PRECISIONS, Config
from libs.datasets.grid import regular_grid
from libs.datasets.loading.batch import Batch
from libs.datasets.sample import Sample
from libs.engine.inference.predict import Timeline, detections_of_batch
from libs.engine.runtime.precision import check_precision, low_weights, matmul_precision
from libs.engine.training.objective import DetectionObjective
from libs.engine.training.trainer import Trainer
from libs.modeling.model import build_model

GB = 1e9
WORKS = ("inference", "training")
WARM_STEPS = 288  # of the sequence before the peak is reset
# the first release on a CPU, float32: peak of the whole process, GB, by work and steps
REFERENCE_GB = {("inference", 2304): 0.95, ("inference", 12535): 1.30, ("training", 2304): 3.4}


def padded(config: Config, steps: int, videos: int, device: torch.device) -> Batch:
    """A batch of noise: videos of `steps` valid steps, padded to a multiple of the coarsest stride, with a segment in about every
    hundred steps."""
    data, random = config.dataset, torch.Generator().manual_seed(0)
    stride, count = config.model.scale_factor ** config.model.backbone_arch[2], max(steps // 100, 1)
    length = -(-steps // stride) * stride
    starts = torch.rand(videos, count, generator=random) * 0.9 * steps
    segments, labels = torch.stack([starts, starts + 0.05 * steps], dim=2), (torch.arange(count) % data.num_classes)
    feats = torch.zeros(videos, length, config.file_channels)
    feats[:, :steps] = torch.randn(videos, steps, config.file_channels, generator=random)
    grid = regular_grid(data.feat_stride, data.num_frames, 30.0)
    samples = tuple(Sample(i, f"v{i}", grid, 1e8, steps, steps, segments[i], labels) for i in range(videos))
    return Batch(feats, (torch.arange(length) < steps).repeat(videos, 1), segments, labels.repeat(videos, 1),
                 torch.ones(videos, count, dtype=torch.bool), samples).to(device)


def inference(config: Config, steps: int, device: torch.device) -> tuple[Memory, int]:
    """Memory of one video through network, decoding and NMS, and the bytes of its input."""
    model = build_model(config).eval().to(device)
    answer_like_trained(model, config, device, WARM_STEPS)
    short, batch = padded(config, WARM_STEPS, 1, device), padded(config, steps, 1, device)

    @torch.inference_mode()
    def run(batch: Batch) -> None:
        detections_of_batch(model(batch.feats, batch.mask), config.test_cfg, [Timeline.of(s) for s in batch.samples])

    with matmul_precision(config.test_cfg.precision), low_weights(model, config.test_cfg.precision):
        run(short)
        return memory_of(lambda: run(batch), device), batch.feats.nbytes


def training(config: Config, steps: int, device: torch.device) -> tuple[Memory, int]:
    """Memory of one training step, every video of the batch `steps` long, after a short step that made the optimizer's state."""
    trainer = Trainer(DetectionObjective(build_model(config), config).to(device), config, iters_per_epoch=100)
    short = padded(config, WARM_STEPS, config.loader.batch_size, device)
    batch = padded(config, steps, config.loader.batch_size, device)
    trainer.step(short)
    trainer.optimizer.zero_grad(set_to_none=True)
    return memory_of(lambda: trainer.step(batch), device), batch.feats.nbytes


def measure(work: str, path: Path, overrides: list[str], precision: str, steps: int, name: str) -> tuple[int, int, int]:
    """Bytes held before, rise, and bytes of the input of one case; run in a new process."""
    device, section = device_of(name), "test_cfg" if work == "inference" else "train_cfg"
    config = load_config(path, [*overrides, f"{section}.precision={precision}"])
    check_precision(precision, device, config.source, f"{section}.precision")
    torch.manual_seed(0)
    memory, inputs = (inference if work == "inference" else training)(config, steps, device)
    return memory.before, memory.rise, inputs


def case(work: str, precision: str, steps: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row: medians over `--runs` processes, GB."""
    found = [in_fresh_process(measure, work, args.config, args.set, precision, steps, args.device) for _ in range(args.runs)]
    low, rise, high = spread([r / GB for _, r, _ in found])
    before, peak = spread([b / GB for b, _, _ in found])[1], spread([(b + r) / GB for b, r, _ in found])[1]
    reference = REFERENCE_GB.get((work, steps)) if args.config == THUMOS and not args.set and args.device == "cpu" else None
    row = {"work": work, "precision": precision, "steps": steps, "rise_GB": rise, "q1_GB": low, "q3_GB": high, "runs": len(found),
           "input_GB": found[0][2] / GB, "before_GB": before, "peak_GB": peak, "reference_peak_GB": reference}
    print(f"{work}, {precision}, {steps} steps: {rise:.3f} GB above {before:.3f} GB", flush=True)
    return row


def growth(rows: list[dict[str, Any]]) -> list[str]:
    """How much the peak of the whole process grows from the shortest to the longest sequence, per precision."""
    lines = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        group = sorted((r for r in rows if r["precision"] == precision and r["work"] == "inference"), key=lambda r: r["steps"])
        if len(group) > 1:
            first, last = group[0], group[-1]
            lines.append(f"inference, {precision}: from {first['steps']} to {last['steps']} steps the peak grows by "
                         f"{last['peak_GB'] - first['peak_GB']:.3f} GB, input {last['input_GB'] - first['input_GB']:.3f} GB")
    return lines


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--config", type=Path, default=THUMOS)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override configuration keys")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--steps", type=int, nargs="+", default=[2304, 12535], help="of inference")
    parser.add_argument("--training-steps", type=int, default=2304, help="of each video of a training batch")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32", "bf16"])
    parser.add_argument("--runs", type=int, default=3, help="processes per case")
    args = parser.parse_args()
    device_of(args.device)
    print(machine(), flush=True)
    rows = [case(work, precision, steps, args) for work in args.works for precision in args.precisions
            for steps in (args.steps if work == "inference" else [args.training_steps])]
    report("Peak memory, GB (1e9 bytes)", rows, args)
    print("\n" + "\n".join(growth(rows)))


if __name__ == "__main__":
    run_main(main)
