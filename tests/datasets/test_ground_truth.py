"""Predictions and the split that they are held against; files that do not fit are refused."""
from __future__ import annotations

import json

import evaluate
import numpy as np
import pytest

from libs.core.errors import UserError
from libs.datasets.ground_truth import check_fit, check_time_unit, check_videos, read_with_ground_truth, settle_ties
from libs.utils.evaluation.predictions import Detections


@pytest.fixture
def annotations(tmp_path):
    def video(subset, **extra):
        return {"subset": subset, "annotations": [{"segment": [30.0, 40.0], "label": "jump"}], **extra}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"database": {
        "t": video("Training", duration=100.0), "v": video("Validation", duration=100.0, fps=25), "w": video("Validation")}}))
    return path


def write(path, entries):
    results: dict = {}
    for video, start, end, score in entries:
        results.setdefault(video, []).append({"segment": [start, end], "label": "jump", "score": score})
    path.write_text(json.dumps({"results": results}))
    return path


def test_tied_scores_are_one_line_and_have_a_rule(annotations, tmp_path, recwarn):
    """The same detections, all of one score, in two orders of rows."""
    entries = [("v", 30.0, 40.0, .5), *(("v", 50.0 + i / 10, 90.0, .5) for i in range(99))]
    scores = {}
    for ties in ("file", "segment"):
        for name, order in (("a.json", 1), ("b.json", -1)):
            argv = [str(write(tmp_path / f"p_{name}", entries[::order])), str(annotations), "--ties", ties, "--json"]
            evaluate.main([*argv, str(out := tmp_path / f"{ties}_{name}")])
            scores[ties, name] = json.loads(out.read_text())["average_mAP"]
    assert scores["file", "a.json"] > scores["file", "b.json"]
    assert scores["segment", "a.json"] == scores["segment", "b.json"] == scores["file", "a.json"]
    told = [str(w.message) for w in recwarn if "--ties" in str(w.message)]
    assert len(told) == 2, "for --ties file alone"
    assert all("_a.json: 100.0 % of the scores are equal" in line or "_b.json: 100.0 %" in line for line in told)


def test_few_ties_are_no_warning(recwarn):
    few = detections([("v", 1, 2, i / 1000) for i in range(500)] + [("v", 3, 4, .1)])  # 2 of 501
    small = detections(GOOD)  # 2 of 4, of different videos
    assert settle_ties(few, "p.json", "file") is few
    assert settle_ties(small, "p.json", "file") is small
    assert not recwarn.list


def test_the_split_is_that_of_the_predicted_videos(annotations, tmp_path):
    first, second = write(tmp_path / "p.json", [("v", 1, 2, .5)]), write(tmp_path / "q.json", [("w", 1, 2, .5), ("v", 1, 2, .5)])
    found, truth = read_with_ground_truth([first, second], annotations)
    assert [len(d) for d in found] == [1, 2]
    assert (truth.split, truth.videos, truth.elsewhere) == ("validation", {"v", "w"}, {"t": "training"})
    assert (truth.durations_s["v"], truth.durations_s["w"], truth.fps) == (100.0, np.inf, {"v": 25})
    assert truth.label_names() == {0: "jump"}
    assert read_with_ground_truth([first], annotations, "TRAINING")[1].videos == {"t"}
    with pytest.raises(UserError, match=r"a.json: has no split 'test'; it has training, validation"):
        read_with_ground_truth([first], annotations, "test")
    with pytest.raises(UserError, match=r"p.json: has predictions for training \(1 videos\), validation \(1 videos\); choose"):
        read_with_ground_truth([write(first, [("v", 1, 2, .5), ("t", 1, 2, .5)])], annotations)


def detections(entries):
    videos, starts, ends, scores = zip(*entries, strict=True)
    return Detections.from_arrays(videos, starts, ends, [0] * len(entries), scores)


@pytest.fixture
def truth(annotations, tmp_path):
    return read_with_ground_truth([write(tmp_path / "p.json", [("v", 1, 2, .5)])], annotations)[1]


GOOD = [("v", 0.0, 5.0, 0.0), ("v", 90.0, 100.0, 1.0), ("w", 30.0, 41.0, .5), ("t", 1.0, 2.0, .5)]


def test_what_fits_passes(truth):
    check_fit(detections(GOOD), truth, "p.json")
    check_fit(Detections.empty(), truth, "p.json")
    check_fit(detections([*GOOD, ("v", 101.0, 110.0, .1)]), truth, "p.json")  # a model that overshoots at the end


