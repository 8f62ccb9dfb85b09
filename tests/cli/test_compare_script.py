"""tools/compare.py: the mAP of tools/evaluate.py, several seeds, and one error for what cannot be compared."""
from __future__ import annotations

import json

import compare
import evaluate
import numpy as np
import pytest
from helpers import one_error, run_script


@pytest.fixture
def files(tmp_path):
    """Annotations of twelve videos, and four predictions files of growing noise."""
    rng = np.random.default_rng(0)
    segments = {f"v{i}": [[s, s + 5.0] for s in np.arange(0, 50, 10.0)] for i in range(12)}
    database = {video: {"subset": "test", "duration": 60.0, "annotations": [{"segment": s, "label": "ab"[i % 2]}
                for i, s in enumerate(items)]} for video, items in segments.items()}
    (tmp_path / "truth.json").write_text(json.dumps({"database": database}))
    for n in range(4):
        results = {video: [{"segment": (np.sort(np.array(s) + rng.normal(0, 0.3 + n, 2)).clip(0)).tolist(), "label": "ab"[i % 2],
                            "score": float(rng.random())} for i, s in enumerate(items)] for video, items in segments.items()}
        (tmp_path / f"{n}.json").write_text(json.dumps({"results": results}))
    return tmp_path


def run(capsys, *argv):
    return run_script(capsys, compare.main, "compare.py", *map(str, argv), "--resamples", "200")


def test_compares_with_the_mAP_of_evaluate(files, capsys):
    code, out, err = run(capsys, files / "3.json", files / "0.json", files / "truth.json", "--names", "old", "new", "--json",
                         files / "c.json")
    assert (code, err) == (0, "")
    content = json.loads((files / "c.json").read_text())
    for side, name in (("A", "3.json"), ("B", "0.json")):
        run_script(capsys, evaluate.main, "evaluate.py", str(files / name), str(files / "truth.json"), "--json",
                   str(files / "e.json"))
        expected = json.loads((files / "e.json").read_text())
        assert content["average"][side] == pytest.approx(expected["average_mAP"])
        assert [row[side] for row in content["classes"]] == pytest.approx(
            [np.mean(ap) for ap in expected["per_class_AP"].values()])
    assert "new is better than old: +" in out
    assert "12 videos, 1 and 1 runs, 200 resamples" in out
    assert [row["value"] for row in content["classes"]] == ["a", "b"]


def test_several_seeds_and_the_same_numbers_again(files, capsys):
    argv = files / "0.json", files / "2.json", files / "truth.json", "--more-a", files / "1.json", "--more-b", files / "3.json"
    outputs = [run(capsys, *argv, "--json", files / "c.json") for _ in range(2)]
    assert outputs[0] == outputs[1]
    assert "2 and 2 runs" in outputs[0][1]
    assert json.loads((files / "c.json").read_text())["average"]["seed_error"] > 0


@pytest.mark.parametrize(("more", "expected"), [
    (["--resamples", "5"], ["--resamples 5", "100"]),
    (["--more-a", "{}/0.json"], ["occurs twice"]),
    (["--more-a", "{}/2.json", "--paired"], ["2 files of A and 1 of B"]),
    (["--json", "{}/truth.json"], ["truth.json", "would be replaced"]),
    (["--split", "train"], ["no split 'train'"])])
def test_bad_input(files, capsys, more, expected):
    names = [str(files / name) for name in ("0.json", "1.json", "truth.json")]
    code, _, err = run_script(capsys, compare.main, "compare.py", *names, *(text.format(files) for text in more))
    message = one_error(code, err)
    assert all(text in message for text in expected), message
