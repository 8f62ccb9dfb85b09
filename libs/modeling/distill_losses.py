"""Distillation losses: what a student's outputs and features cost against those of one or several teachers.

Terms (SPEC section 12): `cls` class logits, `offsets`, `stem` finest backbone feature, `pyramid` features of all FPN levels,
`inputs` what the backbones see (hallucinated against real modalities).  Two presets fill in whatever the configuration leaves
open: `corrected` (default) and `c2ms`, the published formulae.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.core.checks import TERMS, teacher_names
from libs.core.errors import UserError
from libs.core.schema import ClsTerm, Config, DistillConfig, FeatureTerm, OffsetTerm
from libs.modeling.losses import Sums, diou_loss
from libs.modeling.model import Features, LevelOutputs
from libs.modeling.points import PointGrid

EPS = 1e-8

CORRECTED: dict[str, Any] = {
    "det_weight": 1.0, "weight": 1.0,
    "cls": {"weight": 100.0, "temperature": 1.0, "loss": "sigmoid_kl", "focus": 1.0, "mask": True, "reduction": "points"},
    "offsets": {"weight": 1.0, "loss": "diou", "points": "confident", "mask": True, "reduction": "points"},
    "stem": {"weight": 0.0, "mask": True},
    "pyramid": {"weight": 0.0, "mask": True},
    "inputs": {"weight": 1.0, "mask": True},
}
C2MS: dict[str, Any] = {
    "det_weight": 0.4, "weight": 0.6,
    "cls": {"weight": 1.0, "temperature": 2.0, "loss": "softmax_kl", "focus": 0.0, "mask": False, "reduction": "levels"},
    "offsets": {"weight": 1.0, "loss": "mse", "points": "all", "mask": False, "reduction": "levels"},
    "stem": {"weight": 1.0, "mask": False},
    "pyramid": {"weight": 0.0, "mask": False},
    "inputs": {"weight": 1.0, "mask": False},
}
# published weights per stage: the common weight (lambda, or lambda tau^2) and per teacher the factor of every term
STRUCTURE = (0.6, ({"stem": 1.0, "offsets": 1.0, "cls": 0.04},))
C2MS_STAGES: dict[str, tuple[float, tuple[dict[str, float], ...]]] = {
    "structure_teacher": STRUCTURE,
    "cross_modal": (0.6, ({"inputs": 5.0, "offsets": 1.0, "cls": 0.4},)),
    "cross_structure": STRUCTURE,
    "multi_teacher": (2.4, ({"inputs": 5.0, "offsets": 0.8, "cls": 0.08}, {"stem": 1.0, "offsets": 0.2, "cls": 0.02})),
}


class TeacherOutputs(NamedTuple):
    """What one teacher says about a batch of B videos padded to T steps, with P points; None where no term needs it."""

    logits: Tensor  # (B, P, K)
    offsets: Tensor  # (B, P, 2), level strides
    stem: Tensor | None = None  # (B, T, C)
    pyramid: Tensor | None = None  # (B, P, C)
    inputs: Tensor | None = None  # (B, T, C_in), channels in the student's order


@dataclass(frozen=True)
class TeacherSpec:
    """What the loss must know of a teacher: its name, the factor of every term (0: off), the widths of its features."""

    name: str
    factors: Mapping[str, float]
    stem_dim: int
    pyramid_dim: int


def resolve(config: Config) -> DistillConfig:
    """The distill section with every open value filled in from its preset, and `terms` of every teacher complete.

    The weight of a term and a teacher is the product of `distill.weight`, the term's weight and the teacher's factor.  A student
    that hallucinates nothing has no `inputs` term; UserError where a teacher's terms ask for one.
    """
    distill = config.distill
    preset = C2MS if distill.preset == "c2ms" else CORRECTED
    common, factors = preset["weight"], None
    if distill.stage is not None:
        common, factors = C2MS_STAGES[distill.stage]
    teachers = []
    for i, teacher in enumerate(distill.teachers):
        given = teacher.terms
        if given is None:
            given = dict.fromkeys(TERMS, 1.0) if factors is None else factors[min(i, len(factors) - 1)]
        teachers.append(dataclasses.replace(teacher, terms={term: float(given.get(term, 0.0)) for term in TERMS}))
    filled = {term: _fill(getattr(distill, term), preset[term]) for term in TERMS}
    if config.model.hallucinator == "none":
        for name, teacher in zip(teacher_names(distill), distill.teachers, strict=True):
            if (teacher.terms or {}).get("inputs") and filled["inputs"].weight:
                raise UserError(f"{config.source}: distill.teachers: {name}: terms: inputs: compares hallucinated with real "
                                "modalities, but model.hallucinator is none; take it out, or choose a hallucinator")
        filled["inputs"] = dataclasses.replace(filled["inputs"], weight=0.0)
    return dataclasses.replace(
        distill, teachers=tuple(teachers), weight=common if distill.weight is None else distill.weight,
        det_weight=preset["det_weight"] if distill.det_weight is None else distill.det_weight, **filled)


def _fill(term: Any, defaults: Mapping[str, Any]) -> Any:
    return dataclasses.replace(term, **{k: v for k, v in defaults.items() if getattr(term, k) is None})


def softmax_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) between softmaxes over classes of logits (..., K) / temperature -> (...) (Hinton et al. 2015)."""
    log_t, log_s = (F.log_softmax(z / temperature, dim=-1) for z in (teacher, student))
    return (log_t.exp() * (log_t - log_s)).sum(-1)


