"""Normalised AP and misses by length, coverage and number of instances."""
from __future__ import annotations

import numpy as np
import pytest

from libs.utils.diagnosis.analysis import diagnose
from libs.utils.diagnosis.characteristics import PRESETS, characteristics, normalised_ap, normalised_mAP, sensitivity
from libs.utils.evaluation.predictions import Detections, GroundTruth

# lengths 2, 4, 20 of class 0 in v and 7 of class 1 in w
TRUTH = GroundTruth.from_arrays(["v", "v", "v", "w"], [0, 10, 50, 0], [2, 14, 70, 7], [0, 0, 0, 1])
DURATIONS = {"v": 100.0, "w": 10.0}


def case():
    """Class 0 by score: finds the 4 s, background, finds the 20 s, background; class 1: background, finds the 7 s."""
    return diagnose(Detections.from_arrays(["v", "v", "v", "v", "w", "w"], [10, 30, 50, 80, 8, 0], [14, 32, 70, 82, 9, 7],
                                           [0, 0, 0, 0, 1, 1], [.9, .8, .7, .6, .9, .8]), TRUTH, [.5])


def by_name(buckets):
    return {g.name: g for g in characteristics(TRUTH, DURATIONS, buckets)}


def test_normalised_precision_by_hand():
    # recall 1/2 and 1 of two; N = 4: 2 / (2 + 0) and 4 / (4 + 1)
    assert normalised_ap(np.array([1, 0, 1], bool), np.array([0, 1, 0], bool), 2, 4.0) == pytest.approx((1 + .8) / 2)
    # the same with a prediction that counts as neither
    assert normalised_ap(np.array([1, 0, 0, 1], bool), np.array([0, 0, 1, 0], bool), 2, 4.0) == pytest.approx((1 + .8) / 2)
    # with N equal to the number to find it is the precision: 1, 2/3
    assert normalised_ap(np.array([1, 0, 1], bool), np.array([0, 1, 0], bool), 2, 2.0) == pytest.approx((1 + 2 / 3) / 2)
    assert normalised_ap(np.zeros(3, bool), np.ones(3, bool), 2, 4.0) == 0
    assert normalised_ap(np.zeros(0, bool), np.zeros(0, bool), 2, 4.0) == 0


def test_normalised_mAP_by_hand():
    # N = 4 ground truths / 2 classes = 2. class 0: recall 1/3, 2/3 at 0 and 1 false: 1, (4/3) / (4/3 + 1) = 4/7
    # class 1: recall 1 at 1 false: 2 / (2 + 1)
    assert normalised_mAP(case())[0] == pytest.approx(((1 + 4 / 7) / 3 + 2 / 3) / 2)


def test_values_and_published_buckets():
    found = by_name("thumos14")
    assert found["length"].value.tolist() == [2, 4, 20, 7]
    assert found["coverage"].value.tolist() == [.02, .04, .2, .7]
    assert found["instances"].value.tolist() == [3, 3, 3, 1]
    assert found["length"].bucket.tolist() == [0, 1, 4, 2]
    assert found["coverage"].bucket.tolist() == [0, 1, 4, 4], "an upper bound belongs to its bucket"
    assert found["instances"].bucket.tolist() == [1, 1, 1, 0]
    assert found["length"].labels == ("XS ≤ 3", "S 3–6", "M 6–12", "L 12–18", "XL > 18")
    assert found["coverage"].labels == ("XS ≤ 2", "S 2–4", "M 4–6", "L 6–8", "XL > 8")
    assert by_name("activitynet")["coverage"].bucket.tolist() == [0, 0, 0, 3]
    assert by_name("activitynet")["instances"].labels == ("XS ≤ 1", "S 1–4", "M 4–8", "L > 8")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["length", "coverage", "instances"])
def test_every_bucket_of_the_presets_holds_its_upper_bound_and_what_lies_above_its_lower_one(preset, name):
    bounds = PRESETS[preset][name][1:-1]
    values = [v for bound in bounds for v in (bound, np.nextafter(bound, np.inf))]
    truth = {"length": lambda v: (["v"], [0.0], [v], {"v": 1e9}), "coverage": lambda v: (["v"], [0.0], [v], {"v": 1.0}),
             "instances": lambda v: (["v"] * int(np.ceil(v)), np.arange(np.ceil(v)), np.arange(np.ceil(v)) + .5, {})}[name]
    got = []
    for value in values:
        ids, start, end, duration = truth(value)
        groups = characteristics(GroundTruth.from_arrays(ids, start, end, [0] * len(ids)), duration, preset)
        got.append(int(next(g for g in groups if g.name == name).bucket[0]))
    assert got == [i + j for i in range(len(bounds)) for j in (0, 1)]


def test_rates_of_each_bucket_by_hand():
    rate = sensitivity(case(), by_name("thumos14")["length"])
    assert rate.ground_truth.tolist() == [1, 1, 1, 0, 1]
    assert rate.missed[0].tolist() == pytest.approx([1, 0, 0, np.nan, 0], nan_ok=True)
    # N = 2. XS: nothing found. S: the first prediction finds the one. M: after one false: 2 / 3
    # XL: the 4 s that was found is left out; after one false: 2 / 3
    assert rate.normalised_mAP[0].tolist() == pytest.approx([0, 1, 2 / 3, np.nan, 2 / 3], nan_ok=True)
    many = sensitivity(case(), by_name("thumos14")["instances"])
    assert many.missed[0, :2].tolist() == pytest.approx([0, 1 / 3])
    assert many.normalised_mAP[0, :2].tolist() == pytest.approx([2 / 3, (1 + 4 / 7) / 3])
    cover = sensitivity(case(), by_name("thumos14")["coverage"])
    assert cover.missed[0].tolist() == pytest.approx([1, 0, np.nan, np.nan, 0], nan_ok=True)
    # XL holds the 20 s of class 0 and the 7 s of class 1: each after one false
    assert cover.normalised_mAP[0, 4] == pytest.approx(2 / 3)


def test_quantiles_part_evenly_and_equal_values_stay_together():
    length = np.arange(1, 101, dtype=float)
    truth = GroundTruth.from_arrays(["v"] * 100, np.zeros(100), length, np.arange(100) % 2)
    groups = {g.name: g for g in characteristics(truth, {"v": 100.0})}
    assert np.bincount(groups["length"].bucket).tolist() == [20] * 5
    assert groups["length"].labels == ("XS ≤ 20", "S 20–40", "M 40–60", "L 60–80", "XL > 80")
    assert groups["coverage"].labels[0] == "XS ≤ 20"
    assert (groups["instances"].bucket == 0).all(), "all have 50 of their class: one bucket"
    assert groups["instances"].labels == ("all",)


def test_unknown_durations():
    some = {g.name: g for g in characteristics(TRUTH, {"v": 100.0, "w": np.inf})}
    assert some["coverage"].bucket.tolist()[3] == -1
    rate = sensitivity(case(), some["coverage"])
    assert rate.ground_truth.sum() == 3
    assert [g.name for g in characteristics(TRUTH, {})] == ["length", "instances"]


def test_all_buckets_together_miss_what_all_miss():
    found = case()
    for group in characteristics(TRUTH, DURATIONS):
        rate = sensitivity(found, group)
        total = np.nansum(rate.missed * rate.ground_truth, axis=1) / rate.ground_truth.sum()
        assert total == pytest.approx(found.missed.mean(axis=1))
