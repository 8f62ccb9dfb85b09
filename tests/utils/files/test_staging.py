"""Several files that appear together: a failure leaves neither a half nor a folder."""
from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from libs.core.errors import UserError
from libs.utils.files import staging


@pytest.mark.parametrize("make", [lambda out: staging.staged(out, ["a"]), staging.staged_folder])
def test_a_full_disk_leaves_no_folder_behind(tmp_path: Path, make) -> None:
    def fill() -> None:
        with make(tmp_path / "new" / "out") as work:
            (work / "a").write_text("x")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match=r"new/out: cannot be written \(No space left"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_rename_that_fails_is_undone_with_the_folders_made_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("old")
    rename = staging.os.rename

    def refuse_b(source: Path, target: Path) -> None:
        if target.name == "b":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)
    def replace() -> None:
        with staging.staged(tmp_path, ["a", "sub/b"]) as work:
            (work / "sub").mkdir()
            for name in ("a", "sub/b"):
                (work / name).write_text("new")
    monkeypatch.setattr(staging.os, "rename", refuse_b)
    with pytest.raises(UserError, match="cannot be written"):
        replace()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "old"}
