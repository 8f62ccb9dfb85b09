"""Training batches whose videos borrow from one another: moved by one place, blended, or with actions of the next video."""
from __future__ import annotations

import dataclasses
import math

import torch

from libs.datasets.loading.batch import Batch
from libs.datasets.sample import Sample


def rolled(batch: Batch) -> Batch:
    """The batch with its videos moved by one place, the last one first."""
    tensors = {name: getattr(batch, name).roll(1, dims=0) for name in ("feats", "mask", "segments", "labels", "present")}
    return Batch(**tensors, samples=_rolled(batch.samples))


def blend(batch: Batch, share: float) -> Batch:
    """The batch with a part of the next video in every video, at its valid steps: (1 - s) x + s x', s uniform in [0, share].

    One s per video, drawn on the CPU.  The ground truth stays that of x; teachers show what x' adds (mixup, Zhang et al. 2018, as
    function matching: Beyer et al., Knowledge distillation: a good teacher is patient and consistent, 2022).
    """
    s = (torch.rand(len(batch.feats), 1, 1) * share).to(batch.feats.device)
    other = batch.feats.roll(1, dims=0)
    return dataclasses.replace(batch, feats=torch.where(batch.mask.unsqueeze(-1), (1 - s) * batch.feats + s * other, 0.0))


def swap_actions(batch: Batch, probability: float) -> Batch:
    """The batch with the features of some actions replaced by those of an action of the same class in the next video.

    Each action is replaced with `probability`, by one drawn among those of its class, stretched to its length (linear
    interpolation); the ground truth stays right.  An action that overlaps another neither gives nor takes features, since they
    show both.  Drawn on the CPU (after copy-paste, Ghiasi et al. 2021, which adds objects where this replaces them).
    """
    videos, steps, others, places = [], [], [], []
    for b, (sample, other) in enumerate(zip(batch.samples, _rolled(batch.samples), strict=True)):
        givers = _apart(other)
        for (start, end), label in _apart(sample):
            same = [segment for segment, its_label in givers if its_label == label]
            if not same or float(torch.rand(())) >= probability:
                continue
            first, last = same[int(torch.randint(len(same), ()))]
            inside = torch.arange(sample.steps)[max(math.ceil(start), 0):max(math.ceil(end), 0)]  # [start, end)
            steps.append(inside)
            places.append((first + (inside - start) / (end - start) * (last - first)).clamp(0, other.steps - 1))
            videos.append(torch.full_like(inside, b))
            others.append(torch.full_like(inside, (b - 1) % len(batch.samples)))
    if not steps:
        return batch
    device = batch.feats.device
    video, step, source, place = (torch.cat(part).to(device) for part in (videos, steps, others, places))
    before, after = place.floor().long(), place.ceil().long()
    feats = batch.feats.clone()
    feats[video, step] = torch.lerp(batch.feats[source, before], batch.feats[source, after], (place - before).unsqueeze(-1))
    return dataclasses.replace(batch, feats=feats)


def _rolled(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
    return samples[-1:] + samples[:-1]


def _apart(sample: Sample) -> list[tuple[tuple[float, float], int]]:
    """Segments, in grid units, and labels of the actions that overlap no other."""
    start, end = sample.segments.unbind(1)
    alone = ((start[:, None] < end) & (start < end[:, None])).sum(1) == 1  # each overlaps itself
    return [((float(start[n]), float(end[n])), int(sample.labels[n])) for n in alone.nonzero().flatten()]
