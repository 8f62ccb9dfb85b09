"""The parts of gpu_day.py, in order of value: PARTS maps a name to a function that yields a row as soon as it is measured.

A row has `case` and numbers; `equal` says whether numbers agree that must.
"""
from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import bench_epochs
import bench_postprocess
import bench_test_set
import bench_train_step
import torch
import torch.distributed as dist
from common import device_of, memory_of, seconds_of, spread, synchronize
from planted_thumos import THUMOS, answer_like_trained, prepare
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from libs.core.config import load_config
from libs.core.schema import Config
from libs.datasets.batch import Batch
from libs.engine.runtime.determinism import seed_everything, strict_determinism, use_deterministic_kernels
from libs.engine.runtime.precision import low_weights, matmul_precision
from libs.engine.training.objective import DetectionObjective
from libs.engine.training.trainer import Trainer
from libs.modeling.kernels import conv1d
from libs.modeling.kernels.band_attention import band_attention, plain_attention
from libs.modeling.kernels.conv1d import ShiftedProducts, channels_innermost, image_conv_time, plain_conv_time, stacked_product
from libs.modeling.model import LocPointTransformer, build_model
from libs.utils.nms import api as nms
from libs.utils.nms import native

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
TINY = ("model.embd_dim=16", "model.fpn_dim=16", "model.head_dim=16", "model.n_head=2", "dataset.max_seq_len=288")
TENSOR_CORES = 2e-2  # relative error that TF32 and bf16 may have in a loss
EXACT = 1e-4  # of float32, whose sums are taken in another order


class Day(NamedTuple):
    """What a part needs: the device, whether to keep everything tiny, a scratch folder, thumos14.json if it is there."""

    device: str
    tiny: bool
    folder: Path
    annotations: Path | None

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def config(self, name: str, *overrides: str) -> Config:
        """A configuration of configs/ on this device; `tiny`: that of the demo, narrow."""
        chosen = ("demo", TINY) if self.tiny else (name, ())
        return load_config(ROOT / "configs" / f"{chosen[0]}.yaml", [*chosen[1], f"devices=[{self.device}]", *overrides])


class Part(NamedTuple):
    """What a part finds out, the function that does it, and its time limit."""

    what: str
    run: Callable[[Day], Iterator[Row]]
    limit_s: float


class Video(NamedTuple):
    """A stand-in for `Sample` where only these are read."""

    video_id: str = "v"
    labelled: bool = True


def ms(seconds: Sequence[float]) -> float:
    """Median in milliseconds."""
    return 1e3 * spread(seconds)[1]


def program(*arguments: object, timeout: float = 240, **environment: str) -> str:
    """Run a program of this repository; its standard output.  RuntimeError with the last lines when it fails."""
    found = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=timeout,
                           env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, check=False)
    if found.returncode:
        raise RuntimeError(f"{Path(str(arguments[0])).name} ended with code {found.returncode}: {found.stderr[-600:].strip()}")
    return found.stdout


def made_batch(config: Config, device: torch.device, seed: int = 0) -> Batch:
    """Random features of the longest length and 16 segments a video, in batches of the configuration's size."""
    random = torch.Generator().manual_seed(seed)
    size, steps, count = config.loader.batch_size, config.dataset.max_seq_len, 16
    start = torch.rand(size, count, generator=random) * 0.9 * steps
    segments = torch.stack([start, start + 1 + torch.rand(size, count, generator=random) * 0.09 * steps], dim=2)
    return Batch(torch.randn(size, steps, config.model_channels, generator=random), torch.ones(size, steps, dtype=torch.bool),
                 segments, torch.randint(config.dataset.num_classes, (size, count), generator=random),
                 torch.ones(size, count, dtype=torch.bool), (Video(),) * size).to(device)


def made_trainer(config: Config) -> Trainer:
    """A freshly initialised trainer, the same in every call."""
    seed_everything(0)
    return Trainer(DetectionObjective(build_model(config), config).to(config.devices[0]), config, 100)


