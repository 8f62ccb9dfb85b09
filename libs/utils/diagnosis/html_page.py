"""The diagnosis as one self-contained HTML page, from the template and scripts in libs/utils/diagnosis/page.

    write_text_atomic("report.html", page(content))
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

SCRIPTS = ("charts.js", "timeline.js", "report.js")


def page(content: Mapping[str, Any]) -> str:
    """The page; `content`: the report of libs/utils/diagnosis/report.py with a title, file names and a timeline.

    Untrusted text enters the page only as JSON with <, > and & escaped, so it cannot end the script or become markup; the scripts
    put it into text nodes.  ValueError for a number that is not finite.
    """
    folder = files("libs.utils.diagnosis") / "page"
    parts = {"/*STYLE*/": (folder / "report.css").read_text(encoding="utf-8"),
             "/*DATA*/": embedded_json(content),
             "/*SCRIPTS*/": "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)}
    head, *rest = _split((folder / "report.html").read_text(encoding="utf-8"), list(parts))
    return head + "".join(parts[mark] + text for mark, text in zip(parts, rest, strict=True))


def embedded_json(content: Any) -> str:
    """JSON for a <script> element: <, > and & escaped, and the line separators that old parsers refuse."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _split(template: str, marks: list[str]) -> list[str]:
    """The text of the template before, between and after the marks, which occur in this order; inserted text is not searched."""
    out = []
    for mark in marks:
        before, template = template.split(mark)
        out.append(before)
    return [*out, template]
