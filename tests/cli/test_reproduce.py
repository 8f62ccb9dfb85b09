"""tools/reproduce.py: a result within its spread and outside it, data elsewhere and missing, names.

The programs that it starts run inside this process.
"""
from __future__ import annotations

import json
import shutil

import pytest
import reproduce
from helpers import one_error, run_script, run_scripts_here, write_config, write_data

from libs.engine.experiments import heads

HEAD = """# Tiny.
# Paper: P
# Data: {data}, by python tools/prepare_hapt.py HAPT.zip {data}
# Run: python tools/{run} --set train_cfg.dropout=0
# Expected: {expected}
# Cost: not measured
"""
MEASURED = "average mAP 50.00 +- 0.10 over 2 seeds, measured here (benchmarks/results/r.json: row)"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with two stored results: of configs/tiny.yaml, and of configs/chain/student.yaml, which has a teacher."""
    (tmp_path / "configs/chain").mkdir(parents=True)
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/r.json").write_text(json.dumps({"rows": {"row": {"seeds": [49.9, 50.1]}}}))
    data = write_data(tmp_path)
    options = {"output_folder": str(tmp_path / "ckpt"), "opt": {"epochs": 1, "warmup_epochs": 0}}
    runs = {"tiny": "run_seeds.py configs/tiny.yaml --seeds 2", "chain/teacher": "run_distill.py configs/chain --stages teacher",
            "chain/student": "run_distill.py configs/chain --stages student"}
    for name, run in runs.items():
        path = write_config(tmp_path / f"configs/{name}.yaml", data, **options, **({} if "student" not in name else {
            "distill": {"teachers": [{"checkpoint": f"{tmp_path}/ckpt/teacher_{{run}}"}]}}))
        expected = "not measured yet" if "teacher" in name else MEASURED
        path.write_text(HEAD.format(data=tmp_path, run=run, expected=expected) + path.read_text())
    monkeypatch.setattr(heads, "ROOT", tmp_path)
    monkeypatch.setattr(heads.all_heads, "__defaults__", (tmp_path / "configs",))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def started(monkeypatch, capsys):
    """Command lines that were run."""
    return run_scripts_here(monkeypatch, capsys)


def run(capsys, *argv):
    return run_script(capsys, reproduce.main, "reproduce.py", *map(str, argv))


def test_outside_then_within(root, capsys, started):
    code, out, err = run(capsys, "tiny", "--seed", 1)
    assert (code, err) == (1, "")
    assert [c[0] for c in started] == ["train.py", "eval.py"]
    assert all({"train_cfg.dropout=0", "init_rand_seed=1"} <= set(c) for c in started)
    [results] = (root / "ckpt").glob("tiny_reproduce_seed1/eval/*/results.json")
    measured = json.loads(results.read_text())
    verdict = out.splitlines()[-1]
    assert f"{100 * measured['average_mAP']:.2f} (seed 1, stored 50.10) is OUTSIDE 50.00 +- 2.20" in verdict

    results.write_text(json.dumps({**measured, "average_mAP": 0.521}))
    code, out, _ = run(capsys, "configs/tiny.yaml", "--seed", 1)
    assert (code, len(started)) == (0, 2)
    assert "52.10" in out.splitlines()[-1]
    assert "within 50.00 +- 2.20" in out.splitlines()[-1]
    assert "trained before: tiny_reproduce_seed1" in out.splitlines()[-1]


def test_a_student_after_its_teacher(root, capsys, started):
    code, out, err = run(capsys, "chain/student")
    assert (code, err) == (1, "")
    assert [(c[0], c[1].rpartition("/")[2]) for c in started] == [
        (program, f"{stage}.yaml") for stage in ("teacher", "student") for program in ("train.py", "eval.py")]
    assert out.splitlines()[-1].startswith("chain/student: average mAP")
    assert (root / "ckpt/student_reproduce_seed0").is_dir()
    assert not (root / "ckpt/table.md").exists()


def test_missing_data_and_data_elsewhere(root, capsys, started):
    (root / "elsewhere").mkdir()
    for path in [p for p in root.iterdir() if p.name not in ("configs", "benchmarks", "elsewhere")]:
        shutil.move(path, root / "elsewhere" / path.name)
    code, _, err = run(capsys, "tiny")
    error = one_error(code, err)
    assert code == 2
    assert f"python tools/prepare_hapt.py HAPT.zip {root}" in error
    assert "--data" in error
    assert started == []
    run(capsys, "tiny", "--data", root / "elsewhere")
    assert [c[0] for c in started] == ["train.py", "eval.py"]


def test_list(root, capsys):
    code, out, _ = run(capsys, "--list")
    assert code == 0
    listed = [line.split()[:4] for line in out.splitlines()[1:]]
    assert listed == [[name, "50.00", "2.20", "2"] for name in ("chain/student", "tiny")]


@pytest.mark.parametrize(("argv", "parts"), [
    (["tinny"], ["tinny", "'tiny'", "--list"]), (["chain/teacher"], ["chain/teacher", "not measured yet", "--list"]),
    ([], ["--list"]), (["tiny", "--list"], ["--list"])])
def test_other_names_are_refused(root, capsys, argv, parts):
    code, _, err = run(capsys, *argv)
    error = one_error(code, err)
    assert all(part in error for part in parts)


def test_a_mean_over_folds_is_not_compared_with_one_run(root, capsys, started):
    path = root / "configs/tiny.yaml"
    path.write_text(path.read_text().replace("over 2 seeds", "over 2 folds"))
    code, _, err = run(capsys, "tiny")
    assert "run_seeds.py configs/tiny.yaml" in one_error(code, err)
    assert started == []
    assert "tiny" not in run(capsys, "--list")[1]
