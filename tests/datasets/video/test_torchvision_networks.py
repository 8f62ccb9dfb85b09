"""torchvision's networks: with a stand-in for the package the chain by hand and every error; with the package its own numbers."""
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
from libs.datasets.video.extractors import torchvision_networks as module
from libs.datasets.video.extractors.base import hashes, normalised

NETWORKS = module.NETWORKS


@pytest.fixture(scope="module")
def torchvision():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip('needs torchvision: pip install -e ".[video-torchvision]"')
    return module.torchvision_library()


class Tiny(torch.nn.Module):
    """A stand-in for r3d_18: the features before `fc` are 2 x the mean of each channel, for a weight of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0]))
        self.fc = torch.nn.Linear(3, 400)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.weight * x.mean((2, 3, 4)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A video, weights of the stand-in, and a package of it."""
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "a.mp4", frames=20, picture=moving)
    torch.save(Tiny().state_dict(), tmp_path / "own.pth")
    package = types.SimpleNamespace(models=types.SimpleNamespace(get_model=lambda name, weights: Tiny()), __version__="9.9")
    monkeypatch.setattr(module, "torchvision_library", lambda: package)
    return tmp_path


def extract(capsys, *argv: str) -> tuple[int, str, str]:
    return run_extract(capsys, "a.mp4", "-o", "out", "--device", "cpu", *argv)


def test_features_are_those_of_the_chain_by_hand(folder, capsys):
    code, out, err = extract(capsys, "--extractor", "torchvision:r3d_18", "--rgb-model", "own.pth", "--size", "24", "33",
                             "--crop", "16", "--num-frames", "8")
    assert code == 0, err
    assert "own.pth: is not the published r3d_18-b3b3357e.pth" in err
    frames = torch.from_numpy(np.stack(list(read_frames("a.mp4", None)))).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(frames, (24, 33), mode="bilinear").round()[:, :, 4:20, 8:24]  # (33 - 16) / 2 = 8.5
    mean, std = (torch.tensor(values)[None, :, None, None] for values in module.KINETICS)
    expected = 2 * ((small / 255 - mean) / std).mean((2, 3)).unfold(0, 8, 4).mean(2)
    features = np.load("out/a.npy")
    assert features.shape == (4, 3)
    assert np.abs(features - expected.numpy()).max() < 1e-5
    noted, found = json.loads(Path("out/provenance.json").read_text()), hashes("own.pth", "", "")
    assert found.sha256 in out
    assert noted["streams"] == [{
        "name": "rgb", "model": "own.pth", "sha256": found.sha256, "git_blob": found.git_blob, "published": None,
        "kind": "torchvision r3d_18", "feature": "input of the last layer, fc", "values": "RGB / 255",
        "mean": list(module.KINETICS[0]), "std": list(module.KINETICS[1])}]
    assert noted["libraries"]["torchvision"] == "9.9"
    assert [noted[key] for key in ("extractor", "network", "stride", "num_frames", "resize", "crop", "resampling")] == [
        "torchvision", "r3d_18", 4, 8, [24, 33], 16, "bilinear"]


def test_published_weights_are_known_by_the_beginning_of_their_hash(folder, capsys, monkeypatch):
    digits = hashes("own.pth", "", "").sha256[:8]
    monkeypatch.setitem(NETWORKS, "r3d_18", module.Network((f"r3d_18-{digits}.pth",), **module.RESNET))
    assert create("torchvision:r3d_18", {"rgb_model": "own.pth"}).describe()["streams"][0]["published"] == f"r3d_18-{digits}.pth"
    assert extract(capsys, "--extractor", "torchvision:r3d_18", "--rgb-model", "own.pth")[::2] == (0, "")


def test_weights_of_another_number_of_classes_are_used(folder):
    state = Tiny().state_dict() | {"fc.weight": torch.zeros(7, 3), "fc.bias": torch.zeros(7), "weight": torch.tensor([3.0])}
    torch.save(state, "own.pth")
    extractor = create("torchvision:r3d_18", {"rgb_model": "own.pth", "mean": (0, 0, 0), "std": (1, 1, 1)})
    assert np.allclose(extractor.features([[np.full((8, 8, 3), 255, np.uint8)] * 16], "a.mp4"), 3)


