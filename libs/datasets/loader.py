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
from libs.datasets.batch import Batch, make_batch, read_batch
from libs.datasets.dataset import TalDataset
from libs.datasets.padding import Padding, padding_of
from libs.datasets.samplers import EpochSampler, Part, PartSampler, group_for_inference


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
