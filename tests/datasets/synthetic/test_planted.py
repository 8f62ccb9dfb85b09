"""Planted THUMOS14 features: the numbers are a format (pinned by checksums), the script replaces only what it wrote."""
from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import make_planted as script
import numpy as np
import pytest

from libs.core.errors import run_main
from libs.datasets.synthetic.planted import PRESETS, Difficulty, make_video, make_world, pick

# sha256 of the first generator ever used for published results, measured once with the arguments given in the tests
WIDE = {"a_1": "2b95f15568d4b0371e46d2de307718ac4632fdbce4ea405fedb5ba72f14b19d5",
        "a_2": "1f13992e965cc10b5815730ab332f4dcff010f2d978df696e0f6934c9e0384e0",
        "a_3": "781bcd4825858e8e3dc5a2e0b02c64d8c0345e836b9d78cd9d1d24c1755049a2",
        "b_1": "ebec4e4f656c4f73de2c6b323566cfc464b89327497d3df4aae22d422d6f4d65",
        "b_2": "f9fe77975fbd57580899d8803840f9daa9bd237d2c16cc3f8d2c83e2f01589ee"}
FLOW_ONLY = {"a_1": "187d1095c2775e80cd0624e774c4b3e6cec406b2a364d28e055c0cc59eeb9ae9",
             "a_2": "2a25ac8dc454bfa7380df0020eaa07998788e9c7062b9aa66aa70e1e945ea099",
             "b_1": "2b5cf0a6b3cdb1bac12c492e9dd0084ee827214878965b3b577b71a9b59edfa6"}


def video(subset: str, duration: float, fps: float, *events: tuple[float, float, int]) -> dict:
    return {"subset": subset, "duration": duration, "fps": fps,
            "annotations": [{"label": f"class{c}", "label_id": c, "segment": [s, e]} for s, e, c in events]}


@pytest.fixture
def annotations(tmp_path) -> Path:
    database = {"a_1": video("Validation", 20.0, 30.0, (2.0, 5.5, 0), (2.0, 5.5, 1)),
                "a_2": video("Validation", 15.5, 25.0, (1.0, 1.8, 5), (7.0, 14.0, 6)),
                "a_3": video("Validation", 11.0, 24.0, (3.0, 4.0, 0)),
                "b_1": video("Test", 12.0, 29.97, (0.5, 20.0, 0)), "b_2": video("Test", 30.0, 30.0)}
    path = tmp_path / "official/annotations/thumos14.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"version": "tiny", "database": database}))
    return path


def run(monkeypatch, annotations: Path, out: Path, arguments: str) -> int:
    paths = ["--annotations", str(annotations), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["make_planted.py", *paths, *arguments.split()])
    with pytest.raises(SystemExit) as end:
        run_main(script.main)
    return end.value.code


def manifest(out: Path) -> dict:
    return json.loads((out / "planted_manifest.json").read_text())


@pytest.mark.parametrize(("arguments", "sums", "width"), [
    ("--rgb-dim 5 --flow-dim 3", WIDE, 8),
    ("--rgb-dim 0 --flow-dim 4 --train 2 --test 1 --seed 4 --hard 0.5", FLOW_ONLY, 4)])
