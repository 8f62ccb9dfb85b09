"""A chain of distillation: a folder with one YAML per stage, in which stages are teachers of other stages.

    chain = load_chain("configs/distill/hapt", [Repeat(None, seed) for seed in range(3)], output="seed", overrides=[])
    planned = chain.plan(["student"])          the runs of these stages and of their teachers, teachers first
    run_stages(chain, planned, jobs=2)

Every *.yaml whose name does not begin with `_` is a stage.  A stage with a seed is one run of train.py, named <output><seed>
(with folds fold<fold>_<output><seed>), in <output_folder>/<stage>_<name>, which is also its label.  It starts after the runs that
its `distill.teachers[].checkpoint` names, in which `{run}` stands for its own run's name and `{part}` for each part of cross_fit.
"""
from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from libs.core.arguments import run_name
from libs.core.config import config_diff, from_dict, load_config
from libs.core.errors import UserError, nearest
from libs.core.files import entries, is_file, is_folder
from libs.core.relations.distillation import teacher_names
from libs.core.schema import Config
from libs.engine.distill.teachers import RUN, with_run_name
from libs.engine.experiments.launch import (
    eval_command,
    log_of,
    read_results,
    report_runs,
    run_commands,
    run_graph,
    shown,
    threads_per_job,
    train_command,
)
from libs.engine.experiments.repeats import Repeat
from libs.engine.inference.evaluate import EVALUATED, IGNORED, RESULTS, WEIGHTS_KEY, evaluation_folder, other_settings
from libs.engine.runs.checkpoint import (
    changed_settings,
    checkpoint_name,
    checkpoints_of,
    epochs_of,
    is_whole,
    load_checkpoint,
    newest_checkpoint,
)
from libs.engine.runs.run_folder import run_folder


@functools.lru_cache(maxsize=8)  # a checkpoint is loaded once for both kinds of weights, whether or not they are evaluated yet
def _other_settings(path: Path, _changed_ns: int, _size: int, config: Config) -> dict[str, str]:
    return other_settings(load_checkpoint(path), config)


@dataclass(frozen=True)
class StageRun:
    """One stage with one fold and seed."""

    stage: str  # name of its YAML file
    repeat: Repeat
    name: str  # of the run: train.py --output
    config: Config  # {run} in its teachers' checkpoints replaced
    overrides: tuple[str, ...]  # --set

    @property
    def folder(self) -> Path:
        return run_folder(self.config, self.name)

    @property
    def label(self) -> str:
        return self.folder.name

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.folder / checkpoint_name(self.config.total_epochs)

    @property
    def weights(self) -> str:
        return self.config.test_cfg.weights

    @property
    def begun(self) -> bool:
        return bool(checkpoints_of(self.folder))

    @property
    def trained(self) -> bool:
        return is_whole(self.last)

    @property
    def done(self) -> bool:
        return self.trained and is_file(self.own_results)

    @property
    def own_results(self) -> Path:
        """Results of its last epoch with its own settings."""
        return evaluation_folder(self.last, self.weights) / RESULTS

    def results_file(self, weights: str) -> Path:
        """The file that `evaluation` with `ema` or `raw` weights writes; test_cfg and val_split may differ from those of the
        training."""
        about = self.last.stat()
        changed = _other_settings(self.last, about.st_mtime_ns, about.st_size, self.config)
        return evaluation_folder(self.last, weights, changed) / RESULTS

    @property
    def teacher_paths(self) -> tuple[tuple[str, str], ...]:
        """(name, checkpoint or run folder) of its teachers, in the order of the configuration, each network of cross_fit."""
        distill = self.config.distill
        return tuple((name, path) for name, teacher in zip(teacher_names(distill), distill.teachers, strict=True)
                     for path in teacher.checkpoints)

    @property
    def training(self) -> list[str]:
        """The command line that trains it."""
        return train_command(self.config.source, self.name, self.overrides)

    @property
    def evaluation(self) -> list[str]:
        """The command line that evaluates its last epoch."""
        return eval_command(self.config.source, self.last, self.weights, self.overrides)

    @property
    def commands(self) -> list[list[str]]:
        """The command lines that are still to be run."""
        return [] if self.done else [self.evaluation] if self.trained else [self.training, self.evaluation]

    def complete(self, threads: int) -> None:
        """Train and evaluate, unless that is done; UserError with the end of the log if a program fails."""
        run_commands(self.commands, log_of(self.folder), threads, self.label)

    def average_mAP(self) -> float:
        """Average mAP in percent; UserError if it is not evaluated, or was evaluated with other settings."""
        file = self.own_results
        results = read_results(file)
        if changed := self.changed_results(results, file):
            raise UserError(f"{file}: was evaluated with other settings than {self.config.source}: {'; '.join(changed)}; remove "
                            "it to evaluate again")
        return 100 * results["average_mAP"]

    def changed_results(self, results: Mapping[str, Any], file: Path) -> list[str]:
        """"key: old, not new" for each setting that changes results and differs from that of `results`, read from `file`."""
        used = from_dict(results["config"], f"{file}: config", check=False) if "config" in results else self.config
        return [f"{key}: {old!r}, not {new!r}" for key, (old, new) in config_diff(used, self.config).items()
                if key.startswith(EVALUATED) and key not in (*IGNORED, WEIGHTS_KEY)]

    def evaluated(self, weights: str) -> bool:
        """Whether eval.py has evaluated its last epoch's `ema` or `raw` weights with these settings."""
        if not self.trained or not is_file(file := self.results_file(weights)):
            return False
        return not self.changed_results(read_results(file), file)

    def changes(self) -> list[str]:
        """"key: old -> new" for each setting that changes numbers and differs from that of the newest checkpoint.

        [] without a checkpoint.  Raises UserError for a checkpoint that does not hold its configuration.
        """
        checkpoint = newest_checkpoint(self.folder)
        if checkpoint is None:
            return []
        if checkpoint.training is None or "config" not in checkpoint.training:
            raise UserError(f"{checkpoint.path}: does not hold the configuration that it was trained with, as train.py's files "
                            f"do; choose another --output, or remove {self.folder}")
        return [line for key, line in changed_settings(checkpoint, self.config).items() if key not in IGNORED]

    def refuse_changes(self, allowed: tuple[str, ...] = ()) -> None:
        """UserError if `changes` finds any, except in keys that begin with one of `allowed`."""
        if changes := [line for line in self.changes() if not line.startswith(allowed)]:
            raise UserError(f"{self.folder}: was trained with another configuration than {self.config.source} with its --set "
                            f"values: {'; '.join(changes)}; undo the change, give the new runs another name with --output, or "
                            f"remove {self.folder}")


