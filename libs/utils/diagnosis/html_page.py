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
PAGES = {"report": "Diagnosis of detections", "predictions": "Actions found"}  # a body beside frame.html -> title


def page(content: Mapping[str, Any], template: str = "report") -> str:
    """The page of one of PAGES; `content`: the report with a title, file names and a timeline, or `found_content`.

    Untrusted text enters the page only as JSON with <, > and & escaped, so it cannot end the script or become markup; the scripts
    put it into text nodes.  ValueError for a number that is not finite.
    """
    folder = files("libs.utils.diagnosis") / "page"
    scripts = [(folder / name).read_text(encoding="utf-8") for name in (*SHARED, f"{template}.js")]
    body = _filled((folder / f"{template}.html").read_text(encoding="utf-8"),
                   {"<!--TIMELINE-->\n": (folder / "timeline.html").read_text(encoding="utf-8")})
    return _filled((folder / "frame.html").read_text(encoding="utf-8"), {
        "<!--TITLE-->": PAGES[template], "/*STYLE*/": (folder / "report.css").read_text(encoding="utf-8"), "<!--BODY-->\n": body,
        "/*DATA*/": embedded_json(content), "/*SCRIPTS*/": "\n".join(scripts)})


def embedded_json(content: Any) -> str:
    """JSON for a <script> element: <, > and & escaped, and the line separators that old parsers refuse."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """The template with a text for each mark; the marks occur once and in this order, and inserted text is not searched."""
    out = []
    for mark, text in parts.items():
        before, template = template.split(mark)
        out += [before, text]
    return "".join([*out, template])
