"""Processes together: who speaks, what ends them all, evaluation, cached teachers, resuming."""
from __future__ import annotations

import ctypes
import datetime
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from distill_cases import RGB_ONLY, save_teacher, student, two_stream
from helpers import merged, run_script, write_config, write_data
from processes import run_processes

import eval as eval_script
import train
from libs.core.config import dump_yaml
from libs.core.errors import UserError
from libs.engine.inference.predict import merged as merged_detections
from libs.engine.runtime import lifeline
from libs.engine.runtime import world as world_module
from libs.engine.runtime.world import ALONE, World, launched
from libs.engine.training import saver
from libs.engine.training.trainer import Trainer
from libs.engine.training.training_state import save_state
from libs.utils.evaluation.predictions import Detections

SHORT = {"loader": {"batch_size": 1}, "opt": {"epochs": 2, "warmup": False}}


def at_step(number, action):
    """Let this process's trainer do something else at a step (from 0)."""
    step = Trainer.step

    def other(self, *batches):
        return action(self) if self.iteration == number else step(self, *batches)
    Trainer.step = other


def killed(rank):
    if rank == 1:
        at_step(2, lambda _: os.kill(os.getpid(), signal.SIGKILL))


def first_killed(rank):
    if rank == 0:
        at_step(2, lambda _: os.kill(os.getpid(), signal.SIGKILL))


def bad_file(rank):
    def refuse(_):
        raise UserError("x.npy: is bad; replace it")
    if rank == 1:
        at_step(1, refuse)


def bug(rank):
    def fail(_):
        raise ZeroDivisionError("a bug")
    if rank == 1:
        at_step(1, fail)


def bug_everywhere(_rank):
    bug(1)


def strayed(rank):
    def stray(trainer, path):
        with torch.no_grad():
            next(trainer.model.parameters())[0].add_(1e-6)
        save_state(trainer, path)
    if rank == 1:
        saver.save_state = stray


def frozen(rank):
    """Process 1 holds up all of its threads for a while, as a disk that hangs or a stopped process does."""
    lifeline.SILENCE_S = 1.0
    if rank == 1:
        at_step(1, lambda _: ctypes.PyDLL(None).sleep(8))


def told_to_stop(rank):
    """Process 1 alone gets a signal, in the middle of an epoch."""
    step = Trainer.step

    def other(self, *batches):
        if self.iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *batches)
    if rank == 1:
        Trainer.step = other


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize(("each", "workers", "codes", "wanted"), [
    (killed, 1, [1, -signal.SIGKILL], "error: process 1 of 2 has ended without a word"),
    (first_killed, 0, [-signal.SIGKILL, 1], "error: process 0 of 2 has ended without a word"),
    (frozen, 0, [1, 1], "error: process 1 of 2 has ended without a word"),
    (bad_file, 0, [2, 2], "error: x.npy: is bad; replace it\n"),
    (bug, 0, [1, 1], "ZeroDivisionError: a bug"), (bug_everywhere, 0, [1, 1], "ZeroDivisionError: a bug")])
def test_one_that_ends_takes_the_others_along_and_says_why_once(data, tmp_path, each, workers, codes, wanted):
    path = write_config(tmp_path / "a.yaml", data, **merged(SHORT, {"loader": {"num_workers": workers}}))
    ends = run_processes(2, train.main, "train.py", str(path), "--output", "x", each=each)
    assert [e.code for e in ends] == codes, [e.err for e in ends]
    shown = "".join(e.err for e in ends)
    assert shown.count(wanted) == 1, ends
    assert shown.count("Traceback") == ("ZeroDivisionError" in wanted)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_the_continuation_is_exact(data, tmp_path):
    path = write_config(tmp_path / "a.yaml", data, **SHORT)
    ends = run_processes(2, train.main, "train.py", str(path), "--output", "x", each=told_to_stop)
    assert [e.code for e in ends] == [75, 75], ends
    folder = next(tmp_path.glob("ckpt/*_x"))
    assert ends[0].err.count("after iteration 2, saved") == 1
    assert (folder / "interrupted.pth.tar").is_file()
    again = run_processes(2, train.main, "train.py", str(path), "--output", "x", "--resume", "auto")
    whole = run_processes(2, train.main, "train.py", str(path), "--output", "y")
    assert [e.code for e in again + whole] == [0] * 4, again
    assert not (folder / "interrupted.pth.tar").exists()
    one, other = (torch.load(tmp_path / "ckpt" / name / "epoch_002.pth.tar", weights_only=True) for name in ("a_x", "a_y"))
    for key in ("state_dict", "state_dict_ema"):
        assert all(torch.equal(value, other[key][name]) for name, value in one[key].items())
    records = [(folder.parent / name / "metrics.jsonl").read_text() for name in ("a_x", "a_y")]
    assert records[0] == records[1]


