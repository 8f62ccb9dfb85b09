"""Pseudo-labels: a teacher's best detections as the annotations of training videos that have none (Lee 2013).

How many are taken follows from the annotated videos: distill.pseudo_labels times as many per second as these have, those with the
highest scores of all videos.  So no score is a constant of the configuration: what a score means differs between detectors.
"""
from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from libs.core.errors import UserError
from libs.core.schema import Config
from libs.datasets.dataset import TalDataset
from libs.engine.distill.teachers import Teacher, training_videos
from libs.engine.inference.predict import predict
from libs.engine.runtime.world import ALONE, World
from libs.utils.evaluation.predictions import Detections
from libs.utils.progress import bar


def annotate(dataset: TalDataset, config: Config, teachers: Sequence[Teacher], device: torch.device, world: World = ALONE
             ) -> None:
    """Annotate the videos of a training set that have no annotations with the first teacher's detections.

    A video without any of them stays unlabelled.  Does nothing where distill.pseudo_labels is 0 or all videos are annotated.
    `world`: the processes that share the work; each calls this.
    Raises UserError where the teacher's features are missing, and where no annotated action tells how many to expect.
    """
    wanted = {v.id for v in dataset.videos} & dataset.unlabelled_ids
    if not (config.distill.pseudo_labels and teachers and wanted):
        return
    expected = config.distill.pseudo_labels * _expected(dataset, wanted)
    found = _detections(config, teachers[0], wanted, device, world)
    best = np.argsort(-found.score, kind="stable")[:round(expected)]
    dataset.annotate(found.take(np.sort(best)))


def _expected(dataset: TalDataset, wanted: set[str]) -> float:
    """Actions in the `wanted` videos if they have as many per second as the annotated ones."""
    actions, seconds = 0, {True: 0.0, False: 0.0}
    for sample in map(dataset.sample, range(len(dataset))):
        seconds[sample.video_id in wanted] += sample.grid.end_s(sample.steps)
        actions += len(sample.segments)  # none in wanted videos
    if not actions:
        raise UserError(f"{dataset.config.source}: distill.pseudo_labels: none of the annotated videos of train_split has an "
                        "action, so that it is unknown how many to expect in the others; set it to 0, or annotate a video")
    return actions / seconds[False] * seconds[True]


def _detections(config: Config, teacher: Teacher, wanted: set[str], device: torch.device, world: World) -> Detections:
    """The detections of a teacher in the `wanted` videos of the training split, of positive length."""
    test = dataclasses.replace(teacher.config.test_cfg, ext_score_file=None)  # its NMS
    dataset = training_videos(dataclasses.replace(config, test_cfg=test), teacher, wanted, "distill.pseudo_labels", "set it to 0")
    progress = bar(len(wanted), f"videos, teacher {teacher.name}")
    model = copy.deepcopy(teacher.model)  # `predict` leaves all of it in evaluation mode, distill.teacher_droppath does not
    found = predict(model, dataset, dataset.config, device, progress, world, wanted=wanted)
    return found.take(np.isin(found.video_id, list(wanted)) & (found.t_end > found.t_start))
