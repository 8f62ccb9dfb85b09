"""Kinds of errors, what they cost and the false-positive profile: by hand, and against a slow twin."""
from __future__ import annotations

import numpy as np
import pytest

from libs.utils.diagnosis.analysis import (
    BACKGROUND,
    CONFUSION,
    DOUBLE,
    KINDS,
    LOCALISATION,
    TRUE_POSITIVE,
    WRONG_LABEL,
    Diagnosis,
    counts,
    diagnose,
    gains,
    precision_recall,
    profile,
)
from libs.utils.evaluation.metrics import evaluate_detections
from libs.utils.evaluation.predictions import Detections, GroundTruth

A, B = 0, 1
TRUTH = [("v", 0, 10, A), ("v", 20, 30, A), ("v", 40, 50, B), ("v", 60, 70, A)]
PREDICTIONS = [("v", 0, 10, A, .9),   # true positive
               ("v", 1, 10, A, .8),   # IoU .9 with what the first one found: double detection
               ("v", 40, 50, A, .7),  # on the B: wrong label
               ("v", 20, 23, A, .6),  # IoU .3 with the second A: localisation
               ("v", 26, 30, B, .5),  # IoU .4 with it: confusion
               ("v", 52, 58, B, .4),  # nothing there: background
               ("v", 60, 70, A, .1),  # true positive
               ("w", 0, 10, A, .05)]  # a video without ground truth: background
EXPECTED = [TRUE_POSITIVE, DOUBLE, WRONG_LABEL, LOCALISATION, CONFUSION, BACKGROUND, TRUE_POSITIVE, BACKGROUND]


def rows(table, kind):
    return kind.from_arrays(*(list(column) for column in zip(*table, strict=True)))


def run(predictions, truth=TRUTH, tious=(.5,)) -> Diagnosis:
    return diagnose(rows(predictions, Detections), rows(truth, GroundTruth), tious)


def kinds_of(found: Diagnosis, tiou: int = 0) -> list[int]:
    """Kinds in the order of the input."""
    out = [-1] * len(found.error[tiou])
    for row, kind in zip(found.matching.used.tolist(), found.error[tiou].tolist(), strict=True):
        out[row] = kind
    return out


def test_every_kind_by_hand():
    found = run(PREDICTIONS)
    assert kinds_of(found) == EXPECTED
    assert counts(found).tolist() == [[2, 1, 1, 1, 1, 2]]
    assert found.missed.tolist() == [[False, True, True, False]]
    about = dict(zip(found.matching.used.tolist(), found.target[0].tolist(), strict=True))
    assert about == {0: 0, 1: 0, 2: 2, 3: 1, 4: 1, 5: -1, 6: 3, 7: -1}


@pytest.mark.parametrize(("segment", "tiou", "kind"), [
    ((20, 26), .5, TRUE_POSITIVE), ((20, 26), .6, TRUE_POSITIVE), ((20, 25.9), .6, LOCALISATION),
    ((20, 21), .5, LOCALISATION), ((20, 20.9), .5, BACKGROUND),  # IoU .1 is the least that is about a ground truth
    ((40, 45), .5, WRONG_LABEL), ((40, 44.9), .5, CONFUSION), ((40, 41), .5, CONFUSION), ((40, 40.9), .5, BACKGROUND),
    ((30, 40), .5, BACKGROUND),  # touching is no overlap
])
def test_limits_of_the_kinds(segment, tiou, kind):
    assert kinds_of(run([("v", *segment, A, .5)], tious=[tiou])) == [kind]


