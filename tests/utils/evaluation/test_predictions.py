"""Prediction files: what is written is read back, and nothing broken or hostile gets in."""
from __future__ import annotations

import gc
import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from libs.core.errors import UserError
from libs.utils.evaluation.predictions import (
    COLUMNS,
    Detections,
    GroundTruth,
    read_predictions,
    write_predictions,
    write_predictions_json,
)
from libs.utils.files.untrusted_pickle import load_plain_pickle

NAMES = {0: "jump", 3: "throw, far", 12: "7"}  # a comma for CSV, and a name that looks like an id
IDS = {name: i for i, name in NAMES.items()}
KINDS = ["p.json", "p.csv", "p.csv.gz", "p.pkl"]
ran: list[str] = []


def some() -> Detections:
    rng = np.random.default_rng(0)
    start = np.sort(rng.uniform(0, 100, 12)) / 3
    return Detections.from_arrays(["b"] * 5 + ["a"] * 4 + ["ü,1"] * 3, start, start + np.float32(0.1), [0, 3, 12] * 4,
                                  rng.uniform(size=12).astype(np.float32))


def assert_same(got: Detections, want: Detections) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [True, False])
def test_round_trip_is_exact(tmp_path: Path, kind: str, named: bool) -> None:
    write_predictions(tmp_path / kind, some(), NAMES if named else None)
    assert_same(read_predictions(tmp_path / kind, IDS if named else None), some())


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_of_nothing(tmp_path: Path, kind: str) -> None:
    write_predictions(tmp_path / kind, Detections.empty())
    assert len(read_predictions(tmp_path / kind, IDS)) == 0


def test_activitynet_json(tmp_path: Path) -> None:
    found = Detections.from_arrays(["a", "b", "a"], [1, 2, 3], [4, 5, 6], [0, 5, 0], [.5, .6, .7])
    write_predictions_json(tmp_path / "p.json", found, NAMES)
    assert json.loads((tmp_path / "p.json").read_text()) == {
        "version": "VERSION 1.3", "external_data": {}, "results": {
            "a": [{"segment": [1.0, 4.0], "label": "jump", "score": 0.5}, {"segment": [3.0, 6.0], "label": "jump", "score": 0.7}],
            "b": [{"segment": [2.0, 5.0], "label": "5", "score": 0.6}]}}


def test_published_pickle(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.pkl", some())
    content = pickle.loads((tmp_path / "p.pkl").read_bytes())
    assert list(content) == ["video-id", "t-start", "t-end", "label", "score"]
    assert content["video-id"] == some().video_id.tolist()
    assert isinstance(content["video-id"], list)
    assert content["label"].dtype == np.int64


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    want = some()
    content = {"video-id": want.video_id.tolist(), "t-start": want.t_start.astype(np.float32), "t-end": want.t_end,
               "label": want.label.astype(np.int32), "score": list(want.score.astype(">f8")), "more": {"a": (None, True, b"x")}}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    got = read_predictions(tmp_path / "p.pkl")
    np.testing.assert_array_equal(got.t_start, want.t_start.astype(np.float32).astype(np.float64))
    np.testing.assert_array_equal(got.score, want.score)
    np.testing.assert_array_equal(got.label, want.label)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [
    np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array(["a", "bcd"]),
    np.array([True, False]), np.zeros((0, 3)), np.array([""]), np.array([1, None, "x"], object), np.float32(2.5),
    np.array([[1], [2, 3], None], object), np.array([7], ">i2"), np.array([b"ab", b"c"])], ids=lambda v: f"{v.dtype}{v.shape}")
def test_arrays_survive_the_plain_reader(protocol: int, value: np.ndarray) -> None:
    got = load_plain_pickle(pickle.dumps({"v": [value, value]}, protocol=protocol), "x", "y")["v"]
    assert np.asarray(got[0]).dtype == np.asarray(value).dtype.newbyteorder("=")
    np.testing.assert_array_equal(got[0], value)
    np.testing.assert_array_equal(got[1], value)


