"""docs/configuration.md, generated from the schema.

    python -m libs.core.config_docs > docs/configuration.md
"""
from __future__ import annotations

import dataclasses
from typing import Any

from libs.core.coerce import describe, field_types
from libs.core.schema import Config
from libs.core.yaml_text import dump

INTRODUCTION = """\
# Configuration

Written by `python -m libs.core.config_docs > docs/configuration.md`; edit `libs/core/schema.py` instead.

A configuration is a YAML file over the defaults below.

- `_base_: other.yaml` (or a list of files, later ones win) inherits; the path is relative to the file that names it. Mappings
  merge, lists are replaced, an empty section changes nothing.
- `--set dotted.key=value` on the command line overrides, with the value in YAML: `--set opt.epochs=10`,
  `--set model.n_mha_win_size=[7,7,7,7,7,-1]`, `--set dataset.file_prefix=` (nothing: null).
- Unknown keys, wrong types and impossible combinations are refused with the file, the key, the value and what to write.
- Numbers: `1e-4` and `6.0` for a whole number are fine; a quoted number is text. One string stands for a list of one.
- Relative paths are relative to the folder that the program runs in.
- Every run saves its full resolved configuration; that file loads again.

Keys marked "(ours)" do not exist in the published ActionFormer configuration; files in its format load unchanged.
"""


def markdown() -> str:
    """The whole page: one table for the top level and one per section, rows in the schema's order."""
    return INTRODUCTION + "".join(_table(cls, name, doc) for cls, name, doc in _sections(Config, "", "Top level"))


def _sections(cls: type, name: str, doc: str) -> list[tuple[type, str, str]]:
    found = [(cls, name, doc)]
    for field in dataclasses.fields(cls):
        kind = field_types(cls).get(field.name)
        if dataclasses.is_dataclass(kind):
            found += _sections(kind, f"{name}{field.name}.", field.metadata["doc"])
    return found


def _table(cls: type, prefix: str, doc: str) -> str:
    title = f"`{prefix[:-1]}`: {doc}" if prefix else doc
    lines = ["", f"## {title}", "", "| key | accepts | default | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(cls):
        kind = field_types(cls).get(field.name)
        if kind is None or dataclasses.is_dataclass(kind):
            continue
        meta = field.metadata
        row = (f"`{prefix}{field.name}`", describe(kind) + _limits(meta), f"`{_yaml(field.default)}`", meta["doc"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines) + "\n"


def _limits(meta: Any) -> str:
    if meta["choices"]:
        return ": " + " or ".join(f"`{c}`" for c in meta["choices"])
    low, high, above = meta["low"], meta["high"], meta["above"]
    parts = [f">= {low}"] if low is not None else [f"> {above}"] if above is not None else []
    parts += [f"<= {high}"] if high is not None else []
    return f" ({', '.join(parts)})" if parts else ""


def _yaml(value: Any) -> str:
    return dump(_lists(value)).removesuffix("\n").removesuffix("\n...")


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, tuple) else value


if __name__ == "__main__":
    print(markdown(), end="")
