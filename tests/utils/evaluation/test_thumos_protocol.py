"""The official THUMOS14 protocol, its folder of ground truth, and the script tools/evaluate.py."""
from __future__ import annotations

import gzip
import json
import shutil
import warnings
from pathlib import Path

import metrics_twin as twin
import numpy as np
import pytest
from evaluate import main
from golden.metrics import check_oracle
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from metrics_twin import cases, random_case, rows, truth

from libs.core.errors import UserError
from libs.utils.evaluation import matching
from libs.utils.evaluation.predictions import Detections, GroundTruth, write_predictions
from libs.utils.evaluation.thumos_protocol import evaluate_thumos14, load_thumos14_folder

GOLDEN = Path(__file__).parents[2] / "golden"
CASE = "scnn_c3d_thr0.1"


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real detections, official files and the authors' numbers, laid out as published."""
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "detections").mkdir()
    (folder / "annotation_test").mkdir()
    shutil.copy(GOLDEN / "thumos_oracle_detections.csv.gz", folder / "detections" / f"{CASE}.csv.gz")
    shutil.copy(GOLDEN / "thumos_oracle_numbers.json", folder / "oracle.json")
    for name, content in json.loads(gzip.decompress((GOLDEN / "thumos_oracle_annotations.json.gz").read_bytes())).items():
        (folder / "annotation_test" / name).write_text(content, encoding="utf-8")
    return folder


def test_every_number_of_the_oracle(oracle: Path) -> None:
    checks = check_oracle(oracle)
    assert len([c for c in checks if not c.informational]) >= 60
    assert [(c.name, c.error) for c in checks if not c.passed and not c.informational] == []


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_the_slow_twin(seed: int) -> None:
    predictions, truths = random_case(seed)
    ambiguous = [(f"v{i % 5}", 4.0 * i, 4.0 * i + 2.0, 0) for i in range(6)]
    for unsure in ([], ambiguous):
        scores = evaluate_thumos14(rows(predictions), truth(truths), (0.2, 0.5, 0.75), truth(unsure) if unsure else None)
        for i, tiou in enumerate(scores.tious):
            wanted = twin.thumos14_ap(predictions, truths, unsure, tiou)
            np.testing.assert_allclose(scores.AP[i], list(wanted.values()), atol=1e-12)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(cases(), cases(num=0), st.lists(st.sampled_from([0.01, 0.25, 0.5, 1.0]) | st.floats(0.01, 1), min_size=1, max_size=4))
def test_agrees_with_the_slow_twin_on_any_input(case: tuple, other: tuple, tious: list[float]) -> None:
    predictions, truths = case
    assume(truths)
    found = rows(predictions) if predictions else Detections.empty()
    for unsure, per_part in ((other[1], 1 << 17), ([], 3)):
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")
            patch.setattr(matching, "_PAIRS_AT_ONCE", per_part)
            scores = evaluate_thumos14(found, truth(truths), tious, truth(unsure) if unsure else None)
        for i, tiou in enumerate(scores.tious):
            wanted = twin.thumos14_ap(predictions, truths, unsure, tiou)
            np.testing.assert_allclose(scores.AP[i], list(wanted.values()), atol=1e-12)


def test_ground_truth_takes_the_best_overlap_not_the_best_score() -> None:
    found = rows([("a", 0, 6, 0, 0.9), ("a", 0, 10, 0, 0.1)])
    scores = evaluate_thumos14(found, truth([("a", 0, 10, 0)]), [0.5])
    assert scores.AP[0, 0] == 0.5  # the better score is the false positive


def test_the_threshold_itself_is_not_enough() -> None:
    found = rows([("a", 0, 5, 0, 0.9)])
    assert evaluate_thumos14(found, truth([("a", 0, 10, 0)]), [0.5]).mAP[0] == 0
    assert evaluate_thumos14(found, truth([("a", 0, 10, 0)]), [0.49]).mAP[0] == 1


