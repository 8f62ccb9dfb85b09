"""Teacher outputs computed once per whole video and cropped per sample, instead of in every step.

For samples that are not cropped, the loss equals that of the online teacher up to rounding, since a teacher in evaluation mode is
deterministic.  For crops it differs near the ends: there the online teacher sees zeros, the cached one the rest of the video.
Crops must start at multiples of the coarsest stride (dataset.crop_align), so that their points are points of the whole video.

<cache_folder>/<key>/<video id>.npz holds float32 arrays of valid rows, levels fine to coarse: logits (P, K), offsets (P, 2), and
those of stem (T, C), pyramid (P, C), inputs (T, C_in) that terms use.  The key is a hash of weights, network and feature paths.
"""
from __future__ import annotations

import dataclasses
import hashlib
import io
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
from libs.core.schema import Config
from libs.datasets.batch import Batch
from libs.datasets.dataset import TalDataset
from libs.datasets.loader import batches, inference_loader
from libs.engine.distill.streams import Columns, input_columns
from libs.engine.distill.teachers import Teacher, run_teacher
from libs.engine.runtime.world import ALONE, World
from libs.modeling.distill_losses import TeacherOutputs
from libs.utils.files.io import write_atomic, write_json_atomic
from libs.utils.progress import bar

MEMORY = 2**30  # bytes of outputs kept in memory; the rest is read from files each time
PER_POINT = ("logits", "offsets", "pyramid")  # the other arrays have a row per step


class Request(NamedTuple):
    """Names of the arrays of one teacher that terms use; `order` brings its inputs into the student's channel order."""

    names: tuple[str, ...]
    order: Columns | None


