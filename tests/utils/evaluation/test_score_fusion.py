"""External class scores: the fused result, every file kind, and what happens to bad or missing scores."""
from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from libs.core.errors import UserError
from libs.utils.evaluation.predictions import Detections
from libs.utils.evaluation.score_fusion import fuse_external_scores, load_external_scores

SCORES = {"a": [0.25, 0.0, 1.0], "b": [0.5, 0.5, 0.5]}
ran: list[str] = []


class Hostile:
    def __reduce__(self) -> tuple:
        return ran.append, ("harm",)


def found() -> Detections:
    return Detections.from_arrays(["b", "a", "a", "a"], [0, 1, 2, 3], [5, 6, 7, 8], [9, 9, 9, 9], [0.5, 0.16, 0.64, 0.36])


def columns(detections: Detections) -> list[tuple]:
    return list(zip(detections.video_id.tolist(), detections.t_start.tolist(), detections.t_end.tolist(),
                    detections.label.tolist(), detections.score.round(12).tolist(), strict=True))


def test_fusion_by_hand() -> None:
    fused = fuse_external_scores(found(), SCORES, num_pred=2, topk=2)
    assert columns(fused) == [
        ("a", 2, 7, 2, 0.8), ("a", 3, 8, 2, 0.6),       # class 2 (score 1) first; the third segment is beyond num_pred
        ("a", 2, 7, 0, 0.4), ("a", 3, 8, 0, 0.3),
        ("b", 0, 5, 0, 0.5), ("b", 0, 5, 1, 0.5)]       # equal class scores: lower ids


def test_more_classes_wanted_than_there_are() -> None:
    assert len(fuse_external_scores(found(), {"a": [0.5], "b": [0.5]}, topk=3)) == 4


def test_a_missing_video_keeps_its_own_scores_with_one_warning() -> None:
    with pytest.warns(UserWarning, match=r"x\.json: 1 of 2 videos have no external scores .*\(a\)") as caught:
        fused = fuse_external_scores(found(), {"b": SCORES["b"]}, num_pred=2, topk=1, source="x.json")
    assert len(caught) == 1
    assert columns(fused) == [("a", 2, 7, 9, 0.64), ("a", 3, 8, 9, 0.36), ("b", 0, 5, 0, 0.5)]


def test_equal_scores_keep_their_order_and_inputs_stay() -> None:
    tied = Detections.from_arrays(["a"] * 3, [1, 2, 3], [4, 5, 6], [0, 0, 0], [0.5, 0.5, 0.5])
    assert fuse_external_scores(tied, SCORES, num_pred=2, topk=1).t_start.tolist() == [1, 2]
    assert tied.t_start.tolist() == [1, 2, 3]


def test_no_detections() -> None:
    assert len(fuse_external_scores(Detections.empty(), SCORES)) == 0


def test_negative_scores_and_silly_limits_are_refused() -> None:
    with pytest.raises(UserError, match=r"video a has the score -1"):
        fuse_external_scores(Detections.from_arrays(["a"], [0], [1], [0], [-1]), SCORES)
    with pytest.raises(UserError, match="at least 1"):
        fuse_external_scores(found(), SCORES, topk=0)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("kind", ["s.json", "s.npy", "s.pkl"])
def test_every_kind_of_file(tmp_path: Path, kind: str, wrapped: bool) -> None:
    path = tmp_path / kind
    arrays = {video: np.array(values, np.float32) for video, values in SCORES.items()}
    content = SCORES if kind == "s.json" else arrays
    content = {"results": content, "version": 1} if wrapped else content
    if kind == "s.json":
        path.write_text(json.dumps(content))
    elif kind == "s.npy":
        np.save(path, content)
    else:
        path.write_bytes(pickle.dumps(content))
    got = load_external_scores(path)
    assert {video: values.tolist() for video, values in got.items()} == SCORES
    assert got["a"].dtype == np.float64


IDS = {"jump": 0, "dive": 2, "run": 1}


@pytest.mark.parametrize("content", [
    {"a": [0.1, 0.2, 0.7]},                                                                           # by class id
    {"results": {"a": [0.7, 0.1, 0.9, 0.2]}, "class": ["dive", "jump", "swim", "run"]},               # by the file's own list
    {"results": {"a": [[0.7, 0.1, 0.9, 0.2]]}, "class": ["dive", "jump", "swim", "run"]},
    {"a": {"jump": 0.1, "run": 0.2, "dive": 0.7}}, {"results": {"a": {"jump": 0.1, "run": 0.2, "dive": 0.7}}},
    {"a": [{"label": "dive", "score": 0.7}, {"label": "jump", "score": 0.1}, {"label": "run", "score": 0.2}]}], ids=str)
def test_layouts_with_class_names(tmp_path: Path, content: dict) -> None:
    (tmp_path / "s.json").write_text(json.dumps(content))
    assert load_external_scores(tmp_path / "s.json", IDS)["a"].tolist() == [0.1, 0.2, 0.7]


def test_classes_that_a_video_does_not_name_get_nothing(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"a": {"run": 0.5}}))
    assert load_external_scores(tmp_path / "s.json", {**IDS, "swim": 4})["a"].tolist() == [0, 0.5, 0, 0, 0]


