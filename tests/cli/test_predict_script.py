"""tools/predict.py and tools/slim_checkpoint.py: what eval.py finds, every format, one error for every mistake."""
from __future__ import annotations

import json

import numpy as np
import predict as predict_script
import pytest
import slim_checkpoint as slim_script
import torch
from helpers import one_error, run_script, write_config, write_data

import eval as eval_script
from libs.core.config import load_config
from libs.engine.training.fit import FitOptions, fit
from libs.utils.evaluation.predictions import read_predictions

IDS = {f"class {i}": i for i in range(3)}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """(folder, config file, run): two epochs of the tiny network; the features of the validation videos in `clips`."""
    tmp = tmp_path_factory.mktemp("project")
    data = write_data(tmp)
    config = write_config(tmp / "tiny.yaml", data, opt={"epochs": 1})
    fit(load_config(config), tmp / "ckpt" / "tiny_run", torch.device("cpu"), FitOptions())
    (tmp / "clips").mkdir()
    for v in ("v0", "v1", "v2"):
        (tmp / "clips" / f"{v}.npy").write_bytes((data.features / f"{v}.npy").read_bytes())
    return tmp, config, tmp / "ckpt" / "tiny_run"


def run(capsys, *argv):
    return run_script(capsys, predict_script.main, "predict.py", *map(str, argv))


def test_a_folder_gives_what_eval_gives_and_evaluate_scores_it_alike(project, capsys, tmp_path):
    import evaluate
    tmp, config, folder = project
    assert run_script(capsys, eval_script.main, "eval.py", str(config), str(folder), "--output", str(tmp_path / "e"))[0] == 0
    code, out, err = run(capsys, folder, tmp / "clips", "--info", tmp / "annotations.json", "-o", tmp_path / "p.json", "-p", 2)
    assert (code, out.splitlines()[0][:12]) == (0, "2/3 videos, ")
    assert "epoch 2, ema weights, 3 videos, cpu" in err
    assert json.loads((tmp_path / "p.json").read_text()) == json.loads((tmp_path / "e" / "predictions.json").read_text())
    argv = [str(tmp_path / "p.json"), str(tmp / "annotations.json"), "--json", str(tmp_path / "s.json")]
    assert run_script(capsys, evaluate.main, "evaluate.py", *argv)[0] == 0
    ours, theirs = (json.loads((tmp_path / n).read_text()) for n in ("s.json", "e/results.json"))
    assert ours["average_mAP"] == theirs["average_mAP"]


def test_the_annotations_are_not_needed(project, capsys, tmp_path):
    tmp, _, folder = project
    slim = tmp_path / "model.pth.tar"
    code, out, _ = run_script(capsys, slim_script.main, "slim_checkpoint.py", str(folder), str(slim))
    assert (code, "MB" in out) == (0, True)
    assert "exists already" in one_error(*run_script(capsys, slim_script.main, "s.py", str(folder), str(slim))[::2])
    held = (tmp / "annotations.json").rename(tmp / "elsewhere.json")
    try:
        code, out, _ = run(capsys, slim, tmp / "clips" / "v0.npy", "--fps", 25, "--threshold", 0.02)
    finally:
        held.rename(tmp / "annotations.json")
    assert code == 0
    assert out.splitlines()[0].split()[0] == "video"
    assert {line.split()[0] for line in out.splitlines()[1:]} == {"v0"}
    assert {" ".join(line.split()[4:]) for line in out.splitlines()[1:]} <= set(IDS)


