"""Class names from the files that people have."""
from __future__ import annotations

import json

import pytest

from libs.core.errors import UserError
from libs.datasets.labels import read_labels


@pytest.mark.parametrize(("name", "text"), [
    ("a.txt", "run\njump\n\nsit\n"), ("a.json", '["run", "jump", "sit"]'), ("b.json", '{"sit": 2, "run": 0, "jump": 1}'),
    ("c.json", json.dumps({"database": {"v": {"subset": "x", "annotations": [
        {"segment": [0, 1], "label": n, "label_id": i} for i, n in enumerate(("run", "jump", "sit"))]}}}))])
def test_the_same_names_from_every_kind_of_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_labels(tmp_path / name, 3) == {0: "run", 1: "jump", 2: "sit"}


@pytest.mark.parametrize(("name", "text", "told"), [
    ("a.txt", "run\njump\n", "names 2 classes"), ("a.txt", "a\nb\nc\nd\n", "has 3 classes"), ("a.txt", "", "no class names"),
    ("a.json", '["run", 3, "sit"]', "no class names"), ("a.json", '{"run": "0"}', "no class names"),
    ("a.json", "3", "no class names"), ("a.txt", "run\nrun\nsit\n", "'run' twice"),
    ("a.json", '{"a": 0, "b": 1, "c": 7}', "highest id is 7"), ("a.json", "{", "JSON")])
def test_refusals_name_the_file(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_labels(tmp_path / name, 3)
    assert str(error.value).startswith(str(tmp_path / name))
    assert told in str(error.value)
