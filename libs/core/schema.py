"""All configuration keys: type, default and one-line meaning.  Defaults are the published ones.

`libs.core.config` reads YAML into these frozen dataclasses; `libs.core.checks` checks relations between keys.  Keys marked
"(ours)" do not exist in the published configuration; their defaults keep the published behaviour unless noted otherwise.
"""
from __future__ import annotations

# ruff: noqa: E501, RUF009  (a table: one key per line; `key` makes an immutable field)
import dataclasses
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, TypeVar, get_args

from libs.core.coerce import key

T = TypeVar("T")
Ints = int | tuple[int, ...]
Strings = str | tuple[str, ...]

REGRESSION_RANGE = ((0.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0), (32.0, 64.0), (64.0, 10000.0))


FPS_LIMITS = (1e-3, 1e6)  # frames per second
MOST_FRAMES = 1_000_000  # of a stride or a window


@dataclass(frozen=True)
class FolderModality:
    """A stream of features in files of its own; listed in dataset.modalities."""

    folder: str = key("", "folder of feature files, or one .h5/.hdf5 file (required)")
    dim: int = key(0, "channels of these files (required)", above=0)
    file_prefix: str | None = key(None, "text before the video id in a file's name")
    file_ext: str | None = key(".npy", "extension of these files")
    resample: Literal["none", "linear"] = key("none", "none: same length as the other features; linear: stretched to the feature grid (audio windows)")


Modality = tuple[int, int] | FolderModality
Setting = bool | int | float | str | None | tuple[int | float, ...]


@dataclass(frozen=True)
class ExtractorConfig:
    """What made the features; dataset.extractor."""

    name: str = key("", "extractor of tools/extract_features.py (required)")
    settings: dict[str, Setting] = key(None, "its settings that features depend on (required)")
    streams: dict[str, dict[str, Setting]] = key(None, "its streams: channels, sha256 of the weights, parameters of the flow (required)")


@dataclass(frozen=True)
class DatasetConfig:
    json_file: str = key("", "annotation JSON in the ActivityNet layout (required)")
    feat_folder: Strings = key("", "folder of feature files, or one .h5/.hdf5 file; several folders are joined along channels (required)")
    file_prefix: str | None = key(None, "text before the video id in a feature file's name")
    file_ext: str | None = key(".npy", "extension of feature files: .npy, .npz, .h5, .hdf5, .pt or .pkl")
    feat_stride: float = key(16.0, "frames between two feature vectors; <= 0: the video is stretched to its feature count", high=MOST_FRAMES)
    num_frames: float = key(32.0, "frames that one feature vector sees", above=0, high=MOST_FRAMES)
    default_fps: float | None = key(None, "frames per second of every video; null: the annotation's own fps", low=FPS_LIMITS[0], high=FPS_LIMITS[1])
    input_dim: Ints = key(2304, "channels of the feature files (a list: one model input per entry)", above=0, high=1_000_000)
    num_classes: int = key(97, "number of action classes", above=0)
    downsample_rate: int = key(1, "keep every n-th feature vector", low=1)
    max_seq_len: int = key(2304, "longest training sequence, feature vectors", above=0)
    trunc_thresh: float = key(0.5, "share of a segment that must lie inside a training crop for it to be kept", low=0, high=1)
    crop_ratio: tuple[float, float] | None = key(None, "random training crop, [low, high] share of the length", above=0, high=1)
    force_upsampling: bool = key(False, "resize features to max_seq_len steps (ActivityNet)")
    missing: Literal["error", "skip"] = key("error", "(ours) a video without features: stop with the list, or leave it out with a warning")
    strict: bool = key(False, "(ours) refuse annotated segments outside their video or of zero length, and labels that differ in spelling only (case, spaces, hyphens, Unicode composition)")
    tiou_thresholds: tuple[float, ...] | None = key(None, "(ours) tIoU thresholds of the mAP; null: those of the preset", above=0, high=1)
    modalities: dict[str, Modality] | None = key(None, "(ours) named streams: channel ranges of feat_folder, e.g. {rgb: [0, 1024], flow: [1024, 2048]}, or folders of their own, e.g. audio: {folder: ./vggish, dim: 128, resample: linear}", low=0)
    feature_gflop: dict[str, float] | None = key(None, "(ours) GFLOP behind one feature vector of each of the modalities, e.g. {rgb: 55.6, flow: 51.2} (I3D, 16 frames, one crop); reports of cost then show what features cost beside the network; null: not shown", low=0)
    extractor: ExtractorConfig | None = key(None, "(ours) what made the features, with all settings and the checksums of its weights, for tools/predict.py on videos; train.py takes it from the provenance.json in feat_folder; null: from there, if it is there")
    subset_folders: bool = key(False, "(ours) the feature files of a subset (the first of train_split or val_split) lie in a folder of its name inside feat_folder, as HACS features are published")
    crop_offset: bool = key(True, "(ours) segments may reach beyond a training crop by half of what a feature vector sees, as published by ActionFormer; false: they end with the crop")
    speeds: tuple[float, ...] = key((1.0,), "(ours) speeds of training videos, e.g. [0.8, 1, 1.25]: one of them is drawn per video and epoch, features are interpolated linearly over time, and segments move along; a speed may be listed twice to be drawn more often", low=0.1, high=10)
    crop_align: int = key(1, "(ours) training crops start at multiples of this many feature vectors; cached teacher outputs need the coarsest level's stride", low=1)


