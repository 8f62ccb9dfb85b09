"""tools/predict.py on video files: features by the extractor of the training, kept beside the videos; what differs is refused."""
from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import extract_features as extract_script
import numpy as np
import predict as predict_script
import pytest
import torch
from helpers import one_error, run_script, tiny_config
from videos import make_video, moving

import train as train_script
from libs.core.config import dump_yaml
from libs.datasets.video.decoding import timed_pictures
from libs.datasets.video.extractors import descriptor
from libs.engine.api import load_model

av = pytest.importorskip("av")
pytest.importorskip("cv2")
STREAMS = {"rgb": [0, 232], "flow": [232, 657]}


def train(folder: Path, capsys, name: str, **model) -> Path:
    """A run of one epoch on the descriptor's features of `folder`/features."""
    config = tiny_config(dataset={"json_file": str(folder / "a.json"), "feat_folder": str(folder / "features"), "input_dim": 657,
                                  "feat_stride": 4, "num_frames": 16, "modalities": STREAMS},
                         output_folder=str(folder / "ckpt"), model=model, opt={"epochs": 1, "warmup_epochs": 0})
    (folder / f"{name}.yaml").write_text(dump_yaml(config))
    code, _, err = run_script(capsys, train_script.main, "train.py", str(folder / f"{name}.yaml"))
    assert code == 0, err
    return folder / "ckpt" / f"{name}_run"


@pytest.fixture
def project(shared, tmp_path, monkeypatch):
    """A folder to work in, with clips/a.mp4 and clips/b.mp4; the runs `both` and `rgb` are in the folder `shared`."""
    (tmp_path / "clips").mkdir()
    for name in "ab":
        shutil.copy(shared / f"{name}.mp4", tmp_path / "clips")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    database = {}
    for i, name in enumerate("abcd"):
        make_video(folder / f"{name}.mp4", frames=60, picture=lambda k, i=i: moving(k * (i + 1)))
        database[name] = {"subset": "training", "duration": 6.0, "fps": 10.0, "annotations": [
            {"segment": [1 + i / 4, 3 + i / 4], "label": f"class {i % 3}", "label_id": i % 3}]}
    (folder / "a.json").write_text(json.dumps({"database": database}))
    before, sys.argv = sys.argv, ["extract_features.py", *(str(folder / f"{n}.mp4") for n in "abcd"), str(folder / "features")]
    try:
        extract_script.main()
    finally:
        sys.argv = before
    return folder


@pytest.fixture
def both(shared, capsys):
    return _run(shared, capsys, "both")


@pytest.fixture
def rgb(shared, capsys):
    return _run(shared, capsys, "rgb", modalities=["rgb"])


def _run(folder, capsys, name, **model):
    done = folder / "ckpt" / f"{name}_run"
    return done if done.exists() else train(folder, capsys, name, **model)


def run(capsys, *argv):
    return run_script(capsys, predict_script.main, "predict.py", *map(str, argv))


def test_a_video_gives_what_its_features_give_and_keeps_them(project, both, shared, capsys):
    code, out, err = run(capsys, both, "clips/a.mp4", "-o", "video.json")
    assert code == 0, err
    assert run(capsys, both, shared / "features" / "a.npy", "-o", "features.json")[0] == 0
    assert Path("video.json").read_bytes() == Path("features.json").read_bytes()
    assert json.loads(Path("video.json").read_text())["results"]["a"]
    kept, = Path("clips").glob("features_descriptor_????????")
    assert str(kept) in err
    assert sorted(p.name for p in kept.iterdir()) == ["a.npy", "provenance.json"]
    stamp = (kept / "a.npy").stat().st_mtime_ns
    _, out, err = run(capsys, both, "clips", "--threshold", "0.001")  # the folder: a is there, b is new
    assert "features of 2 videos by descriptor, 1 of them new" in err
    assert {line.split()[0] for line in out.splitlines()[1:]} == {"a", "b"}
    assert (kept / "a.npy").stat().st_mtime_ns == stamp
    found = load_model(both, device="cpu").predict("clips/a.mp4")
    assert len(found) == len(json.loads(Path("video.json").read_text())["results"]["a"])
    assert found.videos == {"a": 6.0}


