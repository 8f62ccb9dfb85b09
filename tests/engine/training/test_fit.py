"""The training loop: what a run writes, what it refuses, when it stops."""
from __future__ import annotations

import ast
import json
import os
import re
import resource
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import data_config, write_data

from libs.core.config import dump_text, load_config, to_dict
from libs.core.errors import UserError
from libs.datasets.dataset import TalDataset
from libs.datasets.features.store import FeatureStore
from libs.datasets.loading.samplers import EpochSampler
from libs.engine.runs.checkpoint import load_checkpoint, save_checkpoint
from libs.engine.runs.run_folder import Run, run_folder
from libs.engine.training import fit as fit_module
from libs.engine.training.fit import FitOptions, fit
from libs.engine.training.reports import show_detections
from libs.engine.training.trainer import Trainer
from libs.utils.evaluation.predictions import Detections

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path)


def records(folder: Path):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_writes(data, tmp_path, capsys):
    config = data_config(data, tmp_path)
    folder = run_folder(config, "first")
    assert folder == tmp_path / "ckpt" / "tiny_first"
    scores = fit(config, folder, CPU, FitOptions(checkpoint_every=3, print_every=2, eval_every=2))
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock", "best.pth.tar", "config.txt", "config.yaml", "environment.json", "epoch_003.pth.tar", "epoch_004.pth.tar",
        "logs", "metrics.jsonl"]
    assert load_config(folder / "config.yaml") == config
    assert ast.literal_eval((folder / "config.txt").read_text())["model"]["num_classes"] == 3
    steps = [r for r in records(folder) if "final_loss" in r]
    assert [r["iteration"] for r in steps] == list(range(1, 13))
    assert [r["epoch"] for r in steps] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert all(list(r) == ["iteration", "epoch", "lr", "cls_loss", "reg_loss", "final_loss", "grad_norm"] for r in steps)
    assert all(r["final_loss"] == pytest.approx(r["cls_loss"] + r["reg_loss"], rel=1e-5) for r in steps)
    assert steps[0]["lr"] == 0
    evaluations = [r for r in records(folder) if "average_mAP" in r]
    assert [r["epoch"] for r in evaluations] == [2, 4]
    assert evaluations[-1]["average_mAP"] == scores.average_mAP
    assert evaluations[-1]["mAP@0.30"] == scores.mAP[0]
    out = capsys.readouterr().out
    assert "6 videos, 3 iterations per epoch, 3 + 1 warm-up epochs" in out
    assert out.count("epoch   1") == 2  # after 2 of 3 iterations and at the end of the epoch
    assert "average mAP" in out


def test_every_epoch_has_its_own_order_and_crops(data, tmp_path, monkeypatch):
    seen, step = [], Trainer.step

    def watched(self, batch):
        seen.append([(s.video_id, s.start, int(m.sum())) for s, m in zip(batch.samples, batch.mask, strict=True)])
        return step(self, batch)
    monkeypatch.setattr(Trainer, "step", watched)
    config = data_config(data, tmp_path, opt={"epochs": 2})
    fit(config, tmp_path / "run", CPU, FitOptions())
    dataset = TalDataset(config, config.train_split, training=True)
    sampler, want = EpochSampler(6, 2, config.init_rand_seed), []
    for sampler.epoch in range(3):
        want += [[(s.video_id, s.start, s.steps) for s in map(dataset.sample, indices)] for indices in sampler]
    assert seen == want
    assert seen[:3] != seen[3:6] != seen[6:]


