"""The descriptor from video to vectors: what moves and what it looks like; sizes; resuming."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import one_error
from videos import make_video, moving, run_extract

from libs.datasets.video.decoding import read_frames
from libs.datasets.video.extractors import create
from libs.datasets.video.extractors import descriptor as module
from libs.datasets.video.one_video import clips, extract_features

cv2 = pytest.importorskip("cv2")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "a.mp4", frames=24, picture=moving)
    return tmp_path


def test_it_is_the_default_and_recorded(folder, capsys):
    code, _, err = run_extract(capsys, "a.mp4", "out")
    assert (code, err) == (0, "")
    feats = np.load("out/a.npy")
    assert (feats.shape, feats.dtype) == (((24 - 16) // 4 + 1, 657), np.float32)
    noted = json.loads(Path("out/provenance.json").read_text())
    values = {"extractor": "descriptor", "stride": 4, "num_frames": 16, "resize": 120, "still": 0.2, "power": 1, "channels": 657}
    assert {key: noted[key] for key in values} == values
    assert [stream["channels"] for stream in noted["streams"]] == [[0, 232], [232, 657]]
    assert noted["streams"][1]["parameters"] == f"preset FAST of OpenCV {cv2.__version__.split('.')[0]}"
    assert "1 were there already" in run_extract(capsys, "a.mp4", "-o", "out")[1]


def test_parts_are_made_once_per_frame(folder, monkeypatch):
    count = []
    parts = module.parts
    monkeypatch.setattr(module, "parts", lambda *args: count.append(1) or parts(*args))
    feats, _ = extract_features("a.mp4", create("descriptor", {"stride": 1}))
    assert (len(feats), len(count)) == (9, 24)


def test_motion_to_the_right_is_seen_and_appearance_does_not_see_it(folder):
    make_video(folder / "still.mp4", frames=24, picture=lambda k: moving(0))
    extractor = create("descriptor", {"resize": 48})  # as the video has it
    (right, _), (still, _) = (extract_features(name, extractor) for name in ("a.mp4", "still.mp4"))
    hof = slice(232 + 144, 232 + 153)  # of the whole frame: eight directions, then the share of still pixels
    assert (right[:, hof].argmax(1) == 0).all()
    assert (still[:, hof].argmax(1) == 8).all()
    assert np.abs(right[:, 128:136] - still[:, 128:136]).max() < 0.1  # gradients of the whole frame: the same texture
    assert np.abs(right[:, 232:] - still[:, 232:]).max() > 0.5


def test_frame_0_has_the_motion_of_frame_1_and_a_single_frame_none(folder):
    extractor = create("descriptor", {})
    frames = list(read_frames("a.mp4", None))
    items = list(extractor.prepare(iter(frames), "a.mp4"))
    assert np.array_equal(items[0][..., 11:], items[1][..., 11:])
    single = list(extractor.prepare(iter(frames[:1]), "a.mp4"))
    assert np.array_equal(single[0][..., :11], items[0][..., :11])
    assert (single[0][..., 19] == 1).all()
    window = next(clips(single, 16, 4))
    assert np.isfinite(extractor.features([window], "a.mp4")).all()


def test_sizes(folder, capsys):
    assert module.scaled_size(240, 320, 120) == (120, 160)
    assert module.scaled_size(1920, 1080, 120) == (212, 120)
    assert module.scaled_size(256, 340, (40, 48)) == (40, 48)
    for argv in (["--resize", "50"], ["--size", "64", "70"], ["--resize", "28"], ["--resize", "0"]):
        error = one_error(*run_extract(capsys, "a.mp4", "out", *argv)[::2])
        assert all(part in error for part in ("--resize", argv[-1], "multiples of 4 from 32")), error
    assert not Path("out").exists()


def test_another_extractor_in_the_folder_is_one_error(folder, capsys):
    assert run_extract(capsys, "a.mp4", "out")[0] == 0
    before = Path("out/a.npy").read_bytes()
    error = one_error(*run_extract(capsys, "a.mp4", "out", "--power", "0.5")[::2])
    assert "out/provenance.json: the features there were made with another power (1.0, now 0.5)" in error
    noted = json.loads(Path("out/provenance.json").read_text())
    noted["streams"][1]["parameters"] = "preset FAST of OpenCV 3"
    Path("out/provenance.json").write_text(json.dumps(noted))
    assert "another streams" in one_error(*run_extract(capsys, "a.mp4", "out")[::2])
    noted["extractor"] = "i3d"
    Path("out/provenance.json").write_text(json.dumps(noted))
    error = one_error(*run_extract(capsys, "a.mp4", "out")[::2])
    assert all(part in error for part in ("another extractor (i3d, now descriptor)", "choose another folder", "--overwrite"))
    assert Path("out/a.npy").read_bytes() == before


def test_the_folder_of_the_features_cannot_be_forgotten(folder, capsys):
    (folder / "videos").mkdir()
    make_video(folder / "videos/b.mp4", frames=4)
    (folder / "notes.txt").write_text("")
    for argv in (["a.mp4"], ["a.mp4", "b.mp4"], ["a.mp4", "videos"], ["a.mp4", "notes.txt"], ["a.mp4", ""]):
        error = one_error(*run_extract(capsys, *argv)[::2])
        assert all(part in error for part in (f"{argv[-1]}: ", "name it last", "-o FOLDER"))


def test_without_flow_it_is_the_appearance_and_computes_no_flow(folder, monkeypatch):
    both, _ = extract_features("a.mp4", create("descriptor", {}))
    monkeypatch.setattr(module, "flow_method", lambda name: pytest.fail("asked for a flow"))
    extractor = create("descriptor", {"flow": False})
    appearance, _ = extract_features("a.mp4", extractor)
    assert np.array_equal(appearance, both[:, :232])
    assert [stream["name"] for stream in extractor.describe()["streams"]] == ["rgb"]
