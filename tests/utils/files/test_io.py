"""Files that appear whole or not at all, and reading with one clear error."""
from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from pathlib import Path

import pytest

from libs.core.errors import UserError
from libs.utils.files import io


def test_write_replaces_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    io.write_atomic(path, lambda f: f.write(b"one"))
    io.write_atomic(path, lambda f: f.write(b"two"))
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        io.write_text_atomic(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_crash_while_writing_keeps_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def crash(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        io.write_atomic(path, crash)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_full_disk_keeps_the_previous_file_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def full(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"a\.bin: cannot be written \(No space left on device\); nothing was changed"):
        io.write_atomic(path, full)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_disk_that_is_full_at_the_final_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_handle: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(io.os, "fsync", fail)
    with pytest.raises(UserError, match="cannot be written"):
        io.write_atomic(tmp_path / "a.bin", lambda f: f.write(b"x"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        io.write_text_atomic(tmp_path / "file" / "below", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        io.write_text_atomic(tmp_path / "folder", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_json_round_trip_and_refused_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    io.write_json_atomic(path, {"é": [1, 2.5, None]})
    assert io.read_json(path, "results file") == {"é": [1, 2.5, None]}
    before = path.read_text(encoding="utf-8")
    assert json.loads(before) == {"é": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        io.write_json_atomic(path, {"a": float("nan")})
    assert path.read_text(encoding="utf-8") == before


def test_reading_errors_name_the_file_and_the_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json: no such annotation file; check the path"):
        io.read_json(tmp_path / "gone.json", "annotation file")
    with pytest.raises(UserError, match="is a folder"):
        io.read_text(tmp_path, "annotation file")
    bad = tmp_path / "bad.json"
    bad.write_text('{"a": 1,\n "b" 2}', encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.json: not valid JSON \(.*line 2 column 6\)"):
        io.read_json(bad, "annotation file")
    bad.write_bytes(b"{\xff}")
    with pytest.raises(UserError, match=r"is not a text file .* at byte 1"):
        io.read_json(bad, "annotation file")
    bad.write_bytes(b'\xef\xbb\xbf{"a": 1}')  # a byte-order mark, as some editors write
    assert io.read_json(bad, "annotation file") == {"a": 1}


def test_what_cannot_be_written_shows_before_the_work_and_nothing_is_left(tmp_path: Path) -> None:
    io.check_writable(tmp_path / "new" / "a.bin")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "new").mkdir()
    (tmp_path / "file").write_text("x")
    for path, told in ((tmp_path / "file" / "a", "cannot be written"), (tmp_path / "new", "is a folder")):
        with pytest.raises(UserError) as error:
            io.check_writable(path)
        assert str(error.value).startswith(str(path))
        assert told in str(error.value)
    io.check_writable(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


def test_a_full_disk_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr(io.os, "fsync", no_space)
    for path in (tmp_path / "a" / "b" / "c.bin", tmp_path / "kept" / "c.bin"):
        with pytest.raises(UserError, match=r"c\.bin: cannot be written \(No space left on device\)"):
            io.write_atomic(path, lambda f: f.write(b"x"))
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def no_space(_handle: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_folders_that_someone_else_uses_by_now_stay(tmp_path: Path) -> None:
    with contextlib.suppress(RuntimeError), io.made(tmp_path / "a" / "b" / "c") as missing:
        (tmp_path / "a" / "theirs").touch()
        raise RuntimeError
    assert missing == [tmp_path / "a" / "b" / "c", tmp_path / "a" / "b", tmp_path / "a"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["theirs"]


def test_the_longest_name_is_written_and_one_longer_is_refused_before_the_work(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)  # 254 bytes
    io.check_writable(path)
    io.write_text_atomic(path, "x")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    for refuse in (io.check_writable, lambda p: io.write_text_atomic(p, "x")):
        with pytest.raises(UserError, match=r"cannot be written \(File name too long\)"):
            refuse(tmp_path / "folder" / ("n" * 256))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
