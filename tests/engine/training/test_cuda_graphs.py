"""Recorded steps against steps one by one (the recording itself needs a GPU; here it is played by calling the work again)."""
from __future__ import annotations

import pytest
import torch
from helpers import padded_batch, tiny_config

from libs.core.errors import UserError
from libs.datasets.loading.batch import Batch
from libs.datasets.loading.padding import Padding, padding_of
from libs.engine.runtime.determinism import seed_everything
from libs.engine.training.cuda_graphs import StepGraphs, check_graphs, graphs_hint, pad_ground_truth
from libs.engine.training.objective import DetectionObjective
from libs.engine.training.trainer import Trainer
from libs.modeling.losses.detection import Losses
from libs.modeling.model import build_model

SHAPES = [(48, 2), (32, 3), (48, 9), (48, 2), (32, 5), (48, 9)]  # steps, segments


class Video:
    video_id = "v"
    labelled = True


def batches(config, device="cpu"):
    made = []
    for i, (steps, count) in enumerate(SHAPES):
        generator = torch.Generator().manual_seed(i)
        feats, mask = padded_batch([steps, steps - 9], steps, config.model_channels, seed=i)
        starts = torch.rand(2, count, 1, generator=generator) * steps
        segments = torch.cat([starts, starts + 1 + 9 * torch.rand(2, count, 1, generator=generator)], dim=2)
        labels = torch.randint(config.dataset.num_classes, (2, count), generator=generator)
        present = torch.arange(count).expand(2, count) < torch.tensor([[count], [max(count - 1, 1)]])
        made.append(Batch(feats, mask, segments, labels, present, (Video(), Video())).to(torch.device(device)))
    return made


def play_again(trainer):
    """Record: what a CUDA graph does, by calling the work again and writing over what it wrote at first."""
    def record(work):
        normalizer = trainer.objective.criterion.normalizer
        before = normalizer.clone()
        losses = work()
        normalizer.copy_(before)  # recording does not run anything
        gradients = [p.grad for p in trainer.objective.parameters()]

        def replay():
            again = work()
            for old, p in zip(gradients, trainer.objective.parameters(), strict=True):
                if old is not None:
                    old.copy_(p.grad)
            for old, new in zip((losses.final, *losses.terms.values()), (again.final, *again.terms.values()), strict=True):
                old.copy_(new)
        return replay, losses
    return record


def train(config, record=None):
    seed_everything(0)
    trainer = Trainer(DetectionObjective(build_model(config), config).to(config.devices[0]), config, 100)
    if record is not None:
        trainer.record_graphs(record(trainer))
    steps = [trainer.step(batch) for batch in batches(config, config.devices[0])]
    return trainer, steps


def test_replayed_steps_are_steps():
    config = tiny_config(train_cfg={"droppath": 0.0, "dropout": 0.0})
    plain, steps = train(config)
    trainer, again = train(config, play_again)
    assert len(trainer.graphs) == 3  # (48, up to 8), (32, up to 8), (48, 16) segments
    for one, other in zip(steps, again, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name].item() == pytest.approx(value.item(), rel=1e-6)
    for one, other in zip(plain.model.parameters(), trainer.model.parameters(), strict=True):
        assert (one - other).abs().max() <= 1e-6 * one.abs().max() + 1e-9
    assert trainer.objective.criterion.normalizer.item() == pytest.approx(plain.objective.criterion.normalizer.item(), rel=1e-6)


def test_gradients_of_one_shape_survive_another():
    weight = torch.nn.Parameter(torch.ones(3))

    def work(batch):
        loss = (weight * batch.feats.sum()).sum()
        loss.backward()
        return Losses(loss.detach(), {})

    def record(work):
        losses = work()
        gradient = weight.grad

        def replay():
            again = work()
            gradient.copy_(weight.grad)
            losses.final.copy_(again.final)
        return replay, losses
    graphs = StepGraphs(work, [weight], [], record)
    for batch in batches(tiny_config()):
        final = graphs(batch).final
        assert final == 3 * batch.feats.sum()
        assert torch.equal(weight.grad, batch.feats.sum().expand(3))
    assert len(graphs) == 3


def test_ground_truth_is_pad_ground_truth():
    for batch, wanted in zip(batches(tiny_config()), (8, 8, 16, 8, 8, 16), strict=True):
        filled = pad_ground_truth(batch)
        count = batch.labels.shape[1]
        assert filled.segments.shape == (2, wanted, 2)
        assert torch.equal(filled.present[:, :count], batch.present)
        assert not filled.present[:, count:].any()


def test_batches_of_few_lengths():
    config = tiny_config(dataset={"max_seq_len": 192}, loader={"pad_multiple": 64})
    padding = padding_of(config, training=True)
    assert padding_of(config).multiple == 1  # evaluation computes no more than it must
    lengths = range(1, 193)
    assert {padding.of_batch([n]) for n in lengths} == {64, 128, 192}
    assert all(padding.of_batch([n]) >= padding.shortest(n) for n in lengths)
    assert padding.of_batch([20, 70]) == 128
    always = Padding(192, 64, 4, 4, always=True, multiple=64)
    assert always.of_batch([20]) == 192


@pytest.mark.parametrize(("sections", "processes", "message"), [
    ({}, 1, "needs a CUDA device, this run is on cpu"), ({}, 2, "one process and one batch"),
    ({"opt": {"accumulation_steps": 2}}, 1, "opt.accumulation_steps: 1")])
def test_where_nothing_can_be_recorded(sections, processes, message):
    config = tiny_config(train_cfg={"cuda_graphs": True}, **sections)
    device = torch.device("cpu" if "CUDA" in message else "cuda")
    with pytest.raises(UserError, match=message):
        check_graphs(config, device, processes)
    check_graphs(tiny_config(), device, processes)


def test_runs_on_a_gpu_are_told_of_graphs():
    config, cuda = tiny_config(dataset={"max_seq_len": 96}), torch.device("cuda")
    assert "train_cfg.cuda_graphs=true loader.pad_multiple=12" in graphs_hint(config, cuda, 1)
    assert graphs_hint(config, torch.device("cpu"), 1) is None
    assert graphs_hint(config, cuda, 2) is None
    for sections in ({"train_cfg": {"cuda_graphs": True}}, {"opt": {"accumulation_steps": 2}}, {"model": {"input_noise": 0.5}},
                     {"model": {"use_trident_head": True}}):
        assert graphs_hint(tiny_config(**sections), cuda, 1) is None


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_on_a_gpu(precision):
    config = tiny_config(devices=["cuda:0"], train_cfg={"droppath": 0.0, "dropout": 0.0, "precision": precision})
    plain, steps = train(config)
    recorded, again = train(tiny_config(devices=["cuda:0"], train_cfg={"droppath": 0.0, "dropout": 0.0, "precision": precision,
                                                                       "cuda_graphs": True}))
    tolerance = 1e-4 if precision == "fp32" else 5e-2
    for one, other in zip(steps, again, strict=True):
        assert other["final_loss"].item() == pytest.approx(one["final_loss"].item(), rel=tolerance)
    assert len(recorded.graphs) == 3
    assert plain.iteration == recorded.iteration