class Hostile:
    def __reduce__(self) -> tuple:
        return ran.append, ("harm",)


@pytest.mark.parametrize("content", [
    pickle.dumps(Hostile()), pickle.dumps({"video-id": [Hostile()]}), pickle.dumps(np.array([Hostile()], object)),
    pickle.dumps(print), pickle.dumps(Path("x")), b"cposix\nsystem\n(S'true'\ntR.", pickle.dumps(np.zeros(2, "f4,i4")),
    pickle.dumps(np.dtype("M8[s]")), b"cnumpy\nndarray\n.", b"cnumpy.core.multiarray\n_reconstruct\n(tR."])
def test_pickles_cannot_run_anything(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"p\.pkl: .*not opened"):
        read_predictions(tmp_path / "p.pkl")
    assert ran == []


def object_array_of_raw_bytes() -> bytes:
    """An array that claims to hold objects but brings raw bytes for their addresses."""
    return (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
            b"(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'AAAAAAAA'\ntb.")


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps({"video-id": ["a"]})[:-4], object_array_of_raw_bytes()])
def test_damaged_pickles_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"p\.pkl: "):
        read_predictions(tmp_path / "p.pkl")


def test_a_nest_without_end_is_refused() -> None:
    loop: list = []
    loop.append(loop)
    with pytest.raises(UserError, match="nested too deeply"):
        load_plain_pickle(pickle.dumps(loop), "x", "y")


@pytest.mark.parametrize("kind", ["p.csv", "p.csv.gz", "p.json"])
def test_ids_and_names_that_look_like_something_else_stay_text(tmp_path: Path, kind: str) -> None:
    videos, names = ["NA", "007", "7", "nan", "1e3", "true"], {0: "None", 1: "NA", 2: "null", 3: "1.50", 4: "007", 5: "inf"}
    want = Detections.from_arrays(videos, range(6), range(1, 7), range(6), [0.5] * 6)
    write_predictions(tmp_path / kind, want, names)
    assert_same(read_predictions(tmp_path / kind, {name: i for i, name in names.items()}), want)


def test_no_known_label_at_all_is_an_error(tmp_path):
    (tmp_path / "p.csv").write_text("video_id,t_start,t_end,label,score\nv,0,1,cricket bowling,.5\nv,0,1,DIVING,.5\n")
    with pytest.raises(UserError, match=r"p.csv: none of its 2 labels is one of the 2 classes .*'cricket bowling' \(did you mean "
                                        r"'Cricket  Bowling'\?\), 'DIVING' \(did you mean 'Diving'\?\)"):
        read_predictions(tmp_path / "p.csv", {"Cricket  Bowling": 0, "Diving": 1})
    assert read_predictions(tmp_path / "p.csv", {"Diving": 1}, ignore_labels=True).label.tolist() == [0, 0]