def test_the_first_kind_that_fits_wins():
    truth = [("v", 0, 10, A), ("v", 4, 14, B)]
    assert kinds_of(run([("v", 4, 14, A, .5)], truth)) == [WRONG_LABEL], "IoU 6/14 with its own class, 1 with another"
    assert kinds_of(run([("v", 6, 12, A, .5)], truth)) == [WRONG_LABEL], "IoU 4/12 with its own class, 6/10 with another"
    assert kinds_of(run([("v", 7, 11, A, .5)], truth)) == [LOCALISATION], "IoU 3/11 with its own class, 4/10 with another"
    same = [("v", 0, 10, A), ("v", 0, 10, B)]
    assert kinds_of(run([("v", 0, 10, A, .5), ("v", 0, 10, A, .4)], same)) == [TRUE_POSITIVE, DOUBLE], "not a wrong label"


def test_a_threshold_below_a_tenth_leaves_no_localisation_errors():
    found = run([("v", 20, 20.6, A, .5), ("v", 20, 20.4, A, .4)], tious=[.05])
    assert kinds_of(found) == [TRUE_POSITIVE, BACKGROUND]


def test_what_each_kind_costs_by_hand():
    found = run(PREDICTIONS)
    # A by score: hit, double, wrong label, localisation, hit, background; three to find.  B: confusion, background; one to find
    before = ((1 + 2 / 5) / 3 + 0) / 2
    assert found.scores.mAP.tolist() == pytest.approx([before])
    change = {how: {kind: float(gain[0] + before) for kind, gain in kinds.items()} for how, kinds in gains(found).items()}
    one_fewer = ((1 + 2 / 4) / 3 + 0) / 2
    assert change["removed"] == pytest.approx({
        "double detection": one_fewer, "wrong label": one_fewer, "localisation": one_fewer, "confusion": before,
        "background": before, "all errors": (2 / 3 + 0) / 2, "missed": (1 + 2 / 5) / 2, "all errors and missed": 1})
    assert change["repaired"] == pytest.approx({
        "double detection": one_fewer, "background": before,
        "wrong label": ((1 + 2 / 4) / 3 + 1) / 2,            # .7 is now the first B, and a hit
        "localisation": ((1 + 3 / 5 + 3 / 5) / 3 + 0) / 2,   # ranks 1, 4, 5; the best precision from there on counts
        "confusion": ((1 + 3 / 6 + 3 / 6) / 3 + 0) / 2,      # .5 is now an A: ranks 1, 5, 6
        "all errors": 1})


def test_only_the_best_of_a_target_is_repaired():
    truth, near = [("v", 0, 10, A)], [("v", 0, 3, A, .9), ("v", 0, 4, A, .8)]
    found = run(near, truth)
    assert kinds_of(found) == [LOCALISATION, LOCALISATION]
    assert gains(found)["repaired"]["localisation"].tolist() == [1.0], "one hit, the other gone"
    taken = run([*near, ("v", 0, 10, A, .1)], truth)
    assert taken.scores.mAP.tolist() == pytest.approx([1 / 3])
    assert gains(taken)["repaired"]["localisation"].tolist() == pytest.approx([2 / 3]), "the third keeps what it found"


def test_profile_by_hand():
    table = profile(run(PREDICTIONS))[0, :3].tolist()
    assert table == [[1, 1, 1, 0, 1, 0],   # A: the best three; B: the best one
                     [2, 1, 1, 1, 1, 2], [2, 1, 1, 1, 1, 2]]


def test_precision_recall_by_hand():
    curve = precision_recall(run(PREDICTIONS))[0]
    assert curve[A][[0, 33, 34, 66, 67, 100]].tolist() == pytest.approx([1, 1, .4, .4, 0, 0])
    assert not curve[B].any()
    assert precision_recall(run([("v", 40, 50, B, .5)]))[0][B].tolist() == [1] * 101


def random_case(seed: int, predictions: int = 120) -> tuple[Detections, GroundTruth]:
    """Few videos and classes, round numbers and few scores, so that ties and exact thresholds occur."""
    rng = np.random.default_rng(seed)

    def segments(count):
        start = rng.integers(0, 40, count)
        return start, start + rng.integers(1, 12, count)
    truth = (rng.choice(["a", "b", "c"], 25), *segments(25), rng.integers(0, 3, 25))
    found = (rng.choice(["a", "b", "c", "d"], predictions), *segments(predictions), rng.integers(0, 3, predictions),
             rng.integers(0, 30, predictions) / 30)
    return Detections.from_arrays(*found), GroundTruth.from_arrays(*truth)


