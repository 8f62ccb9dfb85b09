"""The dataset class: published numbers, reproducible crops, and the checks made when it is built."""
from __future__ import annotations

import dataclasses
import json
import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.datasets import check
from helpers import TRAINING, VALIDATION, data_config, item, write_data
from torch.utils.data import DataLoader

from libs.core.errors import UserError
from libs.core.schema import Config, DatasetConfig
from libs.datasets.dataset import TalDataset, crop_rng
from libs.datasets.features.streams import StreamReader
from libs.datasets.grid import Grid
from libs.datasets.presets import PRESETS, get_preset

GOLDEN = Path(__file__).parent.parent / "golden"
LENGTHS = {"a": 100, "b": 37, "c": 64, "d": 12}  # at 25 fps, stride 5, 10 frames: 5 vectors per second


@pytest.mark.parametrize(("name", "comparisons"), [("datasets_seed0", 300), ("datasets_tridet_seed0", 150)])
def test_published_data_sets_and_crops(name, comparisons):
    checks = check(GOLDEN / f"{name}.npz")
    assert len(checks) > comparisons
    assert [c.name for c in checks if not c.passed] == []


def annotated(subset, length, *segments, **more):
    items = [{"segment": list(s), "label": f"c{label}", "label_id": label} for *s, label in segments]
    return {"subset": subset, "duration": (length - 1) / 5 + 0.4, "fps": 25, "annotations": items, **more}


DATABASE = {
    "a": annotated("Training", 100, (1.0, 3.0, 0), (8.0, 12.0, 1), (2.0, 19.0, 2)),
    "b": annotated("training", 37, (2.0, 4.0, 1)),
    "c": annotated("training", 64),
    "d": annotated("test", 12, (0.5, 1.5, 2), (1.0, 2.0, 0)),
}


@pytest.fixture
def make(tmp_path):
    """make(dataset keys...) -> TalDataset of the small dataset above; `config`, `database` and `subset` can be replaced."""
    features = tmp_path / "features"
    features.mkdir()
    for vid, length in LENGTHS.items():
        np.save(features / f"{vid}.npy", np.random.default_rng(ord(vid)).standard_normal((length, 6)).astype(np.float32))

    def build(subset="training", training=True, database=None, name="generic", model=None, **keys):
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"database": DATABASE if database is None else database}), encoding="utf-8")
        defaults = {"json_file": str(path), "feat_folder": str(features), "feat_stride": 5, "num_frames": 10, "input_dim": 6,
                    "num_classes": 3, "max_seq_len": 48}
        config = dataclasses.replace(Config(), dataset_name=name, source="x.yaml", dataset=DatasetConfig(**(defaults | keys)))
        if model:
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
        return TalDataset(config, subset, training)
    return build


def stored(dataset, vid):
    return np.load(Path(dataset.config.dataset.feat_folder) / f"{vid}.npy")


def test_evaluation_gives_whole_videos(make):
    dataset = make("TEST", training=False)
    sample = item(dataset, 0)
    assert len(dataset) == 1
    assert [v.id for v in dataset.videos] == ["d"]
    assert (sample.video_id, sample.start, sample.source_length, sample.duration_s) == ("d", 0, 12, 2.6)
    assert (sample.feats.dtype, sample.feats.is_contiguous()) == (torch.float32, True)
    assert np.array_equal(sample.feats.numpy(), stored(dataset, "d"))
    assert sample.grid == Grid(5.0, 10.0, 1.0, 25.0)
    assert torch.allclose(sample.grid.grid_to_seconds(sample.segments), torch.tensor([[0.5, 1.5], [1.0, 2.0]]))
    assert sample.labels.tolist() == [2, 0]
    assert dataset.label_ids == {"c0": 0, "c1": 1, "c2": 2}


def test_a_whole_video_longer_than_the_training_window_is_not_cropped(make):
    assert len(item(make(), 0).feats) == 100


