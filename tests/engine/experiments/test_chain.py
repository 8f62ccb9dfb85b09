"""A chain of stages: what waits for what, what is done, what has changed, and the arithmetic of its table."""
from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import Data, tiny_config, write_config

from libs.core.config import load_config, to_dict
from libs.core.errors import UserError
from libs.engine.distill.teachers import with_run_name
from libs.engine.experiments.chain import load_chain
from libs.engine.experiments.chain_table import StageResults, chain_results, markdown, table_rows
from libs.engine.experiments.repeats import Repeat
from libs.engine.runs.checkpoint import save_checkpoint


class Folder:
    """A chain folder whose runs go to tmp_path/ckpt; runs are put there without training."""

    def __init__(self, root):
        self.root, self.path, self.ckpt = root, root / "chain", root / "ckpt"
        self.path.mkdir()

    def stage(self, name, *teachers, **sections):
        """A stage whose teachers are runs of other stages, or whatever holds a slash."""
        entries = [{"name": f"t{i}", "checkpoint": t if "/" in t else f"{self.ckpt}/{t}_{{run}}"} for i, t in enumerate(teachers)]
        sections = {"output_folder": str(self.ckpt), "distill": {"teachers": entries}, "opt": {"epochs": 1}, **sections}
        return write_config(self.path / f"{name}.yaml", Data(self.root / "a.json", self.root / "feats"), **sections)

    def stage_with_folds(self, name, *teachers, **sections):
        """A stage whose annotation file has a number."""
        file = self.stage(name, *teachers, **sections)
        file.write_text(file.read_text().replace("/a.json", "/split{fold}.json"))

    def load(self, seeds=(0,), output="seed", overrides=(), folds=(None,)):
        return load_chain(self.path, [Repeat(fold, seed) for fold in folds for seed in seeds], output, overrides)

    def train(self, run, epoch=2, **changes):
        """The checkpoint of an epoch as train.py leaves it; `changes` of its configuration as --set values."""
        values = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
        config = with_run_name(load_config(run.config.source, [*run.overrides, *values]), run.name)
        weights = {"w": torch.zeros(2)}
        training = {"config": to_dict(config), "iteration": 3 * epoch}
        save_checkpoint(run.folder / f"epoch_{epoch:03d}.pth.tar", epoch, weights, weights, {}, {}, training)

    def finish(self, run, average=0.5, **changes):
        self.train(run, **changes)
        results = run.folder / "eval" / "epoch_002_ema" / "results.json"
        results.parent.mkdir(parents=True)
        results.write_text(json.dumps({"average_mAP": average}))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.fixture
def published(folder):
    """The published chain: file names in another order than that of the teachers."""
    folder.stage("teacher")
    folder.stage("structure_teacher", "teacher")
    folder.stage("a_cross_modal", "structure_teacher")
    folder.stage("multi_teacher", "teacher", "structure_teacher")
    folder.stage("student_alone")
    (folder.path / "_base.yaml").write_text("opt: {epochs: 1}")  # no stage
    return folder


def test_teachers_come_first_seed_by_seed(published):
    chain = published.load((4, 5), "x", ["train_cfg.dropout=0"])
    planned = list(chain.plan(chain.stages))
    assert sorted(planned) == sorted(f"{stage}_x{seed}" for seed in (4, 5) for stage in chain.stages)
    assert [label[-1] for label in planned] == ["4"] * 5 + ["5"] * 5
    for order in (planned, list(chain.runs)):
        for label, run in chain.runs.items():
            assert all(order.index(teacher) < order.index(label) for teacher in chain.teachers(run))
    run = chain.runs["multi_teacher_x5"]
    assert chain.teachers(run) == ["teacher_x5", "structure_teacher_x5"]
    assert chain.source_names(run) == ["teacher", "structure_teacher"]
    assert (run.folder, run.last.name) == (published.ckpt / "multi_teacher_x5", "epoch_002.pth.tar")
    assert (run.config.init_rand_seed, run.config.train_cfg.dropout) == (5, 0)
    assert run.training[2:] == [str(published.path / "multi_teacher.yaml"), "--output", "x5", "--resume", "auto", "--set",
                                "train_cfg.dropout=0", "init_rand_seed=5"]
    assert run.evaluation[2:5] == [str(published.path / "multi_teacher.yaml"), str(run.last), "--weights"]


