"""The HAPT reader on a tiny archive in the published layout."""
from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import prepare_hapt as script
import pytest

from libs.core.errors import UserError, run_main
from libs.datasets.prepare.hapt import parse_signal, prepare_hapt

ACTIVITIES = "1 WALKING           \n2 SITTING\n3 STAND_TO_SIT \n"
LABELS = "1 1 1 1 60\n1 1 3 61 80\n2 3 2 30 124\n"
LENGTHS = {"exp01_user01": 137, "exp02_user03": 124, "exp03_user03": 50}


def signal(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3))


def text(samples: np.ndarray) -> str:
    return "".join(" ".join(repr(float(v)) for v in row) + "\n" for row in samples)


@pytest.fixture
def files() -> dict[str, str]:
    out = {"activity_labels.txt": ACTIVITIES, "RawData/labels.txt": LABELS}
    for i, (name, n) in enumerate(LENGTHS.items()):
        out[f"RawData/acc_{name}.txt"] = text(signal(2 * i, n))
        out[f"RawData/gyro_{name}.txt"] = text(signal(2 * i + 1, n))
    return out


def write_folder(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def write_zip(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr("HAPT Data Set/" + name, content)
        archive.writestr("__MACOSX/RawData/._labels.txt", "junk")
    return path


def write_tar(path: Path, files: dict[str, str], mode: str) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo("./" + name)
            info.size = len(content.encode())
            archive.addfile(info, io.BytesIO(content.encode()))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_annotations_and_windows_are_exact(tmp_path, files):
    summary = prepare_hapt(write_folder(tmp_path / "raw", files), tmp_path / "out", val_users=[3])
    database = json.loads((tmp_path / "out/annotations/hapt.json").read_text())["database"]
    assert list(database) == list(LENGTHS)
    first, second = database["exp01_user01"], database["exp02_user03"]
    assert (first["subset"], second["subset"]) == ("training", "validation")
    assert (first["duration"], first["fps"]) == (137 / 50, 50)
    assert first["annotations"] == [{"label": "WALKING", "label_id": 0, "segment": [0.0, 1.2]},
                                    {"label": "STAND_TO_SIT", "label_id": 2, "segment": [1.2, 1.6]}]
    assert second["annotations"][0]["segment"] == [29 / 50, 124 / 50]
    assert database["exp03_user03"]["annotations"] == []
    for i, (name, n) in enumerate(LENGTHS.items()):
        feats = np.load(tmp_path / f"out/features/{name}.npy")
        assert feats.dtype == np.float32
        assert feats.shape == ((n - 50) // 25 + 1, 300)
        acc, gyro = signal(2 * i, n).astype(np.float32), signal(2 * i + 1, n).astype(np.float32)
        for t, row in enumerate(feats):
            assert np.array_equal(row[:150], acc[25 * t:25 * t + 50].ravel())
            assert np.array_equal(row[150:], gyro[25 * t:25 * t + 50].ravel())
    assert summary[:2] == ["training: 1 recordings, 4 feature steps", "validation: 2 recordings, 4 feature steps"]
    assert [line.split() for line in summary[2:]] == [[name, "1", "segments"] for name in ("WALKING", "SITTING", "STAND_TO_SIT")]


def test_zip_tar_and_folder_give_the_same_files(tmp_path, files):
    sources = [write_folder(tmp_path / "raw/nested/deeper", files).parents[1], write_zip(tmp_path / "hapt.zip", files),
               write_tar(tmp_path / "hapt.tar.xz", files, "w:xz"), write_tar(tmp_path / "hapt.tar.gz", files, "w:gz")]
    results = []
    for i, source in enumerate(sources):
        prepare_hapt(source, tmp_path / f"out{i}", [3])
        results.append(tree(tmp_path / f"out{i}"))
    assert len(results[0]) == 4
    assert all(r == results[0] for r in results[1:])


@pytest.mark.parametrize(("users", "subsets"), [([], {"training"}), ([1, 3], {"validation"})])
def test_either_subset_may_be_empty_and_a_second_run_replaces_the_first(tmp_path, files, users, subsets):
    source = write_zip(tmp_path / "hapt.zip", files)
    prepare_hapt(source, tmp_path / "out", [3])
    prepare_hapt(source, tmp_path / "out", users)
    database = json.loads((tmp_path / "out/annotations/hapt.json").read_text())["database"]
    assert {v["subset"] for v in database.values()} == subsets
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["annotations", "features"]



@pytest.mark.parametrize(("name", "line", "content", "message"), [
    ("RawData/acc_exp01_user01.txt", 5, "1.0 2.0", "acc_exp01_user01.txt: line 5: 2 columns"),
    ("RawData/gyro_exp02_user03.txt", 7, "1.0 2.0 3.0 4.0", "gyro_exp02_user03.txt: line 7: 4 columns"),
    ("RawData/acc_exp01_user01.txt", 3, "1.0 x 2.0", "acc_exp01_user01.txt: line 3: not three numbers"),
    ("RawData/acc_exp01_user01.txt", 3, "1.0 nan 2.0", "acc_exp01_user01.txt: line 3: not three finite numbers"),
    ("RawData/acc_exp01_user01.txt", 3, "1.0 1_0 2.0", "acc_exp01_user01.txt: line 3: not three finite numbers"),
    ("RawData/acc_exp01_user01.txt", 3, "", "acc_exp01_user01.txt: line 3: 0 columns"),
    ("RawData/acc_exp01_user01.txt", 137, None, "gyro_exp01_user01.txt: 137 samples, but acc_exp01_user01.txt has 136"),
    ("RawData/labels.txt", 2, "1 1 3 61 138", "labels.txt: line 2: sample 138 is past the end of exp01_user01 (137 samples)"),
    ("RawData/labels.txt", 2, "1 1 3 61 60", "labels.txt: line 2: samples 61 to 60"),
    ("RawData/labels.txt", 2, "1 1 3 0 60", "labels.txt: line 2: samples 0 to 60"),
    ("RawData/labels.txt", 3, "2 3 4 30 124", "labels.txt: line 3: activity 4"),
    ("RawData/labels.txt", 3, "9 3 2 30 124", "labels.txt: line 3: no recording of experiment 9, user 3"),
    ("RawData/labels.txt", 1, "1 1 1 1", "labels.txt: line 1: expected 5 whole numbers"),
    ("RawData/labels.txt", 1, "1 1 1 1 6.5", "labels.txt: line 1: expected 5 whole numbers"),
    ("activity_labels.txt", 2, "4 SITTING", "activity ids [1, 3, 4] are not 1 to 3"),
    ("activity_labels.txt", 2, "2 WALKING", "activity_labels.txt: line 2"),
])
def test_bad_rows_are_refused_with_file_and_line_and_leave_nothing(tmp_path, files, name, line, content, message):
    lines = files[name].splitlines()
    lines[line - 1:line] = [] if content is None else [content]
    files[name] = "\n".join(lines) + "\n"
    with pytest.raises(UserError) as error:
        prepare_hapt(write_folder(tmp_path / "raw", files), tmp_path / "data/hapt", [3])
    assert message in str(error.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("removed", "message"), [
    ("RawData/gyro_exp02_user03.txt", "its gyro_ file is missing"), ("RawData/labels.txt", "0 files labels.txt"),
    ("activity_labels.txt", "0 files activity_labels.txt"), ("RawData", "no RawData/acc_expEE_userUU.txt inside")])
def test_missing_files_are_named(tmp_path, files, removed, message):
    kept = {k: v for k, v in files.items() if not k.startswith(removed)}
    with pytest.raises(UserError, match=message):
        prepare_hapt(write_zip(tmp_path / "hapt.zip", kept), tmp_path / "out")


def test_damaged_or_absent_archives_are_user_errors(tmp_path, files):
    path = write_tar(tmp_path / "hapt.tar.gz", files, "w:gz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged"):
        prepare_hapt(path, tmp_path / "out")
    (tmp_path / "hapt.txt").write_text("no archive")
    with pytest.raises(UserError, match="neither a folder nor a zip or tar"):
        prepare_hapt(tmp_path / "hapt.txt", tmp_path / "out")
    with pytest.raises(UserError, match="no such file or folder"):
        prepare_hapt(tmp_path / "absent.zip", tmp_path / "out")


def test_foreign_files_and_a_file_in_the_way_are_not_removed(tmp_path, files):
    source = write_zip(tmp_path / "hapt.zip", files)
    write_folder(tmp_path / "out", {"features/mine.npy": "precious"})
    with pytest.raises(UserError, match=r"mine\.npy"):
        prepare_hapt(source, tmp_path / "out")
    assert tree(tmp_path / "out") == {"features/mine.npy": b"precious"}
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="taken"):
        prepare_hapt(source, tmp_path / "taken")


def test_numbers_are_rounded_correctly():
    assert parse_signal("f", "0.1 1e-3 -0.05497787147760391\n").tolist() == [[0.1, 0.001, -0.05497787147760391]]


def test_script_prints_counts_and_ends_bad_input_with_2(tmp_path, files, monkeypatch, capsys):
    source = write_zip(tmp_path / "hapt.zip", files)
    monkeypatch.setattr(sys, "argv", ["prepare_hapt.py", str(source), str(tmp_path / "out"), "--val-users", "3", "99"])
    script.main()
    captured = capsys.readouterr()
    assert "validation: 2 recordings, 4 feature steps" in captured.out
    assert "no recording of validation user 99" in captured.err
    monkeypatch.setattr(sys, "argv", ["prepare_hapt.py", str(tmp_path / "none.zip"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        run_main(script.main)
    assert end.value.code == 2
    assert "none.zip" in capsys.readouterr().err
