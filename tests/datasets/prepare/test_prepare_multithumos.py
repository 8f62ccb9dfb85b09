"""MultiTHUMOS text files and the videos of thumos14.json -> annotations of 65 classes."""
from __future__ import annotations

import json
from pathlib import Path

import prepare_multithumos
import pytest
from helpers import one_error, run_script

from libs.datasets.annotations import load_annotations
from libs.datasets.prepare.multithumos import CLASSES
from libs.datasets.presets import get_preset


@pytest.fixture
def source(tmp_path) -> Path:
    (tmp_path / "multithumos/annotations").mkdir(parents=True)
    for i in range(CLASSES):
        (tmp_path / f"multithumos/annotations/Class{i:02d}.txt").write_text(f"video_validation_0000051 {i / 2} {i / 2 + 3.25}\n")
    with open(tmp_path / "multithumos/annotations/Class07.txt", "a") as file:
        file.write("video_test_0000004 1 2.5\n\nvideo_test_0000270 3 4\nvideo_test_0000004 5 5\n")
    names = [f"{i + 1} Class{CLASSES - 1 - i:02d}" for i in range(CLASSES)]
    (tmp_path / "multithumos/class_list.txt").write_text("\n".join(names) + "\n")
    database = {"video_validation_0000051": {"subset": "Validation", "duration": 40.0, "fps": 30.0},
                "video_test_0000004": {"subset": "Test", "duration": 30.0, "fps": 25.0},
                "video_test_0000006": {"subset": "Test", "duration": 30.0, "fps": 25.0}}
    thumos = {k: {**v, "annotations": [{"segment": [1, 2], "label": "Diving", "label_id": 7}]} for k, v in database.items()}
    (tmp_path / "thumos14.json").write_text(json.dumps({"database": thumos}))
    return tmp_path / "multithumos"


def convert(capsys, source: Path, *more: str) -> tuple[int, str, str]:
    return run_script(capsys, prepare_multithumos.main, "prepare_multithumos.py", str(source), str(source.parent / "out.json"),
                      "--thumos", str(source.parent / "thumos14.json"), *more)


def test_segments_of_several_classes_at_a_time(capsys, source):
    code, out, err = convert(capsys, source)
    assert (code, err) == (0, "")
    found = load_annotations(source.parent / "out.json")
    assert found.label_ids == {f"Class{i:02d}": CLASSES - 1 - i for i in range(CLASSES)}  # the numbers of class_list.txt, minus 1
    assert {v.id: (v.subset, v.duration_s, v.fps, len(v.segments)) for v in found.videos.values()} == {
        "video_validation_0000051": ("validation", 40.0, 30.0, 65), "video_test_0000004": ("test", 30.0, 25.0, 1)}
    assert found.videos["video_test_0000004"].segments.tolist() == [[1, 2.5]]
    assert "1 segments of 1 videos that thumos14.json lacks left out (video_test_0000270)" in out
    assert "1 videos of THUMOS14 without segments left out (first: video_test_0000006)" in out
    assert get_preset("multithumos").tious == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])


def test_without_the_list_of_classes(capsys, source):
    (source / "class_list.txt").unlink()
    assert convert(capsys, source)[0] == 0
    assert load_annotations(source.parent / "out.json").label_ids["Class03"] == 3
    assert convert(capsys, source / "annotations", "--thumos", str(source.parent / "thumos14.json"))[0] == 0  # that folder itself
    assert (source / "out.json").read_bytes() == (source.parent / "out.json").read_bytes()


@pytest.mark.parametrize(("name", "content", "message"), [
    ("annotations/Extra.txt", "video_test_0000004 1 2\n", "holds 66 class files"),
    ("annotations/Class01.txt", "video_test_0000004 1\n", "Class01.txt: line 1: 'video_test_0000004 1'"),
    ("annotations/Class01.txt", "video_test_0000004 1 two\n", "Class01.txt line 1: end: 'two' is not a finite number"),
    ("annotations/Class01.txt", "video_test_0000005 1 2\n", "only 64 of 65 classes have segments"),
    ("class_list.txt", "1 Class00\n", "does not name the class 'Class01' (did you mean"),
    ("class_list.txt", "\n".join(f"1 Class{i:02d}" for i in range(CLASSES)), "class numbers are not 1 to 65 once each"),
    ("class_list.txt", "Class00\n", "line 1: 'Class00'"), ("class_list.txt", "x Class00\n", "number: 'x' is not a whole number")])
def test_bad_files_are_one_error(capsys, source, name, content, message):
    (source / name).write_text(content)
    assert message in one_error(*convert(capsys, source)[::2])
    assert not (source.parent / "out.json").exists()