def test_tensorboard_tags(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    config = data_config(data, tmp_path, opt={"epochs": 1})
    fit(config, tmp_path / "run", CPU, FitOptions(eval_every=1, print_every=2))
    events = EventAccumulator(str(tmp_path / "run" / "logs"))
    events.Reload()
    training = {"loss/cls_loss", "loss/reg_loss", "loss/final_loss", "optimizer/lr", "optimizer/grad_norm"}
    validation = {f"validation/mAP@0.{t}0" for t in range(3, 8)} | {"validation/average_mAP"}
    assert set(events.Tags()["scalars"]) == training | validation
    assert [e.step for e in events.Scalars("loss/final_loss")] == [2, 3, 5, 6]
    assert [e.step for e in events.Scalars("validation/average_mAP")] == [3, 6]
    logged = [r["final_loss"] for r in records(tmp_path / "run") if "final_loss" in r]
    assert events.Scalars("loss/final_loss")[0].value == pytest.approx((logged[0] + logged[1]) / 2, rel=1e-5)
    average = [r["average_mAP"] for r in records(tmp_path / "run") if "average_mAP" in r]
    assert events.Scalars("validation/average_mAP")[1].value == pytest.approx(100 * average[1], rel=1e-5)


def test_tensorboard_shows_three_fixed_videos_and_says_what_the_run_is(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    config = data_config(data, tmp_path, opt={"epochs": 1})
    fit(config, tmp_path / "run", CPU, FitOptions(eval_every=1))
    events = EventAccumulator(str(tmp_path / "run" / "logs"))
    events.Reload()
    pictures = {f"predictions/v{i}" for i in range(3)}
    assert set(events.Tags()["images"]) == pictures, "all three validation videos, there being no more"
    for name in pictures:
        shown = events.Images(name)
        assert [e.step for e in shown] == [3, 6]
        assert (shown[0].width, shown[0].encoded_image_string[:4]) == (900, b"\x89PNG")
    texts = {name: events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
             for name in ("config", "summary")}
    assert "learning_rate: 0.003" in texts["config"]
    assert "| training videos | `6 of training` |" in texts["summary"]
    assert "| length | `1 + 1 warm-up epochs of 3 iterations, batch 2` |" in texts["summary"]


@pytest.mark.parametrize(("names", "chosen"), [("abcdefg", "adg"), ("ab", "ab"), ("a", "a"), ("abcd", "acd")])
def test_shown_videos_are_spread_over_those_with_segments(names, chosen):
    class Log:
        def __init__(self):
            self.names = []

        def image(self, name, pixels, step):
            self.names.append(name)
    videos = [SimpleNamespace(id=name, segments=np.array([[0.0, 1.0]]), labels=np.array([0])) for name in names]
    empty = SimpleNamespace(id="empty", segments=np.empty((0, 2)), labels=np.empty(0, int))
    log = Log()
    val_set = SimpleNamespace(videos=[empty, *videos, empty], label_names={0: "x"})
    show_detections(SimpleNamespace(log=log, trainer=SimpleNamespace(iteration=1)), val_set, Detections.empty())
    assert log.names == [f"predictions/{name}" for name in chosen]


def test_one_tensorboard_shows_all_runs_of_a_folder(data, tmp_path):
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    for name in ("a", "distill/b"):
        fit(data_config(data, tmp_path, opt={"epochs": 1}), tmp_path / "ckpt" / name, CPU, FitOptions())
    board = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "ckpt")).Reload()
    assert set(board.Runs()) == {"a/logs", "distill/b/logs"}
    assert all("loss/final_loss" in run["tensors"] for run in board.Runs().values()), "curves of one name lie in one chart"


def test_log_lines_say_how_long_the_rest_takes(data, tmp_path, capsys):
    fit(data_config(data, tmp_path, opt={"epochs": 1}), tmp_path / "run", CPU, FitOptions(print_every=2))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 4
    assert all(re.search(r"s/iteration  \d+:\d\d:\d\d left$", line) for line in lines)
    assert lines[-1].endswith("  0:00:00 left")


def test_the_best_checkpoint_is_the_first_of_the_highest_score(data, tmp_path, monkeypatch, capsys):
    values, evaluate = iter([0.25, 0.5, 0.5, 0.375]), fit_module.score

    def scripted(detections, dataset):
        import dataclasses
        scores = evaluate(detections, dataset)
        return dataclasses.replace(scores, AP=np.full_like(scores.AP, next(values)))
    monkeypatch.setattr(fit_module, "score", scripted)
    fit(data_config(data, tmp_path), tmp_path / "run", CPU, FitOptions(eval_every=1, checkpoint_every=10))
    best = load_checkpoint(tmp_path / "run" / "best.pth.tar")
    assert (best.epoch, best.training["best"]) == (2, {"epoch": 2, "average_mAP": 0.5})
    assert load_checkpoint(tmp_path / "run" / "epoch_004.pth.tar").training["best"] == best.training["best"]
    assert "test split" not in capsys.readouterr().err