def test_where_features_are_kept(project, both, capsys):
    assert run(capsys, both, "clips/a.mp4", "--no-cache")[0] == 0
    assert sorted(p.name for p in Path("clips").iterdir()) == ["a.mp4", "b.mp4"]
    assert run(capsys, both, "clips/a.mp4", "--features-folder", "elsewhere")[0] == 0
    assert Path("elsewhere/a.npy").exists()
    assert sorted(p.name for p in Path("clips").iterdir()) == ["a.mp4", "b.mp4"]
    error = one_error(*run(capsys, both, "clips/a.mp4", "--features-folder", "elsewhere", "--no-cache")[::2])
    assert "--no-cache" in error
    Path("file").write_text("")
    assert "--no-cache" in one_error(*run(capsys, both, "clips/a.mp4", "--features-folder", "file/in")[::2])


def test_a_network_of_appearance_needs_no_flow(project, rgb, shared, capsys, monkeypatch):
    assert run(capsys, rgb, shared / "features" / "a.npy", "-o", "features.json")[0] == 0
    monkeypatch.setattr(descriptor, "flow_pairs", lambda *_: pytest.fail("computed flow"))
    code, _, err = run(capsys, rgb, "clips/a.mp4", "-o", "video.json")
    assert code == 0, err
    kept, = Path("clips").glob("features_*")
    assert np.load(kept / "a.npy").shape == (12, 232)
    assert Path("video.json").read_bytes() == Path("features.json").read_bytes()


def test_subtitles_of_a_folder_and_one_bad_video_of_three(project, both, capsys):
    Path("clips/c.mp4").write_bytes(b"no video")
    code, _, err = run(capsys, both, "clips", "gone.mp4", "-o", "subs", "--format", "vtt")
    assert code == 2
    assert sorted(p.name for p in Path("subs").iterdir()) == ["a.vtt", "b.vtt"]
    assert sum("c.mp4" in line for line in err.splitlines()) == 1
    assert "error: 2 of 4 videos failed (the others are done)" in err
    assert "failed: gone.mp4: no such video" in err
    for argv, told in ((["clips/c.mp4"], "clips/c.mp4: cannot be read as a video"), (["gone.mp4"], "gone.mp4: no such video")):
        assert told in one_error(*run(capsys, both, *argv)[::2])
    found = load_model(both, device="cpu").predict(["clips/a.mp4", "gone.mp4"])
    assert (list(found.videos), len(found.failed)) == (["a"], 1)


def test_a_page_of_a_folder(project, both, shared, capsys):
    code, out, err = run(capsys, both, "clips", "-o", "found.html")
    assert code == 0, err
    assert "in 2 videos, written to found.html" in out
    content = page_content("found.html")
    assert [v["id"] for v in content["timeline"]["videos"]] == ["a", "b"]
    assert [v["media"] for v in content["timeline"]["videos"]] == [Path(f"clips/{n}.mp4").resolve().as_uri() for n in "ab"]
    assert [v["duration"] for v in content["timeline"]["videos"]] == [6.0, 6.0]
    assert content["classes"] == ["class 0", "class 1", "class 2"]
    assert str(both) in content["predictions"][0]["file"]
    assert content["threshold"] is None
    assert run(capsys, both, "clips/a.mp4", "-o", "a.json")[0] == 0
    rows = json.loads(Path("a.json").read_text())["results"]["a"]
    one = content["timeline"]["videos"][0]["predictions"][0]
    assert one["total"] == len(rows)
    assert one["score"] == pytest.approx(sorted((row["score"] for row in rows), reverse=True)[:200], abs=1e-5)
    assert run(capsys, both, shared / "features", "-o", "pages", "--format", "html", "--threshold", "0.001")[0] == 0
    content = page_content("pages/predictions.html")
    assert (content["threshold"], any("media" in v for v in content["timeline"]["videos"])) == (0.001, False)
    load_model(both, device="cpu").predict("clips/b.mp4").of("b").save("b.html")
    assert page_content("b.html")["title"] == "Actions in b"


def page_content(path) -> dict:
    text = Path(path).read_text(encoding="utf-8")
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_videos_with_labels(project, both, shared, capsys):
    code, _, err = run(capsys, both, "clips", "-o", "labelled", "--format", "mp4")
    assert code == 0, err
    assert sorted(p.name for p in Path("labelled").iterdir()) == ["a.mp4", "b.mp4"]
    assert "every detection is a label" in err
    assert err.count("without its sound") == 2
    plain, shown = ([picture for _, picture in timed_pictures(f"{folder}/a.mp4")] for folder in ("clips", "labelled"))
    assert len(plain) == len(shown) == 60
    found = load_model(both, device="cpu").predict("clips/a.mp4")
    inside = [bool(((found.t_start <= k / 10) & (k / 10 < found.t_end)).any()) for k in range(60)]
    black = [(picture[:4, :12] < 60).mean() > 0.5 for picture in shown]
    assert black == inside
    for target, features, told in (("clips/a.mp4", "clips/a.mp4", "would be replaced"), ("clips", "clips", "would be replaced"),
                                   ("x.mp4", shared / "features" / "a.npy", "features only")):
        options = ["--format", "mp4"] if target == "clips" else []
        assert told in one_error(*run(capsys, both, features, "-o", target, *options)[::2])
    assert not Path("x.mp4").exists()


