"""The page as text: data that cannot end its script, and parts that an installation brings along."""
from __future__ import annotations

import ast
import json
import re
from pathlib import Path, PurePosixPath

import pytest

from libs.utils.diagnosis.html_page import PAGES, SHARED, embedded_json, page

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("text", [
    "</script><script>alert(1)</script>", "<!--<script>", "]]>", "&lt;", "a\u2028b\u2029", '"\\', "日本"])
def test_text_comes_back_and_holds_no_markup(text):
    written = embedded_json({"id": [text, {text: 1}]})
    assert json.loads(written) == {"id": [text, {text: 1}]}
    assert not set("<>&\u2028\u2029") & set(written)


def test_text_that_looks_like_a_mark_of_the_template_stays_data():
    content = {"title": "/*SCRIPTS*/ and /*DATA*/"}
    text = page(content)
    assert text.count("/*DATA*/") == 1
    assert text.index("const SVG") > text.index("/*DATA*/")


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        page({"mAP": float("nan")})


def test_an_installation_has_every_part():
    line = re.search(r'^"libs.utils.diagnosis" = (\[.*\])$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    patterns = ast.literal_eval(line[1])
    parts = [f.relative_to(ROOT / "libs/utils/diagnosis").as_posix() for f in (ROOT / "libs/utils/diagnosis/page").iterdir()]
    own = [f"{name}.{kind}" for name in PAGES for kind in ("html", "js")]
    shared = ("report.css", "frame.html", "timeline.html", *SHARED)
    assert {f"page/{name}" for name in (*shared, *own)} == set(parts)
    assert all(any(PurePosixPath(part).match(pattern) for pattern in patterns) for part in parts)
