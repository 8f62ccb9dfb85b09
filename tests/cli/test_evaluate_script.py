"""tools/evaluate.py: videos left out, OpenTAD's protocol, and what a number was measured under."""
from __future__ import annotations

import hashlib
import json

import evaluate
import pytest
from helpers import one_error, run_script

WRONG, EMPTY = "video_test_0000270", "video_test_0001292"


@pytest.fixture
def files(tmp_path):
    """Four test videos, one perfect, one missed, OpenTAD's two; the predictions of the wrong one are all false."""
    item = {"segment": [5, 10], "label": "a"}
    database = {video: {"subset": "test", "duration": 60, "annotations": [item]} for video in ("good", "missed", WRONG)}
    database[EMPTY] = {"subset": "test", "duration": 60, "annotations": []}
    results = {"good": [{**item, "score": 0.5}], "missed": [], WRONG: [{"segment": [30, 40], "label": "a", "score": 0.9}] * 2}
    (tmp_path / "truth.json").write_text(json.dumps({"database": database}))
    (tmp_path / "found.json").write_text(json.dumps({"results": results}))
    return tmp_path


def run(capsys, *argv):
    return run_script(capsys, evaluate.main, "evaluate.py", *map(str, argv))


def scored(capsys, files, *more):
    code, out, err = run(capsys, files / "found.json", files / "truth.json", "--json", files / "s.json", *more)
    assert code == 0, err
    return json.loads((files / "s.json").read_text()), out, err


def test_opentad_leaves_two_videos_out_and_stands_beside_the_others_in_one_table(files, capsys):
    plain, _, _ = scored(capsys, files)
    both, out, err = scored(capsys, files, "--protocol", "all")
    assert plain["average_mAP"] == pytest.approx(1 / 9)  # one of three found, behind two false positives
    assert both["protocols"]["activitynet"]["average_mAP"] == plain["average_mAP"]
    opentad = both["protocols"]["opentad"]
    assert opentad["average_mAP"] == pytest.approx(1 / 2)
    assert opentad["conditions"]["left_out"] == {"the opentad protocol": [WRONG, EMPTY]}
    assert (opentad["conditions"]["videos"], opentad["conditions"]["max_segments"]) == (2, 1)
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [["activitynet", "4"], ["thumos14", "4"], ["opentad", "2"]]
    assert "at most 1 segments per video" in err
    assert "eval.py -t 2000" in err


def test_listed_videos_are_left_out_of_both_files(files, capsys):
    (files / "list.txt").write_text(f"# wrong\n{WRONG}\n\n")
    found, out, _ = scored(capsys, files, "--exclude", files / "list.txt")
    assert found["average_mAP"] == pytest.approx(1 / 2)
    assert list(found["conditions"]["left_out"].values()) == [[WRONG]]
    assert "1 videos left out (--exclude" in out
    (files / "list.txt").write_text("goood\nother\n")
    error = one_error(*run(capsys, files / "found.json", files / "truth.json", "--exclude", files / "list.txt")[::2])
    assert all(text in error for text in ("list.txt", "2 of 2 videos are unknown", "goood", "good"))


def test_results_say_why_they_cannot_be_compared(files, capsys):
    first, _, _ = scored(capsys, files)
    about = first["conditions"]
    assert about["annotations_sha256"] == hashlib.sha256((files / "truth.json").read_bytes()).hexdigest()
    assert (about["protocol"], about["subset"], about["ground_truth"], about["classes"]) == ("activitynet", ["test"], 3, 1)
    other = {**first, "conditions": {**about, "max_segments": 9, "chosen": "best on test", "chosen_on": ["test"]}}
    for name, content in (("a", first), ("b", first), ("c", other)):
        (files / f"{name}.json").write_text(json.dumps(content))
    code, out, _ = run(capsys, "--results", *(files / f"{name}.json" for name in "abc"))
    lines = out.splitlines()
    assert code == 0
    assert lines[4].endswith("b.json: comparable")
    assert lines[5].endswith("c.json: not comparable: segments per video 2 and 9")
    assert "c.json: not comparable with others: its epoch was chosen" in lines[6]


@pytest.mark.parametrize(("argv", "expected"), [
    (["{}/found.json"], ["name both files"]),
    (["--results", "{}/found.json"], ["found.json", "evaluate again"]),
    (["{}/found.json", "{}/truth.json", "--results", "x"], ["--results", "leave PREDICTIONS"]),
    (["{}/few.json", "{}/other.json", "--protocol", "opentad"], ["other.json", WRONG, "--protocol activitynet"])])
def test_bad_input(files, capsys, argv, expected):
    other = {"database": {"v": {"subset": "test", "duration": 9, "annotations": [{"segment": [1, 2], "label": "a"}]}}}
    (files / "other.json").write_text(json.dumps(other))
    (files / "few.json").write_text(json.dumps({"results": {"v": [{"segment": [1, 2], "label": "a", "score": 1}]}}))
    code, _, err = run(capsys, *(text.format(files) for text in argv))
    message = one_error(code, err)
    assert all(text in message for text in expected), message
