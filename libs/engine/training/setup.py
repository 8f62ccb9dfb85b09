"""Builds the parts of a training run from its configuration: teachers, datasets, model, objective, logs."""
from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch

from libs.core.errors import UserError, note
from libs.core.files import is_file
from libs.core.schema import Config
from libs.datasets.dataset import TalDataset
from libs.datasets.loading.loader import close, training_loader
from libs.engine.distill.streams import streams_to_read
from libs.engine.distill.teacher_cache import CachedTeachers
from libs.engine.distill.teachers import Teacher, load_teachers
from libs.engine.inference.evaluate import refuse_other_fold
from libs.engine.runs.checkpoint import Checkpoint, copy_matching, epochs_of, find_checkpoint, load_checkpoint, newest_checkpoint
from libs.engine.runs.checkpoint_mismatch import explain_difference
from libs.engine.runs.environment import record_start
from libs.engine.runs.lock import FolderLock
from libs.engine.runs.network import new_network, of_streams
from libs.engine.runs.run_folder import Run, SilentRun
from libs.engine.runtime.determinism import seed_everything, seed_generators
from libs.engine.runtime.machine import keep_freed_memory
from libs.engine.runtime.precision import check_precision
from libs.engine.runtime.stop_signals import Interruption
from libs.engine.runtime.world import World
from libs.engine.training.objective import DetectionObjective, DistillationObjective
from libs.engine.training.pseudo_labels import annotate
from libs.engine.training.reports import announce
from libs.engine.training.run import FitOptions, TrainingRun
from libs.engine.training.saver import Saver
from libs.engine.training.trainer import Trainer
from libs.engine.training.training_state import restore_state
from libs.modeling.losses.distillation import resolve
from libs.modeling.model import LocPointTransformer


def setup(config: Config, folder: Path, device: torch.device, options: FitOptions, world: World, lock: FolderLock,
          cleanup: contextlib.ExitStack) -> TrainingRun:
    """Build a run, restore its state if it is resumed, and print a summary.

    `lock`: that of `folder`; `cleanup` closes logs and data-loader workers and restores signal handlers at the end of the run.
    """
    resume = _checkpoint_to_resume(folder, options, world)
    seed_everything(config.init_rand_seed, strict=options.deterministic)
    keep_freed_memory()
    check_precision(config.train_cfg.precision, device, config.source, "train_cfg.precision")
    if options.eval_every:
        check_precision(config.test_cfg.precision, device, config.source, "test_cfg.precision")
    settings = resolve(config)
    teachers = load_teachers(config, settings, device)
    cached = settings.outputs == "cache" and bool(teachers)
    streams = config.model.modalities if cached else streams_to_read(config, [t.config for t in teachers])
    train_set = TalDataset(config, config.train_split, training=True, modalities=streams)
    val_set = TalDataset(config, config.val_split, training=False) if options.eval_every else None
    if val_set is not None:
        val_set.ground_truth()  # before the work: UserError if there is nothing to score against
        val_set.keep(device)
    annotate(train_set, config, teachers, device, world)
    loader, sampler = training_loader(train_set, config, pin=device.type == "cuda", teachers=[t.config for t in teachers],
                                      device=device, rank=world.rank, ranks=world.size)

    # classes without annotations start at a probability of 1e-6 where the preset asks for it (SPEC item 6)
    model = new_network(config, () if config.train_cfg.head_empty_cls else train_set.empty_classes)
    _copy_weights(model, config, options, teachers)
    if teachers:
        objective: DetectionObjective = DistillationObjective(model, config, settings, teachers, streams, world.all_reduce)
    else:
        objective = DetectionObjective(model, config, world.all_reduce)
    trainer = Trainer(objective.to(device), config, len(sampler), world, train_set.label_names)
    if not world.is_main:  # process 0 draws the random numbers of a run of one process
        seed_generators(world.seed(config.init_rand_seed, 0))
    if (isinstance(objective, DistillationObjective) and isinstance(objective.teacher_outputs, CachedTeachers)
            and (made := objective.teacher_outputs.prepare([v.id for v in train_set.videos], device, world))):
        print(f"{config.distill.cache_folder}: computed the teacher outputs of {made} videos", flush=True)
    source = resume.path if resume is not None else None
    if resume is not None:
        restore_state(trainer, resume)
        del resume  # its memory
        _note_later_checkpoints(folder, trainer.epoch, options)

    log = SilentRun(folder)
    if world.is_main:
        lock.take(create=True)
        log = Run(folder, config, *trainer.logged, finished=trainer.epoch >= config.total_epochs)
    cleanup.callback(log.close)
    cleanup.callback(close, loader)
    if world.is_main:
        record_start(folder, config, device, source, trainer.iteration)
    saver = Saver(log, trainer, cleanup.enter_context(Interruption(options.save_minutes)), options.keep)
    run = TrainingRun(options, train_set, val_set, loader, sampler, teachers, trainer, log, saver)
    announce(run, resumed=source is not None)
    if options.resume == "auto":
        saver.remove_leftovers(source)
    return run


def _checkpoint_to_resume(folder: Path, options: FitOptions, world: World) -> Checkpoint | None:
    """The checkpoint that process 0 finds; UserError if another process cannot read that file."""
    if options.resume is None:
        if world.is_main:
            Run.refuse_used(folder)
        return None
    if options.init_from:
        raise UserError("--resume and --init-from exclude each other: one goes on with a run, the other starts a new one")
    found = None
    if world.is_main:
        found = newest_checkpoint(folder) if options.resume == "auto" else load_checkpoint(find_checkpoint(options.resume))
    path = world.broadcast(found.path if found is not None else None)
    if world.is_main or path is None:
        return found
    if not is_file(path):
        raise UserError(f"{path}: process {world.rank} does not see this checkpoint; processes on several machines need a shared "
                        "output_folder")
    return load_checkpoint(path)


def _copy_weights(model: LocPointTransformer, config: Config, options: FitOptions, teachers: Sequence[Teacher]) -> None:
    """Start from the weights of --init-from, or of the teacher named by distill.init_from, if given; prints what was copied."""
    if options.init_from:
        source = options.init_from
        start = load_checkpoint(find_checkpoint(source))
        refuse_other_fold(config, start)
        copied, fresh, unused = copy_matching(model, of_streams(start, config))
    elif config.distill.init_from:
        teacher = next(t for t in teachers if t.name == config.distill.init_from)
        start, source = teacher.checkpoint, f"{teacher.checkpoint.path} ({teacher.weights} weights)"
        copied, fresh, unused = copy_matching(model, of_streams(start, config), teacher.weights)
    else:
        return
    print(f"{source}: copied {len(copied)} tensors; {len(fresh)} start anew{_few(fresh)}; "
          f"{len(unused)} of the file have no place{_few(unused)}", flush=True)
    if options.init_from and len(copied) < len(fresh):  # a student may have little in common with its teacher
        key = explain_difference(model.state_dict(), start.weights).splitlines()[-1].strip()
        note(f"warning: {source}: only {len(copied)} of {len(copied) + len(fresh)} tensors of this network are in it, so that "
             f"most of it starts anew; {key}; set it as in that run (its config.yaml), or leave out --init-from")


def _few(names: list[str]) -> str:
    return f" ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})" if names else ""


def _note_later_checkpoints(folder: Path, epoch: int, options: FitOptions) -> None:
    later = [path for e, path in epochs_of(folder) if e > epoch]
    if later and options.resume != "auto":
        note(f"note: {folder}: holds later checkpoints, up to {later[-1].name}: --resume auto goes on from them until this run "
             "has written its own; remove them if they are not wanted")