URL = "https://download.pytorch.org/models/r3d_18-b3b3357e.pth"
ERRORS = {
    "no name": (["torchvision"], ["torchvision:NAME", "r3d_18, mc3_18", "swin3d_b"]),
    "unknown": (["torchvision:r3d18"], ["torchvision:r3d18", "did you mean 'r3d_18'", "mvit_v2_s"]),
    "no weights": (["torchvision:r3d_18"], ["--rgb-model", URL]),
    "two files": (["torchvision:swin3d_b"], ["swin3d_b_1k-24f7c7c6.pth", "swin3d_b_22k-7c6ae6fa.pth"]),
    "missing": (["torchvision:r3d_18", "--rgb-model", "gone.pth"], ["gone.pth", "No such file", "--rgb-model", URL]),
    "damaged": (["torchvision:r3d_18", "--rgb-model", "r3d_18-b3b3357e.pth"], ["b3b3357e.pth: its sha256", "damaged", URL]),
    "text": (["torchvision:r3d_18", "--rgb-model", "text.pth"], ["text.pth", "not a state dict of r3d_18", URL]),
    "of another": (["torchvision:r3d_18", "--rgb-model", "other.pth"], ["other.pth", "not a state dict", "Missing key", URL]),
    "a list": (["torchvision:r3d_18", "--rgb-model", "list.pth"], ["list.pth", "not a state dict of r3d_18"]),
    "frames": (["torchvision:mvit_v1_b", "--num-frames", "8"], ["--num-frames 8", "torchvision:mvit_v1_b", "exactly 16"]),
    "odd frames": (["torchvision:swin3d_t", "--num-frames", "15"], ["--num-frames 15", "multiple of 2"]),
    "few frames": (["torchvision:s3d", "--num-frames", "8"], ["--num-frames 8", "at least 14"]),
    "crop": (["torchvision:mvit_v2_s", "--crop", "112"], ["--crop 112", "exactly 224"]),
    "small frames": (["torchvision:r3d_18", "--rgb-model", "own.pth", "--resize", "32"], ["a.mp4", "32 x 42", "--crop 112"]),
    "option": (["torchvision:r3d_18", "--rgb-model", "own.pth", "--flow-method", "dis"], ["--flow-method", "no such option"]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_one_error(name, folder, capsys):
    Path("r3d_18-b3b3357e.pth").write_bytes(Path("own.pth").read_bytes())
    Path("text.pth").write_text("weights")
    torch.save({"x": torch.zeros(1)}, "other.pth")
    torch.save([1], "list.pth")
    argv, fragments = ERRORS[name]
    error = one_error(*extract(capsys, "--extractor", *argv)[::2])
    for fragment in fragments:
        assert fragment in error, error
    assert not Path("out").exists()


def test_whole_frames_of_a_size_that_the_network_refuses(folder, monkeypatch):
    exact = module.Network((), **{**module.RESNET, "resize": 224, "sides": range(224, 225)})
    monkeypatch.setitem(NETWORKS, "r3d_18", exact)
    extractor = create("torchvision:r3d_18", {"rgb_model": "own.pth", "crop": 0})
    extractor.fit("b.mp4", 300, 300)
    with pytest.raises(UserError, match=r"b.mp4: frames of 224 x 298 .* takes sides of exactly 224; set --crop"):
        extractor.fit("b.mp4", 640, 480)


class Package:
    """Stands for importlib: imports fail with these errors, then succeed."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def import_module(self, name: str) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return name


def missing(operator: str) -> RuntimeError:
    return RuntimeError(f"operator torchvision::{operator} does not exist")


def test_operators_that_a_cpu_build_lacks_are_defined_and_the_import_tried_again(monkeypatch):
    modules = {"torchvision": 1, "torchvision.ops": 2, "torchvision_of_another": 3, "torch": 4}
    monkeypatch.setattr(module, "sys", types.SimpleNamespace(modules=modules))
    monkeypatch.setattr(module, "_defined", [])
    monkeypatch.setattr(module, "importlib", Package(missing("of_a_test"), missing("of_a_test_too")))
    assert module.torchvision_library() == "torchvision"
    assert torch.ops.torchvision.of_a_test is not None
    assert torch.ops.torchvision.of_a_test_too is not None
    assert modules == {"torchvision_of_another": 3, "torch": 4}


@pytest.mark.parametrize("errors", [
    [ModuleNotFoundError("No module named 'torchvision'")],
    [RuntimeError("Detected that PyTorch and torchvision were compiled with different CUDA major versions")],
    [missing(f"endless_{k}") for k in range(100)]])
def test_a_package_that_cannot_be_used_is_one_error_that_says_how_to_install_it(errors, monkeypatch):
    monkeypatch.setattr(module, "sys", types.SimpleNamespace(modules={}))
    monkeypatch.setattr(module, "_defined", [])
    monkeypatch.setattr(module, "importlib", Package(*errors))
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    with pytest.raises(UserError) as caught:
        module.torchvision_library()
    told = str(caught.value)
    assert str(errors[0])[:30] in told or "endless_9 does not exist" in told
    assert 'pip install --no-deps "torchvision==0.28.*"' in told
    assert "video-torchvision" in told


# with the package

@pytest.mark.parametrize("name", NETWORKS)
def test_values_are_those_of_the_packages_weights(torchvision, name):
    published = list(torchvision.models.get_model_weights(name))
    assert [weights.url for weights in published] == [module.WEIGHTS_AT + file for file in NETWORKS[name].files]
    defaults = module.Torchvision.defaults(name)
    for weights in published:
        preset = weights.transforms()
        side = defaults["resize"]
        assert preset.resize_size == (list(side) if isinstance(side, tuple) else [side])
        assert preset.crop_size == [defaults["crop"]] * 2
        assert (tuple(preset.mean), tuple(preset.std)) == (defaults["mean"], defaults["std"])
        assert weights.meta.get("min_temporal_size", 1) <= defaults["num_frames"]


@pytest.mark.parametrize("name", ["r3d_18", "mvit_v1_b"])
def test_frames_are_prepared_as_the_packages_weights_do_it(torchvision, name):
    frames = np.stack([moving(k, (61, 85)) for k in range(2)])
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    expected = preset(torch.from_numpy(frames).permute(0, 3, 1, 2))
    defaults = module.Torchvision.defaults(name)
    extractor = object.__new__(module.Torchvision)
    extractor.settings = module.TorchvisionSettings(**defaults, network=name)
    items = torch.from_numpy(np.stack(list(extractor.prepare(iter(frames), "a.mp4"))))
    scale = [torch.tensor(defaults[key]).view(1, 3, 1, 1, 1) for key in ("mean", "std")]
    assert torch.allclose(normalised(items.permute(3, 0, 1, 2)[None], *scale)[0], expected, atol=1e-6)


CLIPS = {  # frames, side and width of the feature, small where the network allows
    "r3d_18": (4, 32, 512), "mc3_18": (3, 32, 512), "r2plus1d_18": (4, 32, 512), "s3d": (14, 209, 1024),
    "mvit_v1_b": (16, 224, 768), "mvit_v2_s": (16, 224, 768),
    "swin3d_t": (4, 48, 768), "swin3d_s": (2, 32, 768), "swin3d_b": (2, 32, 1024)}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "mc3_18" else pytest.mark.slow) for name in CLIPS])
def test_the_feature_is_the_input_of_the_last_layer(torchvision, name, tmp_path, monkeypatch):
    """Random weights; batch norm has seen the clip, so that values are not near 0."""
    network, (frames, side, width), seen = NETWORKS[name], CLIPS[name], []
    torch.manual_seed(1)
    model = torchvision.models.get_model(name, weights=None)
    clip, path = torch.randn(1, 3, frames, side, side), tmp_path / "own.pth"
    last = [m for m in model.get_submodule(network.head).modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv3d))][-1]
    with torch.inference_mode():
        if any(isinstance(part, torch.nn.BatchNorm3d) for part in model.modules()):
            model.train()(clip)
        last.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        model.eval()(clip)
    state = model.state_dict()
    path.write_bytes(b"")  # not through the disk: up to 350 MB
    monkeypatch.setattr(module, "load_plain", lambda _path: state)
    monkeypatch.setattr(module, "torchvision_library", lambda: types.SimpleNamespace(
        models=types.SimpleNamespace(get_model=lambda name, weights: model)))
    extractor = create(f"torchvision:{name}", {"rgb_model": str(path), "num_frames": frames, "crop": side})
    with torch.inference_mode():
        feature = extractor.network(clip)
    assert feature.shape == (1, width)
    assert feature.std() > 1e-4
    assert (feature - seen[0].reshape(1, width, -1).mean(2)).abs().max() < 1e-3 * feature.std()