@pytest.mark.parametrize(("argv", "wanted"), [
    (["--set", "model.n_head=5"], "error: {path}: model.n_head"),
    (["--set", "devices=cuda"], "error: {path}: devices: 'cuda', but no CUDA device"),
    (["--set", "opt.accumulation_steps=2"], "{path}: loader.batch_size: 2 x 2 (opt.accumulation_steps) x 2 (processes) = 8"),
    (["--resume"], "train.py: error: argument --resume: expected one argument")])
def test_a_mistake_that_all_notice_is_shown_once(data, tmp_path, argv, wanted):
    path = write_config(tmp_path / "a.yaml", data)
    ends = run_processes(2, train.main, "train.py", str(path), *argv)
    assert [e.code for e in ends] == [2, 2]
    assert wanted.format(path=path) in ends[0].err + ends[1].err
    assert sum(e.err.count("error: ") for e in ends) == 1


def test_a_process_that_strays_is_noticed(data, tmp_path):
    path = write_config(tmp_path / "a.yaml", data, **SHORT)
    ends = run_processes(2, train.main, "train.py", str(path), each=strayed)
    assert [e.code for e in ends] == [0, 0], ends
    assert ends[0].err.startswith("warning: epoch 2: the weights of process 1 are not those of process 0")
    assert ends[0].err.count("\n") == 1


def test_variables_of_torchrun_must_be_complete(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match=r"^WORLD_SIZE is 2, .* LOCAL_RANK, .*, MASTER_PORT is not set"), launched():
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match=r"^WORLD_SIZE: 'two' is not a number"), launched():
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with launched() as world:
        assert world is ALONE