def test_features_are_bit_identical_to_the_published_generator(tmp_path, monkeypatch, annotations, arguments, sums, width):
    assert run(monkeypatch, annotations, tmp_path / "out", arguments) == 0
    written = manifest(tmp_path / "out")
    assert {k: v["sha256"] for k, v in written["files"].items()} == sums
    database = json.loads((tmp_path / "out/annotations/thumos14.json").read_text())["database"]
    assert set(database) == set(sums)
    for name, entry in written["files"].items():
        feats = np.load(tmp_path / f"out/i3d_features/{name}.npy")
        steps = int((database[name]["duration"] * database[name]["fps"] - 16) // 4) + 1
        assert list(feats.shape) == entry["shape"] == [steps, width]
        assert feats.dtype == np.float32
        assert feats.min() >= 0


def test_features_do_not_depend_on_the_subset_and_a_second_run_replaces_the_first(tmp_path, monkeypatch, annotations):
    out = tmp_path / "out"
    assert run(monkeypatch, annotations, out, "--rgb-dim 5 --flow-dim 3 --no-hash") == 0
    before = np.load(out / "i3d_features/a_1.npy")
    assert manifest(out)["files"]["a_1"]["sha256"] is None
    assert run(monkeypatch, annotations, out, "--rgb-dim 5 --flow-dim 3 --train 2 --test 0") == 0
    assert sorted(p.name for p in (out / "i3d_features").iterdir()) == ["a_1.npy", "a_2.npy"]
    assert np.array_equal(np.load(out / "i3d_features/a_1.npy"), before)


def test_unlabelled_videos_are_further_ones_and_change_nothing_else(tmp_path, monkeypatch, annotations):
    asked = {"plain": "", "one": "--unlabelled 1", "rest": "--unlabelled -1"}
    files, subsets, videos = {}, {}, {}
    for name, more in asked.items():
        assert run(monkeypatch, annotations, tmp_path / name, f"--rgb-dim 5 --flow-dim 3 --train 1 --test 1 {more}") == 0
        files[name] = {k: v["sha256"] for k, v in manifest(tmp_path / name)["files"].items()}
        videos[name] = json.loads((tmp_path / name / "annotations/thumos14.json").read_text())["database"]
        subsets[name] = {k: v["subset"] for k, v in videos[name].items()}
        assert set(files[name]) == set(subsets[name]) == {p.stem for p in (tmp_path / name / "i3d_features").iterdir()}
        assert files[name] == {k: WIDE[k] for k in subsets[name]}  # the same bits in every subset
        assert manifest(tmp_path / name)["args"]["unlabelled"] == {"plain": 0, "one": 1, "rest": -1}[name]
    assert sorted(subsets["plain"].values()) == ["Test", "Validation"]
    assert sorted(subsets["one"].values()) == ["Test", "Validation", "unlabelled"]
    assert sorted(subsets["rest"].values()) == ["Test", "Validation", "unlabelled", "unlabelled"]
    official = json.loads(annotations.read_text())["database"]
    for name in ("one", "rest"):
        assert subsets["plain"].items() <= subsets[name].items()
        assert {k: {**v, "subset": None} for k, v in videos[name].items()} == {
            k: {**official[k], "subset": None} for k in videos[name]}


def arguments_of(folder: Path) -> dict:
    return {k: v for k, v in manifest(folder)["args"].items() if k in vars(PRESETS["gap"])}


def test_a_preset_sets_what_is_not_given(tmp_path, monkeypatch, annotations):
    asked = {"usual": "", **{name: f"--preset {name}" for name in PRESETS}, "own": "--preset gap --faint 0.5 --alike 0"}
    for name, options in asked.items():
        assert run(monkeypatch, annotations, tmp_path / name, f"--rgb-dim 5 --flow-dim 3 {options}") == 0
    assert manifest(tmp_path / "usual") == manifest(tmp_path / "classic")
    assert {name: arguments_of(tmp_path / name) for name in PRESETS} == {name: vars(level) for name, level in PRESETS.items()}
    assert arguments_of(tmp_path / "own") == {**vars(PRESETS["gap"]), "faint": 0.5, "alike": 0}
    assert [len(manifest(tmp_path / name)["shared_rgb"]) for name in ("usual", "own")] == [1, 0]
    assert len({json.dumps(manifest(tmp_path / name)["files"]["a_1"]) for name in PRESETS}) == len(PRESETS)


def test_a_world_of_the_gap_has_features_and_videos_of_its_own(tmp_path, monkeypatch, annotations):
    document = json.loads(annotations.read_text())
    document["database"] |= {f"c_{i}": video("Validation", 9.0, 30.0, (1.0, 4.0, i % 2)) for i in range(12)}
    annotations.write_text(json.dumps(document))
    files = {}
    for name in ("gap --seed 0", "gap --seed 1", "gap --seed 1 --train -1", "classic --seed 0", "classic --seed 1"):
        assert run(monkeypatch, annotations, tmp_path / name, f"--rgb-dim 5 --flow-dim 3 --train 6 --test 1 --preset {name}") == 0
        files[name] = {k: v["sha256"] for k, v in manifest(tmp_path / name)["files"].items()}
    assert set(files["gap --seed 0"]) == set(files["classic --seed 0"]) == set(files["classic --seed 1"])
    assert set(files["gap --seed 0"]) != set(files["gap --seed 1"])
    assert files["gap --seed 1"].items() <= files["gap --seed 1 --train -1"].items()
    both = set(files["gap --seed 0"]) & set(files["gap --seed 1"])
    assert both
    assert all(files["gap --seed 0"][k] != files["gap --seed 1"][k] for k in both)


def evidence(events: list[tuple[float, float, int]], level: Difficulty) -> tuple[float, float]:
    """Mean absolute difference that the evidence makes in rgb and in flow."""
    world = make_world(0, 2, 16, 16)
    shown, hidden = (make_video(world, 0, "v", 300, events, 30.0, x) for x in (level, dataclasses.replace(level, strength=0)))
    return tuple(abs(part).mean() for part in np.split(shown - hidden, 2, axis=1))


def test_strengths_of_the_streams_and_faint_instances():
    usual, events = Difficulty(hard=0), [(float(i), i + 0.9, i % 2) for i in range(1, 40, 2)]
    rgb, flow = evidence(events, usual)
    assert evidence(events, dataclasses.replace(usual, flow_strength=0)) == (rgb, 0)
    assert evidence(events, dataclasses.replace(usual, rgb_strength=0)) == (0, flow)
    faint = evidence(events, dataclasses.replace(usual, faint=1.0))
    assert faint[0] < 0.3 * rgb
    assert faint[1] < 0.3 * flow
    some = [evidence(events, dataclasses.replace(usual, faint=share)) for share in (0.2, 0.5, 0.8)]
    assert some == sorted(some, reverse=True)  # the instances of a smaller share are faint in a larger one too


def test_decoys_are_weak_in_flow():
    (rgb, flow), (decoy_rgb, decoy_flow) = (evidence([], Difficulty(hard=5, decoys=share)) for share in (0, 1))
    assert decoy_flow < 0.7 * flow
    assert decoy_rgb > 0.7 * rgb


def test_pick_covers_every_class_before_it_fills_up():
    database = {f"v{i}": video("Validation", 9.0, 30.0, (1.0, 2.0, 0)) for i in range(20)}
    database["rare"] = video("validation", 9.0, 30.0, (1.0, 2.0, 1))
    database["other"] = video("Test", 9.0, 30.0, (1.0, 2.0, 2))
    chosen = pick(database, "validation", 4)
    assert len(chosen) == 4
    assert "rare" in chosen
    assert chosen == sorted(chosen)
    assert len(pick(database, "validation", -1)) == len(pick(database, "validation", 99)) == 21
    assert pick(database, "validation", 0) == []


def test_pick_of_any_two_seeds_differs_as_chance_has_it():
    database = {f"video_validation_{i:07d}": video("Validation", 9.0, 30.0, (1.0, 2.0, 0)) for i in range(200)}
    chosen = [set(pick(database, "validation", 40, seed)) for seed in range(8)]
    assert all(len(a & b) < 20 for a in chosen for b in chosen if a is not b)  # 8 +- 2.5 expected


@pytest.mark.parametrize(("arguments", "message"), [
    ("--rgb-dim 0 --flow-dim 0", "not both 0"), ("--seed -1", "--seed -1"), ("--hard -0.5", "--hard -0.5"),
    ("--rgb-strength nan", "--rgb-strength nan"), ("--flow-strength -1", "--flow-strength -1"),
    ("--preset gap --faint 1.5", "--faint 1.5"), ("--decoys -1", "--decoys -1"),
    ("--alike 7", "from 0 to 6"), ("--train 0 --test 0", "choose no video")])
def test_bad_arguments(tmp_path, monkeypatch, capsys, annotations, arguments, message):
    assert run(monkeypatch, annotations, tmp_path / "out", arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [
    {"duration": None}, {"duration": 0.4}, {"fps": "30"}, {"subset": 3}, {"annotations": [{"segment": [1, 2], "label": "a"}]},
    {"annotations": [{"segment": [1, float("nan")], "label": "a", "label_id": 0}]},
    {"annotations": [{"segment": [1], "label": "a", "label_id": 0}]},
    {"annotations": [{"segment": [1, 2], "label": "a", "label_id": -1}]}])
def test_bad_annotations_name_file_and_video(tmp_path, monkeypatch, capsys, annotations, change):
    document = json.loads(annotations.read_text())
    document["database"]["b_2"].update(change)
    annotations.write_text(json.dumps(document))
    assert run(monkeypatch, annotations, tmp_path / "out", "--rgb-dim 2 --flow-dim 2") == 2
    assert "thumos14.json: video 'b_2'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_annotation_file(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path / "none.json", tmp_path / "out", "") == 2
    assert "--annotations" in capsys.readouterr().err


def test_real_features_and_official_annotations_are_never_overwritten(tmp_path, monkeypatch, capsys, annotations):
    official = annotations.parents[1]
    before = annotations.read_bytes()
    assert run(monkeypatch, annotations, official, "--rgb-dim 2 --flow-dim 2 --train 1 --test 1") == 2
    assert "would replace" in capsys.readouterr().err
    assert annotations.read_bytes() == before
    (official / "i3d_features").mkdir()
    np.save(official / "i3d_features/a_1.npy", np.ones((3, 2), np.float32))
    assert run(monkeypatch, annotations, official, "--rgb-dim 2 --flow-dim 2") == 2
    assert "a_1.npy" in capsys.readouterr().err
    assert np.load(official / "i3d_features/a_1.npy").shape == (3, 2)
