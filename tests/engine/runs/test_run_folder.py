"""The log of a run and that of a process that writes none: one interface."""
from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
from helpers import tiny_config

from libs.engine.runs.run_folder import Run, SilentRun


def use(log):
    """Every method, its arguments by name."""
    log.log(record={"iteration": 1, "lr": 0.1})
    log.scalars(values={"loss/a": 1.0}, step=1)
    log.text(name="summary", content="a table", step=1)
    log.image(name="predictions/a", pixels=np.zeros((4, 4, 3), np.uint8), step=1)
    log.print(line="a line")
    with log.progress(total=3, label="epoch 1") as shown:
        shown.update(2)
    log.flush()
    log.sync()
    log.close()


def test_a_silent_run_has_the_methods_of_a_run_and_does_nothing(tmp_path, capsys):
    for name, method in inspect.getmembers(SilentRun, inspect.isfunction):
        if name != "__init__":
            assert inspect.signature(method) == inspect.signature(getattr(Run, name)), name
    use(SilentRun(tmp_path / "silent"))
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")
    use(Run(tmp_path / "run", tiny_config()))
    assert capsys.readouterr() == ("a line\n", "")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"iteration": 1, "lr": 0.1}\n'


@pytest.mark.parametrize(("logged", "evaluated", "kept"), [(4, 2, [1, 2, 2, 3, 4]), (0, 0, []), (9, 9, [1, 2, 2, 3, 4, 5, 4])])
def test_earlier_records_stay_up_to_where_a_run_goes_on(tmp_path, logged, evaluated, kept):
    records = [{"iteration": 1, "lr": 0.1}, {"iteration": 2, "lr": 0.1}, {"iteration": 2, "average_mAP": 0.5},
               {"iteration": 3, "lr": 0.1}, {"iteration": 4, "lr": 0.1}, {"iteration": 5, "lr": 0.1},
               {"iteration": 4, "average_mAP": 0.6}]
    log = Run(tmp_path, tiny_config())
    for record in records:
        log.log(record)
    log.close()
    Run(tmp_path, tiny_config(), logged, evaluated).close()
    found = [json.loads(line)["iteration"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert found == kept
