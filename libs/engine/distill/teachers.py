"""Teachers of a distillation run: loaded, checked against the student and frozen; their outputs for a batch.

A teacher has no gradients, optimizer state or EMA, and nothing of it is written to the student's checkpoint.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from libs.core.config import config_diff, load_config
from libs.core.errors import UserError, nearest
from libs.core.files import is_file
from libs.core.relations.distillation import teacher_names
from libs.core.schema import Config, DistillConfig, TeacherConfig
from libs.datasets.annotations import Annotations, load_annotations
from libs.datasets.dataset import TalDataset
from libs.datasets.loading.batch import Batch
from libs.datasets.loading.padding import padding_of
from libs.datasets.presets import get_preset
from libs.datasets.survey.parts import labelled_ids, training_parts
from libs.engine.distill.streams import Columns, channel_ranges, input_columns, moved_channels
from libs.engine.runs.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, own_config
from libs.engine.runs.network import load_network
from libs.engine.runtime.precision import matmul_precision
from libs.modeling.blocks.layers import AffineDropPath
from libs.modeling.losses.distillation import TeacherOutputs, TeacherSpec
from libs.modeling.model import LocPointTransformer

RUN = "{run}"  # in a teacher's checkpoint: the name of the student's run

# keys that must be equal for teacher and student, so that their points are the same points in time
GRID_KEYS = ("feat_stride", "num_frames", "default_fps", "downsample_rate", "force_upsampling")
# keys, or their beginnings, that must be equal for all networks of a teacher with cross_fit
SHARED_BY_PARTS = ("dataset.", "model.", "train_split", "train_cfg.labelled_share")


@dataclass(frozen=True)
class Teacher:
    """A frozen network in evaluation mode, its configuration and its checkpoint.

    cross_fit: `parts` are the networks, the first of which is also the one described here; `part_of`: video id -> the part that
    has not seen it.
    """

    name: str
    config: Config
    checkpoint: Checkpoint
    weights: str
    model: LocPointTransformer
    spec: TeacherSpec
    parts: tuple[Teacher, ...] = ()
    part_of: Mapping[str, int] = field(default_factory=dict)


def with_run_name(config: Config, run: str) -> Config:
    """The configuration with `{run}` in the teachers' checkpoints replaced by the name of this run."""
    teachers = tuple(dataclasses.replace(t, checkpoint=t.checkpoint.replace(RUN, run)) for t in config.distill.teachers)
    return dataclasses.replace(config, distill=dataclasses.replace(config.distill, teachers=teachers))


def load_teachers(config: Config, settings: DistillConfig, device: torch.device) -> tuple[Teacher, ...]:
    """The teachers of a student's configuration (`settings`: its resolved distill section), frozen, on `device`.

    The global random state is left as it was.  Raises UserError for a teacher that cannot be read, does not fit its own
    configuration, or whose classes, pyramid, feature grid or modalities do not fit the student's.
    """
    with torch.random.fork_rng():
        return tuple(_load(config, settings, entry, name, device)
                     for entry, name in zip(settings.teachers, teacher_names(settings), strict=True))


def _load(student: Config, settings: DistillConfig, entry: TeacherConfig, name: str, device: torch.device) -> Teacher:
    networks = tuple(_load_network(student, settings, entry, name, path, device) for path in entry.checkpoints)
    if entry.cross_fit is None:
        return networks[0]
    part_of = _parts(student, networks, f"{student.source}: distill.teachers: {name}")
    return dataclasses.replace(networks[0], parts=networks, part_of=part_of)


def _parts(student: Config, networks: Sequence[Teacher], where: str) -> dict[str, int]:
    """Video id -> the network that has not seen it; UserError unless each network left out its own part of the same videos."""
    first, count = networks[0].config, len(networks)
    for part, network in enumerate(networks):
        path, own = network.checkpoint.path, network.config
        if own.train_cfg.leave_out != (part, count):
            found = "null" if own.train_cfg.leave_out is None else list(own.train_cfg.leave_out)
            raise UserError(f"{where}: checkpoint: {path}: was trained with train_cfg.leave_out: {found}, but stands for part "
                            f"{part} of cross_fit: {count}; train it with leave_out: [{part}, {count}], or correct the entry")
        other = {key: values for key, values in config_diff(first, own).items() if key.startswith(SHARED_BY_PARTS)}
        for key, (theirs, its) in other.items():
            raise UserError(f"{where}: checkpoint: {path}: was trained with {key}: {its}, that of part 0 with {theirs}; networks "
                            "of cross_fit differ in train_cfg.leave_out alone")
    part_of = training_parts(first, _annotations(first), count)
    if unknown := sorted(labelled_ids(student, _annotations(student)) - part_of.keys()):
        raise UserError(f"{where}: checkpoint: {networks[0].checkpoint.path}: was trained on other videos than the student: "
                        f"{len(unknown)} are in no part (first: {unknown[0]}); make train_split, dataset.json_file and "
                        "train_cfg.labelled_share equal")
    return part_of


