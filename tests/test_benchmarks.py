"""The scripts in benchmarks/ start, run with tiny settings, and write JSON that other programs can read."""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CHANNELS, CLASSES, one_error, run_script, tiny_config
from nms_candidates import KINDS

from libs.core.config import dump_yaml, load_config
from libs.core.errors import UserError
from libs.core.files import read_text
from libs.datasets.dataset import TalDataset
from libs.modeling.model import build_model

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"
CPU_ONLY = ("bench_map.py", "bootstrap_coverage.py", "compare_trees.py", "identical_loss.py", "kill_resume.py", "make_results.py",
            "record.py")
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """The modules that the scripts share lie beside them."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A tiny configuration; the scripts make the data."""
    path = tmp_path / "tiny.yaml"
    data = {"json_file": "none.json", "feat_folder": "none", "feat_stride": 16, "num_frames": 16}
    path.write_text(dump_yaml(tiny_config(str(path), dataset=data)))
    return path


def in_process(capsys, name: str, *argv: object) -> str:
    """Run a script in this process, also what it would run in others; its standard output."""
    from common import Memory
    main = runpy.run_path(str(FOLDER / name), run_name="benchmark")["main"]
    main.__globals__["in_fresh_process"] = lambda function, *args: function(*args)
    main.__globals__["memory_of"] = lambda call, device: (call(), Memory(1000, 500))[1]
    code, out, err = run_script(capsys, main, name, *map(str, argv))
    assert code == 0, err
    return out


