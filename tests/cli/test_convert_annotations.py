"""Annotations of other tools become our JSON: known times in seconds by hand, and one error for whatever is wrong."""
from __future__ import annotations

# ruff: noqa: E501  (tables of cases)
import json
from pathlib import Path
from typing import Any

import convert_annotations as script
import numpy as np
import pytest
from helpers import one_error, run_script

from libs.datasets.annotations import load_annotations

EAF = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2024-05-01T10:00:00+01:00" FORMAT="3.0" VERSION="3.0">
  <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
    <MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/films/match%%201.mp4" MIME_TYPE="video/mp4" RELATIVE_MEDIA_URL="./match%%201.mp4"/>
  </HEADER>
  <TIME_ORDER>
    <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="1250"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="3000"/>
    <TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="4000"/><TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="7520"/>
  </TIME_ORDER>
  <TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="actions">
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
      <ANNOTATION_VALUE>jump </ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
      <ANNOTATION_VALUE>throw</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
  </TIER>
  %s
  <LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="default-lt" TIME_ALIGNABLE="true"/>
</ANNOTATION_DOCUMENT>
"""
SECOND_TIER = """<TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="camera"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a3"
  TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts4"><ANNOTATION_VALUE>pan</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>"""
BOMB = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]><ANNOTATION_DOCUMENT>&b;</ANNOTATION_DOCUMENT>'


def timeline(start: int, end: int, label: str, **extra: Any) -> dict[str, Any]:
    return {"value": {"ranges": [{"start": start, "end": end}], "timelinelabels": [label]}, "id": "x1", "from_name": "tl",
            "to_name": "video", "type": "timelinelabels", "origin": "manual", **extra}


