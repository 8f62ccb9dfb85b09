"""train.py from the command line to the files it leaves."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import one_error, run_script, write_config, write_data

import train
from libs.core.config import dump_text, load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "tiny.yaml", write_data(tmp_path))


def run(capsys, *argv):
    return run_script(capsys, train.main, "train.py", *map(str, argv))


def test_options_reach_the_run(config, capsys, tmp_path):
    code, out, err = run(capsys, config, "--output", "a", "-c", 2, "-p", 3, "--eval-freq", 2, "--set", "opt.epochs=2",
                         "train_cfg.dropout=0", "--set", "init_rand_seed=11")
    assert (code, err) == (0, "")
    folder = tmp_path / "ckpt" / "tiny_a"
    assert {p.name for p in folder.glob("*.tar")} == {"epoch_002.pth.tar", "epoch_003.pth.tar", "best.pth.tar"}
    resolved = load_config(folder / "config.yaml")
    assert (resolved.opt.epochs, resolved.train_cfg.dropout, resolved.init_rand_seed) == (2, 0, 11)
    assert resolved == load_config(config, ["opt.epochs=2", "train_cfg.dropout=0", "init_rand_seed=11"])
    assert (folder / "config.txt").read_text() == dump_text(resolved)
    assert sum(line.startswith("epoch ") and "final_loss" in line for line in out.splitlines()) == 3
    assert out.splitlines()[-1] == f"evaluate with: python eval.py {folder}"
    assert list((folder / "logs").glob("events.out.tfevents.*"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["iteration"] for r in lines if "lr" in r] == list(range(1, 10))


def test_the_whole_program_twice_gives_the_same_bytes_of_weights(config, capsys, tmp_path):
    for name in ("a", "b"):
        assert run(capsys, config, "--output", name, "-c", 10)[0] == 0
    a, b = (torch.load(tmp_path / "ckpt" / f"tiny_{n}" / "epoch_004.pth.tar", weights_only=True) for n in "ab")
    assert all(torch.equal(v, b["state_dict_ema"][k]) for k, v in a["state_dict_ema"].items())


def test_stop_resume_and_fine_tune(config, capsys, tmp_path):
    early = ["--set", "opt.early_stop_epochs=2"]
    assert run(capsys, config, "--output", "a", *early)[0] == 0
    assert "holds checkpoints up to epoch 2" in one_error(*run(capsys, config, "--output", "a")[::2])
    code, out, err = run(capsys, config, "--output", "a", "--resume", "auto")
    assert (code, "resumed after epoch 2" in out) == (0, True)
    assert err.count("\n") == 1
    assert "opt.early_stop_epochs: 2 -> None" in err
    assert (tmp_path / "ckpt" / "tiny_a" / "epoch_004.pth.tar").exists()
    folder = tmp_path / "ckpt" / "tiny_a"
    code, out, _ = run(capsys, config, "--output", "b", "--init-from", folder, *early)
    assert (code, "0 start anew" in out) == (0, True)
    code, out, _ = run(capsys, config, "--output", "c", "--resume", folder / "epoch_002.pth.tar")
    assert (code, "resumed after epoch 2" in out) == (0, True)


def test_the_seed_decides(config, capsys, tmp_path):
    firsts = []
    for seed in (1, 2, 1):
        run(capsys, config, "--output", f"s{len(firsts)}", "--set", f"init_rand_seed={seed}", "opt.early_stop_epochs=1")
        firsts.append((tmp_path / "ckpt" / f"tiny_s{len(firsts)}" / "metrics.jsonl").read_text())
    assert firsts[0] == firsts[2] != firsts[1]


@pytest.mark.parametrize("argv", [["-c", "0"], ["-p", "x"], ["--eval-freq", "-1"], ["--nonsense"], ["--set"]])
def test_bad_options_exit_with_2(config, capsys, tmp_path, argv):
    code, _, err = run(capsys, config, *argv)
    assert (code, "usage: train.py" in err) == (2, True)
    assert not (tmp_path / "ckpt").exists()


def test_as_a_program(config, tmp_path):
    """One real process: exit code 2 and one line for bad input, from another folder, without a traceback."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), str(config), "--set", "opt.epoch=3"], cwd=tmp_path,
                          env=environment, capture_output=True, text=True, check=False)
    assert "did you mean 'opt.epochs'" in one_error(done.returncode, done.stderr) or "'epochs'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