def _annotations(config: Config) -> Annotations:
    return load_annotations(config.dataset.json_file, False, get_preset(config.dataset_name).unlabelled, config.unlabelled_split)


def _load_network(student: Config, settings: DistillConfig, entry: TeacherConfig, name: str, path: str, device: torch.device
                  ) -> Teacher:
    where = f"{student.source}: distill.teachers: {name}"
    if RUN in path:
        raise UserError(f"{where}: checkpoint: {path}: {RUN} stands for the name of a run, and this run has none; "
                        "name the checkpoint")
    try:
        checkpoint = load_checkpoint(find_checkpoint(path))
        config = _config_of(entry, checkpoint)
        check_teacher(student, config, where)
        model = load_network(config, checkpoint, entry.weights)
    except UserError as error:
        raise error if str(error).startswith(where) else UserError(f"{where}: {error}") from error
    model.requires_grad_(False).eval().to(device)
    if settings.teacher_droppath:
        for module in model.modules():
            if isinstance(module, AffineDropPath):
                module.train()
    spec = TeacherSpec(name, entry.terms or {}, model.backbone.width, config.model.fpn_dim)
    return Teacher(name, config, checkpoint, entry.weights, model, spec)


def _config_of(entry: TeacherConfig, checkpoint: Checkpoint) -> Config:
    if entry.config is not None:
        return load_config(entry.config)
    own = own_config(checkpoint)
    if own is None:
        raise UserError(f"{checkpoint.path}: holds no configuration (another program wrote it); name the teacher's in config")
    return own


def check_teacher(student: Config, teacher: Config, where: str) -> None:
    """Raise UserError unless teacher and student have the same classes, FPN strides, feature grid and names of modalities."""
    def same(key: str, ours: object, theirs: object, remedy: str) -> None:
        if ours != theirs:
            raise UserError(f"{where}: {key}: the teacher ({teacher.source}) has {theirs}, the student {ours}: {remedy}")

    if student.fold is not None and teacher.fold is not None:
        same("fold", student.fold, teacher.fold, "it may have seen the videos that the student is evaluated on; name the run of "
             "the student's fold, e.g. with {run} or {fold}")
    same("dataset.num_classes", student.dataset.num_classes, teacher.dataset.num_classes, "both must name the same classes")
    same("FPN strides", list(student.level_strides), list(teacher.level_strides),
         "their points must be the same; make model.backbone_arch[2], scale_factor and fpn_start_level equal")
    keys = GRID_KEYS + (("max_seq_len",) if student.dataset.force_upsampling else ())
    for key in keys:
        same(f"dataset.{key}", getattr(student.dataset, key), getattr(teacher.dataset, key),
             "both must see the same feature grid")
    _check_classes(student, teacher, where)
    _check_gate(student, teacher, where)
    declared = student.dataset.modalities or {}
    if teacher.model.modalities is None:
        same("dataset.input_dim", student.dataset.input_dim, teacher.dataset.input_dim,
             "the teacher reads all channels, so it needs the same files; set its model.modalities otherwise")
    for name in (teacher.model.modalities or ()) + teacher.model.hallucinated:
        if name not in declared:
            raise UserError(f"{where}: model.modalities: the teacher has a modality {name!r} that the student's "
                            f"dataset.modalities does not declare{nearest(name, declared)}; declare it there, with its channels")
        same(f"dataset.modalities.{name}", f"{student.modality_dim(name)} channels", f"{teacher.modality_dim(name)} channels",
             "one modality has one width")
    for name in moved_channels(student, teacher, teacher.model.modalities or ()):
        same(f"dataset.modalities.{name}", list(channel_ranges(student)[name]), list(channel_ranges(teacher)[name]),
             f"both read {student.dataset.feat_folder}; correct the wrong one, or name the teacher's channels in a configuration "
             "of its own (config)")


