"""The one exception for bad input, and the one place that turns it into a line on stderr and an exit code.

Anything a user can get wrong (config, annotation, feature file, checkpoint, command line) raises `UserError` with a
message that names the file, the key, the value and the remedy.  Programming errors stay ordinary exceptions.
"""
from __future__ import annotations

import difflib
import reprlib
import sys
import warnings
from collections.abc import Callable, Iterable

EXIT_BAD_INPUT = 2


class UserError(Exception):
    """Bad input: the message is complete as it stands and is shown without a traceback."""


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' for the known name closest to `name`, or '' when none is close."""
    if len(str(name)) > 200:  # comparing takes the square of the length
        return ""
    match = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""


def shown(value: object, limit: int = 80) -> str:
    """`repr` of a value from a file, cut to `limit` characters; what is nested or long is never written out whole."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxlong, brief.maxother = 4, limit, limit, limit
    brief.maxdict = brief.maxlist = brief.maxtuple = brief.maxset = brief.maxfrozenset = 6
    try:
        text = brief.repr(value)
    except (ValueError, RecursionError):  # an int of more digits than Python converts
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[:limit - 3] + "..."


def note(message: str) -> None:
    """Print one plain line on stderr at once (for warnings a user must see; never repeated by a filter)."""
    print(message, file=sys.stderr, flush=True)


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's `main`; a `UserError` becomes `error: ...` on stderr and exit code 2, Ctrl-C exit code 130."""
    warnings.showwarning = lambda message, category, *_args, **_kw: note(f"warning: {message}")
    try:
        code = main()
    except UserError as error:
        note(f"error: {error}")
        sys.exit(EXIT_BAD_INPUT)
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) has gone; nothing left to say
        sys.exit(141)
    except KeyboardInterrupt:
        note("interrupted")
        sys.exit(130)
    sys.exit(code or 0)
