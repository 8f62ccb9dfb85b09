"""From samples to padded batches: how far to pad, which videos may share a batch, the order of an epoch.

The published network lets padding leak into the last points of a video (SPEC items 12 and 15), so padding is part of its
arithmetic.  `Padding` gives the shortest length whose valid outputs equal those of the published padded length, and
`group_for_inference` puts only videos into one batch for which such a length exists.
"""
from __future__ import annotations

import dataclasses
import itertools
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from libs.core.checks import TERMS, max_div_factor
from libs.core.errors import UserError
from libs.core.schema import Config
from libs.datasets.dataset import Sample, TalDataset, Window

BF16_MULTIPLE = 256  # of evaluation: bf16 kernels are made anew for every length, which takes longer than the padding


@dataclass(frozen=True)
class Padding:
    """Padding rule of a network: `max_seq_len` and the `factor` of the published lengths, the coarsest level's stride, the
    margin that a video's end needs to see padding at every level, whether a position table is stretched to the length,
    whether to pad as far as the published program whatever the outputs need, whether the parts of a batch are padded alike
    (losses that run over padding depend on it), and a multiple that batches are padded to as far as their outputs allow."""

    max_seq_len: int
    factor: int
    stride: int
    margin: int
    stretched_positions: bool = False
    always: bool = False
    alike: bool = False
    multiple: int = 1

    def published(self, length: int) -> int:
        """The length that the published program pads a video of `length` steps to."""
        return self.max_seq_len if length <= self.max_seq_len else _round_up(length, self.factor)

    def exact_only(self, length: int) -> bool:
        """Whether only the published length gives the published outputs (no room for the margin, or positions stretched)."""
        stretched = self.stretched_positions and length > self.max_seq_len
        return self.always or stretched or self.published(length) - length < self.margin

    def shortest(self, length: int) -> int:
        """The shortest padded length with the outputs of the published one."""
        if self.exact_only(length):
            return self.published(length)
        return min(self.published(length), _round_up(length + self.margin, self.stride))

    def allows(self, length: int, padded: int) -> bool:
        """Whether a video of `length` steps has the published outputs in a batch of `padded` steps (at least `shortest`)."""
        if self.exact_only(length):
            return padded == self.published(length)
        return padded <= self.max_seq_len or not self.stretched_positions  # a longer batch would stretch its positions too

    def of_batch(self, lengths: Sequence[int]) -> int:
        """The padded length of a batch; ValueError if the videos need different ones (see `group_for_inference`)."""
        padded = max(self.shortest(n) for n in lengths)
        wider = _round_up(padded, math.lcm(self.multiple, self.stride))
        if padded <= self.max_seq_len < wider:
            wider = self.max_seq_len
        if all(self.allows(n, wider) for n in lengths):
            return wider
        for n in lengths:
            if not self.allows(n, padded):
                raise ValueError(f"a video of {n} steps needs {self.published(n)}, not {padded}: batch it apart")
        return padded


def padding_of(config: Config, training: bool = False) -> Padding:
    """The padding rule of a configuration (SPEC section 11, rows 12 and 13; section 12 for the losses of preset c2ms)."""
    model, distill = config.model, config.distill
    coarsest = model.scale_factor ** model.backbone_arch[2]
    half_kernel = max(model.embd_kernel_size, model.head_kernel_size, 3) // 2
    # the published hallucinator and its time gate let padding through: two convolutions deep, and as a whole
    margin = max(half_kernel * coarsest, 2 + half_kernel if model.hallucinator == "rgb2flow" else 0)
    unmasked = bool(distill.teachers) and distill.preset == "c2ms"
    always = model.temporal_gate == "published" or (training and (config.loader.padding == "max_seq_len" or unmasked))
    alike = bool(distill.teachers) and any(getattr(distill, term).mask is False for term in TERMS)
    low = config.test_cfg.precision == "bf16"
    multiple = config.loader.pad_multiple if training else BF16_MULTIPLE if low else 1
    return Padding(config.dataset.max_seq_len, max_div_factor(config), coarsest, margin,
                   model.use_abs_pe and model.backbone_type == "convTransformer", always, alike, multiple)


