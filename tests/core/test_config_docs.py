"""docs/configuration.md and docs/config.schema.json say what the schema says."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from libs.core import config_docs
from libs.core.config import to_dict
from libs.core.schema import Config
from libs.core.yaml_text import parse

ROOT = Path(__file__).resolve().parents[2]
WRITE = "run: python -m libs.core.config_docs"
TYPES = {"object": dict, "array": list, "string": str, "null": type(None), "integer": int, "number": (int, float)}


def is_a(value: Any, kind: str) -> bool:
    return isinstance(value, bool) if kind == "boolean" else isinstance(value, TYPES[kind]) and not isinstance(value, bool)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is valid: the part of JSON Schema that ours uses."""
    if "anyOf" in schema:
        return any(fits(value, s) for s in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(is_a(value, kind) for kind in kinds):
        return False
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema["additionalProperties"]
        return set(schema.get("required", ())) <= set(value) and all(
            fits(v, known[k]) if k in known else others and fits(v, others) for k, v in value.items())
    if isinstance(value, list):
        return (schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
                and all(fits(v, schema["items"]) for v in value))
    if is_a(value, "number"):
        return (schema.get("minimum", value) <= value <= schema.get("maximum", value)
                and value > schema.get("exclusiveMinimum", value - 1))
    return True


def test_both_files_are_current() -> None:
    page = (ROOT / config_docs.PAGE).read_text(encoding="utf-8")
    assert page == config_docs.markdown(page), WRITE
    assert (ROOT / config_docs.SCHEMA).read_text(encoding="utf-8") == config_docs.json_schema(), WRITE


def test_the_schema_accepts_the_defaults_and_every_shipped_file() -> None:
    schema = json.loads(config_docs.json_schema())
    assert fits(to_dict(Config()), schema)
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert fits(parse(path.read_text(encoding="utf-8"), str(path)), schema), path


@pytest.mark.parametrize(("values", "right"), [
    ({"_base_": ["a.yaml", "b.yaml"], "opt": None}, True), ({"_base_": 3}, False), ({"opt": {"epoch": 3}}, False),
    ({"opt": {"epochs": -1}}, False), ({"opt": {"learning_rate": 0}}, False), ({"opt": {"type": "Adam"}}, False),
    ({"train_split": "training"}, True), ({"devices": [1]}, False), ({"model": {"backbone_arch": [2, 2]}}, False),
    ({"dataset": {"modalities": {"rgb": [0, 4], "audio": {"folder": "a", "dim": 128}}}}, True),
    ({"dataset": {"modalities": {"audio": {"folder": "a"}}}}, False), ({"dataset": {"strict": 1}}, False),
    ({"distill": {"stage": None, "teachers": [{"checkpoint": "a", "terms": {"cls": 0.5}}]}}, True),
    ({"distill": {"teachers": [{"name": "a"}]}}, False), ({"distill": {"stage": "first"}}, False)])
def test_the_schema_tells_right_from_wrong(values: dict, right: bool) -> None:
    assert fits(values, json.loads(config_docs.json_schema())) is right