def test_validating_on_the_training_split_is_warned_about(data, tmp_path, capsys):
    config = data_config(data, tmp_path, val_split=["training"], opt={"warmup_epochs": 0, "epochs": 1})
    fit(config, tmp_path / "run", CPU, FitOptions())
    err = capsys.readouterr().err
    assert err.count("train_split and val_split both name training") == 1
    assert config.source in err


def test_levels_that_leave_a_gap_are_warned_about_once(data, tmp_path, capsys):
    ranges = {"regression_range": [[0, 4], [6, 8], [8, 10000]]}
    fit(data_config(data, tmp_path, model=ranges, opt={"warmup_epochs": 0, "epochs": 1}), tmp_path / "run", CPU, FitOptions())
    warned = [line for line in capsys.readouterr().err.splitlines() if "regression_range" in line]
    assert len(warned) == 1
    assert "[4, 6]" in warned[0]


def test_choosing_by_the_test_split_is_warned_about_once(data, tmp_path, capsys):
    data.edit(lambda doc: [v.update(subset="test") for v in doc["database"].values() if v["subset"] == "validation"])
    config = data_config(data, tmp_path, val_split=["test"])
    fit(config, tmp_path / "run", CPU, FitOptions(eval_every=1))
    assert capsys.readouterr().err.count("warning: val_split is the test split") == 1


def test_an_evaluation_that_fails_loses_no_training(data, tmp_path):
    """A validation video x 1e30: its outputs are NaN.  The epoch before the evaluation is kept, and goes on once it is mended."""
    config, folder = data_config(data, tmp_path, opt={"epochs": 2}), tmp_path / "run"
    whole = np.load(data.features / "v1.npy")
    np.save(data.features / "v1.npy", whole * np.float32(1e30))
    with pytest.raises(UserError, match=r"'v1': .*NaN or infinite.*reach .*e\+30.*saved in .*interrupted.pth.tar.*--resume auto"):
        fit(config, folder, CPU, FitOptions(eval_every=2))
    assert load_checkpoint(folder / "interrupted.pth.tar").training["iteration"] == 6
    np.save(data.features / "v1.npy", whole)
    assert fit(config, folder, CPU, FitOptions(eval_every=2, resume="auto")) is not None
    steps = [r["iteration"] for r in records(folder) if "final_loss" in r]
    assert steps == list(range(1, 10))


def test_evaluation_during_training_uses_the_weights_asked_for(data, tmp_path):
    found = {}
    for kind in ("ema", "raw"):
        config = data_config(data, tmp_path / kind, test_cfg={"weights": kind})
        fit(config, tmp_path / kind, CPU, FitOptions(eval_every=4))
        found[kind] = [r for r in records(tmp_path / kind) if "average_mAP" in r]
    assert found["ema"][0]["weights"] == "ema"
    assert found["ema"][0]["average_mAP"] != found["raw"][0]["average_mAP"]