@pytest.mark.parametrize(("content", "message"), [
    ({"a": [0.1, 0.2]}, "video a has 2 class scores, but the annotations have 3 classes"),
    ({"a": [0.1, 0.2, 0.3, 0.4]}, "video a has 4 class scores, but the annotations have 3 classes"),
    ({"results": {"a": [0.5, 0.5, 0.5]}, "class": ["dive", "jump", "ran"]}, r"lacks 'run' \(did you mean 'ran'\?\)"),
    ({"results": {"a": [0.5, 0.5]}, "class": ["dive", "jump", "run"]}, "2 class scores, but the file lists more classes"),
    ({"results": {"a": [0.5]}, "class": "dive"}, "class is dive; expected the list of class names"),
    ({"results": {"a": [{"label": "run", "score": s, "segment": [0, 1]} for s in (0.5, 0.2)]}}, "scores 'run' twice.*detections"),
    ({"a": {"jumps": 1}}, r"video a: 'jumps' is not a class of the annotations \(did you mean 'jump'\?\)"),
    ({"a": [{"label": "run", "score": "high"}]}, "video a has"), ({"a": {"run": -1}}, "the score of class 1 is -1")], ids=str)
def test_scores_of_other_classes_are_refused(tmp_path: Path, content: dict, message: str) -> None:
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_external_scores(tmp_path / "s.json", IDS)


def test_names_need_annotations(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"a": {"jump": 1}}))
    with pytest.raises(UserError, match="video a has scores by class name, but no annotations"):
        load_external_scores(tmp_path / "s.json")


@pytest.mark.parametrize("kind", ["s.npy", "s.pkl"])
def test_thumos14_rows_by_video_number(tmp_path: Path, kind: str) -> None:
    """101 columns of UCF101: BaseballPitch is its 7th class, Diving the 26th; rows are numbered from 1."""
    array = np.arange(5 * 101, dtype=np.float32).reshape(5, 101)
    if kind == "s.npy":
        np.save(tmp_path / kind, array)
    else:
        (tmp_path / kind).write_bytes(pickle.dumps(array))
    videos = ["video_test_0000004", "video_test_0000005", "video_test_0000009"]
    found = load_external_scores(tmp_path / kind, {"Diving": 1, "BaseballPitch": 0}, videos)
    assert {v: s.tolist() for v, s in found.items()} == {videos[0]: [3 * 101 + 6, 3 * 101 + 25],
                                                         videos[1]: [4 * 101 + 6, 4 * 101 + 25]}
    with pytest.raises(UserError, match="101 class scores, but the annotations have 3 classes"):
        load_external_scores(tmp_path / kind, IDS, videos)
    with pytest.raises(UserError, match="no video id ends in a number from 1 to 5"):
        load_external_scores(tmp_path / kind, IDS, ["a", "video_test_0000009"])
    two = np.array([[0.1, 0.9], [0.2, 0.8]])
    np.save(tmp_path / "two.npy", two)
    assert load_external_scores(tmp_path / "two.npy", {"a": 0, "b": 1}, ["v_2"])["v_2"].tolist() == [0.2, 0.8]


def test_ids_may_differ_by_their_prefix() -> None:
    detections = Detections.from_arrays(["v_a", "b"], [0, 0], [1, 1], [9, 9], [0.25, 0.25])
    fused = fuse_external_scores(detections, {"a": [0.0, 1.0], "v_b": [1.0, 0.0]}, topk=1)
    assert columns(fused) == [("b", 0, 1, 0, 0.5), ("v_a", 0, 1, 1, 0.5)]


def test_detections_without_a_class_are_left_out_where_scores_are_missing() -> None:
    with pytest.warns(UserWarning, match="1 of 2 videos have no external scores and are left out, since the model predicts"):
        fused = fuse_external_scores(found(), {"b": SCORES["b"]}, topk=1, keep_unscored=False)
    assert fused.video_id.tolist() == ["b"]


@pytest.mark.parametrize(("content", "message"), [
    ("[1, 2]", "holds a list"), ("{}", "names no video"), ('{"a": 3}', r"video a has 3 \(it has the shape"),
    ('{"a": [[1, 2], [3, 4]]}', "it holds values that are not numbers"), ('{"a": "high"}', "video a has 'high'"),
    ('{"a": [0.1, -0.2]}', r"video a: the score of class 1 is -0.2"), ('{"a": [NaN]}', "the score of class 0 is nan"),
    ('{"a": [1, 2], "b": [1]}', "video b has 1 class scores, a has 2"), ("{", "not valid JSON")])
def test_broken_scores_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_external_scores(tmp_path / "s.json")


def test_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.ones((4, 3)))
    with pytest.raises(UserError, match=r"plain\.npy: holds a ndarray of shape \(4, 3\), which names no videos"):
        load_external_scores(tmp_path / "plain.npy")
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(UserError, match=r"text\.npy: is not an \.npy file"):
        load_external_scores(tmp_path / "text.npy")
    for name in ("s.txt", "absent.npy", "absent.json"):
        with pytest.raises(UserError, match=name):
            load_external_scores(tmp_path / name)


@pytest.mark.parametrize("name", ["s.pkl", "s.npy"])
def test_score_files_cannot_run_anything(tmp_path: Path, name: str) -> None:
    if name == "s.npy":
        np.save(tmp_path / name, {"a": Hostile()}, allow_pickle=True)
    else:
        (tmp_path / name).write_bytes(pickle.dumps({"a": Hostile()}))
    with pytest.raises(UserError, match="not opened"):
        load_external_scores(tmp_path / name)
    assert ran == []
