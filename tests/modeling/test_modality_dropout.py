"""Streams set to zero: which, how often, when, and a network of some streams made from one of all."""
from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import padded_batch, tiny_config
from networks import network

from libs.core.config import to_dict
from libs.core.errors import UserError
from libs.engine.runs.checkpoint import copy_matching, load_checkpoint, save_checkpoint
from libs.engine.runs.network import of_streams
from libs.modeling.model import build_model

THREE = {"rgb": [0, 3], "flow": [3, 5], "audio": [5, 6]}
NO_DROPS = {"dropout": 0.0, "droppath": 0.0}


def seen_by(model, x):
    seen = []
    hook = model.backbone.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(x, torch.ones(x.shape[:2], dtype=torch.bool))
    hook.remove()
    return seen[0]


def dropping(modalities=None, **sections):
    return network(dataset={"modalities": THREE}, model={"modalities": modalities},
                   train_cfg={"modality_dropout": 0.6, **NO_DROPS}, **sections)[1]


@pytest.mark.parametrize("modalities", [None, ["audio", "rgb", "flow"]])
def test_training_drops_any_choice_of_streams_but_all(modalities):
    model, x = dropping(modalities).train(), torch.ones(3000, 8, 6)
    torch.manual_seed(1)
    seen = seen_by(model, x)
    assert torch.equal(seen, seen[:, :1].expand(-1, 8, -1))  # the whole video
    parts = [part.flatten(1) for part in seen[:, 0].split([3, 2, 1] if modalities is None else [1, 3, 2], dim=1)]
    assert all(torch.equal(p, p[:, :1].expand_as(p)) for p in parts)  # the whole stream
    counts = Counter(zip(*([int(v) for v in p[:, 0]] for p in parts), strict=True))
    assert counts.pop((1, 1, 1)) == pytest.approx(1200, abs=100)  # standard deviation 27
    assert (0, 0, 0) not in counts
    assert len(counts) == 6
    assert all(200 < n < 400 for n in counts.values())  # 300 each, standard deviation 16


def test_evaluation_drops_what_is_named():
    x = torch.rand(2, 16, 6) + 1
    assert torch.equal(seen_by(dropping(), x), x)
    seen = seen_by(dropping(["audio", "rgb", "flow"], test_cfg={"drop_modalities": ["rgb"]}), x)
    assert torch.equal(seen[..., [0, 4, 5]], x[..., [0, 4, 5]])
    assert bool((seen[..., 1:4] == 0).all())
    trained = dropping(test_cfg={"drop_modalities": ["rgb"]})
    assert list(trained.state_dict()) == list(network(train_cfg=NO_DROPS)[1].state_dict())


@pytest.mark.parametrize("model", [{}, {"backbone_type": "conv_dw"}, {"backbone_type": "convnext"}], ids=str)
@pytest.mark.parametrize("kept", [["flow"], ["audio", "rgb"]], ids=str)
def test_a_network_of_some_streams_starts_as_the_one_of_all_without_the_others(tmp_path: Path, model, kept):
    """Exactly: the first convolution of the small network has the columns of its streams."""
    data = {"dataset": {"modalities": THREE}}
    config, whole = network(**data, model=model, test_cfg={"drop_modalities": [n for n in THREE if n not in kept]})
    weights = whole.state_dict()
    save_checkpoint(tmp_path / "a.pth.tar", 1, weights, weights, {}, {}, {"config": to_dict(config)})
    small = tiny_config("small.yaml", **data, model={**model, "modalities": kept})
    made = build_model(small).eval()
    copied, fresh, _ = copy_matching(made, of_streams(load_checkpoint(tmp_path / "a.pth.tar"), small))
    assert fresh == []
    assert any(name.startswith("backbone.embd.0.conv") for name in copied)
    x, mask = padded_batch([40, 17], 48)
    columns = [c for name in kept for c in range(*THREE[name])]
    with torch.no_grad():
        expected, got = whole(x, mask), made(x[..., columns], mask)
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert expected.logits.std() > 0.05


def test_other_checkpoints_stay_as_they_are(tmp_path: Path):
    data = {"dataset": {"modalities": THREE}}
    config, whole = network(**data, model={"modalities": ["rgb", "flow"]})
    weights = whole.state_dict()
    save_checkpoint(tmp_path / "a.pth.tar", 1, weights, weights, {}, {}, {"config": to_dict(config)})
    checkpoint = load_checkpoint(tmp_path / "a.pth.tar")
    for modalities in (["rgb", "audio"], ["rgb", "flow"], None):
        assert of_streams(checkpoint, tiny_config("x.yaml", **data, model={"modalities": modalities})) is checkpoint
    made_up = tiny_config("x.yaml", **data, model={"modalities": ["rgb"], "hallucinator": "separable", "hallucinated": ["flow"]})
    assert of_streams(checkpoint, made_up) is checkpoint


@pytest.mark.parametrize(("sections", "parts"), [
    ({"train_cfg": {"modality_dropout": 0.5}, "model": {"modalities": ["rgb"]}}, ["train_cfg.modality_dropout", "reads 1 decl"]),
    ({"train_cfg": {"modality_dropout": 0.5}, "dataset": {"modalities": None}}, ["train_cfg.modality_dropout", "reads 0 decl"]),
    ({"train_cfg": {"modality_dropout": 0.5, "cuda_graphs": True}}, ["train_cfg.cuda_graphs", "modality_dropout"]),
    ({"test_cfg": {"drop_modalities": ["flw"]}}, ["test_cfg.drop_modalities", "'flw'", "mean 'flow'", "rgb, flow, audio"]),
    ({"test_cfg": {"drop_modalities": ["flow"]}, "model": {"modalities": ["rgb", "audio"]}}, ["'flow' is not a stream"]),
    ({"test_cfg": {"drop_modalities": ["rgb", "audio", "flow"]}}, ["test_cfg.drop_modalities", "leaves no stream"]),
], ids=str)
def test_impossible_settings(sections, parts):
    with pytest.raises(UserError) as error:
        tiny_config("x.yaml", **{"dataset": {"modalities": THREE}, **sections})
    for part in ["x.yaml: ", *parts]:
        assert part in str(error.value)
