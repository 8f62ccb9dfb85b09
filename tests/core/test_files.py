"""What lies at a path: nothing, where a name is too long; one error, where the system does not say."""
from __future__ import annotations

import errno
import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.core import files
from libs.core.errors import UserError, failure
from libs.core.files import read_text

ASK = (files.exists, files.is_file, files.is_folder)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder without permissions; root, whom they do not bind, becomes another user meanwhile."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o700)


def test_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("x")
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert [[ask(tmp_path / name) for ask in ASK] for name in ("b", "a", "link")] == [
        [True, True, False], [True, False, True], [True, False, True]]
    assert [path.name for path in files.entries(tmp_path)] == ["a", "b", "link"]


@pytest.mark.parametrize("name", ["gone", "n" * 300, "file/below", "a\0b", "loop"])
def test_nothing_can_be_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert [ask(tmp_path / name) for ask in ASK] == [False] * 3
    assert files.entries(tmp_path / name) == []


def test_without_permission(locked: Path) -> None:
    for ask in ASK:
        with pytest.raises(UserError, match=f"{locked}/x: cannot be reached .Permission denied.; check the permissions"):
            ask(locked / "x")
    with pytest.raises(UserError, match=f"{locked}: cannot be reached"):
        files.entries(locked)


def test_a_disk_that_fails_is_not_taken_for_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_path: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(files.os, "stat", broken)
    with pytest.raises(UserError, match="x: cannot be reached"):
        files.exists(tmp_path / "x")


def test_system_files_are_optional(tmp_path: Path) -> None:
    (tmp_path / "limit").write_text("7\n")
    assert files.system_text(tmp_path / "limit") == "7\n"
    assert files.system_text(tmp_path / "gone") == files.system_text(tmp_path) == ""


def test_what_the_system_refuses_anywhere_is_one_line_and_other_failures_keep_their_traceback() -> None:
    code, text = failure(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/x"))
    assert (code, text) == (2, "error: /data/x: Permission denied; check permissions and free space, or name another path")
    for bug in (FileNotFoundError(errno.ENOENT, "gone", "/data/x"), OSError(errno.EACCES, "no name"), ValueError("x")):
        assert failure(bug) == (1, None)


def test_a_compressed_file_is_to_be_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(gzip.compress(b"video,start,end,label\n" * 20))
    with pytest.raises(UserError, match=r"labels\.csv: is compressed \(gzip\); unpack it: gunzip "):
        read_text(path, "CSV file")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"labels\.csv: is not a text file .*expected a CSV file"):
        read_text(path, "CSV file")
