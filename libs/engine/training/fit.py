"""The training loop: epochs of steps, log lines, checkpoints and, if asked for, evaluation on the validation split."""
from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from libs.core.errors import UserError, note
from libs.core.schema import Config
from libs.datasets.dataset import TalDataset
from libs.datasets.loader import EpochSampler, close, steps, training_loader
from libs.engine.distill.teachers import Teacher, load_teachers, streams_to_read
from libs.engine.inference.predict import predict, score
from libs.engine.runs.checkpoint import Checkpoint, copy_matching, epochs_of, find_checkpoint, load_checkpoint, newest_checkpoint
from libs.engine.runs.environment import record_start
from libs.engine.runs.lock import FolderLock
from libs.engine.runs.run_folder import Run, SilentRun
from libs.engine.runtime.determinism import strict_determinism
from libs.engine.runtime.machine import keep_freed_memory
from libs.engine.runtime.precision import set_products
from libs.engine.runtime.stop_signals import Interruption
from libs.engine.runtime.world import ALONE, World
from libs.engine.training.objective import DetectionObjective, distillation
from libs.engine.training.saver import Saver
from libs.engine.training.trainer import Trainer, seed_everything, seed_generators
from libs.modeling.distill_losses import resolve
from libs.modeling.model import build_model
from libs.utils.evaluation.metrics import Scores
from libs.utils.evaluation.predictions import Detections
from libs.utils.progress import Clock
from libs.utils.timeline_image import timeline_image

BEST = "best.pth.tar"
SHOWN_VIDEOS = 3  # in TensorBoard


@dataclass(frozen=True)
class FitOptions:
    """What train.py's command line decides besides the configuration."""

    resume: str | None = None  # a checkpoint, 'auto' or None
    init_from: str | None = None  # a checkpoint to fine-tune from
    checkpoint_every: int = 5  # epochs
    print_every: int = 10  # iterations
    eval_every: int = 0  # epochs, 0: never
    keep: int | None = None  # the newest checkpoints of epochs, None: all
    save_minutes: float | None = None  # save in the middle of an epoch, too, if the last time is as long ago
    deterministic: bool = False  # an operation without a deterministic kernel is an error


class _AskedToStop(Exception):
    """In the middle of an evaluation."""


def fit(config: Config, folder: Path, device: torch.device, options: FitOptions, world: World = ALONE) -> Scores | None:
    """Train a configuration into `folder`; returns the scores of the last evaluation, if there was one.

    `world`: the processes that train together; each calls this.
    Raises Stopped once everything is saved, after a signal asked for that (libs/engine/runtime/stop_signals.py).
    """
    lock = FolderLock(folder)
    if world.is_main:
        lock.take()  # before anything is read: who still writes there may write the checkpoint to go on from
    try:
        with strict_determinism(options.deterministic):
            return _fit(config, folder, device, options, lock, world)
    finally:
        lock.release()


