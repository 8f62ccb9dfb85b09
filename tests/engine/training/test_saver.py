"""A run that is stopped by a signal, saved by the clock or killed goes on to the very files of an undisturbed one."""
from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from helpers import data_config, identical, write_data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from libs.core.errors import Stopped, UserError
from libs.engine.runs.checkpoint import load_checkpoint, newest_checkpoint
from libs.engine.training import fit as fit_module
from libs.engine.training import saver as saving
from libs.engine.training import training_state
from libs.engine.training.fit import FitOptions, fit
from libs.engine.training.trainer import Trainer

CPU = torch.device("cpu")
NOISY = {"train_cfg": {"dropout": 0.2, "droppath": 0.3, "ema_warmup": True}, "opt": {"epochs": 2}}  # 3 epochs of 3 steps
OPTIONS = {"print_every": 2, "eval_every": 1, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(data, folder)
    return folder / "run"


def run(data, folder: Path, workers: int = 0, **options):
    """Train in <folder>/run, as the command with --resume auto would."""
    config = data_config(data, folder, loader={"num_workers": workers}, **NOISY)
    for path in sorted((folder / "run").glob("logs/*")):  # TensorBoard goes by the second in the name, and this is the same one
        kind, second, rest = path.name.split(".tfevents.")[0], *path.name.split(".tfevents.")[1].split(".", 1)
        path.rename(path.with_name(f"{kind}.tfevents.{int(second) - 60}.{rest}"))
    fit(config, folder / "run", CPU, FitOptions(**{"resume": "auto", **OPTIONS, **options}))


@functools.cache
def undisturbed(path: Path):
    """`content` of a file that nobody changes."""
    return content(path)


def content(path: Path):
    found = torch.load(path, weights_only=True)
    for key in ("output_folder", "loader", "source"):
        found["training"]["config"].pop(key, None)
    return found


def points(folder: Path) -> list[tuple[str, int, float]]:
    """Every scalar that TensorBoard shows; no scalar and no picture has two values at a step."""
    events = EventAccumulator(str(folder / "logs"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    for tag in events.Tags()["images"]:
        steps = [e.step for e in events.Images(tag)]
        assert steps == sorted(set(steps)), tag
    found = [(tag, e.step, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
    assert len({(tag, step) for tag, step, _ in found}) == len(found)
    return sorted(found)


def assert_same(folder: Path, whole: Path):
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.iterdir()}
    for path in whole.glob("*.tar"):
        assert identical(content(folder / path.name), undisturbed(path)) == [], path.name
    assert (folder / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert points(folder) == points(whole)


def signal_at(monkeypatch, owner, name: str, call: int, number: int, after: bool = False):
    """A signal before (or after) the n-th call (from 1) of a method."""
    function, calls = getattr(owner, name), []

    def wrapper(*args, **kwargs):
        calls.append(1)
        if len(calls) == call and not after:
            os.kill(os.getpid(), number)
        result = function(*args, **kwargs)
        if len(calls) == call and after:
            os.kill(os.getpid(), number)
        return result
    monkeypatch.setattr(owner, name, wrapper)


@pytest.mark.parametrize(("number", "owner", "name", "call", "saved", "epoch", "steps", "unlogged"), [
    (signal.SIGTERM, Trainer, "step", 1, "interrupted.pth.tar", 0, 1, 1),  # with a log line pending
    (signal.SIGINT, Trainer, "step", 5, "interrupted.pth.tar", 1, 2, 0),
    (signal.SIGTERM, Trainer, "step", 6, "interrupted.pth.tar", 1, 3, 0),  # the last step: the evaluation is still to be done
    (signal.SIGINT, fit_module, "predict", 2, "interrupted.pth.tar", 1, 3, 0),  # in the middle of an evaluation
    (signal.SIGTERM, fit_module, "record_scores", 1, "interrupted.pth.tar", 1, 0, 0),  # after one, where no checkpoint is due
    (signal.SIGTERM, fit_module, "record_scores", 2, "epoch_002.pth.tar", 2, 0, 0),  # and where one is
    (signal.SIGINT, training_state, "save_checkpoint", 2, "epoch_002.pth.tar", 2, 0, 0),  # while saving, after best.pth.tar
])
def test_stopped_by_a_signal(data, whole, tmp_path, monkeypatch, owner, name, call, saved, epoch, steps, unlogged, number):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, owner, name, call, number)
        with pytest.raises(Stopped) as stop:
            run(data, tmp_path, workers=2 if name == "step" and call == 5 else 0)
    by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert str(stop.value) == (f"stopped by {by} after iteration {3 * epoch + steps}, saved {folder / saved}; the same command "
                               "with --resume auto goes on from there")
    found = load_checkpoint(folder / saved)
    assert (found.epoch, found.training["data_order"]["next_step"], len(found.training["unlogged"])) == (epoch, steps, unlogged)
    assert newest_checkpoint(folder).path == folder / saved
    torch.manual_seed(99)
    run(data, tmp_path)
    assert_same(folder, whole)
    starts = json.loads((folder / "environment.json").read_text())["starts"]
    assert [(s["resumed_from"], s["iteration"]) for s in starts] == [(None, 0), (str(folder / saved), 3 * epoch + steps)]


def test_a_signal_in_the_last_epoch_s_saving_does_not_stop_what_is_done(data, whole, tmp_path, monkeypatch):
    signal_at(monkeypatch, saving.Saver, "after_epoch", 3, signal.SIGTERM)
    run(data, tmp_path)
    assert_same(tmp_path / "run", whole)


def test_a_second_ctrl_c_stops_at_once_and_harms_nothing(data, whole, tmp_path, monkeypatch):
    write = os.fsync

    def twice(handle):
        if "interrupted" in os.readlink(f"/proc/self/fd/{handle}"):
            os.kill(os.getpid(), signal.SIGINT)
        write(handle)
    with monkeypatch.context() as patch:
        signal_at(patch, Trainer, "step", 8, signal.SIGINT)
        patch.setattr(os, "fsync", twice)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path)
    assert not list((tmp_path / "run").glob("*interrupted*"))
    run(data, tmp_path)
    assert_same(tmp_path / "run", whole)


def test_saved_by_the_clock_at_every_step(data, whole, tmp_path, monkeypatch):
    """Then killed: what was logged and written after that is taken back."""
    class Killed(BaseException):
        pass
    sizes = []
    with monkeypatch.context() as patch:
        save = saving.Saver.after_step

        def watched(self):
            save(self)
            sizes.append(load_checkpoint(self.log.folder / "interrupted.pth.tar").training["iteration"])
            if self.trainer.iteration == 5:
                self.interruption._seconds = None  # from here on the file stays as it is
        patch.setattr(saving.Saver, "after_step", watched)
        record = fit_module.record_scores

        def killed(run, scores):
            record(run, scores)
            if run.trainer.epoch == 2:
                raise Killed  # the evaluation is logged, its checkpoint is not written
        patch.setattr(fit_module, "record_scores", killed)
        with pytest.raises(Killed):
            run(data, tmp_path, save_minutes=1e-9)
    assert sizes == [1, 2, 3, 4, 5, 5]
    (tmp_path / "run" / ".epoch_002.pth.tar.abcd_123.tmp").write_bytes(b"half")
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:
        file.write(b'{"iteration": 6, "ep')
    run(data, tmp_path)
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("kind", ["cut", "flipped", "zeroed"])
def test_a_damaged_newest_checkpoint_is_passed_over_in_one_line(data, tmp_path, capsys, kind, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, Trainer, "step", 7, signal.SIGTERM)
        with pytest.raises(Stopped):
            run(data, tmp_path, checkpoint_every=1)
    folder = tmp_path / "run"
    path = folder / "interrupted.pth.tar"
    damaged = bytearray(path.read_bytes())
    if kind == "cut":
        del damaged[-3000:]
    elif kind == "flipped":
        damaged[len(damaged) // 2] ^= 16
    else:
        damaged[4096:8192] = bytes(4096)
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"interrupted\.pth\.tar: .*damaged or truncated"):
        run(data, tmp_path, resume=str(path))
    capsys.readouterr()
    run(data, tmp_path, checkpoint_every=1)
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert err.startswith(f"warning: {path}: cannot be read as a checkpoint (")
    assert err.endswith(f"; going on from {folder / 'epoch_002.pth.tar'}\n")
    assert "resumed after epoch 2" in out
    assert not path.exists()  # a newer one is there


@pytest.mark.parametrize("change", [{"data_order": {"next_step": 4}}, {"data_order": {"next_step": "x"}},
                                    {"unlogged": [{"a": torch.zeros(1)}]}, {"unlogged": [{"a": 1}]}, {"unlogged": 3}])
def test_a_place_inside_an_epoch_that_cannot_be(data, whole, tmp_path, change):
    found = torch.load(whole / "epoch_002.pth.tar", weights_only=True)
    found["training"].update(change)
    torch.save(found, tmp_path / "a.pth.tar")
    with pytest.raises(UserError, match=r"a\.pth\.tar: training: data_order\.next_step or unlogged do not say where"):
        run(data, tmp_path, resume=str(tmp_path / "a.pth.tar"))


def test_nothing_whole_is_an_error(data, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("interrupted.pth.tar", "epoch_002.pth.tar"):
        (tmp_path / "run" / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"run: no checkpoint there is whole, .*interrupted\.pth\.tar: .* remove them"):
        run(data, tmp_path)
    with pytest.raises(UserError, match=r"holds checkpoints up to epoch 2; go on with --resume auto"):
        run(data, tmp_path, resume=None)
    (tmp_path / "run" / "epoch_002.pth.tar").unlink()
    with pytest.raises(UserError, match=r"holds interrupted\.pth\.tar; go on with --resume auto"):
        run(data, tmp_path, resume=None)


def test_keep_leaves_the_newest_and_the_best(data, whole, tmp_path):
    folder = tmp_path / "run"
    run(data, tmp_path, checkpoint_every=1, keep=2)
    assert sorted(p.name for p in folder.glob("*.tar")) == ["best.pth.tar", "epoch_002.pth.tar", "epoch_003.pth.tar"]


def test_what_a_killed_run_did_not_come_to_remove(data, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(saving.Saver, "_remove_older", lambda self: None)
        run(data, tmp_path, checkpoint_every=1, keep=1)
    (folder / "interrupted.pth.tar").write_bytes((folder / "epoch_001.pth.tar").read_bytes())
    run(data, tmp_path, resume=str(folder / "epoch_003.pth.tar"), keep=1)
    assert (folder / "interrupted.pth.tar").exists()  # a named one may be older than the others on purpose
    run(data, tmp_path, keep=1)
    assert sorted(p.name for p in folder.glob("*.tar")) == ["best.pth.tar", "epoch_003.pth.tar"]


def test_keep_removes_nothing_before_a_newer_one_is_written_and_nothing_later(data, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    run(data, tmp_path, checkpoint_every=1)
    present = []
    save = training_state.save_checkpoint

    def watched(path, *content):
        present.append((path.name, sorted(p.name for p in folder.glob("epoch_*"))))
        save(path, *content)
    monkeypatch.setattr(training_state, "save_checkpoint", watched)
    capsys.readouterr()
    run(data, tmp_path, resume=str(folder / "epoch_001.pth.tar"), checkpoint_every=1, keep=1)
    assert f"note: {folder}: holds later checkpoints, up to epoch_003.pth.tar" in capsys.readouterr().err
    assert dict(present)["epoch_002.pth.tar"] == ["epoch_001.pth.tar", "epoch_002.pth.tar", "epoch_003.pth.tar"]
    assert dict(present)["epoch_003.pth.tar"] == ["epoch_002.pth.tar", "epoch_003.pth.tar"]
    assert [p.name for p in folder.glob("epoch_*")] == ["epoch_003.pth.tar"]


def test_damaged_log_lines_are_left_out_with_a_warning(data, whole, tmp_path, capsys):
    run(data, tmp_path)
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"\0" * 40 + b"\n", b"\xff{}\n", b"7\n", b"{}\n", *lines[1:], b'{"torn": ']))
    capsys.readouterr()
    run(data, tmp_path)
    assert f"warning: {path}: 4 lines are damaged and left out" in capsys.readouterr().err
    assert path.read_bytes() == b"".join(lines)


def test_a_torn_tensorboard_record_is_passed_over(data, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, Trainer, "step", 5, signal.SIGTERM)
        with pytest.raises(Stopped):
            run(data, tmp_path)
    file = next((tmp_path / "run" / "logs").iterdir())
    file.write_bytes(file.read_bytes() + b"\x20\0\0\0\0\0\0\0torn")
    run(data, tmp_path)
    assert points(tmp_path / "run") == points(whole)