def sigmoid_kl(student: Tensor, teacher: Tensor, temperature: float, focus: float = 0.0) -> Tensor:
    """KL(teacher || student) of one Bernoulli variable per class, logits (..., K) / temperature, summed over classes -> (...).

    With `focus` > 0 every class is weighted by |p_S - p_t| ** focus (a constant to the gradient), as the focal loss weighs its
    classes (Lin et al. 2017; Li et al., Generalized focal loss, 2020): points on which both agree, most of the background, fade.
    """
    s, t = student / temperature, teacher / temperature
    p = torch.sigmoid(t)
    # p log(p / q) + (1 - p) log((1 - p) / (1 - q)), with log q = s - softplus(s) and log(1 - q) = -softplus(s)
    divergence = p * (t - s) + F.softplus(s) - F.softplus(t)
    if focus > 0:
        divergence = divergence * (torch.sigmoid(s.detach()) - p).abs() ** focus
    return divergence.sum(-1)


def class_sum(mask_BP: Tensor, sizes: Sequence[int], term: ClsTerm) -> Tensor:
    """What `class_term` divides by, float32 (): B x levels, or the number of points that count."""
    if term.reduction == "levels":
        return _filled(mask_BP, len(mask_BP) * len(sizes))
    return mask_BP.sum().to(torch.float32) if term.mask else _filled(mask_BP, mask_BP.numel())


def class_term(student: Tensor, teacher: Tensor, mask_BP: Tensor, sizes: Sequence[int], term: ClsTerm,
               total: Tensor | None = None) -> Tensor:
    """Scalar KL of class logits (B, P, K); `sizes` are the points per level.

    Reduction `levels`: per level the sum over points / B, then the mean over levels (published); `points`: the mean over points.
    `total`, here and in the other terms: the sum to divide by where this is a part of a batch (that of the whole one); None: its
    own.
    """
    total = class_sum(mask_BP, sizes, term) if total is None else total
    if term.loss == "softmax_kl":
        divergence = softmax_kl(student.float(), teacher.float(), term.temperature)
    else:
        divergence = sigmoid_kl(student.float(), teacher.float(), term.temperature, term.focus)
    weighted = torch.where(mask_BP, divergence, 0.0) if term.mask else divergence
    return weighted.sum() / total.clamp(min=1.0)


def offset_weight(teacher_logits: Tensor, positive_BP: Tensor, mask_BP: Tensor, term: OffsetTerm) -> Tensor:
    """(B, P) float32: how much a point counts in `offset_term`."""
    weight = torch.ones_like(mask_BP, dtype=torch.float32)
    if term.points == "confident":
        score = torch.sigmoid(teacher_logits.float()).amax(-1)
        weight = score * (positive_BP | (score > term.score_thresh))
    return weight * mask_BP if term.mask else weight


def offset_sum(weight_BP: Tensor, sizes: Sequence[int], term: OffsetTerm) -> Tensor:
    """What `offset_term` divides by: its weights added up, float32 (), or (levels,) for reduction `levels`."""
    if term.reduction == "points":
        return weight_BP.sum()
    return torch.stack([w.sum() for w in weight_BP.split(list(sizes), dim=1)])


def offset_term(student: Tensor, teacher: Tensor, teacher_logits: Tensor, positive_BP: Tensor, mask_BP: Tensor,
                sizes: Sequence[int], term: OffsetTerm, total: Tensor | None = None) -> Tensor:
    """Scalar loss of offsets (B, P, 2) in level strides; `positive_BP`: points with a ground-truth segment.

    Points `confident`: those, and points where the teacher's best class probability exceeds `score_thresh`, both weighted by that
    probability.  Reduction `levels`: weighted mean per level, then the mean over levels; `points`: one weighted mean.
    """
    weight = offset_weight(teacher_logits, positive_BP, mask_BP, term)
    total = offset_sum(weight, sizes, term) if total is None else total
    # elsewhere a constant against itself: no gradient, and none where both agree (DIoU of two segments without length is 1)
    used = ((weight > 0) & (student != teacher).any(-1)).unsqueeze(-1)
    s, t = (torch.where(used, x.float(), 1.0) for x in (student, teacher))
    error = diou_loss(s, t) if term.loss == "diou" else (s - t).square().mean(-1)
    return (offset_sum(weight * error, sizes, term) / total.clamp(min=EPS)).mean()


def feature_sum(teacher: Tensor, mask_BT: Tensor, term: FeatureTerm) -> Tensor:
    """What `feature_term` divides by, float32 (): the number of compared values."""
    if not term.mask:
        return _filled(teacher, teacher.numel())
    return (mask_BT.sum() * teacher.shape[-1]).to(torch.float32)