def test_ambiguous_segments_excuse_only_unmatched_detections_that_overlap_them() -> None:
    truths = truth([("a", 0, 10, 0)])
    unsure = truth([("a", 5, 20, 0), ("b", 0, 1, 0)])
    excused, beside, hit = ("a", 15, 25, 0, 0.9), ("a", 20, 25, 0, 0.8), ("a", 0, 10, 0, 0.5)
    assert evaluate_thumos14(rows([excused, hit]), truths, [0.5]).mAP[0] == 0.5
    assert evaluate_thumos14(rows([excused, hit]), truths, [0.5], unsure).mAP[0] == 1.0
    assert evaluate_thumos14(rows([beside, hit]), truths, [0.5], unsure).mAP[0] == 0.5  # shares a point in time only


def test_equal_scores_follow_the_names_of_the_videos() -> None:
    truths = truth([("a", 0, 10, 0)])
    assert evaluate_thumos14(rows([("b", 0, 10, 0, 0.5), ("a", 0, 10, 0, 0.5)]), truths, [0.5]).mAP[0] == 1.0


def test_nothing_predicted_and_nothing_known() -> None:
    with pytest.warns(UserWarning, match="no prediction at all"):
        assert evaluate_thumos14(Detections.empty(), truth([("a", 0, 10, 0)]), [0.5]).mAP.tolist() == [0.0]
    with pytest.warns(UserWarning, match="1 of 1 predictions are ignored"):
        assert evaluate_thumos14(rows([("a", 0, 10, 5, 0.5)]), truth([("a", 0, 10, 0)]), [0.5]).mAP.tolist() == [0.0]
    with pytest.raises(UserError, match="no segment to find"):
        evaluate_thumos14(rows([("a", 0, 10, 5, 0.5)]), GroundTruth.from_arrays([], [], [], []), [0.5])


def folder_of(path: Path, **files: str) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / f"{name}.txt").write_text(content, encoding="utf-8")
    return path


def test_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "gt", Jump_test="v1  1.0 2.5\n\nv2 3 4\n", Dive_test="v1 0 1\n", Ambiguous_test="v3 5 6\n",
                       detclasslist="7 Jump\n9 Dive\n")
    found = load_thumos14_folder(folder)
    assert found.label_ids == {"Jump": 7, "Dive": 9}
    assert found.ground_truth.label.tolist() == [9, 7, 7]
    assert found.ground_truth.video_id.tolist() == ["v1", "v1", "v2"]
    assert found.ambiguous.t_end.tolist() == [6.0]
    assert found.video_ids == {"v1", "v2", "v3"}
    (folder / "detclasslist.txt").unlink()
    assert load_thumos14_folder(folder).label_ids == {"Dive": 1, "Jump": 2}


@pytest.mark.parametrize(("files", "message"), [
    ({"Jump_test": "v1 1.0\n"}, r"Jump_test.txt: line 1 is 'v1 1.0'"),
    ({"Jump_test": "v1 1 2\nv1 3 2\n"}, r"Jump_test.txt: line 2"),
    ({"Jump_test": "v1 nan 2\n"}, r"Jump_test.txt: line 1"),
    ({"Jump_test": "v1 1 2\n", "detclasslist": "1 Jumb\n"}, r"'Jump' is not in detclasslist.txt \(did you mean 'Jumb'"),
    ({"Jump_test": "v1 1 2\n", "detclasslist": "1 Jump\n1 Dive\n"}, r"detclasslist.txt: line 2"),
    ({"Jump_test": "v1 1 2\n", "Jump_val": "v1 1 2\n"}, "choose one with --split"),
    ({"readme": "hello"}, "has no <Class>_test.txt")])
def test_broken_folders_are_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_thumos14_folder(folder_of(tmp_path / "gt", **files))


