"""TemporalMaxer in training: it resumes exactly, teaches and learns; a step of bf16."""
from __future__ import annotations

import distill_cases
import pytest
import torch
from distill_cases import EVERY_TERM, Setup, save_teacher, student, two_stream
from helpers import data_config, identical
from resuming import whole_and_resumed
from steps import losses_of

data = distill_cases.data
MODEL = {"backbone_type": "convPooler", "backbone_arch": [1, 2], "n_mha_win_size": -1, "assigner": {"keep_percent": 0.3}}
NAME = "TemporalMaxerArchitecture"


@pytest.mark.parametrize("norm", ["layernorm", "groupnorm"])
def test_stopped_and_resumed_equals_undisturbed(data, tmp_path, monkeypatch, norm):
    config = data_config(data, tmp_path, model_name=NAME, model={**MODEL, "fpn_norm": norm}, train_cfg={"input_dropout": 0.1})
    whole, run = whole_and_resumed(config, tmp_path, monkeypatch, stop=3)
    assert identical(whole, run) == []
    assert whole["training"]["objective"]["loss_normalizer"] != 20
    norms = {name: value for name, value in whole["state_dict"].items() if "fpn_norms" in name and name.endswith("weight")}
    assert len(norms) == (3 if norm == "layernorm" else 0)
    assert all(torch.equal(value, norms["module.neck.fpn_norms.0.weight"]) for value in norms.values())
    assert not any(torch.equal(value, torch.ones_like(value)) for value in norms.values())


def test_a_teacher_with_statistics_over_padding_needs_the_published_length(data, tmp_path):
    teacher = save_teacher(two_stream(data, tmp_path, model_name=NAME, model=MODEL), tmp_path / "teacher.pth.tar")
    setup = Setup(student(data, tmp_path, [teacher], distill=EVERY_TERM | {"inputs": {"weight": 0.0}}))
    setup.objective.train()
    assert {batch.feats.shape[1] for batch in setup.batches} == {72}
    losses = losses_of(setup.objective, setup.batches[0])
    assert all(torch.isfinite(value) for value in losses.terms.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_from_a_transformer(data, tmp_path, precision):
    teacher = save_teacher(two_stream(data, tmp_path), tmp_path / "teacher.pth.tar")
    setup = Setup(student(data, tmp_path, [teacher], model_name=NAME, model={**MODEL, "fpn_norm": "layernorm"},
                          distill=EVERY_TERM | {"inputs": {"weight": 0.0}}, train_cfg={"precision": precision}))
    setup.objective.train()
    losses = losses_of(setup.objective, setup.batches[0])
    losses.final.backward()
    assert {"cls_loss", "reg_loss", "cls_teacher", "offsets_teacher", "stem_teacher"} <= losses.terms.keys()
    assert all(bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in setup.model.neck.parameters())
