"""libs/engine/experiments/heads.py: what is read, what is refused, and how often a right run falls outside its interval."""
from __future__ import annotations

import json
import math

import numpy as np
import pytest

from libs.core.errors import UserError
from libs.engine.experiments import heads
from libs.engine.experiments.heads import Expected, all_heads, read_head

HEAD = """# What it
# is.
# Paper: P
# Data: data/x, by python tools/prepare_hapt.py
#   HAPT.zip data/x
# Run: python tools/run_seeds.py configs/x.yaml --seeds 3
# Expected: {}
# Cost: not measured
dataset_name: generic
"""
MEASURED = "average mAP 80.00 +- 2.00 over 3 seeds, measured here (benchmarks/results/r.json: three)"


def write(folder, expected=MEASURED, name="x.yaml", old="", new=""):
    (folder / name).write_text(HEAD.format(expected).replace(old, new))
    return folder / name


@pytest.fixture
def results(tmp_path, monkeypatch):
    """benchmarks/results/r.json with a row of three seeds, one of two and one of one."""
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    rows = {"three": {"seeds": [78, 80, 82]}, "two": {"seeds": [50, 54]}, "one": {"ema": 60, "raw": 61}, "none": {"seconds": 3}}
    (tmp_path / "benchmarks/results/r.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(heads, "ROOT", tmp_path)


def test_fields(tmp_path):
    head = read_head(write(tmp_path))
    assert head.about == "What it is."
    assert head.fields["Data"] == "data/x, by python tools/prepare_hapt.py HAPT.zip data/x"
    assert head.folder == "data/x"
    assert head.expected == Expected(80, 2, "benchmarks/results/r.json", "three")


def test_other_forms_of_expected(tmp_path):
    assert read_head(write(tmp_path, "not measured yet")).expected == Expected()
    assert read_head(write(tmp_path, "average mAP 66.83, published (at .5), not measured here")).expected == Expected(66.83)


def test_a_field_of_another_head(tmp_path):
    write(tmp_path, name="_base.yaml", old="# Paper: P\n")  # bases may lack fields
    (tmp_path / "sub").mkdir()
    text = HEAD.format("not measured yet").replace("# Data: data/x, by python tools/prepare_hapt.py\n#   HAPT.zip data/x",
                                                   "# Data: as in ../_base.yaml")
    (tmp_path / "sub/y.yaml").write_text(text)
    (tmp_path / "mine.yaml").write_text("# no head\ndataset_name: generic\n")
    found = all_heads(tmp_path)
    assert list(found) == ["sub/y"]
    assert found["sub/y"].folder == "data/x"


@pytest.mark.parametrize(("old", "new", "named"), [
    ("# Paper: P\n", "", "Paper"), ("# What it\n# is.\n", "", "what it is"), ("# Cost: not measured", "# Cost: ", "Cost"),
    ("# Paper: P\n", "# Paper: P\n# more\n", "# more"), ("# Paper: P\n", "# Paper: P\n# Paper: P\n", "twice")])
def test_a_head_of_another_form_is_refused(tmp_path, old, new, named):
    with pytest.raises(UserError, match=named) as error:
        read_head(write(tmp_path, old=old, new=new))
    assert "x.yaml" in str(error.value)


def test_folds(tmp_path, results):
    head = read_head(write(tmp_path, MEASURED.replace("seeds", "folds")))
    assert head.expected == Expected(80, 2, "benchmarks/results/r.json", "three", folds=True)


@pytest.mark.parametrize("text", ["about 80", MEASURED + ".", MEASURED.replace("3 seeds", "1 seed")])
def test_an_expected_of_another_form_is_refused(tmp_path, text):
    head = read_head(write(tmp_path, text))
    with pytest.raises(UserError, match=r"x.yaml: Expected"):
        _ = head.expected


def test_interval_of_a_row_and_of_one_seed_with_the_spread_of_a_file(results):
    own = Expected(80, 2, "benchmarks/results/r.json", "three")
    assert own.half_width() == pytest.approx(4.303 * 2 * math.sqrt(4 / 3))
    one = Expected(60, 2.3, "benchmarks/results/r.json", "one", "benchmarks/results/r.json")
    assert one.seeds() == [60]
    assert one.pooled_spread() == pytest.approx(math.sqrt((4 + 0 + 4 + 4 + 4) / 3))  # squares of both rows over 2 + 1
    assert one.half_width() == pytest.approx(3.182 * one.pooled_spread() * math.sqrt(2))


def test_a_row_that_is_not_there_is_named(results):
    for row in ("four", "none"):
        with pytest.raises(UserError, match=rf"r\.json: has no row {row}.*three, two, one"):
            Expected(80, 2, "benchmarks/results/r.json", row).seeds()


@pytest.mark.parametrize("count", [2, 3, 5, 11])
def test_of_right_runs_five_in_a_hundred_fall_outside(count, monkeypatch):
    draws = np.random.default_rng(0).normal(50, 3, (2000, count + 1))
    inside = 0
    for *seeds, new in draws.tolist():
        monkeypatch.setattr(heads, "stored_seeds", lambda _file, seeds=seeds: {"row": seeds})
        inside += abs(new - np.mean(seeds)) <= Expected(0, 0, "r.json", "row").half_width()
    assert inside / len(draws) == pytest.approx(0.95, abs=0.015)
