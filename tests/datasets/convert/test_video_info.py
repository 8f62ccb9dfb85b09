"""Frames per second and durations of videos: one layout of tables, the JSON files that hold them too, and what is refused."""
from __future__ import annotations

import json

import pytest

from libs.core.errors import UserError
from libs.datasets.convert.video_info import read_video_info, with_bare_names
from libs.datasets.features.provenance import VideoTiming


@pytest.mark.parametrize(("name", "text"), [
    ("new.csv", "video,duration,fps\nx,3.5,25\ny,4,\n"), ("old.csv", "video_id,fps,duration\nx,25,3.5\ny,,4\n"),
    ("Capitals.csv", "Video,FPS,Duration\nx,25,3.5\ny,,4\n"), ("more.csv", "video,width,duration,fps\nx,8,3.5,25\ny,8,4,\n"),
    ("tabs.tsv", "video\tduration\tfps\nx\t0:03.5\t25\ny\t4\t\n"),
    ("database.json", json.dumps({"database": {"x": {"fps": 25, "duration": 3.5, "annotations": []}, "y": {"duration": 4}}}))])
def test_every_layout_says_the_same(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_video_info(tmp_path / name) == {"x": VideoTiming(25.0, 3.5), "y": VideoTiming(None, 4.0)}


def test_a_provenance_file_adds_stride_and_window(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"stride": 8, "num_frames": 16, "fps": None,
                                                 "videos": {"x": {"fps": 25, "duration": 3.5, "bytes": 9}}}))
    assert read_video_info(tmp_path / "p.json") == {"x": VideoTiming(25.0, 3.5, 8.0, 16.0)}


def test_names_of_media_files_count_without_their_ending_where_that_is_clear():
    a, b = VideoTiming(25.0), VideoTiming(30.0)
    assert with_bare_names({"x.mp4": a, "cam1.2024": b}) == {"x.mp4": a, "x": a, "cam1.2024": b}
    assert with_bare_names({"x.mp4": a, "x.avi": b}) == {"x.mp4": a, "x.avi": b}
    assert with_bare_names({"x.mp4": a, "x": b}) == {"x.mp4": a, "x": b}


def test_repeated_rows_must_agree(tmp_path):
    (tmp_path / "c.csv").write_text("video,fps,duration\nx,30,\ny,30,\nx,,9\nx,30,9\n")
    assert read_video_info(tmp_path / "c.csv") == {"x": VideoTiming(30.0, 9.0), "y": VideoTiming(30.0)}


@pytest.mark.parametrize(("name", "text", "told"), [
    ("c.csv", "video,fps\nx,fast\n", ["line 2", "video x", "fps", "'fast'"]),
    ("e.json", '{"database": {"x": {"fps": 1e30}}}', ["video x", "fps", "1e+30", "between 0.001 and 1e+06"]),
    ("c.csv", "video,fps\nx,1_0\n", ["video x", "fps", "'1_0'"]), ("c.csv", "video,fps\nx,inf\n", ["video x", "fps", "'inf'"]),
    ("c.csv", "video,fps\nx,0:25\n", ["video x", "fps", "'0:25'"]), ("c.csv", "video,duration\nx,-1\n", ["duration", "'-1'"]),
    ("c.csv", "video,fps\n,25\n", ["line 2", "names no video"]),
    ("c.csv", "video,fps\nx,30\ny,30\nx,25\n", ["line 4", "fps 25", "'x'", "30", "line 2", "correct"]),
    ("d.csv", "name,fps\nx,30\n", ["'video'", "video,duration,fps"]), ("d.csv", "video,fps\n", ["video,duration,fps"]),
    ("d.csv", "video,fps\nx,30,5\n", ["line 2", "3 cells"]),
    ("e.json", '{"database": {"x": {"fps": 0}}}', ["video x", "fps", "0"]),
    ("e.json", '{"database": {"x": {"fps": 1' + 400 * "0" + "}}}", ["video x", "fps"]), ("f.json", "[]", ["database"]),
    ("f.json", '{"videos": {"x": {"fps": 5}}}', ["stride", "num_frames"]), ("g.xml", "", ["'.xml'", ".csv"])])
def test_refusals(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_video_info(tmp_path / name)
    for part in (name, *told):
        assert part in str(error.value), str(error.value)