@pytest.mark.parametrize(("entries", "message"), [
    ([*GOOD, ("x_v", 1, 2, .5)], r"p\.json: 1 of its 4 videos are unknown to .*a\.json \(x_v\); name the annotations"),
    ([("nowhere", 1, 2, .5), ("v", 1, 2, .5), ("y", 1, 2, .5)], r"2 of its 3 videos are unknown to .* \(nowhere, y\)"),
    ([*GOOD, ("v", 1, 2, 1.2), ("v", 1, 2, -3.5)],
     r"p\.json: entry 4 \(video v\): score is 1.2 \(2 such\); scores must lie in \[0, 1\]"),
    ([("v", 1, 2, 97.0)], r"score is 97 \(1 such\).*--unique-rank-scores"),
    ([("v", 750, 1000, .5), ("v", 2300, 2400, .4), ("v", 10, 40, .5)],
     r"p\.json: video v: the segment \[750, 1000\] starts after the video's end at 100 s, as do 2 of 3 segments; times must be "
     r"seconds, these look like frames: divide by the fps \(25\)"),
    ([("w", 750, 1000, .5)], r"these look like frames: divide by the fps$"),
    ([("v", 30000, 40000, .5)], r"starts after the video's end at 100 s, as do 1 of 1 segments; .* look like milliseconds"),
    ([("w", 30000, 40000, .5)], r"video w: the segment \[30000, 40000\] starts after the video's end at 120 s"),
    ([("v", .3, .4, .5), ("w", .9, 1.0, .5)], r"all 2 segments end within the first second, but half of those to find end after "
     r"40 s; times must be seconds, these look like shares of the duration"),
])
def test_what_does_not_fit_is_refused(truth, entries, message):
    with pytest.raises(UserError, match=message):
        check_fit(detections(entries), truth, "p.json")


@pytest.mark.parametrize(("videos", "message"), [
    (["v.mp4", "w.mp4"], r"none of its 2 videos .*2 of them differ in case.* or ending only \('v.mp4' is 'v' there, 'w.mp4' is"),
    (["V"], "1 of them differ in case.*'V' is 'v' there"), (["v "], "differ in case, spaces.*'v ' is 'v' there"),
    (["videos/v.mp4"], "differ in case.*'videos/v.mp4' is 'v'"),
    (["t"], r"none of its 1 videos is in split validation .*which has 2 \(t\); 1 of them are of split training: .*--split"),
    (["q"], r"none of its 1 videos is in split validation .*; name the annotations"),
], ids=str)
def test_videos_of_which_the_split_has_none_are_an_error_with_its_cause(truth, videos, message):
    with pytest.raises(UserError, match=message):
        check_videos(detections([(video, 1, 2, .5) for video in videos]), truth, "p.json")


def test_a_cause_that_is_seen_has_its_own_remedy_alone(truth):
    with pytest.raises(UserError) as found:
        check_videos(detections([("v.mp4", 1, 2, .5)]), truth, "p.json")
    assert str(found.value).endswith("('v.mp4' is 'v' there): write the ids as there")


def test_no_video_of_any_split_is_an_error_with_its_cause(annotations, tmp_path):
    with pytest.raises(UserError, match=r"none of its 1 videos is among the 3 of .*\(training, validation\).*'V.mp4' is 'v'"):
        read_with_ground_truth([write(tmp_path / "p.json", [("V.mp4", 1, 2, .5)])], annotations)


def test_videos_without_predictions_are_counted_in_one_line(truth, recwarn):
    check_videos(detections([("v", 1, 2, .5), ("w", 1, 2, .5)]), truth, "p.json")
    check_videos(Detections.empty(), truth, "p.json")  # the evaluation says so
    assert not recwarn.list
    check_videos(detections([("v", 1, 2, .5), ("W", 1, 2, .5)]), truth, "p.json")
    assert len(recwarn.list) == 1
    line = str(recwarn.list[0].message)
    assert line.startswith("p.json: no prediction for 1 of 2 videos with segments of split validation, whose 1 segments count as")
    assert "1 predictions of 1 videos that split validation does not have count as false positives (W); 1 of them differ" in line


def test_unknown_videos_may_be_allowed_but_units_are_checked_all_the_same(truth):
    check_fit(detections([*GOOD, ("x", 1, 2, .5)]), truth, "p.json", allow_unknown=True)
    with pytest.raises(UserError, match="milliseconds"):
        check_time_unit(detections([("v", 30000, 40000, .5), ("x", 1, 2, .5), ("v", 30000, 40000, .5)]), truth, "p.json")


def test_merged_labels_count_as_one_class_in_both_files(tmp_path):
    items = [{"segment": [1.0, 2.0], "label": label} for label in ("jump", "jump", "Jump ", "a")]
    path, predictions = tmp_path / "a.json", tmp_path / "p.json"
    path.write_text(json.dumps({"database": {"v": {"subset": "test", "duration": 9.0, "annotations": items}}}))
    predictions.write_text(json.dumps({"results": {"v": [
        {"segment": [1, 2], "label": label, "score": .5} for label in ("Jump ", "jump", "a")]}}))
    with pytest.warns(UserWarning, match="'jump' .2 segments., 'Jump ' .1."):
        apart = read_with_ground_truth([predictions], path)
    assert apart[1].label_ids == {"Jump ": 0, "a": 1, "jump": 2}
    (found,), truth = read_with_ground_truth([predictions], path, merge_labels=True)
    assert (found.label.tolist(), truth.ground_truth.label.tolist()) == ([2, 2, 1], [2, 2, 2, 1])
    assert truth.label_ids == {"a": 1, "jump": 2}
    (found,), truth = read_with_ground_truth([predictions], path, merge_labels=True, class_agnostic=True)
    assert (set(found.label.tolist()), set(truth.ground_truth.label.tolist())) == ({0}, {0})
