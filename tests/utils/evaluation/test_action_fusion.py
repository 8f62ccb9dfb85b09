"""Verbs and nouns to actions: the formula by hand, against a plain loop, and what is refused."""
from __future__ import annotations

import numpy as np
import pytest

from libs.core.errors import UserError
from libs.utils.evaluation.action_fusion import ActionFusion, fuse_actions
from libs.utils.evaluation.predictions import Detections

ALL = ActionFusion(min_tiou=0.0, nms_sigma=1e9, min_score=0.0)  # a sigma so large that soft-NMS changes nothing


def test_one_pair_by_hand():
    verb = Detections.from_arrays(["a"], [0.0], [10.0], [3], [0.9])
    noun = Detections.from_arrays(["a", "b"], [5.0, 0.0], [15.0, 10.0], [7, 7], [0.4, 0.9])
    found = fuse_actions(verb, noun, 10)
    assert (found.video_id.tolist(), found.label.tolist()) == (["a"], [37])
    assert found.score.tolist() == pytest.approx([(0.9 * 0.4) ** 0.5 * (5 / 15)])
    share = 0.9 / 1.3
    assert found.t_start.tolist() == pytest.approx([(1 - share) * 5])
    assert found.t_end.tolist() == pytest.approx([share * 10 + (1 - share) * 15])
    assert fuse_actions(verb, noun, 10, ActionFusion(verb_share=1.0)).score.tolist() == pytest.approx([0.9 / 3])
    assert len(fuse_actions(verb, noun, 10, ActionFusion(min_tiou=0.34))) == 0


def random(seed: int, classes: int, count: int = 40) -> Detections:
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 50, count)
    return Detections.from_arrays(rng.choice(["a", "b", "c"], count), start, start + rng.uniform(1, 20, count),
                                  rng.integers(0, classes, count), rng.uniform(0.05, 1, count))


def test_all_pairs_against_a_plain_loop():
    verbs, nouns = random(1, 4), random(2, 5)
    want = []
    for i in range(len(verbs)):
        for j in range(len(nouns)):
            inside = min(verbs.t_end[i], nouns.t_end[j]) - max(verbs.t_start[i], nouns.t_start[j])
            if verbs.video_id[i] == nouns.video_id[j] and inside > 0:
                union = verbs.t_end[i] - verbs.t_start[i] + nouns.t_end[j] - nouns.t_start[j] - inside
                score = (verbs.score[i] * nouns.score[j]) ** 0.5 * inside / union
                want.append((str(verbs.video_id[i]), int(verbs.label[i] * 5 + nouns.label[j]), float(score)))
    found = fuse_actions(verbs, nouns, 5, ALL)
    rows = sorted(zip(found.video_id.tolist(), found.label.tolist(), found.score.tolist(), strict=True))
    assert [row[:2] for row in rows] == [row[:2] for row in sorted(want)]
    assert [row[2] for row in rows] == pytest.approx([row[2] for row in sorted(want)], abs=1e-6)
    usual = fuse_actions(verbs, nouns, 5, ActionFusion(min_tiou=0.0))  # soft-NMS lowers pairs that resemble a better one
    assert usual.score.sum() < 0.8 * found.score.sum()
    for video in "abc":
        assert usual.score[usual.video_id == video].max() == found.score[found.video_id == video].max()


def test_limits_per_video():
    verbs, nouns = random(1, 4), random(2, 5)
    few = fuse_actions(verbs, nouns, 5, ActionFusion(min_tiou=0.0, max_seg_num=3))
    assert np.unique(few.video_id, return_counts=True)[1].tolist() == [3, 3, 3]
    for video in "abc":
        assert (np.diff(few.take(few.video_id == video).score) <= 0).all()
    one = fuse_actions(verbs, nouns, 5, ActionFusion(min_tiou=0.0, per_video=1))
    assert len(one) <= 3
    assert len(fuse_actions(verbs, Detections.empty(), 5)) == 0


def test_what_is_refused():
    verbs, nouns = random(1, 4), random(2, 5)
    with pytest.raises(UserError, match="labels go from 0 to 4, but ids are 0 to 2"):
        fuse_actions(verbs, nouns, 3)
    with pytest.raises(UserError, match=r"verb detections: the score -0\.5 is negative"):
        fuse_actions(Detections.from_arrays(["a"], [0], [1], [0], [-0.5]), nouns, 5)
    for settings in ({"min_tiou": 1.5}, {"verb_share": -0.1}, {"per_video": 0}, {"max_seg_num": 0}):
        with pytest.raises(UserError, match=next(iter(settings))):
            ActionFusion(**settings)