def _fit(config: Config, folder: Path, device: torch.device, options: FitOptions, lock: FolderLock,
         world: World) -> Scores | None:
    resume = _resumed(folder, options, world)
    seed_everything(config.init_rand_seed, strict=options.deterministic)
    keep_freed_memory()
    set_products(config.train_cfg.precision, device, config.source, "train_cfg.precision")
    settings = resolve(config)
    teachers = load_teachers(config, settings, device)
    cached = settings.outputs == "cache" and bool(teachers)
    read = config.model.modalities if cached else streams_to_read(config, teachers)
    train_set = TalDataset(config, config.train_split, training=True, modalities=read)
    val_set = TalDataset(config, config.val_split, training=False) if options.eval_every else None
    if val_set is not None:
        val_set.keep(device)
    loader, sampler = training_loader(train_set, config, pin=device.type == "cuda", teachers=[t.config for t in teachers],
                                      device=device, rank=world.rank, ranks=world.size)

    config = _with_empty_classes(config, train_set)
    model = build_model(config)
    if options.init_from:
        _report_copy(options.init_from, *copy_matching(model, load_checkpoint(find_checkpoint(options.init_from))))
    elif config.distill.init_from:
        start = next(t for t in teachers if t.name == config.distill.init_from)
        _report_copy(f"{start.checkpoint.path} ({start.weights} weights)", *copy_matching(model, start.checkpoint, start.weights))
    if teachers:
        objective = distillation(model, config, settings, teachers, read)
    else:
        objective = DetectionObjective(model, config)
    objective.to(device)
    trainer = Trainer(objective, config, len(sampler), world, train_set.label_names)
    if not world.is_main:  # the first one goes on with the numbers of a run of one process
        seed_generators(world.seed(config.init_rand_seed, 0))
    if cached and (made := objective.said.prepare([v.id for v in train_set.videos], device, world)):
        print(f"{config.distill.cache_folder}: computed the teacher outputs of {made} videos", flush=True)
    source = resume.path if resume is not None else None
    if resume is not None:
        trainer.resume(resume)
        del resume  # its memory
        _mention_later(folder, trainer.epoch, options)

    if world.is_main:
        lock.take(create=True)
        run: Run | SilentRun = Run(folder, config, *trainer.logged)
    else:
        run = SilentRun(folder)
    try:
        if world.is_main:
            record_start(folder, config, device, source, trainer.iteration)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        run.say(f"{folder}: {len(train_set)} videos, {len(sampler)} iterations per epoch, {config.total_epochs} epochs, "
                f"{parameters / 1e6:.2f} M parameters, {device}"
                + (f", teachers: {', '.join(t.name for t in teachers)}" if teachers else "")
                + _of_several(trainer) + (f", resumed after epoch {trainer.epoch}" if source is not None else "")
                + (f" and {trainer.steps} iterations" if trainer.steps else ""))
        if trainer.epoch >= config.total_epochs:
            run.say(f"all {config.total_epochs} epochs are done; evaluate with eval.py, or raise opt.epochs")
        run.text("summary", _summary(trainer, train_set, val_set, teachers), trainer.iteration)
        with Interruption(options.save_minutes) as asked:
            saver = Saver(run, trainer, asked, options.keep)
            if options.resume == "auto":
                saver.tidy(source)
            return _epochs(trainer, loader, sampler, val_set, options, run, saver)
    finally:
        close(loader)
        run.close()


def _time_left(trainer: Trainer) -> Callable[[], str]:
    """What the rest of the run will take, judged by what this process did so far, evaluations included."""
    clock, first, total = Clock(), trainer.iteration, trainer.config.total_epochs * trainer.iters_per_epoch
    return lambda: clock.left(trainer.iteration - first, total - first)


def _epochs(trainer: Trainer, loader: torch.utils.data.DataLoader, sampler: EpochSampler, val_set: TalDataset | None,
            options: FitOptions, run: Run | SilentRun, saver: Saver) -> Scores | None:
    scores, left = None, _time_left(trainer)
    while trainer.epoch < trainer.config.total_epochs:
        sampler.epoch, sampler.skip = trainer.epoch, trainer.steps
        _one_epoch(trainer, loader, run, saver, options.print_every, left)
        epoch = trainer.epoch + 1
        last = epoch == trainer.config.total_epochs
        evaluate = val_set is not None and (last or epoch % options.eval_every == 0)
        if evaluate:
            try:
                scores, detections = _evaluate(trainer, val_set, run, saver)
            except _AskedToStop:
                saver.stop()
        trainer.end_epoch()
        if evaluate:
            _record(trainer, scores, run)
            _show(detections, val_set, run, trainer.iteration)
        saver.after_epoch(due=last or epoch % options.checkpoint_every == 0, last=last)
    return scores


