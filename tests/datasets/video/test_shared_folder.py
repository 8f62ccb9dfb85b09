"""Several processes share a folder of features: the same files as by one, no video twice, nothing lost when one is killed."""
from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import extract_features as script
import numpy as np
import pytest
from helpers import one_error
from processes import run_processes
from videos import make_video, moving, run_extract

from libs.core.errors import UserError
from libs.datasets.video import extract, workers
from libs.datasets.video.extractors import create
from libs.datasets.video.feature_folder import FeatureFolder
from libs.datasets.video.one_video import extract_features
from libs.utils.files.claims import NAME

pytest.importorskip("av")
pytest.importorskip("cv2")
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """videos/a.mp4, b.mp4, c.mp4 and the folder `one`, made by one process."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "videos").mkdir()
    for i, name in enumerate(NAMES):
        make_video(folder / f"videos/{name}.mp4", frames=20 + 4 * i, picture=lambda k, i=i: moving(k * (i + 1)))
    extract.extract_videos([str(folder / "videos")], folder / "one", create("descriptor", {}), advance=lambda done, total: None)
    return folder


@pytest.fixture
def project(shared, monkeypatch):
    monkeypatch.chdir(shared)
    return shared


def assert_as_by_one(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [*(f"{name}.npy" for name in NAMES), "provenance.json"]
    for name in NAMES:
        assert (folder / f"{name}.npy").read_bytes() == Path(f"one/{name}.npy").read_bytes()
    ours, theirs = (json.loads((place / "provenance.json").read_text()) for place in (folder, Path("one")))
    for content in (ours, theirs):
        for entry in content["videos"].values():
            entry["source"] = os.path.basename(entry["source"])
    assert ours == theirs


def test_shards_one_after_the_other_give_the_same_files(project, capsys, tmp_path):
    for part, videos in ((1, "1 videos"), (0, "2 videos")):
        code, out, err = run_extract(capsys, "videos", "-o", str(tmp_path / "out"), "--shard", f"{part}/2")
        assert (code, f"{videos} done, 0 were there already" in out) == (0, True), err
    assert_as_by_one(tmp_path / "out")
    for wrong in ("2/2", "1", "-1/2", "0/0"):
        code, _, err = run_extract(capsys, "videos", "-o", "x", f"--shard={wrong}")
        assert (code, f"{wrong}: expected I/N" in err) == (2, True)


def test_a_video_that_another_process_works_on_is_waited_for_and_not_done_again(project, monkeypatch, tmp_path):
    extractor, asked = create("descriptor", {}), []
    other = FeatureFolder(tmp_path / "out", extractor, {name: f"videos/{name}.mp4" for name in NAMES})

    def claim(self, name):
        asked.append(name)
        if name == "b" and asked.count("b") == 2:  # the other process is ready
            other.save("b", *extract_features("videos/b.mp4", extractor))
        return name != "b" or asked.count("b") > 1

    monkeypatch.setattr(FeatureFolder, "claim", claim)
    monkeypatch.setattr(extract, "POLL_S", 0.0)
    made, skipped, failed = extract.extract_videos(["videos"], tmp_path / "out", extractor, advance=lambda done, total: None)
    assert (asked, made, skipped, failed) == (["a", "b", "c", "b"], 2, 1, {})
    other.close()
    assert_as_by_one(tmp_path / "out")


def test_processes_that_start_together_agree_on_the_settings(project, tmp_path):
    names = {name: f"videos/{name}.mp4" for name in NAMES}
    first, second = (FeatureFolder(tmp_path, create("descriptor", {"stride": stride}), names) for stride in (4, 8))
    entry = {"bytes": os.path.getsize("videos/a.mp4"), "source": "videos/a.mp4", "vectors": 2}
    feats = np.zeros((2, 657), np.float32)
    first.save("a", feats, entry)
    with pytest.raises(UserError, match=r"provenance.json: .* another stride \(4, now 8\)"):
        second.save("b", feats, entry)
    assert sorted(p.name for p in tmp_path.glob("*.npy")) == ["a.npy"]
    again = [FeatureFolder(tmp_path, create("descriptor", {"stride": 8}), names, overwrite=True) for _ in range(2)]
    assert not again[1].made_since("a")
    again[0].save("a", feats, entry)
    assert again[1].made_since("a")  # overwritten once, by the other
    assert not again[1].made_since("b")
    again[1].save("b", feats, entry)
    assert list(json.loads((tmp_path / "provenance.json").read_text())["videos"]) == ["a", "b"]


def test_a_worker_that_is_gone_is_one_error():
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(UserError, match=r"a\.mp4: the process that worked on it has ended.*--workers"):
        workers._received(ours, "a.mp4")


@pytest.mark.slow
def test_workers_give_the_same_files_and_a_bad_video_is_one_error(project, capsys, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    code, out, err = run_extract(capsys, "videos", str(tmp_path / "bad.mp4"), "-o", str(tmp_path / "out"), "--workers", "2")
    assert "bad.mp4: cannot be read as a video" in one_error(code, err)
    assert "3 videos done" in out
    assert_as_by_one(tmp_path / "out")


@pytest.mark.slow
def test_processes_of_torchrun_give_the_same_files_and_the_first_speaks(project, tmp_path):
    first, second = run_processes(2, script.main, "extract_features.py", "videos", "-o", str(tmp_path / "out"), "--device", "cpu")
    assert (first.code, second.code, second.out, second.err) == (0, 0, "", ""), first.err
    assert " videos done, " in first.out
    assert_as_by_one(tmp_path / "out")


@pytest.mark.slow
def test_a_killed_process_is_taken_over_by_the_others(project, tmp_path):
    """Two processes share three longer videos; one is killed at its first, the other does them all."""
    (tmp_path / "long").mkdir()
    for name in NAMES:
        make_video(tmp_path / f"long/{name}.mp4", frames=600, picture=moving)
    argv = [sys.executable, script.__file__, str(tmp_path / "long"), "-o", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(script.__file__).parents[1])}
    first, second = (subprocess.Popen(argv, env={**environment, "RANK": rank}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      text=True) for rank in ("1", "0"))
    while not (tmp_path / "out" / NAME).exists():
        time.sleep(0.05)
    first.kill()
    assert first.communicate()[0] == ""  # all but process 0 of torchrun are quiet
    out, err = second.communicate()
    assert (second.returncode, err) == (0, "")
    assert "were there already" in out
    made = json.loads((tmp_path / "out/provenance.json").read_text())["videos"]
    assert sorted(made) == list(NAMES)
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.suffix != ".tmp") == [
        *(f"{name}.npy" for name in NAMES), "provenance.json"]
    alone = extract_features(str(tmp_path / "long/a.mp4"), create("descriptor", {}))[0]
    assert np.array_equal(np.load(tmp_path / "out/a.npy"), alone)
