"""Streams of a model: channel ranges and folders of their own, and that a stream which is not read may be absent."""
from __future__ import annotations

import dataclasses
import json
import pickle
import shutil

import h5py
import numpy as np
import pytest
import torch
from helpers import item

from libs.core.errors import UserError
from libs.core.schema import Config, DatasetConfig, FolderModality
from libs.datasets.dataset import TalDataset
from libs.datasets.transforms import resize

LENGTHS = {"a": 61, "b": 37}  # at 25 fps, stride 5, 10 frames
RANGES = {"rgb": (0, 4), "flow": (4, 7)}


def values(vid, name, steps, width):
    seed = sum(map(ord, vid + name))
    return np.random.default_rng(seed).standard_normal((steps, width)).astype(np.float32)


RGB = {vid: values(vid, "rgb", steps, 4) for vid, steps in LENGTHS.items()}
FLOW = {vid: values(vid, "flow", steps, 3) for vid, steps in LENGTHS.items()}
AUDIO = {vid: values(vid, "audio", steps, 2) for vid, steps in (("a", 23), ("b", 90))}  # fewer, and more, than grid steps


def put(folder, arrays, prefix="", extension=".npy"):
    folder.mkdir(exist_ok=True)
    for vid, array in arrays.items():
        np.save(folder / f"{prefix}{vid}{extension}", array)
    return str(folder)


def joined(*streams):
    return {vid: np.concatenate([stream[vid] for stream in streams], axis=1) for vid in LENGTHS}


@pytest.fixture
def make(tmp_path):
    """make(names, dataset keys...) -> TalDataset; feats/ holds RGB and flow, rgb/, flow/ and audio/ one stream each."""
    put(tmp_path / "feats", joined(RGB, FLOW))
    put(tmp_path / "rgb", RGB)
    put(tmp_path / "flow", FLOW)
    put(tmp_path / "audio", AUDIO, "vgg_", "_1s.npy")
    database = {vid: {"subset": "training", "duration": (steps - 1) / 5 + 0.4, "fps": 25,
                      "annotations": [{"segment": [1.0, 4.0], "label": "x", "label_id": 0}]} for vid, steps in LENGTHS.items()}
    (tmp_path / "a.json").write_text(json.dumps({"database": database}))

    def build(names, override=None, **keys):
        defaults = {"json_file": str(tmp_path / "a.json"), "feat_folder": str(tmp_path / "feats"), "feat_stride": 5,
                    "num_frames": 10, "input_dim": 7, "num_classes": 1, "max_seq_len": 16, "modalities": RANGES}
        data = DatasetConfig(**(defaults | keys))
        model = dataclasses.replace(Config().model, modalities=None if names is None else tuple(names))
        config = dataclasses.replace(Config(), dataset_name="generic", source="x.yaml", dataset=data, model=model)
        return TalDataset(config, "training", True, override)
    return build


def folder(tmp_path, name, dim, **more):
    return FolderModality(str(tmp_path / name), dim, **more)


def audio(tmp_path, resample="linear"):
    return folder(tmp_path, "audio", 2, file_prefix="vgg_", file_ext="_1s.npy", resample=resample)


def assert_same_samples(one, other):
    for key in (0, 1, (0, 0), (0, 1), (3, 0)):
        a, b = item(one, key), item(other, key)
        assert torch.equal(a.feats, b.feats)
        assert torch.equal(a.segments, b.segments)
        assert (a.start, a.source_length, a.grid) == (b.start, b.source_length, b.grid)


def interpolated(array, steps):
    """Linear interpolation between the centres of `steps` equal parts of the video, by hand."""
    rows, out = len(array), np.zeros((steps, array.shape[1]))
    centres = [(t + 0.5) / rows for t in range(rows)]
    for t in range(steps):
        for c in range(array.shape[1]):
            out[t, c] = np.interp((t + 0.5) / steps, centres, array[:, c].astype(np.float64))
    return out


