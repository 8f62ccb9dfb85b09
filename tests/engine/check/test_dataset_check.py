"""check_dataset finds planted faults, names place and remedy, says nothing about a sound dataset, and suggests what trains."""
from __future__ import annotations

import json
import re
from pathlib import Path

import check_dataset as script
import numpy as np
import pytest
from dataset_faults import FAULTS, STRIDE, TRAIN, VAL, WINDOW, Case
from helpers import one_error, run_script

from libs.core.config import load_config
from libs.core.errors import UserError
from libs.datasets.dataset import TalDataset
from libs.engine.check.dataset_check import CheckOptions, check_dataset
from libs.engine.check.report import as_dict, as_text

ROOT = Path(__file__).resolve().parents[3]


def run(case: Case):
    case.save()
    return check_dataset(str(case.annotations), [str(case.features)],
                         CheckOptions(config_path=str(case.config) if case.config else None, progress=False))


@pytest.mark.parametrize("name", FAULTS)
def test_finds(name, tmp_path):
    case = Case(tmp_path)
    damage, kind, severity, fragments = FAULTS[name]
    damage(case)
    report = run(case)
    found = [p for p in report.problems.found if p.kind == kind and p.severity == severity
             and all(fragment in str(p) for fragment in fragments)]
    assert found, [f"{p.severity}: {p.kind}: {p}" for p in report.problems.found]
    assert all(p.remedy and p.file and "\n" not in str(p) for p in report.problems.found)
    assert as_text(report)


@pytest.mark.parametrize("configured", [False, True])
def test_a_sound_dataset_has_no_findings(configured, tmp_path):
    case = Case(tmp_path)
    if configured:
        case.configure()
    report = run(case)
    assert report.problems.found == []
    assert (report.grid.stride, report.grid.num_frames, report.grid.share) == (STRIDE, WINDOW, 1.0)


def test_a_folder_named_twice_is_one_error(tmp_path):
    case = Case(tmp_path)
    case.save()
    with pytest.raises(UserError, match=r"features/: is named twice.*name it once"):
        check_dataset(str(case.annotations), [str(case.features), f"{case.features}/"])


def test_short_words_are_names_and_no_typing_mistakes(tmp_path):
    case = Case(tmp_path)
    for entry in case.document["database"].values():
        for item in entry["annotations"]:
            item.update(label={"jump": "move x", "throw": "open door"}.get(item["label"], item["label"]))
            del item["label_id"]
    case.item("train_0", 0, label="move y")
    case.item("train_1", 0, label="open dor")
    assert [p.where for p in run(case).problems.found if p.kind == "label-typo"] == ["label 'open dor'"]


def test_no_bar_is_written_where_there_is_no_terminal(tmp_path, capsys):
    case = Case(tmp_path)
    case.save()
    check_dataset(str(case.annotations), [str(case.features)], CheckOptions(progress=True))
    assert capsys.readouterr() == ("", "")


def test_videos_may_lack_annotations_where_training_does_not_ask_for_them(tmp_path):
    case = Case(tmp_path)
    case.configure(top__unlabelled_split=["more"])
    for vid in ("train_2", "train_3"):
        case.video(vid, subset="more")
    case.drop("train_3", "annotations")
    assert [p.kind for p in run(case).problems.found] == []
    case.video("train_3", subset="training")
    assert [p.kind for p in run(case).problems.found] == ["annotation-entry"]


def test_threads_change_neither_findings_nor_their_order(tmp_path, monkeypatch):
    case = Case(tmp_path)
    for vid in ("train_1", "train_4", "val_2"):
        case.feats(vid, lambda feats: np.where(feats > 1, np.nan, feats))
    case.feats("train_7", np.zeros_like)
    results = []
    for threads in (1, 4):
        monkeypatch.setattr("libs.datasets.survey.features.MAX_THREADS", threads)
        monkeypatch.setattr("joblib.cpu_count", lambda: 4)
        report = run(case)
        results.append((report.problems.found, list(report.files.items())))
    assert results[0] == results[1]
    assert [p.file[-11:] for p in results[0][0]] == ["train_1.npy", "train_4.npy", "train_7.npy", "s/val_2.npy"]


def test_several_faults_are_all_found(tmp_path):
    names = ["no fps", "an end before the start", "a repeated segment", "a NaN", "a file too many"]
    case = Case(tmp_path)
    case.video("train_4", fps=None)
    case.item("train_0", 1, segment=[3.0, 2.0])
    case.add("train_1", 1.0, 2.5, "throw", 1)
    for name in names[3:]:
        FAULTS[name][0](case)
    assert {"fps", "segment", "duplicate-segment", "non-finite", "feature-without-annotation"} == {
        p.kind for p in run(case).problems.found}


def test_keys_of_the_configuration_can_be_set(tmp_path, capsys):
    case = Case(tmp_path)
    case.configure()
    case.save()
    (tmp_path / "folds.yaml").write_text("_base_: my.yaml\noutput_folder: ./ckpt/fold{fold}")
    argv = ["check_dataset.py", str(case.annotations), str(case.features), "--config", str(tmp_path / "folds.yaml")]
    assert "--set fold=1" in run_script(capsys, script.main, *argv)[1]
    assert "error: configuration" not in run_script(capsys, script.main, *argv, "--set", "fold=1")[1]


