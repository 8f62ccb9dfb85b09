"""tools/robustness.py: what is printed is what is written, the same numbers in every run, and one line for bad input."""
from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
import robustness as script
import torch
from helpers import data_config, one_error, run_script, show_every_term, write_config, write_data

from libs.core.config import to_dict
from libs.engine.runs.checkpoint import save_checkpoint
from libs.modeling.model import build_model

QUICK = ("--corruptions", "noise", "channels", "--severities", "5", "1")
DATASET = {"modalities": {"rgb": [0, 4], "flow": [4, 6]}, "tiou_thresholds": [0.1]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(config file, run folder of a two-stream network, run folder of an RGB network with two epochs)."""
    tmp = tmp_path_factory.mktemp("made")
    data = write_data(tmp)
    for name, epochs, model in (("two", (1,), {}), ("one", (1, 2), {"modalities": ["rgb"]})):
        config = data_config(data, tmp, dataset=DATASET, model=model)
        for epoch in epochs:
            torch.manual_seed(0)
            state = show_every_term(build_model(config), epoch).state_dict()
            save_checkpoint(tmp / name / f"epoch_{epoch:03d}.pth.tar", epoch, state, state, {}, {}, {"config": to_dict(config)})
    return write_config(tmp / "tiny.yaml", data, dataset=DATASET), tmp / "two", tmp / "one"


def run(capsys, *argv):
    return run_script(capsys, script.main, "robustness.py", *map(str, argv))


def test_tables_json_and_plot_agree(made, capsys):
    config, two, one = made
    code, out, err = run(capsys, config, two, one, "--names", "teacher", "student", *QUICK)
    assert (code, err) == (0, "")
    folder = config.parent / "ckpt" / "tiny_robustness"
    result = json.loads((folder / "robustness.json").read_text())
    assert list(result["models"]) == ["teacher", "student"]
    assert result["models"]["student"]["checkpoints"] == [str(one / "epoch_002.pth.tar")]  # of a folder, the last epoch
    assert (result["severities"], list(result["levels"])) == ([1, 5], ["noise", "channels"])
    lines = out.splitlines()
    assert len([line for line in lines if line.startswith("[")]) == 2 * 5
    summary = [line.split() for line in lines[-4:-2]]
    for row, (name, model) in zip(summary, result["models"].items(), strict=True):
        shown = [model["clean"], model["mean_corrupted"], model["relative_drop"]]
        assert row == [name, *(f"{value['mean']:.2f}" for value in shown)]
    assert lines[-1] == f"written to {folder}"
    root = ElementTree.fromstring((folder / "robustness.svg").read_text())
    names = ["".join(item.itertext()) for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert (names.count("teacher"), names.count("student")) == (1, 1)


def test_the_temporal_protocol_has_twelve_settings_and_stands_beside_the_other(made, capsys, tmp_path):
    config, two, _ = made
    code, out, err = run(capsys, config, two, "-o", tmp_path, "--protocol", "features", "temporal", "--severities", 1, 2, 3)
    assert (code, err) == (0, "")
    model = json.loads((tmp_path / "robustness.json").read_text())["models"]["two"]
    rows = [model["corruptions"][f"gap_{name}"] for name in ("zeros", "noise", "other", "frozen")]
    mean = model["protocols"]["temporal"]["mean_corrupted"]["mean"]
    assert mean == pytest.approx(sum(row[s]["mean"] for row in rows for s in "123") / 12)
    assert len(model["corruptions"]) == 9
    assert out.splitlines()[-4].split() == ["model", "clean", "features", "relative", "drop", "%", "temporal", "relative", "drop",
                                            "%"]


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(made, capsys, tmp_path):
    config, two, one = made
    seen = []
    for name, extra in (("a", ()), ("b", ()), ("c", ("--seed", 1)), ("d", ("--set", "test_cfg.batch_size=3"))):
        code, _, err = run(capsys, config, two, one, "-o", tmp_path / name, "--corruptions", "noise", "--severities", 3, *extra)
        assert (code, err) == (0, "")
        seen.append(json.loads((tmp_path / name / "robustness.json").read_text())["models"])
    assert seen[0] == seen[1]
    assert list(seen[0]) == ["two", "one"]  # the names of the folders
    assert seen[2]["two"]["clean"] == seen[0]["two"]["clean"]
    assert seen[2]["two"]["corruptions"] != seen[0]["two"]["corruptions"]
    assert seen[3]["two"]["mean_corrupted"]["mean"] == pytest.approx(seen[0]["two"]["mean_corrupted"]["mean"], abs=1)


def test_two_files_of_one_folder_get_names_of_their_own(made, capsys, tmp_path):
    config, _, one = made
    code, _, _ = run(capsys, config, *sorted(one.glob("*.tar")), "-o", tmp_path, "--weights", "raw", "--corruptions", "blur",
                     "--severities", "1", "--modalities", "rgb")
    assert code == 0
    result = json.loads((tmp_path / "robustness.json").read_text())
    assert list(result["models"]) == ["one/epoch_001", "one/epoch_002"]
    assert (result["weights"], result["modalities"]) == ("raw", ["rgb"])


@pytest.mark.parametrize(("extra", "fragment"), [
    (("--names", "a"), "--names: 1 names for 2 checkpoints"),
    (("--modalities", "audio"), "--modalities audio: no checkpoint reads it"),
    (("--names", "a", "a"), "is another network than"),
    (("--set", "test_cfg.max_seg=3"), "max_seg"),
    (("--set", "val_split=[test]"), "has no video of subset 'test'")], ids=str)
def test_bad_input(made, capsys, tmp_path, extra, fragment):
    config, two, one = made
    assert fragment in one_error(*run(capsys, config, two, one, "-o", tmp_path / "out", *extra)[::2])
    assert not (tmp_path / "out").exists()


def test_results_are_shown_even_if_they_cannot_be_written(made, capsys, tmp_path):
    config, two, _ = made
    (tmp_path / "file").write_text("")
    code, out, err = run(capsys, config, two, "-o", tmp_path / "file", "--corruptions", "blur", "--severities", "1")
    assert "file/robustness.json: cannot be written" in one_error(code, err)
    assert "relative drop" in out


def test_bad_checkpoints(made, capsys, tmp_path):
    config, two, _ = made
    assert "no such checkpoint" in one_error(*run(capsys, config, two, tmp_path / "gone.pth.tar")[::2])
    assert "holds no epoch_" in one_error(*run(capsys, config, tmp_path)[::2])
