"""Networks of transformers: folders and preprocessing by hand without the package; with it, its own features and processors."""
from __future__ import annotations

import importlib.util
import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import one_error
from videos import make_video, moving, run_extract

from libs.core.errors import UserError
from libs.datasets.video.decoding import read_frames
from libs.datasets.video.extractors import create
from libs.datasets.video.extractors import transformers_folder as module
from libs.datasets.video.extractors.base import hashes, normalised
from libs.datasets.video.extractors.rgb_clips import resized
from libs.datasets.video.extractors.transformers_files import KINDS, VALUES, preprocessing

CONFIG = {"model_type": "videomae", "num_frames": 4, "image_size": 32}
FRAMES = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "image_mean": [0.1, 0.2, 0.3],
          "image_std": [0.5, 0.6, 0.7]}


def write(folder: Path, config: object, frames: object = None, name: str = "preprocessor_config.json",
          weights: str | None = "model.safetensors") -> Path:
    """A folder with these files; None: without."""
    folder.mkdir(exist_ok=True)
    for file, content in (("config.json", config), (name, frames)):
        if content is not None:
            (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    if weights:
        (folder / weights).write_bytes(b"weights")
    return folder


class VideoMAEModel(torch.nn.Module):
    """A stand-in: token t has the mean of each channel of frame t, and the input is (B, T, 3, H, W)."""

    def forward(self, x: torch.Tensor) -> types.SimpleNamespace:
        assert x.shape[1:3] == (4, 3)
        return types.SimpleNamespace(last_hidden_state=x.mean((3, 4)))


class VivitModel(VideoMAEModel):
    """A stand-in with a class token."""


STAND_INS = {kind.__name__: kind for kind in (VideoMAEModel, VivitModel)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A video, a folder `m`, and stand-ins for loading."""
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "a.mp4", frames=9, picture=moving)
    write(tmp_path / "m", CONFIG, FRAMES)
    monkeypatch.setattr(module, "load_network", lambda folder, name: STAND_INS[name]())
    monkeypatch.setattr(module.importlib, "import_module", lambda name: types.SimpleNamespace(__version__=f"{name} 9"))
    return tmp_path


def extract(capsys, *argv: str) -> tuple[int, str, str]:
    return run_extract(capsys, "a.mp4", "-o", "out", "--device", "cpu", *argv)


@pytest.mark.parametrize("model_type", ["videomae", "vivit"])
def test_features_are_those_of_the_chain_by_hand(model_type, folder, capsys):
    write(folder / "m", CONFIG | {"model_type": model_type}, FRAMES | {"rescale_factor": 1 / 255, "offset": False})
    code, out, err = extract(capsys, "--extractor", "transformers:m")
    assert (code, err) == (0, "")
    frames = [resized(frame, (36, 48), "antialiased-bilinear")[2:34, 8:40] for frame in read_frames("a.mp4", None)]
    values = (np.stack(frames).mean((1, 2)) / 255 - FRAMES["image_mean"]) / FRAMES["image_std"]
    expected = [values[t:t + 4].mean(0) if model_type == "videomae" else values[t] for t in range(6)]  # stride 4 // 4
    assert np.abs(np.load("out/a.npy") - expected).max() < 1e-4
    noted, network = json.loads(Path("out/provenance.json").read_text()), KINDS[model_type].model
    digests = {name: hashes(f"m/{name}", "", "").sha256 for name in ("config.json", "model.safetensors")}
    assert digests["model.safetensors"] in out
    assert noted["streams"] == [{
        "name": "rgb", "model": "m", "files": digests, "kind": f"transformers {network}",
        "feature": "mean of the tokens" if model_type == "videomae" else "class token", "values": "RGB / 255",
        "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}]
    assert noted["libraries"]["transformers"] == "transformers 9"
    assert [noted[key] for key in ("extractor", "stride", "num_frames", "resize", "crop", "resampling")] == [
        "transformers", 1, 4, 36, 32, "antialiased-bilinear"]


HALF, IMAGENET = ((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PREPARED = {  # type, values of the file, what follows: resize, crop, (mean, std)
    "videomae": ("videomae", {}, 224, 224, HALF),
    "timesformer": ("timesformer", {}, 224, 224, IMAGENET),
    "vjepa2": ("vjepa2", {}, 292, 256, IMAGENET),
    "vivit": ("vivit", {}, 256, 224, ((0.75,) * 3, (0.25,) * 3)),  # (x / 127.5 - 1 - 0.5) / 0.5
    "vivit without offset": ("vivit", {"offset": False}, 256, 224, ((0.25,) * 3, (0.25,) * 3)),
    "as bytes": ("videomae", {"do_rescale": False, "image_mean": 51}, 224, 224, ((0.2,) * 3, (0.5 / 255,) * 3)),
    "as they are": ("videomae", {"do_normalize": False}, 224, 224, ((0,) * 3, (1,) * 3)),
    "old sizes": ("videomae", {"size": 200, "crop_size": 196}, 200, 196, HALF),
    "exact size": ("videomae", {"size": {"height": 100, "width": 120}, "do_center_crop": False}, (100, 120), None, HALF),
    "no scaling": ("videomae", {"do_resize": False}, None, 224, HALF),
}


@pytest.mark.parametrize("name", PREPARED)
def test_what_the_preprocessor_file_says(name):
    model_type, given, resize, crop, (mean, std) = PREPARED[name]
    made = preprocessing(Path("p.json"), {**VALUES, **KINDS[model_type].values, **given})
    assert (made["resize"], made["crop"], made["resampling"]) == (resize, crop, "antialiased-bilinear")
    assert made["mean"] == pytest.approx(mean)
    assert made["std"] == pytest.approx(std)


@pytest.mark.parametrize(("key", "value", "told"), [
    ("size", {"longest_edge": 3}, "shortest_edge"), ("size", True, "pixels"), ("crop_size", {"height": 3, "width": 4}, "square"),
    ("crop_size", -1, "pixels"), ("resample", 0, "2 (bilinear)"), ("resample", [2], "2 (bilinear)"),
    ("rescale_factor", 0, "more than 0"), ("image_std", [0.5, 0, 1], "more than 0"), ("image_mean", [1, 2], "R, G and B"),
    ("image_mean", ["a"] * 3, "R, G and B"),
    ("image_std", float("nan"), "R, G and B")])
def test_other_values_of_the_preprocessor_file_are_refused(key, value, told):
    with pytest.raises(UserError) as caught:
        preprocessing(Path("p.json"), {**VALUES, key: value})
    assert f"p.json: {key} is " in str(caught.value)
    assert told in str(caught.value)


def test_a_folder_without_a_preprocessor_file_is_told(folder, capsys):
    (folder / "m/preprocessor_config.json").unlink()
    code, _, err = extract(capsys, "--extractor", "transformers:m", "--resize", "40", "--crop", "32")
    assert code == 0
    assert "warning: m: holds no preprocessor_config.json" in err
    assert "--mean" in err
    write(folder / "m", CONFIG, FRAMES, "video_preprocessor_config.json")
    assert create("transformers:m", {}).settings.mean == (0.1, 0.2, 0.3)
    assert capsys.readouterr().err == ""


ERRORS = {  # what is written into the folder b, options, what the error says
    "no folder": (lambda b: None, [], ["b: no such folder", "config.json", "nothing is downloaded"]),
    "a file": (lambda b: b.write_text(""), [], ["b: no such folder"]),
    "no config": (lambda b: write(b, None), [], ["b: holds no config.json"]),
    "no JSON": (lambda b: write(b, "{"), [], ["b/config.json"]),
    "a list": (lambda b: write(b, []), [], ["b/config.json", "JSON object"]),
    "another type": (lambda b: write(b, {"model_type": "bert"}), [], ["b/config.json", "'bert'", "videomae, timesf", "program:"]),
    "no type": (lambda b: write(b, {"model_type": ["vivit"]}), [], ["b/config.json", "['vivit']"]),
    "remote code": (lambda b: write(b, CONFIG | {"auto_map": {"AutoModel": "x.Y"}}), [], ["b/config.json", "auto_map", "run"]),
    "no frames": (lambda b: write(b, CONFIG | {"num_frames": 0}), [], ["b/config.json", "num_frames is 0"]),
    "no side": (lambda b: write(b, CONFIG | {"image_size": [32, 32]}), [], ["b/config.json", "image_size is [32, 32]"]),
    "preprocessor": (lambda b: write(b, CONFIG, "[]"), [], ["b/preprocessor_config.json", "JSON object"]),
    "no weights": (lambda b: write(b, CONFIG, FRAMES, weights=None), [], ["b: holds no model.safetensors"]),
    "pickled weights": (lambda b: write(b, CONFIG, FRAMES, weights="pytorch_model.bin"), [], [
        "b: holds no model.safetensors", "only pytorch_model.bin", "can run code", "save_pretrained"]),
    "frames": (lambda b: write(b, CONFIG, FRAMES), ["--num-frames", "8"], ["--num-frames 8", "transformers:b", "exactly 4"]),
    "odd frames": (lambda b: write(b, {"model_type": "vjepa2", "crop_size": 32}, FRAMES), ["--num-frames", "3"], [
        "--num-frames 3", "multiple of 2"]),
    "crop": (lambda b: write(b, CONFIG, FRAMES), ["--crop", "16"], ["--crop 16", "transformers:b", "exactly 32"]),
    "no crop": (lambda b: write(b, CONFIG, FRAMES), ["--crop", "0"], ["a.mp4: frames of 36 x 48", "exactly 32", "set --crop"]),
    "resampling": (lambda b: write(b, CONFIG, FRAMES | {"resample": 5}), [], ["b/preprocessor_config.json", "resample is 5"]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_one_error(name, folder, capsys):
    make, argv, fragments = ERRORS[name]
    make(folder / "b")
    error = one_error(*extract(capsys, "--extractor", "transformers:b", *argv)[::2])
    for fragment in fragments:
        assert fragment in error, error
    assert not Path("out").exists()


def test_errors_of_the_command_line(folder, capsys):
    assert "transformers:FOLDER" in one_error(*extract(capsys, "--extractor", "transformers")[::2])
    assert "--rgb-model: the extractor transformers:m has no such option" in one_error(
        *extract(capsys, "--extractor", "transformers:m", "--rgb-model", "x.pt")[::2])
    with pytest.raises(UserError, match=r"--resampling nearest: unknown; there are bilinear, antialiased-bilinear"):
        create("transformers:m", {"resampling": "nearest"})


def test_without_the_package_it_is_told_how_to_install_it(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'transformers is needed: pip install -e "\.\[video-transformers\]"'):
        module.transformers_library()


# with the package

@pytest.fixture(scope="module")
def transformers():
    if importlib.util.find_spec("transformers") is None:
        pytest.skip('needs transformers: pip install -e ".[video-transformers]"')
    return module.transformers_library()


WIDTHS = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
SMALL = {  # a configuration of each type, and its clips: 4 frames of 32 x 32
    "VideoMAE": {**WIDTHS, "intermediate_size": 32, "image_size": 32, "num_frames": 4, "decoder_hidden_size": 8,
                 "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1},
    "Timesformer": {**WIDTHS, "intermediate_size": 32, "image_size": 32, "num_frames": 4},
    "VJEPA2": {**WIDTHS, "mlp_ratio": 2, "crop_size": 32, "frames_per_clip": 4, "pred_hidden_size": 24,
               "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1, "num_pooler_layers": 1},
    "Vivit": {**WIDTHS, "intermediate_size": 32, "image_size": 32, "num_frames": 4},
}
CLASSES = {  # as they are saved, and as they are loaded
    "VideoMAEModel": "VideoMAEModel", "VideoMAEForPreTraining": "VideoMAEModel",
    "VideoMAEForVideoClassification": "VideoMAEForVideoClassification",
    "TimesformerModel": "TimesformerModel", "TimesformerForVideoClassification": "TimesformerModel",
    "VJEPA2Model": "VJEPA2Model", "VJEPA2ForVideoClassification": "VJEPA2Model",
    "VivitModel": "VivitModel", "VivitForVideoClassification": "VivitModel"}
PROCESSORS = ["VideoMAEVideoProcessor", "TimesformerVideoProcessor", "VJEPA2VideoProcessor", "VivitVideoProcessor"]


def saved(transformers, name: str, folder: Path, **changes) -> torch.nn.Module:
    """A network with random weights, saved in the folder."""
    torch.manual_seed(0)
    kind = name.split("Model")[0].split("For")[0]
    network = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**SMALL[kind], **changes)).eval()
    for parameter in network.parameters():  # biases and norms that do something
        torch.nn.init.normal_(parameter, 0.1, 0.2)
    network.save_pretrained(folder)
    write(folder, None, FRAMES, weights=None)
    return network


def expected_feature(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Through the package alone: what its classifier gets, or what the docstring of the type says."""
    name, x, seen = type(network).__name__, x.transpose(1, 2), []
    if name.startswith("VJEPA2"):
        encoder = network if name == "VJEPA2Model" else network.vjepa2
        return encoder.get_vision_features(x).mean(1)
    if name.endswith("Classification"):
        network.classifier.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        network(x)
        return seen[0]
    tokens = (network.videomae if name == "VideoMAEForPreTraining" else network)(x).last_hidden_state
    return tokens.mean(1) if name.startswith("VideoMAE") else tokens[:, 0]


@pytest.mark.parametrize("name", CLASSES)
def test_the_feature_is_the_packages(transformers, name, tmp_path):
    network = saved(transformers, name, tmp_path / "m")
    extractor = create(f"transformers:{tmp_path / 'm'}", {})
    assert (extractor.settings.num_frames, extractor.settings.stride) == (4, 1)
    x = torch.randn(2, 3, 4, 32, 32)
    with torch.inference_mode():
        expected = expected_feature(network, x)
        feature = extractor.network(x)
    assert feature.shape == (2, 24)
    assert (feature[0] - feature[1]).abs().max() > 1e-4
    assert torch.allclose(feature, expected, atol=1e-5)
    assert extractor.describe()["streams"][0]["kind"] == f"transformers {CLASSES[name]}"


def test_vjepa2_takes_longer_clips(transformers, tmp_path):
    network = saved(transformers, "VJEPA2Model", tmp_path / "m")
    x = torch.randn(1, 3, 6, 32, 32)
    with torch.inference_mode():
        feature = create(f"transformers:{tmp_path / 'm'}", {"num_frames": 6}).network(x)
        assert torch.allclose(feature, expected_feature(network, x), atol=1e-5)


def test_shards_and_half_precision_give_float32(transformers, tmp_path):
    network = saved(transformers, "VivitModel", tmp_path / "whole").bfloat16()
    network.save_pretrained(tmp_path / "m", max_shard_size="10KB")
    write(tmp_path / "m", None, FRAMES, weights=None)
    extractor = create(f"transformers:{tmp_path / 'm'}", {})
    shards = sorted(path.name for path in (tmp_path / "m").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert list(extractor.describe()["streams"][0]["files"]) == ["config.json", *shards]
    x = torch.randn(1, 3, 4, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(extractor.network(x), expected_feature(network.float(), x), atol=1e-5)


def test_weights_that_do_not_belong_to_the_configuration_are_refused(transformers, tmp_path):
    saved(transformers, "TimesformerModel", tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    for change, told in (({"num_hidden_layers": 3}, ["weights of TimesformerModel are missing", "encoder.layer.2"]),
                         ({"intermediate_size": 48}, ["TimesformerModel"])):
        (tmp_path / "m/config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError) as caught:
            create(f"transformers:{tmp_path / 'm'}", {})
        for fragment in (str(tmp_path / "m"), "fetch", *told):
            assert fragment in str(caught.value)
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    (tmp_path / "m/model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be loaded as TimesformerModel of transformers"):
        create(f"transformers:{tmp_path / 'm'}", {})


@pytest.mark.parametrize("processor", PROCESSORS)
def test_frames_are_prepared_as_the_packages_processors_do_it(transformers, processor, tmp_path):
    """To a level of a byte: the package scales with torch, we with Pillow."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip('processors need torchvision: pip install -e ".[video-torchvision]"')
    model_type = processor.removesuffix("VideoProcessor").lower()
    made = getattr(transformers, processor)(size={"shortest_edge": 35}, crop_size={"height": 32, "width": 32})
    made.save_pretrained(tmp_path / "m")
    write(tmp_path / "m", {"model_type": model_type, "num_frames": 2, "frames_per_clip": 2, "image_size": 32, "crop_size": 32})
    frames = np.stack([moving(k, (61, 85)) for k in range(2)])
    expected = next(iter(made([torch.from_numpy(frames).permute(0, 3, 1, 2)], return_tensors="pt").values()))[0]
    values = module.Transformers.defaults(str(tmp_path / "m"))
    extractor = object.__new__(module.Transformers)
    extractor.settings = module.TransformersSettings(**values, folder="m")
    items = torch.from_numpy(np.stack(list(extractor.prepare(iter(frames), "a.mp4"))))
    scale = [torch.tensor(values[key]).view(1, 3, 1, 1, 1) for key in ("mean", "std")]
    ours = normalised(items.permute(3, 0, 1, 2)[None], *scale)[0].transpose(0, 1)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 1.01 / 255 / min(values["std"])