def task(number: int, video: str, *results: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {"id": number, "data": {"video": video}, "predictions": [], "created_at": "2024-05-01T10:00:00Z", "project": 1,
            "annotations": [{"id": number, "completed_by": 1, "was_cancelled": False, "ground_truth": False,
                             "result": list(results), **extra}]}


LABELSTUDIO = [task(1, "/data/upload/1/0a1b2c3d-match%201.mp4", timeline(1, 25, "jump"), timeline(51, 75, "throw")),
               task(2, "/data/local-files/?d=films/match2.mp4")]
LABELSTUDIO_MIN = [{"video": "/data/upload/1/0a1b2c3d-match1.mp4", "id": 1, "annotator": 1, "annotation_id": 1,
                    "tl": [{"ranges": [{"start": 1, "end": 25}], "timelinelabels": ["jump"]}], "lead_time": 3.5}]
SOUND = [{"id": 3, "data": {"audio": "s3://bucket/call.wav"}, "annotations": [{"id": 3, "result": [
    {"original_length": 12.0, "type": "labels", "value": {"start": 0.5, "end": 1.75, "channel": 0, "labels": ["speech"]}},
    {"type": "textarea", "value": {"start": 0.5, "end": 1.75, "text": ["hello"]}}]}]}]
SERIES = [{"id": 4, "data": {"csv": "/data/upload/2/0a1b2c3d-run.csv"}, "annotations": [{"id": 4, "result": [
    {"type": "timeserieslabels", "value": {"start": 1500, "end": 2750, "instant": False, "timeserieslabels": ["step"]}}]}]}]
FIFTYONE = {"classes": ["jump", "throw"], "labels": {"a": [{"label": 0, "support": [1, 30], "confidence": 0.9}], "b": [
    {"label": 1, "support": [31, 45]}], "c": None}}
TIMESTAMPS = {"classes": ["jump"], "labels": {"a": [{"label": 0, "timestamps": [0.5, 2.25]}]}}
SAMPLES = {"samples": [{"filepath": "data/a.mp4", "metadata": {"duration": 9.5, "frame_rate": 20.0}, "tags": [], "events": {
    "_cls": "TemporalDetections", "detections": [{"_cls": "TemporalDetection", "label": "jump", "support": [21, 40]}]}}]}


def write(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return name


@pytest.fixture
def convert(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*argv: str):
        code, out, err = run_script(capsys, script.main, "convert_annotations.py", *argv, "-o", "out.json")
        return code, out, err
    return run


def database(run, *argv: str) -> dict[str, Any]:
    code, _, err = run(*argv)
    assert code == 0, err
    load_annotations("out.json", strict=True)
    return json.loads(Path("out.json").read_text())["database"]


CASES = {
    "csv": ("a.csv", "video,start,end,label\nb.mp4,0.5,2,jump\na,1,2.25,throw\na,0.25,1,jump\n", [],
            {"a": [[0.25, 1, "jump"], [1, 2.25, "throw"]], "b": [[0.5, 2, "jump"]]}),
    "csv with its own names, semicolons, clock times": (
        "a.csv", 'file;from;to;what;note\n"x;y.avi";0:01.5;0:02;jump;\nz;1:00:00;1:00:01.25;jump;"two\nlines"\n',
        ["--columns", "video=file", "start=from", "end=to", "label=what"],
        {"x;y": [[1.5, 2, "jump"]], "z": [[3600, 3601.25, "jump"]]}),
    "csv in frames": ("a.tsv", "video\tstart\tend\tlabel\tfps\na\t30\t90\tjump\t30\n", ["--time-unit", "frames"], {"a": [[1, 3, "jump"]]}),
    "csv in milliseconds": ("a.csv", "video,start,end,label\na,1500,3250,jump\n", ["--time-unit", "ms"], {"a": [[1.5, 3.25, "jump"]]}),
    "a video without actions": ("a.csv", "video,start,end,label\na,1,2,jump\nb.mp4,,,\na,,,\n", [], {"a": [[1, 2, "jump"]], "b": []}),
    "files of one name, ids with folders": (
        "a.csv", "video,start,end,label\nC:\\f\\s1\\rec.mp4,1,2,jump\nf/s2/rec.mp4,3,4,jump\n", ["--ids", "path"],
        {"f/s1/rec": [[1, 2, "jump"]], "f/s2/rec": [[3, 4, "jump"]]}),
    "files of one name, one video": ("a.csv", "video,start,end,label\nb/a.mp4,1,2,jump\nc/a.avi,3,4,jump\n", ["--ids", "stem"],
                                     {"a": [[1, 2, "jump"], [3, 4, "jump"]]}),
    "a bare name beside its file": ("a.csv", "video,start,end,label\na,1,2,jump\nb/a.mp4,3,4,jump\n", [],
                                    {"a": [[1, 2, "jump"], [3, 4, "jump"]]}),
    "ids with dots": ("a.csv", "video,start,end,label\ncam1.2024,1,2,jump\n", [], {"cam1.2024": [[1, 2, "jump"]]}),
    "eaf": ("m.eaf", EAF % "", [], {"match 1": [[1.25, 3, "jump"], [4, 7.52, "throw"]]}),
    "eaf, one of two tiers": ("m.eaf", EAF % SECOND_TIER, ["--tier", "camera"], {"match 1": [[1.25, 7.52, "pan"]]}),
    "eaf, tiers as labels": ("m.eaf", EAF % SECOND_TIER, ["--label-from", "tier"],
                             {"match 1": [[1.25, 3, "actions"], [1.25, 7.52, "camera"], [4, 7.52, "actions"]]}),
    "eaf in PAL frames": ("m.eaf", (EAF % "").replace("milliseconds", "PAL-frames").replace("MEDIA_DESCRIPTOR", "PROPERTY"), [],
                          {"m": [[50, 120, "jump"], [160, 300.8, "throw"]]}),
    "label studio": ("p.json", LABELSTUDIO, ["--fps", "25"], {"match 1": [[0, 1, "jump"], [2, 3, "throw"]], "match2": []}),
    "label studio, minimal": ("p.json", LABELSTUDIO_MIN, ["--fps", "25"], {"match1": [[0, 1, "jump"]]}),
    "label studio, audio": ("p.json", SOUND, [], {"call": [[0.5, 1.75, "speech"]]}),
    "label studio, time series": ("p.json", SERIES, ["--time-unit", "ms"], {"run": [[1.5, 2.75, "step"]]}),
    "fiftyone": ("labels.json", FIFTYONE, ["--fps", "30"], {"a": [[0, 1, "jump"]], "b": [[1, 1.5, "throw"]], "c": []}),
    "fiftyone, timestamps": ("labels.json", TIMESTAMPS, [], {"a": [[0.5, 2.25, "jump"]]}),
    "fiftyone, a plain dict": ("x.json", {"a": {"detections": [{"label": "jump", "timestamps": [0, 1]}]}}, [], {"a": [[0, 1, "jump"]]}),
    "fiftyone, samples": ("samples.json", SAMPLES, [], {"a": [[1, 2, "jump"]]}),
}


@pytest.mark.parametrize("name", CASES)
def test_formats(name, convert, tmp_path):
    file, content, argv, expected = CASES[name]
    found = database(convert, write(tmp_path, file, content), *argv)
    assert {vid: [[*item["segment"], item["label"]] for item in entry["annotations"]] for vid, entry in found.items()} == expected
    labels = sorted({item[2] for items in expected.values() for item in items})
    assert all(item["label_id"] == labels.index(item["label"]) for entry in found.values() for item in entry["annotations"])


HEAD = "video,start,end,label\n"
CSV = HEAD + "a,1,2,jump\n"
BAD = {
    "gone": (None, "", [], ["gone.csv", "no such"]),
    "an empty file": ("a.csv", "", [], ["a.csv", "is empty"]),
    "a header alone": ("a.csv", "video,start,end,label\n", [], ["a.csv", "no annotated segment"]),
    "no such column": ("a.csv", "video,begin,end,label\na,1,2,jump\n", [], ["'start'", "--columns start=NAME"]),
    "a row too short": ("a.csv", CSV + "a,1,2\n", [], ["line 3", "3 cells"]),
    "no label": ("a.csv", CSV + "a,1,2,\n", [], ["line 3", "no label"]),
    "no end": ("a.csv", CSV + "a,1,,\n", [], ["line 3", "no label", "leave start and end empty too"]),
    "files of one name in two folders": ("a.csv", HEAD + "s1/rec.mp4,1,2,jump\ns2/rec.mp4,3,4,jump\n", [],
                                         ["a.csv", "'rec' (s1/rec.mp4, s2/rec.mp4)", "--ids path", "--ids stem"]),
    "two files of one name": ("a.csv", HEAD + "a.mp4,1,2,jump\na.avi,3,4,jump\n", [],
                              ["'a' (a.avi, a.mp4)", "rename one", "--ids stem"]),
    "two files of one name in a folder": ("a.csv", HEAD + "s/a.mp4,1,2,jump\ns/a.avi,3,4,jump\n", ["--ids", "path"],
                                          ["'s/a' (s/a.avi, s/a.mp4)", "rename one"]),
    "tasks about files of one name": ("p.json", [task(1, "/data/local-files/?d=s1/rec.mp4", timeline(1, 5, "jump")),
                                                 task(2, "/data/local-files/?d=s2/rec.mp4")], ["--fps", "5"],
                                      ["p.json", "'rec' (s1/rec.mp4, s2/rec.mp4)", "--ids path"]),
    "samples of one name": ("labels.json", {"s1/rec.mp4": [{"label": "j", "timestamps": [0, 1]}], "s2/rec.mp4": None}, [],
                            ["labels.json", "'rec' (s1/rec.mp4, s2/rec.mp4)", "--ids path"]),
    "an id too long": ("a.csv", CSV + f"{'x' * 600},1,2,jump\n", [], ["a.csv", "600 characters", "rename"]),
    "an id that leads out": ("a.csv", CSV + "../a.mp4,1,2,jump\n", ["--ids", "path"], ["a.csv", "'../a'", "rename"]),
    "an fps beyond all bounds": ("a.csv", CSV, ["--fps", "1e30"], ["a.csv", "'a'", "fps: 1e+30"]),
    "a single end too late": ("a.csv", HEAD + "".join(f"a,{i},{i + 1},jump\n" for i in range(9)) + "a,9,1000,jump\n",
                              ["--durations", "d.csv"], ["line 11", "[9, 1000]", "20 s", "1 of 10 segments", "correct"]),
    "most ends too late": ("a.csv", HEAD + "".join(f"a,{9 * i},{9 * i + 9},jump\n" for i in range(9)),
                           ["--durations", "d.csv"], ["line 5", "20 s", "in another unit: add --time-unit ms or frames"]),
    "subsets that contradict each other late": ("a.csv", "video,start,end,label,subset\na,1,2,jump,\na,1,2,jump,training\na,1,2,"
                                                "jump,test\n", [], ["line 4", "'test'", "'training' in a.csv: line 3"]),
    "durations that contradict each other": ("a.csv", CSV, ["--durations", "d2.csv"], ["d2.csv: line 4", "duration 9", "'a'", "line 2"]),
    "a group without a share": ("a.csv", CSV, ["--group", "person"], ["--group person", "--val-share"]),
    "no such group": ("a.csv", CSV, ["--group", "person", "--val-share", ".5"], ["--group person", "'a'", "column of the CSV"]),
    "a broken expression": ("a.csv", CSV, ["--group", "(a", "--val-share", ".5"], ["--group (a", "no regular expression"]),
    "a video without a group": ("a.csv", "video,start,end,label,who\na,1,2,jump,x\nb,1,2,jump,\n", ["--group", "who", "--val-share", ".5"],
                                ["'b' has no who", "1 of 2 videos"]),
    "a video of two groups": ("a.csv", "video,start,end,label,who\na,1,2,jump,x\na,1,2,jump,y\n", ["--group", "who", "--val-share", ".5"],
                              ["line 3", "'y'", "'a'", "'x'"]),
    "a single group": ("a.csv", HEAD + "a1,1,2,jump\na2,1,2,jump\n", ["--group", "^[a-z]", "--val-share", ".5"],
                       ["--group", "all 2 videos", "'a'"]),
    "a time as text": ("a.csv", CSV + "a,soon,2,jump\n", [], ["line 3", "'soon'"]),
    "digits with an underscore": ("a.csv", CSV + "a,1_0,20,jump\n", [], ["line 3: start", "'1_0'"]),
    "a decimal comma": ("a.csv", "video;start;end;label\na;1,5;2;jump\n", [], ["'1,5'", "decimal point"]),
    "mixed clocks": ("a.csv", CSV + "a,0:01,0:02,jump\n", [], ["line 3", "mixes"]),
    "a reversed segment": ("a.csv", CSV + "a,3,2,jump\n", [], ["line 3", "[3, 2]"]),
    "a negative start": ("a.csv", CSV + "a,-1,2,jump\n", [], ["line 3", "before 0"]),
    "milliseconds taken for seconds": ("a.csv", "video,start,end,label,duration\na,1000,2000,jump,10\n", [],
                                       ["line 2", "10 s", "--time-unit ms or frames"]),
    "days": ("a.csv", CSV + "a,100000,100001,jump\n", [], ["unknown length", "--time-unit"]),
    "frames without fps": ("a.csv", CSV, ["--time-unit", "frames"], ["line 2", "fps", "--fps"]),
    "two subsets": ("a.csv", "video,start,end,label,subset\na,1,2,jump,training\na,1,2,jump,test\n", [], ["line 3", "'test'", "'training'"]),
    "no UTF-8": ("a.csv", None, [], ["a.csv", "not a text file"]),
    "xml bomb": ("a.eaf", BOMB, [], ["a.eaf", "DOCTYPE"]),
    "other xml": ("a.eaf", "<TEI/>", [], ["a.eaf", "'TEI'"]),
    "broken xml": ("a.eaf", EAF[:500], [], ["a.eaf", "not valid XML"]),
    "two tiers": ("a.eaf", EAF % SECOND_TIER, [], ["actions, camera", "--tier"]),
    "no such tier": ("a.eaf", EAF % "", ["--tier", "hands"], ["hands", "actions"]),
    "an unaligned slot": ("a.eaf", (EAF % "").replace('TIME_SLOT_ID="ts2" TIME_VALUE="3000"', 'TIME_SLOT_ID="ts2"'), [], ["'ts2'", "align"]),
    "an empty eaf": ("a.eaf", "<ANNOTATION_DOCUMENT><HEADER/></ANNOTATION_DOCUMENT>", [], ["a.eaf", "no annotated segment"]),
    "no tasks": ("p.json", [], [], ["p.json", "no task"]),
    "tasks without annotations": ("p.json", [task(1, "/data/a.mp4")], [], ["no annotated segment"]),
    "both label studio layouts": ("p.json", LABELSTUDIO + LABELSTUDIO_MIN, ["--fps", "25"], ["mixes the JSON and JSON-MIN"]),
    "a video twice": ("p.json", [LABELSTUDIO[0], {**LABELSTUDIO[0], "id": 9}], ["--fps", "25"], ["task 9", "task 1"]),
    "timeline without fps": ("p.json", LABELSTUDIO, [], ["task 1", "--fps"]),
    "no media": ("p.json", [{"id": 1, "data": {"n": 3}, "annotations": []}], [], ["task 1", "media"]),
    "a list of texts": ("p.json", ["a"], [], ["p.json", "no Label Studio export"]),
    "no JSON": ("p.json", "{", [], ["p.json", "not valid JSON"]),
    "no videos": ("labels.json", {"classes": [], "labels": {}}, [], ["labels.json", "no video"]),
    "support and timestamps": ("labels.json", {"classes": ["j"], "labels": {"a": [{"label": 0, "support": [1, 2]}, {
        "label": 0, "timestamps": [1, 2]}]}}, ["--fps", "30"], ["mixes support"]),
    "neither": ("labels.json", {"a": [{"label": "j", "bbox": [1, 2]}]}, [], ["'a'[0]", "support nor timestamps"]),
    "a class number too high": ("labels.json", {"classes": ["j"], "labels": {"a": [{"label": 4, "timestamps": [1, 2]}]}}, [], ["4"]),
    "unknown ending": ("a.xlsx", "x", [], ["a.xlsx", "--format"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, convert, tmp_path):
    file, content, argv, fragments = BAD[name]
    if file is None:
        file = "gone.csv"
    elif content is None:
        (tmp_path / file).write_bytes(CSV.encode() + b"\xff\xfe")
    else:
        write(tmp_path, file, content)
    write(tmp_path, "d.csv", "video,duration\na,20\n")
    write(tmp_path, "d2.csv", "video,duration,fps\na,8,25\nb,8,25\na.mp4,9,25\n")
    code, _, err = convert(file, *argv)
    error = one_error(code, err)
    for fragment in fragments:
        assert fragment in error, error
    assert not Path("out.json").exists()


def test_formats_are_not_mixed_and_outputs_not_overwritten(convert, tmp_path):
    write(tmp_path, "a.csv", CSV)
    write(tmp_path, "b.eaf", EAF % "")
    assert "different formats" in one_error(*convert("a.csv", "b.eaf")[::2])
    write(tmp_path, "c.csv", CSV)
    assert "'a'" in one_error(*convert("a.csv", "c.csv")[::2])
    database(convert, "a.csv")
    before = Path("out.json").read_bytes()
    assert "exists already" in one_error(*convert("a.csv")[::2])
    assert Path("out.json").read_bytes() == before
    assert convert("a.csv", "--overwrite")[0] == 0


def test_the_validation_share_is_a_hash_split_that_new_videos_hardly_change(convert, tmp_path):
    rows = "".join(f"v{i},1,2,jump\n" for i in range(50))
    first = database(convert, write(tmp_path, "a.csv", "video,start,end,label\n" + rows), "--val-share", "0.2")
    chosen = {vid for vid, entry in first.items() if entry["subset"] == "validation"}
    assert len(chosen) == 10
    write(tmp_path, "a.csv", "video,start,end,label\n" + rows + "w,1,2,jump\n")
    assert len(chosen ^ {v for v, e in database(convert, "a.csv", "--val-share", "0.2", "--overwrite").items()
                         if e["subset"] == "validation"}) <= 1


PEOPLE = [(f"P{p:02d}_{r}", f"person {p}") for p in range(10) for r in range(p % 3 + 1)]


@pytest.mark.parametrize("group", ["who", "^P[0-9]+", "^(P[0-9]+)_"])
def test_the_videos_of_a_group_share_a_subset(group, convert, tmp_path):
    write(tmp_path, "a.csv", "video,start,end,label,who\n" + "".join(f"{vid},1,2,jump,{who}\n" for vid, who in PEOPLE))
    code, _, err = convert("a.csv", "--val-share", "0.2", "--group", group)
    assert code == 0
    assert f"--group {group}: 2 of 10 groups are validation" in err
    found = json.loads(Path("out.json").read_text())["database"]
    assert all("group" not in entry for entry in found.values())
    people = {name: {who for vid, who in PEOPLE if found[vid]["subset"] == name} for name in ("training", "validation")}
    assert (len(people["training"]), len(people["validation"])) == (8, 2)
    assert not people["training"] & people["validation"]


def test_sources_are_never_replaced(convert, tmp_path):
    for name, content, argv in (("out.json", LABELSTUDIO, ["out.json", "--fps", "25"]),
                                ("out.json", "video,duration\na,3\n", ["a.csv", "--durations", "out.json"]),
                                ("labels.json", TIMESTAMPS, ["."])):
        write(tmp_path, "a.csv", CSV)
        write(tmp_path, name, content)
        if name != "out.json":
            Path("out.json").unlink()
            Path("out.json").symlink_to(name)
        before = Path(name).read_bytes()
        error = one_error(*convert(*argv[:1], "--overwrite", *argv[1:])[::2])
        assert "out.json: is read by this command" in error
        assert Path(name).read_bytes() == before


def test_videos_that_only_the_durations_name_have_no_actions(convert, tmp_path):
    write(tmp_path, "a.csv", CSV)
    write(tmp_path, "d.csv", "video,duration,fps\na,8,25\nb.mp4,9,30\na.mp4,8,25\n")
    found = database(convert, "a.csv", "--durations", "d.csv")
    assert found["b"] == {"subset": "training", "duration": 9.0, "fps": 30.0, "annotations": []}
    assert sorted(found) == ["a", "b"]


def test_files_about_one_video_are_told_of_ids_with_folders(convert, tmp_path):
    for folder in ("s1", "s2"):
        (tmp_path / folder).mkdir()
        write(tmp_path, f"{folder}/rec.eaf", (EAF % "").replace("MEDIA_DESCRIPTOR", "PROPERTY"))
    assert "--ids path" in one_error(*convert("s1/rec.eaf", "s2/rec.eaf")[::2])
    assert sorted(database(convert, "s1/rec.eaf", "s2/rec.eaf", "--ids", "path")) == ["s1/rec", "s2/rec"]


@pytest.mark.parametrize(("name", "content"), [
    ("d.csv", "video,duration,fps\na.mp4,12.5,25\nb,,30\n"), ("d.csv", "video_id,fps,duration\na,25,12.5\nb,30,\n"),
    ("d.json", {"database": {"a": {"duration": 12.5, "fps": 25}, "b": {"fps": 30, "annotations": [{"label": "ignored"}]}}}),
    ("provenance.json", {"stride": 4, "num_frames": 8, "videos": {"a": {"duration": 12.5, "fps": 25}, "b": {"fps": 30}}})])
def test_every_layout_of_video_info_is_read(convert, tmp_path, name, content):
    write(tmp_path, "a.csv", "video,start,end,label\na,1,2,jump\nb,1,2,jump\nc,1,2,jump\n")
    code, out, err = convert("a.csv", "--durations", write(tmp_path, name, content))
    assert code == 0, err
    found = json.loads(Path("out.json").read_text())["database"]
    assert [(entry.get("duration"), entry.get("fps")) for entry in found.values()] == [(12.5, 25), (None, 30), (None, None)]
    assert "1 videos have no fps; --fps" in out
    assert "2 videos have no duration; --durations" in out


def test_options_that_contradict_the_provenance_of_the_features_are_refused(convert, tmp_path):
    write(tmp_path, "a.csv", CSV)
    (tmp_path / "feats").mkdir()
    write(tmp_path, "feats/provenance.json", {"stride": 4, "num_frames": 8, "videos": {"a": {"fps": 30, "duration": 9.5}}})
    for argv, told in ((["--fps", "25"], ["fps 30", "fps 25"]), (["--feat-stride", "8"], ["stride 4", "stride 8"])):
        error = one_error(*convert("a.csv", "--features", "feats", *argv)[::2])
        assert all(part in error for part in ("provenance.json", "'a'", *told)), error
    assert not Path("out.json").exists()
    found = database(convert, "a.csv", "--features", "feats", "--fps", "30")
    assert (found["a"]["fps"], found["a"]["duration"]) == (30, 9.5)


def test_frame_numbers_are_counted_at_their_own_rate(convert, tmp_path):
    write(tmp_path, "a.csv", "video,start,end,label\na,25,75,jump\n")
    (tmp_path / "feats").mkdir()
    write(tmp_path, "feats/provenance.json", {"stride": 4, "num_frames": 8, "videos": {"a": {"fps": 30, "duration": 9.5}}})
    found = database(convert, "a.csv", "--features", "feats", "--time-unit", "frames", "--fps", "25")
    assert (found["a"]["fps"], found["a"]["annotations"][0]["segment"]) == (30, [1, 3])
    found = database(convert, "a.csv", "--features", "feats", "--time-unit", "frames", "--overwrite")
    assert found["a"]["annotations"][0]["segment"] == [0.833333, 2.5]


def test_durations_from_a_table_and_from_features(convert, tmp_path):
    write(tmp_path, "a.csv", "video,start,end,label,subset\na,1,2,jump,Validation\nb,1,2,jump,training\n")
    write(tmp_path, "d.csv", "video,duration,fps\na.mp4,0:12.5,25\n")
    found = database(convert, "a.csv", "--durations", "d.csv")
    assert (found["a"]["duration"], found["a"]["fps"], found["a"]["subset"]) == (12.5, 25, "validation")
    assert "duration" not in found["b"]
    (tmp_path / "feats").mkdir()
    np.save(tmp_path / "feats" / "b.npy", np.zeros((11, 3), np.float32))
    found = database(convert, "a.csv", "--overwrite", "--durations", "d.csv", "--features", "feats", "--fps", "20", "--feat-stride", "4",
                     "--num-frames", "10")
    assert (found["b"]["duration"], found["b"]["fps"], found["a"]["duration"]) == (2.5, 20, 12.5)
    error = one_error(*convert("a.csv", "--overwrite", "--features", "feats")[::2])
    assert all(part in error for part in ("feats", "no provenance.json", "--feat-stride", "--fps", "2 videos", "'a'", "--durations"))


def test_features_without_provenance_need_no_options_beside_a_csv_that_says_everything(convert, tmp_path):
    (tmp_path / "feats").mkdir()
    for vid in "ab":
        np.save(tmp_path / "feats" / f"{vid}.npy", np.zeros((11, 3), np.float32))
    write(tmp_path, "a.csv", "video,start,end,label,duration,fps\na,1,2,jump,9.5,25\nb,1,2,jump,8,30\n")
    found = database(convert, "a.csv", "--features", "feats")
    assert [(entry["duration"], entry["fps"]) for entry in found.values()] == [(9.5, 25), (8, 30)]
    write(tmp_path, "b.csv", "video,start,end,label,fps\na,1,2,jump,25\nb,1,2,jump,20\n")
    found = database(convert, "b.csv", "--overwrite", "--features", "feats", "--feat-stride", "4", "--num-frames", "10")
    assert [(entry["duration"], entry["fps"]) for entry in found.values()] == [(2, 25), (2.5, 20)], "each at its own rate"


def test_the_ground_truth_of_several_annotators_is_taken_with_a_warning(convert, tmp_path):
    first = task(1, "/data/a.mp4", timeline(1, 10, "jump"))
    first["annotations"] += [task(1, "", timeline(1, 20, "jump"), ground_truth=True)["annotations"][0],
                             task(1, "", timeline(1, 30, "jump"))["annotations"][0]]
    write(tmp_path, "p.json", [first])
    code, _, err = convert("p.json", "--fps", "10")
    assert code == 0
    assert "1 tasks have several annotations" in err
    assert json.loads(Path("out.json").read_text())["database"]["a"]["annotations"][0]["segment"] == [0, 2]


def test_labels_that_differ_in_spelling_only_are_merged_on_request(convert, tmp_path, recwarn):
    table = write(tmp_path, "l.csv", "video,start,end,label\na,1,2,jump\na,3,4,Jump\nb,1,2,jump\nb,5,6,run\n")
    code, out, err = convert(table)
    assert (code, "3 classes" in out) == (0, True), err
    assert "'jump' (2 segments), 'Jump' (1)" in err + "".join(str(w.message) for w in recwarn)
    code, out, err = convert(table, "--merge-labels", "--overwrite")
    assert (code, "2 classes: jump, run" in out) == (0, True), err
    assert "merged: 'jump' (2 segments), 'Jump' (1) are now 'jump'" in err


@pytest.mark.parametrize(("argv", "told"), [
    (["a.csv", "a.csv"], "2 segments occur more than once and are all written (first: 'jump' of video 'a', 1.0 to 2.0, 2 times)"),
    (["a.csv", "--val-share", "0.01"], "--val-share 0.01: of 2 videos without a subset 0 become validation")])
def test_a_repeated_file_and_an_empty_subset_are_warned_about(convert, tmp_path, argv, told):
    write(tmp_path, "a.csv", "video,start,end,label\na,1,2,jump\nb,1,2,jump\n")
    code, _, err = convert(*argv)
    assert code == 0
    assert told in err
    assert len(err.splitlines()) == 1


def test_tiers_are_of_elan_files(convert, tmp_path):
    write(tmp_path, "a.csv", "video,start,end,label\na,1,2,jump\n")
    code, _, err = convert("a.csv", "--tier", "actions")
    assert "a.csv is csv; leave it out" in one_error(code, err)
