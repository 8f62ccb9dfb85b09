"""Score thresholds: per class before the common one, unknown classes refused."""
from __future__ import annotations

import pytest

from libs.core.errors import UserError
from libs.utils.evaluation.predictions import Detections
from libs.utils.evaluation.thresholds import above, read_thresholds

NAMES = {0: "run", 1: "jump"}
FOUND = Detections.from_arrays(list("aaab"), [0, 1, 2, 3], [1, 2, 3, 4], [0, 1, 1, 5], [0.3, 0.5, 0.49, 0.2])


@pytest.mark.parametrize(("threshold", "per_class", "kept"), [
    (0.0, {}, [0.3, 0.5, 0.49, 0.2]), (0.3, {}, [0.3, 0.5, 0.49]), (0.4, {"run": 0.1}, [0.3, 0.5, 0.49]),
    (0.0, {"jump": 0.5}, [0.3, 0.5, 0.2]), (1.0, {}, [])])
def test_rows_at_or_above_their_threshold_stay(threshold, per_class, kept):
    assert above(FOUND, threshold, per_class, NAMES).score.tolist() == kept


def test_an_unknown_class_and_an_impossible_score_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"t.json: 'jmp' is no class.*did you mean 'jump'.*run, jump"):
        above(FOUND, 0.1, {"jmp": 0.2}, NAMES, "t.json")
    for bad in (-0.1, 1.5, float("nan"), True, "0.3"):
        with pytest.raises(UserError, match="from 0 to 1"):
            above(FOUND, 0.1, {"run": bad}, NAMES)
        with pytest.raises(UserError, match="from 0 to 1"):
            above(FOUND, bad, {}, NAMES)
    for name, text in (("a.json", '{"run": 0.2, "jump": 1}'), ("a.yaml", "run: 0.2\njump: 1\n")):
        (tmp_path / name).write_text(text)
        assert read_thresholds(tmp_path / name) == {"run": 0.2, "jump": 1.0}
    for text, told in (("run: 30 %", "run"), ("[1]", "class name: least score"), ("", "class name"), ("a: [", "YAML")):
        (tmp_path / "b.yaml").write_text(text)
        with pytest.raises(UserError, match=r"b\.yaml") as error:
            read_thresholds(tmp_path / "b.yaml")
        assert told in str(error.value)
