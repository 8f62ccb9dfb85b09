"""tools/run_distill.py: a folder of two stages from nothing to the table, again, and its failures.

The programs that it starts run inside this process (their own tests start real ones), and costs are not measured.
"""
from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import run_distill
from helpers import one_error, run_script, run_scripts_here, write_config, write_data

from libs.engine.experiments import chain_table


@pytest.fixture
def folder(tmp_path):
    """Two independent stages of one epoch, warm-up included."""
    data, path = write_data(tmp_path), tmp_path / "chain"
    path.mkdir()
    for name, width in (("teacher", 16), ("student_alone", 8)):
        write_config(path / f"{name}.yaml", data, output_folder=str(tmp_path / "ckpt"), opt={"epochs": 1, "warmup_epochs": 0},
                     model={"embd_dim": width, "fpn_dim": width, "head_dim": width})
    return path


@pytest.fixture
def started(monkeypatch, capsys):
    """Command lines that were run."""

    def measured(config, length, device, runs):
        assert (length, device, runs) == (48, "cpu", 5)
        return SimpleNamespace(params=2000, flops=1000 * config.model.embd_dim, latency_ms=1.5, length=48, threads=1, machine="m")
    monkeypatch.setattr(chain_table, "measure", measured)
    return run_scripts_here(monkeypatch, capsys)


def run(capsys, *argv):
    return run_script(capsys, run_distill.main, "run_distill.py", *map(str, argv))


def test_from_nothing_to_the_table_and_again(folder, capsys, tmp_path, started):
    argv = (folder, "--first-seed", 3, "--jobs", 2, "--set", "train_cfg.dropout=0")
    code, out, err = run(capsys, *argv)
    assert (code, err) == (0, "")
    assert sorted((c[0], c[1].rsplit("/", 1)[1], c[-2:]) for c in started) == [
        (program, f"{stage}.yaml", ["train_cfg.dropout=0", "init_rand_seed=3"])
        for program in ("eval.py", "train.py") for stage in ("student_alone", "teacher")]
    rows = json.loads((tmp_path / "ckpt" / "table.json").read_text())["rows"]
    assert [(r["stage"], r["epochs"], r["steps"], r["flops_of_teacher"]) for r in rows] == [
        ("teacher", 1, 3, 1), ("student_alone", 1, 3, 0.5)]
    assert (tmp_path / "ckpt" / "table.md").read_text() in out

    results = {stage: tmp_path / "ckpt" / f"{stage}_seed3" / "eval" / "epoch_001_ema" / "results.json"
               for stage in ("teacher", "student_alone")}
    measured = json.loads(results["teacher"].read_text())
    for stage, value in (("teacher", 0.75), ("student_alone", 0.5)):
        results[stage].write_text(json.dumps({**json.loads(results[stage].read_text()), "average_mAP": value}))
    code, out, _ = run(capsys, *argv, "--json", tmp_path / "out.json")
    assert (code, len(started)) == (0, 4)
    assert "2 runs, 2 of them done before" in out
    content = json.loads((tmp_path / "out.json").read_text())
    assert content == json.loads((tmp_path / "ckpt" / "table.json").read_text())
    assert [(r["mean"], r["average_mAP"], r["mean_difference"]) for r in content["rows"]] == [
        (75, {"3": 75}, 25), (50, {"3": 50}, 0)]
    assert [(t["value"], t["against"], t["difference"]) for t in content["paired"]] == [("teacher", "student_alone", {"3": 25})]
    assert out.splitlines()[-2] == "- teacher minus student_alone: +25.00; one seed: no interval over seeds"
    assert out.splitlines()[-2] in (tmp_path / "ckpt" / "table.md").read_text()

    results["teacher"].unlink()
    assert run(capsys, *argv, "--table-only")[0] == 0
    assert [r["stage"] for r in json.loads((tmp_path / "ckpt" / "table.json").read_text())["rows"]] == ["student_alone"]
    assert run(capsys, *argv, "--stages", "teacher")[0] == 0
    assert [c[0] for c in started[4:]] == ["eval.py"]  # trained already
    assert json.loads(results["teacher"].read_text()) == measured
    assert "6 videos, 3 iterations per epoch" in (tmp_path / "ckpt" / "teacher_seed3.log").read_text()


def test_a_changed_configuration_stops_before_anything_starts(folder, capsys, started):
    assert run(capsys, folder, "--stages", "student_alone")[0] == 0
    done = len(started)
    error = one_error(*run(capsys, folder, "--set", "opt.learning_rate=0.5")[::2])
    assert "student_alone_seed0: was trained with another configuration than" in error
    assert "opt.learning_rate: 0.003 -> 0.5" in error
    assert len(started) == done


def test_a_failing_stage_shows_the_end_of_its_log(folder, capsys, tmp_path, started):
    (tmp_path / "features" / "t2.npy").unlink()
    error = one_error(*run(capsys, folder)[::2])
    assert f"student_alone_seed0 failed, see {tmp_path / 'ckpt' / 'student_alone_seed0.log'}; it ends with:" in error
    assert "t2.npy" in error
    assert len(started) == 1  # the other stage does not begin


@pytest.mark.parametrize(("argv", "fragment"), [
    (["--seeds", "0"], "--seeds 0 --jobs 1: both must be at least 1"), (["--jobs", "0"], "both must be at least 1"),
    (["--table-only"], "no stage of"), (["--table-only", "--stages", "teacher"], "leave --stages out"),
    (["--stages", "techer"], "did you mean 'teacher'?"), (["--first-seed", "-1"], "init_rand_seed"),
    (["--set", "opt.epoch=2"], "opt.epoch")])
def test_bad_options(folder, capsys, tmp_path, started, argv, fragment):
    assert fragment in one_error(*run(capsys, folder, *argv)[::2])
    assert started == []
    assert not (tmp_path / "ckpt").exists()
