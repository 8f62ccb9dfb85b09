"""The inference loop: batches change nothing, seconds are right, the state of the model is left alone."""
from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers import data_config, show_every_term, write_data
from networks import SGP, TRIDENT

from libs.core.errors import UserError
from libs.datasets.dataset import TalDataset
from libs.engine.inference.predict import _one_ahead, merged, predict, score
from libs.modeling.model import build_model
from libs.utils.evaluation.predictions import Detections

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def setup(data, tmp_path, subset="training", **sections):
    config = data_config(data, tmp_path, **sections)
    torch.manual_seed(0)
    return show_every_term(build_model(config)), TalDataset(config, subset, training=False), config


@pytest.mark.parametrize("sections", [
    {}, {"model": {"use_abs_pe": True}}, {"model": {"backbone_type": "conv"}}, {"test_cfg": {"multiclass_nms": False}},
    {"test_cfg": {"nms_method": "hard"}}, {"model": {**SGP, **TRIDENT}}, {"model": {**SGP, **TRIDENT, "masked_stats": False}},
    {"model": {**SGP, **TRIDENT, "trident_border": "valid"}}], ids=str)
def test_batches_of_any_size_give_the_same_detections(data, tmp_path, sections):
    found = []
    for size in (1, 2, 4, 6):
        model, dataset, config = setup(data, tmp_path, **sections)
        config = dataclasses.replace(config, test_cfg=dataclasses.replace(config.test_cfg, batch_size=size))
        found.append(predict(model, dataset, config, CPU))
    assert len(found[0]) > 60
    for other in found[1:]:
        assert other.video_id.tolist() == found[0].video_id.tolist()
        assert other.label.tolist() == found[0].label.tolist()
        for column in ("t_start", "t_end", "score"):
            assert np.abs(getattr(other, column) - getattr(found[0], column)).max() < 2e-5


def test_videos_come_in_order_with_falling_scores_inside_the_video(data, tmp_path):
    model, dataset, config = setup(data, tmp_path, test_cfg={"batch_size": 3})
    found = predict(model, dataset, config, CPU)
    assert list(dict.fromkeys(found.video_id.tolist())) == [v.id for v in dataset.videos]
    for video in dataset.videos:
        rows = found.take(found.video_id == video.id)
        assert (np.diff(rows.score) <= 0).all()
        assert len(rows) <= 20
        assert rows.t_start.min() >= 0
        assert rows.t_end.max() <= np.float32(video.duration_s)


def test_seconds_are_those_of_the_grid(data, tmp_path):
    """A network that says 'class 1, from 2 to 3 steps around point 8' for one point only."""
    model, dataset, config = setup(data, tmp_path, "validation")

    def fixed(feats, mask):
        out = type(model).forward(model, feats, mask)
        logits, offsets = torch.full_like(out.logits, -20.0), torch.zeros_like(out.offsets)
        logits[:, 8, 1], offsets[:, 8] = 3.0, torch.tensor([2.0, 3.0])
        return out._replace(logits=logits, offsets=offsets)
    model.forward = fixed
    found = predict(model, dataset, config, CPU)
    rows = found.take(found.score > 0.5)
    assert rows.video_id.tolist() == ["v0", "v1", "v2"]
    assert rows.label.tolist() == [1, 1, 1]
    start, end = ((8 - 2) * 5 + 5) / 25, ((8 + 3) * 5 + 5) / 25
    assert rows.t_start.tolist() == pytest.approx([start] * 3)
    assert rows.t_end.tolist() == pytest.approx([end, end, (8 * 5 + 10) / 25])  # the last one ends with its video


def test_the_model_is_left_as_it_was(data, tmp_path):
    model, dataset, config = setup(data, tmp_path)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    seen = []
    first = predict(model.train(), dataset, config, CPU, lambda done, total: seen.append((done, total)))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert seen == [(i, 6) for i in range(1, 7)]
    second = predict(model.eval(), dataset, config, CPU)
    assert not model.training
    assert first.score.tolist() == second.score.tolist()


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("outputs", ["logits", "offsets", "start"])
def test_outputs_that_are_not_finite_name_the_video(data, tmp_path, outputs, batch_size):
    """One NaN in one of the videos, as huge features cause it: such a video would count as one without detections."""
    trident = TRIDENT if outputs == "start" else {}
    model, dataset, config = setup(data, tmp_path, "validation", model=trident, test_cfg={"batch_size": batch_size})
    steps = dataset.lengths().tolist()[1]

    def broken(feats, mask):
        out = type(model).forward(model, feats, mask)
        values = (out if not trident else out.boundaries)._asdict()[outputs].clone()
        values[mask.sum(1) == steps, 3, 1] = float("nan") if outputs == "logits" else float("-inf")
        return out._replace(**{"boundaries": out.boundaries._replace(start=values)} if trident else {outputs: values})
    model.forward = broken
    reach = f"{dataset.features(dataset.sample(1)).abs().max():.3g}"
    with pytest.raises(UserError, match=rf"^video 'v1': .*NaN or infinite; .*'v1' reach {reach}: .*extract") as found:
        predict(model, dataset, config, CPU)
    assert "v0" not in str(found.value)


def test_a_perfect_prediction_scores_100(data, tmp_path):
    _, dataset, _ = setup(data, tmp_path, "validation")
    truth = dataset.ground_truth()
    found = Detections(truth.video_id, truth.t_start, truth.t_end, truth.label, np.full(len(truth), 0.5))
    scores = score(found, dataset)
    assert scores.average_mAP == 1.0
    assert scores.tious.tolist() == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])


def test_external_scores_replace_the_classes(data, tmp_path):
    (tmp_path / "external.json").write_text(json.dumps({"results": {v: [0.1, 0.2, 0.7] for v in ("v0", "v1", "v2")}}))
    model, dataset, config = setup(data, tmp_path, "validation", test_cfg={"ext_score_file": str(tmp_path / "external.json")})
    with pytest.warns(UserWarning, match=r"replaces the classes that the network itself finds.*66\.4 without, 61\.8 with"):
        assert set(predict(model, dataset, config, CPU).label.tolist()) == {1, 2}


def test_detections_of_several_processes_come_in_the_order_of_the_videos():
    a = Detections.from_arrays(["v2", "v2", "v0"], [0, 1, 2], [1, 2, 3], [0, 1, 2], [0.9, 0.1, 0.5])
    b = Detections.from_arrays(["v11"], [4], [5], [3], [0.7])
    for parts in ([a, b, Detections.empty()], [b, a]):
        found = merged(parts, ["v0", "v1", "v11", "v2"])
        assert found.video_id.tolist() == ["v0", "v11", "v2", "v2"]
        assert found.score.tolist() == [0.5, 0.7, 0.9, 0.1]
    with pytest.raises(ValueError, match="more than one process"):
        merged([a, a.take(np.array([2]))], ["v0", "v1", "v11", "v2"])


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_working_one_ahead_keeps_the_order(count):
    asked = []
    seen = [(item, len(asked)) for item in _one_ahead(asked.append(i) or i for i in range(count))]
    assert seen == [(i, min(i + 2, count)) for i in range(count)]
