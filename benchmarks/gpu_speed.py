"""Parts of gpu_day.py: how fast is it, and what takes the time?"""
from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial

import bench_epochs
import bench_postprocess
import bench_test_set
import bench_train_step
import torch
import torch.nn.functional as F
from common import device_of, memory_of, seconds_of, synchronize
from gpu_common import EXACT, TENSOR_CORES, Day, Row, made_batch, made_trainer, ms
from planted_thumos import THUMOS, answer_like_trained
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from libs.core.config import load_config
from libs.core.schema import Config
from libs.engine.runtime.precision import low_weights, matmul_precision
from libs.engine.training.cuda_graphs import graphs_hint
from libs.engine.training.trainer import Trainer
from libs.modeling.kernels import conv1d
from libs.modeling.kernels.band_attention import band_attention, plain_attention
from libs.modeling.kernels.conv1d import ShiftedProducts, channels_innermost, image_conv_time, plain_conv_time
from libs.modeling.model import LocPointTransformer, build_model


def steps(day: Day) -> Iterator[Row]:
    """`steps_of` ActionFormer on three datasets."""
    for name in ("thumos_i3d", "anet_tsp", "ego4d_slowfast")[:1 if day.tiny else 3]:
        yield from steps_of(day, name, partial(day.config, name))


def family(day: Day) -> Iterator[Row]:
    """`steps_of` TriDet and TemporalMaxer."""
    for name in ("tridet_thumos_i3d", "temporalmaxer_thumos_i3d"):
        yield from steps_of(day, name, partial(day.narrow, name))


