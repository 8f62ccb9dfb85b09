"""Keys of the sections train_cfg and opt."""
from __future__ import annotations

# ruff: noqa: E501, RUF009  (a table: one key per line; `key` makes an immutable field)
from dataclasses import dataclass
from typing import Literal

from libs.core.coerce import key
from libs.core.schema.values import Precision


@dataclass(frozen=True)
class FrameDropConfig:
    """Feature vectors inside actions that are hidden from the network in training."""

    probability: float = key(0.0, "(ours) probability, of every action, that a run of its feature vectors is hidden, which teachers see; 0: off", low=0, high=1)
    share: float = key(0.2, "(ours) longest run, as a share of the action; all lengths up to it are as likely, at least one vector and never all", above=0, high=1)
    fill: Literal["zeros", "other"] = key("zeros", "(ours) what stands in a run instead: zeros, or the vectors of the next video of the batch at the same steps")


@dataclass(frozen=True)
class TrainConfig:
    center_sample: Literal["radius", "none"] = key("radius", "positives: near the segment's centre, or anywhere inside")
    center_sample_radius: float = key(1.5, "centre radius in level strides", above=0)
    loss_weight: float = key(1.0, "weight of the regression loss; <= 0: balanced automatically")
    cls_prior_prob: float = key(0.01, "initial class probability", above=0, high=0.999)
    init_loss_norm: float = key(2000.0, "initial value of the loss normalizer, a running mean of the number of positives", above=0)
    clip_grad_l2norm: float = key(-1.0, "gradient norm clip; <= 0: off")
    head_empty_cls: tuple[int, ...] = key((), "class ids that never occur, kept at a probability of 1e-6", low=0)
    dropout: float = key(0.0, "dropout in attention output and MLP", low=0, high=0.95)
    droppath: float = key(0.1, "drop-path rate; 0 also removes the residual scales", low=0, high=0.95)
    label_smoothing: float = key(0.0, "label smoothing", low=0, high=0.95)
    iou_weight_gradient: bool = key(True, "(ours) the weight of model.iou_weight_power sends gradient into the offsets, as published (it rewards a low IoU); false: it is a constant")
    input_dropout: float = key(0.0, "(ours) channel-wise dropout of input features", low=0, high=0.95)
    modality_dropout: float = key(0.0, "(ours) probability that a training video loses some of the network's streams (model.modalities), set to zero; never all of them", low=0, high=1)
    mixup: float = key(0.0, "(ours) mixup: every video is blended with another of its batch and learns the annotations and teacher outputs of both, by their shares, which are drawn from Beta(mixup, mixup), e.g. 0.2; 0: off", low=0, high=100)
    swap_actions: float = key(0.0, "(ours) probability, of every training action that overlaps no other, that its features are replaced by those of an action of its class in the next video of the batch, stretched to its length; teachers see the same; 0: off", low=0, high=1)
    frame_drop: FrameDropConfig = key(FrameDropConfig, "feature vectors inside actions that are hidden in training")
    consistency: float = key(0.0, "(ours) weight of the consistency loss at positive points: between the predictions for the features with frame_drop and those for the features as they are, which are a fixed target; costs a forward pass; 0: off", low=0)
    labelled_share: float = key(1.0, "(ours) share of the training videos whose annotations are used (chosen by a hash of their ids); the others train on teacher outputs alone, and are left out without teachers", above=0, high=1)
    leave_out: tuple[int, int] | None = key(None, "(ours) [part, parts]: train on all training videos but those of this part (0 to parts - 1; of equal size, chosen by a hash of the ids, the videos of one person together), for teachers with cross_fit", low=0)
    ema_decay: float = key(0.999, "(ours) decay of the EMA of the weights", low=0, high=0.999999)
    ema_warmup: bool = key(False, "(ours) EMA decay min(ema_decay, (1 + i) / (10 + i)) in step i, for short runs")
    precision: Precision = key("fp32", "(ours) arithmetic of the network in training: fp32; tf32 (CUDA: 10-bit mantissas in products); bf16 (weights, norms' parameters, losses stay fp32)")
    cuda_graphs: bool = key(False, "(ours) CUDA: forward and backward pass of a step replayed as one graph per shape of batch; one process, no teachers, no accumulation; set loader.pad_multiple with it")


@dataclass(frozen=True)
class OptConfig:
    type: Literal["AdamW", "SGD"] = key("AdamW", "optimizer")
    momentum: float = key(0.9, "momentum of SGD", low=0, high=1)
    weight_decay: float = key(0.0, "weight decay of conv and linear weights", low=0)
    learning_rate: float = key(1e-3, "base learning rate", above=0)
    accumulation_steps: int = key(1, "(ours) batches whose gradients make up one step, as if they were one batch", low=1)
    lr_scaling: Literal["none", "linear", "sqrt"] = key("none", "(ours) the learning rate follows the videos per step (loader.batch_size x accumulation_steps x processes) over lr_reference_batch: not at all, in proportion, or by the square root")
    lr_reference_batch: int | None = key(None, "(ours) lr_scaling: videos per step that learning_rate was chosen for (required by linear and sqrt)", low=1)
    epochs: int = key(30, "epochs after warm-up", low=0)
    warmup: bool = key(True, "linear warm-up")
    warmup_epochs: int = key(5, "epochs of warm-up", low=0)
    schedule_type: Literal["cosine", "multistep"] = key("cosine", "schedule after warm-up, per iteration")
    schedule_steps: tuple[int, ...] = key((), "multistep: milestones in epochs after warm-up", above=0)
    schedule_gamma: float = key(0.1, "multistep: factor at each milestone", above=0)
    eta_min: float | None = key(None, "cosine: lowest learning rate; null: 1e-8, without warm-up 0", low=0)
    early_stop_epochs: int | None = key(None, "stop after this many epochs, warm-up included", low=1)