def test_script_prints_the_published_number(oracle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detections = str(oracle / "detections" / f"{CASE}.csv.gz")
    main([detections, str(oracle / "annotation_test"), "--protocol", "thumos14", "--tiou", "0.1",
          "--json", str(tmp_path / "out.json")])
    assert ["0.10", "47.72", "78.35"] in map(str.split, capsys.readouterr().out.splitlines())
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["protocol"] == "thumos14"
    assert content["mAP"] == [pytest.approx(0.47718649655366505, abs=1e-11)]
    main([detections, str(oracle / "annotation_test"), "--protocol", "thumos14", "--tiou", "0.1", "--count-ambiguous"])
    assert ["0.10", "46.56"] in [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    main([detections, str(oracle / "annotation_test"), "--unique-rank-scores", "--tiou", "0.1", "0.7", "--per-class"])
    want = json.loads((oracle / "oracle.json").read_text())[CASE]["anet_protocol_upstream_unique_rank_scores"]["mAP"]
    printed = capsys.readouterr().out
    rows = [line.split()[:2] for line in printed.splitlines()]
    assert ["0.10", f"{want[0]:.2f}"] in rows
    assert ["0.70", f"{want[-1]:.2f}"] in rows
    assert "VolleyballSpiking" in printed


def write_annotations(path: Path) -> str:
    def video(subset: str, *labels: int) -> dict:
        return {"subset": subset, "duration": 20.0, "fps": 25, "annotations": [
            {"segment": [2.0 * i, 2.0 * i + 1], "label": f"c{k}", "label_id": k} for i, k in enumerate(labels)]}
    database = {"t0": video("Training", 0, 1), "e0": video("Test", 0, 1), "e1": video("Test", 1)}
    path.write_text(json.dumps({"database": database}), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["p.json", "p.csv", "p.csv.gz", "p.pkl"])
@pytest.mark.parametrize("named", [True, False])
def test_script_reads_every_kind_of_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, named: bool) -> None:
    annotations = write_annotations(tmp_path / "gt.json")
    found = rows([("e0", 0, 1, 0, 0.9), ("e0", 2, 3, 1, 0.8), ("e1", 10, 11, 1, 0.9)])
    write_predictions(tmp_path / name, found, {0: "c0", 1: "c1"} if named else None)
    main([str(tmp_path / name), annotations, "--tiou", "0.5"])
    printed = capsys.readouterr().out
    assert "split test: 3 predictions, 3 segments, 2 videos, 2 classes" in printed
    # c0: 1; c1: one of two found, after a false positive: 1/2 * 1/2
    assert ["0.50", "62.50", "75.00", "75.00"] in map(str.split, printed.splitlines())


def test_script_warns_once_about_foreign_videos_and_labels(tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path / "gt.json")
    (tmp_path / "p.csv").write_text("video_id,t_start,t_end,label,score\ne0,0,1,c0,0.9\nnowhere,0,1,c0,1\nnowhere,1,2,c0,1\n"
                                    "e0,0,1,c7,0.9\n")
    with pytest.warns(UserWarning, match="predictions") as caught:
        main([str(tmp_path / "p.csv"), annotations])
    messages = sorted(str(w.message) for w in caught)
    assert len(messages) == 2
    assert "1 of 4 predictions are ignored" in messages[0]
    assert "2 predictions of 1 videos" in messages[1]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--split", "val"], "has no split 'val'; it has test, training"),
    (["--labels-from", "x.json"], "goes with a THUMOS14 folder only"),
    (["--tiou", "1.5"], "tIoU thresholds")])
def test_script_refuses(tmp_path: Path, arguments: list[str], message: str) -> None:
    annotations = write_annotations(tmp_path / "gt.json")
    write_predictions(tmp_path / "p.json", rows([("e0", 0, 1, 0, 0.9)]))
    with pytest.raises(UserError, match=message):
        main([str(tmp_path / "p.json"), annotations, *arguments])


def test_script_does_not_guess_the_split(tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path / "gt.json")
    for found, told in (([("e0", 0, 1, 0, 0.9), ("t0", 0, 1, 0, 0.9)],
                         r"choose one of test, training with --split.*leave out.*false positives"),
                        ([("other", 0, 1, 0, 0.9)], r"none of its 1 videos is among the 3 of .*gt.json.*name the annotations")):
        write_predictions(tmp_path / "p.json", rows(found))
        with pytest.raises(UserError, match=told):
            main([str(tmp_path / "p.json"), annotations])


def test_class_ids_of_another_file_are_not_mistaken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path / "gt", c0_test="e0 0 1\n", c1_test="e0 2 3\n", detclasslist="1 c0\n2 c1\n")
    write_predictions(tmp_path / "p.pkl", rows([("e0", 0, 1, 0, 0.9), ("e0", 2, 3, 1, 0.9)]))
    with pytest.raises(UserError, match=r"class id 0.*begin at 1.*--labels-from"):
        main([str(tmp_path / "p.pkl"), str(folder)])
    main([str(tmp_path / "p.pkl"), str(folder), "--labels-from", write_annotations(tmp_path / "gt.json")])
    assert "average  100.00" in capsys.readouterr().out
