"""The one exception for bad input, and the one place that turns it into a line on stderr and an exit code.

Anything a user can get wrong (config, annotation, feature file, checkpoint, command line) raises `UserError` with a
message that names the file, the key, the value and the remedy.  Programming errors stay ordinary exceptions.
"""
from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Callable, Iterable

EXIT_BAD_INPUT = 2


class UserError(Exception):
    """Bad input: the message is complete as it stands and is shown without a traceback."""


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' for the known name closest to `name`, or '' when none is close."""
    match = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""


def note(message: str) -> None:
    """Print one plain line on stderr at once (for warnings a user must see; never repeated by a filter)."""
    print(message, file=sys.stderr, flush=True)


def failure(error: BaseException) -> tuple[int, str | None]:
    """The exit code of an exception that ends a script, and the line that it shows; None: its traceback."""
    if isinstance(error, UserError):
        return EXIT_BAD_INPUT, f"error: {error}"
    if isinstance(error, BrokenPipeError):
        return 141, ""  # the reader (head, less) has gone; nothing left to say
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, SystemExit):
        return (error.code, "") if isinstance(error.code, int) else (int(error.code is not None), str(error.code or ""))
    return 1, None


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's `main`; a `UserError` becomes `error: ...` on stderr and exit code 2, Ctrl-C exit code 130."""
    warnings.showwarning = lambda message, category, *_args, **_kw: note(f"warning: {message}")
    try:
        code = main()
    except (UserError, BrokenPipeError, KeyboardInterrupt) as error:
        code, text = failure(error)
        if text:
            note(text)
        else:
            sys.stderr.close()
    sys.exit(code or 0)
