"""Fuse the verb and noun detections of two models into detections of actions, (verb, noun) pairs (EPIC-Kitchens-100).

In each video every verb segment v is paired with every noun segment n with a tIoU of at least `min_tiou`:

    score = s_v^w * s_n^(1 - w) * tIoU(v, n),   segment = (s_v v + s_n n) / (s_v + s_n),   class = verb * num_nouns + noun

where w is the exponent of the verb (1/2: geometric mean).  The factor tIoU favours pairs of the same moment.  Gaussian soft-NMS
per pair of classes then removes duplicates from neighbouring segments.  The formula is ours: the published release has verbs and
nouns only.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from libs.core.errors import UserError
from libs.utils.evaluation.columns import rows_by_video
from libs.utils.evaluation.predictions import Detections


@dataclass(frozen=True)
class ActionFusion:
    """Settings: minimum tIoU of a pair; exponent w of the verb's score; best verbs and best nouns used per video; maximum number
    of pairs before and of actions after NMS per video; sigma and minimum score of the soft-NMS."""

    min_tiou: float = 0.3
    verb_share: float = 0.5
    per_video: int = 1000
    pre_nms_topk: int = 5000
    max_seg_num: int = 2000
    nms_sigma: float = 0.4
    min_score: float = 0.001

    def __post_init__(self) -> None:
        for name in ("min_tiou", "verb_share", "min_score"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}: {getattr(self, name)} is not between 0 and 1")
        for name in ("per_video", "pre_nms_topk", "max_seg_num"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not a number of segments; use at least 1")


def fuse_actions(verbs: Detections, nouns: Detections, num_nouns: int, settings: ActionFusion = ActionFusion()) -> Detections:
    """Detections of actions with the label verb * num_nouns + noun, by video id, then by descending score.

    A video needs detections of both kinds.  Raises UserError for negative scores and for noun labels outside
    0 .. num_nouns - 1.
    """
    for name, found in (("verb", verbs), ("noun", nouns)):
        if len(found) and found.score.min() < 0:
            raise UserError(f"{name} detections: the score {found.score.min()} is negative; scores are probabilities")
    if len(nouns) and not 0 <= nouns.label.min() <= nouns.label.max() < num_nouns:
        raise UserError(f"noun detections: the labels go from {nouns.label.min()} to {nouns.label.max()}, but ids are 0 to "
                        f"{num_nouns - 1}; are these the predictions of the noun model?")
    verb_rows, noun_rows = rows_by_video(verbs.video_id, -verbs.score), rows_by_video(nouns.video_id, -nouns.score)
    best = slice(settings.per_video)
    parts = [_pairs(verbs.take(verb_rows[video][best]), nouns.take(noun_rows[video][best]), num_nouns, settings)
             for video in sorted(verb_rows.keys() & noun_rows.keys())]
    return Detections.concat(parts)


def _pairs(verbs: Detections, nouns: Detections, num_nouns: int, settings: ActionFusion) -> Detections:
    """The actions of one video."""
    import torch  # 1.5 s, which help and every refused input do without

    from libs.utils.nms.api import batched_nms
    inside = np.minimum(verbs.t_end[:, None], nouns.t_end) - np.maximum(verbs.t_start[:, None], nouns.t_start)  # (verbs, nouns)
    inside = inside.clip(min=0)
    union = (verbs.t_end - verbs.t_start)[:, None] + (nouns.t_end - nouns.t_start) - inside
    tiou = np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
    score = verbs.score[:, None] ** settings.verb_share * nouns.score ** (1 - settings.verb_share) * tiou
    i, j = np.nonzero((tiou >= settings.min_tiou) & (score > settings.min_score))
    best = np.argsort(-score[i, j], kind="stable")[:settings.pre_nms_topk]
    i, j = i[best], j[best]
    share = (verbs.score[i] / (verbs.score[i] + nouns.score[j]))[:, None]
    verb_times, noun_times = (np.stack([f.t_start[k], f.t_end[k]], 1) for f, k in ((verbs, i), (nouns, j)))
    segments = share * verb_times + (1 - share) * noun_times
    kept = batched_nms(torch.from_numpy(segments.astype(np.float32)), torch.from_numpy(score[i, j].astype(np.float32)),
                       torch.from_numpy(verbs.label[i] * num_nouns + nouns.label[j]), method="soft", iou_threshold=0.0,
                       min_score=settings.min_score, max_seg_num=settings.max_seg_num, sigma=settings.nms_sigma, multiclass=True,
                       voting_thresh=0.0)
    segments, scores, labels = (t.numpy() for t in kept)
    return Detections.from_arrays(np.repeat(verbs.video_id[:1], len(scores)), segments[:, 0], segments[:, 1], labels, scores)
