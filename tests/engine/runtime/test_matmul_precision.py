"""TF32 belongs to one piece of work: the training step, an evaluation, a teacher's forward pass; each as its own key says."""
from __future__ import annotations

import contextlib

import distill_cases
import pytest
import torch
from distill_cases import CPU, RGB_ONLY, save_teacher, student, two_stream
from helpers import show_every_term
from torch.nn.modules.module import register_module_forward_pre_hook

from libs.core import devices
from libs.core.config import to_dict
from libs.core.errors import UserError
from libs.engine.deploy.pipeline import measure_pipeline
from libs.engine.experiments.robustness import Settings, load_subjects, measure
from libs.engine.inference.evaluate import evaluate_checkpoint
from libs.engine.runs.checkpoint import load_checkpoint, save_checkpoint
from libs.engine.runtime.precision import check_precision, matmul_precision
from libs.engine.training.fit import FitOptions, fit
from libs.modeling.model import build_model

USERS = ("training.setup", "inference.evaluate", "deploy.pipeline", "experiments.robustness")
data = distill_cases.data


def flags():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture
def seen(monkeypatch):
    """What forward passes of modules ran under: 'teacher', 'training' or 'evaluation' -> sets of flags; on any device."""
    found = {}

    def record(module, _inputs):
        learning = {p.requires_grad for p in module.parameters()}
        if learning:
            kind = "teacher" if learning == {False} else "training" if module.training else "evaluation"
            found.setdefault(kind, set()).add(flags())
    for name in USERS:
        monkeypatch.setattr(f"libs.engine.{name}.check_precision", lambda *_: None)
    handle = register_module_forward_pre_hook(record)
    yield found
    handle.remove()


@pytest.mark.parametrize("outputs", ["online", "cache"])
@pytest.mark.parametrize(("train", "test", "its"), [("tf32", "fp32", "fp32"), ("fp32", "tf32", "tf32"),
                                                      ("tf32", "fp32", "tf32")])
def test_training_validation_and_teachers_have_their_own(data, tmp_path, seen, train, test, its, outputs):
    before = flags()
    teacher = save_teacher(two_stream(data, tmp_path, test_cfg={"precision": its}), tmp_path / "teacher.pth.tar")
    config = student(data, tmp_path, [teacher], model=RGB_ONLY, dataset={"crop_align": 4}, distill={"outputs": outputs},
                     train_cfg={"precision": train}, test_cfg={"precision": test})
    fit(config, tmp_path / "run", CPU, FitOptions(eval_every=1))
    wanted = {"training": train, "evaluation": test, "teacher": its}
    assert seen == {kind: {(precision == "tf32",) * 2} for kind, precision in wanted.items()}
    assert flags() == before


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_evaluation_timing_and_robustness(data, tmp_path, seen, precision):
    config = two_stream(data, tmp_path, test_cfg={"precision": precision})
    state = show_every_term(build_model(config)).state_dict()
    save_checkpoint(tmp_path / "epoch_001.pth.tar", 1, state, state, {}, {}, {"config": to_dict(config)})
    for work in (lambda: evaluate_checkpoint(config, load_checkpoint(tmp_path / "epoch_001.pth.tar"), CPU),
                 lambda: measure_pipeline(config, str(tmp_path), rounds=1),
                 lambda: measure(config, load_subjects(config, [("a", str(tmp_path))]), Settings(("noise",), (1,)), CPU)):
        before = flags()
        work()
        assert seen == {"evaluation": {(precision == "tf32",) * 2}}
        assert flags() == before
        seen.clear()


def test_an_error_inside_restores_the_flags():
    before = flags()
    with contextlib.suppress(ValueError), matmul_precision("tf32"):
        assert flags() == (True, True)
        with matmul_precision("fp32"):
            assert flags() == (False, False)
        assert flags() == (True, True)
        raise ValueError
    assert flags() == before


def test_tf32_needs_a_device_that_has_it():
    with pytest.raises(UserError, match=r"a\.yaml: train_cfg\.precision: tf32 .* this run is on cpu; use fp32 or bf16"):
        check_precision("tf32", CPU, "a.yaml", "train_cfg.precision")
    check_precision("bf16", CPU, "a.yaml", "train_cfg.precision")


@pytest.mark.parametrize(("key", "evaluated"), [("train_cfg", 0), ("test_cfg", 1)])
def test_training_refuses_it_before_the_first_step(data, tmp_path, key, evaluated):
    config = two_stream(data, tmp_path, **{key: {"precision": "tf32"}})
    with pytest.raises(UserError, match=rf"{key}\.precision: tf32"):
        fit(config, tmp_path / "run", CPU, FitOptions(eval_every=evaluated))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("flags", "warned"), [("flags : fma avx512f", True), ("flags : fma amx_bf16 amx_tile", False),
                                               ("Features : asimd bf16", False), ("", False)])
def test_bf16_without_bf16_products_is_a_line(monkeypatch, capsys, flags, warned):
    monkeypatch.setattr(devices, "system_text", lambda path: flags)
    check_precision("fp32", CPU, "a.yaml", "train_cfg.precision")
    check_precision("bf16", torch.device("cuda"), "a.yaml", "train_cfg.precision")
    assert capsys.readouterr().err == ""
    check_precision("bf16", CPU, "a.yaml", "train_cfg.precision")
    err = capsys.readouterr().err
    assert ("a.yaml: train_cfg.precision: bf16" in err) is warned
    assert ("--set train_cfg.precision=fp32" in err) is warned
