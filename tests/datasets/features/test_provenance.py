"""dataset.extractor: what train.py takes from the provenance file beside the features."""
from __future__ import annotations

import json

import pytest
import torch
from helpers import one_error, run_script, tiny_config, write_config, write_data

import eval as eval_script
import train as train_script
from libs.core.config import dump_yaml, from_dict, load_config, to_dict
from libs.core.errors import UserError
from libs.datasets.features.provenance import extractor_of, with_extractor

HEAD = {"format": 1, "extractor": "i3d", "preset": "thumos-i3d", "stride": 5, "num_frames": 10, "offset": 0, "fps": None,
        "resize": [256, 340], "crops": "ten", "drop_first": True, "streams": [
            {"name": "rgb", "model": "here.pt", "sha256": "a1", "git_blob": "b1", "published": None, "channels": [0, 2]},
            {"name": "flow", "model": "f.pt", "sha256": "a2", "channels": [2, 6], "parameters": {"levels": 3}}],
        "channels": 6, "libraries": {"torch": "2"}, "videos": {}}


def test_what_is_recorded_makes_the_same_features_again_and_names_no_file():
    found = extractor_of(HEAD, "p.json")
    assert (found.name, found.settings) == ("i3d", {"stride": 5, "num_frames": 10, "fps": None, "resize": (256, 340),
                                                    "crops": "ten", "drop_first": True})
    assert found.streams == {"rgb": {"channels": (0, 2), "sha256": "a1"},
                             "flow": {"channels": (2, 6), "sha256": "a2", "parameters": '{"levels": 3}'}}
    older = {**HEAD, "streams": [{"name": "rgb", "sha256": "a", "mean": [0, 0.5, 0], "std": [1, 1, 1], "method": "dis"}]}
    del older["extractor"]
    found = extractor_of(older, "p.json")
    assert (found.name, found.settings["mean"], found.settings["flow_method"]) == ("program", (0, 0.5, 0), "dis")
    assert extractor_of({"stride": 5, "num_frames": 10}, "p.json") is None  # of another tool
    config = tiny_config(dataset={"extractor": to_dict(extractor_of(HEAD, ""))})
    assert from_dict(to_dict(config)) == config


def test_train_records_it_and_resuming_and_evaluating_go_by_the_file_alone(tmp_path, capsys):
    data = write_data(tmp_path)
    config = write_config(tmp_path / "tiny.yaml", data, opt={"epochs": 1, "warmup_epochs": 0})
    assert with_extractor(load_config(config)) == load_config(config)
    note = data.features / "provenance.json"
    note.write_text(json.dumps(HEAD))
    argv = ("train.py", str(config), "--output", "run", "--resume", "auto")
    assert run_script(capsys, train_script.main, *argv)[0] == 0
    file = tmp_path / "ckpt" / "tiny_run" / "epoch_001.pth.tar"
    assert torch.load(file, weights_only=True)["training"]["config"]["dataset"]["extractor"]["streams"]["rgb"]["sha256"] == "a1"
    assert "sha256: a2" in (file.parent / "config.yaml").read_text()
    note.unlink()  # the configuration now says less than the checkpoint
    assert "has changed" not in run_script(capsys, train_script.main, *argv)[2]
    assert run_script(capsys, eval_script.main, "eval.py", str(config), str(file))[0] == 0
    assert [p.name for p in (file.parent / "eval").iterdir()] == ["epoch_001_ema"]
    note.write_text(json.dumps({**HEAD, "crops": "center"}))
    (tmp_path / "again.yaml").write_text((file.parent / "config.yaml").read_text())
    error = one_error(*run_script(capsys, train_script.main, "train.py", str(tmp_path / "again.yaml"))[::2])
    assert all(part in error for part in ("again.yaml: dataset.extractor", str(note), "remove the key"))


def test_folders_of_subsets_and_several_folders(tmp_path):
    for place in ("training", ""):
        (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / "training" / "provenance.json").write_text(json.dumps(HEAD))
    values = {"feat_folder": str(tmp_path), "subset_folders": True}
    assert with_extractor(tiny_config(dataset=values)).dataset.extractor.name == "i3d"
    values["feat_folder"] = [f"{tmp_path}/training", "other"]
    assert with_extractor(tiny_config(dataset=values)).dataset.extractor is None


@pytest.mark.parametrize(("values", "told"), [({"name": "i3d"}, "settings is missing"), ({"name": 3}, "name: 3")])
def test_a_broken_record_is_refused_with_its_key(tmp_path, values, told):
    path = tmp_path / "c.yaml"
    path.write_text(dump_yaml(tiny_config()).replace("extractor: null", f"extractor: {json.dumps(values)}"))
    with pytest.raises(UserError, match=rf"c\.yaml: dataset\.extractor.*{told}"):
        load_config(path)
