"""Generate the tables of docs/configuration.md and docs/config.schema.json from the schema.

    python -m libs.core.config_docs          rewrites both files; run it in the root of the repository
"""
from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any, Literal

from libs.core.coerce import UNIONS, describe, field_types, is_record
from libs.core.config import plain
from libs.core.published import DEFAULTS, ELSEWHERE, SPELLINGS
from libs.core.schema import Config
from libs.core.yaml_text import dump

PAGE, SCHEMA = Path("docs/configuration.md"), Path("docs/config.schema.json")
TABLES = "\n## Top level\n"  # where the generated part of the page begins
JSON_TYPES: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def markdown(page: str) -> str:
    """The page with new tables: one for the top level and one per section, rows in the schema's order."""
    return page.partition(TABLES)[0] + _tables(Config, "", "Top level") + _published()


def json_schema() -> str:
    """The text of config.schema.json: all keys as a JSON schema (draft 7), for completion in editors."""
    schema = _record_schema(Config)
    files = {"type": "array", "items": {"type": "string"}}
    bases = {"_base_": {"description": "files to inherit from, relative to this one", "anyOf": [{"type": "string"}, files]}}
    whole = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Configuration", **schema,
             "properties": bases | schema["properties"]}
    return json.dumps(whole, indent=1) + "\n"


def _tables(cls: Any, prefix: str, title: str) -> str:
    """The table of one section, then those of the sections inside it."""
    lines = ["", f"## {title}", "", "| key | accepts | default | meaning |", "| --- | --- | --- | --- |"]
    inside = ""
    for field in dataclasses.fields(cls):
        kind, meta, dotted = field_types(cls).get(field.name), field.metadata, prefix + field.name
        if is_record(kind):
            inside += _tables(kind, f"{dotted}.", f"`{dotted}`: {meta['doc']}")
        elif kind is not None:
            default = dump(plain(field.default)).removesuffix("\n").removesuffix("\n...")
            row = (f"`{dotted}`", describe(kind) + _limits(kind, meta), f"`{default}`", meta["doc"])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines) + "\n" + inside


def _published() -> str:
    """The table of what `model_name` and the published spellings stand for."""
    lines = ["", "## Published programs", "", "Files of these programs load unchanged where their keys have a meaning here.", "",
             "| in the file | means |", "| --- | --- |"]
    for name, values in DEFAULTS.items():
        meanings = ", ".join(f"`{dotted}: {dump(value).split()[0]}`" for dotted, value in values.items())
        lines.append(f"| `model_name: {name}` | {f'defaults {meanings}' if values else 'the defaults above'} |")
    for dotted, (theirs, ours) in SPELLINGS.items():
        lines.append(f"| `{dotted}: {theirs}` | {ours} |")
    for dotted, remedy in ELSEWHERE.items():
        lines.append(f"| `{dotted}` | refused: {remedy} |")
    return "\n".join(lines) + "\n"


def _limits(kind: Any, meta: Any) -> str:
    literal = next((k for k in (kind, *typing.get_args(kind)) if typing.get_origin(k) is Literal), None)
    if literal:
        return ": " + " or ".join(f"`{choice}`" for choice in typing.get_args(literal))
    signs = {"low": ">= {}", "above": "> {}", "high": "<= {}"}
    parts = [sign.format(meta[name]) for name, sign in signs.items() if meta[name] is not None]
    return f" ({', '.join(parts + ['odd'] * bool(meta['odd']))})" if parts or meta["odd"] else ""


def _record_schema(cls: type) -> dict[str, Any]:
    properties = {}
    for field in dataclasses.fields(cls):
        if kind := field_types(cls).get(field.name):
            about = {"description": field.metadata["doc"]}
            if is_record(kind):  # an empty section sets nothing
                properties[field.name] = about | _record_schema(kind) | {"type": ["object", "null"]}
            else:
                properties[field.name] = about | {"default": plain(field.default)} | _value_schema(kind, field.metadata)
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _value_schema(kind: Any, meta: Any) -> dict[str, Any]:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in UNIONS:
        return {"anyOf": [_value_schema(a, meta) for a in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _value_schema(args[1], meta)}
    if is_record(kind):
        required = [f.name for f in dataclasses.fields(kind) if "(required)" in f.metadata["doc"]]
        return _record_schema(kind) | {"required": required}
    if origin is tuple:
        schema: dict[str, Any] = {"type": "array", "items": _value_schema(args[0], meta)}
        if args[-1] is not Ellipsis:
            return schema | {"minItems": len(args), "maxItems": len(args)}
        return {"anyOf": [{"type": "string"}, schema]} if args[0] is str else schema  # one string is a list of one
    names = {"low": "minimum", "above": "exclusiveMinimum", "high": "maximum"} if kind in (int, float) else {}
    return {"type": JSON_TYPES[kind]} | {to: meta[name] for name, to in names.items() if meta[name] is not None}


if __name__ == "__main__":
    PAGE.write_text(markdown(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    SCHEMA.write_text(json_schema(), encoding="utf-8")
