"""Detections of one video as subtitles or annotations for players: SubRip (.srt), WebVTT (.vtt) and ELAN (.eaf) text.

Rows are sorted by start.  Times are rounded to milliseconds; a segment lasts at least one.
"""
from __future__ import annotations

import datetime
import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from libs.utils.evaluation.predictions import Detections

SCORES = " score"  # suffix of the name of a tier of scores


class Cue(NamedTuple):
    """One segment: milliseconds, class name, score."""

    start_ms: int
    end_ms: int
    label: str
    score: float


def cues(detections: Detections, label_names: Mapping[int, str]) -> list[Cue]:
    """The rows by start, then end, with class names on one line."""
    found = []
    for i in np.lexsort((detections.t_end, detections.t_start)):
        start, end = (max(round(1000 * float(t[i])), 0) for t in (detections.t_start, detections.t_end))
        number = int(detections.label[i])
        name = " ".join(label_names.get(number, str(number)).split())
        label = "".join(c for c in name if c.isprintable())  # XML does not allow control characters
        found.append(Cue(start, max(end, start + 1), label, float(detections.score[i])))
    return found


def srt_text(detections: Detections, label_names: Mapping[int, str]) -> str:
    """SubRip: numbered cues `label score`."""
    return "".join(f"{i}\n{_clock(c.start_ms, ',')} --> {_clock(c.end_ms, ',')}\n{c.label.replace('-->', '->')} {c.score:.2f}\n\n"
                   for i, c in enumerate(cues(detections, label_names), start=1))


def vtt_text(detections: Detections, label_names: Mapping[int, str]) -> str:
    """WebVTT (W3C): cues `label score`, with &, < and > escaped."""
    escaped = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}
    return "WEBVTT\n\n" + "".join(f"{_clock(c.start_ms, '.')} --> {_clock(c.end_ms, '.')}\n{c.label.translate(escaped)} "
                                  f"{c.score:.2f}\n\n" for c in cues(detections, label_names))


def eaf_text(detections: Detections, label_names: Mapping[int, str]) -> str:
    """ELAN annotation document (EAF 3.0): a tier of annotations per class, and below it a tier of their scores.

    Annotations of an ELAN tier must not overlap, so a class with overlapping segments gets more tiers, `label 2`, ...
    """
    stamp = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    root = ElementTree.Element("ANNOTATION_DOCUMENT", {
        "AUTHOR": "", "DATE": stamp, "FORMAT": "3.0", "VERSION": "3.0",
        "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
        "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"})
    ElementTree.SubElement(root, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    slots = ElementTree.SubElement(root, "TIME_ORDER")
    tiers = _tiers(cues(detections, label_names))
    times = sorted((time, tier, i, end) for tier, (_, found) in enumerate(tiers) for i, c in enumerate(found)
                   for time, end in ((c.start_ms, False), (c.end_ms, True)))
    slot_of = {}
    for number, (time, *which) in enumerate(times, start=1):
        slot_of[tuple(which)] = f"ts{number}"
        ElementTree.SubElement(slots, "TIME_SLOT", {"TIME_SLOT_ID": f"ts{number}", "TIME_VALUE": str(time)})
    number = 0
    for t, (name, found) in enumerate(tiers):
        tier = ElementTree.SubElement(root, "TIER", {"LINGUISTIC_TYPE_REF": "action", "TIER_ID": name})
        scores = ElementTree.SubElement(root, "TIER", {"LINGUISTIC_TYPE_REF": "score", "PARENT_REF": name,
                                                       "TIER_ID": name + SCORES})
        for i, cue in enumerate(found):
            number += 2
            ids = {"ANNOTATION_ID": f"a{number - 1}", "TIME_SLOT_REF1": slot_of[t, i, False],
                   "TIME_SLOT_REF2": slot_of[t, i, True]}
            _annotation(tier, "ALIGNABLE_ANNOTATION", ids, cue.label)
            _annotation(scores, "REF_ANNOTATION", {"ANNOTATION_ID": f"a{number}", "ANNOTATION_REF": f"a{number - 1}"},
                        f"{cue.score:.4f}")
    ElementTree.SubElement(root, "LINGUISTIC_TYPE", {"GRAPHIC_REFERENCES": "false", "LINGUISTIC_TYPE_ID": "action",
                                                     "TIME_ALIGNABLE": "true"})
    ElementTree.SubElement(root, "LINGUISTIC_TYPE", {"CONSTRAINTS": "Symbolic_Association", "GRAPHIC_REFERENCES": "false",
                                                     "LINGUISTIC_TYPE_ID": "score", "TIME_ALIGNABLE": "false"})
    ElementTree.SubElement(root, "CONSTRAINT", {"DESCRIPTION": "1-1 association with a parent annotation",
                                                "STEREOTYPE": "Symbolic_Association"})
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _annotation(tier: ElementTree.Element, kind: str, attributes: dict[str, str], value: str) -> None:
    inner = ElementTree.SubElement(ElementTree.SubElement(tier, "ANNOTATION"), kind, attributes)
    ElementTree.SubElement(inner, "ANNOTATION_VALUE").text = value


def _tiers(found: list[Cue]) -> list[tuple[str, list[Cue]]]:
    """(name, cues) of each tier, without overlaps: each cue goes to the first tier of its class that is free."""
    by_label: dict[str, list[list[Cue]]] = {}
    for cue in found:
        rows = by_label.setdefault(cue.label, [])
        row = next((row for row in rows if row[-1].end_ms <= cue.start_ms), None)
        if row is None:
            rows.append(row := [])
        row.append(cue)
    tiers: list[tuple[str, list[Cue]]] = []
    used = {name for label in by_label for name in (label, label + SCORES)}  # names of first tiers
    for label, rows in sorted(by_label.items()):
        tiers.append((label, rows[0]))
        count = itertools.count(2)
        for row in rows[1:]:
            name = next(n for n in (f"{label} {i}" for i in count) if n not in used and n + SCORES not in used)
            used |= {name, name + SCORES}
            tiers.append((name, row))
    return tiers


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{rest:03d}"