@dataclass(frozen=True)
class Chain:
    """The runs of a folder by label, teachers before their students."""

    folder: Path
    output_folder: Path
    runs: dict[str, StageRun]

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(run.stage for run in self.runs.values()))

    def teachers(self, run: StageRun) -> list[str]:
        """Labels of the runs of this chain that a run learns from."""
        return [label for _, _, label in self._sources(run) if label is not None]

    def source_names(self, run: StageRun) -> list[str]:
        """For each teacher (each network of cross_fit) the stage that makes it, or its checkpoint's path."""
        return [self.runs[label].stage if label is not None else path for _, path, label in self._sources(run)]

    def select(self, stages: Sequence[str]) -> list[str]:
        """`stages`, or all stages if it is empty; UserError for a name that is no stage."""
        for name in stages:
            if name not in self.stages:
                raise UserError(f"--stages {name}: {self.folder} has no {name}.yaml{nearest(name, self.stages)}; its stages are "
                                f"{', '.join(sorted(self.stages))}")
        return list(stages) or self.stages

    def plan(self, stages: Sequence[str]) -> dict[str, StageRun]:
        """The runs of these stages and of the teachers that they still need, finished ones included, fold by fold, seed by seed.

        A trained run no longer needs its teachers.  Raises UserError if a configuration has changed since its run, if a teacher
        is missing that no stage makes, and if a run is older than its teacher.
        """
        needed: set[str] = set()
        for label, run in reversed(self.runs.items()):  # students before their teachers
            if run.stage in stages or label in needed:
                needed |= {label, *(self.teachers(run) if not run.trained else ())}
        planned = {label: run for label, run in sorted(self.runs.items(), key=lambda item: item[1].repeat) if label in needed}
        for run in planned.values():
            self._check(run, planned)
        return planned

    def _check(self, run: StageRun, planned: dict[str, StageRun]) -> None:
        run.refuse_changes()
        for name, path, label in self._sources(run):
            if label is not None:
                if run.begun and label in planned and not planned[label].trained:
                    raise UserError(f"{run.folder}: has checkpoints, but its teacher {self.runs[label].folder} is not trained: "
                                    f"it learned from another one; remove {run.folder}, or bring that teacher's folder back")
            elif not run.trained and not is_file(path) and not epochs_of(path):
                raise UserError(f"{run.config.source}: distill.teachers: {name}: checkpoint: {path}: no such checkpoint, and no "
                                f"stage of {self.folder} makes it (their runs are {self.output_folder}/<stage>_{run.name}); "
                                f"train it first, or write the run of a stage, e.g. {self.output_folder}/{self.stages[0]}_{RUN}")

    def _sources(self, run: StageRun) -> Iterator[tuple[str, str, str | None]]:
        """(name, path, label of the run that makes it, None: no run of this chain) of each teacher's networks."""
        return ((name, path, _maker(path, self.runs)) for name, path in run.teacher_paths)


