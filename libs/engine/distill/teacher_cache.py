"""Teacher outputs computed once per whole video and cropped per sample, instead of in every step.

For samples that are not cropped, the loss equals that of the online teacher up to rounding, since a teacher in evaluation mode is
deterministic.  For crops it differs near the ends: there the online teacher sees zeros, the cached one the rest of the video.
Crops must start at multiples of the coarsest stride (dataset.crop_align), so that their points are points of the whole video.

<cache_folder>/<key>/<video id>.npz holds float32 arrays of valid rows, levels fine to coarse: logits (P, K), offsets (P, 2), and
those of stem (T, C), pyramid (P, C), inputs (T, C_in) that terms use.  The key is a hash of weights, network and feature paths;
at another of dataset.speeds the speed follows (<key>_x0.8).
"""
from __future__ import annotations

import hashlib
import io
import itertools
import json
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from libs.core.config import to_dict
from libs.core.errors import UserError
from libs.core.files import is_file
from libs.core.schema import Config
from libs.datasets.loading.batch import Batch
from libs.datasets.loading.loader import batches, inference_loader
from libs.datasets.sample import Sample
from libs.engine.distill.streams import Columns, input_columns
from libs.engine.distill.teachers import Teacher, run_unseen, training_videos
from libs.engine.runtime.world import ALONE, World
from libs.modeling.losses.distillation import FEATURES, TeacherOutputs
from libs.utils.files.io import write_bytes_atomic, write_json_atomic
from libs.utils.progress import bar

MEMORY = 2**30  # bytes of outputs kept in memory; the rest is read from files each time
PER_POINT = ("logits", "offsets", "pyramid")  # arrays with a row per point; the others have a row per time step


class CachedTeacher(NamedTuple):
    """One teacher, the folder of its outputs and the names of the arrays that terms use.

    `order` brings its inputs into the student's channel order; None: without inputs.
    """

    teacher: Teacher
    folder: Path
    names: tuple[str, ...]
    order: Columns | None

    def folder_of(self, speed: float) -> Path:
        """Where the outputs of videos at a speed are."""
        return self.folder if speed == 1 else self.folder.with_name(f"{self.folder.name}_x{speed}")

    def file(self, video_id: str, speed: float = 1.0) -> Path:
        """The file of a video's outputs."""
        return self.folder_of(speed) / f"{video_id}.npz"

    def strides(self, name: str) -> tuple[int, ...]:
        """Strides of the levels whose rows an array holds one after the other."""
        return self.teacher.model.strides if name in PER_POINT else (1,)