@dataclass(frozen=True)
class Batch:
    """B videos padded to T steps; ground truth padded to the longest list, N segments."""

    feats: Tensor  # (B, T, C) float32, zero at padded steps
    mask: Tensor  # (B, T) bool, valid steps
    segments: Tensor  # (B, N, 2) float32, grid units
    labels: Tensor  # (B, N) int64
    present: Tensor  # (B, N) bool, False for filling
    samples: tuple[Sample, ...]  # the videos, their own feats left empty: id, grid, duration

    @property
    def video_ids(self) -> tuple[str, ...]:
        return tuple(s.video_id for s in self.samples)

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device` (no wait where memory is pinned)."""
        move = {k: getattr(self, k).to(device, non_blocking=True) for k in ("feats", "mask", "segments", "labels", "present")}
        return Batch(**move, samples=self.samples)

    def pin_memory(self) -> Batch:
        """Called by the data loader when batches go to a GPU."""
        tensors = {k: getattr(self, k) for k in ("feats", "mask", "segments", "labels", "present")}
        pinned = {k: v.pin_memory() if v.device.type == "cpu" else v for k, v in tensors.items()}
        return Batch(**pinned, samples=self.samples)


def make_batch(samples: Sequence[Sample], length: int) -> Batch:
    """Pad samples to `length` steps; ValueError if one is longer."""
    feats = torch.empty(len(samples), length, samples[0].feats.shape[1])
    batch = _around(feats, [s.without_features() for s in samples], [len(s.feats) for s in samples])
    for b, sample in enumerate(samples):
        feats[b, :len(sample.feats)] = sample.feats
    return batch


def read_batch(dataset: TalDataset, windows: Sequence[Window], length: int) -> Batch:
    """As `make_batch` of the windows' samples; features go from their files, or where they are kept, straight into the batch.

    `feats` lies on `dataset.feature_device`.  Raises UserError for unusable features.
    """
    feats = _uninitialised((len(windows), length, dataset.channels), dataset.feature_device)
    batch = _around(feats, [w.sample for w in windows], [w.steps for w in windows])
    for b, window in enumerate(windows):
        dataset.read(window, feats[b, :window.steps])
    return batch


def _around(feats: Tensor, samples: Sequence[Sample], steps: Sequence[int]) -> Batch:
    """The batch around feats (B, T, C) whose valid steps are filled in later; the others are set to zero here."""
    B, length, _ = feats.shape
    most = max(len(s.labels) for s in samples)
    mask = torch.zeros(B, length, dtype=torch.bool)
    segments, labels = torch.zeros(B, most, 2), torch.zeros(B, most, dtype=torch.int64)
    present = torch.zeros(B, most, dtype=torch.bool)
    for b, sample in enumerate(samples):
        n = len(sample.labels)
        if steps[b] > length:
            raise ValueError(f"{sample.video_id}: {steps[b]} steps do not fit into {length}")
        feats[b, steps[b]:] = 0
        mask[b, :steps[b]] = True
        segments[b, :n], labels[b, :n], present[b, :n] = sample.segments, sample.labels, True
    return Batch(feats, mask, segments, labels, present, tuple(samples))


def _uninitialised(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A float32 tensor; in a reading process in the memory that batches are sent through, which saves a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, device=device)
    return torch.empty(0).set_(torch.UntypedStorage._new_shared(4 * math.prod(shape))).view(shape)


def group_for_inference(lengths: Sequence[int], padding: Padding, batch_size: int) -> list[list[int]]:
    """Indices of videos, in batches whose outputs equal those of each video alone.

    With a batch size of 1: data set order.  Otherwise videos of similar length go together, the longest first (so that a
    lack of memory shows at once).
    """
    if batch_size == 1:
        return [[i] for i in range(len(lengths))]
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    for i in order:
        if groups and len(groups[-1]) < batch_size and _fits(padding, [lengths[j] for j in groups[-1]] + [lengths[i]]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


class EpochSampler(Sampler):
    """Batches of (epoch, index) for training: a permutation that depends on (seed, epoch) alone, the last part batch dropped.

    bucket > 0: batches of videos of similar length.  Of each `bucket` batches in a row of that permutation, the videos are sorted
    by padded(epoch, index), the length that their crop needs (a tie keeps its order); every `batch_size` neighbours are a batch,
    and these batches are shuffled.  The videos that an epoch sees are the same as without.

    Set `epoch` before each epoch, and `skip` to the batches of it that were seen before (a run that goes on in its middle).
    """

    def __init__(self, size: int, batch_size: int, seed: int, bucket: int = 0,
                 padded: Callable[[int, int], int] = lambda epoch, index: 0):
        self.size, self.batch_size, self.seed, self.epoch, self.skip = size, batch_size, seed, 0, 0
        self.bucket, self.padded = bucket, padded

    def __len__(self) -> int:
        return self.size // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch (0-based)."""
        return np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._batches(self.epoch), self.skip, None)

    def _batches(self, epoch: int) -> Iterator[list[tuple[int, int]]]:
        videos = [(epoch, int(i)) for i in self.order(epoch)[:len(self) * self.batch_size]]
        if not self.bucket:
            yield from self._cut(videos)
            return
        pool = self.bucket * self.batch_size
        for first in range(0, len(videos), pool):
            found = self._cut(sorted(videos[first:first + pool], key=lambda video: self.padded(*video)))
            # + 1: a trailing 0 in the key would give the numbers of the permutation again
            for b in np.random.Generator(np.random.PCG64([self.seed, epoch, first + 1])).permutation(len(found)):
                yield found[b]

    def _cut(self, videos: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        return _cut(videos, self.batch_size)


class Part(NamedTuple):
    """Videos of one forward pass, (epoch, index) each, and those of the whole batch that the step is made of."""

    own: list[tuple[int, int]]
    whole: list[tuple[int, int]]


class PartSampler(Sampler):
    """The parts of a sampler's batches that process `rank` of `ranks` computes, `size` videos each: of every batch the parts
    rank, rank + ranks, ..., so that neighbours, which are of similar length in bucketed batches, run side by side."""

    def __init__(self, sampler: EpochSampler, size: int, rank: int, ranks: int):
        self.sampler, self.size, self.rank, self.ranks = sampler, size, rank, ranks

    def __len__(self) -> int:
        return len(self.sampler) * (self.sampler.batch_size // (self.size * self.ranks))

    def __iter__(self) -> Iterator[Part]:
        for batch in self.sampler:
            for own in _cut(batch, self.size)[self.rank::self.ranks]:
                yield Part(own, batch)


def _cut(items: list[Any], size: int) -> list[list[Any]]:
    return [items[first:first + size] for first in range(0, len(items), size)]


def training_loader(dataset: TalDataset, config: Config, pin: bool = False, teachers: Sequence[Config] = (),
                    device: torch.device | None = None, rank: int = 0, ranks: int = 1) -> tuple[DataLoader, EpochSampler]:
    """Loader of training batches and the sampler of a step's whole batches (set `sampler.epoch` before each epoch).

    The loader gives what process `rank` of `ranks` computes: opt.accumulation_steps batches per step (see `steps`).
    `teachers`: configurations of networks that see the same batches; videos are padded as far as the widest of them needs.
    `device`: of the training, for loader.cache: device (None: what `devices` says).
    Raises UserError when there are fewer videos than a step needs, and as `TalDataset.keep`.
    """
    own, size = config.loader.batch_size, config.videos_per_step(ranks)
    if len(dataset) < size:
        product = f"{own} x {config.opt.accumulation_steps} (opt.accumulation_steps) x {ranks} (processes) = {size}"
        raise UserError(f"{config.source}: loader.batch_size: {own if own == size else product} is more than the {len(dataset)} "
                        f"training videos of {config.dataset.json_file}; lower it")
    padding = padding_of(config, training=True)
    padding = dataclasses.replace(padding, margin=max(padding.margin, *(padding_of(t).margin for t in teachers), 0))
    dataset.keep(device)
    sampler = EpochSampler(len(dataset), size, config.init_rand_seed, config.loader.bucket,
                           lambda epoch, i: padding.shortest(dataset.window((epoch, i)).steps))
    order = sampler if own == size else PartSampler(sampler, own, rank, ranks)
    return _loader(dataset, order, padding, config.loader.num_workers, pin), sampler


def inference_loader(dataset: Dataset, config: Config, pin: bool = False, rank: int = 0, ranks: int = 1,
                     wanted: Collection[str] | None = None) -> DataLoader:
    """Loader of the whole videos of a `TalDataset` or of `FeatureVideos`, in batches of `test_cfg.batch_size`; read from files,
    or where they are kept.

    `ranks` > 1: every ranks-th batch from number `rank` on, so that the loaders of all ranks give each batch once.
    `wanted`: only batches with one of these video ids.  What is in a batch depends on neither.
    """
    padding = padding_of(config)
    groups = group_for_inference([int(n) for n in dataset.lengths()], padding, config.test_cfg.batch_size)
    if wanted is not None:
        groups = [group for group in groups if any(dataset.videos[i].id in wanted for i in group)]
    return _loader(dataset, groups[rank::ranks], padding, config.loader.num_workers, pin)


def batches(loader: DataLoader) -> Iterator[Batch]:
    """The batches of a loader; a UserError of a reading process is raised here as it is."""
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def steps(loader: DataLoader, config: Config) -> Iterator[tuple[Batch, ...]]:
    """The batches of a training loader, those of one step together."""
    found = batches(loader)
    while parts := tuple(itertools.islice(found, config.opt.accumulation_steps)):
        yield parts


def close(loader: DataLoader) -> None:
    """End the reading processes of a loader now.

    Left to the garbage collector, after an exception, their queues may go first: then each is waited for in vain for 5 s.
    """
    iterator, loader._iterator = loader._iterator, None
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()


@dataclass(frozen=True)
class _Batches(Dataset):
    """Makes whole batches.  Hands a UserError on as a value: raised in a worker it would arrive wrapped in a traceback."""

    dataset: Dataset  # a TalDataset, or one that gives samples
    padding: Padding

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[Any] | Part) -> Batch | UserError:
        whole = None
        if isinstance(indices, Part):
            indices, whole = indices.own, indices.whole if self.padding.alike else None
        try:
            if isinstance(self.dataset, TalDataset):
                windows = [self.dataset.window(i) for i in indices]
                lengths = [w.steps for w in (windows if whole is None else map(self.dataset.window, whole))]
                return read_batch(self.dataset, windows, self.padding.of_batch(lengths))
            samples = [self.dataset[i] for i in indices]
            return make_batch(samples, self.padding.of_batch([len(s.feats) for s in samples]))
        except UserError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _loader(dataset: Dataset, batch_sampler: Any, padding: Padding, workers: int, pin: bool) -> DataLoader:
    workers = min(workers, os.cpu_count() or 1)  # batches do not depend on it, and more processes than cores only cost time
    context = None
    if isinstance(dataset, TalDataset) and dataset.kept:
        forks = "fork" in multiprocessing.get_all_start_methods()  # without it every process would get a copy of its own
        workers = workers if forks and dataset.feature_device.type == "cpu" else 0
        context = "fork" if workers else None
    return DataLoader(_Batches(dataset, padding), batch_sampler=batch_sampler, num_workers=workers, collate_fn=_as_it_is,
                      pin_memory=pin, persistent_workers=workers > 0, worker_init_fn=_settle_worker,
                      multiprocessing_context=context,
                      generator=torch.Generator())  # its own: iterating must not touch the global random state


def _settle_worker(_worker: int) -> None:
    """One thread, and deaf to what a terminal or a scheduler sends to every process: the main process decides when to stop.

    A reading process that died of it would raise in the main one in the middle of a step."""
    torch.set_num_threads(1)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _fits(padding: Padding, lengths: Sequence[int]) -> bool:
    padded = max(padding.shortest(n) for n in lengths)
    return all(padding.allows(n, padded) for n in lengths)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