def build(day: Day) -> Iterator[Row]:
    """Compile the NMS libraries and load the one of the device."""
    started = time.perf_counter()
    program("setup.py", "--quiet", "build_ext", "--inplace")
    library = native.cuda_library() if day.on_gpu else native.cpu_library()
    yield {"case": "NMS library", "seconds": time.perf_counter() - started, "in use": nms.implementation(device_of(day.device)),
           "equal": library is not None}


def candidates(kind: str, count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Segments, scores and labels of one video: `random`, `tied` scores, or `degenerate` (empty and equal segments)."""
    start = torch.rand(count, generator=random) * 90
    segments = torch.stack([start, start + torch.empty(count).exponential_(1 / 6, generator=random)], dim=1)
    scores = torch.rand(count, generator=random) ** 3
    if kind == "tied":
        segments, scores = (segments * 2).round() / 2, (scores * 20).round() / 20
    elif kind == "degenerate":
        segments[::5, 1] = segments[::5, 0]
        segments[::3] = segments[:1].clone()
    return segments, scores, torch.randint(6, (count,), generator=random)


def compare_nms(day: Day) -> Iterator[Row]:
    """Hard and soft NMS of whole batches against the plain implementation on the CPU: picks exactly, times to 1e-6."""
    device, random = device_of(day.device), torch.Generator().manual_seed(0)
    sizes = (40, 0, 1, 90) if day.tiny else (3000, 0, 1, 6000)
    for kind in ("random", "tied", "degenerate"):
        parts = [candidates(kind, n, random) for n in sizes]
        inputs = nms.Candidates(*(torch.cat(column) for column in zip(*parts, strict=True)), torch.tensor(sizes))
        there, differing, largest = nms.Candidates(*(t.to(device) for t in inputs)), 0, 0.0
        for method, multiclass, voting in itertools.product(("soft", "hard"), (True, False), (0.0, 0.7)):
            setting = {"method": method, "multiclass": multiclass, "voting_thresh": voting, "iou_threshold": 0.3, "sigma": 0.5,
                       "min_score": 0.001, "max_seg_num": 200}
            with nms.using("torch fallback"):
                want = nms.nms_of_batch(inputs, **setting)
            got = [t.cpu() for t in nms.nms_of_batch(there, **setting)]
            same = all(torch.equal(a, b) for a, b in zip(got[1:], want[1:], strict=True))
            differing += not same
            largest = max(largest, float((got[0] - want[0]).abs().max()) if same else 0.0)
        yield {"case": kind, "candidates": sum(sizes), "settings": 8, "settings that differ": differing,
               "largest difference of a time": largest, "equal": differing == 0 and largest <= 1e-4}


def golden(day: Day) -> Iterator[Row]:
    """The fixtures measured on the reference, float32 without TF32, with the tolerances of the CPU."""
    sys.path.insert(0, str(ROOT / "tools"))
    import check_golden
    check_golden.common.device = device_of(day.device)
    names = sorted(p for p in (ROOT / "tests" / "golden").iterdir() if p.name.startswith(check_golden.ON_DEVICE))
    for path in names[::8] if day.tiny else names:
        with matmul_precision("fp32"):
            checks = next(f for prefix, f in check_golden.CHECKS.items() if path.name.startswith(prefix))(path)
        counted = [c for c in checks if not c.informational]
        worst = max(counted, key=lambda c: c.error)
        yield {"case": path.name.removesuffix("_seed0.npz"), "comparisons": len(counted),
               "failed": sum(not c.passed for c in counted), "largest error / tolerance": worst.error, "of": worst.name,
               "equal": all(c.passed for c in counted)}


def steps(day: Day) -> Iterator[Row]:
    """Forward passes and training steps in every precision, with and without CUDA graphs; losses against float32."""
    for name in ("thumos_i3d", "anet_tsp", "ego4d_slowfast")[:1 if day.tiny else 3]:
        kinds = [("fp32", False), ("tf32", False), ("bf16", False), ("fp32", True), ("tf32", True), ("bf16", True)]
        plain: list[float] = []
        for precision, graphs in kinds if day.on_gpu else kinds[:3:2]:
            config = day.config(name, f"train_cfg.precision={precision}", f"test_cfg.precision={precision}",
                                f"train_cfg.cuda_graphs={str(graphs).lower()}", "train_cfg.dropout=0.0", "train_cfg.droppath=0.0")
            row = one_step(config, device_of(day.device), 3 if day.tiny else 20, forward=not graphs)
            losses = row.pop("losses")
            plain = plain or losses
            error = max(abs(a - b) / abs(b) for a, b in zip(losses, plain, strict=True))
            yield {"case": f"{name} {precision}{' graphs' if graphs else ''}", **row, "loss": losses[-1],
                   "relative to fp32": error, "equal": error <= (EXACT if precision == "fp32" else TENSOR_CORES)}


def one_step(config: Config, device: torch.device, runs: int, forward: bool) -> Row:
    """Time and memory of a forward pass (if asked for) and of a training step; the losses of the first five steps."""
    trainer, batch = made_trainer(config), made_batch(config, device)
    row: Row = {"batch": len(batch.mask), "steps": batch.mask.shape[1]}
    if forward:
        model, precision = trainer.model.eval(), config.test_cfg.precision
        with torch.inference_mode(), matmul_precision(precision), low_weights(model, precision):
            row["forward_ms"] = ms(seconds_of(lambda: model(batch.feats[:1], batch.mask[:1]), device, runs, warmup=3))
    losses = [trainer.step(batch)["final_loss"].item() for _ in range(5)]
    row["step_ms"] = ms(seconds_of(lambda: trainer.step(batch), device, runs))
    if device.type == "cuda":
        row["peak_GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
    return {**row, "losses": losses}


def demo(day: Day) -> Iterator[Row]:
    """train.py and eval.py of the demo on the CPU and on the device: the same mAP within the spread of seeds?"""
    on_cpu = None
    kinds = {"CPU": ["devices=[cpu]"], "float32": [], "bf16": ["train_cfg.precision=bf16", "test_cfg.precision=bf16"]}
    if day.on_gpu:
        kinds["CUDA graphs"] = ["train_cfg.cuda_graphs=true", "loader.pad_multiple=64"]
        kinds["features on the device"] = ["loader.cache=device"]
    for case, overrides in kinds.items():
        row = train_and_evaluate(day, "demo", case.replace(" ", "_"), overrides)
        on_cpu = on_cpu if on_cpu is not None else row["mAP_%"]
        yield {"case": case, **row, "equal": abs(row["mAP_%"] - on_cpu) < 4 or day.tiny}


def train_and_evaluate(day: Day, config: str, name: str, overrides: Sequence[str]) -> Row:
    """Seconds of train.py and of eval.py, and the average mAP in %."""
    out = day.folder / "ckpt"
    chosen = [f"devices=[{day.device}]", *overrides, f"output_folder={out}", *(("opt.epochs=1",) if day.tiny else ())]
    started = time.perf_counter()
    program("train.py", ROOT / "configs" / f"{config}.yaml", "--output", name, "--set", *chosen)
    trained = time.perf_counter()
    program("eval.py", ROOT / "configs" / f"{config}.yaml", out / f"{config}_{name}", "--output", out / f"{name}_eval",
            "--set", *chosen)
    results = json.loads((out / f"{name}_eval" / "results.json").read_text(encoding="utf-8"))
    return {"train_s": trained - started, "eval_s": time.perf_counter() - trained, "mAP_%": 100 * results["average_mAP"]}


def planted(day: Day) -> Iterator[Row]:
    """configs/planted.yaml on the planted features of the THUMOS14 annotations (results/planted.json: 51.94 on a CPU)."""
    if day.annotations is None:
        yield {"case": "not run: needs --annotations thumos14.json"}
        return
    data = day.folder / "planted"
    program("tools/make_planted.py", "--annotations", day.annotations.resolve(), "--out", data, "--rgb-dim", 64, "--flow-dim", 64,
            "--train", 40, "--test", 40, "--no-hash")
    paths = [f"dataset.json_file={data / 'annotations/thumos14.json'}", f"dataset.feat_folder={data / 'i3d_features'}"]
    graphs = ["train_cfg.cuda_graphs=true", "loader.pad_multiple=288"] if day.on_gpu else []
    kinds = {"bf16": ["train_cfg.precision=bf16", "test_cfg.precision=bf16", *graphs], "fp32": graphs}
    for case, overrides in kinds.items():
        row = train_and_evaluate(day, "planted", f"kind{len(overrides)}", [*paths, "loader.cache=ram", *overrides])
        yield {"case": case, **row, "equal": abs(row["mAP_%"] - 51.94) < 4 or day.tiny}


def resume(day: Day) -> Iterator[Row]:
    """A run that gets SIGTERM and resumes, beside one that is not disturbed."""
    chosen = [f"devices=[{day.device}]", f"output_folder={day.folder / 'ckpt'}", "opt.warmup_epochs=1", "opt.epochs=2"]
    command = ["train.py", str(ROOT / "configs" / "demo.yaml"), "--set", *chosen]
    program(*command, "--output", "whole", "--deterministic")
    log = day.folder / "ckpt" / "demo_stopped" / "metrics.jsonl"
    process = subprocess.Popen([sys.executable, *command, "--output", "stopped", "--deterministic", "-p", "1"], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (log.exists() and log.read_text(encoding="utf-8").count("\n") >= 4):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    program(*command, "--output", "stopped", "--deterministic", "--resume", "auto")
    one, other = (torch.load(day.folder / "ckpt" / f"demo_{name}" / "epoch_003.pth.tar", map_location="cpu", weights_only=True)
                  ["state_dict"] for name in ("whole", "stopped"))
    largest = max(float((one[k] - other[k]).abs().max()) for k in one)
    yield {"case": "SIGTERM, --resume auto", "exit code": code, "largest difference of a weight": largest,
           "equal": code == 75 and largest == 0}


def repeat(day: Day) -> Iterator[Row]:
    """Two trainings with --deterministic's kernels: equal to the last bit?"""
    for precision in ("fp32", "bf16"):
        config = day.config("thumos_i3d", f"train_cfg.precision={precision}")
        made = []
        for _ in range(2):
            with strict_determinism(True):
                trainer, batch = made_trainer(config), made_batch(config, device_of(day.device))
                use_deterministic_kernels(strict=True)  # seeding has relaxed it
                for _ in range(3):
                    trainer.step(batch)
            made.append([p.detach().clone() for p in trainer.parameters])
        largest = max(float((a - b).abs().max()) for a, b in zip(*made, strict=True))
        yield {"case": precision, "largest difference of a weight": largest, "equal": largest == 0}


def nccl(day: Day) -> Iterator[Row]:
    """One process that trains through DistributedDataParallel and NCCL (CPU: gloo), beside one without."""
    config = day.config("anet_tsp", "train_cfg.dropout=0.0", "train_cfg.droppath=0.0")
    plain, batch = made_trainer(config), made_batch(config, device_of(day.device))
    want = [plain.step(batch)["final_loss"].item() for _ in range(4)]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    store = dist.HashStore()
    dist.init_process_group("cpu:gloo,cuda:nccl" if day.on_gpu else "gloo", store=store, rank=0, world_size=1)
    trainer = made_trainer(config)
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")  # as in `World.data_parallel`
    trainer.replica = nn.parallel.DistributedDataParallel(trainer.objective, gradient_as_bucket_view=True)
    trainer.replica.broadcast_buffers = False
    got = []
    for _ in range(4):
        loss = trainer.step(batch)["final_loss"]
        dist.all_reduce(loss)
        got.append(loss.item())
    seconds = seconds_of(lambda: trainer.step(batch), batch.feats.device, 3 if day.tiny else 20)
    dist.destroy_process_group()
    error = max(abs(a - b) / abs(b) for a, b in zip(got, want, strict=True))
    yield {"case": "DDP, one process", "backend": "nccl" if day.on_gpu else "gloo", "step_ms": ms(seconds),
           "relative to plain": error, "equal": error <= EXACT}


def data(day: Day) -> Iterator[Row]:
    """Training steps with reading, by the benchmark of the CPU: padded, as short as possible, features kept on the device."""
    folder = day.folder / "steps"
    folder.mkdir()
    source, base = prepare(folder, None, 4 if day.tiny else 64, 1, *((ROOT / "configs" / "demo.yaml", TINY) if day.tiny else ()))
    base += [*(TINY if day.tiny else ()), f"devices=[{day.device}]"]
    variants = ["padded", "fp32", "bucket"]
    if day.on_gpu:
        variants += ["bucket+bf16", "padded+bf16+graphs", "bucket+bf16+few+graphs"]
    for variant in variants:
        got = bench_train_step.measure(source, base, variant, device_of(day.device), *((40, 24) if day.on_gpu else (3, 2)))
        yield {"case": variant, "median_ms": ms(got.seconds), "mean_ms": 1e3 * sum(got.seconds) / len(got.seconds),
               "padding_%": 100 * (1 - sum(got.valid) / sum(got.computed)), "peak_GiB": got.peak_gib}


def epoch(day: Day) -> Iterator[Row]:
    """Whole epochs over 200 videos of THUMOS14's lengths, everything included."""
    folder = day.folder / "epochs"
    folder.mkdir()
    path, paths = prepare(folder, None, 4 if day.tiny else 200, 1, *((ROOT / "configs" / "demo.yaml", TINY) if day.tiny else ()))
    kinds = {"fp32": [], "bf16, graphs": ["train_cfg.precision=bf16", "train_cfg.cuda_graphs=true", "loader.pad_multiple=256"]}
    for case, overrides in itertools.islice(kinds.items(), 2 if day.on_gpu else 1):
        config = load_config(path, [*(TINY if day.tiny else ()), *paths, f"devices=[{day.device}]", "loader.cache=device",
                                    "loader.bucket=16", "opt.warmup_epochs=1", f"opt.epochs={1 if day.tiny else 2}", *overrides])
        got = bench_epochs.once(config, day.folder / f"run_{len(overrides)}", device_of(day.device))
        yield {"case": case, "epochs": config.total_epochs, **got, "ms_per_step": 1e3 * got["seconds"] / got["steps"]}


def test_set(day: Day) -> Iterator[Row]:
    """The whole test set from features on disk to mAP."""
    device, folder = device_of(day.device), day.folder / "test"
    folder.mkdir()
    small = (ROOT / "configs" / "demo.yaml", TINY) if day.tiny else ()
    path, paths = prepare(folder, None, 1, 3 if day.tiny else 212, *small)
    for precision, size in (("fp32", 1), ("bf16", 4)):
        config = load_config(path, [*(TINY if day.tiny else ()), *paths, f"test_cfg.batch_size={size}",
                                    f"test_cfg.precision={precision}", f"devices=[{day.device}]"])
        torch.manual_seed(0)
        model = build_model(config).eval().to(device)
        answer_like_trained(model, config, device)
        got = [bench_test_set.once(model, config, device) for _ in range(2)][-1]
        yield {"case": f"{precision}, batch {size}", "total_s": got["total"], "mAP_s": got["mAP"], "segments": got["segments"],
               "ms_per_video": 1e3 * got["total"] / len(got["steps"])}


def profile_step(day: Day) -> Iterator[Row]:
    """Kernels of a training step by time on the device, and how long the device waits."""
    device = device_of(day.device)
    for precision, graphs in (("fp32", False), ("bf16", False), ("bf16", True))[:3 if day.on_gpu else 1]:
        config = day.config("thumos_i3d", f"train_cfg.precision={precision}", f"train_cfg.cuda_graphs={str(graphs).lower()}")
        trainer, batch, count = made_trainer(config), made_batch(config, device), 5
        for _ in range(5):
            trainer.step(batch)
        synchronize(device)
        kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if day.on_gpu else [ProfilerActivity.CPU]
        with profile(activities=kinds) as trace:
            started = time.perf_counter()
            for _ in range(count):
                trainer.step(batch)
            synchronize(device)
            wall = (time.perf_counter() - started) / count
        case = f"{precision}{' graphs' if graphs else ''}"
        events = [(e.key, e.self_device_time_total if day.on_gpu else e.self_cpu_time_total, e.count)
                  for e in trace.key_averages() if not day.on_gpu or str(e.device_type).endswith("CUDA")]
        busy = sum(t for _, t, _ in events) / count / 1e3
        yield {"case": case, "wall_ms": 1e3 * wall, "busy_ms": busy, "launches": sum(n for *_, n in events) / count,
               "idle_%": 100 * max(0.0, 1 - busy / (1e3 * wall))}
        for i, (name, total, n) in enumerate(sorted(events, key=lambda e: -e[1])[:12]):
            yield {"case": f"{case} {i:02d}", "kernel": name[:90], "ms": total / count / 1e3, "launches": n / count}


def kernels(day: Day) -> Iterator[Row]:
    """Forms of convolution and attention, forward and backward, at the shapes of configs/thumos_i3d.yaml."""
    device = device_of(day.device)
    T, C = (96, 32) if day.tiny else (2304, 512)
    sizes = [T >> i for i in range(6)]
    dense, thin = channels_innermost(torch.randn(C, C, 3, device=device) / C), torch.randn(C, 1, 3, device=device)
    works: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {}
    x, levels = torch.randn(2, T, C, device=device), torch.randn(2, sum(sizes), C, device=device)
    works["dense, one level, plain"] = (lambda x, w: plain_conv_time(x, w, None, 1, 1, [T]), [x, dense])
    works["dense, one level, image"] = (lambda x, w: image_conv_time(x, w, None, 1, 1), [x, dense])
    works["dense, one level, stacked"] = (lambda x, w: stacked_product(x, w, None, 1), [x, dense])
    works["dense, one level, products"] = (lambda x, w: ShiftedProducts.apply(x, w, None, (T,)), [x, dense])
    works["dense, six levels, plain"] = (lambda x, w: plain_conv_time(x, w, None, 1, 1, sizes), [levels, dense])
    works["dense, six levels, stacked"] = (lambda x, w: conv1d.in_one_call(
        lambda x: stacked_product(x, w, None, 1), x, 1, sizes), [levels, dense])
    works["depthwise, plain"] = (lambda x, w: plain_conv_time(x, w, None, 1, C, [T]), [x, thin])
    works["depthwise, image"] = (lambda x, w: image_conv_time(x, w, None, 1, C), [x, thin])
    works["depthwise, channels first"] = (lambda x, w: conv1d.channels_first_conv_time(x, w, None, 1, C), [x, thin])
    mask, heads = torch.ones(2, T, dtype=torch.bool, device=device), 4
    qkv = [torch.randn(2, T, heads, C // heads, device=device) for _ in range(3)]
    works["attention, plain"] = (lambda q, k, v: plain_attention(q, k, v, mask, 19), qkv)
    works["attention, band"] = (lambda q, k, v: band_attention(q, k, v, mask, 19), qkv)
    if day.on_gpu:
        works["attention, flex"] = (flex_of(mask, 19), qkv)
    reference: dict[tuple[str, str], list[Tensor]] = {}
    precisions = ("fp32", "tf32", "bf16") if day.on_gpu else ("fp32",)
    for (case, (work, inputs)), precision in itertools.product(works.items(), precisions):
        given = [t.detach().to(torch.bfloat16 if precision == "bf16" else torch.float32).requires_grad_() for t in inputs]

        def both(work: Callable[..., Tensor] = work, given: list[Tensor] = given) -> list[Tensor]:
            out = work(*given)
            return [out, *torch.autograd.grad(out.square().sum(), given)]

        with matmul_precision(precision):
            found = [t.detach().float() for t in both()]
            with torch.no_grad():
                forward = seconds_of(lambda work=work, given=given: work(*given), device, 3 if day.tiny else 20, warmup=3)
            seconds = seconds_of(both, device, 3 if day.tiny else 20, warmup=3)
        key = (case.rpartition(",")[0], precision)
        want = reference.setdefault(key, found)
        error = max(float((a - b).norm() / b.norm()) for a, b in zip(found, want, strict=True))
        yield {"case": f"{case}, {precision}", "forward_ms": ms(forward), "both_ms": ms(seconds), "relative": error,
               "equal": error <= {"fp32": EXACT, "tf32": 5e-3, "bf16": TENSOR_CORES}[precision]}


def lengths(day: Day) -> Iterator[Row]:
    """A training step and a forward pass at a length never seen before and again: what does choosing kernels cost?"""
    device, forms = device_of(day.device), (conv1d.stacked_product, conv1d.channels_first_conv_time)
    image = (lambda x, w, b, stride: image_conv_time(x, w, b, stride, 1), image_conv_time)
    for case, chosen in {"products, torch's depthwise": forms, "products, cuDNN's depthwise": (forms[0], image_conv_time),
                         "cuDNN": image}.items():
        conv1d.stacked_product, conv1d.channels_first_conv_time = chosen
        for precision in ("fp32", "bf16")[:1 + day.on_gpu]:
            config = day.config("thumos_i3d", f"train_cfg.precision={precision}", f"test_cfg.precision={precision}")
            trainer, whole = made_trainer(config), made_batch(config, device)
            trainer.step(whole)
            found: dict[str, list[float]] = {"new": [], "again": [], "forward_new": [], "forward_again": []}
            for i in range(2 if day.tiny else 4):
                steps = config.dataset.max_seq_len - 32 * (5 * i + 1 + {"fp32": 0, "bf16": 1}[precision])
                batch = dataclasses.replace(whole, feats=whole.feats[:, :steps], mask=whole.mask[:, :steps])
                for which in ("new", "again"):
                    found[which] += seconds_of(partial(trainer.step, batch), device, 1, warmup=0)
                short = batch.feats[:1, :-32], batch.mask[:1, :-32]
                trainer.model.eval()
                with torch.inference_mode(), matmul_precision(precision), low_weights(trainer.model, precision):
                    for which in ("forward_new", "forward_again"):
                        found[which] += seconds_of(partial(trainer.model, *short), device, 1, warmup=0)
            yield {"case": f"{case}, {precision}", **{f"{which}_ms": ms(values) for which, values in found.items()}}
    conv1d.stacked_product, conv1d.channels_first_conv_time = forms


def flex_of(mask_BT: Tensor, window: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """torch's FlexAttention with the band and the valid keys, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ((q - k).abs() <= window // 2) & mask_BT[b, k] | (q == k)

    B, T = mask_BT.shape
    blocks = create_block_mask(allowed, B, None, T, T, device=mask_BT.device)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=blocks).transpose(1, 2)


def postprocess(day: Day) -> Iterator[Row]:
    """Decoding and NMS of a batch, per video, with the library of the device and with that of the CPU."""
    config = load_config(THUMOS)
    for case in bench_postprocess.CASES[:1 if day.tiny else 3]:
        for device in ("cpu", day.device)[:1 + day.on_gpu]:
            for entry in bench_postprocess.measure(case, config, device_of(device), 2 if day.tiny else 20):
                yield {"case": f"{case.name}, {entry['work']}, {device}", "ms": ms(entry["seconds"]),
                       "candidates": entry["candidates"]}


def memory(day: Day) -> Iterator[Row]:
    """Peak memory of inference of one video."""
    device = device_of(day.device)
    for length, precision in itertools.product((288,) if day.tiny else (2304, 12544, 36864), ("fp32", "bf16")):
        config = day.config("thumos_i3d", f"test_cfg.precision={precision}")
        model = build_model(config).eval().to(device)
        x = torch.randn(1, length, config.model_channels, device=device)
        mask = torch.ones(1, length, dtype=torch.bool, device=device)
        with torch.inference_mode(), matmul_precision(precision), low_weights(model, precision):
            model(x, mask)
            found = memory_of(partial(model, x, mask), device)
            seconds = seconds_of(partial(model, x, mask), device, 2 if day.tiny else 10)
        yield {"case": f"{length} steps, {precision}", "before_GB": found.before / 1e9, "rise_GB": found.rise / 1e9,
               "forward_ms": ms(seconds)}


def compiled(day: Day) -> Iterator[Row]:
    """torch.compile of the network: seconds to compile, forward pass and training step after that."""
    device = device_of(day.device)
    for precision in ("fp32", "bf16")[:2 if day.on_gpu else 1]:
        config = day.config("thumos_i3d", f"train_cfg.precision={precision}", f"test_cfg.precision={precision}",
                            "train_cfg.dropout=0.0", "train_cfg.droppath=0.0")
        batch, want = made_batch(config, device), [t["final_loss"].item() for t in three_steps(config, device, None)]
        started = time.perf_counter()
        trainer = made_trainer(config)
        trainer.model.forward = torch.compile(trainer.model.forward, dynamic=False)
        got = [t["final_loss"].item() for t in three_steps(config, device, trainer)]
        first = time.perf_counter() - started
        error = max(abs(a - b) / abs(b) for a, b in zip(got, want, strict=True))
        yield {"case": f"{precision} step", "compile_s": first, "ms": ms(seconds_of(partial(trainer.step, batch), device, 10)),
               "relative": error, "equal": error <= (EXACT if precision == "fp32" else TENSOR_CORES)}
        model: LocPointTransformer = build_model(config).eval().to(device)
        model.forward = torch.compile(model.forward, dynamic=False)
        with torch.inference_mode(), matmul_precision(precision), low_weights(model, precision):
            started = time.perf_counter()
            model(batch.feats[:1], batch.mask[:1])
            synchronize(device)
            first = time.perf_counter() - started
            seconds = seconds_of(partial(model, batch.feats[:1], batch.mask[:1]), device, 10)
        yield {"case": f"{precision} forward", "compile_s": first, "ms": ms(seconds)}


def three_steps(config: Config, device: torch.device, trainer: Trainer | None) -> list[dict[str, Tensor]]:
    """Results of three steps of a trainer, by default a new one."""
    trainer, batch = trainer or made_trainer(config), made_batch(config, device)
    return [trainer.step(batch) for _ in range(3)]


PARTS = {
    "build": Part("the compiled NMS libraries", build, 120),
    "nms": Part("NMS against the CPU", compare_nms, 60),
    "golden": Part("fixtures of the reference", golden, 60),
    "steps": Part("forward passes and training steps", steps, 90),
    "demo": Part("the demo trained and evaluated", demo, 150),
    "resume": Part("SIGTERM and resume", resume, 60),
    "repeat": Part("two deterministic trainings", repeat, 30),
    "nccl": Part("DistributedDataParallel with NCCL", nccl, 40),
    "profile": Part("kernels of a training step", profile_step, 40),
    "kernels": Part("forms of convolution and attention", kernels, 60),
    "lengths": Part("steps of new lengths", lengths, 60),
    "data": Part("training steps with reading", data, 60),
    "epoch": Part("whole epochs of THUMOS14's size", epoch, 90),
    "test_set": Part("the whole test set of THUMOS14's size", test_set, 60),
    "postprocess": Part("decoding and NMS", postprocess, 40),
    "memory": Part("memory of inference", memory, 30),
    "planted": Part("planted features on the THUMOS14 annotations", planted, 150),
    "compiled": Part("torch.compile", compiled, 150),
}
