"""The leading comment of every configuration: it has the form, its commands work, its numbers are those of stored results."""
from __future__ import annotations

import os
import re
import shlex
import statistics
import subprocess

import pytest
from config_files import CONFIGS, shipped, write
from doc_commands import ROOT, anchors, check

from libs.core.config import load_config
from libs.core.schema import as_tuple
from libs.engine.experiments.heads import STORED, all_heads, read_head
from libs.utils.files.io import read_json

PATHS = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in shipped()]
HEADS = {name: head for name, head in all_heads().items() if name in PATHS}
ROW = re.compile(rf"([^()]*)\(({STORED}): (\w+)\)")


def test_a_configuration_of_a_user_needs_no_head(tmp_path):
    ours, theirs = write(tmp_path, "opt: {epochs: 1}\n", "deep/ours.yaml"), write(tmp_path, "opt: {epochs: 1}\n", "theirs.yaml")
    assert shipped(tmp_path) == [ours, theirs]  # no checkout
    for command in (["init", "-q"], ["add", "deep/ours.yaml"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    assert shipped(tmp_path) == [ours]


@pytest.mark.parametrize("name", PATHS)
def test_every_configuration_has_a_head(name):
    head = read_head(CONFIGS / f"{name}.yaml")  # UserError if it lacks a field
    if not name.rpartition("/")[2].startswith("_"):
        assert name in HEADS
        assert head.expected  # one of the forms


@pytest.mark.parametrize("name", [name for name in HEADS if HEADS[name].expected.spread is not None])
def test_measured_numbers_are_those_of_the_stored_row(name):
    expected, text = HEADS[name].expected, HEADS[name].fields["Expected"]
    seeds = expected.seeds()
    row = read_json(ROOT / expected.file, "result")["rows"][expected.row]
    assert expected.mean == pytest.approx(row.get("mean", statistics.mean(seeds)), abs=0.0051)
    assert f"over {len(seeds)} {'fold' if expected.folds else 'seed'}{'s' if len(seeds) > 1 else ''}," in text
    own = row.get("std", row.get("standard_deviation"))
    spread = own if len(seeds) > 1 else expected.pooled_spread()
    assert expected.spread == pytest.approx(spread, abs=0.0051)
    assert (" --folds " if expected.folds else f" --seeds {len(seeds)}") in HEADS[name].fields["Run"]


@pytest.mark.parametrize("name", [name for name in HEADS if "published" in HEADS[name].fields["Expected"]])
def test_published_numbers_are_those_of_the_datasets_page(name):
    page = (ROOT / "docs/datasets.md").read_text().splitlines()
    [line] = [line for line in page if line.startswith("|") and f"`{name}`" in line]
    assert HEADS[name].fields["Expected"].split()[2].rstrip(",") in re.findall(r"[\d.]*\d", line)


def test_numbers_of_costs_are_values_of_the_rows_that_they_name():
    checked = 0
    for name, head in HEADS.items():
        text = head.fields["Cost"]
        for before, file, row in ROW.findall(text):
            values = {str(value) for value in read_json(ROOT / file, "result")["rows"][row].values()}
            found = re.findall(r"(?<!\w)\d+(?:\.\d+)?", before)
            rounded = {f"{float(v):.2f}" for v in values if re.fullmatch(r"\d+\.\d+", v)}
            assert found
            assert set(found) <= values | rounded, f"{name}: {text}"
            checked += 1
        assert ROW.search(text) or text == "not measured", name
    assert checked > 10


@pytest.mark.parametrize("name", HEADS)
def test_commands_and_data_folders(name, monkeypatch):
    """Run is of this configuration and parses; Data names the folder that its files lie in, a command that parses, a section."""
    monkeypatch.chdir(ROOT)
    head = HEADS[name]
    run, data = shlex.split(head.fields["Run"]), head.fields["Data"]
    check(run)
    path = CONFIGS / f"{name}.yaml"
    stage = f"{path.parent.relative_to(ROOT)} --stages {path.stem} " in head.fields["Run"]
    assert stage if "tools/run_distill.py" in run else f"configs/{name}.yaml" in run
    overrides = run[run.index("--set") + 1:] if "--set" in run else ["fold=1"] if "--folds" in run else []
    dataset = load_config(path, overrides).dataset
    assert os.path.relpath(os.path.commonpath([dataset.json_file, *as_tuple(dataset.feat_folder)])) == head.folder
    if command := re.search(r", by (python .+) \(", data):
        check(shlex.split(command[1]))
    if page := re.search(r"(docs/\w+\.md)(?:#([\w-]+))?", data):
        assert (ROOT / page[1]).is_file()
        assert page[2] is None or page[2] in anchors(page[1])