def test_a_single_frame_and_a_file_without_pictures(project, both, capsys):
    make_video(project / "one.mp4", frames=1)
    assert run(capsys, both, "one.mp4")[0] == 0
    with av.open("audio.mp4", "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert "audio.mp4: holds no video stream (only audio)" in one_error(*run(capsys, both, "audio.mp4")[::2])


def test_the_error_of_a_cut_video_names_an_option_that_is_there(project, both, capsys):
    whole = make_video(project / "whole.mkv", frames=60, picture=moving).read_bytes()
    (project / "cut.mkv").write_bytes(whole[:len(whole) // 2])
    option = "--extractor-set allow_truncated=true"
    assert option in one_error(*run(capsys, both, "cut.mkv", "--no-cache")[::2])
    assert run(capsys, both, "cut.mkv", "--no-cache", *option.split())[0] == 0


@pytest.mark.parametrize(("argv", "told"), [
    (["--extractor", "i3d"], ["features of the extractor descriptor", "--extractor i3d"]),
    (["--extractor", "descriptr"], ["descriptr", "descriptor"]),
    (["--extractor-set", "stride=8"], ["descriptor with stride 4, but stride 8"]),
    (["--extractor", "descriptor", "--extractor-set", "power=0.5"], ["with power 1, but power 0.5"]),
    (["--extractor-set", "strid=8"], ["strid", "did you mean 'stride'"]),
    (["--extractor-set", "stride=0"], ["stride: 0", "at least 1"]),
    (["--extractor-set", "stride"], ["expected KEY=VALUE"]),
    (["--fps", "25"], ["fps 10", "fps 25"]),
    (["-o", "x.srtt"], ["x.srtt", ".srt"])], ids=str)
def test_what_differs_from_the_training_is_refused_before_any_work(project, both, capsys, argv, told):
    error = one_error(*run(capsys, both, "clips/a.mp4", *argv)[::2])
    assert all(part in error for part in told), error
    assert not list(Path("clips").glob("features_*")) or "--fps" in argv


def test_what_is_as_in_training_may_be_said(project, both, capsys):
    for i, argv in enumerate(([], ["--extractor", "descriptor"], ["--extractor-set", "batch_size=2", "stride=4"])):
        assert run(capsys, both, "clips/a.mp4", "-o", f"{i}.json", *argv)[0] == 0
    assert len({Path(f"{i}.json").read_bytes() for i in range(3)}) == 1
    assert len(list(Path("clips").glob("features_*"))) == 1


def test_a_checkpoint_that_does_not_say_needs_the_extractor_and_warns(project, rgb, capsys):
    content = torch.load(rgb / "epoch_001.pth.tar", weights_only=True)
    content["training"]["config"]["dataset"]["extractor"] = None
    torch.save(content, "old.pth.tar")
    error = one_error(*run(capsys, "old.pth.tar", "clips/a.mp4")[::2])
    assert all(part in error for part in ("old.pth.tar: does not say", "--extractor", "descriptor"))
    code, _, err = run(capsys, "old.pth.tar", "clips/a.mp4", "--extractor", "descriptor", "-o", "a.json")
    assert code == 0, err
    assert sum("cannot be checked" in line for line in err.splitlines()) == 1
    kept, = Path("clips").glob("features_*")
    assert np.load(kept / "a.npy").shape == (12, 232)
    assert run(capsys, rgb, "clips/a.mp4", "-o", "b.json")[0] == 0
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    assert "no video is named" in one_error(*run(capsys, rgb, kept, "--extractor", "descriptor")[::2])


@pytest.mark.parametrize("package", ["av", "cv2"])
def test_packages_that_are_not_installed(project, both, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert 'pip install -e ".[video]"' in one_error(*run(capsys, both, "clips")[::2])


def test_two_videos_of_one_name(project, both, capsys):
    shutil.copytree("clips", "more")
    assert "another video is called 'a' too" in one_error(*run(capsys, both, "clips", "more")[::2])
