"""Data loaders of training and inference: dataset + configuration -> batches."""
from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import signal
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from libs.core.errors import UserError
from libs.core.schema import Config
from libs.datasets.dataset import TalDataset
from libs.datasets.loading.batch import Batch, read_batch
from libs.datasets.loading.padding import Padding, padding_of
from libs.datasets.loading.samplers import EpochSampler, Part, PartSampler, group_for_inference
from libs.datasets.sample import VideoDataset


def training_loader(dataset: TalDataset, config: Config, pin: bool = False, teachers: Sequence[Config] = (),
                    device: torch.device | None = None, rank: int = 0, ranks: int = 1) -> tuple[DataLoader, EpochSampler]:
    """Loader of training batches and the sampler of a step's whole batches (set `sampler.epoch` before each epoch).

    The loader gives the batches of process `rank` of `ranks`: opt.accumulation_steps per step (see `steps`).
    `teachers`: configurations of networks that see the same batches; videos are padded as far as the widest of them needs.
    `device`: of the training, for loader.cache: device (None: that of the configuration).
    Raises UserError when there are fewer videos than a step needs, and as `TalDataset.keep`.
    """
    own, size = config.loader.batch_size, config.videos_per_step(ranks)
    if len(dataset) < size:
        product = f"{own} x {config.opt.accumulation_steps} (opt.accumulation_steps) x {ranks} (processes) = {size}"
        raise UserError(f"{config.source}: loader.batch_size: {own if own == size else product} is more than the {len(dataset)} "
                        f"training videos of {config.dataset.json_file}; lower it")
    padding = padding_of(config, training=True)
    theirs = [padding_of(t) for t in teachers]
    padding = dataclasses.replace(padding, margin=max(padding.margin, *(p.margin for p in theirs), 0),
                                  always=padding.always or any(p.always for p in theirs))
    dataset.keep(device)
    sampler = EpochSampler(len(dataset), size, config.init_rand_seed, config.loader.bucket,
                           lambda epoch, i: padding.shortest(dataset.sample((epoch, i)).steps))
    order = sampler if own == size else PartSampler(sampler, own, rank, ranks)
    return _loader(dataset, order, padding, config.loader.num_workers, pin), sampler


def inference_loader(dataset: VideoDataset, config: Config, pin: bool = False, rank: int = 0, ranks: int = 1,
                     wanted: Collection[str] | None = None) -> DataLoader:
    """Loader of whole videos, in batches of `test_cfg.batch_size`.

    `ranks` > 1: every ranks-th batch from number `rank` on, so that all ranks together give each batch once.
    `wanted`: only batches with one of these video ids.  Neither changes the contents of a batch.
    """
    padding = padding_of(config)
    groups = group_for_inference([int(n) for n in dataset.lengths()], padding, config.test_cfg.batch_size)
    if wanted is not None:
        groups = [group for group in groups if any(dataset.videos[i].id in wanted for i in group)]
    return _loader(dataset, groups[rank::ranks], padding, config.loader.num_workers, pin)


def batches(loader: DataLoader) -> Iterator[Batch]:
    """The batches of a loader; raises the UserError that a data-loader worker returned."""
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def steps(loader: DataLoader, config: Config) -> Iterator[tuple[Batch, ...]]:
    """The batches of a training loader, grouped by step."""
    found = batches(loader)
    while parts := tuple(itertools.islice(found, config.opt.accumulation_steps)):
        yield parts


def close(loader: DataLoader) -> None:
    """End the workers of a loader now.

    After an exception, the garbage collector may destroy their queues first and then waits 5 s for each worker.
    """
    iterator, loader._iterator = loader._iterator, None
    shut_down = getattr(iterator, "_shutdown_workers", None)  # None where the main process reads
    if shut_down is not None:
        shut_down()


@dataclass(frozen=True)
class _Batches(Dataset):
    """Makes whole batches.  Returns a UserError as a value: raised in a worker it would arrive wrapped in a traceback."""

    dataset: VideoDataset
    padding: Padding

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[Any] | Part) -> Batch | UserError:
        own, whole = (indices.own, indices.whole) if isinstance(indices, Part) else (indices, indices)
        try:
            samples = [self.dataset.sample(i) for i in own]
            alike = [self.dataset.sample(i) for i in whole] if self.padding.alike else samples
            return read_batch(self.dataset, samples, self.padding.of_batch([s.steps for s in alike]))
        except UserError as error:
            return error


def _unchanged(batch: Any) -> Any:
    return batch


def _loader(dataset: VideoDataset, batch_sampler: Any, padding: Padding, workers: int, pin: bool) -> DataLoader:
    workers = min(workers, os.cpu_count() or 1)  # batches do not depend on it, and more processes than cores only cost time
    context = None
    if dataset.kept:
        forks = "fork" in multiprocessing.get_all_start_methods()  # other methods would copy the features into every worker
        workers = workers if forks and dataset.feature_device.type == "cpu" else 0
        context = "fork" if workers else None
    return DataLoader(_Batches(dataset, padding), batch_sampler=batch_sampler, num_workers=workers, collate_fn=_unchanged,
                      pin_memory=pin, persistent_workers=workers > 0, worker_init_fn=_set_up_worker,
                      multiprocessing_context=context,
                      generator=torch.Generator())  # iterating must not change the global random state


def _set_up_worker(_worker: int) -> None:
    """One thread; ignore the signals that a terminal or a scheduler sends to every process.

    The main process decides when to stop: the death of a worker would raise there in the middle of a step."""
    torch.set_num_threads(1)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
