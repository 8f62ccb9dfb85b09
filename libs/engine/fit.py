"""The training loop: epochs of steps, log lines, checkpoints and, if asked for, evaluation on the validation split."""
from __future__ import annotations

import copy
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from libs.core.errors import UserError, note
from libs.core.schema import Config
from libs.datasets.dataset import TalDataset
from libs.datasets.loader import batches, training_loader
from libs.engine.checkpoint import checkpoint_name, copy_matching, epochs_of, find_checkpoint, load_checkpoint
from libs.engine.objective import DetectionObjective, distillation
from libs.engine.precision import set_products
from libs.engine.predict import predict, score
from libs.engine.run import Run
from libs.engine.teachers import load_teachers, streams_to_read
from libs.engine.trainer import Trainer, seed_everything
from libs.modeling.distill import resolve
from libs.modeling.model import build_model
from libs.utils.metrics import Scores

BEST = "best.pth.tar"


@dataclass(frozen=True)
class FitOptions:
    """What train.py's command line decides besides the configuration."""

    resume: str | None = None  # a checkpoint, 'auto' or None
    init_from: str | None = None  # a checkpoint to fine-tune from
    checkpoint_every: int = 5  # epochs
    print_every: int = 10  # iterations
    eval_every: int = 0  # epochs, 0: never


def fit(config: Config, folder: Path, device: torch.device, options: FitOptions) -> Scores | None:
    """Train a configuration into `folder`; returns the scores of the last evaluation, if there was one."""
    resume = _resume_file(folder, options)
    seed_everything(config.init_rand_seed)
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
                                      device=device)

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
    trainer = Trainer(objective, config, iters_per_epoch=len(sampler), label_names=train_set.label_names)
    if cached and (made := objective.said.prepare([v.id for v in train_set.videos], device)):
        print(f"{config.distill.cache_folder}: computed the teacher outputs of {made} videos", flush=True)
    if resume is not None:
        trainer.resume(load_checkpoint(resume))

    run = Run(folder, config, trainer.iteration)
    try:
        parameters = sum(p.numel() for p in trainer.model.parameters())
        run.say(f"{folder}: {len(train_set)} videos, {len(sampler)} iterations per epoch, {config.total_epochs} epochs, "
                f"{parameters / 1e6:.2f} M parameters, {device}"
                + (f", teachers: {', '.join(t.name for t in teachers)}" if teachers else "")
                + (f", resumed after epoch {trainer.epoch}" if resume is not None else ""))
        if trainer.epoch >= config.total_epochs:
            run.say(f"all {config.total_epochs} epochs are done; evaluate with eval.py, or raise opt.epochs")
        scores = None
        while trainer.epoch < config.total_epochs:
            sampler.epoch = trainer.epoch
            _one_epoch(trainer, loader, run, options.print_every)
            last = trainer.epoch == config.total_epochs
            if val_set is not None and (last or trainer.epoch % options.eval_every == 0):
                scores = _evaluate(trainer, val_set, run)
            if last or trainer.epoch % options.checkpoint_every == 0:
                trainer.save(folder / checkpoint_name(trainer.epoch))
                run.say(f"saved {folder / checkpoint_name(trainer.epoch)}")
        return scores
    finally:
        run.close()


def _one_epoch(trainer: Trainer, loader: torch.utils.data.DataLoader, run: Run, print_every: int) -> None:
    epoch, total = trainer.epoch + 1, trainer.iters_per_epoch
    pending: list[dict[str, Tensor]] = []
    started, waited = time.perf_counter(), 0
    with run.progress(total, f"epoch {epoch}/{trainer.config.total_epochs}") as shown:
        for i, batch in enumerate(batches(loader), start=1):
            pending.append(trainer.step(batch.to(trainer.device)))
            shown.update(1)
            waited += 1
            if i % print_every == 0 or i == total:
                mean = _log(trainer, run, pending, epoch)
                seconds, started = time.perf_counter() - started, time.perf_counter()
                terms = "  ".join(f"{k} {v:.4f}" for k, v in mean.items())
                run.say(f"epoch {epoch:3d}  {i:5d}/{total}  {terms}  lr {trainer.learning_rate:.3e}  "
                        f"{seconds / waited:.3f} s/iteration")
                pending, waited = [], 0
    trainer.epoch = epoch


def _log(trainer: Trainer, run: Run, pending: list[dict[str, Tensor]], epoch: int) -> dict[str, float]:
    """Write the steps since the last log line; one read-back from the device for all of them."""
    names = list(pending[0])
    table = torch.stack([torch.stack([step[k].float() for k in names]) for step in pending]).cpu()
    first = trainer.iteration - len(pending)
    trainer.raise_if_not_finite()
    for i, row in enumerate(table.tolist()):
        values = dict(zip(names, row, strict=True))
        run.log({"iteration": first + i + 1, "epoch": epoch, "lr": trainer.schedule.at(first + i), **values})
    run.flush()
    mean = dict(zip(names, table.mean(0).tolist(), strict=True))
    run.scalars({"train/lr": trainer.learning_rate, **{f"train/{k}": v for k, v in mean.items()}}, trainer.iteration)
    return mean


def _evaluate(trainer: Trainer, val_set: TalDataset, run: Run) -> Scores:
    config = trainer.config
    model = trainer.model
    if config.test_cfg.weights == "ema":
        model = copy.deepcopy(trainer.model)
        model.load_state_dict(trainer.average.state_dict())
    scores = score(predict(model, val_set, config, trainer.device), val_set)
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
    return scores


def _resume_file(folder: Path, options: FitOptions) -> Path | None:
    if options.resume is None:
        Run.refuse_used(folder)
        return None
    if options.init_from:
        raise UserError("--resume and --init-from exclude each other: one goes on with a run, the other starts a new one")
    if options.resume == "auto":
        found = epochs_of(folder)
        return found[-1][1] if found else None
    return find_checkpoint(options.resume)


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
