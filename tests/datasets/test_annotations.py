"""Annotation files: what is read, what is refused, what is only warned about."""
from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest

from libs.core.errors import UserError
from libs.core.problems import Problems
from libs.datasets.annotations import Video, load_annotations, without_duplicates


def entry(segment=(1.0, 2.0), label="jump", label_id=0, **more):
    return {"segment": list(segment), "label": label, "label_id": label_id, **more}


def video(*annotations, **more):
    return {"subset": "Training", "duration": 10.0, "fps": 25, "annotations": list(annotations), **more}


@pytest.fixture
def load(tmp_path):
    def write_and_load(database, **options):
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"database": database}), encoding="utf-8")
        return load_annotations(path, **options)
    return write_and_load


def test_reads_every_field(load):
    got = load({"v1": video(entry((0.5, 3)), entry((2, 4.25), "run", 3)),
                "v2": {"subset": "test", "annotations": [], "offset": 1.5}})
    v1, v2 = got.videos.values()
    assert (v1.id, v1.subset, v1.duration_s, v1.fps) == ("v1", "training", 10.0, 25.0)
    assert v1.segments.dtype == np.float64
    assert v1.segments.tolist() == [[0.5, 3.0], [2.0, 4.25]]
    assert v1.labels.dtype == np.int64
    assert v1.labels.tolist() == [0, 3]
    assert (v2.duration_s, v2.fps, v2.offset, v2.segments.shape, v2.labels.shape) == (math.inf, None, 1.5, (0, 2), (0,))
    assert got.label_ids == {"jump": 0, "run": 3}
    assert got.subset_counts() == {"training": 1, "test": 1}


def test_ids_follow_the_sorted_names_when_no_entry_has_one(load):
    database = {"v1": video({"segment": [1, 2], "label": "run"}, {"segment": [2, 3], "label": "jump"}),
                "v2": video({"segment": [1, 2], "label": "crawl"}, subset="test")}
    got = load(database)
    assert got.label_ids == {"crawl": 0, "jump": 1, "run": 2}
    assert got.videos["v1"].labels.tolist() == [2, 1]
    assert got.videos["v2"].labels.tolist() == [0]