@dataclass(frozen=True)
class LoaderConfig:
    batch_size: int = key(8, "training videos per process and forward pass; a step sees this many times processes times opt.accumulation_steps", low=1)
    num_workers: int = key(4, "data-loader workers (0: the main process reads)", low=0)
    padding: Literal["shortest", "max_seq_len"] = key("shortest", "(ours) training batches: as short as the outputs allow, or always max_seq_len (the published way)")
    pad_multiple: int = key(1, "(ours) training batches padded further, to a multiple of so many feature vectors where the outputs allow it: fewer shapes for train_cfg.cuda_graphs; 1: off", low=1)
    bucket: int = key(0, "(ours) training batches of videos of similar length: in every so many batches of an epoch videos are sorted by padded length and the batches shuffled; less padding, another order of videos; 0: off", low=0)
    cache: Literal["none", "ram", "device"] = key("none", "(ours) features in training and its evaluations: read from files in every epoch, or read once and kept as float32 in ram or on the training device; the numbers are the same")


@dataclass(frozen=True)
class AssignerConfig:
    """How points get their regression targets."""

    type: Literal["center", "cost"] = key("center", "(ours) center: the shortest segment whose centre is near (train_cfg.center_sample); cost: of the segments around a point the one that its prediction fits best (TemporalMaxer)")
    center_radius: float = key(2.5, "cost: centre radius of positives in level strides", above=0)
    iou_weight: float = key(3.0, "cost: weight of 1 - DIoU between prediction and segment", low=0)
    cls_weight: float = key(1.0, "cost: weight of the focal loss of the segment's class", low=0)
    keep_percent: float = key(0.65, "cost: share of the points inside a segment, the cheapest ones, that count fully", low=0, high=1)
    confuse_weight: float = key(0.1, "cost: weight of the others' positive points", low=0, high=1)
    owner: Literal["inside", "matched"] = key("inside", "(ours) cost: segments that a point may be assigned to: all around it, as published (so its offsets may be those of a segment of another class), or only those whose class it gets")

    @property
    def weighted(self) -> bool:
        """Whether points count by weights, which depend on the predictions."""
        return self.type == "cost" and self.keep_percent < 1


