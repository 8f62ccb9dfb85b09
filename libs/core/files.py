"""Reading a text file, with one clear error instead of an OSError."""
from __future__ import annotations

import os
from pathlib import Path

from libs.core.errors import UserError


def read_text(path: str | os.PathLike, what: str) -> str:
    """The UTF-8 text of a file; UserError names `what` it should be when it is missing or unreadable."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such {what}; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder, not a {what}; name the file itself") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file ({error.reason} at byte {error.start}); expected a {what}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a {what}") from error