def test_thresholds_formats_and_folders(project, capsys, tmp_path):
    tmp, _, folder = project
    argv = (folder, tmp / "clips", "--fps", 25)
    (tmp_path / "t.yaml").write_text("class 1: 1.0\n")
    assert run(capsys, *argv, "-o", tmp_path / "all.csv")[0] == 0
    everything = read_predictions(tmp_path / "all.csv", IDS)
    least = float(np.median(everything.score))
    asked = ("--threshold", least, "--class-thresholds", tmp_path / "t.yaml")
    assert run(capsys, *argv, "-o", tmp_path / "some.csv", *asked)[0] == 0
    some = read_predictions(tmp_path / "some.csv", IDS)
    assert len(some) == ((everything.score >= least) & (everything.label != 1)).sum() > 0
    code, out, err = run(capsys, *argv, "--threshold", 1)
    assert (code, len(out.splitlines())) == (0, 1)
    assert f"none of {len(everything)} segments reaches its threshold, the highest score is {everything.score.max():.3f};" in err
    assert "highest score" not in run(capsys, *argv, "--threshold", least)[2]
    code, out, err = run(capsys, *argv, "-o", tmp_path / "subs", "--format", "srt")
    assert (code, sorted(p.name for p in (tmp_path / "subs").iterdir())) == (0, ["v0.srt", "v1.srt", "v2.srt"])
    assert f"3 files in {tmp_path / 'subs'}" in out
    assert "without --threshold" in err
    assert run(capsys, folder, tmp / "clips" / "v0.npy", "--fps", 25, "-o", tmp_path / "v0.eaf", "--threshold", 0.1)[0] == 0


def test_the_provenance_beside_the_features_gives_fps_stride_and_duration(project, capsys, tmp_path):
    """Features of 30 fps: without it, detections would run to 6.2 s of a video of 5.2 s."""
    clips, found = tmp_path / "clips", tmp_path / "p.json"
    clips.mkdir()
    (clips / "v0.npy").write_bytes((project[0] / "clips" / "v0.npy").read_bytes())
    content = {"stride": 5, "num_frames": 10, "fps": None, "videos": {"v0": {"fps": 30.0, "duration": 5.2}}}
    (clips / "provenance.json").write_text(json.dumps(content))
    argv = (project[2], clips, "-o", found)
    assert run(capsys, *argv)[0] == 0
    assert max(row["segment"][1] for row in json.loads(found.read_text())["results"]["v0"]) <= 5.2
    elsewhere = (clips / "provenance.json").rename(tmp_path / "elsewhere.json")
    first = found.read_bytes()
    for places in (["--info", str(elsewhere)], ["--fps", "30", "--duration", "5.2"]):
        assert run(capsys, *argv, *places)[0] == 0
        assert found.read_bytes() == first
    for typed, told in ((["--fps", "25"], ["fps 30", "fps 25"]), (["--set", "dataset.default_fps=25"], ["fps 30", "fps 25"]),
                        (["--stride", "4"], ["stride 5", "stride 4"]), (["--set", "dataset.num_frames=4"], ["num_frames 4"])):
        error = one_error(*run(capsys, *argv, "--info", elsewhere, *typed)[::2])
        assert all(part in error for part in ("elsewhere.json", "'v0'", *told)), error
        elsewhere.rename(clips / "provenance.json")
        error = one_error(*run(capsys, *argv, *typed)[::2])
        assert all(part in error for part in ("clips/provenance.json", "'v0'", *told)), error
        (clips / "provenance.json").rename(elsewhere)