@dataclass(frozen=True)
class ModelConfig:
    backbone_type: Literal["convTransformer", "conv", "conv_dw", "convnext", "SGP", "convPooler"] = key("convTransformer", "backbone; SGP: that of TriDet; convPooler: that of TemporalMaxer")
    block_kernel_size: int = key(9, "(ours) convnext: taps of the depthwise convolutions", low=1, odd="kernel")
    block_expansion: int = key(2, "(ours) convnext: width of the MLPs over that of the backbone", low=1)
    n_sgp_win_size: Ints = key(1, "SGP: window of the depthwise convolutions, per level (the stem's is always 1) or one for all", low=1, odd="window")
    k: float = key(1.5, "SGP: the second window is about k times the first", above=0, high=100)
    sgp_mlp_dim: int | None = key(None, "SGP: hidden channels of the MLPs (required by it)", low=1, high=65536)
    init_conv_vars: float = key(0.0, "SGP: standard deviation of the depthwise convolutions' initial weights; 0: they start at zero, and stay there for ever", low=0)
    downsample_type: Literal["max", "avg"] = key("max", "SGP: downsampling by max pooling, or by means and a 1x1 convolution")
    masked_stats: bool = key(False, "(ours) statistics over time (SGP: pooling, means, GroupNorm; convPooler: pooling; fpn_norm groupnorm) ignore padding, so that batches are padded as little as possible; false: they include it, as published, and every video is padded to its published length")
    branch_type: Literal["block", "max_pool"] = key("block", "(ours) downsampling levels: blocks of the backbone, or max pooling without parameters")
    fpn_type: Literal["identity", "fpn"] = key("identity", "neck")
    backbone_arch: tuple[int, int, int] = key((2, 2, 5), "embedding convs, stem blocks (convPooler: 0), downsampling blocks", low=0, high=64)
    scale_factor: int = key(2, "downsampling between two FPN levels", low=2, high=1024)
    regression_range: tuple[tuple[float, float], ...] = key(REGRESSION_RANGE, "per level: [low, high] of the distances to regress, grid units", low=0)
    n_head: int = key(4, "attention heads", low=1)
    n_mha_win_size: Ints = key(-1, "attention window, per level or one for all; <= 1: global", odd="window")
    embd_kernel_size: int = key(3, "kernel of the embedding convs", low=1, odd="kernel")
    embd_dim: Ints = key(512, "width of the embedding and backbone (a list: one per input)", above=0, high=65536)
    embd_with_ln: bool = key(True, "LayerNorm in the embedding")
    fpn_dim: int = key(512, "width of the neck", above=0, high=65536)
    fpn_with_ln: bool = key(True, "LayerNorm in the fpn neck; false: none in the identity neck either (convPooler ignores it)")
    fpn_norm: Literal["layernorm", "groupnorm", "none"] = key("layernorm", "norm of the identity neck: over the channels of a step; over groups of channels and all steps, padding included, without parameters; or none")
    fpn_shared_norm: bool = key(False, "(ours) one LayerNorm for all levels of the identity neck (published TemporalMaxer), or one for each")
    num_group: int = key(4, "fpn_norm groupnorm: groups of channels", low=1)
    fpn_start_level: int = key(0, "first backbone level that the neck keeps", low=0)
    head_dim: int = key(512, "width of the heads", above=0, high=65536)
    head_kernel_size: int = key(3, "kernel of the head convs", low=1, odd="kernel")
    head_num_layers: int = key(3, "convs per head, the output conv included", low=1, high=64)
    head_with_ln: bool = key(True, "LayerNorm in the heads")
    use_trident_head: bool = key(False, "TriDet: distances as expectations over bins, with heads for the starts and ends of every class")
    num_bins: int = key(16, "trident head: bins on each side of a point, one level stride each; no distance is longer", low=1, high=4096)
    boudary_kernel_size: int = key(3, "trident head: kernel of the start and end heads (published spelling)", low=1, odd="kernel")
    trident_border: Literal["zero", "valid"] = key("zero", "(ours) trident head: bins beyond the first and the last valid point have the logit 0, as published, which draws boundaries near them outwards; valid: they do not count")
    iou_weight_power: float = key(1.0, "trident head: the classification loss of a point and its class counts by this power of the IoU of their segment with the ground truth; 0: all alike", low=0, high=100)
    input_noise: float = key(0.0, "standard deviation of the noise added to the features in training, padded steps included", low=0)
    head_type: Literal["conv", "separable"] = key("conv", "(ours) convs of the heads: dense, or depthwise then pointwise")
    offset_bias: float = key(0.0, "(ours) initial bias of the offsets, in level strides, e.g. 1: with 0 an offset can be zero at every point from the start and then gets no gradient (a dead ReLU); training warns of that", low=0, high=1000)
    max_buffer_len_factor: float = key(6.0, "accepted for published files; points are computed for the length at hand", above=0)
    use_abs_pe: bool = key(False, "sine/cosine position encoding added to the embedding")
    use_rel_pe: bool = key(False, "learned relative position bias in local attention")
    modalities: tuple[str, ...] | None = key(None, "(ours) names from dataset.modalities that the model reads; null: all channels")
    hallucinator: Literal["none", "rgb2flow", "separable", "bottleneck"] = key("none", "(ours) network that predicts missing modalities from those that are read: rgb2flow as published, or a cheaper one")
    hallucinated: tuple[str, ...] = key((), "(ours) names from dataset.modalities that the hallucinator predicts, e.g. [flow]")
    hallucinator_dim: int = key(0, "(ours) hidden channels of the bottleneck hallucinator; 0: a quarter of its output", low=0)
    fusion: Literal["none", "gated"] = key("none", "(ours) gated fusion of the first stream with the rest before the embedding")
    assigner: AssignerConfig = key(AssignerConfig, "regression targets of the points")
    motion_branch: bool = key(False, "(ours) a second backbone of the same kind and width on the same input, fused with the first at every level; a teacher with branch: motion teaches it alone")
    temporal_gate: Literal["none", "published", "post_norm"] = key("none", "(ours) gate over time steps in the identity neck: as published (lengths fixed, no effect behind the norm), or after the norm")


Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS = get_args(Precision)


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
    frame_drop: FrameDropConfig = key(FrameDropConfig, "feature vectors inside actions that are hidden in training")
    consistency: float = key(0.0, "(ours) weight of the consistency loss at positive points: between the predictions for the features with frame_drop and those for the features as they are, which are a fixed target; costs a forward pass; 0: off", low=0)
    labelled_share: float = key(1.0, "(ours) share of the training videos whose annotations are used (chosen by a hash of their ids); the others train on teacher outputs alone, and are left out without teachers", above=0, high=1)
    leave_out: tuple[int, int] | None = key(None, "(ours) [part, parts]: train on all training videos but those of this part (0 to parts - 1; of equal size, chosen by a hash of the ids, the videos of one person together), for teachers with cross_fit", low=0)
    ema_decay: float = key(0.999, "(ours) decay of the EMA of the weights", low=0, high=0.999999)
    ema_warmup: bool = key(False, "(ours) EMA decay min(ema_decay, (1 + i) / (10 + i)) in step i, for short runs")
    precision: Precision = key("fp32", "(ours) arithmetic of the network in training: fp32; tf32 (CUDA: 10-bit mantissas in products); bf16 (weights, norms' parameters, losses stay fp32)")
    cuda_graphs: bool = key(False, "(ours) CUDA: forward and backward pass of a step replayed as one graph per shape of batch; one process, no teachers, no accumulation; set loader.pad_multiple with it")


