"""What a training step minimizes: the detection loss, or with teachers the detection and distillation losses.

A step calls, in this order,
    part = objective.prepare(batch)                      for every micro-batch
    objective.update_normalizer(total)                   once, with the denominators of all micro-batches and processes
    losses = objective(part, total)                      for every micro-batch
and does not depend on which objective it is.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from libs.core.errors import UserError
from libs.core.relations.distillation import TERMS
from libs.core.schema import Config, DistillConfig
from libs.datasets.loading.batch import Batch
from libs.datasets.loading.mixing import blend, rolled, swap_actions
from libs.engine.distill.streams import Columns
from libs.engine.distill.teacher_cache import CachedTeachers
from libs.engine.distill.teachers import OnlineTeachers, Teacher
from libs.modeling.losses.assigner import by_cost
from libs.modeling.losses.detection import Denominators, DetectionLoss, Losses, consistency_losses
from libs.modeling.losses.distillation import DistillationLoss, TeacherOutputs
from libs.modeling.losses.targets import Targets
from libs.modeling.model import Features, LevelOutputs, LocPointTransformer
from libs.modeling.points import PointGrid


class PreparedBatch(NamedTuple):
    """A micro-batch with its targets, teacher outputs and loss denominators: all that a step needs besides the student."""

    batch: Batch  # as the student sees it, on the student's device: without what train_cfg.frame_drop hides
    grid: PointGrid
    targets: Targets  # their offsets change in the forward pass with model.assigner.type cost
    mask: Tensor  # (B, P) bool, points of the detection loss: valid ones of videos with annotations
    teacher_outputs: Sequence[TeacherOutputs]  # one per teacher
    denominators: Denominators
    share: float = 1.0  # of its losses
    other: PreparedBatch | None = None  # train_cfg.mixup: the same features, and targets of what was blended in
    whole: Tensor | None = None  # train_cfg.consistency: (B, T, C) features, with what is hidden


class DetectionObjective(nn.Module):
    """Plain training: the detection loss of one model.

    `all_reduce` sums a tensor over the processes that train together (`World.all_reduce`).
    """

    def __init__(self, model: LocPointTransformer, config: Config, all_reduce: Callable[[Tensor], Tensor] = lambda value: value):
        super().__init__()
        self.model = model
        self.criterion = DetectionLoss(config, all_reduce)
        self.assigner, self.mixup = config.model.assigner, config.train_cfg.mixup
        self.swapped = config.train_cfg.swap_actions
        self.frame_drop, self.consistency = config.train_cfg.frame_drop, config.train_cfg.consistency

    @torch.no_grad()
    def prepare(self, batch: Batch) -> PreparedBatch:
        """Targets and denominators of a batch that lies on the model's device; the student is not run.

        With train_cfg.mixup, in training: s x + (1 - s) x', x' the next video of the batch, with the loss s L(x) + (1 - s) L(x')
        of both videos' targets, one s per batch from Beta(mixup, mixup), drawn on the CPU (Zhang et al. 2018).  The targets of
        x' count at the valid steps of both.  Actions are swapped before that (train_cfg.swap_actions), and runs hidden after it
        (train_cfg.frame_drop).
        """
        if self.swapped > 0 and self.training:
            batch = swap_actions(batch, self.swapped)
        if not (self.mixup > 0 and self.training):
            return self._hide(self._prepare(batch, batch))
        other, share = rolled(batch), float(torch.distributions.Beta(self.mixup, self.mixup).sample())
        feats = torch.where(batch.mask.unsqueeze(-1), share * batch.feats + (1 - share) * other.feats, 0.0)
        first = self._prepare(dataclasses.replace(batch, feats=feats), batch)
        second = self._prepare(dataclasses.replace(other, feats=feats, mask=batch.mask & other.mask), other)
        denominators = {name: share * value + (1 - share) * second.denominators[name]
                        for name, value in first.denominators.items()}
        return self._hide(first._replace(denominators=denominators, share=share, other=second))

    def _hide(self, part: PreparedBatch) -> PreparedBatch:
        """The same with what train_cfg.frame_drop puts in place of the vectors that the student does not see."""
        if self.frame_drop.probability == 0:
            return part
        whole = part.batch.feats
        hidden = part.batch.hidden().to(whole.device, non_blocking=True)
        instead = whole.roll(1, dims=0) if self.frame_drop.fill == "other" else 0.0
        batch = dataclasses.replace(part.batch, feats=torch.where(hidden.unsqueeze(-1), instead, whole))
        return part._replace(batch=batch, whole=whole if self.consistency > 0 else None)

    def _prepare(self, batch: Batch, seen: Batch) -> PreparedBatch:
        """A batch as the student sees it, with its targets; `seen`: as the teachers see it."""
        grid = self.model.grid(batch.mask)
        targets = self.criterion.assign(grid.points, batch.segments, batch.labels, batch.present)
        videos = len(batch.mask)
        labelled = videos - sum(not sample.labelled for sample in batch.samples)
        mask = _labelled_only(grid.mask, batch)
        return PreparedBatch(batch, grid, targets, mask, (), self.criterion.denominators(targets, mask, videos, labelled))

    def update_normalizer(self, denominators: Denominators) -> None:
        """Move the running loss normalizer, once per step; `denominators`: those of the whole step."""
        if not self.assigner.weighted:
            self.criterion.update_normalizer(denominators)

    @torch.no_grad()
    def complete(self, part: PreparedBatch, outputs: LevelOutputs, denominators: Denominators) -> Targets:
        """The targets of `prepare`; with model.assigner.type cost, of the regression those that fit the predictions.

        Weights of positives depend on predictions too, so that with them the normalizer moves here, in a step of one batch.
        """
        if self.assigner.type == "center":
            return part.targets
        batch = part.batch
        targets = by_cost(part.targets, outputs, batch.segments, batch.labels, batch.present, self.assigner)
        if self.assigner.weighted:
            weight = torch.where(targets.positive & part.mask, 1.0 if targets.weights is None else targets.weights, 0.0).sum()
            self.criterion.update_normalizer({**denominators, "positives": self.criterion.all_reduce(weight)})
        return targets

    def forward(self, part: PreparedBatch, denominators: Denominators) -> Losses:
        """Losses of a micro-batch; `denominators`: those of the whole step, which `update_normalizer` has seen."""
        outputs, features = self._run(part)
        clean = self._run_on_whole(part)
        losses = self._consistent(self._losses(part, outputs, features, denominators), part, outputs, clean, denominators)
        if part.other is None:
            return losses
        others = self._losses(part.other, outputs._replace(mask=part.other.grid.mask), features, denominators)
        others = self._consistent(others, part.other, outputs, clean, denominators)
        return Losses(part.share * losses.final + (1 - part.share) * others.final,
                      {name: part.share * value + (1 - part.share) * others.terms[name] for name, value in losses.terms.items()})

    def _run(self, part: PreparedBatch) -> tuple[LevelOutputs, Features | None]:
        """The student's outputs, and the features that teachers compare."""
        return self.model(part.batch.feats, part.batch.mask, part.grid), None

    def _losses(self, part: PreparedBatch, outputs: LevelOutputs, features: Features | None, denominators: Denominators
                ) -> Losses:
        return self.criterion(outputs, self.complete(part, outputs, denominators), part.mask)

    @torch.no_grad()
    def _run_on_whole(self, part: PreparedBatch) -> LevelOutputs | None:
        """The student's outputs for the features with what is hidden; None without train_cfg.consistency."""
        if part.whole is None:
            return None
        return self._run(part._replace(batch=dataclasses.replace(part.batch, feats=part.whole)))[0]

    def _consistent(self, losses: Losses, part: PreparedBatch, outputs: LevelOutputs, clean: LevelOutputs | None,
                    denominators: Denominators) -> Losses:
        """The losses with the weighted consistency losses added, if there are `clean` outputs."""
        if clean is None:
            return losses
        terms = consistency_losses(outputs, clean, part.targets, part.targets.positive & part.mask, denominators["positives"])
        return Losses(losses.final + self.consistency * sum(terms.values()), {**losses.terms, **terms})

    @property
    def trainable_modules(self) -> tuple[nn.Module, ...]:
        """Modules whose parameters the optimizer updates: the model, then what the objective learns beside it."""
        return (self.model,)

    def training_state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the model's weights."""
        return {"loss_normalizer": float(self.criterion.normalizer)}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore `training_state`."""
        with torch.no_grad():
            self.criterion.normalizer.fill_(state["loss_normalizer"])


class DistillationObjective(DetectionObjective):
    """Detection loss of a student plus distillation losses against frozen teachers.

    `settings`: the resolved distill section; `streams`: the modalities that a batch holds (None: all channels); attribute
    `teacher_outputs(batch)`: the teachers' outputs, online or cached.  The teachers are no submodules.  Raises UserError for a
    term that cannot be computed, and where cached outputs cannot stand in for the teachers.
    """

    def __init__(self, model: LocPointTransformer, config: Config, settings: DistillConfig, teachers: Sequence[Teacher],
                 streams: tuple[str, ...] | None, all_reduce: Callable[[Tensor], Tensor] = lambda value: value):
        super().__init__(model, config, all_reduce)
        self.source = config.source
        if any(teacher.name == "loss" for teacher in teachers):
            raise UserError(f"{config.source}: distill.teachers: name: 'loss': its class term would be logged as cls_loss, like "
                            "the detection loss's; choose another name")
        self.det_weight, self.blended = settings.det_weight, settings.mixup
        self.columns = Columns(config, streams, config.model.modalities)
        with torch.random.fork_rng():  # with or without projections, the run draws the same numbers
            self.distillation = DistillationLoss(settings, [t.spec for t in teachers], model.backbone.width, config.model.fpn_dim)
        if settings.preset == "c2ms" and (extra := list(self.distillation.projections)):
            raise UserError(f"{config.source}: distill.preset: c2ms compares features without a projection, but the widths of "
                            f"teacher and student differ ({', '.join(extra)}); make model.embd_dim and fpn_dim equal, or set "
                            "the term's weight to 0, or use preset: corrected")
        self.teacher_outputs = _teacher_outputs(config, settings, self.distillation, teachers, streams)

    def _prepare(self, batch: Batch, seen: Batch) -> PreparedBatch:
        """As in plain training, with the teachers' outputs; in training the batch is blended first if distill.mixup says so."""
        if self.blended > 0 and self.training:
            batch = seen = blend(batch, self.blended)
        part = super()._prepare(batch, seen)
        outputs = self.distillation.without_unused(self.teacher_outputs(seen))
        extra = self.distillation.denominators(part.grid, batch.mask, part.targets.positive, outputs)
        return part._replace(teacher_outputs=outputs, denominators={**part.denominators, **extra})

    def _run(self, part: PreparedBatch) -> tuple[LevelOutputs, Features | None]:
        return self.model.trace(self.columns(part.batch.feats), part.batch.mask, part.grid)

    def _losses(self, part: PreparedBatch, outputs: LevelOutputs, features: Features | None, denominators: Denominators
                ) -> Losses:
        """`final` is det_weight x detection + the weighted terms; terms are logged before any weight."""
        detection = self.criterion(outputs, self.complete(part, outputs, denominators), part.mask)
        distillation, terms = self.distillation(outputs, features, part.batch.mask, part.targets.positive, part.teacher_outputs,
                                                denominators)
        final = self.det_weight * detection.final + distillation
        return Losses(final, {**detection.terms, "det_loss": detection.final, **terms})

    @property
    def trainable_modules(self) -> tuple[nn.Module, ...]:
        return (self.model, self.distillation)

    def training_state(self) -> dict[str, Any]:
        """As in plain training, and the learned projections."""
        projections = {k: v.detach().cpu().clone() for k, v in self.distillation.state_dict().items()}
        return {**super().training_state(), "projections": projections}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore `training_state`, also that of plain training.  UserError for projections to other teachers or widths."""
        saved, own = state.get("projections", {}), self.distillation.state_dict()
        kept, wanted = ({k.removeprefix("projections."): list(v.shape) for k, v in x.items()} for x in (saved, own))
        if kept != wanted:
            raise UserError(f"{self.source}: distill.teachers: the checkpoint's projections of features are {kept or 'none'}, "
                            f"this configuration's {wanted or 'none'} (teacher_term and widths); resume with the configuration "
                            "of that run, or start with --init-from")
        super().load_training_state(state)
        self.distillation.load_state_dict(saved)


def _labelled_only(mask_BP: Tensor, batch: Batch) -> Tensor:
    """The mask without the points of videos without annotations: what happens there is unknown, not background."""
    labelled = [sample.labelled for sample in batch.samples]
    if all(labelled):
        return mask_BP
    return mask_BP & torch.tensor(labelled).to(mask_BP.device, non_blocking=True).unsqueeze(1)


def _teacher_outputs(config: Config, settings: DistillConfig, loss: DistillationLoss, teachers: Sequence[Teacher],
                     streams: tuple[str, ...] | None) -> OnlineTeachers | CachedTeachers:
    """Where teacher outputs come from, as distill.outputs says."""
    used = {(t.name, term) for t in teachers for term in TERMS if loss.weight(t.spec, term) > 0}
    if settings.outputs == "online":
        return OnlineTeachers(config, teachers, streams, used)
    if not config.distill.cache_folder:
        raise UserError(f"{config.source}: distill.cache_folder: is empty; name a folder, e.g. ./ckpt/teacher_cache")
    if unmasked := sorted({term for _, term in used if not getattr(settings, term).mask}):
        raise UserError(f"{config.source}: distill.outputs: cached teacher outputs end where the video ends, but {unmasked[0]} "
                        f"also compares padding (mask: false, preset {settings.preset}); use outputs: online")
    return CachedTeachers(config, teachers, used)
