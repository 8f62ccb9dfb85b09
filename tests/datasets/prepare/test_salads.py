"""50 Salads from a small folder in the layout of the published MATLAB files, and from what was written before."""
from __future__ import annotations

import builtins
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import prepare_salads as script
import pytest
from helpers import run_script

from libs.core.errors import UserError
from libs.datasets.prepare.salads import prepare_salads

scipy_io = pytest.importorskip("scipy.io")

ACTIONS = [f"action_{letter}" for letter in "abcdefghijklmnopq"]
RECORDINGS = ["01-1", "01-2", "02-1", "03-1", "03-2", "04-1"]
TESTED = {"01-1": 4, "01-2": 4, "02-1": 1, "03-1": 2, "03-2": 3, "04-1": 5}
LABELS = {name: [0, 3, 3, 1, 1, 1, 0, 0, 17, 1] for name in RECORDINGS}


def matrices(name: str, split: int) -> dict[str, np.ndarray]:
    """Another X for each split; the last action of a run and the first of the next touch."""
    g = np.random.default_rng(10 * RECORDINGS.index(name) + split)
    steps = len(LABELS[name])
    return {"A": np.zeros((steps, 4), np.float32), "X": g.dirichlet(np.full(18, 0.1), steps).astype(np.float32),
            "S": np.random.default_rng(99).normal(size=(30, steps)), "Y": np.array(LABELS[name])[:, None]}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    (root / "labels").mkdir(parents=True)
    (root / "labels" / "mid_level_actions.txt").write_text("\n".join(ACTIONS))
    for split in range(1, 6):
        lists, features = root / f"splits/50Salads/Split_{split}", root / f"features/50Salads/SpatialCNN_mid/Split_{split}"
        lists.mkdir(parents=True)
        features.mkdir(parents=True)
        for kind, test in (("train", False), ("test", True)):
            (lists / f"{kind}.txt").write_text("".join(f"{r}\n" for r in RECORDINGS if (TESTED[r] == split) == test))
        for name in RECORDINGS:
            scipy_io.savemat(features / f"rgb-{name}.avi.mat", matrices(name, split))
    return root


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def array_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def mat_of(raw: Path, name: str) -> Path:
    return raw / f"features/50Salads/SpatialCNN_mid/Split_{TESTED[name]}/rgb-{name}.avi.mat"


def test_each_recording_has_the_features_of_the_network_that_has_not_seen_it(raw, tmp_path):
    summary = prepare_salads(raw, tmp_path / "out")
    for name, split in TESTED.items():
        feats, source = np.load(tmp_path / f"out/features/{name}.npy"), matrices(name, split)
        assert (feats.dtype, feats.shape) == (np.float32, (10, 48))
        np.testing.assert_allclose(feats[:, :18], np.log(np.clip(source["X"], 1e-4, None)) / 4, rtol=1e-6)
        assert feats[:, :18].min() == pytest.approx(np.log(1e-4) / 4)
        np.testing.assert_array_equal(feats[:, 18:], source["S"].T.astype(np.float32))
    assert summary[:3] == ["6 recordings, 60 feature vectors", "split 1: 5 training, 1 validation",
                           "split 2: 5 training, 1 validation"]
    assert summary[-1].split() == ["action_q", "6", "segments"]


def test_every_split_has_all_segments_and_its_own_subsets(raw, tmp_path):
    prepare_salads(raw, tmp_path / "out")
    for split in range(1, 6):
        database = json.loads((tmp_path / f"out/annotations/split{split}.json").read_text())["database"]
        assert list(database) == RECORDINGS
        assert {name for name, video in database.items() if video["subset"] == "validation"} == {
            name for name in RECORDINGS if TESTED[name] == split}
        assert (database["03-1"]["duration"], database["03-1"]["fps"]) == (10 / 3, 3)
        assert database["03-1"]["annotations"] == [
            {"segment": [1 / 3, 1], "label": "action_c", "label_id": 2}, {"segment": [1, 2], "label": "action_a", "label_id": 0},
            {"segment": [8 / 3, 3], "label": "action_q", "label_id": 16},
            {"segment": [3, 10 / 3], "label": "action_a", "label_id": 0}]


