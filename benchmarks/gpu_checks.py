"""Parts of gpu_day.py: does everything run on a GPU, and are its numbers those of the CPU?"""
from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import bench_configs
import bench_extract
import torch
import torch.distributed as dist
from common import device_of, seconds_of
from gpu_common import EXACT, ROOT, Day, Row, made_batch, made_trainer, ms, program
from torch import nn

from libs.core.errors import UserError
from libs.datasets.video.one_video import extract_features
from libs.engine.runtime.determinism import strict_determinism, use_deterministic_kernels
from libs.engine.runtime.precision import matmul_precision
from libs.utils.nms import api as nms
from libs.utils.nms import native


def build(day: Day) -> Iterator[Row]:
    """Compile the NMS libraries and load the one of the device."""
    started = time.perf_counter()
    program("setup.py", "--quiet", "build_ext", "--inplace")
    library = native.cuda_library() if day.on_gpu else native.cpu_library()
    yield {"case": "NMS library", "seconds": time.perf_counter() - started, "in use": nms.implementation(device_of(day.device)),
           "equal": library is not None}


def compare_nms(day: Day) -> Iterator[Row]:
    """Hard and soft NMS of whole batches against the plain implementation on the CPU: picks exactly, times to 1e-6."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from nms_candidates import KINDS, candidates
    device, sizes = device_of(day.device), (40, 0, 1, 90) if day.tiny else (3000, 0, 1, 6000)
    for kind in KINDS:
        parts = [candidates(kind, n, seed) for seed, n in enumerate(sizes)]
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


def distillation(day: Day) -> Iterator[Row]:
    """Losses of three training steps of students with their teachers beside those of the CPU, and the time of a step."""
    folder = ROOT / "configs" / "distill" / ("demo" if day.tiny else "thumos")
    fixed = ("train_cfg.dropout=0.0", "train_cfg.droppath=0.0")  # masks are drawn on the device
    for stage in ("student", "cross_modal", "multi_teacher", "student_alone"):
        losses: list[list[float]] = []
        for device in ("cpu", day.device):
            _, trainer, batch = bench_configs.prepared(folder / f"{stage}.yaml", device, *fixed)
            losses.append([trainer.step(batch)["final_loss"].item() for _ in range(3)])
        seconds = seconds_of(lambda trainer=trainer, batch=batch: trainer.step(batch), batch.feats.device, 2 if day.tiny else 20)
        error = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
        yield {"case": stage, "step_ms": ms(seconds), "loss": losses[-1][-1], "relative to CPU": error, "equal": error <= EXACT}


def extraction(day: Day) -> Iterator[Row]:
    """Features of a clip by networks with random weights: the largest difference from the CPU's, and frames per second."""
    frames = 20 if day.tiny else 320
    for case in ("i3d",) if day.tiny else ("i3d", *bench_extract.NETWORKS, "videomae"):
        folder = day.folder / case
        folder.mkdir()
        try:
            path = bench_extract.clip(folder / "clip.mp4", frames, (256, 340))
            short = bench_extract.clip(folder / "short.mp4", 20, (256, 340))
            made = {name: bench_extract.extractor_of(case, str(folder), device, precision) for name, device, precision in
                    (("cpu", "cpu", "fp32"), ("fp32", day.device, "fp32"), ("bf16", day.device, "bf16"))}
        except UserError as error:
            yield {"case": f"{case}: left out ({error})"}
            continue
        features = {name: extract_features(short, extractor)[0] for name, extractor in made.items()}
        largest = abs(features["cpu"]).max()
        for precision, tolerance in {"fp32": 1e-3, "bf16": 5e-2}.items():
            error = float(abs(features[precision] - features["cpu"]).max() / largest)
            seconds = seconds_of(partial(extract_features, path, made[precision]), device_of(day.device), 1)
            yield {"case": f"{case} {precision}", "frames_per_s": frames / seconds[0],
                   "largest difference / largest value": error, "equal": error <= tolerance}


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


def students(day: Day) -> Iterator[Row]:
    """tools/run_distill.py on the demo, on the CPU and on the device at once: the same mAP within the spread of seeds?"""
    stages, devices = ("teacher", "student_alone", "student"), {"CPU": "cpu", "device": day.device}

    def run(case: str) -> Row:
        started, folder = time.perf_counter(), day.folder / case
        folder.mkdir()  # runs go to ./ckpt
        program(ROOT / "tools/run_distill.py", ROOT / "configs/distill/demo", "--stages", *stages, "--jobs", 2, "--json",
                "table.json", "--set", f"devices=[{devices[case]}]", *(("opt.epochs=1",) if day.tiny else ()), folder=folder)
        rows = json.loads((folder / "table.json").read_text(encoding="utf-8"))["rows"]
        means = {row["stage"]: row["mean"] for row in rows}
        return {"case": case, "seconds": time.perf_counter() - started, **{f"{stage}_%": means[stage] for stage in stages}}

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, devices)
    yield first
    yield second | {"equal": day.tiny or all(abs(second[f"{stage}_%"] - first[f"{stage}_%"]) < 4 for stage in stages)}


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
