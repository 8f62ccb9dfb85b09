"""What a training step minimises.  The loop calls `objective(batch) -> Losses` and never changes with it."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from libs.core.checks import TERMS
from libs.core.errors import UserError
from libs.core.schema import Config, DistillConfig
from libs.datasets.loader import Batch
from libs.engine.distill.teacher_cache import CachedTeachers
from libs.engine.distill.teachers import Columns, OnlineTeachers, Teacher
from libs.modeling.distill_losses import DistillationLoss, TeacherOutputs
from libs.modeling.losses import DetectionLoss, Losses, Sums
from libs.modeling.model import LocPointTransformer
from libs.modeling.targets import Targets


class Prepared(NamedTuple):
    """What is known of a batch before the student sees it; `sums`: its own, or those of the whole batch that it is a part of."""

    targets: Targets
    said: Sequence[TeacherOutputs]  # one per teacher
    sums: Sums


class DetectionObjective(nn.Module):
    """Plain training: the detection loss of one model."""

    def __init__(self, model: LocPointTransformer, config: Config):
        super().__init__()
        self.model = model
        self.criterion = DetectionLoss(config)

    def forward(self, batch: Batch, prepared: Prepared | None = None,
                everywhere: Callable[[Tensor], Tensor] | None = None) -> Losses:
        """Losses of a batch that lies on the model's device and is a whole step's.

        Of a part of one, if `prepared` is given: `prepare(batch)` with the sums of the whole batch, for a batch that `augment`
        has returned, and after `advance`; `everywhere` as in `DetectionLoss.losses`.
        """
        outputs = self.model(batch.feats, batch.mask)
        if prepared is None:
            prepared = self.prepare(batch)
            self.advance(prepared.sums)
        return self.criterion.losses(outputs, prepared.targets, everywhere)

    def augment(self, batch: Batch) -> Batch:
        """The batch as the student is to see it."""
        return batch

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Prepared:
        """Targets, teachers' outputs and sums of a batch on the model's device; neither the student nor random numbers."""
        grid = self.model.grid(batch.mask)
        targets = self.criterion.assign(grid, batch.segments, batch.labels, batch.present)
        return Prepared(targets, (), self.criterion.sums(targets, grid.mask, len(batch.mask), len(batch.mask)))

    def advance(self, sums: Sums) -> None:
        """What moves once per step, whatever the number of parts: the normaliser, by the sums of the whole batch."""
        self.criterion.advance(sums)

    @property
    def trained(self) -> tuple[nn.Module, ...]:
        """Modules that the optimizer moves: the model first, then what the objective learns beside it."""
        return (self.model,)

    def training_state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the model's weights."""
        return {"loss_normalizer": float(self.criterion.normalizer)}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore `training_state`."""
        with torch.no_grad():
            self.criterion.normalizer.fill_(state["loss_normalizer"])


class DistillationObjective(DetectionObjective):
    """Detection loss of a student, plus what its outputs and features cost against those of frozen teachers.

    `settings`: the resolved distill section; `read`: the modalities that a batch holds; attribute `said(batch)`: the teachers'
    outputs, in the order of `teachers` (see `distillation`).  The teachers are no submodules.  Raises UserError for a term that
    cannot be computed.
    """

    def __init__(self, model: LocPointTransformer, config: Config, settings: DistillConfig, teachers: Sequence[Teacher],
                 read: tuple[str, ...] | None):
        super().__init__(model, config)
        self.said: OnlineTeachers | CachedTeachers
        self.source = config.source
        if any(teacher.name == "loss" for teacher in teachers):
            raise UserError(f"{config.source}: distill.teachers: name: 'loss': its class term would be logged as cls_loss, like "
                            "the detection loss's; choose another name")
        self.det_weight, self.mixup = settings.det_weight, settings.mixup
        self.columns = Columns(config, read, config.model.modalities)
        with torch.random.fork_rng():  # with or without projections, the run draws the same numbers
            self.distillation = DistillationLoss(settings, [t.spec for t in teachers], model.backbone.width, config.model.fpn_dim)
        if settings.preset == "c2ms" and (extra := list(self.distillation.projections)):
            raise UserError(f"{config.source}: distill.preset: c2ms compares features without a projection, but the widths of "
                            f"teacher and student differ ({', '.join(extra)}); make model.embd_dim and fpn_dim equal, or set "
                            "the term's weight to 0, or use preset: corrected")

    def forward(self, batch: Batch, prepared: Prepared | None = None,
                everywhere: Callable[[Tensor], Tensor] | None = None) -> Losses:
        """Losses of a batch, or of a part: `final` is det_weight x detection + the weighted terms; each term is logged before its
        weight."""
        if prepared is None:
            batch = self.augment(batch)
        outputs, features = self.model.trace(self.columns(batch.feats), batch.mask)
        if prepared is None:
            prepared = self.prepare(batch)
            self.advance(prepared.sums)
        targets = prepared.targets
        detection = self.criterion.losses(outputs._replace(mask=_labelled_only(outputs.mask, batch)), targets, everywhere)
        extra, terms = self.distillation(outputs, features, batch.mask, targets.classes.sum(-1) > 0, prepared.said, prepared.sums)
        final = self.det_weight * detection.final + extra
        return Losses(final, {**detection.terms, "det_loss": detection.final, **terms})

    def augment(self, batch: Batch) -> Batch:
        """The batch, blended in training if distill.mixup says so."""
        return blend(batch, self.mixup) if self.mixup > 0 and self.training else batch

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Prepared:
        """As of plain training; teachers that drop paths draw random numbers."""
        grid = self.model.grid(batch.mask)
        targets = self.criterion.assign(grid, batch.segments, batch.labels, batch.present)
        videos, without = len(batch.mask), sum(not sample.labelled for sample in batch.samples)
        said = self.distillation.compared(self.said(batch))
        return Prepared(targets, said, {
            **self.criterion.sums(targets, _labelled_only(grid.mask, batch), videos, videos - without),
            **self.distillation.sums(grid, batch.mask, targets.classes.sum(-1) > 0, said)})

    @property
    def trained(self) -> tuple[nn.Module, ...]:
        return (self.model, self.distillation)

    def training_state(self) -> dict[str, Any]:
        """As of plain training, and the learned projections."""
        projections = {k: v.detach().cpu().clone() for k, v in self.distillation.state_dict().items()}
        return {**super().training_state(), "projections": projections}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore `training_state`, that of plain training too.  UserError for projections to other teachers or widths."""
        saved, own = state.get("projections", {}), self.distillation.state_dict()
        kept, wanted = ({k.removeprefix("projections."): list(v.shape) for k, v in x.items()} for x in (saved, own))
        if kept != wanted:
            raise UserError(f"{self.source}: distill.teachers: the checkpoint's projections of features are {kept or 'none'}, "
                            f"this configuration's {wanted or 'none'} (teacher_term and widths); resume with the configuration "
                            "of that run, or start with --init-from")
        super().load_training_state(state)
        self.distillation.load_state_dict(saved)


