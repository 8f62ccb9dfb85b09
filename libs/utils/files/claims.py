"""Claims: which of several processes, on any machines that share a folder, works on what.

    claims = Claims(folder)
    if claims.take("video_1"): ...; claims.release("video_1")
    claims.close()
"""
from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from libs.core.errors import UserError
from libs.core.files import entries
from libs.utils.files.io import made, remove_empty

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: no locks, everything else works
    fcntl = None

NAME = ".claims"
HELD = (errno.EACCES, errno.EAGAIN)  # of fcntl(2): another process has the lock


class Claims:
    """Claims on names, each held by one process until it releases it or ends, for any reason.

    A claim is a lock of the system on one byte of <folder>/.claims, which is there while processes work.  Without such locks
    (Windows, some file systems) every claim is granted.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._handle: int | None = None
        self._made: list[Path] = []  # folders that were missing

    def take(self, name: str, wait: bool = False) -> bool:
        """Whether this process holds the claim now; with `wait` once the process that holds it lets it go.

        Raises UserError if the folder cannot be written.
        """
        if fcntl is None:
            return True
        while True:
            handle = self._opened()
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, _place(name))
            except OSError as error:
                return error.errno not in HELD  # others: a file system without locks
            if os.fstat(handle).st_nlink:
                return True
            os.close(handle)  # the last process to leave has removed this file meanwhile
            self._handle = None

    def release(self, name: str) -> None:
        """Let others have the claim."""
        if fcntl is not None and self._handle is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, _place(name))

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Context with the claim, for which it waits."""
        self.take(name, wait=True)
        try:
            yield
        finally:
            self.release(name)

    def close(self) -> None:
        """Release all claims; the last process removes the file, and folders that hold nothing else and were made for it."""
        if fcntl is None or self._handle is None:
            return
        with contextlib.suppress(OSError):  # others hold claims
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.path.unlink()
            if self._made and not entries(self.path.parent):
                remove_empty(self._made)
        os.close(self._handle)
        self._handle = None

    def _opened(self) -> int:
        if self._handle is None:
            try:
                with made(self.path.parent) as missing:
                    self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                    self._made = self._made or missing
            except OSError as error:
                raise UserError(f"{self.path.parent}: cannot be written ({error.strerror or error}); choose another output "
                                "folder") from error
        return self._handle


def _place(name: str) -> int:
    """The byte of a name; seven bytes of a hash, so that no two names share one."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=7).digest(), "big")
