"""eval.py: which checkpoint, which weights, and files that agree with each other."""
from __future__ import annotations

import csv
import json
import pickle
import re
import shlex

import numpy as np
import pytest
import torch
from helpers import one_error, run_script, write_config, write_data

import eval as eval_script
import train
from libs.engine.runs.checkpoint import load_checkpoint, save_checkpoint
from libs.utils.evaluation.predictions import read_predictions

FILES = {"predictions.json", "predictions.csv", "eval_results.pkl", "results.json", "environment.json"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(config file, folder of a run with the checkpoints of every epoch)."""
    tmp = tmp_path_factory.mktemp("run")
    config = write_config(tmp / "tiny.yaml", write_data(tmp), opt={"epochs": 3})
    from libs.core.config import load_config
    from libs.engine.training.fit import FitOptions, fit
    fit(load_config(config), tmp / "ckpt" / "tiny_run", torch.device("cpu"), FitOptions(checkpoint_every=1))
    return config, tmp / "ckpt" / "tiny_run"


def run(capsys, *argv):
    return run_script(capsys, eval_script.main, "eval.py", *map(str, argv))


def test_a_folder_means_its_last_epoch_and_the_files_agree(trained, capsys):
    config, folder = trained
    code, out, err = run(capsys, config, folder)
    assert (code, err) == (0, "")
    written = folder / "eval" / "epoch_004_ema"
    assert {p.name for p in written.iterdir()} == FILES
    about = json.loads((written / "environment.json").read_text())
    assert (about["checkpoint"], about["weights"], about["seed"]) == (str(folder / "epoch_004.pth.tar"), "ema", 3)
    lines = out.splitlines()
    assert lines[0] == f"{folder / 'epoch_004.pth.tar'}: epoch 4, ema weights, 3 videos of validation, cpu"
    table = [line.split() for line in lines[-8:]]
    assert [row[0] for row in table if row[0][0] in "0a"] == ["0.30", "0.40", "0.50", "0.60", "0.70", "average"]

    ids = {f"class {i}": i for i in range(3)}
    found = [read_predictions(written / name, ids) for name in ("predictions.json", "predictions.csv", "eval_results.pkl")]
    assert len(found[0]) > 20
    for other in found[1:]:
        for column in ("video_id", "t_start", "t_end", "label", "score"):
            assert np.array_equal(getattr(other, column), getattr(found[0], column)), column
    with open(written / "predictions.csv", newline="") as file:
        assert next(csv.reader(file)) == ["video_id", "t_start", "t_end", "label", "score"]

    results = json.loads((written / "results.json").read_text())
    assert (results["checkpoint"], results["epoch"], results["weights"]) == (str(folder / "epoch_004.pth.tar"), 4, "ema")
    assert results["average_mAP"] == pytest.approx(np.mean(results["mAP"]))
    shown = next(float(row[1]) for row in table if row[0] == "average")
    assert shown == pytest.approx(100 * results["average_mAP"], abs=0.006)
    assert {"recall@1x", "recall@5x"} <= set(results)


def test_results_say_what_they_were_measured_under(trained, capsys, tmp_path):
    config, folder = trained
    code, out, _ = run(capsys, config, folder, "--output", tmp_path / "all")
    assert code == 0
    about = json.loads((tmp_path / "all" / "results.json").read_text())["conditions"]
    assert (about["protocol"], about["subset"], about["videos"], about["left_out"]) == ("activitynet", ["validation"], 3, {})
    assert (about["epoch"], about["weights"], about["chosen"]) == (4, "ema", "the last of its training")
    assert about["nms"]["nms_method"] == "soft"
    assert f"sha256 {about['annotations_sha256'][:12]}" in out
    assert "no interval of the average mAP: it takes 10 videos" in out

    annotations = config.parent / "annotations.json"
    database = json.loads(annotations.read_text())["database"]
    one = next(video for video, entry in database.items() if entry["subset"].lower() == "validation")
    (tmp_path / "list.txt").write_text(one + "\n")
    code, _, _ = run(capsys, config, folder, "--output", tmp_path / "less", "--set", f"test_cfg.exclude={tmp_path / 'list.txt'}")
    assert code == 0
    less = json.loads((tmp_path / "less" / "results.json").read_text())["conditions"]
    assert (less["videos"], list(less["left_out"].values())) == (2, [[one]])
    assert less["ground_truth"] == about["ground_truth"] - len(database[one]["annotations"])
    assert one not in json.loads((tmp_path / "less" / "predictions.json").read_text())["results"]
    (tmp_path / "list.txt").write_text("nobody\n")
    error = one_error(*run(capsys, config, folder, "--set", f"test_cfg.exclude={tmp_path / 'list.txt'}")[::2])
    assert "list.txt: 1 of 1 videos are unknown" in error


def test_tools_evaluate_agrees(trained, capsys, tmp_path):
    import evaluate
    config, folder = trained
    run(capsys, config, folder, "--output", tmp_path)
    annotations = str(config.parent / "annotations.json")
    code, _, _ = run_script(capsys, evaluate.main, "evaluate.py", str(tmp_path / "predictions.json"), annotations, "--json",
                            str(tmp_path / "again.json"), "--split", "validation")
    assert code == 0
    ours, theirs = (json.loads((tmp_path / n).read_text()) for n in ("results.json", "again.json"))
    assert ours["average_mAP"] == pytest.approx(theirs["average_mAP"], abs=1e-12)
    error = one_error(*run_script(capsys, evaluate.main, "evaluate.py", str(tmp_path / "predictions.json"), annotations, "--json",
                                  annotations)[::2])
    assert f"{annotations}: is read by this command" in error


def test_epoch_weights_topk_and_output(trained, capsys, tmp_path):
    config, folder = trained
    kept = {}
    for name, argv in {"last": [], "first": ["-epoch", "1"], "raw": ["--weights", "raw"], "top": ["-t", "3"],
                       "set": ["--set", "test_cfg.max_seg_num=3", "test_cfg.weights=raw"]}.items():
        code, out, _ = run(capsys, config, folder, *argv, "--output", tmp_path / name)
        assert code == 0
        kept[name] = read_predictions(tmp_path / name / "eval_results.pkl")
        assert ("raw weights" in out) == (name in ("raw", "set"))
    assert json.loads((tmp_path / "first" / "results.json").read_text())["epoch"] == 1
    assert len(kept["top"]) == len(kept["set"]) == 9
    assert kept["first"].score.tolist() != kept["last"].score.tolist() != kept["raw"].score.tolist()
    best = [kept["last"].score[kept["last"].video_id == v][:3].tolist() for v in ("v0", "v1", "v2")]
    assert [kept["top"].score[kept["top"].video_id == v].tolist() for v in ("v0", "v1", "v2")] == best


def test_other_settings_have_a_folder_of_their_own(trained, capsys, tmp_path):
    """Only the checkpoint's own settings, on any device or with any batch size, write to eval/<epoch>_<weights>."""
    config, folder = trained
    assert run(capsys, config, folder, "-epoch", 3, "--save-candidates")[0] == 0
    own = folder / "eval" / "epoch_003_ema"
    before = {p.name: p.read_bytes() for p in own.iterdir()}
    code, out, _ = run(capsys, config, folder, "-epoch", 3, "-t", "1", "--set", "dataset.feat_stride=4")
    assert (code, "dataset.feat_stride: 5.0 -> 4.0; test_cfg.max_seg_num: 20 -> 1" in out) == (0, True)
    other = folder / "eval" / "epoch_003_ema_feat_stride=4.0,max_seg_num=1"
    assert {p.name for p in other.iterdir()} == FILES
    assert {p.name: p.read_bytes() for p in own.iterdir()} == before
    elsewhere = tmp_path / "features"
    elsewhere.symlink_to(config.parent / "features")
    out = run(capsys, config, folder, "-epoch", 3, "--set", f"dataset.feat_folder={elsewhere}", "val_split=[training]")[1]
    assert re.search(r"written to .*/eval/epoch_003_ema_[0-9a-f]{8}$", out, re.MULTILINE), "too long a difference: a hash"
    assert {p.name: p.read_bytes() for p in own.iterdir()} == before
    assert run(capsys, config, folder, "-epoch", 3, "--set", "test_cfg.batch_size=2", "loader.num_workers=1")[0] == 0
    assert {p.name for p in own.iterdir()} == FILES, "candidates.npz is of an earlier evaluation"


@pytest.mark.parametrize(("known", "override", "warned"), [
    (True, "dataset.feat_stride=4", "dataset.feat_stride: 5.0 -> 4.0"),
    (True, "model.n_mha_win_size=3", "model.n_mha_win_size: 5 -> 3"),
    (True, "test_cfg.max_seg_num=1", ""), (True, "devices=cpu", ""), (False, "dataset.feat_stride=4", "")], ids=str)
def test_settings_that_change_what_the_weights_say_are_warned_about(trained, capsys, tmp_path, known, override, warned):
    """Of a published checkpoint, which holds no settings, nobody knows those of training."""
    config, folder = trained
    content = torch.load(folder / "epoch_003.pth.tar", weights_only=True)
    if not known:
        del content["training"]
    torch.save(content, tmp_path / "x.pth.tar")
    code, out, err = run(capsys, config, tmp_path / "x.pth.tar", "--output", tmp_path / "o", "--set", override)
    assert code == 0
    lines = [line for line in err.splitlines() if "was trained with another configuration" in line]
    assert lines == ([f"warning: {tmp_path}/x.pth.tar: was trained with another configuration: {warned}; the results are not "
                      "those of the trained network"] if warned else [])
    assert ("other settings than the checkpoint's own" in out) == (override != "devices=cpu")


def test_predictions_alone_leave_no_earlier_results_beside_them(trained, capsys, tmp_path):
    config, folder = trained
    for argv, files in (([], FILES), (["--saveonly", "--set", "test_cfg.max_seg_num=3"], FILES - {"results.json"})):
        assert run(capsys, config, folder, *argv, "--output", tmp_path / "o")[0] == 0
        assert {p.name for p in (tmp_path / "o").iterdir()} == files


def test_a_file_and_a_folder_give_the_same(trained, capsys, tmp_path):
    config, folder = trained
    for name, ckpt in (("file", folder / "epoch_002.pth.tar"), ("folder", folder)):
        run(capsys, config, ckpt, *(["-epoch", "2"] if name == "folder" else []), "--output", tmp_path / name)
    assert (tmp_path / "file" / "predictions.csv").read_bytes() == (tmp_path / "folder" / "predictions.csv").read_bytes()


def test_the_configuration_is_optional(trained, capsys, tmp_path):
    config, folder = trained
    found = []
    for i, argv in enumerate([[config, folder], [folder], [folder / "epoch_004.pth.tar"], [config, "-epoch", "4", folder]]):
        code, _, err = run(capsys, *argv, "--output", tmp_path / str(i))
        assert (code, err) == (0, "")
        found.append((tmp_path / str(i) / "predictions.json").read_bytes())
    assert found == found[:1] * 4
    assert "tiny.yaml: is a configuration; name the checkpoint" in one_error(*run(capsys, config)[::2])
    content = torch.load(folder / "epoch_004.pth.tar", weights_only=True)
    del content["training"]
    torch.save(content, tmp_path / "model.pth.tar")
    error = one_error(*run(capsys, tmp_path / "model.pth.tar")[::2])
    assert "model.pth.tar: holds no configuration" in error
    assert "name one with CONFIG before the checkpoint" in error


def test_a_better_checkpoint_beside_the_last_epoch_is_named(trained, capsys, tmp_path):
    _, folder = trained
    for last, epoch, best, told in ((4, 2, {"epoch": 2, "average_mAP": 0.625}, True), (4, 4, {"average_mAP": 0.5}, False)):
        content = load_checkpoint(folder / f"epoch_{last:03d}.pth.tar")
        for name, number in ((f"epoch_{last:03d}", last), ("best", epoch)):
            save_checkpoint(tmp_path / f"{name}.pth.tar", number, content.weights, content.weights_ema, {}, {},
                            {**content.training, "best": best})
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
        err = run(capsys, tmp_path, "--saveonly")[2]
        assert ("best.pth.tar (epoch 2) was the best" in err, "mAP 62.50 on validation" in err) == (told, told)
        assert run(capsys, tmp_path / "epoch_004.pth.tar", "--saveonly")[2] == "", "a file was asked for"
        for own in (0.625, 0.5):
            (tmp_path / "metrics.jsonl").write_text(f'{{"epoch": 4, "lr": 1}}\n{{"epoch": 4, "average_mAP": {own}}}\n{{"ep')
            err = run(capsys, tmp_path, "--saveonly")[2]
            assert ("is the last one, average mAP 50.00; best" in err) == (told and own < 0.625), "as good is not better"


def test_saveonly_computes_no_scores(trained, capsys, tmp_path):
    config, folder = trained
    code, out, _ = run(capsys, config, folder, "--saveonly", "--output", tmp_path / "o")
    assert (code, "mAP" in out) == (0, False)
    assert {p.name for p in (tmp_path / "o").iterdir()} == FILES - {"results.json"}


def test_progress_lines(trained, capsys, tmp_path):
    config, folder = trained
    out = run(capsys, config, folder, "-p", "2", "--output", tmp_path)[1]
    shown = [line for line in out.splitlines() if " videos, " in line and line.endswith(" left")]
    assert [line.partition(",")[0] for line in shown] == ["2/3 videos"]


def test_a_published_checkpoint_is_evaluated(trained, capsys, tmp_path):
    """Only what other programs write: prefixed weights, averaged weights, nothing of ours."""
    config, folder = trained
    content = torch.load(folder / "epoch_004.pth.tar", weights_only=True)
    del content["training"]
    torch.save(content, tmp_path / "model.pth.tar")
    assert run(capsys, config, tmp_path / "model.pth.tar")[0] == 0
    run(capsys, config, folder, "--output", tmp_path / "ours")
    theirs = tmp_path / "eval" / "model_ema" / "predictions.csv"
    assert theirs.read_bytes() == (tmp_path / "ours" / "predictions.csv").read_bytes()
    assert run(capsys, config, tmp_path / "model.pth.tar", "-t", "1")[0] == 0
    assert (tmp_path / "eval" / "model_ema_max_seg_num=1" / "results.json").is_file(), "the file's settings count as its own"


def test_missing_features_are_counted(trained, capsys, tmp_path):
    config, folder = trained
    data = write_data(tmp_path)
    (data.features / "v1.npy").unlink()
    argv = [config, folder, "--output", tmp_path / "o", "--set", f"dataset.json_file={data.annotations}",
            f"dataset.feat_folder={data.features}"]
    error = one_error(*run(capsys, *argv)[::2])
    assert "1 of 3 videos" in error
    assert not (tmp_path / "o").exists()
    code, _, err = run(capsys, *argv, "dataset.missing=skip")
    assert code == 0
    assert err.count("\n") == 1
    assert "1 of 3 videos of subset validation have no features and get no predictions" in err
    assert "ground-truth segments count as missed" in err


def test_an_epoch_that_is_not_there(trained, capsys):
    config, folder = trained
    assert "epochs in that folder: 1, 2, 3, 4" in one_error(*run(capsys, config, folder, "-epoch", "9")[::2])
    assert "needs the folder of a run" in one_error(*run(capsys, config, folder / "epoch_001.pth.tar", "-epoch", "1")[::2])
    assert "no such checkpoint" in one_error(*run(capsys, config, folder / "none")[::2])
    assert "holds no epoch_*.pth.tar" in one_error(*run(capsys, config, config.parent)[::2])


def test_training_prints_the_command_that_works(trained, capsys):
    """The last line of train.py is a command line of eval.py."""
    config, _ = trained
    argv = [str(config), "--output", "once again", "--set", "opt.epochs=1", "model.head_dim=12"]  # not the file's network
    line = run_script(capsys, train.main, "train.py", *argv)[1].splitlines()[-1]
    assert line.startswith("evaluate with: python eval.py ")
    argv = shlex.split(line)[4:]
    assert run(capsys, *argv)[0] == 0
    error = " ".join(run(capsys, config, *argv)[2].split())
    assert "model.head_dim" in error
    assert "holds the configuration of its training: leave the other one out" in error


def test_a_key_that_the_weights_do_not_show_is_warned_about(trained, capsys, tmp_path):
    config, folder = trained
    code, _, err = run(capsys, config, folder, "--output", tmp_path / "out", "--set", "model.n_mha_win_size=7")
    assert code == 0
    assert "model.n_mha_win_size" in err
    assert "-> 7" in err
    assert run(capsys, config, folder, "--output", tmp_path / "again", "--set", "test_cfg.nms_sigma=0.3")[2] == ""


def test_class_ids_are_those_of_the_checkpoint(trained, capsys, tmp_path):
    import predict
    import robustness
    config, folder = trained
    document = json.loads((config.parent / "annotations.json").read_text())
    for video in document["database"].values():
        for item in video["annotations"]:
            item["label_id"] = (item["label_id"] + 1) % 3
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document))
    (tmp_path / "names.txt").write_text("class 2\nclass 0\nclass 1\n")
    (tmp_path / "clip.npy").write_bytes((config.parent / "features" / "v0.npy").read_bytes())
    setting, told = f"dataset.json_file={other}", ["'class 0' is 1 here, 0 there", "label_id"]
    commands = {
        "eval": (eval_script, folder, "--output", tmp_path / "e", "--set", setting),
        "train": (train, config, "--output", "run", "--resume", folder / "epoch_003.pth.tar", "--set", setting),
        "robustness": (robustness, config, folder, "-o", tmp_path / "r", "--set", setting),
        "predict": (predict, folder, tmp_path / "clip.npy", "--fps", 25, "--labels", tmp_path / "names.txt")}
    for name, (script, *argv) in commands.items():
        code, _, err = run_script(capsys, script.main, name, *map(str, argv))
        error = one_error(code, err)
        assert all(text in error for text in told), (name, error)
        assert str(tmp_path) in error
        assert "epoch_00" in error
    assert not (tmp_path / "e").exists()
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("where", ["a file", "a run"])
def test_a_folder_that_is_none_or_a_run_is_refused_before_the_work(trained, capsys, tmp_path, where):
    _, folder = trained
    (tmp_path / "file").write_text("kept")
    output = folder if where == "a run" else tmp_path / "file"
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    code, out, err = run(capsys, folder, "--output", output)
    error = one_error(code, err)
    assert str(output) in error
    assert "choose another" in error
    assert (out, (tmp_path / "file").read_text()) == ("", "kept")
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_another_file_for_the_checkpoint_is_called_so(trained, capsys, tmp_path):
    config, folder = trained
    (tmp_path / "p.json").write_text('{"results": {}}')
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"score": [1]}, protocol=4))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    for argv, told in (((tmp_path / "p.json",), "not a checkpoint"), ((tmp_path / "p.pkl",), "not a checkpoint"),
                       ((tmp_path / "whole.pth",), "torch.nn.modules.linear.Linear"), ((folder, config), "is a configuration")):
        code, _, err = run(capsys, *argv)
        error = one_error(code, err)
        assert f"{argv[-1]}: " in error
        assert told in error
        assert "weights_only" not in error
        assert len(err.splitlines()) == 1  # torch's own warnings and advice do not show