def _one_epoch(trainer: Trainer, loader: torch.utils.data.DataLoader, run: Run | SilentRun, saver: Saver, print_every: int,
               left: Callable[[], str]) -> None:
    """The steps of the next epoch that are not done yet."""
    epoch, total = trainer.epoch + 1, trainer.iters_per_epoch
    started, waited = time.perf_counter(), 0
    with run.progress(total, f"epoch {epoch}/{trainer.config.total_epochs}") as shown:
        shown.update(trainer.steps)
        for parts in steps(loader, trainer.config):
            trainer.step(*parts)
            shown.update(1)
            waited += 1
            if trainer.steps % print_every == 0 or trainer.steps == total:
                mean = _log(trainer, run, epoch)
                seconds, started = time.perf_counter() - started, time.perf_counter()
                terms = "  ".join(f"{k} {v:.4f}" for k, v in mean.items())
                run.say(f"epoch {epoch:3d}  {trainer.steps:5d}/{total}  {terms}  lr {trainer.learning_rate:.3e}  "
                        f"{seconds / waited:.3f} s/iteration  {left()}")
                waited = 0
            saver.after_step()


def _log(trainer: Trainer, run: Run, epoch: int) -> dict[str, float]:
    """Write the steps since the last log line; one read-back from the device for all of them."""
    pending: list[dict[str, Tensor]] = trainer.unlogged
    names = list(pending[0])
    table = torch.stack([torch.stack([step[k].float() for k in names]) for step in pending]).cpu()
    first = trainer.iteration - len(pending)
    trainer.raise_if_not_finite()
    for i, row in enumerate(table.tolist()):
        values = dict(zip(names, row, strict=True))
        run.log({"iteration": first + i + 1, "epoch": epoch, "lr": trainer.schedule.at(first + i), **values})
    run.flush()
    mean = dict(zip(names, table.mean(0).tolist(), strict=True))
    steps = {f"{'optimizer' if k == 'grad_norm' else 'loss'}/{k}": v for k, v in mean.items()}
    run.scalars({"optimizer/lr": trainer.learning_rate, **steps}, trainer.iteration)
    trainer.unlogged = []
    return mean


def _evaluate(trainer: Trainer, val_set: TalDataset, run: Run | SilentRun, saver: Saver) -> tuple[Scores, Detections]:
    """Raises _AskedToStop instead of finishing what would be done again anyway."""
    config = trainer.config
    model = trainer.model
    if config.test_cfg.weights == "ema":
        model = copy.deepcopy(trainer.model)
        model.load_state_dict(trainer.average.state_dict())
    with run.progress(len(val_set), "validation") as shown:
        def advance(done: int, _total: int) -> None:
            shown.update(done - shown.n)
            if saver.asked.stopping and trainer.world.size == 1:  # of several processes none may leave the others alone here
                raise _AskedToStop
        detections = predict(model, val_set, config, trainer.device, advance, trainer.world)
    return trainer.world.broadcast(score(detections, val_set) if trainer.world.is_main else None), detections


def _record(trainer: Trainer, scores: Scores, run: Run | SilentRun) -> None:
    config = trainer.config
    values = {f"mAP@{t:.2f}": float(m) for t, m in zip(scores.tious, scores.mAP, strict=True)}
    values["average_mAP"] = float(scores.average_mAP)
    run.scalars({f"validation/{k}": 100 * v for k, v in values.items()}, trainer.iteration)
    run.log({"iteration": trainer.iteration, "epoch": trainer.epoch, "weights": config.test_cfg.weights, **values})
    run.flush()
    run.say(f"epoch {trainer.epoch:3d}  average mAP {100 * scores.average_mAP:.2f}  ({config.test_cfg.weights} weights)")
    if values["average_mAP"] > trainer.best.get("average_mAP", -1.0):
        if not trainer.best and "test" in config.val_split:
            note("warning: val_split is the test split: a checkpoint chosen by it is tuned on the test data; report the last "
                 "epoch instead")
        trainer.best = {"epoch": trainer.epoch, "average_mAP": values["average_mAP"]}
        trainer.save(run.folder / BEST)


