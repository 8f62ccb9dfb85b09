"""One writer at a time in a folder."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from libs.core.errors import UserError
from libs.engine.runs import lock
from libs.engine.runs.lock import FolderLock

ROOT = Path(__file__).resolve().parents[3]
HOLD = ("import sys; from pathlib import Path; from libs.engine.runs.lock import FolderLock; x = FolderLock(Path(sys.argv[1])); "
        "x.take(); print('held', flush=True); sys.stdin.read()")


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_another_process_waits_and_then_gives_up(tmp_path, holder, monkeypatch, capsys):
    monkeypatch.setattr(lock, "WAIT_S", 0.1)
    mine = FolderLock(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}: process {holder.pid} is writing there; wait for it or stop it"):
        mine.take()
    assert capsys.readouterr().err.count(f"process {holder.pid} is writing there; waiting up to") == 1


def test_a_killed_holder_lets_go_while_another_waits(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(lock.time, "sleep", lambda _s: holder.kill())
    mine = FolderLock(tmp_path)
    mine.take()
    assert (tmp_path / ".lock").read_text() not in ("", str(holder.pid))
    mine.release()
    mine.release()


def test_a_missing_folder_is_made_only_when_asked(tmp_path):
    mine = FolderLock(tmp_path / "run")
    mine.take()
    assert not (tmp_path / "run").exists()
    mine.take(create=True)
    assert (tmp_path / "run" / ".lock").exists()
    mine.release()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        FolderLock(tmp_path / "file" / "run").take(create=True)


def test_a_file_system_without_locks_is_let_pass(tmp_path, monkeypatch):
    def none(*_args):
        raise OSError(38, "Function not implemented")
    monkeypatch.setattr(lock.fcntl, "lockf", none)
    mine = FolderLock(tmp_path)
    mine.take()
    mine.release()


def test_a_folder_made_for_the_lock_goes_with_it_unless_it_is_used(tmp_path):
    for used in (False, True):
        mine = FolderLock(tmp_path / "new" / "run")
        mine.take(create=True)
        if used:
            (tmp_path / "new" / "run" / "config.yaml").touch()
        mine.release()
        assert (tmp_path / "new").exists() is used
    assert sorted(p.name for p in (tmp_path / "new" / "run").iterdir()) == [".lock", "config.yaml"]
    again = FolderLock(tmp_path / "new" / "run")
    again.take()
    (tmp_path / "new" / "run" / "config.yaml").unlink()
    again.release()
    assert (tmp_path / "new" / "run" / ".lock").exists()  # that folder was not its own


def test_who_waited_for_a_lock_that_was_removed_takes_a_new_one(tmp_path, monkeypatch):
    taken = []

    def wait(self, _fcntl, handle):
        taken.append(handle)
        if len(taken) == 1:  # its holder ends here
            (tmp_path / ".lock").unlink()
    monkeypatch.setattr(FolderLock, "_wait", wait)
    mine = FolderLock(tmp_path)
    mine.take()
    assert len(taken) == 2
    assert (tmp_path / ".lock").read_text().isdigit()
    mine.release()