def test_a_used_folder_is_refused_and_left_alone(data, tmp_path):
    config = data_config(data, tmp_path, opt={"epochs": 1})
    fit(config, tmp_path / "run", CPU, FitOptions())
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"run: holds checkpoints up to epoch 2; go on with --resume auto"):
        fit(config, tmp_path / "run", CPU, FitOptions())
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_folder_without_checkpoints_starts_its_metrics_anew(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"iteration": 1, "epoch": 1, "final_loss": 7}\n{"iterat')
    fit(data_config(data, tmp_path, opt={"epochs": 1}), tmp_path / "run", CPU, FitOptions())
    assert [r["iteration"] for r in records(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_resume_and_init_from_exclude_each_other(data, tmp_path):
    with pytest.raises(UserError, match="--resume and --init-from exclude each other"):
        fit(data_config(data, tmp_path), tmp_path / "run", CPU, FitOptions(resume="auto", init_from="x"))


def test_init_from_another_fold(data, tmp_path):
    config = data_config(data, tmp_path, fold=1)
    weights = {"w": torch.zeros(1)}
    save_checkpoint(tmp_path / "epoch_001.pth.tar", 1, weights, weights, {}, {}, {"config": to_dict(config)})
    with pytest.raises(UserError, match=r"fold: 2, but .*epoch_001\.pth\.tar was trained on fold 1"):
        fit(data_config(data, tmp_path, fold=2), tmp_path / "run", CPU, FitOptions(init_from=str(tmp_path / "epoch_001.pth.tar")))


def test_init_from_another_number_of_classes(data, tmp_path, capsys):
    fit(data_config(data, tmp_path, opt={"epochs": 1}), tmp_path / "first", CPU, FitOptions())
    config = data_config(data, tmp_path, dataset={"num_classes": 5}, opt={"epochs": 1})
    fit(config, tmp_path / "second", CPU, FitOptions(init_from=str(tmp_path / "first"), checkpoint_every=1))
    out = capsys.readouterr().out
    assert "2 start anew (cls_head.cls_head.conv.weight, cls_head.cls_head.conv.bias); 0 of the file have no place" in out
    first = load_checkpoint(tmp_path / "first" / "epoch_002.pth.tar")
    second = load_checkpoint(tmp_path / "second" / "epoch_001.pth.tar")
    assert second.weights["cls_head.cls_head.conv.weight"].shape[0] == 5
    # after one short epoch the weights are still close to those of the file, and far from a fresh network's
    name = "backbone.stem.0.mlp.0.weight"
    assert (second.weights[name] - first.weights_ema[name]).abs().max() < 0.02


def test_a_start_that_fits_few_tensors_is_a_warning(data, tmp_path, capsys):
    fit(data_config(data, tmp_path, opt={"early_stop_epochs": 1}), tmp_path / "first", CPU, FitOptions())
    assert capsys.readouterr().err == ""
    config = data_config(data, tmp_path, model={"embd_dim": 24, "fpn_dim": 24, "head_dim": 24}, opt={"early_stop_epochs": 1})
    fit(config, tmp_path / "second", CPU, FitOptions(init_from=str(tmp_path / "first")))
    err = capsys.readouterr().err
    assert re.search(r"warning: .*first: only 4 of 109 tensors of this network are in it", err), err
    assert "model.embd_dim (or" in err


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_a_non_finite_loss_stops_the_run_and_names_the_videos(data, tmp_path, monkeypatch, kind):
    feats = np.load(data.features / "t1.npy")
    feats[4] = np.nan
    np.save(data.features / "t1.npy", feats)
    config = data_config(data, tmp_path, opt={"type": kind}, dataset={"crop_ratio": None})
    with pytest.raises(UserError, match=r"t1\.npy: .*NaN"):  # the loader sees it first
        fit(config, tmp_path / "run", CPU, FitOptions(checkpoint_every=1))
    monkeypatch.setattr(FeatureStore, "_check_finite", lambda *_: None)
    with pytest.raises(UserError, match=r"not finite at iteration [123]; videos of that batch: (t1, t\d|t\d, t1)\. The weights"):
        fit(config, tmp_path / "again", CPU, FitOptions(checkpoint_every=1))
    assert not list((tmp_path / "again").glob("epoch_*"))
    assert (tmp_path / "again" / "metrics.jsonl").read_text() == ""


def test_background_videos_and_steps_without_any_action(data, tmp_path):
    data.edit(lambda doc: [doc["database"][f"t{i}"].update(annotations=[]) for i in range(1, 6)])
    fit(data_config(data, tmp_path, opt={"epochs": 1}), tmp_path / "run", CPU, FitOptions())
    steps = records(tmp_path / "run")
    assert sum(r["reg_loss"] == 0 for r in steps) >= len(steps) // 2
    assert all(0 < r["final_loss"] < 100 for r in steps)


def test_empty_classes_of_the_preset_reach_the_head(data, tmp_path):
    config = data_config(data, tmp_path, dataset_name="epic", dataset={"num_classes": 5}, opt={
        "epochs": 1, "warmup_epochs": 0, "learning_rate": 1e-9})
    fit(config, tmp_path / "run", CPU, FitOptions())
    bias = load_checkpoint(tmp_path / "run" / "epoch_001.pth.tar").weights["cls_head.cls_head.conv.bias"]
    assert torch.sigmoid(bias.double()).tolist() == pytest.approx([0.01] * 3 + [1e-6] * 2, rel=1e-3)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_disk_that_fills_up_while_saving_keeps_the_earlier_checkpoints(data, tmp_path, share, capsys):
    config = data_config(data, tmp_path)
    fit(data_config(data, tmp_path, opt={"early_stop_epochs": 2}), tmp_path / "run", CPU, FitOptions(checkpoint_every=1))
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").glob("epoch_*")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * len(before["epoch_001.pth.tar"])), limits[1]))
        with pytest.raises(UserError, match=r"epoch_003\.pth\.tar: cannot be written \(File too large\)"):
            fit(config, tmp_path / "run", CPU, FitOptions(resume="auto", checkpoint_every=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").glob("*epoch_*")} == before
    fit(config, tmp_path / "run", CPU, FitOptions(resume="auto", checkpoint_every=1))
    assert load_checkpoint(tmp_path / "run" / "epoch_004.pth.tar").epoch == 4


@pytest.mark.parametrize("limit", [0, 300, 3000])
def test_a_disk_that_is_full_before_the_logs_is_one_error_too(data, tmp_path, limit):
    config = data_config(data, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        with pytest.raises(UserError, match=r"File too large|cannot be written"):
            fit(config, tmp_path / "run", CPU, FitOptions(checkpoint_every=1, print_every=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "run").glob("*epoch_*"))


@pytest.mark.parametrize("room", [300, 1800])
def test_a_disk_that_fills_up_while_logging_is_one_error_too(data, tmp_path, room, capsys):
    config = data_config(data, tmp_path, opt={"epochs": 40})
    limit = len(dump_text(config)) + room  # enough for the configuration, the largest file written before the logs
    limits, hook = resource.getrlimit(resource.RLIMIT_FSIZE), threading.excepthook
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        with pytest.raises(UserError, match=r"run: the logs cannot be written \(File too large\)"):
            fit(config, tmp_path / "run", CPU, FitOptions(checkpoint_every=50, print_every=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Traceback" not in capsys.readouterr().err
    assert threading.excepthook is hook


def test_errors_of_other_threads_are_still_shown(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    run = Run(tmp_path / "run", data_config(data, tmp_path))
    thread = threading.Thread(target=lambda: 1 // 0)
    thread.start()
    thread.join()
    run.close()
    assert [s.exc_type for s in seen] == [ZeroDivisionError]


@pytest.mark.parametrize("blocked", ["ckpt", "ckpt/tiny_run", "ckpt/tiny_run/logs", "ckpt/tiny_run/metrics.jsonl"])
def test_a_folder_that_cannot_be_written(data, tmp_path, blocked):
    """A file where a folder should be, or the other way round (works for root too, unlike permissions)."""
    path = tmp_path / blocked
    path.parent.mkdir(parents=True, exist_ok=True)
    if blocked.endswith("jsonl"):
        path.mkdir()
    else:
        path.write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be (written|read)"):
        fit(data_config(data, tmp_path), tmp_path / "ckpt" / "tiny_run", CPU, FitOptions())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(data, tmp_path):
    (tmp_path / "ckpt").mkdir(mode=0o555)
    with pytest.raises(UserError, match="cannot be written"):
        fit(data_config(data, tmp_path), tmp_path / "ckpt" / "run", CPU, FitOptions())


def test_a_progress_bar_on_a_terminal(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fit(data_config(data, tmp_path, opt={"epochs": 1}), tmp_path / "run", CPU, FitOptions())
    out, err = capsys.readouterr()
    assert "epoch 1/2" in err
    assert "final_loss" in out + err


def test_an_offset_that_is_zero_everywhere_is_one_warning_with_the_remedy(data, tmp_path, capsys, monkeypatch):
    real = fit_module.setup

    def setup(*args):
        run = real(*args)
        with torch.no_grad():
            run.trainer.model.reg_head.offset_head.bias[1] = -1e3
        return run

    fit(data_config(data, tmp_path, opt={"epochs": 1}), tmp_path / "alive", CPU, FitOptions())
    assert "dead ReLU" not in "".join(capsys.readouterr())
    monkeypatch.setattr(fit_module, "setup", setup)
    fit(data_config(data, tmp_path, opt={"epochs": 1}), tmp_path / "dead", CPU, FitOptions())
    lines = [line for line in "".join(capsys.readouterr()).splitlines() if "dead ReLU" in line]
    assert [re.search(r"epoch (\d+): the offset to the (\w+) is zero", line).groups() for line in lines][:1] == [("1", "end")]
    assert "model.offset_bias: 1" in lines[0]
