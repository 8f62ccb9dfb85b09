"""The weighted AP against a slow loop over repeated videos, and what follows from it."""
from __future__ import annotations

import metrics_twin as twin
import numpy as np
import pytest
from metrics_twin import random_case, rows, truth

from libs.utils.evaluation.metrics import evaluate_detections
from libs.utils.significance.bootstrap import WeightedAP, half_weights, resample, video_codes

TIOUS = (0.25, 0.5, 0.75)


def repeated(items: list[tuple], times: dict[str, int]) -> list[tuple]:
    """Each row as often as its video is drawn, as rows of different videos, one after the other."""
    return [(f"{video}#{copy}", *rest) for video, *rest in items for copy in range(times[video])]


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_slow_loop_over_repeated_videos(seed: int) -> None:
    predictions, truths = random_case(seed)
    found = rows(predictions)
    scores = evaluate_detections(found, truth(truths), TIOUS)
    codes = video_codes(found.video_id.tolist(), ["v7"])  # v7: a video without any row
    weights = np.random.default_rng(seed).multinomial(len(codes), [1 / len(codes)] * len(codes), 25).T.astype(np.float32)
    assert (weights == 0).any()
    fast = WeightedAP.of(scores.matching, found, codes)(weights)
    for column, ours in zip(weights.T.astype(int).tolist(), fast, strict=True):
        times = dict(zip(codes, column, strict=True))
        for tiou, values in zip(TIOUS, ours, strict=True):
            slow = twin.activitynet_ap(repeated(predictions, times), repeated(truths, times), tiou)
            np.testing.assert_allclose(values, [slow.get(int(c), np.nan) for c in scores.class_ids], rtol=1e-12, atol=1e-12)


def test_weights_of_one_give_the_evaluation_itself() -> None:
    predictions, truths = random_case(7)
    found = rows(predictions)
    scores = evaluate_detections(found, truth(truths), TIOUS)
    codes = video_codes(found.video_id.tolist())
    (estimate,), values = resample([WeightedAP.of(scores.matching, found, codes)], len(codes), 300)
    np.testing.assert_allclose(estimate, [scores.average_mAP, *scores.mAP, *scores.AP.mean(axis=0)], rtol=1e-14)
    assert values.shape == (300, 1, len(estimate))


def test_resamples_are_random_halves() -> None:
    parts = list(half_weights(41, 600, seed=3))
    weights = np.concatenate(parts, axis=1)
    assert (weights.shape, set(weights.sum(axis=0).tolist()), len(parts)) == ((41, 600), {20.0}, 3)
    assert set(np.unique(weights).tolist()) == {0.0, 1.0}
    assert abs(weights.mean(axis=1) - 20 / 41).max() < 0.1
    assert len(np.unique(weights, axis=1).T) == 600


def test_a_class_whose_segments_are_not_drawn_is_left_out_of_the_mean() -> None:
    found = rows([("a", 0.0, 1.0, 1, 0.9), ("b", 0.0, 1.0, 2, 0.8), ("b", 3.0, 4.0, 1, 0.7)])
    scores = evaluate_detections(found, truth([("a", 0.0, 1.0, 1), ("b", 5.0, 6.0, 2)]), [0.5])
    ap = WeightedAP.of(scores.matching, found, {"a": 0, "b": 1})(np.array([[2.0, 0.0], [0.0, 2.0]], np.float32))
    np.testing.assert_array_equal(ap[:, 0], [[1.0, np.nan], [np.nan, 0.0]])