@pytest.mark.parametrize("absent", ["channels", "nan"])
def test_flow_channels_may_be_absent_or_broken(make, tmp_path, absent):
    whole = make(["rgb"])
    expected = [item(whole, key) for key in (0, 1, (0, 0))]
    assert np.array_equal(item(whole, 1).feats.numpy(), RGB["b"])
    put(tmp_path / "feats", RGB if absent == "channels" else joined(RGB, {v: np.full_like(f, np.nan) for v, f in FLOW.items()}))
    reader = make(["rgb"])
    assert all(torch.equal(item(reader, key).feats, e.feats) for key, e in zip((0, 1, (0, 0)), expected, strict=True))
    with pytest.raises(UserError, match=r"dataset\.input_dim says 7" if absent == "channels" else r"a\.npy: 183 of 427 values"):
        item(make(["rgb", "flow"]), 0)


@pytest.mark.parametrize("state", ["deleted", "another format", "empty"])
def test_flow_folder_may_be_absent(make, tmp_path, state):
    own = {"rgb": folder(tmp_path, "rgb", 4), "flow": folder(tmp_path, "flow", 3)}
    setups = ({"modalities": own}, {"feat_folder": (str(tmp_path / "rgb"), str(tmp_path / "flow")), "input_dim": (4, 3)},
              {"modalities": {"rgb": (0, 4), "flow": own["flow"]}, "feat_folder": str(tmp_path / "rgb"), "input_dim": 4})
    expected = make(["rgb"])
    shutil.rmtree(tmp_path / "flow")
    if state == "another format":
        (tmp_path / "flow").write_text("not a folder")
    elif state == "empty":
        (tmp_path / "flow").mkdir()
    for keys in setups:
        assert_same_samples(make(["rgb"], **keys), expected)
        with pytest.raises(UserError, match="flow"):
            make(["rgb", "flow"], **keys)


def test_only_declared_ends_are_accepted_as_narrower_files(make, tmp_path):
    three = {"rgb": (0, 4), "flow": (4, 6), "depth": (6, 7)}
    for width, names in ((4, ["rgb"]), (6, ["rgb"]), (6, ["flow", "rgb"]), (7, ["depth"])):
        put(tmp_path / "feats", {v: f[:, :width] for v, f in joined(RGB, FLOW).items()})
        channels = [c for name in names for c in range(*three[name])]
        assert np.array_equal(item(make(names, modalities=three), 0).feats.numpy(), joined(RGB, FLOW)["a"][:, channels])
    for width, names in ((5, ["rgb"]), (3, ["rgb"]), (4, ["flow"]), (6, ["rgb", "depth"]), (4, None)):
        put(tmp_path / "feats", {v: f[:, :width] for v, f in joined(RGB, FLOW).items()})
        with pytest.raises(UserError, match=rf"a\.npy: has {width} channels .*dataset\.input_dim says 7"):
            make(names, modalities=three)


def test_folders_with_known_borders(make, tmp_path):
    keys = {"feat_folder": (str(tmp_path / "rgb"), str(tmp_path / "flow")), "input_dim": (4, 3)}
    across = {"left": (0, 2), "middle": (2, 5), "right": (5, 7)}  # middle lies in both folders
    dataset = make(["middle", "left"], modalities=across, **keys)
    assert np.array_equal(item(dataset, 0).feats.numpy(), joined(RGB, FLOW)["a"][:, [2, 3, 4, 0, 1]])
    put(tmp_path / "flow", {"a": FLOW["a"][:50], "b": FLOW["b"]})
    with pytest.raises(UserError, match=r"flow/a\.npy: has 50 feature vectors, but .*rgb/a\.npy has 61; .*"
                                        r"folder: .*flow, dim: 3, resample: linear"):
        make(["middle"], modalities=across, **keys)
    with pytest.raises(UserError, match=r"input_dim: 4\).*first: \[0, 4\], second: .folder: .*flow, dim: 3, resample: linear"):
        make(None, feat_folder=keys["feat_folder"], input_dim=7)
    mended = {"first": (0, 4), "second": FolderModality(str(tmp_path / "flow"), 3, resample="linear")}
    mended_set = make(["first", "second"], modalities=mended, feat_folder=str(tmp_path / "rgb"), input_dim=4)
    assert item(mended_set, 0).feats.shape == (61, 7)
    shutil.rmtree(tmp_path / "flow")
    assert np.array_equal(item(make(["left"], modalities=across, **keys), 0).feats.numpy(), RGB["a"][:, :2])
    with pytest.raises(UserError, match=r"flow: no such feature folder; check dataset\.feat_folder"):
        make(["left"], modalities=across, **(keys | {"input_dim": 7}))  # where rgb ends is not known