def _show(detections: Detections, val_set: TalDataset, run: Run, iteration: int) -> None:
    """Pictures of predictions under the ground truth for three videos, the same ones at every evaluation."""
    marked = [video for video in val_set.videos if len(video.segments)] or list(val_set.videos)
    for i in np.linspace(0, len(marked) - 1, min(SHOWN_VIDEOS, len(marked))).round().astype(int):
        video = marked[i]
        mine = detections.take(detections.video_id == video.id)
        pixels = timeline_image(video.id, (video.segments, video.labels),
                                (np.stack([mine.t_start, mine.t_end], axis=1), mine.label, mine.score), val_set.label_names)
        run.image(f"predictions/{video.id}", pixels, iteration)


def _summary(trainer: Trainer, train_set: TalDataset, val_set: TalDataset | None, teachers: Sequence[Teacher]) -> str:
    """What the run is, as a Markdown table."""
    config, parameters = trainer.config, sum(p.numel() for p in trainer.model.parameters())
    rows = {
        "configuration": config.source, "seed": config.init_rand_seed, "device": str(trainer.device),
        "data set": f"{config.dataset_name}, {config.dataset.json_file}",
        "training videos": f"{len(train_set)} of {', '.join(config.train_split)}",
        "validation videos": f"{len(val_set)} of {', '.join(config.val_split)}" if val_set is not None else "not evaluated",
        "classes": len(train_set.label_names), "network": f"{config.model.backbone_type}, {parameters / 1e6:.2f} M parameters",
        "teachers": ", ".join(t.name for t in teachers) or "none",
        "length": f"{config.total_epochs} epochs of {trainer.iters_per_epoch} iterations, batch {config.loader.batch_size}",
        "optimizer": f"{config.opt.type}, learning rate {config.opt.learning_rate:g}, weight decay {config.opt.weight_decay:g}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | `{value}` |" for key, value in rows.items())])


def _resumed(folder: Path, options: FitOptions, world: World) -> Checkpoint | None:
    """The checkpoint to go on from: what process 0 finds; UserError where another process does not see that file."""
    if options.resume is None:
        if world.is_main:
            Run.refuse_used(folder)
        return None
    if options.init_from:
        raise UserError("--resume and --init-from exclude each other: one goes on with a run, the other starts a new one")
    found = None
    if world.is_main:
        found = newest_checkpoint(folder) if options.resume == "auto" else load_checkpoint(find_checkpoint(options.resume))
    path = world.broadcast(found and found.path)
    if world.is_main or path is None:
        return found
    if not path.is_file():
        raise UserError(f"{path}: process {world.rank} does not see this checkpoint; processes on several machines need a shared "
                        "output_folder")
    return load_checkpoint(path)


def _mention_later(folder: Path, epoch: int, options: FitOptions) -> None:
    later = [path for e, path in epochs_of(folder) if e > epoch]
    if later and options.resume != "auto":
        note(f"note: {folder}: holds later checkpoints, up to {later[-1].name}: --resume auto goes on from them until this run "
             "has written its own; remove them if they are not wanted")


def _of_several(trainer: Trainer) -> str:
    if trainer.videos_per_step == trainer.config.loader.batch_size:
        return ""
    return (f", {trainer.world.size} process{'es' * (trainer.world.size > 1)}, {trainer.videos_per_step} videos per step, base "
            f"learning rate {trainer.schedule.base:g}")


def _with_empty_classes(config: Config, train_set: TalDataset) -> Config:
    """Class ids that no annotation has, where the preset asks for it, start with a probability of 1e-6 (SPEC item 6)."""
    if not train_set.empty_classes or config.train_cfg.head_empty_cls:
        return config
    train = dataclasses.replace(config.train_cfg, head_empty_cls=tuple(train_set.empty_classes))
    return dataclasses.replace(config, train_cfg=train)


def _report_copy(source: str, copied: list[str], fresh: list[str], unused: list[str]) -> None:
    print(f"{source}: copied {len(copied)} tensors; {len(fresh)} start anew{_few(fresh)}; "
          f"{len(unused)} of the file have no place{_few(unused)}", flush=True)


def _few(names: list[str]) -> str:
    return f" ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})" if names else ""