def _check_gate(student: Config, teacher: Config, where: str) -> None:
    """A published temporal gate needs batches of at least its max_seq_len steps."""
    if teacher.model.temporal_gate != "published":
        return
    if student.dataset.max_seq_len < teacher.dataset.max_seq_len:
        raise UserError(f"{where}: dataset.max_seq_len: the teacher's temporal gate (published) takes "
                        f"{teacher.dataset.max_seq_len} steps or more, the student's batches have {student.dataset.max_seq_len}; "
                        f"use {teacher.dataset.max_seq_len}")
    if student.distill.outputs == "online" and not padding_of(student, training=True).always:
        raise UserError(f"{where}: loader.padding: {student.loader.padding}: the teacher's temporal gate (published) needs "
                        "batches of max_seq_len; use loader.padding: max_seq_len")


def _check_classes(student: Config, teacher: Config, where: str) -> None:
    """Class names must have the same ids; compared if teacher and student have different annotation files and both exist."""
    own, other = student.dataset.json_file, teacher.dataset.json_file
    if own == other or not is_file(other) or not is_file(own):
        return
    here, there = (_annotations(config).label_ids for config in (student, teacher))
    common = here.keys() & there.keys()
    wrong = sorted(name for name in common if here[name] != there[name])
    if wrong or not common:
        shown = f"{wrong[0]!r} is {there[wrong[0]]} there and {here[wrong[0]]} here" if wrong else "no class name in common"
        raise UserError(f"{where}: dataset.json_file: {other}: other classes than {own}: {shown}; train the teacher on the same "
                        "label ids")


def training_videos(config: Config, teacher: Teacher, wanted: Collection[str], asked: str, remedy: str, speed: float = 1.0
                    ) -> TalDataset:
    """The training videos of a student's configuration, with the streams and padding of a teacher.

    UserError, with the key `asked` and the remedy, where it has no features of one of the `wanted` videos.
    """
    dataset = TalDataset(dataclasses.replace(config, model=teacher.config.model), config.train_split, training=True, speed=speed)
    if absent := sorted(set(wanted) - {video.id for video in dataset.videos}):
        raise UserError(f"{config.source}: {asked}: teacher {teacher.name} has no features of {absent[0]} ({len(absent)} of the "
                        f"videos that the student trains on lack what it reads); add them, or {remedy}")
    return dataset


class OnlineTeachers:
    """Teachers that run on every batch.

    `streams`: the modalities that a batch holds (None: all channels); `used`: (teacher's name, term) of every term with a weight.
    """

    def __init__(self, config: Config, teachers: Sequence[Teacher], streams: tuple[str, ...] | None,
                 used: Collection[tuple[str, str]]):
        self.teachers = tuple(teachers)
        self._columns = [Columns(config, streams, t.config.model.modalities) for t in teachers]
        self._orders = [input_columns(config, t.config, t.name) if (t.name, "inputs") in used else None for t in teachers]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> list[TeacherOutputs]:
        """The outputs of every teacher for a batch."""
        return [run_teacher(teacher, columns(batch.feats), batch.mask, order)
                for teacher, columns, order in zip(self.teachers, self._columns, self._orders, strict=True)]


def run_teacher(teacher: Teacher, feats_BTC: Tensor, mask_BT: Tensor, order: Columns | None) -> TeacherOutputs:
    """The outputs of a teacher for features of its streams.

    `order` brings its backbone's input into the student's channel order; None: without that input.
    """
    with matmul_precision(teacher.config.test_cfg.precision):
        outputs, features = teacher.model.trace(feats_BTC, mask_BT)
    offsets = outputs.offsets_at(outputs.logits.argmax(-1))
    return TeacherOutputs(outputs.logits, offsets, features.stem, torch.cat(features.levels, dim=1),
                          None if order is None else order(features.inputs))


def run_unseen(teacher: Teacher, video_ids: Sequence[str], feats_BTC: Tensor, mask_BT: Tensor, order: Columns | None
               ) -> TeacherOutputs:
    """`run_teacher`; with cross_fit each video's outputs are those of the network that has not seen it.

    Of a video that none has seen: the mean of all of them, of features those of the first, since each has features of its own.
    """
    if not teacher.parts:
        return run_teacher(teacher, feats_BTC, mask_BT, order)
    chosen = [teacher.part_of.get(video) for video in video_ids]
    said = {part: run_teacher(network, feats_BTC, mask_BT, order)
            for part, network in enumerate(teacher.parts) if part in chosen or None in chosen}

    def row(name: str, b: int, part: int | None) -> Tensor:
        if part is not None or name in ("stem", "pyramid"):
            return getattr(said[part or 0], name)[b]
        return torch.stack([getattr(outputs, name)[b] for outputs in said.values()]).mean(0)
    names = [name for name, value in next(iter(said.values()))._asdict().items() if value is not None]
    return TeacherOutputs(**{name: torch.stack([row(name, b, part) for b, part in enumerate(chosen)]) for name in names})
