"""ActivityNet-style mAP and recall: against the slow twin, the published numbers, and hand-made corner cases."""
from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import metrics_twin as twin
import numpy as np
import pytest
from golden.metrics import check
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_twin import cases, random_case, rows, truth

from libs.core.errors import UserError
from libs.utils.evaluation import matching
from libs.utils.evaluation.metrics import by_segment, evaluate_detections, tied_share, unique_rank_scores, without_duplicates
from libs.utils.evaluation.predictions import Detections, GroundTruth
from libs.utils.evaluation.thumos_protocol import evaluate_thumos14

GOLDEN = Path(__file__).parents[2] / "golden"
TIOUS = (0.1, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_the_slow_twin_on_ties_and_exact_thresholds(seed: int) -> None:
    predictions, truths = random_case(seed)
    scores = evaluate_detections(rows(predictions), truth(truths), TIOUS, top_k=(1, 5))
    for i, tiou in enumerate(TIOUS):
        wanted = twin.activitynet_ap(predictions, truths, tiou)
        assert scores.class_ids.tolist() == list(wanted)
        np.testing.assert_allclose(scores.AP[i], list(wanted.values()), atol=1e-12)
        assert scores.mAP[i] == pytest.approx(np.mean(list(wanted.values())), abs=1e-12)
        for j, k in enumerate((1, 5)):
            wanted = twin.activitynet_recall(predictions, truths, tiou, k)
            np.testing.assert_allclose(scores.recall[i, j], list(wanted.values()), atol=1e-12)
    assert scores.average_mAP == pytest.approx(scores.mAP.mean(), abs=1e-12)


def test_published_numbers() -> None:
    checks = check(GOLDEN / "eval_seed0.npz")
    counted = [c for c in checks if not c.informational]
    assert len(counted) >= 30
    assert [c.name for c in counted if not c.passed] == []
    assert {c.name.split("/")[0] for c in checks} >= {"clean", "anet_tious", "gap_labels", "missing_class", "fusion_200_2"}


def test_by_hand() -> None:
    truths = truth([("a", 0, 10, 7), ("a", 20, 30, 7), ("b", 0, 10, 7)])
    found = rows([("a", 0, 10, 7, 0.9),    # hit
                  ("b", 5, 10, 7, 0.8),    # IoU .5: hit at .5, miss at .6
                  ("a", 0, 9, 7, 0.7),     # its ground truth is taken: false positive
                  ("a", 21, 30, 7, 0.6)])  # IoU .9: hit
    scores = evaluate_detections(found, truths, [0.5, 0.6], top_k=[1])
    np.testing.assert_allclose(scores.AP[:, 0], [(1 + 1 + 3 / 4) / 3, (1 + 2 / 4) / 3])
    # video a has two ground truths, so its best two count, which both lie on the first one
    np.testing.assert_allclose(scores.recall[:, 0, 0], [2 / 3, 1 / 3])


def test_of_equal_ious_the_last_ground_truth_goes_first() -> None:
    # the first prediction overlaps both by the same IoU; the second reaches only the first ground truth
    truths = truth([("a", 0, 4, 0), ("a", 4, 8, 0)])
    found = rows([("a", 2, 6, 0, 0.9), ("a", 0, 4, 0, 0.8)])
    assert evaluate_detections(found, truths, [0.3]).mAP[0] == 1.0
    swapped = truth([("a", 4, 8, 0), ("a", 0, 4, 0)])
    assert evaluate_detections(found, swapped, [0.3]).mAP[0] == 0.5


def test_equal_scores_keep_their_input_order() -> None:
    truths = truth([("a", 0, 4, 0)])
    hit, miss = ("a", 0, 4, 0, 0.5), ("a", 10, 14, 0, 0.5)
    assert evaluate_detections(rows([hit, miss]), truths, [0.5]).mAP[0] == 1.0
    assert evaluate_detections(rows([miss, hit]), truths, [0.5]).mAP[0] == 0.5


def test_a_video_without_ground_truth_gives_false_positives() -> None:
    truths = truth([("a", 0, 4, 0)])
    found = rows([("elsewhere", 0, 4, 0, 0.9), ("a", 0, 4, 0, 0.5)])
    assert evaluate_detections(found, truths, [0.5]).mAP[0] == 0.5


def test_an_unknown_class_is_ignored_with_one_warning() -> None:
    truths = truth([("a", 0, 4, 1), ("a", 6, 9, 4)])
    good = [("a", 0, 4, 1, 0.5), ("a", 6, 9, 4, 0.5)]
    with pytest.warns(UserWarning, match=r"3 of 5 predictions are ignored.*ids 0, 2, 9") as caught:
        scores = evaluate_detections(rows([("a", 6, 9, 0, 0.9), ("a", 0, 4, 2, 0.9), ("a", 0, 4, 9, 0.9), *good]), truths, [0.5])
    assert len(caught) == 1
    assert scores.mAP[0] == 1.0
    assert scores.counts["predictions"] == 2
    assert scores.counts["predictions_ignored"] == 3


def test_no_prediction_is_a_zero_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="no prediction at all"):
        scores = evaluate_detections(Detections.empty(), truth([("a", 0, 4, 1), ("b", 0, 4, 2)]), [0.5, 0.7])
    assert scores.mAP.tolist() == [0, 0]
    assert scores.AP.shape == (2, 2)
    assert scores.mean_recall.tolist() == [[0, 0], [0, 0]]


