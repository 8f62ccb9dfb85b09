"""Subtitles and ELAN documents, read back by plain readers of their formats."""
from __future__ import annotations

import datetime
import itertools
import re
import xml.etree.ElementTree as ElementTree

from libs.utils.evaluation.predictions import Detections
from libs.utils.evaluation.subtitles import eaf_text, srt_text, vtt_text

NAMES = {0: "run", 1: "jump & <roll>", 2: "run 2", 3: "two\nlines\x07"}
FOUND = Detections.from_arrays(
    ["v"] * 6, [3725.0415, 1.0, 1.5, 2.25, 0.0, 9.0], [3726.0, 2.0, 3.0, 2.75, 0.0, 9.0001], [0, 0, 0, 1, 2, 3],
    [0.9, 0.8, 0.7, 0.654321, 0.5, 0.4])
CUES = [(0, 1, "run 2"), (1000, 2000, "run"), (1500, 3000, "run"), (2250, 2750, "jump & <roll>"), (9000, 9001, "two lines"),
        (3725042, 3726000, "run")]


def clock(text: str) -> int:
    hours, minutes, seconds, milliseconds = map(int, re.fullmatch(r"(\d\d):(\d\d):(\d\d)[.,](\d{3})", text).groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + milliseconds


def read(blocks: list[str], point: str) -> list[tuple[int, int, str, float]]:
    found = []
    for block in blocks:
        times, text = block.split("\n")
        start, end = times.split(" --> ")
        assert point in start
        label, score = text.rsplit(" ", 1)
        found.append((clock(start), clock(end), label, float(score)))
    return found


def test_subrip():
    blocks = srt_text(FOUND, NAMES).removesuffix("\n\n").split("\n\n")
    numbers, rest = zip(*(block.split("\n", 1) for block in blocks), strict=True)
    assert numbers == tuple("123456")
    cues = read(list(rest), ",")
    assert [c[:3] for c in cues] == CUES
    assert [c[3] for c in cues] == [0.5, 0.8, 0.7, 0.65, 0.4, 0.9]
    assert srt_text(Detections.empty(), NAMES) == ""


def test_webvtt():
    head, *blocks = vtt_text(FOUND, NAMES).removesuffix("\n\n").split("\n\n")
    assert head == "WEBVTT"
    assert [c[:3] for c in read(blocks, ".")] == [(a, b, n.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
                                                  for a, b, n in CUES]
    assert vtt_text(Detections.empty(), NAMES) == "WEBVTT\n\n"


def test_elan():
    """Every annotation once, on tiers without overlaps, with its score below it; all references resolve."""
    text = eaf_text(FOUND, NAMES)
    root = ElementTree.fromstring(text.encode())
    assert datetime.datetime.fromisoformat(root.get("DATE")).tzinfo is not None
    slots = {s.get("TIME_SLOT_ID"): int(s.get("TIME_VALUE")) for s in root.iter("TIME_SLOT")}
    assert list(slots.values()) == sorted(slots.values())
    assert len(slots) == 12
    types = {t.get("LINGUISTIC_TYPE_ID") for t in root.iter("LINGUISTIC_TYPE")}
    tiers = {t.get("TIER_ID"): t for t in root.iter("TIER")}
    assert len(tiers) == len(list(root.iter("TIER")))
    assert {t.get("LINGUISTIC_TYPE_REF") for t in tiers.values()} <= types
    ids = [a.get("ANNOTATION_ID") for a in (*root.iter("ALIGNABLE_ANNOTATION"), *root.iter("REF_ANNOTATION"))]
    assert len(ids) == len(set(ids)) == 12
    found, scores = [], {}
    for name, tier in tiers.items():
        if tier.get("PARENT_REF"):
            assert name == tier.get("PARENT_REF") + " score"
            scores |= {a.get("ANNOTATION_REF"): a.find("ANNOTATION_VALUE").text for a in tier.iter("REF_ANNOTATION")}
            continue
        spans = [(slots[a.get("TIME_SLOT_REF1")], slots[a.get("TIME_SLOT_REF2")], a.find("ANNOTATION_VALUE").text,
                  a.get("ANNOTATION_ID")) for a in tier.iter("ALIGNABLE_ANNOTATION")]
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        found += spans
    assert sorted(s[:3] for s in found) == sorted(CUES)
    assert {s[2]: scores[s[3]] for s in found if s[2] != "run"} == {"run 2": "0.5000", "jump & <roll>": "0.6543",
                                                                    "two lines": "0.4000"}
    assert set(tiers) >= {"run", "run 2", "run 3"}  # "run 2" is a class, so the second tier of "run" is called otherwise