class CachedTeachers:
    """The outputs of teachers, read from files that `prepare` writes."""

    def __init__(self, config: Config, teachers: Sequence[Teacher], used: Collection[tuple[str, str]]):
        """`used`: (teacher's name, term) of every term with a weight."""
        self.config, self.teachers = config, tuple(teachers)
        self.requests = []
        for t in teachers:
            names = ("logits", "offsets", *(n for n in ("stem", "pyramid", "inputs") if (t.name, n) in used))
            self.requests.append(Request(names, input_columns(config, t.config, t.name) if "inputs" in names else None))
        root = Path(config.distill.cache_folder)
        self.folders = [root / _key(config, t, r) for t, r in zip(teachers, self.requests, strict=True)]
        self._memory: dict[Path, dict[str, Tensor]] = {}
        self._bytes = 0

    def prepare(self, video_ids: Sequence[str], device: torch.device, world: World = ALONE) -> int:
        """Compute and write the missing outputs for these videos of the training split; returns how many were missing.

        The features that a teacher reads are needed only here.  `world`: the processes that share the work; each calls this.
        Raises UserError as the dataset does, and when the folder cannot be written.
        """
        made = 0
        for teacher, folder, request in zip(self.teachers, self.folders, self.requests, strict=True):
            # divided among all processes; then, in case machines have folders of their own, among those of each machine
            for rank, ranks in ((world.rank, world.size), (world.local_rank, world.local_size))[:1 + (world.size > 1)]:
                missing = {v for v in video_ids if not (folder / f"{v}.npz").is_file()}
                world.barrier()  # nobody writes before all have listed what is missing
                if missing:
                    made += self._compute(teacher, folder, request, missing, device, rank, ranks)
                world.barrier()
        return sum(world.all_gather(made))

    @torch.no_grad()
    def _compute(self, teacher: Teacher, folder: Path, request: Request, missing: set[str], device: torch.device, rank: int,
                 ranks: int) -> int:
        config = dataclasses.replace(self.config, model=teacher.config.model)  # its streams, its padding
        dataset = TalDataset(config, config.train_split, training=True)
        if absent := sorted(missing - {video.id for video in dataset.videos}):
            raise UserError(f"{config.source}: distill.outputs: cache: teacher {teacher.name} has no features of {absent[0]} "
                            f"({len(absent)} of the videos that the student trains on lack what it reads); add them, or use "
                            "outputs: online, which leaves such videos out (dataset.missing: skip)")
        write_json_atomic(folder / "about.json", {"teacher": str(teacher.checkpoint.path), "weights": teacher.weights,
                                                  "arrays": list(request.names)})
        advance, made, seen = bar(-(-len(missing) // ranks), f"videos, teacher {teacher.name}"), 0, 0
        for batch in batches(inference_loader(dataset, config, rank=rank, ranks=ranks, wanted=missing)):
            seen += len(batch.video_ids)
            advance(seen, max(seen, -(-len(missing) // ranks)))
            wanted = [b for b, v in enumerate(batch.video_ids) if v in missing]
            moved = batch.to(device)
            outputs = run_teacher(teacher, moved.feats, moved.mask, request.order)
            for b in wanted:
                rows = {name: getattr(outputs, name)[b] for name in request.names}
                self._write(folder / f"{batch.video_ids[b]}.npz", rows, batch.mask[b], teacher.model.strides)
            made += len(wanted)
        return made

    def _write(self, path: Path, rows: dict[str, Tensor], mask_T: Tensor, strides: Sequence[int]) -> None:
        arrays: dict[str, Any] = {}
        for name, values in rows.items():
            levels = strides if name in PER_POINT else (1,)
            parts = values.split([len(mask_T) // s for s in levels])
            valid = torch.cat([part[:int(mask_T[::s].sum())] for part, s in zip(parts, levels, strict=True)])
            arrays[name] = valid.float().cpu().numpy()
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_atomic(path, lambda file: file.write(buffer.getbuffer()))

    def __call__(self, batch: Batch) -> list[TeacherOutputs]:
        """The outputs of every teacher for the crops of a batch; zero at padded steps and points."""
        return [self._batch(batch, *of) for of in zip(self.teachers, self.folders, self.requests, strict=True)]

    def _batch(self, batch: Batch, teacher: Teacher, folder: Path, request: Request) -> TeacherOutputs:
        lengths, padded, strides = batch.mask.sum(1).tolist(), batch.mask.shape[1], teacher.model.strides
        crops: dict[str, list[Tensor]] = {name: [] for name in request.names}
        for sample, steps in zip(batch.samples, lengths, strict=True):
            whole = self._read(folder / f"{sample.video_id}.npz", sample.source_length, strides, request)
            for name, rows in whole.items():
                levels = strides if name in PER_POINT else (1,)
                parts = rows.split([-(-sample.source_length // s) for s in levels])
                crops[name].append(torch.cat([_window(p, sample.start // s, -(-steps // s), padded // s)
                                              for p, s in zip(parts, levels, strict=True)]))
        return TeacherOutputs(**{name: torch.stack(rows).to(batch.feats.device) for name, rows in crops.items()})

    def _read(self, path: Path, steps: int, strides: Sequence[int], request: Request) -> dict[str, Tensor]:
        if path in self._memory:
            return self._memory[path]
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: torch.from_numpy(archive[name]) for name in request.names}
        except FileNotFoundError as error:
            raise UserError(f"{path}: has been removed since training began; start again with --resume auto, which computes "
                            "it anew") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: cannot be read as cached teacher outputs ({error}); remove the file") from error
        points = sum(-(-steps // s) for s in strides)
        for name, rows in arrays.items():
            if len(rows) != (points if name in PER_POINT else steps):
                raise UserError(f"{path}: {name}: has {len(rows)} rows, which do not fit a video of {steps} feature vectors; the "
                                "features have changed, remove the folder")
        size = sum(a.numel() * 4 for a in arrays.values())
        if self._bytes + size <= MEMORY:
            self._memory[path], self._bytes = arrays, self._bytes + size
        return arrays


def _window(rows: Tensor, start: int, count: int, padded: int) -> Tensor:
    out = rows.new_zeros(padded, rows.shape[1])
    out[:count] = rows[start:start + count]
    return out


def _key(config: Config, teacher: Teacher, request: Request) -> str:
    digest = hashlib.sha256()
    for name, value in teacher.checkpoint.select(teacher.weights).items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)  # as bytes: numpy has no bfloat16
    data = to_dict(config)["dataset"]
    paths = {k: data[k] for k in ("feat_folder", "file_prefix", "file_ext", "modalities", "feat_stride", "downsample_rate",
                                  "force_upsampling", "max_seq_len")}
    order = None if request.order is None else [config.model.modalities, config.model.hallucinated]
    network = to_dict(teacher.config)["model"]
    if teacher.config.model.use_abs_pe:  # the table of positions is as long as its sequences
        network["max_seq_len"] = teacher.config.dataset.max_seq_len
    if teacher.config.test_cfg.precision != "fp32":
        network["precision"] = teacher.config.test_cfg.precision
    digest.update(json.dumps([network, paths, order, request.names], sort_keys=True).encode())
    return f"{teacher.name}_{digest.hexdigest()[:16]}"
