"""Keys of the section distill."""
from __future__ import annotations

# ruff: noqa: E501, RUF009  (a table: one key per line; `key` makes an immutable field)
from dataclasses import dataclass
from typing import Literal

from libs.core.coerce import key

PART = "{part}"  # in a teacher's checkpoint: the number of the part that it was not trained on


@dataclass(frozen=True)
class TeacherConfig:
    """One entry of distill.teachers."""

    name: str = key("", "name in logs; empty: teacher, or teacher1, teacher2, ...")
    checkpoint: str = key("", "checkpoint file or run folder; {run} stands for the name of the student's run, {part} for a part of cross_fit (required)")
    config: str | None = key(None, "YAML configuration of the teacher; null: the one that its checkpoint holds")
    cross_fit: int | None = key(None, "so many networks instead of one, trained with train_cfg.leave_out: [{part}, cross_fit]: each teaches the videos that it was not trained on (needs outputs: cache)", low=2)
    weights: Literal["ema", "raw"] = key("ema", "EMA or raw weights")
    terms: dict[str, float] | None = key(None, "factor per term, e.g. {cls: 0.8, offsets: 0.8}, terms that are not named 0; null: 1 for all", low=0)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The checkpoint of each of its networks: one, or those of the parts of cross_fit."""
        if self.cross_fit is None:
            return (self.checkpoint,)
        return tuple(self.checkpoint.replace(PART, str(part)) for part in range(self.cross_fit))


@dataclass(frozen=True)
class ClsTerm:
    weight: float | None = key(None, "weight of the term; 0: off; null: the preset's", low=0)
    temperature: float | None = key(None, "temperature of the logits; null: the preset's (c2ms 2, corrected 1)", above=0)
    loss: Literal["softmax_kl", "sigmoid_kl"] | None = key(None, "KL of softmaxes over classes, or of one Bernoulli variable per class; null: the preset's")
    focus: float | None = key(None, "sigmoid_kl: every class counts by this power of the difference between student's and teacher's probability; 0: all alike; null: the preset's", low=0)
    mask: bool | None = key(None, "only valid points count; null: the preset's")
    reduction: Literal["levels", "points"] | None = key(None, "levels: sum / batch size per level, then the mean over levels; points: mean over points; null: the preset's")


@dataclass(frozen=True)
class OffsetTerm:
    weight: float | None = key(None, "weight of the term; 0: off; null: the preset's", low=0)
    loss: Literal["mse", "diou"] | None = key(None, "mean squared error of offsets in strides, or 1 - DIoU of the segments; null: the preset's")
    points: Literal["all", "confident"] | None = key(None, "all, or confident: ground-truth positives and points where the teacher's best score is above score_thresh, weighted by that score; null: the preset's")
    score_thresh: float = key(0.1, "confident points: least teacher score", low=0, high=1)
    mask: bool | None = key(None, "only valid points count; null: the preset's")
    reduction: Literal["levels", "points"] | None = key(None, "levels: mean per level, then over levels; points: mean over all points at once; null: the preset's")


@dataclass(frozen=True)
class FeatureTerm:
    weight: float | None = key(None, "weight of the term; 0: off; null: the preset's", low=0)
    mask: bool | None = key(None, "only valid steps count; null: the preset's")


@dataclass(frozen=True)
class DistillConfig:
    preset: Literal["corrected", "c2ms"] = key("corrected", "defaults of the terms: ours, or the published formulae")
    stage: Literal["structure_teacher", "cross_modal", "cross_structure", "multi_teacher"] | None = key(None, "c2ms: which published loss the weights default to")
    teachers: tuple[TeacherConfig, ...] = key((), "the teachers; none: plain training")
    init_from: str | None = key(None, "teacher (its name) whose same-named tensors the student starts from")
    det_weight: float | None = key(None, "weight of the detection loss; null: the preset's", low=0)
    weight: float | None = key(None, "common weight of all terms; null: the preset's", low=0)
    outputs: Literal["online", "cache"] = key("online", "teacher outputs: computed in every step, or once per whole video and cropped")
    cache_folder: str = key("./ckpt/teacher_cache", "where outputs: cache keeps the teachers' outputs")
    mixup: float = key(0.0, "blend every video with another of its batch, up to this share of it: the teachers see the same blend (needs outputs: online)", low=0, high=0.5)
    pseudo_labels: float = key(0.0, "annotate videos that have no annotations (unlabelled_split, train_cfg.labelled_share) with the first teacher's best detections, this many times as many per second as the annotated videos have; 0: they train on teacher outputs alone", low=0)
    teacher_droppath: bool = key(False, "let the teachers drop paths as the published program does (for ablations)")
    cls: ClsTerm = key(ClsTerm, "class logits")
    offsets: OffsetTerm = key(OffsetTerm, "offsets")
    stem: FeatureTerm = key(FeatureTerm, "finest backbone feature before the branch")
    pyramid: FeatureTerm = key(FeatureTerm, "features of all FPN levels")
    inputs: FeatureTerm = key(FeatureTerm, "input of the backbone: hallucinated against real modalities")