def test_a_class_without_predictions_counts_as_zero() -> None:
    scores = evaluate_detections(rows([("a", 0, 4, 1, 0.5)]), truth([("a", 0, 4, 1), ("b", 0, 4, 2)]), [0.5])
    assert scores.AP.tolist() == [[1.0, 0.0]]
    assert scores.mAP[0] == 0.5


@pytest.mark.parametrize(("column", "value", "message"), [
    (4, float("nan"), r"video bad\): score is nan"), (4, float("inf"), r"video bad\): score is inf"),
    (1, float("nan"), r"video bad\): t_start is nan"), (2, -1.0, r"video bad\): the segment \[0.0, -1.0\] ends before")])
def test_broken_numbers_are_refused(column: int, value: float, message: str) -> None:
    bad = ["bad", 0.0, 4.0, 0, 0.5]
    bad[column] = value
    arrays = [np.array(c) for c in zip(("a", 0.0, 4.0, 0, 0.5), bad, strict=True)]
    with pytest.raises(UserError, match=message):
        evaluate_detections(Detections(*arrays), truth([("a", 0, 4, 0)]), [0.5])


@pytest.mark.parametrize("tious", [[], [0.0], [0.5, 1.2], [float("nan")], [-0.1]])
def test_impossible_thresholds_are_refused(tious: list[float]) -> None:
    with pytest.raises(UserError, match="tIoU"):
        evaluate_detections(rows([("a", 0, 4, 0, 0.5)]), truth([("a", 0, 4, 0)]), tious)


def test_no_ground_truth_and_bad_top_k_are_refused() -> None:
    found = rows([("a", 0, 4, 0, 0.5)])
    with pytest.raises(UserError, match="no segment to find"):
        evaluate_detections(found, GroundTruth.from_arrays([], [], [], []), [0.5])
    with pytest.raises(UserError, match="no segment to find"):  # only a zero-length one
        evaluate_detections(found, truth([("a", 4, 4, 0)]), [0.5])
    with pytest.raises(UserError, match="top_k"):
        evaluate_detections(found, truth([("a", 0, 4, 0)]), [0.5], top_k=(0,))


def test_inputs_stay_as_they_are_and_may_be_read_only() -> None:
    predictions, truths = random_case(9)
    found, wanted = rows(predictions), truth(truths)
    columns = [getattr(x, n) for x in (found, wanted) for n in ("video_id", "t_start", "t_end", "label")] + [found.score]
    before = [c.copy() for c in columns]
    for column in columns:
        column.flags.writeable = False
    evaluate_detections(found, wanted, TIOUS)
    for column, old in zip(columns, before, strict=True):
        np.testing.assert_array_equal(column, old)


def assert_twins_agree(predictions: list[tuple], truths: list[tuple], tious: Sequence[float]) -> None:
    """Both twins: the loops up to the order of their sums, the first array version to the last bit."""
    found = rows(predictions) if predictions else Detections.empty()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = evaluate_detections(found, truth(truths), tious, top_k=(1, 3))
    for i, tiou in enumerate(scores.tious):
        np.testing.assert_allclose(scores.AP[i], list(twin.activitynet_ap(predictions, truths, tiou).values()), atol=1e-12)
        for j, k in enumerate((1, 3)):
            wanted = list(twin.activitynet_recall(predictions, truths, tiou, k).values())
            np.testing.assert_allclose(scores.recall[i, j], wanted, atol=1e-12)
    ap, recall = twin.first_array_scores(found, truth(twin.drop_duplicates(truths)), scores.tious, (1, 3))
    np.testing.assert_array_equal(scores.AP, ap)
    np.testing.assert_array_equal(scores.recall, recall)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(cases(), st.lists(st.sampled_from([0.01, 0.25, 1 / 3, 0.5, 0.75, 1.0]) | st.floats(0.01, 1), min_size=1, max_size=4))
def test_agrees_with_the_twins_on_any_input(case: tuple[list[tuple], list[tuple]], tious: list[float]) -> None:
    predictions, truths = case
    if twin.drop_duplicates(truths):
        assert_twins_agree(predictions, truths, tious)
    else:
        with pytest.raises(UserError, match="no segment to find"):
            evaluate_detections(Detections.empty(), truth(truths) if truths else GroundTruth.from_arrays([], [], [], []), tious)


@pytest.mark.parametrize(("videos", "classes", "per_video", "segments"),
                         [(1, 1, 1, 1), (1, 1, 3000, 40), (3, 2, 1500, 12), (60, 12, 20, 3), (5, 1, 0, 4)])
