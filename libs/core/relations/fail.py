"""How a check of a configuration fails: one error that names the file, the key and the remedy."""
from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from libs.core.errors import UserError
from libs.core.schema import Config

Fail = Callable[[str, str], NoReturn]  # (dotted key, message)
Where = Callable[[str], str]  # dotted key -> 'file: key'


def fail_at(config: Config, where: Where | None) -> Fail:
    """A function that raises UserError for a key; `where`: by default `config.source` and the key."""
    where = where or (lambda dotted: f"{config.source or 'config'}: {dotted}")

    def fail(dotted: str, message: str) -> NoReturn:
        brief = message if len(message) <= 1000 else f"{message[:500]} ... {message[-400:]}"  # the remedy comes last
        raise UserError(f"{where(dotted)}: {brief}")
    return fail