def feature_term(student: Tensor, teacher: Tensor, mask_BT: Tensor, term: FeatureTerm, total: Tensor | None = None) -> Tensor:
    """Scalar mean squared error of features (B, T, C), over all steps or the valid ones."""
    total = feature_sum(teacher, mask_BT, term) if total is None else total
    error = (student.float() - teacher.float()).square()
    if term.mask:
        error = torch.where(mask_BT.unsqueeze(-1), error, 0.0)
    return error.sum() / total.clamp(min=1.0)


def _filled(like: Tensor, value: float) -> Tensor:
    return torch.full((), value, dtype=torch.float32, device=like.device)


class DistillationLoss(nn.Module):
    """All terms against all teachers.  Its only parameters are 1x1 projections of student features to a teacher's width, where
    the widths differ; they are named `projections.<teacher>_<term>`."""

    def __init__(self, distill: DistillConfig, teachers: Sequence[TeacherSpec], stem_dim: int, pyramid_dim: int):
        super().__init__()
        self.settings, self.teachers = distill, tuple(teachers)
        self.projections = nn.ModuleDict()
        for teacher in teachers:
            for term, own, wanted in (("stem", stem_dim, teacher.stem_dim), ("pyramid", pyramid_dim, teacher.pyramid_dim)):
                if self.weight(teacher, term) > 0 and own != wanted:
                    self.projections[f"{teacher.name}_{term}"] = nn.Linear(own, wanted)

    def weight(self, teacher: TeacherSpec, term: str) -> float:
        """The factor of a term and a teacher in the total loss."""
        return self.settings.weight * getattr(self.settings, term).weight * teacher.factors.get(term, 0.0)

    def terms(self, teacher: TeacherSpec) -> list[str]:
        """The terms of a teacher that count."""
        return [term for term in TERMS if self.weight(teacher, term) != 0]

    def needs(self, term: str) -> bool:
        """Whether any teacher's `term` counts."""
        return any(self.weight(teacher, term) > 0 for teacher in self.teachers)

    def compared(self, said: Sequence[TeacherOutputs]) -> list[TeacherOutputs]:
        """What teachers have said, without the features that no term compares (they are large)."""
        return [t._replace(**{term: None for term in ("stem", "pyramid", "inputs") if term not in self.terms(teacher)})
                for teacher, t in zip(self.teachers, said, strict=True)]

    @torch.no_grad()
    def sums(self, grid: LevelOutputs | PointGrid, mask_BT: Tensor, positive_BP: Tensor,
             said: Sequence[TeacherOutputs]) -> Sums:
        """What every term of a batch, or of a part of one, is divided by: `<term>_<teacher>` -> a sum.  Needs no student."""
        cfg, sizes, found = self.settings, grid.level_sizes, {}
        for teacher, t in zip(self.teachers, said, strict=True):
            for term in self.terms(teacher):
                if term == "cls":
                    value = class_sum(grid.mask, sizes, cfg.cls)
                elif term == "offsets":
                    value = offset_sum(offset_weight(t.logits, positive_BP, grid.mask, cfg.offsets), sizes, cfg.offsets)
                else:
                    value = feature_sum(getattr(t, term), grid.mask if term == "pyramid" else mask_BT, getattr(cfg, term))
                found[f"{term}_{teacher.name}"] = value
        return found

    def forward(self, outputs: LevelOutputs, features: Features, mask_BT: Tensor, positive_BP: Tensor,
                said: Sequence[TeacherOutputs], sums: Sums | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """(weighted sum of all terms, every term by name: `<term>_<teacher>`, before any weight).

        `sums`: those of the whole batch where this is a part of one; None: its own.
        """
        loss, values = outputs.logits.new_zeros(()), {}
        pyramid = torch.cat(features.levels, dim=1) if self.needs("pyramid") else None
        cfg, mask_BP, sizes = self.settings, outputs.mask, outputs.level_sizes
        for teacher, t in zip(self.teachers, said, strict=True):
            for term in self.terms(teacher):
                name, total = f"{teacher.name}_{term}", None if sums is None else sums[f"{term}_{teacher.name}"]
                if term == "cls":
                    value = class_term(outputs.logits, t.logits, mask_BP, sizes, cfg.cls, total)
                elif term == "offsets":
                    value = offset_term(outputs.offsets, t.offsets, t.logits, positive_BP, mask_BP, sizes, cfg.offsets, total)
                elif term == "stem":
                    value = feature_term(self._project(name, features.stem), t.stem, mask_BT, cfg.stem, total)
                elif term == "pyramid":
                    value = feature_term(self._project(name, pyramid), t.pyramid, mask_BP, cfg.pyramid, total)
                else:
                    value = feature_term(features.inputs, t.inputs, mask_BT, cfg.inputs, total)
                values[f"{term}_{teacher.name}"] = value
                loss = loss + self.weight(teacher, term) * value
        return loss, values

    def _project(self, name: str, x: Tensor) -> Tensor:
        return self.projections[name](x) if name in self.projections else x