def test_a_student_waits_for_every_network_of_a_cross_fitted_teacher(folder):
    folder.stage("teacher")
    for part in range(3):
        folder.stage(f"teacher_part{part}", train_cfg={"leave_out": [part, 3]})
    entries = [{"name": "fitted", "checkpoint": f"{folder.ckpt}/teacher_part{{part}}_{{run}}", "cross_fit": 3},
               {"name": "other", "checkpoint": f"{folder.ckpt}/teacher_{{run}}"}]
    folder.stage("a_student", distill={"teachers": entries, "outputs": "cache", "init_from": "other"}, dataset={"crop_align": 32})
    chain = folder.load((7,))
    run = chain.runs["a_student_seed7"]
    assert chain.source_names(run) == ["teacher_part0", "teacher_part1", "teacher_part2", "teacher"]
    planned = list(chain.plan(["a_student"]))
    assert planned[-1] == "a_student_seed7"
    assert sorted(planned[:-1]) == ["teacher_part0_seed7", "teacher_part1_seed7", "teacher_part2_seed7", "teacher_seed7"]
    for label in planned:
        folder.finish(chain.runs[label])
    assert [r.init for r in chain_results(chain) if r.stage == "a_student"] == ["teacher"]
    entries[0]["cross_fit"] = 4
    folder.stage("a_student", distill={"teachers": entries, "outputs": "cache"}, dataset={"crop_align": 32})
    shutil.rmtree(run.folder)
    with pytest.raises(UserError, match=r"fitted: checkpoint: .*teacher_part3_seed7: no such checkpoint"):
        folder.load((7,)).plan(["a_student"])


def test_a_stage_pulls_in_the_teachers_that_it_needs(published):
    chain = published.load((0, 1))
    assert list(chain.plan(["a_cross_modal"])) == [f"{s}_seed{i}" for i in (0, 1) for s in (
        "teacher", "structure_teacher", "a_cross_modal")]
    published.finish(chain.runs["structure_teacher_seed1"])  # trained: needs its own teacher no more
    assert list(chain.plan(["a_cross_modal"])) == ["teacher_seed0", "structure_teacher_seed0", "a_cross_modal_seed0",
                                                   "structure_teacher_seed1", "a_cross_modal_seed1"]
    assert list(chain.plan(["student_alone"])) == ["student_alone_seed0", "student_alone_seed1"]
    assert sorted(chain.select([])) == ["a_cross_modal", "multi_teacher", "structure_teacher", "student_alone", "teacher"]
    with pytest.raises(UserError, match=r"--stages studnt_alone: .* has no studnt_alone.yaml \(did you mean 'student_alone'\?\)"):
        chain.select(["teacher", "studnt_alone"])


def test_what_is_done_and_what_is_left(folder):
    folder.stage("student", test_cfg={"weights": "raw"})
    run = folder.load().runs["student_seed0"]
    assert (run.begun, run.trained, run.done) == (False, False, False)
    folder.train(run, epoch=1)
    assert (run.begun, run.trained, run.done) == (True, False, False)
    folder.finish(run)
    assert (run.begun, run.trained, run.done) == (True, True, False)  # what is there is of the averaged weights
    (run.folder / "eval" / "epoch_002_ema").rename(run.folder / "eval" / "epoch_002_raw")
    assert run.done
    assert run.average_mAP() == 50