def steps_of(day: Day, name: str, configured: Callable[..., Config]) -> Iterator[Row]:
    """Forward passes and training steps in every precision, also with CUDA graphs where a step can be recorded; losses against
    float32.  configured(*overrides): the configuration."""
    kinds = [(precision, False) for precision in (("fp32", "tf32", "bf16") if day.on_gpu else ("fp32", "bf16"))]
    if graphs_hint(configured(), device_of(day.device), 1):
        kinds += [(precision, True) for precision, _ in kinds]
    plain: list[float] = []
    for precision, graphs in kinds:
        config = configured(f"train_cfg.precision={precision}", f"test_cfg.precision={precision}",
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


def lengths(day: Day) -> Iterator[Row]:
    """A training step and a forward pass at a length never seen before and again: what does choosing kernels cost?"""
    device, own = device_of(day.device), conv1d.channels_first_conv_time
    kinds = itertools.product({"torch's depthwise": own, "cuDNN's depthwise": image_conv_time}.items(), ("fp32", "bf16"))
    for number, ((case, form), precision) in enumerate(kinds):
        conv1d.channels_first_conv_time = form
        if day.on_gpu or precision == "fp32":
            config = day.config("thumos_i3d", f"train_cfg.precision={precision}", f"test_cfg.precision={precision}")
            trainer, whole = made_trainer(config), made_batch(config, device)
            trainer.step(whole)
            found: dict[str, list[float]] = {"new": [], "again": [], "forward_new": [], "forward_again": []}
            for i in range(2 if day.tiny else 4):
                steps = config.dataset.max_seq_len - 32 * (4 * i + number)  # lengths that no other kind has seen
                batch = dataclasses.replace(whole, feats=whole.feats[:, :steps], mask=whole.mask[:, :steps])
                for which in ("new", "again"):
                    found[which] += seconds_of(partial(trainer.step, batch), device, 1, warmup=0)
                short = batch.feats[:1, :-32], batch.mask[:1, :-32]
                trainer.model.eval()
                with torch.inference_mode(), matmul_precision(precision), low_weights(trainer.model, precision):
                    for which in ("forward_new", "forward_again"):
                        found[which] += seconds_of(partial(trainer.model, *short), device, 1, warmup=0)
            yield {"case": f"{case}, {precision}", **{f"{which}_ms": ms(values) for which, values in found.items()}}
    conv1d.channels_first_conv_time = own


def postprocess(day: Day) -> Iterator[Row]:
    """Decoding and NMS of a batch, per video, with the library of the device and with that of the CPU."""
    config = load_config(THUMOS)
    for case in bench_postprocess.CASES[:1 if day.tiny else 3]:
        for device in ("cpu", day.device)[:1 + day.on_gpu]:
            for entry in bench_postprocess.measure(case, config, device_of(device), 2 if day.tiny else 20):
                yield {"case": f"{case.name}, {entry['work']}, {device}", "ms": ms(entry["seconds"]),
                       "candidates": entry["candidates"]}


def test_set(day: Day) -> Iterator[Row]:
    """The whole test set from features on disk to mAP."""
    device = device_of(day.device)
    path, overrides = day.prepared("test", 1, 3 if day.tiny else 212)
    for precision, size in (("fp32", 1), ("bf16", 4)):
        config = load_config(path, [*overrides, f"test_cfg.batch_size={size}", f"test_cfg.precision={precision}"])
        torch.manual_seed(0)
        model = build_model(config).eval().to(device)
        answer_like_trained(model, config, device)
        got = [bench_test_set.once(model, config, device) for _ in range(2)][-1]
        yield {"case": f"{precision}, batch {size}", "total_s": got["total"], "mAP_s": got["mAP"], "segments": got["segments"],
               "ms_per_video": 1e3 * got["total"] / len(got["steps"])}


def data(day: Day) -> Iterator[Row]:
    """Training steps with reading, by the benchmark of the CPU: padded, as short as possible, features kept on the device."""
    path, overrides = day.prepared("steps", 4 if day.tiny else 64, 1)
    variants = ["padded", "fp32", "bucket"]
    if day.on_gpu:
        variants += ["bucket+bf16", "padded+bf16+graphs", "bucket+bf16+few+graphs"]
    for variant in variants:
        got = bench_train_step.measure(path, overrides, variant, device_of(day.device), *((40, 24) if day.on_gpu else (3, 2)))
        yield {"case": variant, "median_ms": ms(got.seconds), "mean_ms": 1e3 * sum(got.seconds) / len(got.seconds),
               "padding_%": 100 * (1 - sum(got.valid) / sum(got.computed)), "peak_GiB": got.peak_gib}


def epoch(day: Day) -> Iterator[Row]:
    """Whole epochs over 200 videos of THUMOS14's lengths, everything included."""
    path, overrides = day.prepared("epochs", 4 if day.tiny else 200, 1)
    kinds = {"fp32": [], "bf16, graphs": ["train_cfg.precision=bf16", "train_cfg.cuda_graphs=true", "loader.pad_multiple=256"]}
    for case, chosen in itertools.islice(kinds.items(), 2 if day.on_gpu else 1):
        config = load_config(path, [*overrides, "loader.cache=device", "loader.bucket=16", "opt.warmup_epochs=1",
                                    f"opt.epochs={1 if day.tiny else 2}", *chosen])
        got = bench_epochs.once(config, day.folder / f"run_{len(chosen)}", device_of(day.device))
        yield {"case": case, "epochs": config.total_epochs, **got, "ms_per_step": 1e3 * got["seconds"] / got["steps"]}


def profile_step(day: Day) -> Iterator[Row]:
    """Kernels of a training step by time on the device, and how long the device waits."""
    device = device_of(day.device)
    for precision, graphs in (("fp32", False), ("bf16", False), ("bf16", True))[:3 if day.on_gpu else 1]:
        config = day.config("thumos_i3d", f"train_cfg.precision={precision}", f"train_cfg.cuda_graphs={str(graphs).lower()}")
        trainer, batch, count = made_trainer(config), made_batch(config, device), 1 if day.tiny else 5
        for _ in range(count):
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


def stacked_product(x_BTC: Tensor, weight_OCK: Tensor) -> Tensor:
    """A dense convolution as one matrix product over all taps."""
    steps, kernel = x_BTC.shape[1], weight_OCK.shape[2]
    padded = F.pad(x_BTC, (0, 0, kernel // 2, kernel // 2))
    taps = torch.cat([padded[:, tap:tap + steps] for tap in range(kernel)], dim=2)
    return F.linear(taps, weight_OCK.transpose(1, 2).flatten(1))


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
    works["dense, one level, stacked"] = (stacked_product, [x, dense])
    works["dense, one level, products"] = (lambda x, w: ShiftedProducts.apply(x, w, None, (T,)), [x, dense])
    works["dense, six levels, plain"] = (lambda x, w: plain_conv_time(x, w, None, 1, 1, sizes), [levels, dense])
    works["dense, six levels, image"] = (lambda x, w: conv1d.in_one_call(
        lambda x: image_conv_time(x, w, None, 1, 1), x, 1, sizes), [levels, dense])
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


def flex_of(mask_BT: Tensor, window: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """torch's FlexAttention with the band and the valid keys, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ((q - k).abs() <= window // 2) & mask_BT[b, k] | (q == k)

    B, T = mask_BT.shape
    blocks = create_block_mask(allowed, B, None, T, T, device=mask_BT.device)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=blocks).transpose(1, 2)


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
