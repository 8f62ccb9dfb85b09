"""Planted data for a configuration: the shapes, file names and classes that it reads, from generated or given videos."""
from __future__ import annotations

import json
from pathlib import Path

import make_planted_for as script
import numpy as np
import pytest
from helpers import item, one_error, run_script, tiny_config

from libs.core.config import dump_yaml, load_config
from libs.datasets.dataset import TalDataset

ROOT = Path(__file__).resolve().parents[3]


def make(capsys, tmp_path: Path, *more: str, config: str = "tiny.yaml") -> tuple[int, str, str]:
    return run_script(capsys, script.main, "make_planted_for.py", str(tmp_path / config), "--out", str(tmp_path / "out"), *more)


@pytest.fixture
def two_folders(tmp_path) -> Path:
    data = {"feat_folder": ["./a/slow", "./b/ego"], "input_dim": [5, 3], "file_ext": ".npz", "file_prefix": "v_",
            "num_classes": 7, "feat_stride": 16, "num_frames": 32, "default_fps": 30}
    config = tiny_config(str(tmp_path / "tiny.yaml"), dataset_name="ego4d", dataset=data, model={"embd_dim": [8, 8]})
    (tmp_path / "tiny.yaml").write_text(dump_yaml(config))
    return tmp_path


def test_generated_videos_of_several_folders(capsys, two_folders):
    code, out, err = make(capsys, two_folders, "--train", "3", "--val", "2", "--seconds", "20", "40")
    assert (code, err) == (0, "")
    assert out == f"3 training and 2 validation videos for tiny.yaml: {two_folders / 'out/tiny.yaml'}\n"
    config = load_config(two_folders / "out/tiny.yaml")
    training = TalDataset(config, config.train_split, training=True)
    validation = TalDataset(config, config.val_split, training=False)
    assert (len(training), len(validation), len(training.label_ids)) == (3, 2, 7)
    for dataset in (training, validation):
        for i, video in enumerate(dataset.videos):
            assert 20 <= video.duration_s <= 40
            feats = item(dataset, i).feats
            assert feats.shape == ((video.duration_s * 30 - 32) // 16 + 1, 8)
            assert 0 < feats.mean() < 2
    assert np.load(two_folders / "out/ego/v_training_0001.npz")["feats"].shape[1] == 3
    original = load_config(two_folders / "tiny.yaml")
    assert config.model == original.model
    assert config.dataset.num_frames == 32


def test_the_signal_is_in_the_features(capsys, two_folders):
    """A nearest-mean rule that only sees features tells action from background far better than chance."""
    assert make(capsys, two_folders, "--train", "6", "--val", "1", "--hard", "0")[0] == 0
    config = load_config(two_folders / "out/tiny.yaml")
    dataset = TalDataset(config, config.train_split, training=True)
    feats, inside = [], []
    for i in range(len(dataset)):
        sample = item(dataset, i)
        t = np.arange(len(sample.feats))[:, None]
        inside.append(((t >= sample.segments[:, 0].numpy()) & (t <= sample.segments[:, 1].numpy())).any(1))
        feats.append((sample.feats - sample.feats.mean(0)).numpy())
    x, y = np.concatenate(feats), np.concatenate(inside)
    means = x[y].mean(0), x[~y].mean(0)
    guess = ((x - means[0]) ** 2).sum(1) < ((x - means[1]) ** 2).sum(1)
    assert 0.5 * ((guess[y]).mean() + (~guess[~y]).mean()) > 0.6


def test_videos_of_a_file_and_a_second_run(capsys, two_folders):
    items = [{"segment": [i, i + 3.5], "label": f"sport {i:02d}", "label_id": i} for i in range(10)]
    database = {f"id{i}": {"subset": "Training" if i < 6 else "validation", "duration": 30 + i, "annotations": items}
                for i in range(9)}
    (two_folders / "all.json").write_text(json.dumps({"database": database}))
    more = ("--annotations", str(two_folders / "all.json"), "--train", "3", "--val", "1")
    assert make(capsys, two_folders, *more)[0] == 0
    written = json.loads((two_folders / "out/annotations.json").read_text())["database"]
    assert {k: v["subset"] for k, v in written.items()} == {
        "id0": "left out", "id1": "training", "id2": "left out", "id3": "training", "id4": "left out", "id5": "training",
        "id6": "left out", "id7": "validation", "id8": "left out"}
    assert [a["label_id"] for a in written["id1"]["annotations"]] == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]  # folded into 7 classes
    before = np.load(two_folders / "out/slow/v_id7.npz")["feats"]
    assert make(capsys, two_folders, *more[:3], "2", "--val", "1")[0] == 0
    assert sorted(p.name for p in (two_folders / "out/slow").iterdir()) == ["v_id1.npz", "v_id4.npz", "v_id7.npz"]
    assert np.array_equal(np.load(two_folders / "out/slow/v_id7.npz")["feats"], before)
    code, _, err = make(capsys, two_folders, *more[:3], "7")
    assert "has 6 videos of subset 'training' with segments and duration, 7 are asked for" in one_error(code, err)


def test_one_class_for_all_keeps_the_names(capsys, tmp_path):
    code, _, err = run_script(capsys, script.main, "make_planted_for.py", str(ROOT / "configs/anet_tsp.yaml"), "--out",
                              str(tmp_path / "out"), "--train", "2", "--val", "1", "--seconds", "20", "21")
    assert (code, err) == (0, "")
    config = load_config(tmp_path / "out/anet_tsp.yaml")
    dataset = TalDataset(config, config.train_split, training=True)
    assert len(dataset.label_ids) == 5
    assert set(item(dataset, 0).labels.tolist()) == {0}
    assert dataset.label_names == {0: "action"}
    assert item(dataset, 0).feats.shape == (192, 512)


@pytest.mark.parametrize(("more", "message"), [
    (("--train", "0"), "give at least one video of each"), (("--seconds", "9", "3"), "expected 2 <= LOW <= HIGH"),
    (("--seed", "-1"), "a seed from 0 on"),
    (("--set", "val_split=[training]"), "train_split and val_split are both training"),
    (("--set", "dataset.feat_folder=[x/a,y/a]"), "folders of one name"),
    (("--set", "dataset.input_dim=8", "model.embd_dim=16"), "does not tell the width of each of the 2 folders"),
    (("--set", "dataset.file_ext=.pt"), "need dataset.feat_stride above 0, dataset.file_ext .npy or .npz")])
def test_bad_arguments(capsys, two_folders, more, message):
    assert message in one_error(*make(capsys, two_folders, *more)[::2])
    assert not (two_folders / "out").exists()


def test_foreign_files_are_kept(capsys, two_folders):
    (two_folders / "out").mkdir()
    (two_folders / "out/mine.txt").write_text("x")
    assert "it holds 1 files of another origin (mine.txt)" in one_error(*make(capsys, two_folders)[::2])