def test_lengths_are_those_of_the_samples(make):
    dataset = make(downsample_rate=3)
    assert dataset.lengths().tolist() == [34, 13, 22]
    assert [len(item(dataset, i).feats) for i in range(3)] == [34, 13, 22]


def test_training_windows_are_cut_from_the_video(make):
    dataset = make(crop_ratio=(0.5, 0.9), downsample_rate=2, max_seq_len=30)
    starts = set()
    for epoch in range(5):
        for i, vid in enumerate("abc"):
            sample = item(dataset, (epoch, i))
            rows = stored(dataset, vid)[::2][sample.start:sample.start + len(sample.feats)]
            assert np.array_equal(sample.feats.numpy(), rows)
            assert len(rows) == 30 if sample.source_length > 30 else 0.5 * sample.source_length - 1 <= len(rows) <= 30
            whole = item(dataset, i).segments.numpy()
            back = sample.segments.numpy() + sample.start  # each kept segment lies inside one of the video's
            assert all(any(w[0] - 1e-4 <= s and e <= w[1] + 1e-4 for w in whole) for s, e in back)
            starts.add((i, sample.start))
    assert len(starts) > 6


def test_windows_can_be_aligned(make):
    free, aligned = (make(crop_ratio=(0.5, 0.9), crop_align=align) for align in (1, 8))
    keys = [(epoch, i) for epoch in range(5) for i in (0, 2)]
    assert any(item(free, key).start % 8 for key in keys)
    for key in keys:
        sample = item(aligned, key)
        rows = stored(aligned, sample.video_id)[sample.start:sample.start + len(item(free, key).feats)]
        assert sample.start % 8 == 0
        assert np.array_equal(sample.feats.numpy(), rows)


def test_background_videos_are_cropped_like_the_others(make):
    dataset = make()
    sample = item(dataset, (0, 2))
    assert (sample.video_id, len(sample.feats), sample.segments.shape, sample.labels.shape) == ("c", 48, (0, 2), (0,))


def same(a, b):
    return (a.video_id, a.start, a.source_length) == (b.video_id, b.start, b.source_length) and all(
        torch.equal(getattr(a, k), getattr(b, k)) for k in ("feats", "segments", "labels"))


