"""Distillation losses: a student's outputs and features compared with those of one or several teachers.

Terms (SPEC section 12): `cls` class logits, `offsets`, `stem` finest backbone feature, `pyramid` features of all FPN levels,
`inputs` inputs of the backbones (hallucinated against real modalities).  Two presets fill in the values that the configuration
leaves open: `corrected` (default) and `c2ms`, the published formulae.

Every term is a sum divided by a denominator that does not depend on the student, so it can be added up over the micro-batches
and processes of a step before the forward pass.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libs.core.errors import UserError
from libs.core.relations.distillation import TERMS, teacher_names
from libs.core.schema import ClsTerm, Config, DistillConfig, FeatureTerm, OffsetTerm
from libs.modeling.losses.detection import Denominators, diou_loss
from libs.modeling.model import Features, LevelOutputs
from libs.modeling.points import PointGrid

EPS = 1e-8
FEATURES = ("stem", "pyramid", "inputs")  # terms that compare the feature of their name

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
    """One teacher's outputs and features of B videos padded to T steps, with P points; None where no term needs them."""

    logits: Tensor  # (B, P, K)
    offsets: Tensor  # (B, P, 2), level strides; where they differ by class, those of its most likely class
    stem: Tensor | None = None  # (B, T, C)
    pyramid: Tensor | None = None  # (B, P, C)
    inputs: Tensor | None = None  # (B, T, C_in), channels in the student's order


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher: its name, the factor of every term (0: off), the widths of its features."""

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


def resolved(value: float | None) -> float:
    """A value of a section that `resolve` has returned; ValueError if it is open."""
    if value is None:
        raise ValueError("an open value of the distill section: call resolve first")
    return value


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


def class_denominator(mask_BP: Tensor, sizes: Sequence[int], term: ClsTerm) -> Tensor:
    """Denominator of `class_term`, float32 (): B x levels, or the number of points that count."""
    if term.reduction == "levels":
        return _filled(mask_BP, len(mask_BP) * len(sizes))
    return mask_BP.sum().to(torch.float32) if term.mask else _filled(mask_BP, mask_BP.numel())


def class_term(student: Tensor, teacher: Tensor, mask_BP: Tensor, term: ClsTerm, denominator: Tensor) -> Tensor:
    """Scalar KL of class logits (B, P, K).

    Reduction `levels`: per level the sum over points / B, then the mean over levels (published); `points`: the mean over points.
    """
    if term.loss == "softmax_kl":
        divergence = softmax_kl(student.float(), teacher.float(), resolved(term.temperature))
    else:
        divergence = sigmoid_kl(student.float(), teacher.float(), resolved(term.temperature), resolved(term.focus))
    weighted = torch.where(mask_BP, divergence, 0.0) if term.mask else divergence
    return weighted.sum() / denominator.clamp(min=1.0)


def offset_weight(teacher_logits: Tensor, positive_BP: Tensor, mask_BP: Tensor, term: OffsetTerm) -> Tensor:
    """(B, P) float32 weight of every point in `offset_term`.

    Points `confident`: positive points, and points where the teacher's highest class probability exceeds `score_thresh`, both
    weighted by that probability; `all`: every point has weight 1.
    """
    weight = torch.ones_like(mask_BP, dtype=torch.float32)
    if term.points == "confident":
        score = torch.sigmoid(teacher_logits.float()).amax(-1)
        weight = score * (positive_BP | (score > term.score_thresh))
    return weight * mask_BP if term.mask else weight


def sum_of_points(values_BP: Tensor, sizes: Sequence[int], term: OffsetTerm) -> Tensor:
    """Values (B, P) summed over all points, (), or for reduction `levels` per level, (levels,).

    Of the weights of points this is the denominator of `offset_term`.
    """
    if term.reduction == "points":
        return values_BP.sum()
    return torch.stack([level.sum() for level in values_BP.split(list(sizes), dim=1)])


def offset_term(student: Tensor, teacher: Tensor, weight_BP: Tensor, sizes: Sequence[int], term: OffsetTerm,
                denominator: Tensor) -> Tensor:
    """Scalar loss of offsets (B, P, 2) in level strides, each point weighted by `offset_weight`.

    Reduction `levels`: weighted mean per level, then the mean over levels; `points`: one weighted mean.
    """
    # elsewhere a constant against itself: no gradient, and none where both agree (DIoU of two segments without length is 1)
    used = ((weight_BP > 0) & (student != teacher).any(-1)).unsqueeze(-1)
    s, t = (torch.where(used, x.float(), 1.0) for x in (student, teacher))
    error = diou_loss(s, t) if term.loss == "diou" else (s - t).square().mean(-1)
    return (sum_of_points(weight_BP * error, sizes, term) / denominator.clamp(min=EPS)).mean()


def feature_denominator(teacher: Tensor, mask_BT: Tensor, term: FeatureTerm) -> Tensor:
    """Denominator of `feature_term`, float32 (): the number of compared values."""
    if not term.mask:
        return _filled(teacher, teacher.numel())
    return (mask_BT.sum() * teacher.shape[-1]).to(torch.float32)


def feature_term(student: Tensor, teacher: Tensor, mask_BT: Tensor, term: FeatureTerm, denominator: Tensor) -> Tensor:
    """Scalar mean squared error of features (B, T, C), over all steps or the valid ones."""
    error = (student.float() - teacher.float()).square()
    if term.mask:
        error = torch.where(mask_BT.unsqueeze(-1), error, 0.0)
    return error.sum() / denominator.clamp(min=1.0)


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

    def without_unused(self, teacher_outputs: Sequence[TeacherOutputs]) -> list[TeacherOutputs]:
        """The teachers' outputs without features that no term compares (they are large)."""
        kept = []
        for teacher, t in zip(self.teachers, teacher_outputs, strict=True):
            compared = {term for term in self.terms(teacher) if term in FEATURES}
            kept.append(TeacherOutputs(t.logits, t.offsets, **{name: getattr(t, name) for name in compared}))
        return kept

    @torch.no_grad()
    def denominators(self, grid: PointGrid, mask_BT: Tensor, positive_BP: Tensor,
                     teacher_outputs: Sequence[TeacherOutputs]) -> Denominators:
        """The denominator of every term of a micro-batch, by its logged name `<term>_<teacher>`."""
        cfg, found = self.settings, {}
        for teacher, t in zip(self.teachers, teacher_outputs, strict=True):
            for term in self.terms(teacher):
                if term == "cls":
                    value = class_denominator(grid.mask, grid.level_sizes, cfg.cls)
                elif term == "offsets":
                    weight = offset_weight(t.logits, positive_BP, grid.mask, cfg.offsets)
                    value = sum_of_points(weight, grid.level_sizes, cfg.offsets)
                else:
                    value = feature_denominator(getattr(t, term), grid.mask if term == "pyramid" else mask_BT, getattr(cfg, term))
                found[f"{term}_{teacher.name}"] = value
        return found

    def forward(self, outputs: LevelOutputs, features: Features, mask_BT: Tensor, positive_BP: Tensor,
                teacher_outputs: Sequence[TeacherOutputs], denominators: Denominators) -> tuple[Tensor, dict[str, Tensor]]:
        """(weighted sum of all terms, every term before any weight by its logged name `<term>_<teacher>`).

        `positive_BP`: points with a ground-truth segment; `denominators`: those of the whole step.
        """
        loss, values = outputs.logits.new_zeros(()), {}
        cfg, mask_BP, sizes = self.settings, outputs.mask, outputs.level_sizes
        for teacher, t in zip(self.teachers, teacher_outputs, strict=True):
            for term in self.terms(teacher):
                name = f"{term}_{teacher.name}"
                denominator = denominators[name]
                if term == "cls":
                    value = class_term(outputs.logits, t.logits, mask_BP, cfg.cls, denominator)
                elif term == "offsets":
                    weight = offset_weight(t.logits, positive_BP, mask_BP, cfg.offsets)
                    own = outputs.offsets_at(t.logits.argmax(-1))
                    value = offset_term(own, t.offsets, weight, sizes, cfg.offsets, denominator)
                else:
                    compared = torch.cat(features.levels, dim=1) if term == "pyramid" else getattr(features, term)
                    own = self._projected(compared, f"{teacher.name}_{term}")
                    mask = mask_BP if term == "pyramid" else mask_BT
                    value = feature_term(own, getattr(t, term), mask, getattr(cfg, term), denominator)
                values[name] = value
                loss = loss + self.weight(teacher, term) * value
        return loss, values

    def _projected(self, x: Tensor, name: str) -> Tensor:
        return self.projections[name](x) if name in self.projections else x