def read(path: Path) -> list[dict]:
    """The rows of a written JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert {"machine", "rows"} <= set(content)
    assert content["rows"]
    return content["rows"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_how_to_use_it(capsys, name):
    code, out, err = run_script(capsys, runpy.run_path(str(FOLDER / name), run_name="benchmark")["main"], name, "--help")
    assert (code, err) == (0, "")
    assert f"python benchmarks/{name}" in out


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in CPU_ONLY])
def test_a_device_that_is_not_there_is_one_error(capsys, name):
    main = runpy.run_path(str(FOLDER / name), run_name="benchmark")["main"]
    code, _, err = run_script(capsys, main, name, "--device", "cuda:99")
    assert "--device cuda:99" in one_error(code, err)


def test_coverage_of_intervals(capsys, tmp_path):
    in_process(capsys, "bootstrap_coverage.py", "--draws", 3, "--population", 400, "--videos", 60, "--resamples", 100, "--json",
               tmp_path / "c.json")
    rows = {row["interval"]: row for row in read(tmp_path / "c.json")}
    assert len(rows) == 17  # six kinds, three statistics; the logit of a difference means nothing
    one = rows["halves, mAP"]
    assert 0 <= one["coverage"] <= 1
    assert one["coverage"] == pytest.approx(1 - one["truth_below"] - one["truth_above"])
    assert one["mean_half"] > one["mean_estimate"] > 0  # smaller samples have a higher AP
    assert one["mean_width"] > 0


def test_training_steps_of_configurations(capsys, tmp_path, tiny):
    in_process(capsys, "bench_configs.py", tiny, "--steps", 2, "--json", tmp_path / "c.json")
    (row,) = read(tmp_path / "c.json")
    assert (row["config"], row["videos"], row["runs"]) == ("tiny", load_config(tiny).loader.batch_size, 2)
    assert row["step_cpu_s"] > 0
    assert row["peak_GiB"] > 0


def test_steps_of_a_stage_run_its_teachers(tmp_path):
    prepared = runpy.run_path(str(FOLDER / "bench_configs.py"))["prepared"]
    stage = ROOT / "configs/distill/salads/multi_teacher.yaml"  # a dataset with folds; two teachers, which read a second stream
    config, trainer, batch = prepared(stage, "cpu")
    assert batch.feats.shape == (config.loader.batch_size, config.dataset.max_seq_len, config.model_channels + 30)
    losses = trainer.step(batch)
    assert losses["cls_modal"] > 0
    assert losses["stem_structure"] > 0
    cached = tmp_path / "cached.yaml"
    cached.write_text(f"_base_: {ROOT}/configs/distill/demo/student.yaml\ndataset: {{crop_align: 16}}\n"
                      "distill: {outputs: cache, mixup: 0}\n")
    with pytest.raises(UserError, match=r"distill\.outputs: cache"):
        prepared(cached, "cpu")


def test_whole_test_set(capsys, tmp_path, tiny):
    out = in_process(capsys, "bench_test_set.py", "--config", tiny, "--videos", 5, "--batch-sizes", 1, 2, "--g-runs", 1,
                     "--json", tmp_path / "t.json")
    first, second = read(tmp_path / "t.json")
    assert (first["videos"], first["batch_size"], second["batch_size"]) == (5, 1, 2)
    assert first["segments"] == second["segments"] > 0
    assert first["median_s"] > 0
    assert "| batch_size | precision | videos |" in out


def test_all_epochs(capsys, tmp_path, tiny):
    in_process(capsys, "bench_epochs.py", "--config", tiny, "--videos", 4, "--epochs", 2, "--g-runs", 1, "--json",
               tmp_path / "e.json")
    row, = read(tmp_path / "e.json")
    assert (row["videos"], row["epochs"], row["steps"], row["cache"], row["bucket"]) == (4, 2, 4, "device", 16)
    assert row["first_loss"] > 0


def test_memory(capsys, tmp_path, tiny):
    in_process(capsys, "bench_memory.py", "--config", tiny, "--steps", 48, 96, "--training-steps", 48, "--precisions", "fp32",
               "--runs", 1, "--json", tmp_path / "m.json")
    rows = read(tmp_path / "m.json")
    assert [(row["work"], row["steps"]) for row in rows] == [("inference", 48), ("inference", 96), ("training", 48)]
    assert all(row["peak_GB"] == pytest.approx(row["before_GB"] + row["rise_GB"]) for row in rows)


def test_extraction_plain_and_overlapped(capsys, tmp_path):
    pytest.importorskip("cv2")
    in_process(capsys, "bench_extract.py", "--cases", "descriptor", "--frames", 4, "--runs", 1, "--json", tmp_path / "e.json")
    row, = read(tmp_path / "e.json")
    assert (row["case"], row["frames"], row["runs"]) == ("descriptor", 40, 1)
    assert row["overlapped_ratio"] == pytest.approx(row["overlapped_fps"] / row["plain_fps"])
    assert min(row["cpu_fps"], row["cpu_fps_without_decoding"]) > 0


def test_activitynet_from_files(capsys, tmp_path):
    out = in_process(capsys, "bench_anet.py", "--videos", 12, "--per-video", 20, "--classes", 4, "--runs", 1, "--g-runs", 1,
                     "--json", tmp_path / "a.json")
    assert "12 videos, 240 proposals, 480 fused detections" in out
    rows = read(tmp_path / "a.json")
    assert [row["work"] for row in rows] == ["read annotations", "read predictions", "read class scores", "fusion",
                                             "mAP and recall", "all, a new process"]
    assert [row["MB"] is not None for row in rows] == [True] * 3 + [False] * 3
    assert json.loads((tmp_path / "a.json").read_text())["average_mAP"] > 0.3
    argv = ["bench_anet.py", "--annotations", str(tmp_path / "none.json"), "--g-runs", "1"]
    code, _, err = run_script(capsys, runpy.run_path(str(FOLDER / "bench_anet.py"), run_name="benchmark")["main"], *argv)
    assert "none.json: no such ActivityNet annotation file" in one_error(code, err)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is measured on Linux")
def test_models_side_by_side(capsys, tmp_path):
    tiny = ["model.embd_dim=16", "model.fpn_dim=16", "model.head_dim=16", "dataset.max_seq_len=576"]
    in_process(capsys, "bench_models.py", "--rounds", 1, "--g-runs", 1, "--models",
               "temporalmaxer", "--json", tmp_path / "m.json", "--set", *tiny)
    row, = read(tmp_path / "m.json")
    assert row["model"] == "temporalmaxer"
    assert 0.006 < row["parameters_M"] < 0.02
    assert min(row[name] for name in ("GFLOP", "step_ms", "network_ms", "training_GB")) > 0
    argv = ["bench_models.py", "--g-runs", "1", "--models", "actionformers"]
    code, _, err = run_script(capsys, runpy.run_path(str(FOLDER / "bench_models.py"), run_name="benchmark")["main"], *argv)
    assert "--models actionformers" in one_error(code, err)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is measured on Linux")
def test_peak_of_a_call():
    from common import memory_of
    cpu = torch.device("cpu")
    assert memory_of(lambda: None, cpu).rise < 20e6
    assert 180e6 < memory_of(lambda: torch.ones(50_000_000).sum(), cpu).rise < 240e6
    assert memory_of(lambda: torch.ones(5_000_000).sum(), cpu).rise < 40e6  # the peak before it is forgotten


def test_a_process_of_its_own():
    from common import in_fresh_process
    assert in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(UserError, match=r"^nowhere\.txt: no such text; check the path$"):
        in_fresh_process(read_text, "nowhere.txt", "text")
    with pytest.raises(UserError, match=r"^_exit\(1,\): the process was killed, as a rule for lack of memory"):
        in_fresh_process(os._exit, 1)


def test_scaling(capsys, tmp_path, tiny):
    sizes = ["--steps", 64, 128, "--candidates", 50, 100, "--classes", 3, "--videos", 4, 8, "--per-video", 10]
    in_process(capsys, "bench_scaling.py", "--config", tiny, *sizes, "--runs", 1, "--short-runs", 1, "--g-runs", 1,
               "--plot", tmp_path / "s.svg", "--json", tmp_path / "s.json")
    found: dict[tuple[str, str], list[int]] = {}
    for row in read(tmp_path / "s.json"):
        assert row["median_s"] > 0
        found.setdefault((row["work"], row["against"]), []).append(row["size"])
    assert found == {("network", "steps"): [64, 128], ("decode + NMS", "candidates"): [50, 100], ("decode + NMS", "classes"): [3],
                     ("evaluator", "videos"): [4, 8], ("evaluator", "classes"): [3], ("evaluator", "predictions per video"): [10]}
    assert (tmp_path / "s.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_exponent_is_the_slope():
    exponents = runpy.run_path(str(FOLDER / "bench_scaling.py"), run_name="benchmark")["exponents"]
    rows = [{"work": "network", "against": "steps", "size": n, "median_s": 3.0 * n ** 2, "rise_GB": 0.1 * n} for n in (1, 2, 8)]
    row, = exponents(rows)
    assert row["exponent of time"] == pytest.approx(2)
    assert row["exponent of memory"] == pytest.approx(1)


def test_stand_in_has_the_lengths_of_thumos14():
    from planted_thumos import DURATIONS, VIDEOS, stand_in
    database = stand_in(VIDEOS["validation"], VIDEOS["test"])["database"]
    for subset, mean in (("validation", 209.0), ("test", 216.8)):  # of THUMOS14
        videos = [v for v in database.values() if v["subset"] == subset]
        durations = [v["duration"] for v in videos]
        assert len(videos) == VIDEOS[subset]
        assert np.mean(durations) == pytest.approx(mean, rel=0.03)
        assert DURATIONS[subset][0] <= min(durations) <= max(durations) <= DURATIONS[subset][-1]
        assert np.mean([len(v["annotations"]) for v in videos]) == pytest.approx(15.5, rel=0.05)
        for video in videos:
            assert all(0 <= a["segment"][0] < a["segment"][1] <= video["duration"] + 3 for a in video["annotations"])


def test_prepared_data_can_be_read(tmp_path, tiny):
    from planted_thumos import prepare
    path, overrides = prepare(tmp_path, None, 3, 2, tiny)
    config = load_config(path, overrides)
    training, test = TalDataset(config, config.train_split, training=True), TalDataset(config, config.val_split, training=False)
    assert (len(training), len(test)) == (3, 2)
    assert test.features(test.sample(0)).shape == (test.lengths()[0], CHANNELS)


def test_chosen_videos_of_an_annotation_file(tmp_path, tiny):
    from planted_thumos import prepare, stand_in
    (tmp_path / "all.json").write_text(json.dumps(stand_in(6, 5, CLASSES)))
    (tmp_path / "data").mkdir()
    path, overrides = prepare(tmp_path / "data", tmp_path / "all.json", 2, 3, tiny)
    config = load_config(path, overrides)
    assert len(TalDataset(config, config.train_split, training=True)) == 2
    assert len(TalDataset(config, config.val_split, training=False)) == 3
    with pytest.raises(UserError, match=r"all\.json: subset test has 5 videos, 6 are asked for"):
        prepare(tmp_path / "data", tmp_path / "all.json", 2, 6, tiny)


def test_no_room_on_the_disk(tmp_path, tiny, monkeypatch):
    import planted_thumos
    monkeypatch.setattr(planted_thumos.shutil, "disk_usage", lambda _: argparse.Namespace(free=100))
    with pytest.raises(UserError, match="set TMPDIR to a folder with more room"):
        planted_thumos.prepare(tmp_path, None, 2, 2, tiny)
    assert not (tmp_path / "features").exists()


def test_untrained_network_answers_with_many_candidates():
    from planted_thumos import ABOVE, answer_like_trained
    config = tiny_config(test_cfg={"pre_nms_topk": 10**6, "pre_nms_thresh": 0.001, "duration_thresh": 0.0})
    torch.manual_seed(0)
    model = build_model(config).train()
    found = answer_like_trained(model, config, torch.device("cpu"), 64)
    assert found == pytest.approx(ABOVE * (64 + 32 + 16) * CLASSES, rel=0.15)  # some have no length
    assert model.training


def test_results_are_whole_and_the_page_shows_them():
    import make_results
    results = make_results.read_all()  # raises for a field, a row or a number that is wrong
    assert make_results.PAGE.read_text(encoding="utf-8") == make_results.page(results), "run python benchmarks/make_results.py"
    assert make_results.PAGE.read_text(encoding="utf-8").count("\n") < 250
    for name, result in results.items():
        assert make_results.json_text(result) == (make_results.FOLDER / f"{name}.json").read_text(encoding="utf-8"), name


@pytest.mark.parametrize(("key", "number"), [
    ("hapt/hapt_ema/mean", 90.11), ("hapt/reference_raw/seeds", [88.43, 89.34, 88.32]), ("planted/two_stream/ema", 51.94),
    ("distill_planted/student/mean", 39.27), ("train_step/bf16/mean_s", 0.532)])
def test_a_number_keeps_its_key(key, number):
    import make_results
    assert make_results.value(key) == number


def test_a_key_that_is_not_there_is_one_error():
    import make_results
    with pytest.raises(UserError, match=r"hapt\.json has no row hapt_ema with a column median"):
        make_results.value("hapt/hapt_ema/median")


@pytest.mark.parametrize(("change", "problem"), [
    ({"section": "Elsewhere"}, "section"), ({"date": "yesterday"}, "date"), ({"answer": ""}, "answer"), ({"rows": {}}, "rows"),
    ({"rows": {"a": {"x": float("nan")}}}, "rows.a.x"), ({"rows": {"a": {"x": 1, "y": 2}}}, "differ in y"),
    ({"rows": {"A b": {"x": 1}}}, "rows.A b"), ({"columns": {"x": {"title": "x"}}}, "columns.x"), ({"shown": ["b"]}, "no row b"),
    ({"environment": {"cores": 2}}, "environment lacks gpu")])
def test_a_wrong_result_is_refused(change, problem):
    import make_results
    result = {"section": "Accuracy", "title": "t", "question": "q?", "answer": "a.", "commands": [], "date": "2026-01-01",
              "runs": 1, "environment": dict.fromkeys(make_results.ENVIRONMENT), "columns": {"x": {"title": "x", "unit": "s"}},
              "rows": {"a": {"x": 1}}, "notes": []}
    assert make_results.problems_of(result) == []
    assert any(problem in found for found in make_results.problems_of(result | change))
    assert "notes" in make_results.problems_of({key: result[key] for key in result if key != "notes"})[0]


def test_a_recorded_result_keeps_the_texts_of_the_old_one(tmp_path, monkeypatch):
    import make_results
    from common import write_result
    monkeypatch.setattr(sys, "argv", ["/somewhere/bench_forward.py", "--record", "speed"])
    rows = [{"precision": "fp32", "steps": 64, "median_s": 0.5, "ratio": None, "runs": 3},
            {"precision": "fp32", "steps": 128, "median_s": 0.75, "ratio": float("inf"), "runs": 3}]
    path = write_result("speed", "network", rows, folder=tmp_path)
    result = make_results.read(path)
    assert result["rows"]["fp32_128"] == {"precision": "fp32", "steps": 128, "median_s": 0.75, "runs": 3}
    assert result["columns"]["median_s"] == {"title": "median_s", "unit": "s"}
    assert (result["commands"], result["runs"]) == (["python benchmarks/bench_forward.py --record speed"], 3)
    assert result["environment"]["torch"] == torch.__version__
    result |= {"answer": "Half a second.", "shown": ["fp32_64"]}
    path.write_text(json.dumps(result), encoding="utf-8")
    again = make_results.read(write_result("speed", "network", [rows[0] | {"median_s": 0.25}], folder=tmp_path))
    assert (again["answer"], again["shown"], again["rows"]["fp32_64"]["median_s"]) == ("Half a second.", ["fp32_64"], 0.25)
    with pytest.raises(UserError, match="tell the rows apart"):
        write_result("speed", "network", [rows[0], rows[0]], folder=tmp_path)
    with pytest.raises(UserError, match="lower-case"):
        write_result("../speed", "network", rows, folder=tmp_path)


def test_json_of_a_tool_becomes_a_result(capsys, tmp_path, monkeypatch):
    import make_results
    monkeypatch.setattr(make_results, "FOLDER", tmp_path)
    seeds = {"average_mAP": {"0": 89.69, "1": 90.86}, "mean": 90.275, "standard_deviation": 0.827}
    (tmp_path / "seeds.txt").write_text(json.dumps({"config": "configs/hapt.yaml", "set": [], "ema": seeds, "raw": seeds}))
    stages = [{"stage": "teacher", "teachers": ["a", "b"], "mean": 1.5, "standard_deviation": None, "machine": "x", "threads": 1,
               "average_mAP": {"0": 1.0, "1": 2.0}}]
    (tmp_path / "stages.txt").write_text(json.dumps({"folder": "f", "set": [], "rows": stages}))
    for name in ("seeds", "stages"):
        in_process(capsys, "record.py", name, tmp_path / f"{name}.txt", "--command", "python tools/x.py")
    result = make_results.read(tmp_path / "seeds.json")
    assert (result["rows"]["ema"]["average_mAP"], result["rows"]["raw"]["mean"]) == ([89.69, 90.86], 90.275)
    assert (result["commands"], result["section"]) == (["python tools/x.py"], "Accuracy")
    row = make_results.value("stages/teacher/mean"), make_results.read(tmp_path / "stages.json")["rows"]["teacher"]
    assert row == (1.5, {"stage": "teacher", "teachers": "a, b", "mean": 1.5, "average_mAP": [1.0, 2.0]})
    (tmp_path / "other.txt").write_text("[]")
    main = runpy.run_path(str(FOLDER / "record.py"), run_name="benchmark")["main"]
    code, _, err = run_script(capsys, main, "record.py", "other", str(tmp_path / "other.txt"), "--command", "c")
    assert "other.txt: is no JSON of tools/run_seeds.py" in one_error(code, err)


def test_table_and_timing():
    from common import markdown, timing
    row = timing([1.0, 2.0, 3.0, 4.0, 5.0], g=0.5, reference_g=12.0)
    assert row == {"median_s": 3.0, "q1_s": 2.0, "q3_s": 4.0, "G": 6.0, "runs": 5, "reference_G": 12.0, "ratio": 2.0}
    lines = markdown("title", [{"a": 1, "b": 0.123456}, {"a": None, "c": 12345.6}]).splitlines()
    assert lines[1:] == ["title", "", "| a | b | c |", "|---|---|---|", "| 1 | 0.1235 |  |", "|  |  | 12,346 |"]


def test_parallel_training(capsys, tmp_path):
    main = runpy.run_path(str(FOLDER / "bench_parallel.py"), run_name="benchmark")["main"]
    main.__globals__["start"] = lambda script, processes: main.__globals__["train_all"](script[2:])
    argv = ["--splits", "1x3", "--kill", "--epochs", "1", "--json", str(tmp_path / "p.json"), "--cases"]
    code, _, err = run_script(capsys, main, "bench_parallel.py", *argv, "convnext")
    assert code == 0, err
    row, = read(tmp_path / "p.json")
    assert (row["case"], row["processes x accumulation"], row["steps"]) == ("convnext", "1x3", 6)
    assert row["weights"] < 1e-6 < 1e-5 < row["weights to average"]
    code, _, err = run_script(capsys, main, "bench_parallel.py", *argv, "no such")
    assert "--cases no such: no such case; the cases are transformer," in one_error(code, err)


@pytest.mark.slow
def test_a_gpu_day_on_the_cpu(tmp_path):
    parts = ["nms", "golden", "family", "distillation", "lengths", "nccl", "repeat"]
    run = subprocess.run([sys.executable, str(FOLDER / "gpu_day.py"), "--device", "cpu", "--tiny", "--only", *parts, "--json",
                          str(tmp_path / "day.json")], capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
    day = json.loads((tmp_path / "day.json").read_text(encoding="utf-8"))
    assert {name: part["status"] for name, part in day["parts"].items()} == dict.fromkeys(parts, "done")
    assert [row["case"] for row in day["parts"]["nms"]["rows"]] == list(KINDS)
    assert [row["case"] for row in day["parts"]["family"]["rows"]] == [
        f"{name}_thumos_i3d {precision}" for name in ("tridet", "temporalmaxer") for precision in ("fp32", "bf16")]
    assert all(row.get("equal", True) is True for part in day["parts"].values() for row in part["rows"])
    assert len(day["rows"]) == sum(len(part["rows"]) for part in day["parts"].values())
    assert "| repeat | done |" in run.stdout


def test_a_part_of_a_gpu_day_that_fails_keeps_its_rows(tmp_path, monkeypatch):
    import gpu_day

    def failing(day):
        yield {"case": "first", "ms": 1.0}
        raise ValueError("broken")

    def differing(day):
        yield {"case": "first", "equal": False}

    def slow(day):
        yield {"case": "first", "ms": 2.0}
        time.sleep(60)

    day = gpu_day.Day("cpu", True, tmp_path, None)
    found = {}
    for function, limit in ((failing, 60), (differing, 60), (slow, 3)):
        name = function.__name__
        monkeypatch.setitem(gpu_day.PARTS, name, gpu_day.Part("a part", function, limit))
        result = gpu_day.measure(name, day, limit, multiprocessing.get_context("fork"))
        found[name] = result["status"], len(result["rows"]), result["error"]
    assert found == {"failing": ("failed", 1, "ValueError: broken"), "differing": ("numbers differ", 1, None),
                     "slow": ("out of time", 1, None)}


def test_a_part_that_does_not_exist_is_one_error(capsys):
    main = runpy.run_path(str(FOLDER / "gpu_day.py"), run_name="benchmark")["main"]
    code, _, err = run_script(capsys, main, "gpu_day.py", "--device", "cpu", "--only", "stepps")
    assert "--only stepps" in one_error(code, err)
    assert "did you mean 'steps'" in err