def _labelled_only(mask_BP: Tensor, batch: Batch) -> Tensor:
    """The mask of the detection loss: without the points of unlabelled videos; what is not annotated there is unknown, not
    background."""
    labelled = [sample.labelled for sample in batch.samples]
    if all(labelled):
        return mask_BP
    return mask_BP & torch.tensor(labelled).to(mask_BP.device, non_blocking=True).unsqueeze(1)


def blend(batch: Batch, share: float) -> Batch:
    """The batch with a part of the next video in every video, at its valid steps: (1 - s) x + s x', s uniform in [0, share].

    One s per video, drawn on the CPU.  The ground truth stays that of x; what x' adds, teachers see and tell (mixup, Zhang et al.
    2018, as function matching: Beyer et al., Knowledge distillation: a good teacher is patient and consistent, 2022).
    """
    s = (torch.rand(len(batch.feats), 1, 1) * share).to(batch.feats.device)
    other = batch.feats.roll(1, dims=0)
    return dataclasses.replace(batch, feats=torch.where(batch.mask.unsqueeze(-1), (1 - s) * batch.feats + s * other, 0.0))


def distillation(model: LocPointTransformer, config: Config, settings: DistillConfig, teachers: Sequence[Teacher],
                 read: tuple[str, ...] | None) -> DistillationObjective:
    """The objective of a student with online or cached teachers, as its configuration says; `read`: what a batch holds.

    Raises UserError where cached outputs cannot stand in for the teachers.
    """
    objective = DistillationObjective(model, config, settings, teachers, read)
    loss = objective.distillation
    used = {(t.name, term) for t in teachers for term in TERMS if loss.weight(t.spec, term) > 0}
    if settings.outputs == "online":
        objective.said = OnlineTeachers(config, teachers, read, used)
        return objective
    if not config.distill.cache_folder:
        raise UserError(f"{config.source}: distill.cache_folder: is empty; name a folder, e.g. ./ckpt/teacher_cache")
    if unmasked := sorted({term for _, term in used if not getattr(settings, term).mask}):
        raise UserError(f"{config.source}: distill.outputs: cached teacher outputs end where the video ends, but {unmasked[0]} "
                        f"also compares padding (mask: false, preset {settings.preset}); use outputs: online")
    objective.said = CachedTeachers(config, teachers, used)
    return objective
