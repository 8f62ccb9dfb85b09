"""Unusual and unusable videos through the descriptor: one line each, nothing half-written, the others done."""
from __future__ import annotations

import errno
import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers import one_error
from videos import FPS, H, W, level, make_video, moving, run_extract

from libs.datasets.video.decoding import read_frames
from libs.datasets.video.extractors import create

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "a.mp4", frames=20, picture=moving)
    return tmp_path


def encoder(name: str) -> str:
    """The name of an encoder, if this FFmpeg has it; else the test is skipped."""
    if name not in av.codecs_available:
        pytest.skip(f"this PyAV has no {name}")
    return name


UNUSUAL = {  # make_video's arguments, vectors
    "one frame": ({"frames": 1}, 1), "16 frames": ({"frames": 16}, 1), "19 frames": ({"frames": 19}, 1),
    "odd size": ({"size": (35, 51), "codec": "ffv1"}, 2), "10-bit H.264": ({"codec": "libx264", "pix_fmt": "yuv420p10le"}, 2),
    "HEVC": ({"codec": "libx265"}, 2), "VP9 with alpha": ({"codec": "libvpx-vp9", "pix_fmt": "yuva420p"}, 2),
    "grey": ({"codec": "ffv1", "pix_fmt": "gray"}, 2), "tiny": ({"size": (8, 10), "codec": "ffv1"}, 2)}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_videos(name, folder, capsys):
    made, vectors = UNUSUAL[name]
    made = {"frames": 20, "codec": "mpeg4", **made}
    encoder(made["codec"])
    size = made.get("size", (H, W))
    make_video(folder / "v.mkv", picture=lambda k: moving(k, size), **made)
    assert run_extract(capsys, "v.mkv", "out")[0] == 0
    feats = np.load("out/v.npy")
    assert feats.shape == (vectors, 657)
    frames = np.stack(list(read_frames("v.mkv", None)))
    assert np.abs(frames[0].astype(float) - moving(0, size)).mean() < (60 if name == "grey" else 12)


def test_a_variable_rate_is_told_and_put_on_a_grid(folder, capsys):
    times = [Fraction(k, 20) for k in range(20)] + [1 + Fraction(k, 5) for k in range(20)]
    make_video(folder / "v.mkv", times, picture=moving)
    code, _, err = run_extract(capsys, "v.mkv", "out", "--fps", "10")
    assert (code, err) == (0, "")
    assert json.loads(Path("out/provenance.json").read_text())["videos"]["v"]["frames"] == 49  # the last lasts 1 / average rate
    assert "v.mkv: has a variable frame rate" in run_extract(capsys, "v.mkv", "other")[2]


def test_frames_of_an_avi_that_are_stored_in_another_order(folder, capsys):
    """The times that FFmpeg gives such frames go back and forth, which must neither lose a frame nor count as a variable rate."""
    make_video(folder / "v.avi", frames=30, codec=encoder("libx264"))
    with av.open("v.avi") as container:
        times = [frame.pts for frame in container.decode(video=0)]
    assert times != sorted(times)
    assert np.allclose([frame.mean() for frame in read_frames("v.avi", None)], [level(k) for k in range(30)], atol=3)
    assert run_extract(capsys, "v.avi", "out")[2] == ""
    made = json.loads(Path("out/provenance.json").read_text())["videos"]["v"]
    assert (made["frames"], made["decoded_frames"], made["duration"], made["variable_frame_rate"]) == (30, 30, 3.0, False)


def test_a_size_that_changes_on_the_way(folder):
    """Frames of another size than the first are scaled to it."""
    with av.open("c.mpg", "w", format="mpeg1video") as container:
        stream = container.add_stream("mpeg1video", rate=25, width=64, height=48, pix_fmt="yuv420p")
        for k in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moving(k), format="rgb24")))
        container.mux(stream.encode())
    with av.open("d.mpg", "w", format="mpeg1video") as container:
        stream = container.add_stream("mpeg1video", rate=25, width=96, height=80, pix_fmt="yuv420p")
        for k in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moving(k, (80, 96)), format="rgb24")))
        container.mux(stream.encode())
    (folder / "both.mpg").write_bytes((folder / "c.mpg").read_bytes() + (folder / "d.mpg").read_bytes())
    with av.open("both.mpg") as container:
        assert len({(frame.width, frame.height) for frame in container.decode(video=0)}) == 2
    assert {frame.shape for frame in read_frames("both.mpg", None)} == {(48, 64, 3)}


def test_features_of_another_tool_are_not_replaced(folder, capsys):
    (folder / "out").mkdir()
    np.save("out/a.npy", np.ones((3, 2048), np.float32))
    error = one_error(*run_extract(capsys, "a.mp4", "out")[::2])
    assert all(part in error for part in ("out/a.npy: is not by this tool", "choose another folder", "--overwrite")), error
    assert np.load("out/a.npy").shape == (3, 2048)
    assert run_extract(capsys, "a.mp4", "out", "--overwrite")[0] == 0
    assert np.load("out/a.npy").shape == (2, 657)


