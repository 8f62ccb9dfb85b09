"""A lock file that lets one process at a time write to a folder."""
from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from types import ModuleType

from libs.core.errors import UserError, note
from libs.core.files import entries, is_folder
from libs.utils.files.claims import HELD, fcntl
from libs.utils.files.io import made, remove_empty

NAME = ".lock"
WAIT_S, POLL_S = 60.0, 0.2  # a process that is stopping may still be saving


class FolderLock:
    """A lock on <folder>/.lock, released when its process ends for any reason; no effect on file systems without locks.

    The file contains the process id.  Forked processes do not hold the lock (as they would with `flock`).
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._handle: int | None = None
        self._made: list[Path] = []  # folders that were missing

    def take(self, create: bool = False) -> None:
        """Take the lock unless this process holds it.  A missing folder is created with `create`, otherwise ignored.

        Waits up to WAIT_S for another process.  UserError if that still holds the lock, or the folder cannot be written.
        """
        if self._handle is not None or fcntl is None or not (create or is_folder(self.path.parent)):
            return
        self._handle = self._locked(fcntl)
        if not os.fstat(self._handle).st_nlink:  # the process that held it has removed it on leaving
            os.close(self._handle)
            self._handle = self._locked(fcntl)

    def release(self) -> None:
        """Release the lock; a folder that was made for it goes too if nothing has been written there."""
        if self._handle is None:
            return
        if self._made and entries(self.path.parent) == [self.path]:
            with contextlib.suppress(OSError):
                self.path.unlink()
            remove_empty(self._made)
        os.close(self._handle)
        self._handle = None

    def _locked(self, fcntl: ModuleType) -> int:
        """The lock file, open and locked."""
        try:
            with made(self.path.parent) as self._made:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"{self.path.parent}: cannot be written ({error.strerror or error}); choose another output "
                            "folder") from error
        try:
            self._wait(fcntl, handle)
            os.truncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode("ascii"), 0)
        except OSError:
            pass  # full disk, or a file system without locks: go on without
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _wait(self, fcntl: ModuleType, handle: int) -> None:
        end = time.monotonic() + WAIT_S
        noted = False
        while True:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in HELD:
                    raise
            holder = f"process {os.pread(handle, 20, 0).decode('ascii', 'replace').strip() or '?'}"
            if time.monotonic() >= end:
                raise UserError(f"{self.path.parent}: {holder} is writing there; wait for it or stop it, or choose another "
                                "--output")
            if not noted:
                note(f"{self.path.parent}: {holder} is writing there; waiting up to {WAIT_S:.0f} s for it to end")
                noted = True
            time.sleep(POLL_S)