def test_archives_and_what_was_written_give_the_same_files(raw, tmp_path):
    prepare_salads(raw, tmp_path / "first")
    for name, folder in (("raw.tar.gz", raw), ("salads50.tar.xz", tmp_path / "first")):
        with tarfile.open(tmp_path / name, f"w:{name[-2:]}") as archive:
            archive.add(folder, "some/where")
        prepare_salads(tmp_path / name, tmp_path / "second")
        assert tree(tmp_path / "second") == tree(tmp_path / "first")
    assert len(tree(tmp_path / "first")) == 11


def refused(source: Path, out: Path, *told: str) -> None:
    with pytest.raises(UserError) as error:
        prepare_salads(source, out)
    assert all(part in str(error.value) for part in told), str(error.value)
    assert not out.exists()


@pytest.mark.parametrize(("file", "content", "told"), [
    ("splits/50Salads/Split_3/test.txt", None, ["raw: 1 files are missing", "splits/50Salads/Split_3/test.txt"]),
    ("labels/mid_level_actions.txt", None, ["labels/mid_level_actions.txt"]),
    ("labels/mid_level_actions.txt", "a\nb\na\n", ["mid_level_actions.txt: line 3", "'a'", "repeats"]),
    ("labels/mid_level_actions.txt", "a\nb\nc\n", [".mat: X: float32 (10, 18)", "(T, 4)", "3 lines of labels/mid_level"]),
    ("splits/50Salads/Split_3/test.txt", "03-2\nx\n", ["Split_3/test.txt: line 2: 'x'", "01-1"]),
    ("splits/50Salads/Split_3/test.txt", "03-2\n04-1\n", ["Split_3/test.txt: line 2: 04-1 is listed before", "training"]),
    ("splits/50Salads/Split_3/test.txt", "", ["Split_3/train.txt: lacks 1 recordings", "03-2"]),
    ("splits/50Salads/Split_3/train.txt", "01-1\n", ["Split_3/train.txt: lacks 4 recordings", "first: 01-2"])])
def test_lists_that_do_not_fit(raw, tmp_path, file, content, told):
    if content is None:
        (raw / file).unlink()
    else:
        (raw / file).write_text(content)
    refused(raw, tmp_path / "out", *told)


@pytest.mark.parametrize(("test", "told"), [
    ("03-2\n04-1\n", ["Split_5/test.txt: line 1: 04-1 is in the test list of Split_3 too"]),
    ("", ["raw: splits/50Salads: 1 recordings are in no test list", "first: 03-2"])])
def test_a_recording_is_tested_in_one_split(raw, tmp_path, test, told):
    lists = raw / "splits/50Salads/Split_3"
    (lists / "test.txt").write_text(test)
    (lists / "train.txt").write_text("".join(f"{r}\n" for r in RECORDINGS if r not in test))
    refused(raw, tmp_path / "out", *told)


@pytest.mark.parametrize(("key", "value", "told"), [
    ("X", np.full((9, 18), 0.5), ["X: float64 (9, 18)", "(T, 18)", "T = 10"]),
    ("X", np.full((10, 18), 1.5), ["X: from 1.5 to 1.5"]),
    ("X", np.full((10, 18), np.nan), ["X: holds values that are not finite"]), ("X", None, ["X: is missing"]),
    ("S", np.zeros((10, 30)), ["S: float64 (10, 30)", "(30, T)"]), ("Y", np.zeros((0, 1)), ["Y: ", "T = 0"]),
    ("Y", None, ["Y: is missing"]),
    ("Y", np.array([["a"] * 10]), ["Y: <U1"]), ("S", np.full((30, 10), np.inf), ["S: holds values"]),
    ("Y", np.arange(10, 20)[:, None], ["Y: label 18 of vector 8", "0 to 17", "mid_level_actions.txt"]),
    ("Y", np.full((10, 1), 0.5), ["Y: label 0.5 of vector 0"])])