class CachedTeachers:
    """The outputs of teachers, read from files that `prepare` writes."""

    def __init__(self, config: Config, teachers: Sequence[Teacher], used: Collection[tuple[str, str]]):
        """`used`: (teacher's name, term) of every term with a weight."""
        self.config = config
        self.cached: list[CachedTeacher] = []
        for t in teachers:
            names = ("logits", "offsets", *(n for n in FEATURES if (t.name, n) in used))
            if t.parts and (features := [n for n in ("stem", "pyramid") if (t.name, n) in used]):
                raise UserError(f"{config.source}: distill.{features[0]}: compares features with those of {t.name}, whose "
                                "networks (cross_fit) each have features of their own; set the weight, or its factor, to 0")
            order = input_columns(config, t.config, t.name) if "inputs" in names else None
            self.cached.append(CachedTeacher(t, Path(config.distill.cache_folder) / _key(config, t, names), names, order))
        self._memory: dict[Path, dict[str, Tensor]] = {}
        self._bytes = 0

    def prepare(self, video_ids: Sequence[str], device: torch.device, world: World = ALONE) -> int:
        """Compute and write the missing outputs for these videos of the training split, at each of dataset.speeds; returns how
        many were missing.

        The features that a teacher reads are needed only here.  `world`: the processes that share the work; each calls this.
        Raises UserError as the dataset does, and when the folder cannot be written.
        """
        shares = [(world.rank, world.size)]
        if world.size > 1:  # once more within each machine, which may have a folder of its own
            shares.append((world.local_rank, world.local_size))
        made = 0
        for cached, speed in itertools.product(self.cached, sorted(set(self.config.dataset.speeds))):
            for rank, ranks in shares:
                missing = {v for v in video_ids if not is_file(cached.file(v, speed))}
                world.barrier()  # nobody writes before all have listed what is missing
                if missing:
                    made += self._compute(cached, speed, missing, device, rank, ranks)
                world.barrier()
        return sum(world.all_gather(made))

    @torch.no_grad()
    def _compute(self, cached: CachedTeacher, speed: float, missing: set[str], device: torch.device, rank: int, ranks: int
                 ) -> int:
        teacher = cached.teacher
        dataset = training_videos(self.config, teacher, missing, "distill.outputs: cache",
                                  "use outputs: online, which leaves such videos out (dataset.missing: skip)", speed)
        paths = [str(network.checkpoint.path) for network in teacher.parts or (teacher,)]
        write_json_atomic(cached.folder_of(speed) / "about.json", {"teacher": paths if teacher.parts else paths[0],
                                                                   "weights": teacher.weights, "arrays": list(cached.names)})
        advance, made, seen = bar(-(-len(missing) // ranks), f"videos, teacher {teacher.name}"), 0, 0
        for batch in batches(inference_loader(dataset, dataset.config, rank=rank, ranks=ranks, wanted=missing)):
            seen += len(batch.video_ids)
            advance(seen, max(seen, -(-len(missing) // ranks)))
            wanted = [b for b, v in enumerate(batch.video_ids) if v in missing]
            moved = batch.to(device)
            outputs = run_unseen(teacher, batch.video_ids, moved.feats, moved.mask, cached.order)
            for b in wanted:
                arrays: dict[str, Any] = {name: _valid_rows(getattr(outputs, name)[b], batch.mask[b], cached.strides(name))
                                          for name in cached.names}
                buffer = io.BytesIO()
                np.savez(buffer, **arrays)
                write_bytes_atomic(cached.file(batch.video_ids[b], speed), buffer.getbuffer())
            made += len(wanted)
        return made

    def __call__(self, batch: Batch) -> list[TeacherOutputs]:
        """The outputs of every teacher for the crops of a batch; zero at padded steps and points."""
        return [self._batch(batch, cached) for cached in self.cached]

    def _batch(self, batch: Batch, cached: CachedTeacher) -> TeacherOutputs:
        padded = batch.mask.shape[1]
        crops: dict[str, list[Tensor]] = {name: [] for name in cached.names}
        for sample in batch.samples:
            for name, rows in self._read(cached, sample).items():
                strides = cached.strides(name)
                parts = rows.split([-(-sample.source_length // s) for s in strides])
                crops[name].append(torch.cat([_window(p, sample.start // s, -(-sample.steps // s), padded // s)
                                              for p, s in zip(parts, strides, strict=True)]))
        return TeacherOutputs(**{name: torch.stack(rows).to(batch.feats.device) for name, rows in crops.items()})

    def _read(self, cached: CachedTeacher, sample: Sample) -> dict[str, Tensor]:
        path, steps = cached.file(sample.video_id, sample.speed), sample.source_length
        if path in self._memory:
            return self._memory[path]
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: torch.from_numpy(archive[name]) for name in cached.names}
        except FileNotFoundError as error:
            raise UserError(f"{path}: has been removed since training began; start again with --resume auto, which computes "
                            "it anew") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: cannot be read as cached teacher outputs ({error}); remove the file") from error
        for name, rows in arrays.items():
            if len(rows) != sum(-(-steps // s) for s in cached.strides(name)):
                raise UserError(f"{path}: {name}: has {len(rows)} rows, which do not fit a video of {steps} feature vectors; the "
                                "features have changed, remove the folder")
        size = sum(a.numel() * 4 for a in arrays.values())
        if self._bytes + size <= MEMORY:
            self._memory[path], self._bytes = arrays, self._bytes + size
        return arrays


def _valid_rows(rows: Tensor, mask_T: Tensor, strides: Sequence[int]) -> np.ndarray:
    """(padded rows of all levels, C) -> (valid rows of all levels, C) float32."""
    parts = rows.split([len(mask_T) // s for s in strides])
    valid = torch.cat([part[:int(mask_T[::s].sum())] for part, s in zip(parts, strides, strict=True)])
    return valid.float().cpu().numpy()


def _window(rows: Tensor, start: int, count: int, padded: int) -> Tensor:
    """`count` rows from `start` on, followed by zeros up to `padded` rows."""
    out = rows.new_zeros(padded, rows.shape[1])
    out[:count] = rows[start:start + count]
    return out


def _key(config: Config, teacher: Teacher, names: tuple[str, ...]) -> str:
    """Name of the folder of a teacher's outputs: its name and a hash of all that they depend on."""
    digest = hashlib.sha256()
    for part in teacher.parts or (teacher,):
        for name, value in part.checkpoint.select(teacher.weights).items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)  # as bytes: numpy has no bfloat16
    data = to_dict(config)["dataset"]
    paths = {k: data[k] for k in ("feat_folder", "file_prefix", "file_ext", "modalities", "feat_stride", "downsample_rate",
                                  "force_upsampling", "max_seq_len")}
    order = [config.model.modalities, config.model.hallucinated] if "inputs" in names else None
    network = to_dict(teacher.config)["model"]
    if teacher.config.model.use_abs_pe:  # its position table has max_seq_len rows
        network["max_seq_len"] = teacher.config.dataset.max_seq_len
    if teacher.config.test_cfg.precision != "fp32":
        network["precision"] = teacher.config.test_cfg.precision
    if teacher.config.test_cfg.drop_modalities:
        network["drop_modalities"] = teacher.config.test_cfg.drop_modalities
    parts = [dict(teacher.part_of)] if teacher.parts else []
    digest.update(json.dumps([network, paths, order, names, *parts], sort_keys=True).encode())
    return f"{teacher.name}_{digest.hexdigest()[:16]}"