@dataclass(frozen=True)
class TestConfig:
    pre_nms_thresh: float = key(0.001, "candidates need a higher score", low=0, high=1)
    pre_nms_topk: int = key(5000, "candidates kept per FPN level", low=1)
    iou_threshold: float = key(0.1, "hard NMS: suppress from this tIoU on", low=0, high=1)
    min_score: float = key(0.01, "NMS drops candidates below this score", low=0, high=1)
    max_seg_num: int = key(1000, "segments kept per video", low=1)
    nms_method: Literal["soft", "hard", "none"] = key("soft", "suppression")
    nms_sigma: float = key(0.5, "sigma of the gaussian soft-NMS", above=0)
    duration_thresh: float = key(0.05, "candidates need a longer duration, grid units", low=0)
    multiclass_nms: bool = key(True, "NMS per class")
    multiclass_voting: bool = key(False, "(ours) voting inside each class too; the published code skips it")
    ext_score_file: str | None = key(None, "external class scores per video (.json, .npy, .pkl) that replace the network's classes, for class-agnostic detectors (ActivityNet); they lower THUMOS14 (docs/datasets.md)")
    voting_thresh: float = key(0.75, "tIoU of the boundary voting; <= 0: off", high=1)
    voting_iou_weight: bool = key(True, "(ours) the boundary voting weighs every candidate by score x IoU, else by its score alone (published TriDet)")
    exclude: str | None = key(None, "(ours) file with one video id per line: evaluation leaves these videos out (docs/inference.md)")
    batch_size: int = key(1, "(ours) videos per forward pass in evaluation; results do not depend on it", low=1)
    weights: Literal["ema", "raw"] = key("ema", "(ours) weights to evaluate: EMA or raw")
    drop_modalities: tuple[str, ...] = key((), "(ours) streams of the network that evaluation sets to zero, for one trained with train_cfg.modality_dropout")
    precision: Precision = key("fp32", "(ours) arithmetic of the network in evaluation, as train_cfg.precision; decoding and NMS stay fp32")


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


