"""Self-contained HTML pages from the templates and scripts in libs/utils/diagnosis/page.

    write_text_atomic("report.html", page(content))                      a diagnosis: libs/utils/diagnosis/report.py
    write_text_atomic("found.html", page(content, "predictions"))        without ground truth: libs/utils/diagnosis/found.py
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

SHARED = ("charts.js", "timeline.js", "viewer.js")
PAGES = ("report", "predictions")


def page(content: Mapping[str, Any], template: str = PAGES[0]) -> str:
    """The page of one of PAGES; `content`: the report with a title, file names and a timeline, or `found_content`.

    Untrusted text enters the page only as JSON with <, > and & escaped, so it cannot end the script or become markup; the scripts
    put it into text nodes.  ValueError for a number that is not finite.
    """
    folder = files("libs.utils.diagnosis") / "page"
    scripts = [(folder / name).read_text(encoding="utf-8") for name in (*SHARED, f"{template}.js")]
    parts = {"/*STYLE*/": (folder / "report.css").read_text(encoding="utf-8"),
             "<!--TIMELINE-->\n": (folder / "timeline.html").read_text(encoding="utf-8"),
             "/*DATA*/": embedded_json(content),
             "/*SCRIPTS*/": "\n".join(scripts)}
    head, *rest = _split((folder / f"{template}.html").read_text(encoding="utf-8"), list(parts))
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