class Items:
    """Items of a dataset, for PyTorch's own data loader."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, index):
        return item(self.dataset, index)


@pytest.mark.parametrize("workers", [1, 2])
def test_windows_do_not_depend_on_workers_or_order(make, workers):
    dataset = make(crop_ratio=(0.5, 0.9))
    order = [(e, i) for e in (3, 0, 1) for i in (2, 0, 1)]
    loader = DataLoader(Items(dataset), batch_size=None, sampler=order, num_workers=workers)
    random.seed(5)
    got = dict(zip(order, loader, strict=True))
    assert all(same(got[key], item(dataset, key)) for key in sorted(order))
    assert not all(same(got[0, i], got[1, i]) for i in range(3))


def test_crop_generator_depends_on_all_three_and_is_stable():
    keys = [(1, 2, "v"), (1, 2, "w"), (1, 3, "v"), (2, 2, "v"), (12, 2, "v"), (1, 22, "v")]
    draws = {key: crop_rng(*key).random() for key in keys}
    assert len(set(draws.values())) == len(draws)
    assert draws[1, 2, "v"] == random.Random(CROP_SEED).random()


CROP_SEED = 12570931422045605944  # of (1, 2, "v"): a change would make interrupted runs differ from uninterrupted ones


def test_runs_are_hidden_in_training_crops_alone_and_do_not_move_them(tmp_path):
    files = write_data(tmp_path)
    plain, dropping = (TalDataset(data_config(files, tmp_path, train_cfg={"frame_drop": drop}), "training", True)
                       for drop in ({}, {"probability": 0.8, "share": 0.5}))
    runs = {}
    for key in [(epoch, i) for epoch in range(3) for i in range(len(plain))]:
        crop, with_runs = plain.sample(key), dropping.sample(key)
        assert (crop.start, crop.steps, crop.hidden) == (with_runs.start, with_runs.steps, ())
        assert torch.equal(crop.segments, with_runs.segments)
        assert with_runs.hidden == dropping.sample(key).hidden
        assert torch.equal(dropping.features(with_runs), plain.features(crop))  # the teachers' view
        runs[key] = with_runs.hidden
        for first, end in with_runs.hidden:
            assert any(s <= first and end - 1 <= e for s, e in crop.segments.tolist())
    assert len(set(runs.values())) > len(plain)
    assert dropping.sample(0).hidden == ()


def test_pickled_copies_give_the_same_samples(make):
    dataset = make()
    copy = pickle.loads(pickle.dumps(dataset))
    assert same(item(copy, (4, 0)), item(dataset, (4, 0)))


def test_modalities_select_channels_in_the_models_order(make):
    dataset = make(modalities={"rgb": (0, 2), "flow": (2, 5)}, model={"modalities": ("flow", "rgb")})
    assert np.array_equal(item(dataset, 1).feats.numpy(), stored(dataset, "b")[:, [2, 3, 4, 0, 1]])


def test_resampled_features(make):
    database = {"d": annotated("test", 12, (0.0, 2.6, 0))}
    dataset = make("test", False, database, feat_stride=-1, num_frames=-1, force_upsampling=True)
    sample = item(dataset, 0)
    assert (sample.feats.shape, dataset.lengths().tolist(), sample.source_length) == ((48, 6), [48], 48)
    assert sample.segments.numpy() == pytest.approx(np.array([[-0.5, 47.5]]))  # the video's two ends
    assert sample.feats[0].tolist() == pytest.approx(stored(dataset, "d")[0].tolist())
    dataset = make("training", False, feat_stride=-1, num_frames=-1, max_seq_len=100)
    assert len(item(dataset, 0).feats) == 100
    with pytest.raises(UserError, match=r"a\.npy: has 100 feature vectors.*max_seq_len = 99"):
        make("training", False, feat_stride=-1, num_frames=-1, max_seq_len=99)
    with pytest.warns(UserWarning, match="downsample_rate: 2 has no effect"):
        assert len(item(make("test", False, force_upsampling=True, downsample_rate=2), 0).feats) == 48


def test_ground_truth_covers_videos_without_features(make, tmp_path):
    (tmp_path / "features" / "a.npy").unlink()
    with pytest.warns(UserWarning, match=r"1 of 3 videos of subset training have no features and are left out.*3 segments: a$"):
        dataset = make(missing="skip")
    assert (dataset.missing_ids, dataset.unreachable_segments, [v.id for v in dataset.videos]) == (("a",), 3, ["b", "c"])
    truth = dataset.ground_truth()
    assert truth.video_id.tolist() == ["a", "a", "a", "b"]
    assert truth.t_start.tolist() == [1.0, 8.0, 2.0, 2.0]
    assert truth.t_end.tolist() == [3.0, 12.0, 19.0, 4.0]
    assert truth.label.tolist() == [0, 1, 2, 1]


def test_every_video_is_looked_for_once(make, tmp_path, monkeypatch):
    """On a network disk each look costs a round trip."""
    (tmp_path / "features" / "a.npy").unlink()
    looked, missing = [], StreamReader.missing
    monkeypatch.setattr(StreamReader, "missing", lambda self, video: looked.append(video) or missing(self, video))
    with pytest.warns(UserWarning, match="1 of 3 videos"):
        make(missing="skip")
    assert looked == ["a", "b", "c"]


def test_missing_features_stop_by_default(make, tmp_path):
    database = {f"v{i}": annotated("training", 20, (1, 2, 0)) for i in range(13)} | DATABASE
    with pytest.raises(UserError) as error:
        make(database=database)
    message = str(error.value)
    assert message.startswith("x.yaml: dataset.feat_folder: 13 of 16 videos")
    assert message.count(".npy") == 10
    assert all(part in message for part in ("v0.npy", "v9.npy", "13 in all", "dataset.missing: skip"))
    for path in (tmp_path / "features").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="none of the 3 of 3 videos"):
        make(missing="skip")


def test_unknown_subset_lists_those_of_the_file(make):
    with pytest.raises(UserError, match=r"a\.json: has no video of subset 'val'; it has training \(3\), test \(1\).*train_split"):
        make("val")


@pytest.mark.parametrize(("name", "classes", "fragment"), [
    ("generic", 2, "label_id 2 ('c2')"), ("epic", 2, "label_id 2"), ("thumos", 4, "names 3 classes"), ("thumos", 2, "label_id 2"),
    ("ego4d", 4, "names 3 classes"), ("anet", 4, "names 3 classes")])
def test_class_counts_must_fit(make, name, classes, fragment):
    with pytest.raises(UserError) as error:
        make(name=name, num_classes=classes)
    assert fragment in str(error.value)
    assert f"x.yaml: dataset.num_classes is {classes}" in str(error.value)


def test_fewer_annotated_classes_are_fine_where_the_preset_allows(make):
    assert make(name="generic", num_classes=5).empty_classes == ()
    assert make(name="epic", num_classes=5).empty_classes == (3, 4)


def test_one_class_agnostic_class(make):
    dataset = make(name="anet", num_classes=1)
    assert item(dataset, 0).labels.tolist() == [0, 0, 0]
    assert dataset.ground_truth().label.tolist() == [0, 0, 0, 0]


def test_anet_trims_in_training_only(make):
    database = {"b": annotated("training", 60, (2.0, 4.0, 1), (6.0, 9.0, 2), (9.0, 11.0, 0))}
    training, evaluation = (make(name="anet", database=database, training=t) for t in (True, False))
    assert training.sample(0).segments.tolist() == [[9, 19], [29, 38]]  # 37 steps and an offset of 1
    assert training.sample(0).labels.tolist() == [1, 2]
    assert evaluation.sample(0).segments.tolist() == [[9, 19], [29, 44], [44, 54]]


@pytest.mark.parametrize("steps", [75, 18])
def test_lengths_that_cannot_belong_to_the_duration(make, steps):
    database = {"b": annotated("training", steps, (1.0, 2.0, 1), (1.0, 2.0, 0), (1.0, 2.0, 2))}
    with pytest.raises(UserError) as error:
        make(database=database)
    for part in ("b.npy: has 37 feature vectors", f"about {steps}", "feat_stride", "num_frames", "fps", "a.json"):
        assert part in str(error.value)
    with pytest.warns(UserWarning, match="1 of 1 videos have features that do not match their duration"):
        make(name="anet", database=database)
    database["b"].pop("duration")
    assert item(make(database=database), 0).duration_s == 1e8


@pytest.mark.parametrize("steps", [74, 37, 19])
def test_slightly_wrong_lengths_of_one_video_are_fine(make, steps):
    others = {"a": annotated("training", 100), "c": annotated("training", 64)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(make(database={**others, "b": annotated("training", steps, (1.0, 2.0, 2))})) == 3


@pytest.mark.parametrize(("keys", "told"), [
    ({"feat_stride": 4}, ["feat_stride 4", "feat_stride 5 would fit"]),
    ({"feat_stride": 8}, ["feat_stride 8", "feat_stride 5 would fit"]),
    ({"default_fps": 30}, ["at 30 fps", "or 25 fps"]),
    ({"feat_stride": 10, "downsample_rate": 2}, ["feat_stride 10", "feat_stride 5 would fit"])], ids=str)
@pytest.mark.parametrize(("subset", "training"), [("training", True), ("test", False)])
def test_a_wrong_stride_or_fps_is_one_warning_with_the_likely_value(make, keys, told, subset, training):
    database = {**DATABASE, "d": annotated("test", 64, (0.5, 1.5, 2))}
    np.save(Path(make().config.dataset.feat_folder) / "d.npy", np.ones((64, 6), np.float32))
    with pytest.warns(UserWarning, match="times as many feature vectors") as caught:
        make(subset, training, database, **keys)
    text, = [str(w.message) for w in caught]
    for part in (f"subset {subset}", "dataset.feat_stride", "dataset.default_fps", *told):
        assert part in text


@pytest.mark.parametrize("keys", [{"feat_stride": -1, "max_seq_len": 100}, {"feat_stride": 4, "force_upsampling": True}], ids=str)
def test_resampled_features_have_no_stride_to_be_wrong(make, keys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(**keys)


@pytest.mark.parametrize(("keys", "told"), [
    ({"default_fps": 30}, ["3 of 3", "fps of 'a' is 25 there and 30 here", "correct dataset.default_fps"]),
    ({"feat_stride": 4}, ["stride of 'a' is 5 there and 4 here", "correct dataset.feat_stride"]),
    ({"num_frames": 20}, ["num_frames of 'a' is 10 there and 20 here", "correct dataset.num_frames"]),
    ({"database": {"a": annotated("training", 100, (1.0, 3.0, 0)), "b": annotated("training", 37, fps=26, duration=None)}},
     ["1 of 2", "fps of 'b' is 25 there and 26 here", "fps of the annotations", "convert_annotations.py --features"])], ids=str)
def test_what_contradicts_the_provenance_of_the_features_is_one_warning_also_without_durations(make, keys, told):
    folder = Path(make().config.dataset.feat_folder)
    (folder / "provenance.json").write_text(json.dumps({"stride": 5, "num_frames": 10, "fps": 25}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make()
        make(force_upsampling=True, feat_stride=4)  # resampled: no stride to be wrong
    with pytest.warns(UserWarning, match=r"subset training: .*provenance\.json") as caught:
        make(**keys)
    text, = [str(w.message) for w in caught]
    assert all(part in text for part in told)


def test_segments_behind_the_features_of_videos_without_duration_are_one_warning(make):
    database = {"a": annotated("training", 100, (1.0, 3.0, 0), (8.0, 9.0, 1), (19.0, 19.9, 2), duration=None)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(database=database)
    with pytest.warns(UserWarning, match=r"subset training: 1 of 3 segments .*dataset\.feat_stride.*fps") as caught:
        make(database=database, default_fps=40)
    assert len(caught) == 1


def test_frame_rates(make):
    database = {"b": annotated("training", 37, (1.0, 2.0, 2), fps=None)}
    with pytest.raises(UserError, match=r"a\.json: video 'b': fps is missing \(1 of 1 videos.*dataset\.default_fps"):
        make(database=database)
    assert make(database=database, default_fps=20.0).sample(0).grid.fps == 20.0
    assert make(default_fps=20.0).sample(1).grid.fps == 20.0  # also over the annotation's own


def test_durations_where_they_are_needed(make):
    database = {"b": annotated("training", 37, (1.0, 2.0, 0), (1.0, 2.0, 1), (1.0, 2.0, 2), duration=None)}
    with pytest.raises(UserError, match="video 'b': duration is missing; dataset_name: anet"):
        make(name="anet", database=database)
    with pytest.raises(UserError, match=r"video 'b': duration is missing; dataset\.feat_stride <= 0"):
        make(database=database, feat_stride=0)


def test_strict_is_passed_on(make):
    database = {"b": annotated("training", 37, (1.0, 99.0, 2))}
    with pytest.raises(UserError, match=r"dataset\.strict"):
        make(database=database, strict=True)


def test_wrong_width_names_the_key(make):
    with pytest.raises(UserError, match=r"a\.npy: has 6 channels.*dataset\.input_dim says 8"):
        make(input_dim=(4, 4))


def test_bad_values_are_found_when_read(make, tmp_path):
    feats = np.zeros((37, 6), np.float32)
    feats[5, 2] = np.nan
    np.save(tmp_path / "features" / "b.npy", feats)
    dataset = make(downsample_rate=5)
    with pytest.raises(UserError, match=r"b\.npy: 1 of 48 values .*row 5, channel 2"):
        item(dataset, 1)
    assert item(make(downsample_rate=4), 1).feats.shape == (10, 6)


def test_thresholds_come_from_the_preset_or_the_config(make):
    assert make().tious == pytest.approx((0.3, 0.4, 0.5, 0.6, 0.7))
    assert make(tiou_thresholds=(0.25, 0.5)).tious == (0.25, 0.5)


def test_unknown_presets_list_the_known_ones():
    with pytest.raises(UserError, match=r"'thumos14' is not a known dataset \(did you mean 'thumos'\?\)") as error:
        get_preset("thumos14")
    assert all(name in str(error.value) for name in PRESETS)


def test_training_on_nothing_is_refused(make):
    empty = {vid: {**entry, "annotations": []} for vid, entry in DATABASE.items()}
    with pytest.raises(UserError, match=r"a\.json: the 3 videos of x.yaml: train_split \(training\) have no segment"):
        make(database=empty)
    empty["a"]["annotations"] = [{"segment": [2.0, 2.0], "label": "c0"}]
    with pytest.warns(UserWarning, match="zero length"), pytest.raises(UserError, match="no segment to learn from"):
        make(database=empty)
    empty["a"]["annotations"] = [{"segment": [2.0, 3.0], "label": "c0"}]
    assert len(make(database=empty)) == 3


def test_one_subset_in_another_unit_is_found_among_many_videos(make):
    frames = {f"v{i}": annotated("validation", 100, (1.0, 3.0, 0)) for i in range(9)}
    database = frames | {"a": annotated("training", 100, (25.0, 75.0, 0), (200.0, 300.0, 1), (50.0, 475.0, 2))}
    with pytest.warns(UserWarning, match="of 12 segments 3 leave"), \
            pytest.raises(UserError, match=r"3 of 3 segments lie outside .*'a' .* frames: divide by the fps"):
        make(database=database)


@pytest.mark.parametrize("training", [True, False])
def test_without_durations_the_features_tell_the_unit(make, training):
    database = {vid: {**entry, "duration": None, "annotations": [
        {**item, "segment": [1000 * t for t in item["segment"]]} for item in entry["annotations"]]}
        for vid, entry in DATABASE.items()}
    with pytest.raises(UserError, match=r"a\.json: 4 of 4 segments lie outside .*'a' reach to 19000, the video to 20.*milli"):
        make(database=database, subset="training", training=training)


def test_a_folder_per_subset_and_crops_that_end_with_the_window(tmp_path):
    """The two data rules of TriDet and HACS that configurations choose."""
    data = write_data(tmp_path)
    for subset, videos in (("training", TRAINING), ("validation", VALIDATION)):
        (data.features / subset).mkdir()
        for video in videos:
            (data.features / f"{video}.npy").rename(data.features / subset / f"{video}.npy")
    config = data_config(data, tmp_path, dataset={"subset_folders": True, "crop_offset": False})
    train = TalDataset(config, ["training"], training=True)
    assert {v.id for v in train.videos} == set(TRAINING)
    assert {v.id for v in TalDataset(config, ["validation"], training=False).videos} == set(VALIDATION)
    crops = [train.sample((epoch, i)) for epoch in range(20) for i in range(len(train))]
    assert all((c.segments >= 0).all() and (c.segments <= c.steps).all() for c in crops)
    beyond = TalDataset(data_config(data, tmp_path, dataset={"subset_folders": True}), ["training"], training=True)
    crops = [beyond.sample((epoch, i)) for epoch in range(20) for i in range(len(beyond))]
    assert any((c.segments < 0).any() for c in crops)
    data.edit(lambda document: document["database"]["v0"].update(subset="test"))
    with pytest.raises(UserError, match=r"features.test: no such feature folder; check dataset.feat_folder"):
        TalDataset(config, ["test"], training=False)