def test_overwriting_some_videos_keeps_the_others_and_never_mixes_settings(folder, capsys):
    make_video(folder / "b.mp4", frames=20, picture=moving)
    assert run_extract(capsys, "a.mp4", "b.mp4", "out")[0] == 0
    assert run_extract(capsys, "a.mp4", "out", "--overwrite")[0] == 0
    assert set(json.loads(Path("out/provenance.json").read_text())["videos"]) == {"a", "b"}
    error = one_error(*run_extract(capsys, "a.mp4", "out", "--overwrite", "--power", "0.5")[::2])
    assert all(part in error for part in ("another power (1.0, now 0.5)", "these 1 videos, too (b", "another folder")), error
    assert run_extract(capsys, "a.mp4", "b.mp4", "out", "--overwrite", "--power", "0.5")[0] == 0
    assert set(json.loads(Path("out/provenance.json").read_text())["videos"]) == {"a", "b"}


def test_a_killed_run_is_taken_up(folder, capsys):
    """Features that were written just before the kill, and a file that was being written."""
    make_video(folder / "b.mp4", frames=20, picture=moving)
    assert run_extract(capsys, "a.mp4", "b.mp4", "out")[0] == 0
    noted = json.loads(Path("out/provenance.json").read_text())
    noted["videos"].pop("b")
    Path("out/provenance.json").write_text(json.dumps(noted))
    Path("out/b.npy").write_bytes(b"\x93NUMPY half")
    (folder / "out/.b.npy.x.tmp").write_bytes(b"half")
    assert "1 videos done, 1 were there already" in run_extract(capsys, "a.mp4", "b.mp4", "out")[1]
    assert np.array_equal(np.load("out/b.npy"), np.load("out/a.npy"))


def test_a_cut_feature_file_is_made_again(folder, capsys):
    """A copy of the folder that was stopped on the way, though its provenance file lists the video."""
    assert run_extract(capsys, "a.mp4", "out")[0] == 0
    whole = Path("out/a.npy").read_bytes()
    for part in (b"", b"half", whole[:-4]):
        Path("out/a.npy").write_bytes(part)
        assert "1 videos done, 0 were there already" in run_extract(capsys, "a.mp4", "out")[1]
        assert Path("out/a.npy").read_bytes() == whole
    assert "0 videos done, 1 were there already" in run_extract(capsys, "a.mp4", "out")[1]


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of file sizes")
def test_a_limit_of_file_sizes_is_told_as_a_lack_of_space(folder, capsys):
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))  # the features take 5,384 bytes
    try:
        error = one_error(*run_extract(capsys, "a.mp4", "out")[::2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all(part in error for part in ("out/a.npy", "no space is left", "free some space")), error
    assert [path.name for path in Path("out").iterdir()] == ["provenance.json"]


def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(folder, capsys, monkeypatch):
    def full(file, arr):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(np, "save", full)
    error = one_error(*run_extract(capsys, "a.mp4", "out")[::2])
    assert all(part in error for part in ("out/a.npy", "No space left", "free some space"))
    assert [path.name for path in Path("out").iterdir()] == ["provenance.json"]
    assert json.loads(Path("out/provenance.json").read_text())["videos"] == {}


def test_a_pyav_that_does_not_tell_the_rotation_is_refused(folder, capsys, monkeypatch):
    monkeypatch.setattr(av, "VideoFrame", object)
    error = one_error(*run_extract(capsys, "a.mp4", "out")[::2])
    assert all(part in error for part in ("PyAV 14.2 or newer", av.__version__, "pip install -U")), error


def test_without_opencv_and_with_one_that_lacks_tvl1(folder, capsys, monkeypatch):
    for argv in ([], ["--extractor", "i3d", "--rgb-model", "r.pt"]):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "cv2", None)
            error = one_error(*run_extract(capsys, "a.mp4", "out", *argv)[::2])
        assert all(part in error for part in ("opencv-python-headless", 'pip install -e ".[video]"')), error
    with monkeypatch.context() as patch:
        patch.delattr(cv2, "optflow", raising=False)
        error = one_error(*run_extract(capsys, "a.mp4", "out", "--flow-method", "tvl1")[::2])
    assert all(part in error for part in ("--flow-method tvl1", "opencv-contrib-python-headless", "--flow-method dis")), error
    assert not Path("out").exists()


def test_an_option_that_an_extractor_lacks_is_named_with_what_it_has(folder, capsys):
    error = one_error(*run_extract(capsys, "a.mp4", "out", "--crop", "112")[::2])
    assert all(part in error for part in ("--crop: the extractor descriptor has no such option", "--resize", "--still")), error
    with pytest.raises(Exception, match=r"did you mean 'flow_method'"):
        create("descriptor", {"flow_methode": "dis"})


def test_fps_of_the_grid_is_the_one_asked_for(folder, capsys):
    assert run_extract(capsys, "a.mp4", "out", "--fps", str(FPS // 2), "--stride", "2", "--num-frames", "4")[0] == 0
    assert np.load("out/a.npy").shape == ((10 - 4) // 2 + 1, 657)