def test_joined_folders_without_borders_are_never_narrower(make, tmp_path):
    put(tmp_path / "rgb", {v: f[:, :1] for v, f in RGB.items()})  # 1 + 3 channels: as many as rgb, but other ones
    with pytest.raises(UserError, match=r"has 1 \+ 3 channels .*dataset\.input_dim says 7"):
        make(["rgb"], feat_folder=(str(tmp_path / "rgb"), str(tmp_path / "flow")))


def test_override_reads_other_streams_than_the_model(make, tmp_path):
    dataset = make(["rgb"], ["flow", "rgb"])
    assert np.array_equal(item(dataset, 1).feats.numpy(), joined(FLOW, RGB)["b"])
    assert item(make(["rgb"], None), 0).feats.shape == (61, 4)
    assert item(make(None, ["flow"]), 0).feats.shape == (61, 3)
    mixed = make(None, ["flow", "audio", "rgb"], modalities=RANGES | {"audio": audio(tmp_path)})
    sample = item(mixed, 0)
    assert (sample.feats.is_contiguous(), sample.feats.dtype) == (True, torch.float32)
    assert np.array_equal(sample.feats[:, :3].numpy(), FLOW["a"])
    assert np.array_equal(sample.feats[:, 5:].numpy(), RGB["a"])
    assert np.abs(sample.feats[:, 3:5].numpy() - interpolated(AUDIO["a"], 61)).max() < 1e-5


def test_override_draws_the_same_windows(make):
    student, both = make(["rgb"]), make(["rgb"], ["rgb", "flow"])
    for epoch in range(4):
        one, two = item(student, (epoch, 0)), item(both, (epoch, 0))
        assert one.start == two.start
        assert torch.equal(one.feats, two.feats[:, :4])


@pytest.mark.parametrize(("rate", "steps"), [(1, (61, 37)), (3, (21, 13))])
def test_audio_is_stretched_to_the_grid(make, tmp_path, rate, steps):
    dataset = make(["rgb", "audio"], modalities=RANGES | {"audio": audio(tmp_path)}, downsample_rate=rate)
    assert dataset.lengths().tolist() == list(steps)
    for i, (vid, length) in enumerate(zip("ab", steps, strict=True)):
        feats = item(dataset, i).feats.numpy()
        assert np.array_equal(feats[:, :4], RGB[vid][::rate])
        assert np.abs(feats[:, 4:] - interpolated(AUDIO[vid], length)).max() < 1e-5


def test_windows_of_stretched_streams_are_slices_of_the_whole(make, tmp_path):
    dataset = make(["audio", "rgb"], modalities=RANGES | {"audio": audio(tmp_path)})
    starts = set()
    for epoch in range(6):
        sample = item(dataset, (epoch, 0))
        whole = torch.cat([resize(torch.from_numpy(AUDIO["a"]), 61), torch.from_numpy(RGB["a"])], dim=1)
        assert torch.equal(sample.feats, whole[sample.start:sample.start + 16])
        starts.add(sample.start)
    assert len(starts) > 1


def test_every_stream_follows_forced_upsampling(make, tmp_path):
    modalities = {"rgb": (0, 4), "flow": folder(tmp_path, "flow", 3), "audio": audio(tmp_path)}
    dataset = make(["audio", "flow", "rgb"], modalities=modalities, force_upsampling=True, max_seq_len=48)
    want = np.concatenate([interpolated(x["b"], 48) for x in (AUDIO, FLOW, RGB)], axis=1)
    assert np.abs(item(dataset, 1).feats.numpy() - want).max() < 1e-5
    stretched = make(["audio", "flow"], modalities=modalities, feat_stride=-1, num_frames=-1, max_seq_len=64)
    want = np.concatenate([interpolated(AUDIO["b"], 37), FLOW["b"]], axis=1)
    assert np.abs(item(stretched, 1).feats.numpy() - want).max() < 1e-5


