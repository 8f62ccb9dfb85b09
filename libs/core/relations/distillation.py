"""Relations between the keys of the distill section, and to other sections."""
from __future__ import annotations

import re

from libs.core.errors import nearest
from libs.core.relations.fail import Fail
from libs.core.schema import PART, Config, DistillConfig

TERMS = ("cls", "offsets", "stem", "pyramid", "inputs")  # distillation losses


def check_teachers(config: Config, fail: Fail) -> None:
    """The entries of distill.teachers, and what names them."""
    distill = config.distill
    if distill.stage is not None and distill.preset != "c2ms":
        fail("distill.stage", f"{distill.stage} is a stage of preset: c2ms; remove it, or set distill.preset: c2ms")
    if not distill.teachers:
        if distill.init_from is not None:
            fail("distill.init_from", f"{distill.init_from!r}: no distill.teachers; add one, or use train.py --init-from")
        return
    names = teacher_names(distill)
    wanted = 2 if distill.stage == "multi_teacher" else 1
    if distill.stage is not None and len(names) != wanted:
        fail("distill.teachers", f"stage {distill.stage} has {wanted} teacher{'s' if wanted > 1 else ''}, the list names "
             f"{len(names)} ({', '.join(names)}); correct the list, or leave distill.stage out and set the weights")
    if len(set(names)) < len(names):
        fail("distill.teachers", f"the names {', '.join(names)} are not all different; name each")
    if distill.pseudo_labels and distill.teachers[0].cross_fit is not None:
        fail("distill.pseudo_labels", f"{distill.pseudo_labels}: the first teacher, {names[0]}, annotates, but has cross_fit; "
             "put a teacher of one network first, or use 0")
    for name, teacher in zip(names, distill.teachers, strict=True):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            fail("distill.teachers", f"name: {name!r}: use letters, digits, _ and - only")
        if not teacher.checkpoint:
            fail("distill.teachers", f"{name}: checkpoint is empty; name a checkpoint file or the folder of a run")
        if (teacher.cross_fit is not None) != (PART in teacher.checkpoint):
            fail("distill.teachers", f"{name}: checkpoint: {teacher.checkpoint}: {PART} and cross_fit belong together; write a "
                 f"path with {PART} and cross_fit: N for N networks, or neither")
        if teacher.cross_fit is not None and teacher.config is not None:
            fail("distill.teachers", f"{name}: config: {teacher.config}: the configuration in each checkpoint of cross_fit says "
                 "what it was trained without; leave config out")
        if teacher.cross_fit is not None and distill.outputs == "online":
            fail("distill.outputs", f"online: teacher {name} has cross_fit: {teacher.cross_fit}, and which of its networks "
                 "teaches depends on the video; use outputs: cache")
        for term in teacher.terms or ():
            if term not in TERMS:
                fail("distill.teachers", f"{name}: terms: {term!r} is not a term{nearest(term, TERMS)}; use {', '.join(TERMS)}")
    if distill.init_from is not None and distill.init_from not in names:
        fail("distill.init_from", f"{distill.init_from!r} is not the name of a teacher; use {', '.join(names)}")


def check_distillation(config: Config, fail: Fail) -> None:
    """Distillation terms, mixup and cached teacher outputs against the other sections."""
    distill, model = config.distill, config.model
    if not distill.teachers:
        return
    if distill.inputs.weight and model.hallucinator == "none":
        fail("distill.inputs.weight", "the term compares hallucinated with real modalities, but model.hallucinator is none; set "
             "the weight to 0, or choose a hallucinator")
    if distill.outputs == "online":
        return
    coarsest = model.scale_factor ** model.backbone_arch[2]
    if config.dataset.crop_align % coarsest:
        fail("dataset.crop_align", f"{config.dataset.crop_align}: cached teacher outputs are cropped on every FPN level, so "
             f"crops must start at multiples of the coarsest stride; use {coarsest}, or distill.outputs: online")
    if distill.mixup:
        fail("distill.mixup", f"{distill.mixup}: teacher outputs of blended videos cannot be cached; use distill.outputs: "
             "online, or mixup: 0")
    if config.train_cfg.swap_actions:
        fail("train_cfg.swap_actions", f"{config.train_cfg.swap_actions:g}: teacher outputs of swapped actions cannot be cached; "
             "use distill.outputs: online, or swap_actions: 0")
    if distill.teacher_droppath:
        fail("distill.teacher_droppath", "the outputs of a teacher that drops paths differ in every step and cannot be cached; "
             "use distill.outputs: online")


def teacher_names(distill: DistillConfig) -> list[str]:
    """The names of distill.teachers: as given, else teacher (one) or teacher1, teacher2, ..."""
    several = len(distill.teachers) > 1
    return [t.name or (f"teacher{i}" if several else "teacher") for i, t in enumerate(distill.teachers, start=1)]