def stage_run(path: str | os.PathLike, repeat: Repeat, name: str, overrides: Sequence[str]) -> StageRun:
    """The run `name` of a YAML file with a fold and seed; `overrides` ("key=value") apply too.

    UserError for a bad configuration.
    """
    settings = (*overrides, *repeat.overrides)
    return StageRun(Path(path).stem, repeat, name, with_run_name(load_config(path, settings), name), settings)


def load_chain(folder: str | os.PathLike, repeats: Sequence[Repeat], output: str, overrides: Sequence[str] = ()) -> Chain:
    """Read the stages of a folder, each with every fold and seed of `repeats`; `overrides` ("key=value") apply to each.

    Raises UserError for a folder without stages, a bad configuration, an `output` that is no name, stages that write to
    different folders and stages that wait for each other in a circle.
    """
    folder = Path(folder)
    run_name(output)
    if not is_folder(folder):
        raise UserError(f"{folder}: no such folder; name one that holds a YAML file per stage, e.g. configs/distill/hapt")
    paths = [p for p in entries(folder) if p.suffix == ".yaml" and not p.name.startswith("_")]
    if not paths:
        raise UserError(f"{folder}: holds no stage (*.yaml whose name does not begin with _)")
    runs: dict[str, StageRun] = {}
    for repeat in repeats:
        for path in paths:
            run = stage_run(path, repeat, repeat.name(output), overrides)
            runs[run.label] = run
    first = next(iter(runs.values())).config
    for run in runs.values():
        if os.path.abspath(run.config.output_folder) != os.path.abspath(first.output_folder):
            raise UserError(f"{run.config.source}: output_folder: {run.config.output_folder}, but {first.source} writes to "
                            f"{first.output_folder}; the stages of a chain share one folder")
    return Chain(folder, Path(first.output_folder), _teachers_first(runs))


def run_stages(chain: Chain, planned: Mapping[str, StageRun], jobs: int) -> None:
    """Complete the runs that are not done, teachers before their students; UserError of the first one that fails."""
    todo = {label: run for label, run in planned.items() if not run.done}
    print(f"{chain.folder}: {len(planned)} runs, {len(planned) - len(todo)} of them done before", flush=True)

    def complete(label: str) -> None:
        run = todo[label]
        print("\n".join(f"{label}: {shown(command)}" for command in run.commands), flush=True)
        run.complete(threads_per_job(jobs))
        print(f"{label}: average mAP {run.average_mAP():.2f} ({run.weights} weights)", flush=True)

    run_graph({label: [t for t in chain.teachers(run) if t in todo] for label, run in todo.items()}, complete, jobs,
              report_runs())


def _maker(path: str, runs: dict[str, StageRun]) -> str | None:
    """Label of the run whose folder is, or contains, a teacher's path."""
    wanted = Path(os.path.abspath(path))
    return next((label for label, run in runs.items() if Path(os.path.abspath(run.folder)) in (wanted, wanted.parent)), None)


def _teachers_first(runs: dict[str, StageRun]) -> dict[str, StageRun]:
    """The same runs, each after its teachers; UserError if they wait for each other in a circle."""
    teachers = {label: [maker for _, path in run.teacher_paths if (maker := _maker(path, runs)) is not None]
                for label, run in runs.items()}
    try:
        return {label: runs[label] for label in TopologicalSorter(teachers).static_order()}
    except CycleError as error:
        labels = error.args[1][::-1]  # each waits for the next
        circle = " -> ".join(runs[label].stage for label in labels)
        raise UserError(f"{runs[labels[0]].config.source}: distill.teachers: stages wait for each other in a circle ({circle}); "
                        "take one of these teachers out") from error
