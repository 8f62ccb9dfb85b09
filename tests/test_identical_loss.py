"""The guard of numbers in short (benchmarks/identical_loss.py): one case of real runs, and what it says of changed records."""
from __future__ import annotations

import copy
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from helpers import one_error, run_script

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "identical_loss.py"
GUARD = runpy.run_path(str(SCRIPT), run_name="benchmark")


def guard(capsys, *argv: object) -> tuple[int, list[str], str]:
    """Exit code, lines of standard output, standard error."""
    code, out, err = run_script(capsys, GUARD["main"], SCRIPT.name, *map(str, argv))
    return code, out.splitlines(), err


def made(**train_cfg: str) -> tuple[dict, dict[str, np.ndarray]]:
    """A record as a case leaves it, and its arrays."""
    rows = [("a", "jump", 1.0, 2.0, 0.9), ("a", "turn", 5.0, 9.0, 0.4), ("a", "jump", 30.0, 31.0, 0.1)]
    record = {"settings": {"train_cfg": train_cfg}, "weights": {"module.w": "old"}, "predictions": {"predictions.csv": "old"},
              "step": [{"iteration": i, "lr": 0.1, "final_loss": 2.0} for i in (1, 2)], "evaluation": []}
    return record, {"weights: module.w": np.ones(3, np.float32), "rows": np.array(rows, GUARD["PREDICTION"])}


def said(change, reordered: bool = True, **train_cfg: str) -> list[str]:
    """The differences after `change(record, arrays)`."""
    old, old_arrays = made(**train_cfg)
    new, new_arrays = copy.deepcopy((old, old_arrays))
    change(new, new_arrays)
    return list(GUARD["differences"](old, new, (old_arrays, new_arrays), reordered))


def test_recorded_compared_and_changed(capsys, tmp_path):
    code, out, err = guard(capsys, "--record", tmp_path / "r", "--only", "conv")
    assert (code, out[-1], err) == (0, "recorded: 1 cases", "")
    code, out, err = guard(capsys, "--compare", tmp_path / "r", "--only", "conv")
    assert (code, out, err) == (0, ["conv: no differences", "equal: 1 cases"], "")

    path = tmp_path / "r" / "conv.json"
    record = json.loads(path.read_text())
    now = copy.deepcopy(record), dict(np.load(tmp_path / "r" / "conv.npz"))
    loss = record["step"][2]["cls_loss"]
    record["step"][2]["cls_loss"] = loss + 1e-9
    path.write_text(json.dumps(record))
    (tmp_path / "r" / "environment.json").write_text(json.dumps({**GUARD["ENVIRONMENT"], "torch": "1.0"}))
    runner = GUARD["main"].__globals__["Runner"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run", lambda *_args, **_more: now)
        code, out, err = guard(capsys, "--compare", tmp_path / "r", "--only", "conv")
    assert (code, out[0], out[-1]) == (1, "conv: 1 differences", "different: 1 of 1 cases: conv")
    assert out[1].startswith(f"    conv: step 3: cls_loss: recorded {loss + 1e-9!r}, now {loss!r} (largest difference ")
    assert err.startswith("warning: recorded with torch 1.0, here it is ")


def test_every_bit_counts():
    def weight(_record, arrays):
        _record["weights"]["module.w"] = "new"
        arrays["weights: module.w"][1] += 0.25
    assert said(weight, False) == ["weights: module.w: recorded 'old', now 'new' (largest difference 0.25)"]

    def score(_record, arrays):
        arrays["rows"]["score"][1] = 0.5
    assert said(score, False) == ["prediction 2: recorded [('a', 'turn', 5.0, 9.0, 0.4)], now [('a', 'turn', 5.0, 9.0, 0.5)]"]
    assert said(lambda record, _: record["step"].pop(), False)[0] == "step 2: iteration: recorded 2, now 'missing'"
    assert said(lambda *_: None, False) == []


@pytest.mark.parametrize(("step", "key", "by", "precision", "equal"), [
    (0, "final_loss", 5e-7, "fp32", True), (0, "final_loss", 5e-6, "fp32", False), (1, "final_loss", 5e-5, "fp32", True),
    (1, "final_loss", 5e-4, "fp32", False), (0, "final_loss", 5e-4, "bf16", True), (1, "lr", 1e-9, "fp32", False)])
def test_tolerance_of_losses(step, key, by, precision, equal):
    def change(record, _arrays):
        record["step"][step][key] *= 1 + by
    assert (said(change, precision=precision) == []) == equal


@pytest.mark.parametrize(("row", "name", "by", "equal"), [
    (0, "score", 5e-4, True), (0, "score", 5e-3, False), (1, "end", 5e-3, True), (1, "end", 5e-2, False), (2, "end", 1.0, True)])
def test_tolerance_of_predictions(row, name, by, equal):
    def change(_record, arrays):
        arrays["rows"][name][row] += by
    assert (said(change) == []) == equal


@pytest.mark.parametrize(("name", "by", "equal"), [("module.w", 5e-4, True), ("module.w", 5e-3, False),
                                                   ("module.attn.key.bias", 1.0, True)])
def test_tolerance_of_weights(name, by, equal):
    old, arrays = made()
    new = copy.deepcopy(old)
    old["weights"], new["weights"] = {name: "old"}, {name: "new"}
    before, after = ({**arrays, f"weights: {name}": np.full(3, x, np.float32)} for x in (1.0, 1.0 + by))
    assert (list(GUARD["differences"](old, new, (before, after), True)) == []) == equal


def test_bad_input_is_one_line(capsys, tmp_path):
    def refused(*argv: object) -> str:
        code, _, err = guard(capsys, *argv)
        return one_error(code, err)
    assert "no such case; they are transformer, " in refused("--compare", tmp_path, "--only", "none")
    assert "holds no train.py and eval.py" in refused("--record", tmp_path / "r", "--tree", tmp_path)
    assert "holds no whole record of these cases" in refused("--compare", tmp_path)
    (tmp_path / "own.txt").write_text("mine")
    assert "holds files that are no record" in refused("--record", tmp_path)
    for name in ("train.py", "eval.py"):
        (tmp_path / name).write_text("import sys; sys.exit('error: not today')")
    assert "conv: train.py ended with exit code 1: error: not today" in refused(
        "--record", tmp_path / "r", "--tree", tmp_path, "--only", "conv")


def test_list_names_every_case(capsys):
    code, out, _ = guard(capsys, "--list")
    assert (code, [line.split()[0] for line in out]) == (0, list(GUARD["CASES"]))
