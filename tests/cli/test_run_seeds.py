"""tools/run_seeds.py: its command lines, its numbers, its failures.

The programs that it starts run inside this process (their own tests start real ones); everything else is as it is.
"""
from __future__ import annotations

import json
import shutil
import statistics

import pytest
import run_seeds
from helpers import one_error, run_script, run_scripts_here, write_config, write_data


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "tiny.yaml", write_data(tmp_path), opt={"epochs": 1})


@pytest.fixture
def started(monkeypatch, capsys):
    """Command lines that were run."""
    return run_scripts_here(monkeypatch, capsys)


def run(capsys, *argv):
    """In a thread's way: what the seeds print inside is not captured separately, the summary is."""
    return run_script(capsys, run_seeds.main, "run_seeds.py", *map(str, argv))


def test_mean_and_spread(config, capsys, tmp_path, started):
    code, out, err = run(capsys, config, "--seeds", 2, "--first-seed", 5, "--json", tmp_path / "out.json", "--output", "x",
                         "--eval-freq", 1, "--set", "train_cfg.dropout=0")
    assert (code, err) == (0, "")
    assert [c[0] for c in started] == ["train.py", "eval.py", "eval.py"] * 2
    assert all("train_cfg.dropout=0" in c for c in started)
    summary = json.loads((tmp_path / "out.json").read_text())
    for kind in ("ema", "raw"):
        values = []
        for seed in (5, 6):
            folder = tmp_path / "ckpt" / f"tiny_x_seed{seed}"
            values.append(100 * json.loads((folder / "eval" / f"epoch_002_{kind}" / "results.json").read_text())["average_mAP"])
            assert (folder / "best.pth.tar").exists()
        assert list(summary[kind]["average_mAP"].values()) == values
        assert summary[kind]["mean"] == pytest.approx(statistics.mean(values))
        assert summary[kind]["standard_deviation"] == pytest.approx(statistics.stdev(values))
        line = next(x for x in out.splitlines() if x.startswith(f"{kind}: "))
        assert line.endswith(f"mean {statistics.mean(values):.2f}, standard deviation {statistics.stdev(values):.2f}")
    (paired,), (ema, raw) = summary["paired"], (summary[kind]["average_mAP"] for kind in ("ema", "raw"))
    assert paired["difference"] == pytest.approx({seed: raw[seed] - ema[seed] for seed in raw})
    assert out.splitlines()[-1].startswith(f"raw minus ema: {statistics.mean(paired['difference'].values()):+.2f}; over 2 seeds ")
    seeds = [json.loads((tmp_path / "ckpt" / f"tiny_x_seed{s}" / "metrics.jsonl").read_text().splitlines()[0]) for s in (5, 6)]
    assert seeds[0]["final_loss"] != seeds[1]["final_loss"]
    assert "6 videos, 3 iterations per epoch" in (tmp_path / "ckpt" / "tiny_x_seed5.log").read_text()


def test_mean_and_spread_over_folds(config, capsys, tmp_path, started):
    for fold in (1, 2):
        shutil.copy(tmp_path / "annotations.json", tmp_path / f"split{fold}.json")
    config.write_text(config.read_text().replace("/annotations.json", "/split{fold}.json"))
    code, out, err = run(capsys, config, "--seeds", 1, "--folds", 2, 1, "--json", tmp_path / "out.json")
    assert (code, err) == (0, "")
    assert [("fold=2" in c, "fold=1" in c) for c in started] == [(True, False)] * 3 + [(False, True)] * 3
    both = json.loads((tmp_path / "out.json").read_text())
    summary = both["ema"]
    for fold in ("1", "2"):
        folder = tmp_path / "ckpt" / f"tiny_seeds_fold{fold}_seed0"
        value = 100 * json.loads((folder / "eval" / "epoch_002_ema" / "results.json").read_text())["average_mAP"]
        assert summary["average_mAP"][fold] == summary["runs"][f"fold{fold}_seed0"] == value
        assert f"split{fold}.json" in (folder / "config.yaml").read_text()
    assert out.splitlines()[-2].endswith(f"standard deviation {both['raw']['standard_deviation']:.2f} over folds")


def test_a_seed_of_its_own_for_every_run(config, capsys, started):
    code, _, err = run(capsys, config, "--set", "init_rand_seed=7")
    assert "--first-seed" in one_error(code, err)
    assert started == []


def test_one_seed_and_finished_runs_are_reused(config, capsys, tmp_path, started):
    argv, folder = (config, "--seeds", 1, "--jobs", 2), tmp_path / "ckpt" / "tiny_seeds_seed0"
    outs = [run(capsys, *argv)[1].splitlines()[-2] for _ in range(2)]
    assert outs[0] == outs[1]
    assert outs[0].endswith("standard deviation 0.00")
    assert [c[0] for c in started] == ["train.py", "eval.py", "eval.py"]
    before = (folder / "epoch_002.pth.tar").read_bytes()

    (folder / "eval" / "epoch_002_raw" / "results.json").unlink()  # as after a kill
    assert run(capsys, *argv)[1].splitlines()[-2] == outs[0]
    assert [(c[0], "raw" in c) for c in started[3:]] == [("eval.py", True)]
    for _ in range(2):
        assert run(capsys, *argv, "--set", "test_cfg.min_score=0.5")[0] == 0  # other results, the same weights
        assert [c[0] for c in started[4:]] == ["eval.py", "eval.py"]
    assert run(capsys, *argv)[1].splitlines()[-2] == outs[0]  # those with its own settings are still there
    (folder / "epoch_002.pth.tar").write_bytes(before[:-9])
    assert "no checkpoint there is whole" in one_error(*run(capsys, *argv)[::2])
    (folder / "epoch_002.pth.tar").unlink()
    assert run(capsys, *argv)[1].splitlines()[-2] == outs[0]
    assert [c[0] for c in started[6:]] == ["train.py", "eval.py", "eval.py"]
    assert (folder / "epoch_002.pth.tar").read_bytes() == before


def test_a_changed_configuration_is_refused(config, capsys, started):
    assert run(capsys, config, "--seeds", 1)[0] == 0
    error = one_error(*run(capsys, config, "--seeds", 1, "--set", "opt.learning_rate=0.5")[::2])
    assert "tiny_seeds_seed0: was trained with another configuration" in error
    assert len(started) == 3


def test_a_failing_seed_shows_the_end_of_its_log(config, capsys, tmp_path, started):
    (tmp_path / "features" / "t2.npy").unlink()
    error = one_error(*run(capsys, config, "--seeds", 2)[::2])
    assert "seed 0 failed, see " in error
    assert "t2.npy" in error
    assert len(started) == 1  # the second seed does not begin


@pytest.mark.parametrize(("argv", "fragment"), [
    (["--seeds", "0"], "--seeds 0 --jobs 1: both must be at least 1"), (["--jobs", "-1"], "both must be at least 1"),
    (["--set", "opt.epoch=2"], "opt.epoch")])
def test_bad_options(config, capsys, tmp_path, started, argv, fragment):
    assert fragment in one_error(*run(capsys, config, *argv)[::2])
    assert started == []
    assert not (tmp_path / "ckpt").exists()


def test_a_folder_that_cannot_be_written(config, capsys, tmp_path, started):
    (tmp_path / "ckpt").write_text("in the way")
    assert "ckpt" in one_error(*run(capsys, config, "--seeds", "1")[::2])