def test_missing_fps_and_durations_are_one_line_each_with_the_option_that_mends_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = Case(tmp_path)
    for vid in TRAIN + VAL:
        case.drop(vid, "fps")
        case.drop(vid, "duration")
    case.save()
    argv = ["check_dataset.py", "my.json", "features", "--write", "configs/my.yaml"]
    code, out, err = run_script(capsys, script.main, *argv)
    found = [line for line in out.splitlines() if line.startswith(("error: ", "warning: "))]
    assert (code, len(found)) == (2, 2), out
    assert all(part in found[0] for part in ("error: fps: my.json", "14 of 14", "'train_0'", "no fps", "--fps", "default_fps"))
    assert all(part in found[1] for part in ("warning: duration: my.json", "14 of 14", "no duration", "--durations"))
    assert err.splitlines()[-1] == "configs/my.yaml: not written: no training video has an fps; give one for all with --fps"
    code, out, err = run_script(capsys, script.main, *argv, "--fps", "20")
    assert (code, "error: fps" in out, "warning: grid-unknown" in out) == (0, False, True)
    assert "not written: the stride of the features is not known; name it with --feat-stride" in err
    code, out, _ = run_script(capsys, script.main, *argv, "--fps", "20", "--feat-stride", "4", "--num-frames", "8")
    assert (code, load_config("configs/my.yaml", check=False).dataset.default_fps) == (0, 20)


def test_the_documentation_lists_every_kind_and_no_other():
    text = (ROOT / "docs" / "custom_dataset.md").read_text()
    listed = set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE))
    source = "".join((ROOT / "libs" / p).read_text() for p in (
        "datasets/annotations.py", "datasets/survey/checks.py", "datasets/survey/features.py", "datasets/survey/subjects.py",
        "engine/check/dataset_check.py"))
    used = set(re.findall(r'(?:error|warning|caught|attempt|add)\(\s*"([a-z-]+)"', source))
    assert used <= listed, used - listed
    assert {kind for _, kind, _, _ in FAULTS.values()} <= listed


def test_the_suggestion_loads_fits_the_data_and_covers_every_segment(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = Case(tmp_path)
    case.save()
    code, out, err = run_script(capsys, script.main, "check_dataset.py", "my.json", "features", "--write", "configs/my.yaml")
    assert (code, "0 errors, 0 warnings" in out) == (0, True), out + err
    config = load_config("configs/my.yaml")
    data = config.dataset
    assert (data.feat_stride, data.num_frames, data.input_dim, data.num_classes) == (4, 8, 6, 3)
    for split, training in ((config.train_split, True), (config.val_split, False)):
        assert TalDataset(config, split, training).missing_ids == ()
    assert run_script(capsys, script.main, "check_dataset.py", "my.json", "features", "--config", "configs/my.yaml")[0] == 0
    before = Path("configs/my.yaml").read_bytes()
    again = run_script(capsys, script.main, "check_dataset.py", "my.json", "features", "--write", "configs/my.yaml")
    assert "exists already" in one_error(*again[::2])
    assert Path("configs/my.yaml").read_bytes() == before


def test_exit_code_and_json(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = Case(tmp_path)
    for vid in list(case.document["database"])[:12]:
        (case.features / f"{vid}.npy").unlink()
    case.save()
    code, out, err = run_script(capsys, script.main, "check_dataset.py", "my.json", "features", "--json", "out.json")
    assert (code, "Traceback" in err) == (2, False)
    assert out.count("error: missing-features: features/") == 10
    assert "... and 2 more" in out
    content = json.loads(Path("out.json").read_text())
    assert content["counts"] == {"error": 12, "warning": sum(p["severity"] == "warning" for p in content["problems"])}
    assert {p["kind"] for p in content["problems"] if p["severity"] == "error"} == {"missing-features"}
    assert content["subsets"]["training"]["with_features"] == 0
    code, out, _ = run_script(capsys, script.main, "check_dataset.py", "my.json", "features", "--all")
    assert out.count("error: missing-features: ") == 12


def test_the_annotations_are_not_replaced(tmp_path, capsys, monkeypatch):
    Case(tmp_path).save()
    monkeypatch.chdir(tmp_path)
    before = Path("my.json").read_bytes()
    for argv in (["--json", "./my.json"], ["--write", "my.json", "--overwrite"]):
        error = one_error(*run_script(capsys, script.main, "check_dataset.py", "my.json", "features", *argv)[::2])
        assert "my.json: is read by this command" in error
        assert Path("my.json").read_bytes() == before


def test_names_with_prefix_and_suffix_and_one_h5_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    case = Case(tmp_path)
    for path in list(case.features.iterdir()):
        path.rename(path.with_name(f"v_{path.stem}_i3d.npy"))
    report = run(case)
    assert report.problems.found == []
    assert "file_prefix: v_" in report.suggestion
    assert "file_ext: _i3d.npy" in report.suggestion
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for path in case.features.iterdir():
            file[path.stem[2:-4]] = np.load(path)
    case.features = tmp_path / "all.h5"
    assert run(case).problems.found == []


def test_subsets_that_are_trained_on_when_nobody_says(tmp_path):
    """As THUMOS14: without a training subset, validation is trained on and test is evaluated."""
    case = Case(tmp_path)
    for entry in case.document["database"].values():
        entry["subset"] = {"training": "validation", "validation": "test"}[entry["subset"]]
    report = run(case)
    assert (report.splits.train, report.splits.val, report.problems.found) == (("validation",), ("test",), [])


def test_the_report_counts_by_hand(tmp_path):
    case = Case(tmp_path)
    values = as_dict(run(case))
    training = values["subsets"]["training"]
    assert (training["videos"], training["segments"], values["subsets"]["validation"]["segments"]) == (10, 40, 16)
    assert sum(training["classes"].values()) == 40
    assert training["segment_s"][0] == 1.5
    assert training["histogram"][2] == 30  # 1.5, 1.7 and 1.9 s; 2.1 s is in the next bin
    assert values["coverage"]["segments"] == 56
    assert values["coverage"]["unmatched"] == {}