def test_the_first_stream_that_is_not_stretched_gives_the_grid(make, tmp_path):
    modalities = {"audio": audio(tmp_path), "slow": folder(tmp_path, "flow", 3), "rgb": (0, 4)}
    dataset = make(["audio", "slow"], modalities=modalities, feat_folder="")
    assert dataset.lengths().tolist() == [61, 37]
    native = make(["audio"], modalities={"audio": audio(tmp_path, "none")}, feat_folder="", feat_stride=-1, max_seq_len=90)
    assert native.lengths().tolist() == [23, 90]
    with pytest.raises(UserError, match=r"^x\.yaml: dataset\.modalities: audio: resample: linear .* none of these gives a grid"):
        make(["audio"], modalities=modalities)
    for names in (["slow", "rgb"], ["rgb", "slow"]):  # ranges come first, wherever they stand
        put(tmp_path / "flow", {"a": FLOW["a"][:60]})
        with pytest.raises(UserError, match=r"flow/a\.npy: has 60 feature vectors, but .*feats/a\.npy has 61; set "
                                            r"dataset\.modalities\.slow\.resample: linear"):
            make(names, modalities=modalities)


def test_streams_in_one_file_and_in_other_processes(make, tmp_path):
    with h5py.File(tmp_path / "audio.h5", "w") as file:
        for vid, array in AUDIO.items():
            file[f"v_{vid}"] = array
    bundle = FolderModality(str(tmp_path / "audio.h5"), 2, file_prefix="v_", resample="linear")
    dataset = make(["rgb", "audio"], modalities=RANGES | {"audio": bundle})
    assert_same_samples(dataset, make(["rgb", "audio"], modalities=RANGES | {"audio": audio(tmp_path)}))
    assert_same_samples(pickle.loads(pickle.dumps(dataset)), dataset)


def test_a_video_is_missing_if_any_stream_lacks_it(make, tmp_path):
    modalities = RANGES | {"audio": audio(tmp_path)}
    path = tmp_path / "audio" / "vgg_a_1s.npy"
    path.unlink()
    with pytest.raises(UserError) as error:
        make(["rgb", "audio"], modalities=modalities)
    assert str(error.value).startswith("x.yaml: dataset.modalities.audio.folder: 1 of 2 videos")
    assert str(path) in str(error.value)
    with pytest.warns(UserWarning, match="1 of 2 videos"):
        dataset = make(["rgb", "audio"], modalities=modalities, missing="skip")
    assert (dataset.missing_ids, [v.id for v in dataset.videos]) == (("a",), ["b"])
    assert len(make(["rgb"], modalities=modalities)) == 2


@pytest.mark.parametrize(("change", "fragments"), [
    ({"dim": 5}, (r"vgg_a_1s.npy: has 2 channels", "dataset.modalities.audio.dim says 5", "dataset.modalities.audio.folder")),
    ({"file_ext": ".csv"}, ("dataset.modalities.audio.file_ext: '.csv'",)),
    ({"folder": "nowhere"}, ("nowhere: no such feature folder; check dataset.modalities.audio.folder",)),
    ({"folder": ""}, ("dataset.modalities.audio.folder: '' names no folder",))])
def test_errors_name_the_modalitys_own_keys(make, tmp_path, change, fragments):
    modality = dataclasses.replace(audio(tmp_path), **change)
    with pytest.raises(UserError) as error:
        make(["rgb", "audio"], modalities=RANGES | {"audio": modality})
    assert all(fragment in str(error.value) for fragment in fragments), error.value
    assert "input_dim" not in str(error.value)


def test_bad_values_name_file_row_and_channel(make, tmp_path):
    broken = AUDIO["b"].copy()
    broken[80, 1] = np.inf
    put(tmp_path / "audio", {"b": broken}, "vgg_", "_1s.npy")
    dataset = make(["rgb", "audio"], modalities=RANGES | {"audio": audio(tmp_path)})
    assert item(dataset, 0).feats.isfinite().all()
    with pytest.raises(UserError, match=r"vgg_b_1s\.npy: 1 of 180 values .*row 80, channel 1"):
        item(dataset, 1)


@pytest.mark.parametrize(("names", "fragment"), [
    (["rgb", "flwo"], r"'flwo' is to be read, but is not declared \(did you mean 'flow'\?\)"),
    ([], "name one or more of rgb, flow"), (["rgb", "rgb"], "each once")])
def test_names_that_cannot_be_read(make, names, fragment):
    with pytest.raises(UserError, match=rf"^x\.yaml: dataset\.modalities: .*{fragment}"):
        make(["rgb"], names)


def test_names_without_declared_modalities(make):
    with pytest.raises(UserError, match=r"'rgb' is to be read, but is not declared; it declares nothing"):
        make(None, ["rgb"], modalities=None)