def test_only_what_is_left_is_started(folder, monkeypatch):
    folder.stage("student")
    run, started = folder.load().runs["student_seed0"], []
    monkeypatch.setattr("libs.engine.experiments.chain.run_commands", lambda commands, *rest: started.append((commands, *rest)))
    run.complete(2)
    folder.train(run)
    run.complete(2)
    log = folder.ckpt / "student_seed0.log"
    assert started == [([run.training, run.evaluation], log, 2, "student_seed0"), ([run.evaluation], log, 2, "student_seed0")]


@pytest.mark.parametrize(("change", "text"), [
    ({"opt__learning_rate": "0.5"}, "opt.learning_rate: 0.5 -> 0.003"), ({"opt__epochs": "5"}, "opt.epochs: 5 -> 1"),
    ({"init_rand_seed": "9"}, "init_rand_seed: 9 -> 0"), ({"test_cfg__nms_sigma": "0.9"}, "test_cfg.nms_sigma: 0.9 -> 0.5")])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_changed_configuration_is_refused(folder, change, text, epoch):
    folder.stage("student")
    chain = folder.load()
    folder.train(chain.runs["student_seed0"], epoch, **change)
    with pytest.raises(UserError) as caught:
        chain.plan(["student"])
    assert text in str(caught.value)
    assert "--output, or remove" in str(caught.value)
    assert str(folder.ckpt / "student_seed0") in str(caught.value)


def test_what_changes_no_number_is_no_change(folder):
    folder.stage("teacher", devices=["cuda:0"])
    folder.stage("student", "teacher")
    chain = folder.load()
    for run in chain.runs.values():
        folder.finish(run, devices="cpu", output_folder="./elsewhere", loader__num_workers="1", loader__cache="ram",
                      test_cfg__batch_size="7", distill__cache_folder="./c", train_cfg__head_empty_cls="[1]")
    assert list(chain.plan(["student", "teacher"])) == ["teacher_seed0", "student_seed0"]
    assert [run.changes() for run in chain.runs.values()] == [[], []]
    folder.stage("student", "teacher", train_cfg={"head_empty_cls": [2]})  # said by the file: compared
    assert folder.load().runs["student_seed0"].changes() == ["train_cfg.head_empty_cls: (1,) -> (2,)"]
    folder.stage("other")
    folder.stage("student", "other")
    (change,) = folder.load().runs["student_seed0"].changes()
    assert change.startswith("distill.teachers: ")
    assert "ckpt/teacher_seed0" in change
    assert "ckpt/other_seed0" in change


def test_a_checkpoint_of_another_program(folder):
    folder.stage("student")
    run = folder.load().runs["student_seed0"]
    save_checkpoint(run.last, 2, {"w": torch.zeros(1)}, {"w": torch.zeros(1)}, {}, {}, None)
    with pytest.raises(UserError, match=r"epoch_002\.pth\.tar: does not hold the configuration"):
        run.changes()


def test_a_student_of_a_teacher_that_is_gone(folder):
    folder.stage("teacher")
    folder.stage("student", "teacher")
    chain = folder.load()
    for run in chain.runs.values():
        folder.finish(run)
    shutil.rmtree(chain.runs["teacher_seed0"].folder)
    assert list(chain.plan(["student"])) == ["student_seed0"]  # finished, and nothing is to be trained
    with pytest.raises(UserError, match=r"student_seed0: has checkpoints, but its teacher .*teacher_seed0 is not trained"):
        chain.plan(["student", "teacher"])


@pytest.mark.parametrize(("links", "circle"), [
    ({"a": ["b"], "b": ["c"], "c": ["a"]}, "a -> b -> c -> a"), ({"a": [], "b": ["a", "b"]}, "b -> b")])
def test_a_circle(folder, links, circle):
    for name, teachers in links.items():
        folder.stage(name, *teachers)
    with pytest.raises(UserError, match=rf"distill\.teachers: stages wait for each other in a circle \({circle}\)"):
        folder.load()


