"""tools/prepare_thumos.py on generated stand-ins for the published archive."""
from __future__ import annotations

import io
import json
import stat
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import prepare_thumos as script
import pytest

from libs.core.errors import UserError, run_main
from libs.datasets.prepare import thumos
from libs.datasets.prepare.thumos import check_features, check_md5, unpack_thumos

VIDEOS = {"video_test_0000004": (33.83, 30.0), "video_validation_0000051": (120.4, 25.0)}


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.fixture
def files() -> dict[str, bytes]:
    database = {name: {"subset": name.split("_")[1], "duration": duration, "fps": fps, "annotations": []}
                for name, (duration, fps) in VIDEOS.items()}
    out = {"thumos/README.txt": b"hello", "thumos/annotations/thumos14.json": json.dumps({"database": database}).encode()}
    for i, (name, (duration, fps)) in enumerate(VIDEOS.items()):
        steps = int((duration * fps - 16) // 4) + 1
        out[f"thumos/i3d_features/{name}.npy"] = npy(np.full((steps, 6), i, np.float32))
    return out


def write_tar(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return path


def write_zip(path: Path, files: dict[str, bytes], *extra: zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for info in extra:
            archive.writestr(info, "target")
    return path


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare_thumos.py", *map(str, arguments)])
    try:
        run_main(script.main)
    except SystemExit as end:
        return end.code
    raise AssertionError("run_main returned")


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("write", [write_tar, write_zip])
@pytest.mark.parametrize("nested", [True, False])
def test_unpacks_into_place_and_finds_everything_in_order(tmp_path, files, monkeypatch, capsys, write, nested):
    if not nested:
        files = {k.removeprefix("thumos/"): v for k, v in files.items()}
    archive = write(tmp_path / "archive", files)
    assert run(monkeypatch, archive, "--allow-other", "--out", tmp_path / "data/thumos") == 0
    got = tree(tmp_path / "data/thumos")
    assert got == {k.removeprefix("thumos/"): v for k, v in files.items() if "README" not in k}
    out = capsys.readouterr().out
    assert "differs from the published 375f76ffbf7447af1035e694971ec9b2" in out
    assert "all 2 annotated videos have features of a plausible length" in out


def test_another_md5_stops_before_anything_is_written(tmp_path, files, monkeypatch, capsys):
    archive = write_tar(tmp_path / "a.tar.gz", files)
    assert run(monkeypatch, archive, "--out", tmp_path / "out") == 2
    assert "--allow-other" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(thumos, "MD5", thumos.md5(archive))
    said = []
    check_md5(archive, say=said.append)
    assert "the published archive" in said[0]


def test_missing_short_damaged_and_odd_features_are_all_listed(tmp_path, files, monkeypatch, capsys):
    document = json.loads(files["thumos/annotations/thumos14.json"])
    for name in ("absent", "short", "damaged", "wide", "flat", "timeless"):
        document["database"][name] = {"subset": "test", "duration": 40.0, "fps": 30.0, "annotations": []}
    del document["database"]["timeless"]["duration"]
    files["thumos/annotations/thumos14.json"] = json.dumps(document).encode()
    whole = np.zeros((297, 6), np.float32)
    for name, content in (("short", npy(whole[:150])), ("damaged", npy(whole)[:-40]), ("wide", npy(np.zeros((297, 7)))),
                          ("flat", npy(whole.ravel())), ("timeless", npy(whole))):
        files[f"thumos/i3d_features/{name}.npy"] = content
    assert run(monkeypatch, write_zip(tmp_path / "a.zip", files), "--allow-other", "--out", tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert "6 of 8 annotated videos" in captured.err
    assert "absent: no feature file absent.npy" in captured.out
    assert "short: 150 steps, but 40.0 s at 30.0 fps give about 297" in captured.out
    assert "damaged: damaged.npy is damaged" in captured.out
    assert "wide: 7 channels, the other files have 6" in captured.out
    assert "flat: flat.npy holds float32 (1782,)" in captured.out
    assert "timeless: the annotation lacks" in captured.out
    assert "video_test_0000004" not in captured.out


@pytest.mark.parametrize("difference", [-10, 10])
def test_a_few_steps_more_or_less_are_fine(tmp_path, difference):
    (tmp_path / "a.json").write_text(json.dumps({"database": {"v": {"duration": 10.0, "fps": 30.0}}}))
    for extra, count in ((difference, 0), (2 * difference, 1)):
        np.save(tmp_path / "v.npy", np.zeros((72 + extra, 4), np.float32))  # floor((300 - 16) / 4) + 1 = 72
        assert len(check_features(tmp_path / "a.json", tmp_path)[1]) == count


EVIL_NAMES = ["../evil.npy", "thumos/i3d_features/../../../evil.npy", "/tmp/evil.npy", "..\\evil.npy", "C:/evil.npy"]
EVIL_ENTRIES = [special("thumos/i3d_features", tarfile.SYMTYPE, "/etc"), special("thumos/x", tarfile.LNKTYPE, "/etc/passwd"),
                special("thumos/fifo", tarfile.FIFOTYPE), special("thumos/device", tarfile.CHRTYPE)]


@pytest.mark.parametrize("name", EVIL_NAMES)
@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_paths_that_leave_the_folder_are_refused(tmp_path, files, write, name):
    with pytest.raises(UserError, match="unsafe path"):
        unpack_thumos(write(tmp_path / "a", {**files, name: b"evil"}), tmp_path / "data/thumos")
    assert [p.name for p in tmp_path.rglob("*")] == ["a"]


@pytest.mark.parametrize("info", EVIL_ENTRIES, ids=lambda i: i.name)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, files, info):
    with pytest.raises(UserError, match="link or device"):
        unpack_thumos(write_tar(tmp_path / "a", files, info), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_symbolic_link_in_a_zip_is_refused(tmp_path, files):
    info = zipfile.ZipInfo("thumos/i3d_features/link.npy")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(UserError, match="link or device"):
        unpack_thumos(write_zip(tmp_path / "a", files, info), tmp_path / "out")


@pytest.mark.parametrize(("change", "message"), [
    ({"thumos/annotations/thumos14.json": None}, "no annotations/thumos14.json"),
    ({f"thumos/i3d_features/{name}.npy": None for name in VIDEOS}, r"no i3d_features/\*\.npy"),
    ({"copy/annotations/thumos14.json": b"{}"}, r"thumos14\.json twice"),
    ({"thumos/annotations/thumos14.json": b"{"}, r"a\.zip: annotations/thumos14\.json: not valid JSON"),
    ({"thumos/annotations/thumos14.json": b"[]"}, '"database"'),
])
def test_an_incomplete_archive_leaves_earlier_data_alone(tmp_path, files, change, message):
    unpack_thumos(write_zip(tmp_path / "good.zip", files), tmp_path / "out")
    before = tree(tmp_path / "out")
    changed = {k: v for k, v in {**files, **change}.items() if v is not None}
    with pytest.raises(UserError, match=message):
        unpack_thumos(write_zip(tmp_path / "a.zip", changed), tmp_path / "out")
    assert tree(tmp_path / "out") == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["annotations", "i3d_features"]


def test_a_truncated_download_is_refused_as_a_whole(tmp_path, files):
    rng = np.random.default_rng(0)
    files["thumos/i3d_features/big.npy"] = npy(rng.standard_normal((2000, 6)))
    for write in (write_tar, write_zip):
        path = write(tmp_path / "a", files)
        path.write_bytes(path.read_bytes()[:-30000])
        with pytest.raises(UserError, match=r"damaged|neither a folder nor a zip"):
            unpack_thumos(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_planted_features_are_replaced_and_unknown_ones_are_not(tmp_path, files):
    archive, out = write_tar(tmp_path / "a", files), tmp_path / "out"
    (out / "i3d_features").mkdir(parents=True)
    (out / "i3d_features/video_test_0000004.npy").write_bytes(b"planted")
    (out / "planted_manifest.json").write_text("{}")
    (out / "annotations").mkdir()
    (out / "annotations/notes.txt").write_text("kept")
    assert unpack_thumos(archive, out) == 2
    assert not (out / "planted_manifest.json").exists()
    assert (out / "annotations/notes.txt").read_text() == "kept"
    (out / "i3d_features/mine.npy").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"mine\.npy"):
        unpack_thumos(archive, out)
    assert (out / "i3d_features/mine.npy").read_bytes() == b"precious"


def test_a_member_larger_than_the_limit_is_refused(tmp_path, files, monkeypatch):
    monkeypatch.setattr("libs.utils.files.archives.MAX_MEMBER_BYTES", 1000)
    with pytest.raises(UserError, match="more than the limits"):
        unpack_thumos(write_zip(tmp_path / "a", files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(tmp_path, files, monkeypatch):
    def full(member, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(thumos, "copy", full)
    with pytest.raises(UserError, match="No space left on device"):
        unpack_thumos(write_zip(tmp_path / "a", files), tmp_path / "data/thumos")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