def kind_by_the_book(det, truth, hit: bool, tiou: float) -> int:
    video, start, end, label = det
    iou = {True: 0.0, False: 0.0}
    for v, s, e, c in truth:
        shared = min(end, e) - max(start, s)
        if v == video and shared > 0:
            iou[c == label] = max(iou[c == label], shared / ((e - s) + (end - start) - shared))
    if hit:
        return TRUE_POSITIVE
    if iou[True] >= tiou:
        return DOUBLE
    if iou[False] >= tiou:
        return WRONG_LABEL
    if iou[True] >= .1:
        return LOCALISATION
    return CONFUSION if iou[False] >= .1 else BACKGROUND


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_definition_read_out_loud(seed):
    detections, truth = random_case(seed)
    tious = (.3, .5, .7)
    found = diagnose(detections, truth, tious)
    kept = found.matching.ground_truth
    gt = list(zip(kept.video_id, kept.t_start, kept.t_end, kept.label, strict=True))
    det = zip(found.video_id, found.t_start, found.t_end, found.matching.class_ids[found.matching.det_class], strict=True)
    expected = [[kind_by_the_book(one, gt, hit, t) for t, hit in zip(tious, hits, strict=True)]
                for one, hits in zip(det, (found.matching.matched >= 0).T.tolist(), strict=True)]
    assert found.error.T.tolist() == expected
    assert {kind for row in expected for kind in row} == set(range(6)), "a case that shows every kind"


@pytest.mark.parametrize("seed", range(4))
def test_properties(seed):
    detections, truth = random_case(seed)
    found = diagnose(detections, truth, (.3, .5, .7))
    scores = evaluate_detections(detections, truth, (.3, .5, .7))
    assert np.array_equal(found.scores.AP, scores.AP)
    assert found.scores.average_mAP == scores.average_mAP
    assert (counts(found).sum(axis=1) == scores.counts["predictions"]).all()
    per_class, G = np.bincount(found.matching.det_class), found.matching.num_gt
    assert profile(found).sum(axis=2).tolist() == [[np.minimum(per_class, k * G).sum() for k in range(1, 11)]] * 3
    change = gains(found)
    hits = found.matching.matched >= 0
    recall = [np.mean([hit[found.matching.det_class == c].sum() / G[c] for c in range(3)]) for hit in hits]
    assert np.allclose(scores.mAP + change["removed"]["all errors"], recall), "precision 1 up to the last hit"
    assert np.allclose(scores.mAP + change["removed"]["all errors and missed"], 1)
    assert all((gain > -1e-12).all() for gain in change["removed"].values()), "fewer false positives never cost"
    assert (change["repaired"]["all errors"] >= change["removed"]["all errors"] - 1e-12).all()
    # the area under the sampled curve is the AP, but for the width of a sample
    assert np.abs(precision_recall(found).mean(axis=2) - scores.AP).max() < .02
    assert set(change["removed"]) >= set(KINDS[1:])


def test_no_predictions_and_unknown_classes():
    with pytest.warns(UserWarning, match="no prediction at all"):
        nothing = diagnose(Detections.empty(), rows(TRUTH, GroundTruth), (.5, .7))
    assert counts(nothing).tolist() == [[0] * 6] * 2
    assert profile(nothing).shape == (2, 10, 6)
    assert nothing.missed.all()
    assert gains(nothing)["removed"]["all errors and missed"].tolist() == [1, 1]
    with pytest.warns(UserWarning, match="1 of 2 predictions are ignored"):
        found = run([("v", 0, 10, A, .9), ("v", 0, 10, 7, .9)])
    assert counts(found).sum() == 1
