"""A study of distillation for any configuration with modalities: the folder of stages that tools/run_distill.py runs.

The recipe is that of `configs/distill/_student.yaml`; what depends on the dataset is found here: the width of the student, from
the FLOPs that it may take, and its number of epochs.
"""
from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from libs.core.config import BASE, FOLD, dump_yaml, load_config, with_overrides
from libs.core.errors import UserError, nearest
from libs.core.files import entries, is_folder
from libs.core.schema import Config, as_tuple
from libs.core.yaml_text import dump
from libs.datasets.grid import is_resampled
from libs.engine.deploy.cost import count
from libs.utils.files.io import write_text_atomic

RECIPES = Path(__file__).resolve().parents[3] / "configs" / "distill"
PATIENCE = 3  # times the teacher's epochs (docs/distillation.md#the-recipe)
KERNEL = 19
STEP = 8  # widths that are tried are multiples of it
ACTIONFORMER = "LocPointTransformer"


class Stage(NamedTuple):
    """A file of the study: its name without .yaml, what it is, and its keys."""

    name: str
    about: str
    keys: dict[str, Any]


def write_study(source: Path, kept: Sequence[str], folder: Path, share: float) -> dict[str, Config]:
    """Write the stages of a study of the configuration `source` whose student reads the streams `kept`: name -> configuration.

    `share`: of the teacher's FLOPs that the student may take.  Raises UserError for a configuration that cannot be taught so, and
    for a folder that is not empty; then nothing is written.
    """
    teacher, name = _load(source), folder.resolve().name
    _check(teacher, kept)
    if is_folder(folder) and entries(folder):
        raise UserError(f"{folder}: is not empty; choose another --out, or remove it")
    with tempfile.TemporaryDirectory() as trial:
        _write(_stages(teacher, source, kept, name, STEP), Path(trial))
        try:
            width = _width(teacher, _load(Path(trial) / "student.yaml"), share)
        except UserError as error:  # what the recipe and the configuration do not allow together
            raise UserError(str(error).replace(trial, str(source))) from error
    stages = _stages(teacher, source, kept, name, width)
    _write(stages, folder)
    return {s.name: _load(folder / f"{s.name}.yaml") for s in stages if not s.name.startswith("_")}


def _load(path: Path) -> Config:
    """A checked configuration; where texts wait for the number of a fold, of which nothing here depends, that of fold 1."""
    return load_config(path, ["fold=1"] if FOLD in dump_yaml(load_config(path, check=False)) else [])


def _check(config: Config, kept: Sequence[str]) -> None:
    """UserError unless an ActionFormer that reads the streams `kept` and others is to be taught."""
    streams = config.dataset.modalities
    if not streams:
        raise UserError(f"{config.source}: dataset.modalities: is not set, so that there are no streams to do without; name "
                        "them, e.g. {rgb: [0, 1024], flow: [1024, 2048]}")
    read = config.model.modalities or tuple(streams)
    for name in kept:
        if name not in read:
            raise UserError(f"--keep {name}: the teacher reads no stream of this name{nearest(name, read)}; {config.source} has "
                            f"{', '.join(read)}")
    if config.model_name != ACTIONFORMER:
        raise UserError(f"{config.source}: model_name: {config.model_name}: the recipe's student is an ActionFormer with other "
                        "blocks; start from an ActionFormer configuration")
    if config.distill.teachers:
        raise UserError(f"{config.source}: distill.teachers: is a student's configuration; name that of its teacher")


def _width(teacher: Config, student: Config, share: float) -> int:
    """The largest multiple of STEP, up to the teacher's width, with which the student takes at most `share` of its FLOPs."""
    whole = count(teacher).flops
    low, high = 0, max(as_tuple(teacher.model.embd_dim)) // STEP
    while low < high:  # FLOPs grow with the width
        middle = (low + high + 1) // 2
        widths = [f"{key}={STEP * middle}" for key in ("model.embd_dim", "model.fpn_dim", "model.head_dim")]
        fits = count(with_overrides(student, widths)).flops <= share * whole
        low, high = (middle, high) if fits else (low, middle - 1)
    if not low:
        raise UserError(f"--share {share:g}: even a student of width {STEP} takes more of the {whole / 1e9:.3f} GFLOP of "
                        f"{teacher.source}; raise it")
    return STEP * low


def _stages(teacher: Config, source: Path, kept: Sequence[str], name: str, width: int) -> list[Stage]:
    """The files of a study; paths in BASE are absolute."""
    base, recipe, augmentation = source.resolve(), RECIPES / "_student.yaml", RECIPES / "_augmentation.yaml"
    runs = f"./ckpt/distill/{name}/"
    warmup = teacher.opt.warmup_epochs if teacher.opt.warmup else 0
    patient: dict[str, Any] = {"opt": {"epochs": PATIENCE * (teacher.opt.epochs + warmup) - warmup}}
    if teacher.opt.early_stop_epochs:
        patient["opt"]["early_stop_epochs"] = PATIENCE * teacher.opt.early_stop_epochs
    if is_resampled(teacher.dataset):  # all videos have one length, whatever their speed
        patient["dataset"] = {"speeds": [1.0]}
    model = {"modalities": list(kept), "backbone_arch": [1, 1, teacher.model.backbone_arch[2]], "block_kernel_size": KERNEL,
             "embd_dim": width, "fpn_dim": width, "head_dim": width}
    return [
        Stage("_base", "What all stages share.", {BASE: base, "output_folder": runs}),
        Stage("teacher", "The teacher, on all its streams.", {BASE: "_base.yaml"}),
        Stage("teacher_long", "The same with the student's steps, speeds and blended videos.",
              {BASE: ["teacher.yaml", augmentation], **patient}),
        Stage("baseline", "The teacher's architecture on the streams that the student keeps.",
              {BASE: "teacher.yaml", "model": {"modalities": list(kept)}}),
        Stage("student", "The student to use.",
              {BASE: ["_base.yaml", recipe], "model": model, **patient,
               "distill": {"teachers": [{"checkpoint": f"{runs}teacher_{{run}}"}]}}),
        Stage("student_alone", "The student's architecture without a teacher, which needs blended annotations.",
              {BASE: "student.yaml", "train_cfg": {"mixup": 0.2}, "distill": {"teachers": [], "mixup": 0}}),
    ]


def _write(stages: Sequence[Stage], folder: Path) -> None:
    """Write the files; their BASE becomes relative to the folder."""
    for stage in stages:
        bases = stage.keys[BASE] if isinstance(stage.keys[BASE], list) else [stage.keys[BASE]]
        shown = [os.path.relpath(base, folder.resolve()) if isinstance(base, Path) else base for base in bases]
        keys = {**stage.keys, BASE: shown[0] if len(shown) == 1 else shown}
        write_text_atomic(folder / f"{stage.name}.yaml", f"# {stage.about}\n{dump(keys)}")
