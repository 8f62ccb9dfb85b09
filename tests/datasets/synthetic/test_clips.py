"""Generated clips: what is annotated is what is drawn, equal clips are equal files, and nothing of others is replaced."""
from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace

import make_clips as script
import numpy as np
import pytest
from helpers import one_error, run_script

from libs.core.errors import UserError
from libs.datasets.synthetic import clips
from libs.datasets.synthetic.clips import ClipsSpec, annotation_document, draw_clip, make_clips, timeline
from libs.datasets.synthetic.figures import ACTIONS, CLASSES, NO_ACTIONS, Pose, pose
from libs.datasets.video.decoding import probe

pytest.importorskip("av")
pytest.importorskip("cv2")
SMALL = ClipsSpec(training=2, validation=1, seconds=(6.0, 8.0), gap_s=0.2)


def test_the_annotations_are_inside_their_clips_and_name_all_classes():
    database = annotation_document(ClipsSpec())["database"]
    seen = {"training": set(), "validation": set()}
    for video in database.values():
        assert (video["duration"] * video["fps"]) % 1 == 0
        segments = [item["segment"] for item in video["annotations"]]
        assert all(0 <= s < e <= video["duration"] for s, e in segments)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(segments))
        assert all(item["label"] == CLASSES[item["label_id"]] for item in video["annotations"])
        seen[video["subset"]] |= {item["label"] for item in video["annotations"]}
    assert seen == {"training": set(CLASSES), "validation": set(CLASSES)}
    assert sum(len(video["annotations"]) for video in database.values()) > 150


def test_a_clip_depends_on_seed_and_number_alone():
    whole, part = annotation_document(SMALL)["database"], annotation_document(replace(SMALL, training=0, first=2))["database"]
    assert part["clip_002"]["annotations"] == whole["clip_002"]["annotations"]
    assert timeline(replace(SMALL, seed=1), 0) != timeline(SMALL, 0)
    assert all((a == b).all() for a, b in zip(draw_clip(SMALL, 0), draw_clip(SMALL, 0), strict=True))


def test_the_look_alikes_and_the_move_alikes():
    """hop and sway are one pose that moves apart; lift_ball and lift_box one motion with another thing; rest moves nothing."""
    for seconds in (0.0, 0.3, 0.7):
        hop, sway = (pose(name, seconds, 1.0, 1.0) for name in ("hop", "sway"))
        assert hop[:3] == sway[:3]
        assert hop.shift == sway.shift[::-1]
        ball, box = (pose(name, seconds, 1.0, 1.0) for name in ("lift_ball", "lift_box"))
        assert ball[:-1] == box[:-1]
        assert (ball.held, box.held) == ("ball", "box")
    for name in (*ACTIONS, *NO_ACTIONS):
        assert pose(name, 0.4, 0.0, 1.0)[:-1] == Pose()[:-1]


def test_pictures_move_during_an_action_only_where_the_figure_is():
    still = replace(SMALL, shake=0.0, decoys=0.0)
    _, events = timeline(still, 1)
    pictures = [p.astype(int) for p in draw_clip(still, 1)]
    moving = [k for k in range(1, len(pictures)) if np.abs(pictures[k] - pictures[k - 1]).max() > 40]
    inside = [k for k in moving if any(e.start_s - 0.05 <= k / clips.FPS <= e.end_s + 0.05 for e in events)]
    assert len(inside) > 0.8 * sum(e.end_s - e.start_s for e in events) * clips.FPS
    assert (np.abs(pictures[moving[5]] - pictures[moving[5] - 1]).max(2) > 40).mean() < 0.1


def test_files_are_made_once_and_the_folder_of_others_is_left_alone(tmp_path):
    assert make_clips(tmp_path / "a", SMALL) == 3
    files = {p.name: p.read_bytes() for p in (tmp_path / "a/videos").iterdir()}
    assert sorted(files) == ["clip_000.mp4", "clip_001.mp4", "clip_002.mp4"]
    document = json.loads((tmp_path / "a/annotations.json").read_text())
    for name, video in document["database"].items():
        info = probe(str(tmp_path / f"a/videos/{name}.mp4"))
        assert (info.fps, info.width, info.height) == (25, 208, 156)
        assert info.duration_s == pytest.approx(video["duration"])
    (tmp_path / "a/videos/clip_001.mp4").unlink()
    assert make_clips(tmp_path / "a", SMALL) == 1
    assert (tmp_path / "a/videos/clip_001.mp4").read_bytes() == files["clip_001.mp4"]
    with pytest.raises(UserError, match=r"annotations.json.*choose another folder"):
        make_clips(tmp_path / "a", replace(SMALL, seed=3))
    assert {p.name: p.read_bytes() for p in (tmp_path / "a/videos").iterdir()} == files


def test_an_interrupted_run_has_no_annotations(tmp_path, monkeypatch):
    def stop(done, total):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        make_clips(tmp_path, SMALL, stop)
    assert [p.name for p in (tmp_path / "videos").iterdir()] == ["clip_000.mp4"]
    assert not (tmp_path / "annotations.json").exists()
    assert make_clips(tmp_path, SMALL) == 3


@pytest.mark.parametrize(("argv", "told"), [
    (["--seconds", "9", "8"], ["--seconds 9 8", "LOW <= HIGH"]), (["--training", "-1"], ["--training -1", "from 0 on"]),
    (["--training", "0", "--validation", "0"], ["--validation 0", "at least one clip"])], ids=str)
def test_impossible_options(tmp_path, capsys, argv, told):
    error = one_error(*run_script(capsys, script.main, "make_clips.py", str(tmp_path / "x"), *argv)[::2])
    assert all(part in error for part in told), error


@pytest.mark.parametrize("package", ["av", "cv2"])
def test_packages_that_are_not_installed(tmp_path, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    error = one_error(*run_script(capsys, script.main, "make_clips.py", str(tmp_path / "x"))[::2])
    assert 'pip install -e ".[video]"' in error
    assert not (tmp_path / "x").exists()