@pytest.mark.parametrize(("argv", "told"), [
    (["CLIPS"], ["--fps"]),
    (["GONE", "--fps", "25"], ["GONE", "no such feature file"]),
    (["CLIPS", "--fps", "25", "--duration", "1e30"], ["duration: 1e+30 is not between 0 and 1e+07"]),
    (["CLIPS", "--fps", "25", "--stride", "1e30"], ["dataset.feat_stride", "1e+30"]),
    (["CLIPS", "--fps", "25", "--num-frames", "1e30"], ["dataset.num_frames", "1e+30"]),
    (["CLIPS", "--set", "dataset.default_fps=1e30"], ["dataset.default_fps", "1e+30"]),
    (["CLIPS", "--fps", "25", "--threshold", "2"], ["--threshold", "from 0 to 1"]),
    (["CLIPS", "--fps", "25", "--class-thresholds", "TYPO"], ["typo.json", "'clas 1'", "did you mean 'class 1'"]),
    (["CLIPS", "--fps", "25", "-o", "OUT/x.xls"], ["x.xls", "'.xls'", ".json"]),
    (["CLIPS", "--fps", "25", "-o", "OUT/x.srt"], ["x.srt", "--format srt"]),
    (["CLIPS", "--fps", "25", "-o", "TYPO/x.json"], ["typo.json", "cannot be written"]),
    (["CLIPS", "--fps", "25", "--format", "srt"], ["-o"]),
    (["WIDE", "--fps", "25", "-o", "OUT/x.json"], ["wide.npy", "7 channels", "6 channels"]),
    (["NAN", "--fps", "25", "-o", "OUT/x.json"], ["nan.npy", "NaN or infinite", "row 4, channel 0"]),
    (["EMPTY", "--fps", "25", "-o", "OUT/x.json"], ["empty.npy", "no feature vectors"]),
    (["CLIPS", "--fps", "25", "--labels", "TYPO"], ["typo.json", "1 classes"]),
    (["CLIPS", "--fps", "25", "--stream", "audio"], ["--stream audio", "NAME=FOLDER"]),
    (["CLIPS", "--fps", "25", "--stream", "audio=x"], ["'audio'"]),
    (["CLIPS", "--fps", "25", "--set", "test_cfg.nms_sigm=1"], ["nms_sigm", "nms_sigma"]),
    (["CLIPS", "--fps", "25", "--device", "cuda:99"], ["cuda:99"]),
    (["CLIPS", "--fps", "25", "--batch-size", "0"], ["test_cfg.batch_size", "0"])], ids=str)
def test_one_clear_error_and_nothing_written(project, capsys, tmp_path, argv, told):
    tmp, _, folder = project
    array = np.load(tmp / "clips" / "v0.npy")
    np.save(tmp_path / "wide.npy", np.pad(array, ((0, 0), (0, 1))))
    np.save(tmp_path / "empty.npy", array[:0])
    array[4, 0] = np.nan
    np.save(tmp_path / "nan.npy", array)
    (tmp_path / "typo.json").write_text('{"clas 1": 0.5}' if "--labels" not in argv else '{"class 1": 0}')
    places = {"CLIPS": tmp / "clips", "TYPO": tmp_path / "typo.json", "OUT": tmp_path / "out", "WIDE": tmp_path / "wide.npy",
              "NAN": tmp_path / "nan.npy", "EMPTY": tmp_path / "empty.npy"}
    for name, place in places.items():
        argv = [a.replace(name, str(place)) if a.split("/")[0] == name else a for a in argv]
    error = one_error(*run(capsys, folder, *argv)[::2])
    for part in told:
        assert part in error
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("fps", ["1e30", "1e-9", "0", "nan"])
def test_rates_that_cannot_be(project, capsys, fps):
    tmp, _, folder = project
    code, out, err = run(capsys, folder, tmp / "clips", "--fps", fps)
    assert (code, out) == (2, "")
    assert f"argument --fps: {fps} frames per second: expected a number from 0.001 to 1e+06" in err


def test_a_published_checkpoint_asks_for_its_configuration(project, capsys, tmp_path):
    tmp, config, folder = project
    content = torch.load(folder / "epoch_002.pth.tar", weights_only=True)
    del content["training"]
    torch.save(content, tmp_path / "model.pth.tar")
    argv = (tmp_path / "model.pth.tar", tmp / "clips", "--fps", 25)
    assert "--config" in one_error(*run(capsys, *argv)[::2])
    assert run(capsys, *argv, "--config", config, "-o", tmp_path / "a.csv")[0] == 0
    assert run(capsys, folder, *argv[1:], "-o", tmp_path / "b.csv")[0] == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