PART = "{part}"  # in a teacher's checkpoint: the number of the part that it was not trained on


@dataclass(frozen=True)
class TeacherConfig:
    """One entry of distill.teachers."""

    name: str = key("", "name in logs; empty: teacher, or teacher1, teacher2, ...")
    checkpoint: str = key("", "checkpoint file or run folder; {run} stands for the name of the student's run, {part} for a part of cross_fit (required)")
    config: str | None = key(None, "YAML configuration of the teacher; null: the one that its checkpoint holds")
    branch: Literal["fused", "motion"] = key("fused", "what of a student with model.motion_branch learns from it: its output, or what its heads say of the motion branch alone (a teacher that reads flow alone)")
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
    teacher_droppath: bool = key(False, "let the teachers drop paths as the published program does (for ablations)")
    cls: ClsTerm = key(ClsTerm, "class logits")
    offsets: OffsetTerm = key(OffsetTerm, "offsets")
    stem: FeatureTerm = key(FeatureTerm, "finest backbone feature before the branch")
    pyramid: FeatureTerm = key(FeatureTerm, "features of all FPN levels")
    relations: FeatureTerm = key(FeatureTerm, "cosine similarities between the time steps of a video, in the finest backbone feature")
    inputs: FeatureTerm = key(FeatureTerm, "input of the backbone: hallucinated against real modalities")


