"""Where results go: by the ending, or by format into a folder; everything checked before the work."""
from __future__ import annotations

import json

import numpy as np
import pytest

from libs.core.errors import UserError
from libs.utils.evaluation.predictions import Detections, read_predictions
from libs.utils.evaluation.writers import PER_VIDEO, TABLES, plan_output, write_output

FOUND = Detections.from_arrays(["b", "b", "a"], [0, 1, 2], [1, 2, 3.25], [0, 1, 1], [0.9, 0.5, 0.7])
NAMES = {0: "run", 1: "jump"}


@pytest.mark.parametrize("fmt", [kind[1:] for kind in (*TABLES, *PER_VIDEO)])
def test_a_folder_and_a_file_of_every_format(tmp_path, fmt):
    videos = ["b", "a", "nothing"]
    output = plan_output(tmp_path / "new" / "folder", fmt, videos)
    write_output(output, FOUND, NAMES, videos)
    written = sorted(p.name for p in (tmp_path / "new" / "folder").iterdir())
    one = plan_output(tmp_path / f"x.{fmt}", None, ["a"])
    write_output(one, FOUND.take(FOUND.video_id == "a"), NAMES, ["a"])
    if fmt in ("srt", "vtt", "eaf"):
        assert written == sorted(f"{v}.{fmt}" for v in videos)
        assert "jump" in one.files[0].read_text()
        assert "jump" not in output.files[2].read_text()
        return
    assert written == [f"predictions.{fmt}"]
    back = read_predictions(output.files[0], {"run": 0, "jump": 1})
    order = np.argsort(back.t_start)
    for column in ("video_id", "t_start", "t_end", "label", "score"):
        assert getattr(back, column)[order].tolist() == getattr(FOUND, column).tolist()
    if fmt == "json":
        assert list(json.loads(output.files[0].read_text())["results"]) == videos
        assert json.loads(output.files[0].read_text())["results"]["nothing"] == []


@pytest.mark.parametrize(("name", "fmt", "videos", "told"), [
    ("x.jsn", None, "a", "did you mean '.json'"), ("x", None, "a", "no ending"), ("x.srt", None, "ab", "--format srt"),
    ("x.mp4", None, "ab", "--format mp4"),
    ("here", None, "a", "--format json|"), ("x.csv", "srt", "a", "ends in .csv"), ("file/x.json", None, "a", "cannot be written"),
    ("here", "txt", "a", "format 'txt'"), ("here", "srt", ["a/b"], "'a/b'"), ("here", "srt", [".."], "name of a file")])
def test_refusals(tmp_path, name, fmt, videos, told):
    (tmp_path / "here").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        plan_output(tmp_path / name, fmt, list(videos))
    assert told in str(error.value)
    assert list((tmp_path / "here").iterdir()) == []
