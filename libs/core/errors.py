"""`UserError` for bad input, and `run_main`, which turns it into a line on stderr and an exit code.

Bad input (configuration, annotations, feature files, checkpoints, command line) raises `UserError` with a message that names
the file, the key, the value and the remedy.  Programming errors remain ordinary exceptions.
"""
from __future__ import annotations

import contextlib
import difflib
import errno
import reprlib
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from libs.core.names import folded

EXIT_BAD_INPUT = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped on request with all state saved; run the same command to continue
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells
EXIT_TERMINATED = 143  # 128 + SIGTERM
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT)  # by the system, no bug


class UserError(Exception):
    """Bad input; its message is shown without a traceback."""


class Stopped(Exception):
    """A run stopped on request and saved its state; the message is shown."""


class Terminated(BaseException):
    """Raised on SIGTERM, like KeyboardInterrupt on SIGINT."""


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' for the known name closest to `name`, or '' when none is close; case and spaces count little."""
    if len(str(name)) > 200:  # the comparison is quadratic in the length
        return ""
    names = [str(k) for k in known]
    match = [k for k in names if folded(k) == folded(str(name))] or difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""


def article(noun: str) -> str:
    """The noun with 'a' or 'an'."""
    return f"{'an' if noun[:1] in 'aeiouAEIO' else 'a'} {noun}"


def shown(value: object, limit: int = 80) -> str:
    """`repr` of a value from a file, cut to `limit` characters; nested and long values are abbreviated early."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxlong, brief.maxother = 4, limit, limit, limit
    brief.maxdict = brief.maxlist = brief.maxtuple = brief.maxset = brief.maxfrozenset = 6
    try:
        text = brief.repr(value)
    except (ValueError, RecursionError):  # an int of more digits than Python converts
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[:limit - 3] + "..."


def note(message: str) -> None:
    """Print one line on stderr immediately, for warnings that no filter may hide."""
    print(message, file=sys.stderr, flush=True)


def failure(error: BaseException) -> tuple[int, str | None]:
    """The exit code for an exception that ends a script, and the line to show (None: the traceback, "": nothing)."""
    if isinstance(error, UserError):
        return EXIT_BAD_INPUT, f"error: {error}"
    if isinstance(error, BrokenPipeError):
        return 141, ""  # the reader of the pipe (head, less) has exited
    if isinstance(error, OSError) and error.errno in REFUSED and error.filename is not None:
        remedy = "check permissions and free space, or name another path"
        return EXIT_BAD_INPUT, f"error: {error.filename}: {error.strerror}; {remedy}"
    if isinstance(error, Stopped):
        return EXIT_STOPPED, str(error)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, str(error) or "interrupted"
    if isinstance(error, Terminated):
        return EXIT_TERMINATED, str(error) or "terminated"
    if isinstance(error, SystemExit):
        return (error.code, "") if isinstance(error.code, int) else (int(error.code is not None), str(error.code or ""))
    return 1, None


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit with its code.

    A `UserError` becomes `error: ...` on stderr and exit code 2, `Stopped` its message and 75, Ctrl-C 130, SIGTERM 143.
    """
    warnings.showwarning = lambda message, category, *_args, **_kw: note(f"warning: {message}")
    try:
        with _sigterm_raises():
            code = main()
    except (UserError, Stopped, OSError, KeyboardInterrupt, Terminated) as error:
        code, text = failure(error)
        if text is None:
            raise
        if text:
            note(text)
        else:
            sys.stderr.close()
    sys.exit(code or 0)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM, so that temporary files are removed; an existing handler is kept."""
    def terminate(_number: int, _frame: Any) -> None:
        raise Terminated
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
