"""tools/make_study.py: the stages of distillation for a configuration, and what cannot be taught so."""
from __future__ import annotations

import make_study
import pytest
import yaml
from helpers import one_error, run_script

from libs.core.config import config_diff, load_config
from libs.core.files import entries
from libs.engine.deploy.cost import count
from libs.engine.experiments.chain import load_chain
from libs.engine.experiments.repeats import Repeat
from libs.engine.experiments.study import RECIPES, write_study

CONFIGS = RECIPES.parent
FOLD = ["fold=1"]
OWN = {"output_folder", "loader.num_workers"}  # of the study that was written by hand


@pytest.fixture(scope="module")
def salads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "mine"
    write_study(CONFIGS / "salads.yaml", ["rgb"], folder, 0.25)
    return folder


@pytest.mark.parametrize("stage", ["teacher", "teacher_long", "baseline", "student", "student_alone"])
def test_the_stages_are_those_of_50_salads_which_were_written_by_hand(salads, stage):
    made, own = (load_config(folder / f"{stage}.yaml", FOLD) for folder in (salads, RECIPES / "salads"))
    assert set(config_diff(own, made)) <= OWN | ({"distill.teachers"} if stage == "student" else set())
    assert [t.checkpoint for t in made.distill.teachers] == (["./ckpt/distill/mine/teacher_{run}"] if stage == "student" else [])


def test_the_student_learns_from_the_teacher_of_its_own_run(salads):
    chain = load_chain(salads, [Repeat(1, 0)], "seed", [])
    planned = chain.plan(["student"])
    assert [run.stage for run in planned.values()] == ["teacher", "student"]
    assert planned["student_fold1_seed0"].config.distill.teachers[0].checkpoint == "./ckpt/distill/mine/teacher_fold1_seed0"


@pytest.mark.parametrize(("config", "keep", "share"), [("hapt", "acc", 0.25), ("planted", "rgb", 0.1), ("clips", "rgb", 0.25)])
def test_the_student_is_the_widest_that_takes_the_share(tmp_path, config, keep, share):
    source = CONFIGS / f"{config}.yaml"
    student = write_study(source, [keep], tmp_path / "out", share)["student"]
    whole, width = count(load_config(source)).flops, student.model.embd_dim
    widths = [f"model.{key}={width + 8}" for key in ("embd_dim", "fpn_dim", "head_dim")]
    wider = load_config(tmp_path / "out" / "student.yaml", widths)
    assert count(student).flops <= share * whole < count(wider).flops
    assert student.model.modalities == (keep,)
    assert student.total_epochs == 3 * load_config(source).total_epochs


def source_of(tmp_path, **sections):
    """A configuration with other keys than configs/demo.yaml."""
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"_base_": str(CONFIGS / "demo.yaml"), **sections}))
    return path


def test_an_early_stop_and_features_of_one_length(tmp_path):
    source = source_of(tmp_path, opt={"early_stop_epochs": 4}, dataset={"force_upsampling": True})
    stages = write_study(source, ["rgb"], tmp_path / "out", 0.25)
    assert (stages["teacher"].total_epochs, stages["student"].total_epochs) == (4, 12)
    assert stages["student"].dataset.speeds == stages["teacher_long"].dataset.speeds == (1.0,)
    assert stages["student"].distill.mixup == 0.5


@pytest.mark.parametrize(("sections", "options", "parts"), [
    ({}, ["--keep", "rg"], ["--keep rg: the teacher reads no stream", "did you mean 'rgb'", "demo.yaml has rgb, flow"]),
    ({"model": {"modalities": ["flow"]}}, ["--keep", "rgb"], ["--keep rgb: the teacher reads no stream", "has flow"]),
    ({"dataset": {"modalities": None}}, ["--keep", "rgb"], ["dataset.modalities: is not set", "{rgb: [0, 1024]"]),
    ({"_base_": str(CONFIGS / "tridet_thumos_i3d.yaml"), "dataset": {"modalities": {"rgb": [0, 1024], "flow": [1024, 2048]}}},
     ["--keep", "rgb"], ["model_name: TriDet", "start from an ActionFormer configuration"]),
    ({"distill": {"teachers": [{"checkpoint": "a"}]}}, ["--keep", "rgb"], ["distill.teachers", "name that of its teacher"]),
    ({}, ["--keep", "rgb", "--share", "0.0001"], ["--share 0.0001", "width 8", "raise it"]),
    ({"loader": {"batch_size": 1}}, ["--keep", "rgb"], ["distill.mixup", "batch_size is 1", "at least 2"]),
], ids=str)
def test_what_cannot_be_taught_is_one_error_and_writes_nothing(tmp_path, capsys, sections, options, parts):
    source = source_of(tmp_path, **sections) if sections else CONFIGS / "demo.yaml"
    code, _, err = run_script(capsys, make_study.main, "make_study.py", str(source), "--out", str(tmp_path / "out"), *options)
    message = one_error(code, err)
    assert [part for part in [*parts, "own.yaml" if sections else ""] if part not in message] == [], message
    assert not (tmp_path / "out").exists()


def test_the_table_and_a_folder_that_is_not_empty(tmp_path, capsys):
    argv = [str(CONFIGS / "demo.yaml"), "--keep", "rgb", "--out", str(tmp_path / "out")]
    code, out, err = run_script(capsys, make_study.main, "make_study.py", *argv)
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert float(rows["teacher"][-1]) == 100 > 25 >= float(rows["student"][-1]) > 15
    assert f"tools/run_distill.py {tmp_path / 'out'}" in out
    before = {p: p.read_bytes() for p in entries(tmp_path / "out")}
    code, _, err = run_script(capsys, make_study.main, "make_study.py", *argv)
    assert f"{tmp_path / 'out'}: is not empty; choose another --out" in one_error(code, err)
    assert {p: p.read_bytes() for p in entries(tmp_path / "out")} == before