def test_a_process_that_finds_nobody_says_where_it_looked(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name, value in {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1, "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(world_module, "START_TIMEOUT", datetime.timedelta(seconds=1))
    with pytest.raises(UserError, match=rf"^process 1 of 2 has waited 0:00:01 for .* at 127\.0\.0\.1, port {port} "), launched():
        pass


def test_every_process_but_the_first_draws_its_own_numbers():
    seeds = {World(rank, 3).seed(5, epoch) for rank in range(3) for epoch in range(2)} | {World(1, 3).seed(6, 0)}
    assert len(seeds) == 7


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """(configuration file, folder of a run of one process)."""
    folder = tmp_path_factory.mktemp("trained")
    path = write_config(folder / "a.yaml", data, **merged(SHORT, {"val_split": ["training"]}))  # six videos, three batches
    ends = run_processes(1, train.main, "train.py", str(path), "--output", "x")
    assert ends[0].code == 0, ends[0].err
    return path, folder / "ckpt" / "a_x"


@pytest.mark.parametrize(("processes", "batch_size"), [(2, 1), (3, 4)])
def test_evaluation_gives_the_files_of_one_process(trained, tmp_path, processes, batch_size):
    """Batches of similar length with 4: one process then has nothing to do."""
    path, folder = trained
    argv = [str(path), str(folder), "--set", f"test_cfg.batch_size={batch_size}", "--output"]
    ends = run_processes(processes, eval_script.main, "eval.py", *argv, str(tmp_path / "several"))
    one = run_processes(1, eval_script.main, "eval.py", *argv, str(tmp_path / "one"))
    assert [e.code for e in ends + one] == [0] * (processes + 1), ends[0].err
    tables = [e.out[e.out.index("tIoU"):] for e in (ends[0], one[0])]
    assert tables[0] == tables[1]
    assert [e.out for e in ends[1:]] == [""] * (processes - 1)
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert len(names) == 5
    assert sorted(p.name for p in (tmp_path / "several").iterdir()) == names
    names.remove("environment.json")  # of each evaluation its own
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "several" / name).read_bytes(), name


def test_a_video_evaluated_twice_is_noticed():
    a, none, b = (Detections.from_arrays([v] * n, [0.0] * n, [1.0] * n, [0] * n, [0.5] * n)
                  for v, n in (("a", 2), ("", 0), ("b", 1)))
    assert list(merged_detections([b, none, a], ["a", "b"]).video_id) == ["a", "a", "b"]
    with pytest.raises(ValueError, match="more than one process"):
        merged_detections([a, a], ["a", "b"])


@pytest.mark.slow
def test_teacher_outputs_are_cached_once_and_are_those_of_one_process(data, tmp_path):
    teacher = save_teacher(two_stream(data, tmp_path), tmp_path / "teacher.pth.tar")
    made = []
    for processes in (1, 2):
        config = student(data, tmp_path, [teacher], model=RGB_ONLY, dataset={"crop_align": 4}, distill={
            "outputs": "cache", "cache_folder": str(tmp_path / f"cache{processes}")}, **merged(SHORT, {"opt": {"epochs": 1}}))
        path = tmp_path / f"s{processes}.yaml"
        path.write_text(dump_yaml(config))
        ends = run_processes(processes, train.main, "train.py", str(path))
        assert [e.code for e in ends] == [0] * processes, ends[0].err
        assert ends[0].out.count("computed the teacher outputs of 6 videos") == 1
        made.append({p.name: p.read_bytes() for p in (tmp_path / f"cache{processes}").rglob("*.npz")})
    assert len(made[0]) == 6
    assert made[0] == made[1]


def checkpoint(folder: Path, epoch: int):
    return torch.load(folder / f"epoch_{epoch:03d}.pth.tar", weights_only=True)


@pytest.mark.slow
def test_resuming_is_exact_with_as_many_processes_and_possible_with_others(data, tmp_path, capsys):
    path = write_config(tmp_path / "a.yaml", data, **merged(SHORT, {"opt": {"epochs": 3}, "train_cfg": {"dropout": 0.3}}))
    argv = ["train.py", str(path), "-c", "1", "--output"]
    assert [e.code for e in run_processes(2, train.main, *argv, "whole")] == [0, 0]
    whole, parts = tmp_path / "ckpt" / "a_whole", tmp_path / "ckpt" / "a_parts"
    states = checkpoint(whole, 1)["training"]
    assert not torch.equal(states["random"]["torch"], states["processes"]["random_of_others"][0]["torch"])
    begin = str(whole / "epoch_001.pth.tar")
    ends = run_processes(2, train.main, *argv, "parts", "--resume", begin)
    assert (ends[0].code, ends[0].err) == (0, "")
    for part in ("state_dict", "state_dict_ema"):
        a, b = checkpoint(whole, 3)[part], checkpoint(parts, 3)[part]
        assert all(torch.equal(a[k], b[k]) for k in a), part
    a, b = (checkpoint(folder, 3)["training"]["processes"]["random_of_others"][0]["torch"] for folder in (whole, parts))
    assert torch.equal(a, b)

    code, _, err = run_script(capsys, train.main, *argv, "one", "--resume", begin, "--set", "loader.batch_size=2")
    assert code == 0, err
    assert "loader.batch_size: 1 -> 2; the continuation is not exact" in err
    code, _, err = run_script(capsys, train.main, *argv, "other", "--resume", begin, "--set", "loader.batch_size=3")
    assert code == 2
    assert "iterations per epoch" in err


def test_a_loss_that_is_not_finite_stops_all_and_names_the_videos_of_all(data, tmp_path):
    path = write_config(tmp_path / "a.yaml", data, **merged(SHORT, {"loader": {"batch_size": 3}, "opt": {
        "learning_rate": 1e30, "type": "SGD", "epochs": 4}, "train_cfg": {"clip_grad_l2norm": -1}}))
    ends = run_processes(2, train.main, "train.py", str(path), "-p", "1")
    assert [e.code for e in ends] == [2, 2], ends
    assert (ends[0].err + ends[1].err).count("error: the loss is not finite at iteration ") == 1
    videos = (ends[0].err + ends[1].err).partition("videos of that batch: ")[2].partition(".")[0]
    assert sorted(videos.split(", ")) == ["t0", "t1", "t2", "t3", "t4", "t5"]