def test_unknown_names_are_left_out_with_one_warning(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("score,label,video_id,t_start,t_end\n.9,jumpp,a,0,1\n.8,jump,a,0,1\n.7,12,a,0,1\n"
                                    ".6,jumpp,a,0,1\n.5,swim,a,0,1\n\n.4,-1,a,0,1\n.3,7,a,0,1\n")
    with pytest.warns(UserWarning, match=r"3 of 7 predictions .*2 of 6 labels .*'jumpp' \(did .* 'jump'\?\), 'swim'") as caught:
        found = read_predictions(tmp_path / "p.csv", IDS)
    assert len(caught) == 1
    assert found.label.tolist() == [0, 12, -1, 12]  # the class called "7" has the id 12; other numbers are ids
    assert found.score.tolist() == [0.8, 0.7, 0.4, 0.3]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("p.json", "{", "p.json: not valid JSON"),
    ("p.json", '{"database": {}}', 'has no "results"'),
    ("p.json", "[]", 'has no "results"'),
    ("p.json", '{"results": {"a": {}}}', r"results\.a is a dict"),
    ("p.json", '{"results": {"a": [{"segment": [1], "label": 0, "score": 1}]}}', r"results\.a\[0\] is"),
    ("p.json", '{"results": {"a": [{"segment": [1, 2], "score": 1}]}}', r"results\.a\[0\] is"),
    ("p.json", '{"results": {"a": [null]}}', r"results\.a\[0\] is None"),
    ("p.json", '{"results": {"a": [{"segment": [1, 2], "label": [0], "score": 1}]}}', r"p\.json: entry 0 has the label \[0\]"),
    ("p.json", '{"results": {"a": [{"segment": [1, 2], "label": 1.5, "score": 1}]}}', r"p\.json: entry 0 has the label 1\.5"),
    ("p.json", '{"results": {"a": [{"segment": [1, 2], "label": 0, "score": NaN}]}}', r"entry 0 \(video a\): score is nan"),
    ("p.json", '{"results": {"a": [{"segment": [3, 2], "label": 0, "score": 1}]}}', r"p\.json: entry 0 \(video a\): the segment"),
    ("p.csv", "", "lacks the column"),
    ("p.csv", "video_id,t_start,t_end,label\n", "lacks the column .*score"),
    ("p.csv", "video_id,t_start,t_end,label,score\na,0,1,0,0.5\na,0,one,0,0.5\n", r"p\.csv: line 3: t_end is 'one'.*seconds"),
    ("p.csv", "video_id,t_start,t_end,label,score\na,0,1\n", r"p\.csv: line 2"),
    ("p.csv", "video_id,t_start,t_end,label,score\na,0,1,0,0.5,7\n", r"p\.csv: line 2: 6 cells"),
    ("p.csv", "video_id,t_start,t_end,label,score\na,0,1_000,0,0.5\n", r"p\.csv: line 2: t_end is '1_000'"),
    ("p.csv", "video_id,t_start,t_end,label,score,label\na,0,1,0,0.5,1\n", r"p\.csv: .*'label' twice"),
    ("p.csv", "video_id,t_start,t_end,label,score\na,0,inf,0,0.5\n", r"p\.csv: entry 0 \(video a\): t_end is inf"),
    ("p.csv", "video_id,t_start,t_end,label,score\na,0,1,jump,0.5\n", "class name 'jump', but there is no class list"),
    ("p.csv.gz", "plain text", "not a whole gzip file"),
    ("p.txt", "", "unknown kind")])
def test_broken_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / name)


@pytest.mark.parametrize(("change", "message"), [
    ({"score": None}, "lacks score"), ({"score": [0.5]}, "different lengths"), ({"t-start": "soon"}, "t-start is a str"),
    ({"t-end": ["x"] * 12}, "t_end does not hold numbers"), ({"label": np.full(12, 0.5)}, "not integer class ids")])
def test_broken_pickle_columns_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    want = some()
    content = {"video-id": want.video_id.tolist(), "t-start": want.t_start, "t-end": want.t_end, "label": want.label,
               "score": want.score, **change}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({k: v for k, v in content.items() if v is not None}))
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / "p.pkl")