def test_matrices_that_do_not_fit(raw, tmp_path, key, value, told):
    content = matrices("03-1", 2)
    content = {name: entry for name, entry in {**content, key: value}.items() if entry is not None}
    scipy_io.savemat(mat_of(raw, "03-1"), content)
    refused(raw, tmp_path / "out", "features/50Salads/SpatialCNN_mid/Split_2/rgb-03-1.avi.mat: ", *told)


@pytest.mark.parametrize("damage", [lambda data: data[:500], lambda data: b"", lambda data: b"not MATLAB at all" * 100,
                                    lambda data: data[:128] + bytes(b ^ 0x5A for b in data[128:])])
def test_damaged_matlab_files(raw, tmp_path, damage):
    path = mat_of(raw, "03-1")
    path.write_bytes(damage(path.read_bytes()))
    refused(raw, tmp_path / "out", "Split_2/rgb-03-1.avi.mat: ", "fetch")


def test_recordings_without_a_file_are_counted(raw, tmp_path, capsys):
    for name in RECORDINGS[:-1]:
        mat_of(raw, name).unlink()
    assert prepare_salads(raw, tmp_path / "out")[0] == "1 recordings, 10 feature vectors"
    err = capsys.readouterr().err
    assert re.search(r"warning: .*raw: 5 of 6 recordings .* left out, .* \(first: Split_4/rgb-01-1\.avi\.mat\)", err)
    mat_of(raw, RECORDINGS[-1]).unlink()
    refused(raw, tmp_path / "none", "Split_4/rgb-01-1.avi.mat", "fetch")


def test_without_scipy_the_error_says_how_to_install_it(raw, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", without)
    refused(raw, tmp_path / "out", 'pip install -e ".[matlab]"')


@pytest.mark.parametrize(("file", "content", "told"), [
    ("annotations/split4.json", None, ["no annotations/split4.json"]),
    ("annotations/split4.json", b"{", ["split4.json: is not JSON"]),
    ("annotations/split4.json", b"[]", ["split4.json: database"]),
    ("features/03-1.npy", None, ["annotations/split1.json and features/ differ in 1 recordings", "03-1"]),
    ("features/03-1.npy", b"x", ["features/03-1.npy: is not a NumPy file"]),
    ("features/03-1.npy", array_bytes(np.zeros((4, 48))), ["features/03-1.npy: float64 (4, 48)", "float32 (T, channels)"]),
    ("features/03-1.npy", array_bytes(np.full((4, 48), np.nan, np.float32)), ["features/03-1.npy: ", "finite"])])
def test_damage_to_what_was_written(raw, tmp_path, file, content, told):
    prepare_salads(raw, tmp_path / "done")
    path = tmp_path / "done" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    refused(tmp_path / "done", tmp_path / "out", *told)


@pytest.mark.parametrize("part", ["splits", "labels", "features"])
def test_a_file_that_is_there_twice(raw, tmp_path, part):
    shutil.copytree(raw / part, raw / "copy" / part)
    refused(raw, tmp_path / "out", part, "twice")
    shutil.rmtree(raw / "copy")
    prepare_salads(raw, tmp_path / "done")
    shutil.copytree(tmp_path / "done", tmp_path / "done/copy")
    for name in ("annotations", "features"):
        refused(tmp_path / "done", tmp_path / "out", f"{name}/", "twice")
        shutil.rmtree(tmp_path / "done/copy" / name)


def test_foreign_files_are_not_removed(raw, tmp_path):
    (tmp_path / "out/features").mkdir(parents=True)
    (tmp_path / "out/features/mine.npy").write_text("precious")
    with pytest.raises(UserError, match=r"mine\.npy"):
        prepare_salads(raw, tmp_path / "out")
    assert tree(tmp_path / "out") == {"features/mine.npy": b"precious"}


def test_script(raw, tmp_path, capsys):
    code, out, _ = run_script(capsys, script.main, "prepare_salads.py", str(raw), str(tmp_path / "out"))
    assert (code, "split 4: 4 training, 2 validation" in out, f"written to {tmp_path / 'out'}" in out) == (0, True, True)
    code, _, err = run_script(capsys, script.main, "prepare_salads.py", str(tmp_path / "none"), str(tmp_path / "other"))
    assert (code, "none: no such file or folder" in err) == (2, True)
