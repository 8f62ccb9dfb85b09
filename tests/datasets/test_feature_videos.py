"""Features without annotations: which files an argument means, what is read, what is refused."""
from __future__ import annotations

import json
import warnings

import h5py
import numpy as np
import pytest
import torch
from helpers import CHANNELS, TINY, data_config, item, merged, tiny_config, write_data

from libs.core.config import from_dict
from libs.core.errors import UserError
from libs.datasets.convert.video_info import read_video_info
from libs.datasets.dataset import TalDataset
from libs.datasets.feature_videos import FeatureArray, FeatureVideos, Timing, find_videos, raw_videos
from libs.datasets.features.provenance import VideoTiming

RANGES = {"dataset": {"modalities": {"rgb": [0, 2], "flow": [2, 5], "depth": [5, 6]}}}
FPS = Timing(fps=25.0)


def feats(steps=20, channels=CHANNELS, seed=0):
    return np.random.default_rng(seed).normal(size=(steps, channels)).astype(np.float32)


def ids(videos):
    return [v.id for v in videos]


def refused(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    for part in parts:
        assert part in str(error.value), str(error.value)


@pytest.mark.parametrize("sections", [
    {}, {"dataset": {"downsample_rate": 2}}, {"dataset": {"force_upsampling": True}},
    {"dataset": {"feat_stride": -1, "max_seq_len": 72}},
    merged(RANGES, {"model": {"modalities": ["flow", "rgb"]}})], ids=str)
def test_samples_are_those_of_the_annotated_data_set(tmp_path, sections):
    data = write_data(tmp_path)
    config = data_config(data, tmp_path, **sections)
    dataset = TalDataset(config, "training", training=False)
    document = json.loads(data.annotations.read_text())["database"]
    (tmp_path / "info.json").write_text(json.dumps({"database": document}))
    videos = FeatureVideos(find_videos([data.features / f"{v.id}.npy" for v in dataset.videos], config), config,
                           Timing(by_video=read_video_info(tmp_path / "info.json")))
    assert ids(videos.videos) == ids(dataset.videos)
    assert videos.lengths().tolist() == dataset.lengths().tolist()
    arrays = FeatureVideos([FeatureArray(v.id, np.load(data.features / f"{v.id}.npy")) for v in dataset.videos], config,
                           Timing(by_video=read_video_info(tmp_path / "info.json")))
    for i in range(len(dataset)):
        for other in (item(videos, i), item(arrays, i)):
            assert torch.equal(other.feats, item(dataset, i).feats)
            assert (other.grid, other.duration_s) == (item(dataset, i).grid, item(dataset, i).duration_s)
            assert len(other.segments) == len(other.labels) == 0


def test_without_a_duration_a_video_lasts_to_the_end_of_its_last_window(tmp_path):
    videos = FeatureVideos([FeatureArray("a", feats(20))], tiny_config(), FPS)
    assert videos.durations_s == {"a": (19 * 5 + 10) / 25}
    assert FeatureVideos([FeatureArray("a", feats(20))], tiny_config(), Timing(25.0, 4.0)).durations_s == {"a": 4.0}
    both = Timing(25.0, 4.0, {"a": VideoTiming(50.0), "b": VideoTiming(None, 4.5)})
    assert (both.of("a")[:2], both.of("b")[:2], both.of("c")[:2]) == ((50.0, 4.0), (25.0, 4.5), (25.0, 4.0))


def test_a_wrong_fps_is_one_warning_with_the_likely_value(tmp_path):
    """40 vectors of stride 5 at 25 fps last 8.2 s."""
    arrays = [FeatureArray(name, feats(40)) for name in "ab"]
    with pytest.warns(UserWarning, match="'a'.*at 30 fps.* or 25 fps.*--fps") as caught:
        FeatureVideos(arrays, tiny_config(), Timing(30.0, 8.2))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureVideos(arrays, tiny_config(), Timing(25.0, 8.2))
        FeatureVideos(arrays, tiny_config(), Timing(30.0))  # nothing to compare with
    with pytest.warns(UserWarning, match="at their fps.* feat_stride 5 would fit, or fps 1.25 times as high"):
        FeatureVideos(arrays, tiny_config(dataset={"feat_stride": 6.25}), Timing(25.0, 8.2, {"a": VideoTiming(50.0, 4.1)}))


PROVENANCE = {"stride": 4, "num_frames": 8, "fps": None,
              "videos": {"a": {"fps": 30, "duration": 3.0}, "b": {"fps": 25.0, "duration": 3.4}}}


def recorded(folder, **changes):
    """Features of `a` and `b`, 20 vectors each, and the provenance.json of both."""
    folder.mkdir(exist_ok=True)
    for name in "ab":
        np.save(folder / f"{name}.npy", feats(20))
    (folder / "provenance.json").write_text(json.dumps({**PROVENANCE, **changes}))
    return find_videos([folder], tiny_config())


def test_times_come_from_the_provenance_beside_the_features_per_video(tmp_path):
    with pytest.warns(UserWarning, match=r"provenance.json .*stride 4 and num_frames 8, .* 5 and 10") as caught:
        videos = FeatureVideos(recorded(tmp_path / "x"), tiny_config(), Timing())
    assert len(caught) == 1
    grids = [videos.sample(i).grid for i in (0, 1)]
    assert [(g.stride, g.num_frames, g.fps) for g in grids] == [(4, 8, 30), (4, 8, 25)]
    assert videos.durations_s == {"a": 3.0, "b": 3.4}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitting = tiny_config(dataset={"feat_stride": 4, "num_frames": 8, "default_fps": 50.0})  # the fps of training
        found = FeatureVideos(recorded(tmp_path / "x"), fitting, Timing(25.0, by_video={"a": VideoTiming(30.0, 2.9)}))
    assert found.durations_s == {"a": 2.9, "b": 3.4}  # a duration may differ by rounding


@pytest.mark.parametrize(("timing", "told"), [
    (Timing(25.0), ["'a'", "fps 30", "fps 25", "leave the fps out"]), (Timing(duration_s=12.0), ["duration 3", "duration 12"]),
    (Timing(stride=8.0), ["stride 4", "stride 8"]), (Timing(num_frames=16.0), ["num_frames 8", "num_frames 16"]),
    (Timing(by_video={"b": VideoTiming(24.0)}), ["'b'", "fps 25", "fps 24"])], ids=str)
def test_what_contradicts_the_provenance_is_refused(tmp_path, timing, told):
    found = recorded(tmp_path / "x")
    refused(lambda: FeatureVideos(found, tiny_config(), timing), "provenance.json", *told)


@pytest.mark.parametrize(("changes", "told"), [
    ({"stride": "x"}, ["stride", "'x'", "remove it"]), ({"videos": {"a": {"fps": -1}}}, ["video a", "fps", "-1"]),
    ({"videos": [1]}, ["videos", "expected"]), ({"videos": {"a": {"duration": float("nan")}}}, ["video a", "duration", "nan"])])
def test_a_damaged_provenance_is_refused(tmp_path, changes, told):
    found = recorded(tmp_path / "x", **changes)
    refused(lambda: FeatureVideos(found, tiny_config(), FPS), "provenance.json", *told)


def test_a_video_that_the_provenance_does_not_list_has_what_holds_for_all(tmp_path):
    found = recorded(tmp_path / "x", videos={}, fps=40.0, stride=5, num_frames=10)
    assert FeatureVideos(found, tiny_config(), Timing()).sample(1).grid.fps == 40.0
    found = recorded(tmp_path / "x", videos={"a": {"fps": 30.0}}, stride=5, num_frames=10)
    refused(lambda: FeatureVideos(found, tiny_config(), Timing()), "b.npy", "this video", "--fps")


def test_unknown_fps_are_one_error_that_counts(tmp_path):
    arrays = [FeatureArray(name, feats(20)) for name in ("clip_1", "clip_2", "clip_3")]
    refused(lambda: FeatureVideos(arrays, tiny_config(), Timing()), "'clip_1'", "3 of 3 videos", "--fps", "--info")
    listed = Timing(by_video={"clip_1": VideoTiming(25.0), "klip_2": VideoTiming(25.0), "clip_3": VideoTiming(25.0)})
    refused(lambda: FeatureVideos(arrays, tiny_config(), listed), "'clip_2'", "this video", "lists 3", "--fps")


def test_what_an_argument_means(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("b.npy", "v_a.npy"):
        np.save(folder / name, feats())
    np.savez(folder / "c.npz", feats=feats())
    (folder / "notes.txt").write_text("no features")
    with h5py.File(tmp_path / "many.h5", "w") as file:
        file["x"], file["v_y"] = feats(), feats(9)
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["feats"] = feats(11)
    config = tiny_config(dataset={"file_prefix": "v_"})
    found = find_videos([folder, tmp_path / "many.h5", tmp_path / "one.h5"], config)
    assert ids(found) == ["b", "c", "a", "y", "x", "one"]
    assert FeatureVideos(found, config, FPS).lengths().tolist() == [20, 20, 20, 9, 20, 11]
    np.save(folder / "d_i3d.npy", feats())
    assert ids(find_videos([folder / "d_i3d.npy"], tiny_config(dataset={"file_ext": "_i3d.npy"}))) == ["d"]
    assert ids(find_videos([folder / "d_i3d.npy"], config)) == ["d_i3d"]


@pytest.mark.parametrize("width", [6, 5, 3])
def test_files_may_hold_all_channels_as_far_as_needed_or_just_those_read(tmp_path, width):
    """rgb 0:2, flow 2:5, depth 5:6; the model reads flow."""
    config = tiny_config(**merged(RANGES, {"model": {"modalities": ["flow"]}}))
    whole = feats()
    stored = whole[:, 2:5] if width == 3 else whole[:, :width]
    np.save(tmp_path / "a.npy", stored)
    for video in (find_videos([tmp_path / "a.npy"], config)[0], FeatureArray("a", stored)):
        assert np.array_equal(item(FeatureVideos([video], config, FPS), 0).feats.numpy(), whole[:, 2:5])


def test_streams_with_files_of_their_own_and_joined_folders(tmp_path):
    for name, channels in (("rgb", 4), ("audio", 2)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", feats(20 if name == "rgb" else 7, channels, channels))
    config = tiny_config(dataset={"input_dim": 4, "modalities": {"rgb": [0, 4], "audio": {"folder": "gone", "dim": 2,
                                                                                         "resample": "linear"}}},
                         model={"modalities": ["rgb", "audio"]})
    rgb = find_videos([tmp_path / "rgb"], config)
    sample = item(FeatureVideos(rgb, config, FPS, streams={"audio": str(tmp_path / "audio")}), 0)
    assert sample.feats.shape == (20, 6)
    assert np.array_equal(sample.feats[:, :4].numpy(), feats(20, 4, 4))
    refused(lambda: FeatureVideos(rgb, config, FPS, streams={"audo": "x"}), "'audo'", "'audio'")
    refused(lambda: FeatureVideos(rgb, config, FPS), "gone", "no such feature folder")
    np.save(tmp_path / "audio" / "a.npy", feats(20, 2, 2))
    joined = item(FeatureVideos(rgb, tiny_config(), FPS, join=[str(tmp_path / "audio")]), 0)
    assert np.array_equal(joined.feats.numpy(), np.concatenate([feats(20, 4, 4), feats(20, 2, 2)], axis=1))


def test_refusals(tmp_path):
    config = tiny_config()
    np.save(tmp_path / "a.npy", feats())
    found = find_videos([tmp_path / "a.npy"], config)
    refused(lambda: FeatureVideos(found, config), "a.npy", "--fps", "--info")
    refused(lambda: FeatureVideos(found, config, Timing(fps=-1.0)), "fps", "-1.0")
    refused(lambda: FeatureVideos(found, config, Timing(25.0, float("nan"))), "duration", "nan")
    refused(lambda: FeatureVideos(found, config, Timing(25.0, 400.0)), "20 feature vectors", "400 s at 25 fps")
    refused(lambda: FeatureVideos([], config, FPS), "no features are given")
    refused(lambda: FeatureVideos(found * 2, config, FPS), "'a'", "rename")
    stretched = tiny_config(dataset={"feat_stride": -1})
    refused(lambda: FeatureVideos(found, stretched, FPS), "--duration")
    long = [FeatureArray("a", feats(90))]
    refused(lambda: FeatureVideos(long, stretched, Timing(25.0, 30.0)), "90 feature vectors", "max_seq_len = 48")
    for steps, channels, told in ((20, 7, ["7 channels", "tiny.yaml", "6 channels"]), (6, 20, ["transposed"]),
                                  (0, 6, ["no feature vectors"])):
        np.save(tmp_path / "b.npy", feats(steps, channels))
        refused(lambda: FeatureVideos(find_videos([tmp_path / "b.npy"], config), config, FPS), "b.npy", *told)
        refused(lambda s=steps, c=channels: FeatureVideos([FeatureArray("b", feats(s, c))], config, FPS), "'b'", *told)
    spoilt = feats()
    spoilt[3, 2] = np.inf
    np.save(tmp_path / "c.npy", spoilt)
    refused(lambda: item(FeatureVideos(find_videos([tmp_path / "c.npy"], config), config, FPS), 0), "c.npy", "row 3, channel 2")
    refused(lambda: FeatureVideos([FeatureArray("c", spoilt)], config, FPS), "'c'", "row 3, channel 2")
    refused(lambda: FeatureVideos([FeatureArray("c", np.array(["x"]))], config, FPS), "'c'", "expected numbers (T, C)")


def test_paths_that_hold_no_features(tmp_path):
    config = from_dict(TINY)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "a.h5").write_text("not HDF5")
    refused(lambda: find_videos([tmp_path / "gone"], config), "gone", "no such feature file or folder")
    refused(lambda: find_videos([tmp_path / "empty"], config), "empty", "holds no feature files", ".npz")
    refused(lambda: find_videos([tmp_path / "a.txt"], config), "a.txt", "'.txt'", ".npy")
    refused(lambda: find_videos([tmp_path / "a.h5"], config), "a.h5", "cannot be read")


def test_which_paths_are_raw_videos(tmp_path):
    (tmp_path / "a.MP4").write_text("")
    for path in (tmp_path, tmp_path / "a.MP4"):
        assert raw_videos(path) == [str(tmp_path / "a.MP4")]
    assert raw_videos("gone.mkv") == ["gone.mkv"]
    assert raw_videos("gone.npy") == raw_videos("gone") == []
    np.save(tmp_path / "b.npy", feats())
    assert raw_videos(tmp_path) == []  # a folder of features, as ever


def test_files_of_the_first_streams_of_the_extractor_are_read(tmp_path):
    sections = {"dataset": {"modalities": {"part": [1, 3], "flow": [3, 6]}}, "model": {"modalities": ["part"]}}
    np.save(tmp_path / "a.npy", feats(channels=4))
    config = tiny_config(**sections)
    refused(lambda: FeatureVideos(find_videos([tmp_path / "a.npy"], config), config, FPS), "a.npy: has 4 channels")
    config = tiny_config(**merged(sections, {"dataset": {"extractor": {
        "name": "x", "settings": {}, "streams": {"rgb": {"channels": [0, 4]}, "flow": {"channels": [4, 6]}}}}}))
    read = item(FeatureVideos(find_videos([tmp_path / "a.npy"], config), config, FPS), 0)
    assert np.array_equal(read.feats, feats(channels=4)[:, 1:3])


def test_times_beyond_all_bounds():
    for timing, told in ((Timing(fps=1e30), "fps: 1e+30 is not between 0.001"), (Timing(25.0, 1e30), "duration: 1e+30")):
        refused(lambda timing=timing: FeatureVideos([FeatureArray("a", feats())], tiny_config(), timing), told)
