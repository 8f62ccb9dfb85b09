"""ActivityNet and HACS annotations: the official layouts become ours, number by number; bad files are one error."""
from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import prepare_anet
import prepare_hacs
import pytest
from helpers import one_error, run_script

from libs.datasets.annotations import load_annotations


def official() -> dict:
    """Three videos of two classes in the layout of activity_net.v1-3.min.json."""
    def item(start: float, end: float, label: str) -> dict:
        return {"segment": [start, end], "label": label}
    database = {
        "sJQX": {"subset": "training", "duration": 60.25, "resolution": "320x240", "url": "u",
                 "annotations": [item(1.5, 20.25, "Surfing"), item(30, 30, "Surfing")]},
        "v_bc": {"subset": "validation", "duration": 30.0,
                 "annotations": [item(0.01, 12.5, "Archery"), item(2, 31.5, "Surfing")]},
        "tEst": {"subset": "testing", "duration": 12.0, "annotations": []}}
    return {"version": "VERSION 1.3", "taxonomy": [{"nodeName": "Surfing"}], "database": database}


def bmn() -> dict:
    """The same segments in the layout of BMN's anet_anno_action.json."""
    return {f"v_{key}": {"duration_second": entry["duration"], "duration_frame": 100, "feature_frame": 96,
                         "annotations": entry["annotations"]} for key, entry in official()["database"].items()}