BAD = {
    "not an object": ({"v1": 3}, ["'v1'", "int"]),
    "no subset": ({"v1": {"annotations": []}}, ["'v1'.subset", "missing"]),
    "no annotations": ({"v1": {"subset": "test", "annotation": []}}, ["'v1'.annotations", "did you mean 'annotation'"]),
    "annotations not a list": ({"v1": video() | {"annotations": {}}}, ["'v1'.annotations", "{}"]),
    "duration": ({"v1": video(duration=-1)}, ["'v1'.duration", "-1"]),
    "fps": ({"v1": video(fps="25")}, ["'v1'.fps", "'25'"]),
    "offset": ({"v1": video(offset="a")}, ["'v1'.offset", "'a'"]),
    "entry": ({"v1": video(7)}, ["annotations[0]", "7"]),
    "no segment": ({"v1": video(entry(), {"label": "jump", "label_id": 0})}, ["annotations[1].segment", "missing"]),
    "NaN": ({"v1": video(entry((float("nan"), 2)))}, ["annotations[0].segment", "nan"]),
    "infinite": ({"v1": video(entry((0, float("inf"))))}, ["annotations[0].segment", "inf"]),
    "three numbers": ({"v1": video(entry((1, 2, 3)))}, ["annotations[0].segment", "[1, 2, 3]"]),
    "text": ({"v1": video(entry(("1", "2")))}, ["annotations[0].segment", "['1', '2']"]),
    "backwards": ({"v1": video(entry((2, 1)))}, ["annotations[0].segment", "ends before it starts"]),
    "no label": ({"v1": video({"segment": [1, 2], "label_id": 0})}, ["annotations[0].label", "missing"]),
    "label id": ({"v1": video(entry(label_id=-1))}, ["annotations[0].label_id", "-1"]),
    "label id not whole": ({"v1": video(entry(label_id=1.5))}, ["annotations[0].label_id", "1.5"]),
    "label id text": ({"v1": video(entry(label_id="0"))}, ["annotations[0].label_id", "'0'"]),
    "two ids": ({"v1": video(entry()), "v2": video(entry(label_id=4))}, ["'v2', annotations[0].label_id", "'jump'", "4", "0"]),
    "two names": ({"v1": video(entry(), entry(label="run"))}, ["annotations[1].label_id", "'run'", "'jump'"]),
    "some ids": ({"v1": video(entry(), {"segment": [1, 2], "label": "run"})}, ["annotations[1]", "no label_id", "give every"]),
    "empty": ({}, ["database", "empty"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_by_name(load, case):
    database, fragments = BAD[case]
    with pytest.raises(UserError) as error:
        load(database)
    for fragment in ["a.json", *fragments]:
        assert fragment in str(error.value)


@pytest.mark.parametrize("case", BAD)
def test_the_mistake_that_raises_is_the_one_that_is_collected(load, case):
    with pytest.raises(UserError) as error:
        load(BAD[case][0])
    problems = Problems()
    load(BAD[case][0], problems=problems)
    (problem,) = problems.found
    assert problem.file in str(error.value)
    assert str(error.value).endswith(f"{problem.what}; {problem.remedy}")


def test_all_mistakes_are_collected_and_the_rest_is_read(load):
    problems = Problems()
    got = load({"v1": video(entry(), entry((2, 1), label_id=-1), entry((3, 3), "run", 7), duration=0), "v2": 3,
                "v3": video(entry((4, 5), "run", 7), fps="x")}, problems=problems)
    assert [p.kind for p in problems.found] == ["duration", "segment", "label-id", "annotation-entry", "fps"]
    assert {vid: (v.segments.tolist(), v.labels.tolist()) for vid, v in got.videos.items()} == {
        "v1": ([[1, 2], [3, 3]], [0, 1]), "v3": ([[4, 5]], [1])}
    assert (got.entries, got.file_ids) == ({"v1": [0, 2], "v3": [0]}, {"jump": 0, "run": 7})


@pytest.mark.parametrize(("content", "fragment"), [('{"results": {}}', "'results'"), ("[1]", "list"), ('{"database": [', "JSON")])
def test_no_database(tmp_path, content, fragment):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json") as error:
        load_annotations(tmp_path / "a.json")
    assert fragment in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json"):
        load_annotations(tmp_path / "nowhere.json")


def test_odd_segments_are_kept_and_counted_once(load):
    database = {"v1": video(entry((9, 10.5)), entry((-1, 2)), entry((3, 3)), entry((0, 10))),
                "v2": video(entry((4, 99)), duration=None)}
    with pytest.warns(UserWarning, match=r"of 5 segments 2 leave their video and 1 have zero length") as record:
        got = load(database)
    assert len(record) == 1
    assert "'v1', annotations[0]" in str(record[0].message)
    assert got.videos["v1"].segments.tolist() == [[9, 10.5], [-1, 2], [3, 3], [0, 10]]


@pytest.mark.parametrize(("segment", "fragment"), [((9, 10.5), "leaves its video of 10 s"), ((3, 3), "zero length")])
def test_strict_refuses_odd_segments(load, segment, fragment):
    with pytest.raises(UserError, match=fragment) as error:
        load({"v1": video(entry(), entry(segment))}, strict=True)
    assert "annotations[1].segment" in str(error.value)
    assert "dataset.strict" in str(error.value)


def test_sound_files_do_not_warn(load):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load({"v1": video(entry((0, 10)))}, strict=True)


def test_unlabelled_videos_only_where_allowed(load):
    got = load({"v1": {"subset": "test"}}, allow_unlabelled=True)
    assert len(got.videos["v1"].segments) == 0
    with pytest.raises(UserError, match="annotations"):
        load({"v1": {"subset": "test", "annotations": 5}}, allow_unlabelled=True)


def test_duplicates_need_both_ends_and_the_label():
    segments = np.array([[1, 2], [1.0009, 2.0009], [1, 2], [1, 2.01], [3, 3.0005], [1.0015, 2.0], [5, 6]])
    labels = np.array([0, 0, 1, 0, 0, 0, 0])
    got = without_duplicates(Video("v", "training", 10.0, 25.0, segments, labels))
    assert got.segments.tolist() == [[1, 2], [1, 2], [1, 2.01], [1.0015, 2.0], [5, 6]]
    assert got.labels.tolist() == [0, 1, 0, 0, 0]


SPELLINGS = {
    "case": ("Jump", "jump", ["'Jump' (2 segments), 'jump' (1)"]),
    "spaces": ("long jump", " long  jump", ["'long jump' (2 segments), ' long  jump' (1)"]),
    "hyphens": ("long jump", "long_Jump", ["'long jump' (2 segments), 'long_Jump' (1)"]),
    "Unicode": ("caf\u00e9", "cafe\u0301", ["'caf\u00e9' (2 segments), 'cafe\\u0301' (1)", "Unicode"]),
}


def two_spellings(often, once):
    return {"v1": video(entry(label=often), entry((2, 3), once, 1)), "v2": video(entry(label=often), entry((4, 5), "run", 2))}


@pytest.mark.parametrize("case", SPELLINGS)
def test_labels_that_differ_in_spelling_only_are_named_with_their_numbers_or_refused(load, case):
    often, once, fragments = SPELLINGS[case]
    with pytest.warns(UserWarning, match="--merge-labels.*dataset.strict: true") as record:
        got = load(two_spellings(often, once))
    assert got.label_ids == {often: 0, once: 1, "run": 2}
    assert len(record) == 1
    with pytest.raises(UserError, match=r"a\.json.*dataset.strict: false") as error:
        load(two_spellings(often, once), strict=True)
    for fragment in fragments:
        assert fragment in str(record[0].message)
        assert fragment in str(error.value)


def test_merged_labels_have_the_id_of_the_most_frequent_spelling(load):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = load(two_spellings("jump", "Jump "), merge_labels=True)
    assert got.merged == {1: 0}
    assert [v.labels.tolist() for v in got.videos.values()] == [[0, 0], [0, 2]]


def test_labels_that_are_not_alike_do_not_warn(load):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load({"v1": video(entry(label="1"), entry(label="-1", label_id=1), entry(label="move x", label_id=2),
                          entry(label="move y", label_id=3))})


UNITS = {
    "milliseconds": (1000, ["10 of 10 segments lie outside", "milliseconds", "divide by 1000"]),
    "frames": (25, ["10 of 10 segments lie outside", "frames", "divide by the fps"]),
    "shares": (1 / 90, ["10 of 10 segments lie at the very start", "shares of the duration", "multiply by the duration"]),
    "minutes": (1 / 60, ["10 of 10 segments lie at the very start", "minutes", "multiply by 60"]),
    "nothing known": (1e5, ["10 of 10 segments lie outside", "correct them, or the durations"]),
}


@pytest.mark.parametrize("fps", [25, None])
@pytest.mark.parametrize("unit", UNITS)
def test_times_in_another_unit_are_an_error_that_names_it(load, unit, fps):
    factor, fragments = UNITS[unit]
    database = {f"v{i}": video(entry((20 * factor, 50 * factor)), entry((60 * factor, 88 * factor)), duration=90.0, fps=fps)
                for i in range(5)}
    with pytest.raises(UserError) as error:
        load(database)
    for fragment in ["a.json", "to 90 s", *fragments]:
        assert fragment in str(error.value)


def test_a_wrong_duration_among_many_hides_no_unit(load):
    database = {f"v{i}": video(entry((0.4, 1.4)), duration=90.0) for i in range(20)}
    database["v7"]["duration"] = 20.0
    with pytest.raises(UserError, match=r"19 of 20 segments lie at the very start .*'v0' reach to 1\.4, .* 90 s.*minutes"):
        load(database)


def test_a_few_segments_outside_or_early_are_no_other_unit(load):
    with pytest.warns(UserWarning, match="of 4 segments 2 leave"):
        load({"v1": video(entry(), entry((4, 300)), entry((200, 250)), entry((5, 6)))})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load({f"v{i}": video(entry((0.1, 0.9)), duration=90.0) for i in range(4)})
