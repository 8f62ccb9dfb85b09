"""Which ids look like recordings of one person in both subsets, and which do not."""
from __future__ import annotations

import json

import pytest

from libs.core.problems import Problems
from libs.datasets.annotations import load_annotations
from libs.datasets.survey.checks import Splits
from libs.datasets.survey.subjects import check_subjects

SPLITS = Splits(("training",), ("validation",))
PEOPLE = ("anna", "ben", "cem")
SUSPICIOUS = {  # every third of a person's videos validates
    "letter and number": [f"P{p:02d}_{i}" for p in range(5) for i in range(3)],
    "a word, with folders": [f"subj{p}/rec{i}" for p in range(5) for i in range(3)],
    "a word in the middle": [f"exp{3 * p + i:02d}_user{p:02d}" for p in range(5) for i in range(3)],
    "other endings": [f"S{p}_{'Tea' * (i + 1)}_C{i}" for p in range(5) for i in range(3)],
    "letter and number in a folder": [f"films/s{p}/rec{i}" for p in range(5) for i in range(3)],
    "folders": [f"films/{name}/{('tea', 'run2', 'x')[i]}" for name in PEOPLE for i in range(3)],
    "names": [f"{name}_{i}" for name in PEOPLE for i in range(3)],
    "numbers": [f"rgb-{p:02d}-{i}" for p in range(5) for i in range(3)],
}
SOUND = {
    "numbered videos": [f"video_{i:04d}" for i in range(30)],
    "classes": [f"{name}_{i}" for name in ("jump", "throw", "vault") for i in range(9)],
    "folders of classes": [f"films/{name}/{i}" for name in ("jump", "throw", "vault") for i in range(9)],
    "subsets": [f"video_{('training', 'validation', 'test')[i % 3]}_{i}" for i in range(30)],
    "episodes": [f"show_S0{s}E{i:02d}" for s in (1, 2) for i in range(9)],
    "hashes": ["v_2a-Xd9", "v_2b_77q", "v_3a-Xb1", "v_3c_55z", "v_4k-Pd2", "v_4a_11k"],
    "one person": [f"P01_{i}" for i in range(9)],
}


def found(ids: list[str], tmp_path, validation) -> list[str]:
    items = [{"segment": [i, i + 1], "label": label} for i, label in enumerate(("jump", "throw", "vault"))]
    (tmp_path / "a.json").write_text(json.dumps({"database": {
        vid: {"subset": "validation" if validation(i) else "training", "annotations": items} for i, vid in enumerate(ids)}}))
    problems = Problems()
    check_subjects(load_annotations(tmp_path / "a.json"), SPLITS, problems)
    return [str(problem) for problem in problems.found]


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_people_in_both_subsets(name, tmp_path):
    ids = SUSPICIOUS[name]
    people = len(ids) // 3
    warning, = found(ids, tmp_path, lambda i: i % 3 == 2)
    for fragment in (f"{people} of {people} people", repr(ids[0]), repr(ids[2]), "--group"):
        assert fragment in warning
    assert found(ids, tmp_path, lambda i: i // 3 == people - 1) == []  # split by person


@pytest.mark.parametrize("name", SOUND)
def test_other_ids_are_not_suspected(name, tmp_path):
    assert found(SOUND[name], tmp_path, lambda i: i % 3 == 2) == []