def convert(capsys, tmp_path: Path, content: object, *more: str, script=prepare_anet) -> tuple[int, str, str]:
    (tmp_path / "source.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return run_script(capsys, script.main, "prepare.py", str(tmp_path / "source.json"), str(tmp_path / "a/b.json"), *more)


@pytest.mark.parametrize("script", [prepare_anet, prepare_hacs])
def test_the_official_file(capsys, tmp_path, script):
    code, out, err = convert(capsys, tmp_path, official(), script=script)
    assert (code, err) == (0, "")
    with pytest.warns(UserWarning, match="1 leave their video"):
        found = load_annotations(tmp_path / "a/b.json")
    assert found.label_ids == {"Archery": 0, "Surfing": 1}
    assert {v.id: (v.subset, v.duration_s, v.segments.tolist(), v.labels.tolist()) for v in found.videos.values()} == {
        "sJQX": ("training", 60.25, [[1.5, 20.25]], [1]), "tEst": ("testing", 12.0, [], []),
        "v_bc": ("validation", 30.0, [[0.01, 12.5], [2, 31.5]], [0, 1])}  # not all ids begin with v_, so this is part of an id
    assert out.splitlines()[:3] == ["training: 1 videos (0.0 h), 1 segments", "testing: 1 videos (0.0 h), 0 segments",
                                    "validation: 1 videos (0.0 h), 2 segments"]
    assert "2 classes with segments" in out
    assert "1 segments that do not end after they start left out (first: video 'sJQX', annotations[1] [30, 30])" in out


def test_the_file_of_bmn_needs_to_be_told_the_subsets(capsys, tmp_path):
    code, _, err = convert(capsys, tmp_path, bmn())
    assert "video 'v_sJQX'.subset: missing; a file without subsets needs --video-info" in one_error(code, err)
    assert not (tmp_path / "a").exists()
    (tmp_path / "info.csv").write_text("video,numFrame,subset\nv_sJQX,1,validation\nv_tEst,2,testing\nv_v_bc,3,training\n")
    assert convert(capsys, tmp_path, bmn(), "--video-info", str(tmp_path / "info.csv"))[0] == 0
    subsets = {k: v["subset"] for k, v in json.loads((tmp_path / "a/b.json").read_text())["database"].items()}
    assert subsets == {"sJQX": "validation", "tEst": "testing", "v_bc": "training"}
    assert convert(capsys, tmp_path, bmn(), "--validation-every", "2", "--overwrite")[0] == 0
    subsets = {k: v["subset"] for k, v in json.loads((tmp_path / "a/b.json").read_text())["database"].items()}
    assert subsets == {"sJQX": "training", "tEst": "validation", "v_bc": "training"}


def test_videos_without_features_are_left_out(capsys, tmp_path):
    (tmp_path / "feats").mkdir()
    np.save(tmp_path / "feats/v_sJQX.npy", np.ones((3, 2)))
    code, out, _ = convert(capsys, tmp_path, official(), "--features", str(tmp_path / "feats"))
    assert code == 0
    assert list(json.loads((tmp_path / "a/b.json").read_text())["database"]) == ["sJQX"]
    assert f"2 videos without features in {tmp_path / 'feats'} left out (first: tEst)" in out
    code, _, err = convert(capsys, tmp_path, official(), "--features", str(tmp_path / "feats"), "--prefix", "x", "--overwrite")
    assert "has features of none of the 3 videos" in one_error(code, err)


def test_an_existing_file_is_kept(capsys, tmp_path):
    assert convert(capsys, tmp_path, official())[0] == 0
    before = (tmp_path / "a/b.json").read_bytes()
    code, _, err = convert(capsys, tmp_path, bmn())
    assert "b.json: exists already; choose another name, or add --overwrite" in one_error(code, err)
    assert (tmp_path / "a/b.json").read_bytes() == before


def change(key: str, value: object, video: str = "sJQX") -> dict:
    document = official()
    document["database"][video][key] = value
    return document


@pytest.mark.parametrize(("content", "message"), [
    ("{", "not valid JSON"), ("[]", "does not map video ids to objects"), ({"database": {}}, "does not map video ids to objects"),
    ({"database": {"a": 3}}, "does not map video ids"), (change("subset", "train"), "'train'; expected training, validation"),
    (change("subset", None), "video 'sJQX'.subset: None"), (change("duration", "long"), "'sJQX'.duration: 'long' is not"),
    (change("duration", "1_0"), "'1_0' is not a finite number"),
    (change("duration", -1), "'sJQX'.duration: -1 is not above 0"), (change("annotations", None), "annotations is None"),
    (change("annotations", [3]), "expected a list of objects"),
    (change("annotations", [{"segment": [1], "label": "x"}]), "annotations[0].segment is [1]"),
    (change("annotations", [{"segment": [1, float("nan")], "label": "x"}]), "end: 'nan' is not a finite number"),
    (change("annotations", [{"segment": [1, 2]}]), "the label is None"),
    ({"database": {"a": {"subset": "training", "duration": 3, "annotations": []}}}, "gives 1 videos without any segment")],
    ids=str)
def test_bad_files_are_one_error_and_nothing_is_written(capsys, tmp_path, content, message):
    code, _, err = convert(capsys, tmp_path, content)
    assert message in one_error(code, err)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("table", "message"), [
    ("id,subset\nv_sJQX,training\n", "lacks the column 'video'"), ("video,subset\nv_sJQX,training\n", "does not name 2 of the 3"),
    ("video,subset\nv_sJQX\n", "line 2: 1 cells"), ("video,subset\nv_sJQX,all\n", "line 2: subset 'all'"),
    ('video,subset\n"v_s"J,training\n', "line 2")])
def test_bad_lists_of_videos(capsys, tmp_path, table, message):
    (tmp_path / "info.csv").write_text(table)
    code, _, err = convert(capsys, tmp_path, bmn(), "--video-info", str(tmp_path / "info.csv"))
    assert message in one_error(code, err)


@pytest.mark.parametrize("more", [("--validation-every", "1"), ("--validation-every", "2", "--video-info", "x.csv")])
def test_bad_options(capsys, tmp_path, more):
    code, _, err = convert(capsys, tmp_path, bmn(), *more)
    assert "give a number from 2 on, or --video-info, not both" in one_error(code, err)
    assert "has subsets of its own" in one_error(*convert(capsys, tmp_path, official(), *more)[::2])
    assert sys.argv[0] != "prepare.py"
