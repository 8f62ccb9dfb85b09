"""The demo dataset: same bytes everywhere, whole or not there, and built so that rgb alone is worse than both streams."""
from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from libs.core.config import load_config
from libs.core.errors import UserError
from libs.datasets.synthetic import demo
from libs.datasets.synthetic.demo import (
    CLASSES,
    LOOK_ALIKE,
    DemoSpec,
    ensure_demo,
    ensure_demo_of,
    is_current,
    make_demo,
    make_demo_world,
)

SMALL = DemoSpec(training=3, validation=2, steps=(60, 70))
# (VERSION, sha256 of the default data): when the second changes, so must the first, or old copies stay in use
PINNED = (1, "621dc6808001d75539e0aabc6d608736fcdcec522e56acea5c51106288aa0234")


@pytest.fixture(scope="module")
def full() -> tuple[dict, dict[str, np.ndarray]]:
    return make_demo(DemoSpec())


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_default_data_are_those_of_this_version(full):
    document, features = full
    content = json.dumps(document["database"]).encode() + b"".join(x.tobytes() for x in features.values())
    assert (demo.VERSION, hashlib.sha256(content).hexdigest()) == PINNED


def test_annotations_fit_their_features(full):
    document, features = full
    seen = {"training": set(), "validation": set()}
    for name, video in document["database"].items():
        steps, channels = features[name].shape
        assert video["duration"] * video["fps"] == pytest.approx((steps - 1) * 8 + 16)
        assert channels == 64
        assert features[name].dtype == np.float32
        assert features[name].min() >= 0
        for action in video["annotations"]:
            start, end = action["segment"]
            assert 0 <= start < end <= video["duration"]
            assert CLASSES[action["label_id"]] == action["label"]
            seen[video["subset"]].add(action["label"])
    assert seen == {"training": set(CLASSES), "validation": set(CLASSES)}


def test_a_few_hundred_actions_some_touching_some_overlapping(full):
    pairs = [(a, b) for v in full[0]["database"].values() for a, b in zip(v["annotations"], v["annotations"][1:], strict=False)]
    touching = sum(a["segment"][1] == b["segment"][0] for a, b in pairs)
    overlapping = sum(a["segment"][1] > b["segment"][0] for a, b in pairs)
    assert 300 < sum(len(v["annotations"]) for v in full[0]["database"].values()) < 700
    assert touching > 50
    assert overlapping > 50
    assert all(a["label"] != b["label"] for a, b in pairs)


def test_look_alikes_differ_in_flow_only():
    world = make_demo_world(DemoSpec())
    for a, b in LOOK_ALIKE:
        assert world.p_rgb[a] @ world.p_rgb[b] == pytest.approx(np.sqrt(1 - DemoSpec().rgb_own**2))
        assert abs(world.p_flow[a] @ world.p_flow[b]) < 0.6
    assert np.allclose(np.linalg.norm(world.p_rgb, axis=1), 1)


def test_generated_once_and_the_same_in_every_place(tmp_path, capsys):
    ensure_demo(tmp_path / "a/demo", SMALL)
    assert "3 training and 2 validation videos" in capsys.readouterr().err
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}
    ensure_demo(tmp_path / "a/demo", SMALL)
    assert capsys.readouterr().err == ""
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")} == before
    ensure_demo(tmp_path / "b", SMALL)
    assert tree(tmp_path / "a/demo") == tree(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("harm", ["spec", "missing", "short", "manifest"])
def test_outdated_or_damaged_data_are_made_anew(tmp_path, harm):
    ensure_demo(tmp_path / "demo", SMALL)
    good = tree(tmp_path / "demo")
    if harm == "spec":
        ensure_demo(tmp_path / "demo", replace(SMALL, seed=8))
        assert tree(tmp_path / "demo").keys() == good.keys()
        assert tree(tmp_path / "demo") != good
    path = tmp_path / "demo" / ("demo_manifest.json" if harm == "manifest" else "features/demo_training_001.npy")
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    assert not is_current(tmp_path / "demo", SMALL)
    ensure_demo(tmp_path / "demo", SMALL)
    assert tree(tmp_path / "demo") == good


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch):
    ensure_demo(tmp_path / "demo", SMALL)
    before = tree(tmp_path)

    def full_disk(path, array):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    for folder in ("demo", "other"):
        with pytest.raises(UserError, match=f"{folder}: cannot be written \\(No space left"):
            ensure_demo(tmp_path / folder, replace(SMALL, seed=8))
        assert tree(tmp_path) == before


def test_files_of_another_origin_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not the demo's"):
        ensure_demo(tmp_path, SMALL)
    with pytest.raises(UserError, match="is a file"):
        ensure_demo(tmp_path / "mine.txt", SMALL)
    assert tree(tmp_path) == {"mine.txt": b"precious"}


def test_several_at_once_agree(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ensure_demo(tmp_path / "demo", SMALL), range(4)))
    assert is_current(tmp_path / "demo", SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_the_shipped_config_points_at_the_demo(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(demo, "ensure_demo", made.append)
    root = Path(__file__).parents[3]
    config = load_config(root / "configs/demo.yaml")
    ensure_demo_of(config)
    assert made == [Path("data/demo")]
    assert config.dataset.num_classes == len(CLASSES)
    assert config.dataset.input_dim == 2 * DemoSpec().channels
    assert config.dataset.max_seq_len >= DemoSpec().steps[1]
    for override in ("dataset.json_file=data/mine/my.json", "dataset.feat_folder=data/mine/features"):
        with pytest.raises(UserError, match="dataset_name: generic"):
            ensure_demo_of(load_config(root / "configs/demo.yaml", [override]))
    ensure_demo_of(replace(config, dataset_name="generic"))
    assert len(made) == 1
