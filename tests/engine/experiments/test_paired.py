"""Paired tests between runs: over seeds, over folds, over videos; what cannot be tested."""
from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import Data, data_config, write_data

from libs.datasets.dataset import TalDataset
from libs.engine.experiments.paired import Evaluation, paired_line, paired_tests
from libs.engine.experiments.repeats import Repeat, mean_interval
from libs.engine.inference.predict import score
from libs.utils.evaluation.predictions import Detections, write_predictions_pickle
from libs.utils.significance.comparison import compare

VIDEOS = 24


def enlarge(data: Data) -> None:
    """Many validation videos, copies of the first one with other times of its segments."""
    def change(document):
        database = document["database"]
        first = next(vid for vid, entry in database.items() if entry["subset"] == "validation")
        entry = database.pop(first)
        for i in range(VIDEOS):
            items = [{**item, "segment": [t + 0.01 * i for t in item["segment"]]} for item in entry["annotations"]]
            database[f"p{i:02d}"] = {**entry, "annotations": items}
            shutil.copy(data.features / f"{first}.npy", data.features / f"p{i:02d}.npy")
    data.edit(change)


class Runs:
    """Runs that were evaluated: their segments are those of the ground truth, moved by some noise."""

    def __init__(self, folder: Path) -> None:
        self.folder, data = folder, write_data(folder)
        enlarge(data)
        self.config = data_config(data, folder)
        self.dataset = TalDataset(self.config, self.config.val_split, training=False)
        self.truth = self.dataset.ground_truth()
        self.files: dict[tuple[str, Repeat], tuple] = {}

    def __call__(self, name: str, noise: float, repeats: list[Repeat]) -> dict[Repeat, Evaluation]:
        return {repeat: self.one(name, noise, repeat) for repeat in repeats}

    def one(self, name: str, noise: float, repeat: Repeat) -> Evaluation:
        rng = np.random.default_rng([ord(name[0]), repeat.seed, repeat.fold or 0])
        start = self.truth.t_start + rng.normal(0, noise, len(self.truth.label))
        found = Detections.from_arrays(self.truth.video_id, start, start + self.truth.t_end - self.truth.t_start,
                                       self.truth.label, rng.random(len(start)))
        scores = score(found, self.dataset)
        folder = self.folder / f"{name}_{repeat.name()}"
        folder.mkdir()
        write_predictions_pickle(folder / "eval_results.pkl", found)
        (folder / "results.json").write_text(json.dumps({"average_mAP": scores.average_mAP}))
        self.files[name, repeat] = found, scores
        return Evaluation(100 * scores.average_mAP, self.config, folder / "results.json")


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path)


SEEDS = [Repeat(None, seed) for seed in range(3)]


def test_over_seeds_and_videos(runs):
    methods = {"alone": runs("alone", 0.5, SEEDS), "student": runs("student", 0.25, SEEDS)}
    (test,) = paired_tests(methods, "alone")
    gaps = [methods["student"][seed].average_mAP - methods["alone"][seed].average_mAP for seed in SEEDS]
    assert list(test["difference"].values()) == pytest.approx(gaps)
    reach = 4.303 * np.std(gaps, ddof=1) / 3 ** 0.5
    assert test["interval"] == pytest.approx([np.mean(gaps) - reach, np.mean(gaps) + reach])
    codes = {video: i for i, video in enumerate(sorted(runs.dataset.annotated_ids))}
    sides = [[runs.files[name, seed] for seed in SEEDS] for name in ("alone", "student")]
    same = compare(*sides, codes, paired=True, resamples=1000)
    found = test["videos"]
    assert found["videos"] == len(runs.dataset.annotated_ids) >= VIDEOS
    assert found["difference"] == pytest.approx(np.mean(gaps))
    assert found["interval"] == pytest.approx((100 * same.limits[:, 0]).tolist())  # as tools/compare.py --paired
    assert found["probability_better"] == same.better[0] > 0.9
    line = paired_line(test)
    assert line.startswith(f"student minus alone: {np.mean(gaps):+.2f}; over 3 seeds {test['interval'][0]:+.2f} to ")
    assert f"over {found['videos']} videos {found['interval'][0]:+.2f} to {found['interval'][1]:+.2f}, better with" in line
    json.dumps(test, allow_nan=False)


def test_only_runs_that_both_have_count_and_one_has_no_interval(runs, capsys):
    methods = {"alone": runs("alone", 0.5, SEEDS), "student": runs("student", 0.25, SEEDS[1:2]), "other": {}}
    (test,) = paired_tests(methods, "alone")
    assert list(test["difference"]) == ["1"]
    assert test["interval"] is None
    assert test["videos"]["difference"] == pytest.approx(test["mean_difference"])
    assert "one seed: no interval over seeds" in paired_line(test)
    assert capsys.readouterr().err == ""


def test_over_folds_each_with_videos_of_its_own(runs):
    folds = [Repeat(fold, seed) for fold in (1, 2, 3) for seed in (0, 1)]
    methods = {"alone": runs("alone", 0.5, folds), "student": runs("student", 0.5, folds)}
    (test,) = paired_tests(methods, "alone")
    assert (test["units"], list(test["difference"])) == ("folds", ["1", "2", "3"])
    one = paired_tests({name: {r: e for r, e in both.items() if r.fold == 1} for name, both in methods.items()}, "alone")[0]
    whole, part = test["videos"], one["videos"]
    assert whole["difference"] == pytest.approx(test["mean_difference"])
    assert whole["videos"] == 3 * part["videos"]
    assert np.ptp(whole["interval"]) < np.ptp(part["interval"])  # three test sets tell more than one


def test_what_cannot_be_tested_over_videos(runs, capsys):
    methods = {"alone": runs("alone", 0.5, SEEDS), "student": runs("student", 0.25, SEEDS)}
    wide = dataclasses.replace(runs.config, dataset=dataclasses.replace(runs.config.dataset, tiou_thresholds=(0.5,)))
    other = {**methods, "student": {repeat: one._replace(config=wide) for repeat, one in methods["student"].items()}}
    (test,) = paired_tests(other, "alone")
    assert test["videos"] is None
    assert test["interval"] is not None
    assert capsys.readouterr().err == ""
    methods["student"][SEEDS[1]].file.with_name("eval_results.pkl").unlink()
    (test,) = paired_tests(methods, "alone")
    assert test["videos"] is None
    assert "videos" not in paired_line(test)
    err = capsys.readouterr().err
    assert err.startswith("note: no paired test over videos: ")
    assert err.count("\n") == 1
    assert "student_seed1/eval_results.pkl" in err
    file = methods["alone"][SEEDS[0]].file
    file.write_text('{"average_mAP": 0.1}')
    paired_tests(methods, "alone")
    err = capsys.readouterr().err
    assert f"{file}: its average mAP is not that of eval_results.pkl" in err
    assert "evaluate again" in err


def test_interval_of_a_mean():
    assert mean_interval([1.0]) is None
    assert mean_interval([1.0, 3.0]) == pytest.approx([2 - 12.706, 2 + 12.706])