def test_gives_the_numbers_of_the_first_array_version_to_the_last_bit(
        videos: int, classes: int, per_video: int, segments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(videos)

    def columns(count: int) -> list:
        start = rng.uniform(0, 60, count * videos)
        return [[f"v{v}" for v in range(videos) for _ in range(count)], start, start + rng.exponential(15, len(start)),
                rng.integers(0, classes, len(start))]

    found = Detections.from_arrays(*columns(per_video), rng.integers(0, 200, per_video * videos) / 200)
    wanted = without_duplicates(GroundTruth.from_arrays(*columns(segments)))
    tious = np.linspace(0.1, 0.95, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = evaluate_detections(found, wanted, tious)
        monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", 1000)
        parts = evaluate_detections(found, wanted, tious)
    ap, recall = twin.first_array_scores(found, wanted, tious, (1, 5))
    for scores in (whole, parts):
        np.testing.assert_array_equal(scores.AP, ap)
        np.testing.assert_array_equal(scores.recall, recall)


def test_the_order_of_the_thresholds_does_not_matter() -> None:
    predictions, truths = random_case(4)
    rising = evaluate_detections(rows(predictions), truth(truths), TIOUS)
    falling = evaluate_detections(rows(predictions), truth(truths), TIOUS[::-1])
    for tiou, ap in zip(TIOUS, rising.AP, strict=True):
        np.testing.assert_array_equal(evaluate_detections(rows(predictions), truth(truths), [tiou]).AP[0], ap)
    np.testing.assert_array_equal(falling.AP, rising.AP[::-1])


def test_duplicates_go_as_the_definition_says() -> None:
    rng = np.random.default_rng(0)
    chain = [("a", 1 + 0.0007 * i, 2 + 0.0007 * i, 0) for i in range(9)]  # each near its neighbour, not near all
    noisy = [(f"v{rng.integers(2)}", 1 + 4e-4 * rng.integers(6), 2 + 4e-4 * rng.integers(6), int(rng.integers(2)))
             for _ in range(60)]
    short = [("a", 1.0, 1.0009, 0), ("a", 1.0, 1.0, 0)]
    for segments in (chain, noisy, short + chain, chain[::-1]):
        kept = without_duplicates(truth(segments))
        got = list(zip(kept.video_id.tolist(), kept.t_start.tolist(), kept.t_end.tolist(), kept.label.tolist(), strict=True))
        assert got == twin.drop_duplicates(segments)


def test_tied_scores_by_segment_do_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    start, label = rng.uniform(0, 50, 300), rng.integers(0, 3, 300)
    videos = np.array([f"v{i}" for i in rng.integers(0, 4, 300)])
    rows = Detections.from_arrays(videos, start, start + rng.uniform(1, 9, 300), label, np.round(rng.uniform(0, 1, 300), 1))
    segments = GroundTruth.from_arrays(videos[:40], start[:40] + .5, start[:40] + 6, label[:40])
    assert tied_share(rows) > 0.9
    orders = [rows, *(rows.take(rng.permutation(300)) for _ in range(3))]
    assert len({evaluate_detections(d, segments, TIOUS[:3]).average_mAP for d in orders}) > 1
    assert len({evaluate_detections(by_segment(d), segments, TIOUS[:3]).average_mAP for d in orders}) == 1
    assert len({evaluate_thumos14(by_segment(d), segments, [.3]).average_mAP for d in orders}) == 1


def test_share_of_tied_scores_is_counted_inside_classes() -> None:
    rows = Detections.from_arrays(list("abcde"), [0] * 5, [1] * 5, [0, 0, 1, 1, 0], [.5, .7, .5, .2, .7])
    assert tied_share(rows) == 2 / 5
    assert tied_share(Detections.empty()) == 0


def test_unique_rank_scores() -> None:
    np.testing.assert_allclose(unique_rank_scores(np.array([0.2, 0.9, 0.2, 0.1])), [1 - 2 / 5, 1 - 1 / 5, 1 - 3 / 5, 1 - 4 / 5])


def test_table_and_dict() -> None:
    truths = truth([("a", 0, 10, 0), ("a", 20, 30, 3)])
    found = rows([("a", 0, 10, 0, 0.9), ("a", 20, 28, 3, 0.5)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = evaluate_detections(found, truths, [0.5, 0.9], label_names={0: "jump"})
    assert scores.table().splitlines() == [
        "tIoU        mAP  recall@1x  recall@5x",
        "0.50     100.00     100.00     100.00",
        "0.90      50.00      50.00      50.00",
        "average   75.00      75.00      75.00"]
    assert scores.table(per_class=True).splitlines()[-3:] == [
        "AP      0.50    0.90  average",
        "jump  100.00  100.00   100.00",
        "3     100.00    0.00    50.00"]
    content = json.loads(json.dumps(scores.as_dict(), allow_nan=False))
    assert content["per_class_AP"] == {"jump": [1.0, 1.0], "3": [1.0, 0.0]}
    assert content["recall@5x"] == [1.0, 0.5]
    assert content["counts"] == {"predictions": 2, "ground_truth": 2, "predictions_ignored": 0, "ground_truth_dropped": 0}