def test_teachers_from_elsewhere(folder):
    folder.stage("teacher")
    folder.stage("student", f"{folder.root}/elsewhere/run", f"{folder.ckpt}/teacher_{{run}}/epoch_001.pth.tar")
    chain = folder.load()
    with pytest.raises(UserError, match=r"student\.yaml: distill\.teachers: t0: checkpoint: .*/elsewhere/run: no such "
                                        r"checkpoint, and no stage of .*/chain makes it .* e\.g\. .*/ckpt/teacher_\{run\}"):
        chain.plan(["student"])
    assert list(chain.plan(["teacher"])) == ["teacher_seed0"]
    (folder.root / "elsewhere" / "run").mkdir(parents=True)
    with pytest.raises(UserError, match="no such checkpoint"):  # a folder without checkpoints
        chain.plan(["student"])
    (folder.root / "elsewhere" / "run" / "epoch_007.pth.tar").touch()
    assert list(chain.plan(["student"])) == ["teacher_seed0", "student_seed0"]  # one file of a stage's run
    assert chain.source_names(chain.runs["student_seed0"]) == [f"{folder.root}/elsewhere/run", "teacher"]


def test_folders_that_are_no_chain(folder, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        load_chain(tmp_path / "nowhere", [Repeat(None, 0)], "seed")
    with pytest.raises(UserError, match=r"chain: holds no stage"):
        folder.load()
    folder.stage("a")
    folder.stage("b", output_folder="./other")
    with pytest.raises(UserError, match=r"b\.yaml: output_folder: \./other, but .*a\.yaml writes to .*/ckpt"):
        folder.load()


@pytest.mark.parametrize("output", ["", "a/b", "../a", "a/", "/"])
def test_names_of_runs_that_are_paths(folder, output):
    """Their runs would share one name, and all but one of them be lost."""
    folder.stage("a")
    folder.stage("b")
    with pytest.raises(UserError, match=f"--output '{output}': .* without /"):
        load_chain(folder.path, [Repeat(None, 0)], output)


def test_results_by_stage_and_seed(folder, capsys):
    for name in ("zebra", "student", "teacher"):
        folder.stage(name)
    folder.stage("student", "zebra", "teacher", distill={"init_from": "t1", "teachers": [
        {"name": f"t{i}", "checkpoint": f"{folder.ckpt}/{n}_{{run}}"} for i, n in enumerate(("zebra", "teacher"))]})
    chain = folder.load((0, 1))
    folder.finish(chain.runs["teacher_seed0"], 0.8)
    folder.finish(chain.runs["teacher_seed1"], 0.7, opt__learning_rate=1)
    folder.finish(chain.runs["student_seed1"], 0.6)
    folder.finish(chain.runs["zebra_seed1"], 0.1)
    folder.train(chain.runs["zebra_seed0"])  # not evaluated
    found = chain_results(chain)
    first, second = Repeat(None, 0), Repeat(None, 1)
    assert [(r.stage, r.average_mAP, r.steps, r.init) for r in found] == [
        ("teacher", {first: 80}, 6, "random"), ("student", {second: 60}, 6, "teacher"), ("zebra", {second: 10}, 6, "random")]
    assert found[1].teachers == ("zebra", "teacher")
    assert "teacher_seed1: left out of the table, its configuration has changed since: opt.learning_rate: 1.0 -> 0.003" in \
        capsys.readouterr().err
    assert chain_results(chain, planned=["teacher_seed1"])[0].average_mAP == {first: 80, second: pytest.approx(70)}


def results(stage, values, **sections):
    by_run = {Repeat(None, seed): value for seed, value in enumerate(values)} if isinstance(values, list) else values
    return StageResults(stage, tiny_config(**sections), (), "random", 40, by_run)


def costs(config):
    flops = 8e9 if config.model.embd_dim == 16 else 1e9
    return SimpleNamespace(params=1_234_567, flops=flops, latency_ms=12.345, length=48, threads=2, machine="a machine")


STREAMS = {"modalities": {"rgb": [0, 4], "flow": [4, 6]}}
NARROW = {"embd_dim": 8, "fpn_dim": 8, "modalities": ["rgb"], "hallucinator": "separable", "hallucinated": ["flow"]}


def test_table_by_hand():
    rows = {row["stage"]: row for row in table_rows([
        results("teacher", [80.0, 84.0]), results("student_alone", [70.0, 72.0, 77.0]),
        results("student", [75.0, 80.0, 79.0], dataset=STREAMS, model=NARROW)], costs)}
    student = rows["student"]
    assert student["average_mAP"] == {"0": 75, "1": 80, "2": 79}
    assert student["mean"] == 78
    assert student["standard_deviation"] == pytest.approx(7 ** 0.5)  # squares 9 + 4 + 1 over n - 1 = 2
    assert student["difference"] == {"0": 5, "1": 8, "2": 2}
    assert student["mean_difference"] == 5
    assert student["gap_recovered"] == pytest.approx(100 * 6.5 / 11)  # seeds 0 and 1: 77.5 of 71 to 82
    assert student["flops_of_teacher"] == 0.125
    assert (student["modalities"], student["hallucinated"]) == (["rgb"], ["flow"])
    assert (student["epochs"], student["iterations_per_epoch"], student["steps"]) == (4, 10, 40)
    assert (rows["teacher"]["gap_recovered"], rows["student_alone"]["gap_recovered"]) == (100, 0)
    assert rows["teacher"]["difference"] == {"0": 10, "1": 12}


def test_table_without_its_ends():
    (row,) = table_rows([results("student", [75.0])], costs)
    assert [row[k] for k in ("standard_deviation", "mean_difference", "gap_recovered", "flops_of_teacher")] == [None] * 4
    assert row["difference"] == {}
    rows = table_rows([results("teacher", [70.0]), results("student_alone", [71.0]), results("student", [72.0])], costs)
    assert [row["gap_recovered"] for row in rows] == [None] * 3  # no gap to close
    json.dumps(rows, allow_nan=False)


def test_markdown():
    text = markdown(table_rows([results("student_alone", [70.0, 72.0]),
                                results("student", [75.0], dataset=STREAMS, model=NARROW)], costs))
    lines = text.splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert "of seeds 0, 1" in lines[0]
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells == ["student", "rgb (+ flow made up)", "-", "random", "4 x 10 = 40", "75.00", "75.00 -", "+5.00", "+5.00 -", "-",
                     "1.235", "1.000", "-", "12.3"]
    assert "71.00 ± 1.41" in lines[2]
    assert "2 threads" in text
    assert "one sequence of 48 feature vectors" in text


def test_table_with_what_features_cost():
    streams = {"dataset": {**STREAMS, "feature_gflop": {"rgb": 3.0, "flow": 1.0}}}
    rows = table_rows([results("teacher", [70.0], **streams), results("student", [75.0], **streams, model=NARROW)], costs)
    assert [row["feature_flops"] for row in rows] == [48 * 4e9, 48 * 3e9]  # what is hallucinated is not extracted
    assert rows[1]["whole_of_teacher"] == pytest.approx((48 * 3 + 1) / (48 * 4 + 8))
    lines = markdown(rows).splitlines()
    assert [[cell.strip() for cell in line.split("|")[-3:-1]] for line in lines[2:4]] == [["192", "100.0"], ["144", "72.5"]]
    assert "without the optical flow itself" in lines[-1]


def test_an_evaluation_with_other_settings_is_no_score_of_the_chain(published):
    run = published.load().runs["teacher_seed0"]
    published.finish(run)
    file = run.folder / "eval" / "epoch_002_ema" / "results.json"
    for setting, message in (("test_cfg.nms_sigma=0.1", r"test_cfg\.nms_sigma: 0\.1, not 0\.5; remove it"),
                             ("loader.num_workers=1", None), ("test_cfg.batch_size=3", None)):
        used = load_config(run.config.source, [*run.overrides, setting])
        file.write_text(json.dumps({"average_mAP": 0.5, "config": to_dict(used)}))
        if message is None:
            assert run.average_mAP() == 50
        else:
            with pytest.raises(UserError, match=message):
                run.average_mAP()


def test_folds_have_runs_and_teachers_of_their_own(folder):
    folder.stage_with_folds("teacher")
    folder.stage_with_folds("student", "teacher")
    chain = folder.load((0, 1), folds=(2, 1))
    assert list(chain.plan(["student"])) == [f"{stage}_fold{fold}_seed{seed}" for fold in (1, 2) for seed in (0, 1)
                                             for stage in ("teacher", "student")]
    run = chain.runs["student_fold2_seed1"]
    assert chain.teachers(run) == ["teacher_fold2_seed1"]
    assert (run.folder, run.config.dataset.json_file) == (folder.ckpt / run.label, f"{folder.root}/split2.json")
    assert run.training[-3:] == ["--set", "fold=2", "init_rand_seed=1"]
    folder.finish(chain.runs["teacher_fold2_seed0"], 0.8)
    assert chain_results(chain)[0].average_mAP == {Repeat(2, 0): 80}


def test_each_fold_has_cross_fitted_teachers_of_its_own(folder):
    for part in range(2):
        folder.stage_with_folds(f"teacher_part{part}", train_cfg={"leave_out": [part, 2]})
    fitted = {"name": "fitted", "checkpoint": f"{folder.ckpt}/teacher_part{{part}}_{{run}}", "cross_fit": 2}
    folder.stage_with_folds("student", distill={"teachers": [fitted], "outputs": "cache"}, dataset={"crop_align": 32})
    chain = folder.load((0, 5), folds=(1, 3))
    for run in (run for run in chain.runs.values() if run.stage == "student"):
        assert chain.teachers(run) == [f"teacher_part{part}_{run.name}" for part in (0, 1)]
        assert {chain.runs[label].config.dataset.json_file for label in chain.teachers(run)} == {run.config.dataset.json_file}


def test_folds_without_a_place_for_their_number(folder):
    folder.stage("teacher")
    with pytest.raises(UserError, match=r"teacher\.yaml: fold \(from --set fold=1\): changes nothing"):
        folder.load(folds=(1, 2))


def test_table_over_folds_by_hand():
    runs = [Repeat(fold, seed) for fold in (1, 3) for seed in (0, 1)]
    alone = dict(zip(runs, (60.0, 62.0, 70.0, 74.0), strict=True))
    taught = {runs[0]: 65.0, runs[2]: 71.0, runs[3]: 77.0}  # one is missing
    teacher = {run: value + 10 for run, value in alone.items()}
    rows = table_rows([results("teacher", teacher), results("student_alone", alone), results("student", taught)], costs)
    student = rows[2]
    assert (student["average_mAP"], student["mean"]) == ({"1": 65, "3": 74}, 69.5)
    assert student["standard_deviation"] == pytest.approx(40.5 ** 0.5)
    assert (student["difference"], student["mean_difference"]) == ({"1": 5, "3": 2}, 3.5)  # of the runs that both have
    assert student["gap_recovered"] == pytest.approx(35)
    assert student["runs"] == {"fold1_seed0": 65, "fold3_seed0": 71, "fold3_seed1": 77}
    assert student["seed_deviation"] == pytest.approx(18 ** 0.5)
    text = markdown(rows)
    assert "of folds 1, 3" in text.splitlines()[0]
    assert "| 69.50 ± 6.36 (± 4.24) | 65.00 74.00 " in text.splitlines()[4]
    assert "standard deviation over folds" in text
