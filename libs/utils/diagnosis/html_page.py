"""The diagnosis as one HTML page: no network, no framework; the parts are in libs/utils/diagnosis/page.

    write_text_atomic("report.html", page(content))
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

SCRIPTS = ("charts.js", "timeline.js", "report.js")


def page(content: Mapping[str, Any]) -> str:
    """The whole page; `content` is that of libs/utils/diagnosis/report.py with a title, file names and a timeline.

    Text of files reaches the page as JSON only, with <, > and & written as escapes, so no name can end the script or become
    markup; the scripts put it into text nodes.  ValueError for a number that is not finite.
    """
    folder = files("libs.utils.diagnosis") / "page"
    parts = {"/*STYLE*/": (folder / "report.css").read_text(encoding="utf-8"),
             "/*DATA*/": embedded_json(content),
             "/*SCRIPTS*/": "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)}
    head, *rest = _split((folder / "report.html").read_text(encoding="utf-8"), list(parts))
    return head + "".join(parts[mark] + text for mark, text in zip(parts, rest, strict=True))


def embedded_json(content: Any) -> str:
    """JSON that is safe inside a <script> element: no <, > or &, and no line separators that old parsers refuse."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _split(template: str, marks: list[str]) -> list[str]:
    """The template's text before, between and behind the marks, which come in this order; what is put in is never searched."""
    out = []
    for mark in marks:
        before, template = template.split(mark)
        out.append(before)
    return [*out, template]
