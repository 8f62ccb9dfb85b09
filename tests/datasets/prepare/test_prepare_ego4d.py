"""Ego4D Moment Queries: clips, primary labels and offsets from the official files; features of videos cut into clips."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import prepare_ego4d
import pytest
import torch
from helpers import item, one_error, run_script, tiny_config

from libs.datasets.annotations import load_annotations
from libs.datasets.dataset import TalDataset


def label(start: float, end: float, name: str, primary: bool = True) -> dict:
    return {"start_time": start, "end_time": end, "video_start_time": start + 480, "label": name, "primary": primary}


def clip(uid: str, start: float, end: float, *annotators: list[dict]) -> dict:
    return {"clip_uid": uid, "video_start_sec": start, "video_end_sec": end, "clip_start_sec": 0,
            "annotations": [{"annotator_uid": f"a{i}", "labels": labels} for i, labels in enumerate(annotators)]}


def moments(split: str, *videos: tuple[str, list[dict]]) -> dict:
    entries = [{"video_uid": uid, "split": split, "video_metadata": {"fps": 30}, "clips": clips} for uid, clips in videos]
    return {"version": "1", "split": split, "videos": entries}


C1 = clip("c1", 0.02, 32.02, [label(1, 4, "wash"), label(2, 9, "other", False)], [label(1.1, 4, "wash")])
TRAIN = moments("train", ("vid-1", [C1, clip("c2", 32.0, 64.0, [label(5, 6, "cut"), label(7, 7, "cut")])]),
                ("vid-2", [clip("c3", 0, 16), clip("c4", 16, 32, [label(1, 2, "x", False)])]))
VAL = moments("val", ("vid-3", [clip("c5", 8.0, 24.0, [label(0, 16, "cut")])]))
STEPS = {"vid-1": 119, "vid-3": 60}


def convert(capsys, tmp_path: Path, *contents: object, more: tuple[str, ...] = ()) -> tuple[int, str, str]:
    paths = []
    for i, content in enumerate(contents):
        paths.append(tmp_path / f"m{i}.json")
        paths[-1].write_text(content if isinstance(content, str) else json.dumps(content))
    out = str(tmp_path / "out")
    return run_script(capsys, prepare_ego4d.main, "prepare_ego4d.py", *map(str, paths), "--out", out, *more)


def test_clips_of_both_files(capsys, tmp_path):
    code, out, err = convert(capsys, tmp_path, TRAIN, VAL)
    assert (code, err) == (0, "")
    found = load_annotations(tmp_path / "out/annotations/ego4d.json")
    assert found.label_ids == {"cut": 0, "wash": 1}
    assert {v.id: (v.subset, v.duration_s, v.offset, v.segments.tolist(), v.labels.tolist()) for v in found.videos.values()} == {
        "c1": ("training", pytest.approx(32), 0.02, [[1, 4], [1.1, 4]], [1, 1]), "c2": ("training", 32, 32.0, [[5, 6]], [0]),
        "c5": ("validation", 16, 8.0, [[0, 16]], [0])}
    assert "2 videos (clips) without a primary label left out (first: c3)" in out
    assert "1 segments that do not end after they start left out (first: clip 'c2'" in out
    test = moments("test", ("vid-9", [{"clip_uid": "t1", "video_start_sec": 0, "video_end_sec": 9}]))
    assert convert(capsys, tmp_path, TRAIN, VAL, test, more=("--overwrite",))[0] == 0
    assert load_annotations(tmp_path / "out/annotations/ego4d.json").videos["t1"].subset == "testing"


def write_features(folder: Path, width: int, steps: dict[str, int]) -> str:
    """Row t of a video holds t in channel 0."""
    folder.mkdir()
    for video, count in steps.items():
        torch.save(torch.arange(count).float()[:, None] + torch.zeros(width), folder / f"{video}.pt")
    return str(folder)


def test_features_of_clips(capsys, tmp_path):
    slow = write_features(tmp_path / "slow", 5, STEPS)
    ego = write_features(tmp_path / "ego", 2, {**STEPS, "vid-1": 118})  # one vector shorter, as extractors differ
    code, out, err = convert(capsys, tmp_path, TRAIN, VAL, more=("--features", f"slowfast={slow}", f"egovlp={ego}"))
    assert (code, err) == (0, "")
    firsts = {"c1": 0, "c2": 60, "c5": 15}  # 32 s * 30 / 16, 8 s * 30 / 16
    counts = {"c1": 59, "c2": 58, "c5": 29}  # (960 - 32) // 16 + 1; c2 ends with the shorter file; (480 - 32) // 16 + 1
    for clip_id, first in firsts.items():
        for name, width in (("slowfast", 5), ("egovlp", 2)):
            feats = np.load(tmp_path / f"out/{name}_features/{clip_id}.npy")
            assert (feats.dtype, feats.shape) == (np.float32, (counts[clip_id], width))
            assert feats[:, -1].tolist() == list(range(first, first + counts[clip_id]))
    assert "slowfast_features: 3 clips, 146 steps of 5 channels, starts off by at most 0.020 s" in out
    folders = [str(tmp_path / f"out/{name}_features") for name in ("slowfast", "egovlp")]
    config = tiny_config(dataset_name="ego4d", model={"embd_dim": [8, 8]}, dataset={
        "json_file": str(tmp_path / "out/annotations/ego4d.json"), "feat_folder": folders, "input_dim": [5, 2], "num_classes": 2,
        "feat_stride": 16, "num_frames": 32, "default_fps": 30})
    assert [item(TalDataset(config, s, training=False), 0).feats.shape for s in ("training", "validation")] == [(59, 7), (29, 7)]


def test_bad_features_leave_nothing_behind(capsys, tmp_path):
    short = write_features(tmp_path / "short", 5, {"vid-1": 80, "vid-3": 60})  # ends 20 vectors into clip c2
    code, _, err = convert(capsys, tmp_path, TRAIN, VAL, more=("--features", f"slowfast={short}"))
    message = "short/vid-1.pt: has 80 feature vectors, but a clip of 32 s from 32 s on needs the vectors 60 to 118"
    assert message in one_error(code, err)
    gone = write_features(tmp_path / "gone", 5, {"vid-1": 119})
    code, _, err = convert(capsys, tmp_path, TRAIN, VAL, more=("--features", f"slowfast={gone}"))
    assert "gone/vid-3.pt: no such feature file (1 are missing)" in one_error(code, err)
    for text in ("slowfast", "a/b=x", f"s={gone} s={gone}"):
        assert "expected NAME=FOLDER" in one_error(*convert(capsys, tmp_path, TRAIN, more=("--features", *text.split()))[::2])
    assert not (tmp_path / "out").exists()
    wide = write_features(tmp_path / "wide", 5, STEPS)
    torch.save(torch.zeros(60, 4), tmp_path / "wide/vid-3.pt")
    code, _, err = convert(capsys, tmp_path, TRAIN, VAL, more=("--features", f"slowfast={wide}"))
    assert "vid-3.pt: has 4 channels, the files before have 5" in one_error(code, err)
    assert not (tmp_path / "out").exists()


def changed(key: str, value: object) -> dict:
    return moments("train", ("v", [{**clip("c", 0, 9, [label(1, 2, "x")]), key: value}]))


@pytest.mark.parametrize(("content", "message"), [
    ("[1]", "holds a list; expected a moments file"), ({"video": []}, "videos is missing (did you mean 'video'?)"),
    (moments("training"), "gives 0 videos without any segment"), (moments("all", ("v", [])), "videos[0].split: 'all'"),
    (changed("clip_uid", "../c"), "videos[0].clips[0].clip_uid: '../c'; expected a name"),
    (changed("video_end_sec", 0), "goes from 0 to 0 s of its video"), (changed("video_start_sec", ""), "video_start_sec: ''"),
    (changed("annotations", [{"labels": [{"label": "x"}]}]), "labels[0].primary: None; expected true or false"),
    (changed("annotations", [{"labels": [label(1, 2, "x") | {"start_time": "1s"}]}]), "start: '1s' is not a finite number"),
    (changed("annotations", [{}]), "labels is missing"),
    (moments("val", ("v", [clip("c", 0, 9, [label(1, 2, "x")])] * 2)), "video 'c': is there twice")], ids=str)
def test_bad_files_are_one_error(capsys, tmp_path, content, message):
    assert message in one_error(*convert(capsys, tmp_path, content)[::2])
    assert not (tmp_path / "out").exists()
