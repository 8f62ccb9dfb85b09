"""Two methods on the same videos: what is said of a difference, and when."""
from __future__ import annotations

import numpy as np
import pytest

from libs.core.errors import UserError
from libs.utils.evaluation.metrics import Scores, evaluate_detections
from libs.utils.evaluation.predictions import Detections, GroundTruth
from libs.utils.significance.bootstrap import confidence, confidence_line, plausible
from libs.utils.significance.comparison import Comparison, compare

VIDEOS = {f"v{i}": i for i in range(60)}
NAMES = list(VIDEOS)
TRUTH = GroundTruth.from_arrays(NAMES * 3, np.repeat([0.0, 20.0, 40.0], 60), np.repeat([10.0, 30.0, 50.0], 60),
                                np.arange(180) % 2)


def method(noise: float, seed: int) -> tuple[Detections, Scores]:
    """A detection near every segment and a stray one, with its scores."""
    rng = np.random.default_rng(seed)
    start = np.concatenate([TRUTH.t_start, TRUTH.t_start + 12]) + rng.normal(0, noise, 360)
    found = Detections.from_arrays(np.tile(TRUTH.video_id, 2), start, start + 10, np.tile(TRUTH.label, 2), rng.random(360))
    return found, evaluate_detections(found, TRUTH, [0.3, 0.5, 0.7])


def run(first: list, second: list, **more) -> Comparison:
    return compare(first, second, VIDEOS, resamples=1000, **more)


def test_a_large_difference_is_seen_and_its_sign_depends_on_the_order():
    good, bad = method(0.5, 0), method(4.0, 1)
    result, turned = run([bad], [good], names=("bad", "good")), run([good], [bad])
    assert result.limits[0, 0] > 0.05
    assert result.better[0] == 1
    assert result.videos_needed[0] < 60
    assert result.verdict().startswith("good is better than bad: +")
    np.testing.assert_allclose(result.difference, -turned.difference)
    np.testing.assert_allclose(result.limits, -turned.limits[::-1], atol=1e-12)
    np.testing.assert_allclose(result.values[:, 0], [bad[1].average_mAP, good[1].average_mAP])
    np.testing.assert_allclose(result.values[1, 1:], [*good[1].mAP, *good[1].AP.mean(axis=0)])
    assert result.rows == ("average", "tIoU 0.30", "tIoU 0.50", "tIoU 0.70", "0", "1")


def test_noise_is_not_called_a_difference():
    result = run([method(2.0, 0)], [method(2.0, 1)])
    low, high = result.limits[:, 0]
    assert low < 0 < high
    assert 0.02 < result.better[0] < 0.98
    assert result.videos_needed[0] > 60
    assert "do not show which is better" in result.verdict()
    assert "noise of training" in result.verdict()


def test_a_method_equals_itself():
    result = run([method(2.0, 0)], [method(2.0, 0)])
    assert (result.difference[0], result.better[0], result.videos_needed[0]) == (0, 0.5, np.inf)
    assert result.as_dict()["average"]["videos_needed"] is None


def test_seeds_count_as_their_mean_and_their_noise_widens_the_interval():
    first, second = ([method(noise, seed) for seed in seeds] for noise, seeds in ((2.0, range(3)), (1.5, range(3, 6))))
    result = run(first, second)
    own = [[scores.average_mAP for _, scores in side] for side in (first, second)]
    assert result.difference[0] == pytest.approx(np.mean(own[1]) - np.mean(own[0]))
    assert result.seed_error[0] == pytest.approx(np.sqrt((np.var(own[0], ddof=1) + np.var(own[1], ddof=1)) / 3))
    paired = run(first, second, paired=True)
    assert paired.seed_error[0] == pytest.approx(np.std(np.subtract(*own), ddof=1) / np.sqrt(3))
    alone = run([first[0]], [second[0]])
    assert np.isnan(alone.seed_error[0])
    assert "noise of training" not in result.verdict()
    with pytest.raises(UserError, match="3 files of A and 2 of B"):
        run(first, second[:2], paired=True)


def test_the_interval_of_one_file_holds_its_mAP_and_narrows_with_more_videos():
    found, scores = method(2.0, 0)
    one = confidence(scores, found, VIDEOS)
    low, high = one["average_mAP"]
    assert low < scores.average_mAP < high
    assert len(one["mAP"]) == 3
    assert list(one["per_class_AP"]) == ["0", "1"]
    assert f"{100 * low:.2f} to {100 * high:.2f} (resampling 60 videos)" in confidence_line(one)
    assert confidence(scores, found, dict(list(VIDEOS.items())[:9])) is None
    assert "10 videos" in confidence_line(None)


def test_plausible_values_are_turned_around_the_estimate_without_its_bias():
    drawn = np.array([[0.5], [0.6], [0.9], [np.nan]])  # 1/6 above the estimate, with a tail upwards
    assert plausible(np.array([0.5]), drawn)[:3, 0] == pytest.approx([0.5, 0.4, 0.1])
    more = plausible(np.array([0.5]), drawn, bias=1.5)[:3, 0]
    assert more == pytest.approx(np.array([0.5, 0.4, 0.1]) - 0.5 / 6)
