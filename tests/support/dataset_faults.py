"""Planted faults for test_dataset_check.py: name -> (damage, kind, severity, fragments that the finding must hold).

`damage(case)` changes a sound dataset of 10 training and 4 validation videos on disk.
"""
from __future__ import annotations

# ruff: noqa: E501  (a table)
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FPS, STRIDE, WINDOW, CHANNELS = 20.0, 4, 8, 6
LABELS = ("jump", "throw", "vault")
TRAIN, VAL = [f"train_{i}" for i in range(10)], [f"val_{i}" for i in range(4)]


class Case:
    """A sound dataset; every method changes one thing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.annotations, self.features = folder, folder / "my.json", folder / "features"
        self.config: Path | None = None
        self.argv: list[str] = []
        self.features.mkdir()
        self.document: dict[str, Any] = {"database": {}}
        self.raw: bytes | None = None
        rng = np.random.default_rng(5)
        for n, vid in enumerate(TRAIN + VAL):
            steps = 50 + 7 * n
            np.save(self.features / f"{vid}.npy", rng.normal(size=(steps, CHANNELS)).astype(np.float32))
            items = [{"segment": [start, start + 1.5 + 0.2 * (k % 4)], "label": LABELS[(k + n) % 3], "label_id": (k + n) % 3}
                     for k, start in enumerate(range(1, 8, 2))]
            self.document["database"][vid] = {"subset": "training" if vid in TRAIN else "validation", "fps": FPS,
                                              "duration": ((steps - 1) * STRIDE + WINDOW) / FPS, "annotations": items}

    def save(self) -> None:
        self.annotations.write_bytes(self.raw if self.raw is not None else json.dumps(self.document).encode())

    def video(self, vid: str, **changes: Any) -> None:
        self.document["database"][vid].update(changes)

    def drop(self, vid: str, key: str) -> None:
        del self.document["database"][vid][key]

    def item(self, vid: str, index: int = 0, **changes: Any) -> None:
        self.document["database"][vid]["annotations"][index].update(changes)

    def add(self, vid: str, start: float, end: float, label: str = "jump", label_id: int = 0) -> None:
        self.document["database"][vid]["annotations"].append({"segment": [start, end], "label": label, "label_id": label_id})

    def segments(self, vids: list[str], change: Callable[[float, dict], float]) -> None:
        for vid in vids:
            entry = self.document["database"][vid]
            for item in entry["annotations"]:
                item["segment"] = [change(t, entry) for t in item["segment"]]

    def feats(self, vid: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        path = self.features / f"{vid}.npy"
        np.save(path, change(np.load(path)))

    def text(self, before: str, after: str) -> None:
        text = json.dumps(self.document)
        assert before in text
        self.raw = text.replace(before, after, 1).encode()

    def configure(self, **changes: Any) -> None:
        """A configuration that fits, with some keys of `dataset` (or `section__key`) changed."""
        from helpers import data_config, merged

        from libs.core.config import to_dict
        from libs.core.yaml_text import dump
        self.annotations.write_text("{}")
        where = type("Where", (), {"annotations": self.annotations, "features": self.features})
        fit = {"feat_stride": STRIDE, "num_frames": WINDOW, "max_seq_len": 160}
        values = to_dict(data_config(where, self.folder, dataset=fit))
        for name, value in changes.items():
            section, _, key = name.rpartition("__")
            values = merged(values, {section or "dataset": {key or name: value}} if section != "top" else {key: value})
        self.config = self.folder / "my.yaml"
        self.config.write_text(dump(values))


def nan(feats: np.ndarray) -> np.ndarray:
    feats[3, 2] = np.nan
    return feats


def infinite(feats: np.ndarray) -> np.ndarray:
    feats[0, 5] = -np.inf
    return feats


def truncate(case: Case) -> None:
    path = case.features / "train_3.npy"
    path.write_bytes(path.read_bytes()[:-400])


def all_videos(case: Case, change: Callable[[Case, str], None]) -> None:
    for vid in TRAIN + VAL:
        change(case, vid)


def only_in(case: Case, vid: str, label: str, label_id: int) -> None:
    for i in range(4):
        case.item(vid, i, label=label, label_id=label_id)


def without_ids(case: Case) -> None:
    for entry in case.document["database"].values():
        for item in entry["annotations"]:
            del item["label_id"]


def relabel(case: Case, vid: str, label: str) -> None:
    without_ids(case)
    case.item(vid, 0, label=label)


def shift_ids(case: Case) -> None:
    for entry in case.document["database"].values():
        for item in entry["annotations"]:
            item["label_id"] += 1


def copy_features(case: Case, source: str, target: str) -> None:
    array = np.load(case.features / f"{source}.npy")
    np.save(case.features / f"{target}.npy", array)
    case.video(target, duration=case.document["database"][source]["duration"])


def no_segments(case: Case) -> None:
    for vid in VAL:
        case.video(vid, annotations=[])


def dead(feats: np.ndarray) -> np.ndarray:
    feats[:, 4:] = 0.25
    return feats


def in_frames(case: Case) -> None:
    case.segments(TRAIN + VAL, lambda t, e: round(t * e["fps"]))
    for entry in case.document["database"].values():
        entry["duration"] = round(entry["duration"] * entry["fps"])


def slow_stride(case: Case) -> None:
    for vid in TRAIN:
        case.add(vid, 1.01, 1.02)


def rename(case: Case, names: dict[str, str]) -> None:
    for old, new in names.items():
        (case.features / new).parent.mkdir(exist_ok=True)
        (case.features / f"{old}.npy").rename(case.features / f"{new}.npy")
        case.document["database"][new] = case.document["database"].pop(old)


def provenance(case: Case, text: str) -> None:
    (case.features / "provenance.json").write_text(text)


E, W = "error", "warning"
FAULTS: dict[str, tuple[Callable[[Case], Any], str, str, list[str]]] = {
    # the annotation file
    "no annotation file": (lambda c: setattr(c, "annotations", c.folder / "gone.json") or setattr(c, "save", lambda: None),
                           "annotation-file", E, ["gone.json", "no such annotation JSON"]),
    "no JSON": (lambda c: setattr(c, "raw", b'{"database": {'), "annotation-file", E, ["not valid JSON", "line 1"]),
    "not UTF-8": (lambda c: c.text("jump", "J\xfcmp") or setattr(c, "raw", c.raw.decode().encode("latin-1")),
                  "annotation-file", E, ["my.json", "not a text file"]),
    "no database": (lambda c: setattr(c, "document", {"videos": {}}), "annotation-file", E, ['no "database"', "videos"]),
    "empty database": (lambda c: setattr(c, "document", {"database": {}}), "annotation-file", E, ["empty", "add the videos"]),
    "an id twice": (lambda c: c.text('"train_1"', '"train_0"'), "duplicate-video", E, ["'train_0'", "twice", "merge"]),
    "a video in both splits": (lambda c: c.text('"val_1"', '"train_1"'), "video-in-two-subsets", E,
                               ["'train_1'", "'training'", "'validation'"]),
    "a key twice": (lambda c: c.text('"fps": 20.0', '"fps": 20.0, "fps": 25.0'), "duplicate-key", E, ["'fps'", "twice"]),
    "ids that differ in case": (lambda c: c.document["database"].update({"TRAIN_0": c.document["database"]["train_0"]}),
                                "similar-video-ids", W, ["'train_0'", "'TRAIN_0'", "merge"]),
    "a path in an id": (lambda c: c.document["database"].update({"a/b": c.document["database"].pop("train_0")}), "video-id", W,
                        ["'a/b'", "separator"]),
    "an id that leads out": (lambda c: c.document["database"].update({"../a": c.document["database"].pop("train_0")}), "video-id", E,
                             ["'../a'", "out of the folder", "rename"]),
    "an entry that is a list": (lambda c: c.document["database"].update(train_0=[]), "annotation-entry", E, ["train_0", "list"]),
    "no subset": (lambda c: c.drop("train_0", "subset"), "subset", E, ["train_0", "subset", "missing"]),
    "an unknown subset": (lambda c: c.video("train_0", subset="trainning"), "unused-subset", W, ["trainning", "'training'"]),
    "an upper-case subset": (lambda c: c.video("train_0", subset="Training"), "subset-case", W, ["'Training'", "'training'"]),
    "an empty split": (lambda c: [c.video(v, subset="training") for v in VAL], "empty-split", E, ["val_split", "training (14)"]),
    "a split without segments": (no_segments, "empty-split", E, ["val_split: validation", "4 videos have no segment"]),
    "no annotations key": (lambda c: c.drop("train_2", "annotations"), "annotation-entry", E, ["train_2", "annotations", "missing"]),
    "an offset of text": (lambda c: c.video("train_2", offset="a"), "annotation-entry", E, ["train_2", "offset: 'a'", "leave"]),
    "one subset to train and to validate": (lambda c: c.configure(top__val_split=["training"]), "same-subset", W,
                                            ["my.yaml", "train_split and val_split", "training", "another subset"]),
    "numbered people in both subsets": (lambda c: rename(c, {v: f"P{i % 7:02d}_{i}" for i, v in enumerate(TRAIN + VAL)}),
                                        "subject-in-both", W, ["training and validation", "4 of 7 people", "'p03'", "'P03_3'", "--group"]),
    "named people in both subsets": (lambda c: rename(c, {v: f"{('anna', 'ben', 'cem', 'dora')[i % 4]}-{i}" for i, v in enumerate(
        TRAIN + VAL)}), "subject-in-both", W, ["4 of 4 people", "'anna'", "'anna-0'", "--group"]),
    # duration and fps
    "no duration": (lambda c: c.drop("train_0", "duration"), "duration", W, ["train_0", "no duration"]),
    "a duration of zero": (lambda c: c.video("train_0", duration=0), "duration", E, ["train_0", "0", "above 0"]),
    "a duration too small": (lambda c: c.video("train_5", duration=4.4, annotations=[]), "length-mismatch", E,
                             ["train_5.npy", "17.2 s", "lasts 4.4 s", "too short"]),
    "a duration too long": (lambda c: c.video("train_5", duration=60), "length-mismatch", E, ["train_5", "lasts 60 s", "is cut"]),
    "a duration a little too long": (lambda c: c.video("train_5", duration=20), "length-mismatch", W, ["train_5", "lasts 20 s"]),
    "a duration in frames": (lambda c: c.video("train_5", duration=344), "length-mismatch", E, ["looks like frames"]),
    "no fps": (lambda c: c.drop("train_0", "fps"), "fps", E, ["train_0", "no fps", "dataset.default_fps"]),
    "an fps of zero": (lambda c: c.video("train_0", fps=0), "fps", E, ["train_0", "fps", "above 0"]),
    "an fps as text": (lambda c: c.video("train_0", fps="20"), "fps", E, ["train_0", "'20'"]),
    # segments
    "an end before the start": (lambda c: c.item("train_0", segment=[3.0, 2.0]), "segment", E,
                                ["train_0", "annotations[0]", "[3, 2]", "ends before it starts"]),
    "a segment of zero length": (lambda c: c.item("train_0", segment=[3.0, 3.0]), "zero-length", W, ["train_0", "[3, 3]"]),
    "a segment of one number": (lambda c: c.item("train_0", segment=[3.0]), "segment", E, ["annotations[0]", "[start, end]"]),
    "a segment of text": (lambda c: c.item("train_0", segment=["1.0", "2.0"]), "segment", E, ["annotations[0]", "'1.0'"]),
    "a segment that is NaN": (lambda c: c.item("train_0", segment=[1.0, float("nan")]), "segment", E, ["annotations[0]", "nan"]),
    "a negative start": (lambda c: c.item("train_0", segment=[-4.0, 2.0]), "negative-start", E, ["train_0", "[-4, 2]"]),
    "a start slightly negative": (lambda c: c.item("train_0", segment=[-0.1, 2.0]), "negative-start", W, ["[-0.1, 2]"]),
    "an end beyond the duration": (lambda c: c.item("train_0", 3, segment=[8.0, 12.0]), "segment-outside", E,
                                   ["train_0", "annotations[3]", "[8, 12]", "10.2 s"]),
    "a single end far beyond": (lambda c: c.item("train_0", 3, segment=[8.0, 100.0]), "segment-outside", E,
                                ["train_0", "annotations[3]", "[8, 100]", "correct the segment or the duration"]),
    "an end just beyond": (lambda c: c.item("train_0", 3, segment=[8.0, 10.4]), "segment-outside", W, ["0.2 s after"]),
    "times in frames": (lambda c: c.segments(["train_1"], lambda t, e: t * e["fps"]), "unit-frames", E,
                        ["train_1", "frames", "divide by the fps"]),
    "all times in frames": (lambda c: c.segments(TRAIN + VAL, lambda t, e: round(t * e["fps"])), "unit-frames", E, ["val_3", "frames"]),
    "times in milliseconds": (lambda c: c.segments(["train_1"], lambda t, e: t * 1000), "unit-milliseconds", E,
                              ["train_1", "milliseconds", "divide by 1000"]),
    "times in minutes": (lambda c: c.segments(TRAIN + VAL, lambda t, e: t / 60), "unit-minutes", E, ["val_3", "minutes", "multiply by 60"]),
    "times and durations in frames": (lambda c: in_frames(c), "unit-frames", E, ["my.json", "durations and the segments", "divide by the fps"]),
    "times and durations in frames, with a configuration": (lambda c: in_frames(c) or c.configure(), "unit-frames", E,
                                                            ["my.json", "durations and the segments", "divide by the fps"]),
    "durations in milliseconds": (lambda c: all_videos(c, lambda c, v: c.video(v, duration=round(1000 * c.document["database"][v]["duration"]))),
                                  "unit-milliseconds", E, ["my.json", "the durations look", "divide by 1000"]),
    "times as shares": (lambda c: c.segments(TRAIN + VAL, lambda t, e: t / e["duration"]), "unit-shares-of-the-duration", E,
                        ["shares of the duration", "multiply"]),
    "a repeated segment": (lambda c: c.add("train_0", 1.0, 2.5), "duplicate-segment", W, ["train_0", "[0] and [4]", "'jump'"]),
    "overlap within a class": (lambda c: c.add("train_0", 1.4, 3.0), "overlap", W, ["train_0", "'jump'", "[1.4, 3]"]),
    # labels
    "no label": (lambda c: c.document["database"]["train_0"]["annotations"][0].pop("label"), "annotation-entry", E,
                 ["train_0", "label", "name of a class"]),
    "two ids for a class": (lambda c: c.item("train_1", 0, label_id=0), "label-id", E, ["'throw'", "0 here and 1 before"]),
    "an id for two classes": (lambda c: c.item("train_1", 0, label="skip"), "label-id", E, ["'skip'", "'throw' before"]),
    "ids on some entries only": (lambda c: c.document["database"]["train_1"]["annotations"][0].pop("label_id"), "label-id", E,
                                 ["train_1", "no label_id", "55 have one"]),
    "a negative id": (lambda c: c.item("train_0", 0, label_id=-1), "label-id", E, ["-1", "from 0 on"]),
    "ids that begin at 1": (shift_ids, "label-id-gap", W, ["ids go to 3", "0", "num_classes must be 4"]),
    "ids with a gap": (lambda c: [c.item(v, i, label_id=7) for v in TRAIN + VAL for i in range(4)
                                  if c.document["database"][v]["annotations"][i]["label"] == "vault"],
                       "label-id-gap", W, ["ids go to 7", "2, 3, 4, 5, 6"]),
    "an id of another world": (lambda c: [c.item(v, i, label_id=2**31 - 1) for v in TRAIN + VAL for i in range(4)
                                          if c.document["database"][v]["annotations"][i]["label"] == "vault"],
                               "label-id-gap", W, ["ids go to 2147483647", "2, 3, 4, 5", "2147483645 empty"]),
    "a label in another case": (lambda c: relabel(c, "train_0", "Jump "), "label-spelling", E, ["'Jump '", "'jump'"]),
    "a label with decomposed characters": (lambda c: c.item("train_0", 0, label="caf\u00e9", label_id=3) or c.item("train_0", 1, label="cafe\u0301", label_id=4),
                                           "label-spelling", E, ["'caf\u00e9' (1 segments)", "'cafe\\u0301' (1)", "Unicode composition"]),
    "an id with decomposed characters": (lambda c: [c.document["database"].update({v: c.document["database"]["train_0"]}) for v in ("\u00e9", "e\u0301")],
                                         "similar-video-ids", W, ["'\u00e9', 'e\\u0301'", "Unicode"]),
    "a label with a typo": (lambda c: relabel(c, "train_0", "thrwo"), "label-typo", W, ["'thrwo'", "'throw'"]),
    "a class only in validation": (lambda c: only_in(c, "val_0", "swim", 3), "class-not-trained", W, ["'swim'", "4 validation"]),
    "a class without segments to train on": (lambda c: only_in(c, "train_0", "swim", 3) or c.video("train_0", subset="spare"),
                                             "class-not-trained", W, ["'swim'", "no training segments"]),
    "a class only in training": (lambda c: only_in(c, "train_0", "swim", 3), "class-not-evaluated", W, ["'swim'", "mAP"]),
    "a class with one segment": (lambda c: c.item("train_0", 0, label="swim", label_id=3), "rare-class", W, ["'swim'", "1 training"]),
    # features
    "a missing file": (lambda c: (c.features / "train_3.npy").rename(c.features / "train_3x.npy"), "missing-features", E,
                       ["train_3.npy", "train_3x.npy", "dataset.missing: skip"]),
    "no feature folder": (lambda c: setattr(c, "features", c.folder / "gone"), "feature-folder", E, ["gone", "no such feature"]),
    "a missing file, skipped": (lambda c: (c.features / "train_3.npy").unlink() or c.configure(missing="skip"), "missing-features", W,
                                ["train_3.npy", "has no feature file"]),
    "a file of another width": (lambda c: c.feats("train_3", lambda f: f[:, :5]), "feature-width", E, ["train_3.npy", "5 channels", "6"]),
    "channels first": (lambda c: c.feats("train_3", lambda f: f.T), "channels-first", E, ["train_3.npy", "transposed", "(T, C)"]),
    "all files channels first": (lambda c: all_videos(c, lambda c, v: c.feats(v, lambda f: f.T)), "channels-first", E,
                                 ["val_3.npy", "transposed"]),
    "one dimension": (lambda c: c.feats("train_3", lambda f: f[0]), "feature-file", E, ["train_3.npy", "(6,)", "two dimensions"]),
    "three dimensions": (lambda c: c.feats("train_3", lambda f: f[:, None]), "feature-file", E, ["train_3.npy", "two dimensions"]),
    "no vectors": (lambda c: c.feats("train_3", lambda f: f[:0]), "feature-file", E, ["train_3.npy", "no feature vectors"]),
    "an empty file": (lambda c: (c.features / "train_3.npy").write_bytes(b""), "feature-file", E, ["train_3.npy", "cannot be read"]),
    "a truncated file": (truncate, "feature-file", E, ["train_3.npy", "cannot be read"]),
    "text in a file": (lambda c: c.feats("train_3", lambda f: f.astype(str)), "feature-file", E, ["train_3.npy", "expected numbers"]),
    "a NaN": (lambda c: c.feats("train_3", nan), "non-finite", E, ["train_3.npy", "row 3, channel 2"]),
    "an infinite value": (lambda c: c.feats("train_3", infinite), "non-finite", E, ["train_3.npy", "row 0, channel 5"]),
    "only zeros": (lambda c: c.feats("train_3", np.zeros_like), "constant-features", E, ["train_3.npy", "all values are 0"]),
    "one vector for all times": (lambda c: c.feats("train_3", lambda f: np.repeat(f[:1], len(f), 0)), "constant-features", E,
                                 ["train_3.npy", "all feature vectors are equal"]),
    "another video's features": (lambda c: copy_features(c, "train_3", "val_1"), "same-features", E, ["'train_3'", "'val_1'"]),
    "another scale": (lambda c: c.feats("train_3", lambda f: f * 255), "feature-scale", W, ["train_3.npy", "normalisation"]),
    "dead channels": (lambda c: all_videos(c, lambda c, v: c.feats(v, dead)), "dead-channels", W, ["2 of 6 channels", "channel 4"]),
    "a file too many": (lambda c: np.save(c.features / "spare.npy", np.ones((9, 6))), "feature-without-annotation", W, ["spare.npy"]),
    "a broken provenance file": (lambda c: provenance(c, '{"stride": 0}'), "provenance", E, ["provenance.json", "stride"]),
    "another stride in the provenance file": (lambda c: provenance(c, '{"stride": 8, "num_frames": 8}'), "stride-mismatch", E,
                                              ["provenance.json", "feat_stride 8"]),
    "another fps than that of the features": (
        lambda c: all_videos(c, lambda c, v: c.video(v, fps=FPS * 2)) or provenance(c, '{"stride": 4, "num_frames": 8, "fps": 20}'),
        "fps", E, ["14 of 14", "40 for 'train_0'", "have 20 in", "provenance.json", "convert_annotations --features"]),
    "no fps, recorded beside the features": (
        lambda c: c.drop("train_0", "fps") or provenance(c, '{"stride": 4, "num_frames": 8, "fps": 20}'),
        "fps", E, ["'train_0' has no fps", "provenance.json", "convert_annotations --features"]),
    "fps of another decoding": (lambda c: all_videos(c, lambda c, v: c.video(v, fps=FPS * 2.5)) or c.configure(), "stride-mismatch", E,
                                ["feat_stride 4", "feat_stride 10 with num_frames 20 would fit"]),
    # a configuration
    "no configuration": (lambda c: setattr(c, "config", c.folder / "gone.yaml"), "configuration", E, ["gone.yaml", "no such"]),
    "an unknown key": (lambda c: c.configure(dataset__max_len=3), "configuration", E, ["my.yaml", "dataset.max_len", "unknown key"]),
    "an even window": (lambda c: c.configure(model__n_mha_win_size=18), "configuration", E, ["model.n_mha_win_size", "17 or 19"]),
    "windows for other levels": (lambda c: c.configure(model__n_mha_win_size=[5, 5]), "configuration", E, ["2 windows", "3 levels"]),
    "ranges for other levels": (lambda c: c.configure(model__regression_range=[[0, 4], [4, 10000]]), "configuration", E,
                                ["2 ranges", "3 levels"]),
    "width of the configuration": (lambda c: c.configure(input_dim=12), "feature-width", E, ["6 channels", "12", "dataset.input_dim"]),
    "stride of the configuration": (lambda c: c.configure(feat_stride=8), "stride-mismatch", E, ["my.yaml", "feat_stride 8", "4"]),
    "too few classes": (lambda c: c.configure(num_classes=2), "num-classes", E, ["dataset.num_classes", "2, but", "3"]),
    "too many classes": (lambda c: c.configure(num_classes=5), "num-classes", W, ["dataset.num_classes", "5, but", "3 classes"]),
    "a subset that is not there": (lambda c: c.configure(top__train_split=["train"]), "empty-split", E, ["train_split: train", "training"]),
    "another annotation file": (lambda c: c.configure(json_file="other.json"), "config-paths", W, ["dataset.json_file", "other.json"]),
    "max_seq_len below a segment": (lambda c: c.add("train_9", 0.5, 22) or c.configure(max_seq_len=48), "max-seq-len", E,
                                    ["dataset.max_seq_len", "48", "107.5"]),
    "max_seq_len below most videos": (lambda c: c.configure(max_seq_len=48), "max-seq-len", W, ["10 of 10 training videos"]),
    "a last range too short": (lambda c: c.add("train_9", 0.5, 22) or c.configure(model__regression_range=[[0, 4], [4, 8], [8, 32]]),
                               "unmatched-long", E, ["train_9", "[0.5, 22]", "model.regression_range"]),
    "segments below the stride": (slow_stride, "unmatched-short", W, ["10 of 66 segments", "smaller stride"]),
    "segments under shorter ones": (lambda c: c.add("train_9", 1.0, 2.5005, "throw", 1) or c.add("train_9", 0.9, 2.6, "vault", 2),
                                    "unmatched-taken", W, ["train_9", "shorter segment"]),
    "segments behind the features": (lambda c: c.feats("train_9", lambda f: f[:92]) or c.add("train_9", 21, 22), "unmatched-outside", W,
                                     ["train_9", "[21, 22]", "features end too early"]),
    "a last range far too short": (lambda c: c.configure(model__regression_range=[[0, 1], [1, 2], [2.5, 3]]), "unmatched-long", E,
                                 ["model.regression_range"]),
    "ranges with a gap": (lambda c: c.configure(model__regression_range=[[0, 1], [1, 2], [100, 10000]]), "unmatched-rule", W,
                          ["overlapping model.regression_range"]),
}