@pytest.mark.parametrize("kind", [*KINDS, "p.json.gz"])
def test_missing_file(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=rf"{kind}: "):
        read_predictions(tmp_path / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_for_broken_numbers(tmp_path: Path, kind: str) -> None:
    want = some()
    bad = Detections(*(getattr(want, n) for n in COLUMNS[:4]), np.where(np.arange(12) == 6, np.nan, want.score))
    with pytest.raises(UserError, match=r"entry 6 \(video a\): score is nan"):
        write_predictions(tmp_path / kind, bad)
    assert list(tmp_path.iterdir()) == []


def test_compressed_files(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.json", some())
    (tmp_path / "p.json.gz").write_bytes(gzip.compress((tmp_path / "p.json").read_bytes()))
    assert_same(read_predictions(tmp_path / "p.json.gz"), some())
    write_predictions(tmp_path / "p.csv.gz", some())
    first = (tmp_path / "p.csv.gz").read_bytes()
    write_predictions(tmp_path / "p.csv.gz", some())
    assert (tmp_path / "p.csv.gz").read_bytes() == first
    (tmp_path / "p.csv.gz").write_bytes(first[:-9])
    with pytest.raises(UserError, match="not a whole gzip file"):
        read_predictions(tmp_path / "p.csv.gz")


def test_columns() -> None:
    parts = [some(), Detections.empty(), some()]
    whole = Detections.concat(parts)
    assert len(whole) == 24
    assert_same(whole.take(np.arange(12, 24)), some())
    assert len(Detections.concat([])) == 0
    truth = GroundTruth.from_videos([("a", np.array([[0, 1], [2, 3]]), np.array([4, 5])), ("none", np.empty((0, 2)), []),
                                     ("b", [[6, 6]], [7])])
    assert truth.video_id.tolist() == ["a", "a", "b"]
    assert truth.t_end.tolist() == [1, 3, 6]
    assert truth.label.tolist() == [4, 5, 7]
    assert len(GroundTruth.from_videos([])) == 0
    source = np.array([1.0])
    copy = Detections.from_arrays(["a"], source, [2], [0], [1])
    source[0] = 9
    assert copy.t_start[0] == 1.0
    with pytest.raises(UserError, match=r"ground truth: entry 1 \(video b\)"):
        GroundTruth.from_arrays(["a", "b"], [0, 2], [1, 1], [0, 0])


def test_entries_are_read_alike_all_at_once_and_one_by_one(tmp_path):
    """One number as text makes the reader take every entry by itself."""
    results = {"b": [{"segment": [1, 2.5], "label": "x", "score": 1}, {"segment": [0.1, 3], "label": 1, "score": 0.25}], "c": [],
               "a": [{"segment": [2**53 + 1, 2**60], "label": "y", "score": 0.1}]}
    both = []
    for score in (0.25, "0.25"):
        results["b"][1]["score"] = score
        (tmp_path / "p.json").write_text(json.dumps({"results": results}))
        both.append(read_predictions(tmp_path / "p.json", {"x": 0, "y": 2}))
    for name in COLUMNS:
        np.testing.assert_array_equal(*(getattr(found, name) for found in both))
    assert both[0].video_id.tolist() == ["b", "b", "a"]
    assert both[0].label.tolist() == [0, 1, 2]


@pytest.mark.parametrize("entry", ['{"segment": [1, 2], "label": "x", "score": true}',
                                   '{"segment": "12", "label": "x", "score": 1}',
                                   '{"segment": [1, 2, 3], "label": "x", "score": 1}', '{"segment": [1, 2], "label": "x"}',
                                   '{"segment": {"1": 0, "2": 0}, "label": "x", "score": 1}', '["segment", "label", "score"]',
                                   '{"segment": [1, 1' + 400 * "0" + '], "label": "x", "score": 1}'])
def test_the_first_entry_that_is_no_detection_is_named(tmp_path, entry):
    good = '{"segment": [1, 2], "label": "x", "score": 1}'
    (tmp_path / "p.json").write_text(f'{{"results": {{"a": [{good}], "b": [{good}, {entry}]}}}}')
    with pytest.raises(UserError, match=r"p\.json: results\.b\[1\] is .* expected"):
        read_predictions(tmp_path / "p.json", {"x": 0})


def test_reading_leaves_the_garbage_collector_as_it_was(tmp_path):
    (tmp_path / "p.json").write_text('{"results": {"a": 1, "a": 2}}')
    for before in (True, False):
        gc.enable() if before else gc.disable()
        try:
            with pytest.raises(UserError, match="key 'a' twice"):
                read_predictions(tmp_path / "p.json")
            assert gc.isenabled() is before
        finally:
            gc.enable()
