"""Claims are exclusive between processes, end with them, and leave no file behind."""
from __future__ import annotations

import subprocess
import sys

import pytest

from libs.core.errors import UserError
from libs.utils.files import claims
from libs.utils.files.claims import NAME, Claims

pytestmark = pytest.mark.skipif(claims.fcntl is None, reason="no locks on this system")
HOLDER = """
import sys, pathlib, libs.utils.files.claims as c
claims = c.Claims(pathlib.Path(sys.argv[1]))
print(claims.take("a"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the claim "a" of tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline().strip() == b"True"
    yield process
    process.kill()
    process.communicate()


def test_another_process_has_it_until_it_is_killed(holder, tmp_path):
    ours = Claims(tmp_path)
    assert not ours.take("a")
    assert ours.take("b")
    ours.close()
    assert (tmp_path / NAME).exists()  # the other process still works there
    holder.kill()
    holder.communicate()
    assert ours.take("a", wait=True)
    ours.close()
    assert not (tmp_path / NAME).exists()


def test_a_file_that_the_last_process_has_removed_is_made_again(tmp_path):
    ours = Claims(tmp_path)
    assert ours.take("a")
    ours.release("a")
    (tmp_path / NAME).unlink()  # as another process does at its end
    assert ours.take("a")
    assert (tmp_path / NAME).exists()
    ours.close()


def test_a_new_folder_goes_where_nothing_was_written(tmp_path):
    ours = Claims(tmp_path / "new" / "folder")
    with ours.held("a"):
        assert (tmp_path / "new" / "folder").exists()
    ours.close()
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x: cannot be written .*choose another"):
        Claims(tmp_path / "file" / "x").take("a")


def test_without_locks_every_claim_is_granted(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "fcntl", None)
    ours = Claims(tmp_path)
    assert ours.take("a")
    ours.release("a")
    ours.close()