@dataclass(frozen=True)
class Config:
    """The whole configuration; immutable.  `source` is the YAML file that it came from (for messages)."""

    init_rand_seed: int = key(1234567891, "seed of everything random in training", low=0, high=2**63 - 1)
    fold: int | None = key(None, "(ours) number that replaces {fold} in every text of the configuration, e.g. dataset.json_file: ./data/my/fold{fold}.json", low=0)
    dataset_name: str = key("epic", "dataset preset")
    devices: tuple[str, ...] = key(("cuda:0",), "cuda:N, cpu or auto; under torchrun cuda (or cuda:0) gives every process of a machine its own GPU, a list names one per process")
    train_split: tuple[str, ...] = key(("training",), "annotation subsets to train on, lower case")
    val_split: tuple[str, ...] = key(("validation",), "annotation subset to evaluate on, lower case")
    unlabelled_split: tuple[str, ...] = key((), "(ours) subsets of further training videos whose annotations are not used (there may be none): they train on teacher outputs alone; left out without teachers")
    model_name: Literal["LocPointTransformer", "TriDet", "TemporalMaxerArchitecture"] = key("LocPointTransformer", "published program (ActionFormer, TriDet, TemporalMaxer) whose defaults hold for keys that are not set, see [below](#published-programs)")
    output_folder: str = key("./ckpt/", "where runs are written")
    dataset: DatasetConfig = key(DatasetConfig, "dataset")
    loader: LoaderConfig = key(LoaderConfig, "batches")
    model: ModelConfig = key(ModelConfig, "network")
    train_cfg: TrainConfig = key(TrainConfig, "training")
    test_cfg: TestConfig = key(TestConfig, "inference")
    opt: OptConfig = key(OptConfig, "optimisation")
    distill: DistillConfig = key(DistillConfig, "(ours) distillation")
    source: str = dataclasses.field(default="", compare=False, metadata={"doc": "", "internal": True})

    def modality_dim(self, name: str) -> int:
        """Channels of one entry of dataset.modalities."""
        entry = (self.dataset.modalities or {})[name]
        return entry.dim if isinstance(entry, FolderModality) else entry[1] - entry[0]

    @property
    def model_input_dim(self) -> Ints:
        """Channels that the model reads: dataset.input_dim, or those of its modalities."""
        if self.model.modalities is None:
            return self.dataset.input_dim
        return sum(self.modality_dim(name) for name in self.model.modalities)

    @property
    def model_channels(self) -> int:
        """Channels that the model reads, all inputs together."""
        return sum(as_tuple(self.model_input_dim))

    @property
    def stream_spans(self) -> dict[str, tuple[int, int]]:
        """Name -> (first channel, end) of each declared stream in what the model reads."""
        if self.model.modalities is None:
            return {name: m for name, m in (self.dataset.modalities or {}).items() if not isinstance(m, FolderModality)}
        ends = list(accumulate(map(self.modality_dim, self.model.modalities), initial=0))
        return dict(zip(self.model.modalities, pairwise(ends), strict=True))

    @property
    def file_channels(self) -> int:
        """Channels of dataset.feat_folder's files, all folders together."""
        return sum(as_tuple(self.dataset.input_dim))

    @property
    def backbone_input_dim(self) -> Ints:
        """Channels that the backbone sees: what the model reads, then what it hallucinates."""
        made_up = sum(self.modality_dim(name) for name in self.model.hallucinated)
        return self.model_input_dim if not made_up else self.model_channels + made_up

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Strides of the FPN levels that have heads, in grid steps, fine to coarse."""
        model = self.model
        return tuple(model.scale_factor ** level for level in range(model.fpn_start_level, model.backbone_arch[2] + 1))

    @property
    def padding_counts(self) -> bool:
        """Whether statistics include padding, so that only the published length gives the published outputs (F5, F24)."""
        model = self.model
        in_neck = model.fpn_type == "identity" and model.fpn_norm == "groupnorm"
        return not model.masked_stats and (model.backbone_type == "SGP" or in_neck)

    @property
    def level_windows(self) -> tuple[int, ...]:
        """Window of backbone levels 0 .. arch[2] (stem level first): of the SGP convolutions, else of attention."""
        model = self.model
        win, levels = model.n_sgp_win_size if model.backbone_type == "SGP" else model.n_mha_win_size, model.backbone_arch[2] + 1
        return win if isinstance(win, tuple) else (win,) * levels

    def videos_per_step(self, processes: int = 1) -> int:
        """Training videos whose gradients make up one step."""
        return self.loader.batch_size * self.opt.accumulation_steps * processes

    @property
    def total_epochs(self) -> int:
        """Epochs that training runs, warm-up included."""
        total = self.opt.epochs + (self.opt.warmup_epochs if self.opt.warmup else 0)
        return min(total, self.opt.early_stop_epochs) if self.opt.early_stop_epochs else total


def as_tuple(value: T | tuple[T, ...]) -> tuple[T, ...]:
    """One value, or several, as a tuple."""
    return value if isinstance(value, tuple) else (value,)
