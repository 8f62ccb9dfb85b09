"""EPIC-Kitchens-100 tables -> annotations of verbs, nouns and actions, and their fusion end to end."""
from __future__ import annotations

import json
from pathlib import Path

import fuse_actions
import prepare_epic
import pytest
from helpers import one_error, run_script

from libs.datasets.annotations import load_annotations
from libs.datasets.prepare.epic import NOUNS, VERBS

HEADER = ("narration_id,participant_id,video_id,start_timestamp,stop_timestamp,start_frame,stop_frame,narration,verb,verb_class,"
          "noun,noun_class,all_nouns")
TRAIN = ['P01_01_0,P01,P01_01,00:00:00.14,00:00:03.37,8,202,"open, door",open,3,door,8,"[\'door\']"',
         "P01_01_1,P01,P01_01,01:02:04.5,01:02:06,8,202,take plate,pick-up,0,plate,2,x"]
VALIDATION = ["P02_05_0,P02,P02_05,00:00:10.00,00:00:12.25,8,202,wash plate,wash,2,plate,2,x",
              "P02_05_1,P02,P02_05,00:00:20.00,00:00:20.00,8,202,wash plate,wash,2,plate,2,x"]


@pytest.fixture
def tables(tmp_path) -> Path:
    folder = tmp_path / "official"
    folder.mkdir()
    (folder / "EPIC_100_train.csv").write_text("\n".join([HEADER, *TRAIN]) + "\n")
    (folder / "EPIC_100_validation.csv").write_text("\n".join([HEADER, *VALIDATION]) + "\n")
    (folder / "EPIC_100_video_info.csv").write_text("video_id,duration,fps,resolution\nP01_01,4000.5,59.94,x\nP02_05,90,50,x\n")
    for task, count in (("verb", VERBS), ("noun", NOUNS)):
        rows = [f"{i},{task}{i},[],c" for i in range(count)]
        (folder / f"EPIC_100_{task}_classes.csv").write_text("\n".join(["id,key,instances,category", *rows]) + "\n")
    return folder


def convert(capsys, tables: Path, out: Path, *more: str) -> tuple[int, str, str]:
    return run_script(capsys, prepare_epic.main, "prepare_epic.py", str(tables), str(out), *more)


def test_the_three_tasks(capsys, tmp_path, tables):
    code, out, err = convert(capsys, tables, tmp_path / "out")
    assert (code, err) == (0, "")
    found = {task: load_annotations(tmp_path / f"out/epic_kitchens_100_{task}.json") for task in ("verb", "noun", "action")}
    for content in found.values():
        assert {v.id: (v.subset, v.duration_s, v.fps) for v in content.videos.values()} == {
            "P01_01": ("training", 4000.5, 59.94), "P02_05": ("validation", 90.0, 50.0)}
        assert content.videos["P01_01"].segments.tolist() == [[0.14, 3.37], [3724.5, 3726.0]]
        assert content.videos["P02_05"].segments.tolist() == [[10.0, 12.25]]
    assert found["verb"].label_ids == {"verb3": 3, "verb0": 0, "verb2": 2}
    assert found["noun"].label_ids == {"noun8": 8, "noun2": 2}
    assert found["action"].label_ids == {"verb3 noun8": 3 * NOUNS + 8, "verb0 noun2": 2, "verb2 noun2": 2 * NOUNS + 2}
    assert out.count("1 segments that do not end after they start left out") == 3
    code, _, err = convert(capsys, tables, tmp_path / "out")
    assert "exists already; choose another name, or add --overwrite" in one_error(code, err)


@pytest.mark.parametrize(("name", "old", "new", "message"), [
    ("EPIC_100_train.csv", "verb_class", "verbs", "lacks the column 'verb_class'"),
    ("EPIC_100_train.csv", "pick-up,0", "pick-up,97", "line 3: verb_class: '97' is not a whole number from 0 to 96"),
    ("EPIC_100_train.csv", "pick-up,0", "pick-up,-1", "verb_class: '-1'"),
    ("EPIC_100_train.csv", "01:02:04.5", "62:04.5", "line 3: start_timestamp: '62:04.5' is not a time"),
    ("EPIC_100_train.csv", "P01,P01_01,01", "P01,P09_01,01", "line 3: video 'P09_01' is not in EPIC_100_video_info.csv"),
    ("EPIC_100_validation.csv", "P02_05,00:00:10", "P01_01,00:00:10", "video 'P01_01': is there twice"),
    ("EPIC_100_video_info.csv", "P02_05,90", "P02_05,", "line 3: duration: '' is not a finite number"),
    ("EPIC_100_verb_classes.csv", "4,verb4", "4,verb3", "line 6: 'verb3' repeats an id or a name"),
    ("EPIC_100_verb_classes.csv", "\n96,verb96,[],c", "", "names 96 classes, EPIC-Kitchens-100 has 97")])
def test_bad_tables_are_one_error_and_nothing_is_written(capsys, tmp_path, tables, name, old, new, message):
    text = (tables / name).read_text()
    assert old in text
    (tables / name).write_text(text.replace(old, new, 1))
    code, _, err = convert(capsys, tables, tmp_path / "out")
    assert message in one_error(code, err)
    assert not (tmp_path / "out").exists()


def test_missing_tables(capsys, tmp_path, tables):
    assert "no such folder" in one_error(*convert(capsys, tmp_path / "nowhere", tmp_path / "out")[::2])
    (tables / "EPIC_100_video_info.csv").unlink()
    assert "EPIC_100_video_info.csv: no such table of videos" in one_error(*convert(capsys, tables, tmp_path / "out")[::2])


def predictions(path: Path, *rows: tuple[float, float, str, float]) -> str:
    entries = [{"segment": [s, e], "label": label, "score": score} for s, e, label, score in rows]
    path.write_text(json.dumps({"results": {"P02_05": entries}}))
    return str(path)


def test_fusion_scores_pairs(capsys, tmp_path, tables):
    assert convert(capsys, tables, tmp_path / "out")[0] == 0
    verbs = predictions(tmp_path / "v.json", (10, 12.25, "verb2", 0.9), (40, 50, "verb3", 0.8))
    nouns = predictions(tmp_path / "n.json", (10, 12.25, "noun2", 0.4), (70, 80, "noun8", 0.8))
    wrong = predictions(tmp_path / "w.json", (10, 12.25, "noun8", 0.4))
    averages = []
    for found in (nouns, wrong):
        code, out, err = run_script(capsys, fuse_actions.main, "fuse_actions.py", verbs, found, "--annotations",
                                    str(tmp_path / "out"), "--out", str(tmp_path / "a.json"), "--json", str(tmp_path / "s.json"))
        assert code == 0, err
        averages.append(json.loads((tmp_path / "s.json").read_text())["average_mAP"])
        entry, = json.loads((tmp_path / "a.json").read_text())["results"]["P02_05"]  # the others do not overlap
        assert entry["segment"] == [10, 12.25]
        assert entry["score"] == pytest.approx(0.6)
    assert averages == [1.0, 0.0]  # the right verb with a wrong noun is a wrong action
    assert entry["label"] == "verb2 noun8"
    assert "split validation: 1 segments of 1 actions, 1 videos" in out
    code, _, err = run_script(capsys, fuse_actions.main, "fuse_actions.py", verbs, nouns, "--annotations", str(tmp_path / "out"),
                              "--split", "test")
    assert "has no split 'test'; it has training, validation" in one_error(code, err)
