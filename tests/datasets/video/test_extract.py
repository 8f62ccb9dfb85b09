"""Videos made here become features whose number and times are those of the grid; what cannot be read is one error."""
from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path

import check_dataset as check_script
import convert_annotations as convert_script
import numpy as np
import pytest
import torch
from helpers import one_error, run_script
from videos import FPS, FRAMES, H, W, level, make_video, run_extract, turn

from libs.datasets.grid import expected_length
from libs.datasets.video import one_video
from libs.datasets.video.decoding import Decoded, fitted_size, probe, read_frames
from libs.datasets.video.extractors import base, i3d
from libs.datasets.video.flow import flow_method, with_flow

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Mean(torch.nn.Module):
    """(B, c, T, H, W) -> (B, T + c, 1, 1): the mean of every frame, then of every channel; padded with unit axes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x.mean((1, 3, 4)), x.mean((2, 3, 4))), 1)[:, :, None, None]


def save_program(path: Path, batch: int, channels: int, frames: int, side: int) -> str:
    example = torch.zeros(batch, channels, frames, side, side)
    if path.suffix == ".pt2":
        torch.export.save(torch.export.export(Mean(), (example,)), str(path))
    else:
        torch.jit.save(torch.jit.trace(Mean(), example), str(path))
    return path.name


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "a.mp4")
    return tmp_path


COMMON = ["--num-frames", "8", "--stride", "4", "--resize", "32", "--crop", "32", "--mean", "0", "0", "0", "--std", "1", "1", "1",
          "--device", "cpu", "-o", "out"]


@pytest.mark.parametrize("name", ["rgb.pt2", "rgb.pt"])
def test_feature_t_sees_frames_t_stride_on(name, folder, capsys):
    save_program(folder / name, 4, 3, 8, 32)
    code, out, err = run_extract(capsys, "a.mp4", "--rgb-model", name, *COMMON)
    assert code == 0, err
    feats = np.load("out/a.npy")
    assert feats.dtype == np.float32
    assert feats.shape == (expected_length(FRAMES / FPS, FPS, 4, 8), 8 + 3) == (9, 11)
    seen = np.array([[level(t * 4 + k) / 255 for k in range(8)] for t in range(9)])
    assert np.abs(feats[:, :8] - seen).max() < 1.5 / 255  # the codec's rounding; neighbouring frames differ by 4 / 255
    noted = json.loads(Path("out/provenance.json").read_text())
    assert (noted["stride"], noted["num_frames"], noted["offset"], noted["channels"]) == (4, 8, 0, 11)
    assert noted["streams"][0]["sha256"] in out
    assert noted["libraries"]["torch"] == torch.__version__
    assert noted["videos"]["a"] | {"source": "", "bytes": 0} == {
        "source": "", "bytes": 0, "fps": 10.0, "native_fps": 10.0, "frames": 40, "decoded_frames": 40, "duration": 4.0,
        "width": W, "height": H, "variable_frame_rate": False, "vectors": 9}


def test_resampling_takes_the_nearest_frame(folder):
    found = Decoded()
    frames = [int(f.mean().round()) for f in read_frames("a.mp4", 5.0, found=found)]
    assert np.abs(np.array(frames) - [level(2 * k) for k in range(20)]).max() <= 1
    doubled = [int(f.mean().round()) for f in read_frames("a.mp4", 20.0)]
    assert len(doubled) == 80
    assert np.abs(np.array(doubled[::2]) - [level(k) for k in range(FRAMES)]).max() <= 1
    assert (found.frames, found.source_frames, found.duration_s) == (20, 40, 4.0)


@pytest.mark.parametrize(("fps", "told"), [("1e9", "expected a number from 0.001 to 1e+06"), ("0", "0.001"), (
    "101", "a.mp4: has 10 frames per second, so --fps 101 would repeat every frame 10.1 times; use at most 100")])
def test_a_rate_that_would_take_for_ever_is_refused(folder, capsys, fps, told):
    save_program(folder / "rgb.pt", 4, 3, 8, 32)
    code, _, err = run_extract(capsys, "a.mp4", "--rgb-model", "rgb.pt", "--fps", fps, *COMMON)
    assert code == 2
    assert told in err
    assert not Path("out").exists()


def test_a_variable_rate_is_put_on_a_constant_grid_with_a_warning(folder, capsys):
    slow = [Fraction(k, 20) for k in range(20)] + [Fraction(1) + Fraction(k, 5) for k in range(20)]  # 20 fps for 1 s, then 5 fps
    make_video(folder / "v.mkv", slow)
    found = Decoded()
    values = np.array([f.mean() for f in read_frames("v.mkv", 10.0, found=found)])
    assert found.variable_rate
    expected = [level(min(2 * k if k <= 10 else 20 + (k - 10 + 0) // 2, 39)) for k in range(len(values))]
    assert np.abs(values - expected).max() <= 5  # halfway between two frames either is as near
    save_program(folder / "rgb.pt", 4, 3, 8, 32)
    code, _, err = run_extract(capsys, "v.mkv", "--rgb-model", "rgb.pt", *COMMON)
    assert code == 0
    assert "variable frame rate" in err
    assert json.loads(Path("out/provenance.json").read_text())["videos"]["v"]["variable_frame_rate"]


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_the_rotation_of_phone_videos_is_applied(quarters, folder, capsys):
    picture = np.zeros((H, W, 3), np.uint8)
    picture[:H // 2, :W // 2] = 255  # top left as stored; clockwise from there by the rotation
    turn(make_video(folder / "turned.mp4", frames=8, picture=lambda k: picture), quarters)
    found = Decoded()
    frame = next(read_frames("turned.mp4", None, lambda w, h: (h // 2, w // 2), found=found))
    assert (found.height, found.width) == ((H, W) if quarters == 2 else (W, H))
    assert frame.shape == (found.height // 2, found.width // 2, 3)
    assert np.abs(frame.astype(int) - np.rot90(picture[::2, ::2], -quarters)).mean() < 10
    save_program(folder / "rgb.pt", 4, 3, 8, 32)
    assert run_extract(capsys, "turned.mp4", "--rgb-model", "rgb.pt", *COMMON)[::2] == (0, "")
    assert json.loads(Path("out/provenance.json").read_text())["videos"]["turned"]["width"] == found.width


class Convolution(torch.nn.Module):
    """(B, 3, T, H, W) -> (B, 4, ...), by weights that bf16 rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(3, 4, 2, stride=2)
        self.conv.weight.data = torch.linspace(-1, 1, self.conv.weight.numel()).view_as(self.conv.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


@pytest.mark.parametrize("name", ["rgb.pt2", "rgb.pt"])
def test_bf16_is_near_and_no_folder_mixes_the_two(name, folder, capsys):
    example = torch.zeros(4, 3, 8, 32, 32)
    if name == "rgb.pt2":
        torch.export.save(torch.export.export(Convolution(), (example,)), name)
    else:
        torch.jit.save(torch.jit.trace(Convolution(), example), name)
    argv = ["a.mp4", "--rgb-model", name, *COMMON]
    assert run_extract(capsys, *argv)[0] == 0
    code, _, err = run_extract(capsys, *argv[:-1], "low", "--precision", "bf16")
    assert code == 0, err
    full, low = np.load("out/a.npy"), np.load("low/a.npy")
    assert low.dtype == np.float32
    assert 1e-5 < np.abs(full - low).max() < 0.02 * np.abs(full).max()
    assert json.loads(Path("low/provenance.json").read_text())["streams"][0]["precision"] == "bf16"
    assert "precision" not in Path("out/provenance.json").read_text()  # as before there was a choice
    for more in (["--precision", "bf16"], ["-o", "low"]):
        assert "another streams" in one_error(*run_extract(capsys, *argv, *more)[::2])


def test_one_clip_in_bf16_lies_channels_last_as_several_do():
    """Otherwise convolutions take the slow way (stride 3 of the first dimension)."""
    seen = []
    clip = i3d.crops(torch.zeros(1, 8, 4, 4, 3, dtype=torch.uint8), 4, "center")
    base.run_network(lambda x: seen.append(x.stride()) or x.mean((2, 3, 4)), clip, "bf16", "model", "video", "")
    assert seen == [torch.zeros(2, 3, 8, 4, 4).contiguous(memory_format=torch.channels_last_3d).stride()]


def test_fp32_is_not_tf32_on_a_gpu():
    """PyTorch lets convolutions be TF32 unless told otherwise; so it is again afterwards."""
    cudnn, seen = torch.backends.cudnn, []
    before = cudnn.allow_tf32, cudnn.enabled, cudnn.benchmark
    base.run_network(lambda x: seen.append((cudnn.allow_tf32, cudnn.enabled)) or x, torch.zeros(1, 3), "fp32", "m", "v", "")
    assert seen == [(False, True)]
    assert before == (True, *before[1:]) == (cudnn.allow_tf32, cudnn.enabled, cudnn.benchmark)


def test_a_processor_without_bf16_is_told(folder, capsys, monkeypatch):
    monkeypatch.setattr(base, "multiplies_bf16", lambda: False)
    save_program(folder / "rgb.pt", 4, 3, 8, 32)
    code, _, err = run_extract(capsys, "a.mp4", "--rgb-model", "rgb.pt", *COMMON, "--precision", "bf16")
    assert (code, err.count("\n")) == (0, 1)
    assert "--precision bf16: this processor has no bf16" in err
    error = one_error(*run_extract(capsys, "a.mp4", "-o", "out", "--precision", "bf16")[::2])
    assert "--precision: the extractor descriptor has no such option" in error


def test_two_streams_are_joined_rgb_first(folder, capsys):
    save_program(folder / "rgb.pt2", 2, 3, 8, 32)
    save_program(folder / "flow.pt2", 2, 2, 8, 32)
    code, _, err = run_extract(capsys, "a.mp4", "--rgb-model", "rgb.pt2", "--flow-model", "flow.pt2", "--batch-size", "2",
                               *COMMON)
    assert code == 0, err
    feats = np.load("out/a.npy")
    assert feats.shape == (9, 11 + 10)
    assert np.abs(feats[0, :8] - [level(k) / 255 for k in range(8)]).max() < 1.5 / 255
    assert np.abs(feats[:, 11:]).max() < 0.05  # grey frames do not move
    streams = json.loads(Path("out/provenance.json").read_text())["streams"]
    assert [s["name"] for s in streams] == ["rgb", "flow"]
    assert streams[1]["method"] == "farneback"


def test_flow_of_a_known_motion():
    """A texture that moves 2 pixels right per frame: x flow 2 / 20 of the bound, y flow 0, flow 0 repeated."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8), (0, 0), 2)
    frames = [np.roll(texture, 2 * k, axis=1) for k in range(3)]
    pairs = list(with_flow(frames, flow_method("farneback")))
    assert len(pairs) == 3
    assert all(np.array_equal(pair[0], frame) for pair, frame in zip(pairs, frames, strict=True))
    assert np.array_equal(pairs[0][1], pairs[1][1])
    inside = pairs[2][1][16:-16, 16:-16]
    assert np.abs(np.median(inside[..., 0]) - 0.1) < 0.01
    assert np.abs(np.median(inside[..., 1])) < 0.01
    assert not next(with_flow(frames[:1], flow_method("farneback")))[1].any()


def test_clips_by_hand_and_in_bounded_memory():
    assert list(one_video.clips(range(9), 4, 2)) == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    assert list(one_video.clips(range(7), 2, 3)) == [[0, 1], [3, 4]]
    assert list(one_video.clips(range(2), 4, 2)) == [[0, 1, 1, 1]]
    assert list(one_video.clips(range(0), 4, 2)) == []
    for frames in range(1, 60):
        assert sum(1 for _ in one_video.clips(range(frames), 8, 3)) == expected_length(frames, 1, 3, 8)
    endless = one_video.clips(iter(int, 1), 4, 2)
    assert len([next(endless) for _ in range(1000)]) == 1000


def test_sizes():
    assert fitted_size(640, 480, 256) == (256, 341)
    assert fitted_size(33, 57, None) == (57, 33)
    assert fitted_size(640, 480, (10, 20)) == (10, 20)


def test_odd_sizes(folder, capsys):
    make_video(folder / "odd.avi", size=(35, 51), codec="ffv1", frames=10)
    info = probe("odd.avi")
    assert (info.height, info.width) == (35, 51)
    save_program(folder / "rgb.pt", 4, 3, 8, 32)
    code, _, err = run_extract(capsys, "odd.avi", "--rgb-model", "rgb.pt", *COMMON)
    assert code == 0, err
    assert np.load("out/odd.npy").shape == (1, 11)


def test_a_folder_of_videos_with_a_line_per_video_and_no_bar_in_a_file(folder, capsys):
    (folder / "videos.d").mkdir()
    for name in ("b.mp4", "c.MP4"):
        make_video(folder / "videos.d" / name.lower(), frames=20).rename(folder / "videos.d" / name)
    (folder / "videos.d" / "notes.txt").write_text("")
    save_program(folder / "rgb.pt", 4, 3, 8, 32)
    code, out, err = run_extract(capsys, "a.mp4", "videos.d", "--rgb-model", "rgb.pt", *COMMON)
    assert (code, err) == (0, "")
    assert sorted(path.name for path in Path("out").glob("*.npy")) == ["a.npy", "b.npy", "c.npy"]
    assert "1/3 videos, " in out
    assert "3/3 videos, 0:00:00 left" in out
    (folder / "empty").mkdir()
    assert "empty: holds no videos (.mp4" in one_error(*run_extract(capsys, "empty", "--rgb-model", "rgb.pt", *COMMON)[::2])


def test_interrupted_work_goes_on_and_other_settings_are_refused(folder, capsys, monkeypatch):
    make_video(folder / "b.mp4", frames=20)
    save_program(folder / "rgb.pt", 4, 3, 8, 32)
    assert run_extract(capsys, "a.mp4", "--rgb-model", "rgb.pt", *COMMON)[0] == 0
    before = Path("out/a.npy").stat().st_mtime_ns
    code, out, _ = run_extract(capsys, "a.mp4", "b.mp4", "--rgb-model", "rgb.pt", *COMMON)
    assert (code, "1 videos done, 1 were there already" in out) == (0, True)
    assert Path("out/a.npy").stat().st_mtime_ns == before
    Path("out/b.npy").unlink()  # listed, but gone
    assert "1 videos done, 1 were" in run_extract(capsys, "a.mp4", "b.mp4", "--rgb-model", "rgb.pt", *COMMON)[1]
    error = one_error(*run_extract(capsys, "a.mp4", "--rgb-model", "rgb.pt", *COMMON, "--stride", "2")[::2])
    assert "another stride (4, now 2)" in error
    assert "--overwrite" in error
    assert np.load("out/a.npy").shape == (9, 11)
    assert run_extract(capsys, "a.mp4", "b.mp4", "--rgb-model", "rgb.pt", *COMMON, "--stride", "2", "--overwrite")[0] == 0
    assert np.load("out/a.npy").shape == (17, 11)


def test_a_folder_from_before_there_were_named_extractors_goes_on(folder, capsys):
    save_program(folder / "rgb.pt", 4, 3, 8, 32)
    assert run_extract(capsys, "a.mp4", "--rgb-model", "rgb.pt", *COMMON)[0] == 0
    noted = json.loads(Path("out/provenance.json").read_text())
    assert noted.pop("extractor") == "program"
    Path("out/provenance.json").write_text(json.dumps(noted))
    assert "0 videos done, 1 were there" in run_extract(capsys, "a.mp4", "--extractor", "program:rgb.pt", *COMMON)[1]


def test_another_video_of_the_name_is_refused_in_a_second_command(folder, capsys):
    save_program(folder / "rgb.pt", 4, 3, 8, 32)
    argv = ["--rgb-model", "rgb.pt", *COMMON]
    for name in ("one", "two"):
        (folder / name).mkdir()
        make_video(folder / f"{name}/x.mkv", codec="ffv1", frames=20 if name == "one" else 30)
    assert run_extract(capsys, "one/x.mkv", *argv)[0] == 0
    before = Path("out/x.npy").read_bytes()
    error = one_error(*run_extract(capsys, "a.mp4", "two/x.mkv", *argv)[::2])
    for fragment in ("two/x.mkv: out/x.npy", "another video", "one/x.mkv", "choose another folder"):
        assert fragment in error
    assert (Path("out/x.npy").read_bytes(), Path("out/a.npy").exists()) == (before, False)
    assert "1 were there already" in run_extract(capsys, str(folder / "one/x.mkv"), *argv)[1]  # the same file by another path
    (folder / "one").rename(folder / "moved")
    assert "1 were there already" in run_extract(capsys, "moved/x.mkv", *argv)[1]
    assert "one/x.mkv" in one_error(*run_extract(capsys, "two/x.mkv", *argv)[::2])
    Path("out/x.npy").unlink()
    assert "1 videos done" in run_extract(capsys, "two/x.mkv", *argv)[1]


def audio(folder: Path) -> None:
    with av.open(str(folder / "bad.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def cut(folder: Path) -> None:
    make_video(folder / "whole.mkv", codec="ffv1")
    data = (folder / "whole.mkv").read_bytes()
    (folder / "bad.mp4").write_bytes(data[:len(data) // 2])


def without_index(folder: Path) -> None:
    (folder / "bad.mp4").write_bytes((folder / "a.mp4").read_bytes()[:2000])


BAD_VIDEOS = {
    "missing": (lambda f: None, ["no such video"]),
    "empty": (lambda f: (f / "bad.mp4").write_bytes(b""), ["cannot be read as a video"]),
    "text": (lambda f: (f / "bad.mp4").write_text("no video\n" * 50), ["cannot be read as a video"]),
    "audio only": (audio, ["no video stream", "audio"]),
    "cut": (cut, ["cut", "--allow-truncated"]),
    "cut before its index": (without_index, ["cannot be read as a video"]),
    "a folder": (lambda f: (f / "bad.mp4").mkdir(), ["bad.mp4", "cannot be read"]),
}


@pytest.mark.parametrize("name", BAD_VIDEOS)
def test_a_bad_video_is_one_error_and_the_others_are_done(name, folder, capsys):
    damage, fragments = BAD_VIDEOS[name]
    damage(folder)
    save_program(folder / "rgb.pt", 4, 3, 8, 32)
    code, out, err = run_extract(capsys, "bad.mp4", "a.mp4", "--rgb-model", "rgb.pt", *COMMON)
    error = one_error(code, err)
    assert "bad.mp4" in error
    for fragment in fragments:
        assert fragment in error, error
    assert "1 videos done" in out
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.npy", "provenance.json"]
    if name == "cut":
        assert run_extract(capsys, "bad.mp4", "--rgb-model", "rgb.pt", *COMMON, "--allow-truncated")[0] == 0
        assert 1 <= len(np.load("out/bad.npy")) < 9


BAD_PROGRAMS = {
    "missing": (lambda p: "gone.pt", ["gone.pt", "--rgb-model"]),
    "text": (lambda p: (p / "t.pt").write_text("x") and "t.pt", ["t.pt", "torchscript"]),
    "state dict": (lambda p: torch.save({"w": torch.zeros(1)}, p / "s.pt2") or "s.pt2", ["s.pt2", "state dict is not enough"]),
    "another clip length": (lambda p: save_program(p / "l.pt2", 4, 3, 16, 32), ["l.pt2", "(4, 3, 8, 32, 32)", "--num-frames"]),
    "another batch": (lambda p: save_program(p / "b.pt2", 7, 3, 8, 32), ["b.pt2", "--batch-size"]),
}


@pytest.mark.parametrize("name", BAD_PROGRAMS)
def test_a_bad_program_is_one_error(name, folder, capsys):
    make, fragments = BAD_PROGRAMS[name]
    error = one_error(*run_extract(capsys, "a.mp4", "--rgb-model", make(folder), *COMMON)[::2])
    for fragment in fragments:
        assert fragment in error, error
    assert not Path("out/a.npy").exists()


def test_other_errors(folder, capsys, monkeypatch):
    save_program(folder / "rgb.pt", 4, 3, 8, 32)
    argv = ["a.mp4", "--rgb-model", "rgb.pt", *COMMON]
    assert "--crop 64" in one_error(*run_extract(capsys, *argv, "--crop", "64")[::2])
    assert "no network" in one_error(*run_extract(capsys, "a.mp4", "--extractor", "program", *COMMON)[::2])
    error = one_error(*run_extract(capsys, "a.mp4", "--rgb-model", "rgb.pt", "-o", "out")[::2])
    assert "no default for --stride and --num-frames" in error
    for name, told in (("progam:rgb.pt", "did you mean 'program"), ("program:", "expected program:FILE"), ("x", "program:FILE")):
        error = one_error(*run_extract(capsys, "a.mp4", "--extractor", name, *COMMON)[::2])
        assert f"--extractor {name}" in error
        assert told in error
    error = one_error(*run_extract(capsys, *argv, "--extractor", "program:b.pt")[::2])
    assert "--rgb-model rgb.pt: --extractor program:b.pt" in error
    (folder / "sub").mkdir()
    error = one_error(*run_extract(capsys, "a.mp4", "sub/a.mp4", *argv[1:])[::2])
    assert all(part in error for part in ("sub/a.mp4", "same name", "rename one", "folder of its own")), error
    if not hasattr(cv2, "optflow"):
        assert "opencv-contrib" in one_error(*run_extract(capsys, *argv, "--flow-model", "rgb.pt", "--flow-method", "tvl1")[::2])
    for module, message in (("cv2", "opencv-python-headless"), ("av", "av (PyAV)")):
        monkeypatch.setitem(sys.modules, module, None)
        error = one_error(*run_extract(capsys, *argv, "--flow-model", "rgb.pt")[::2])
        assert message in error
        assert 'pip install -e ".[video]"' in error


def test_features_and_annotations_of_videos_pass_the_check(folder, capsys):
    """Videos -> features -> annotations with durations from them -> the check finds the grid without being told."""
    rows = ["video,start,end,label,subset"]
    for i in range(6):
        make_video(folder / f"v{i}.mp4", frames=40 + i, first=2 * i)
        subset = "training" if i < 4 else "validation"
        rows += [f"v{i},0.5,2,jump,{subset}", f"v{i},2.2,3.5,throw,{subset}"]
    (folder / "a.csv").write_text("\n".join(rows) + "\n")
    save_program(folder / "rgb.pt", 4, 3, 8, 32)
    assert run_extract(capsys, *[f"v{i}.mp4" for i in range(6)], "--rgb-model", "rgb.pt", *COMMON)[0] == 0
    code, _, err = run_script(capsys, convert_script.main, "convert", "a.csv", "-o", "a.json", "--features", "out")
    assert code == 0, err
    code, out, _ = run_script(capsys, check_script.main, "check", "a.json", "out")
    assert code == 0, out
    assert "feat_stride 4, num_frames 8 (out/provenance.json" in out
    assert " 0 errors" in f" {out.splitlines()[-1]}"
