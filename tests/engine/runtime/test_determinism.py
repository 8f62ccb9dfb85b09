"""--deterministic: an operation without a deterministic kernel is one error, in training and in evaluation."""
from __future__ import annotations

import os

import pytest
import torch
from helpers import data_config, one_error, run_script, write_config, write_data

import eval as eval_script
import train
from libs.core.errors import UserError
from libs.engine.runtime.determinism import strict_determinism
from libs.engine.training.fit import FitOptions, fit
from libs.modeling.model import LocPointTransformer

CPU = torch.device("cpu")


def states():
    return (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)


def scatter_in_any_order():
    """An operation that has no deterministic kernel, on the CPU either."""
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]), accumulate=False)


@pytest.fixture
def scattering(monkeypatch):
    encode = LocPointTransformer.forward

    def forward(self, *args):
        scatter_in_any_order()
        return encode(self, *args)
    monkeypatch.setattr(LocPointTransformer, "forward", forward)


def test_inside_strict_outside_as_before():
    before = states()
    with strict_determinism(True):
        assert states() == (True, False, True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
    assert states() == before
    with strict_determinism(False):
        assert states() == before


def test_the_operation_is_named_and_other_errors_stay():
    before = states()
    with pytest.raises(UserError, match=r"^--deterministic: put_ has no deterministic kernel on this device; or leave"), \
            strict_determinism(True):
        scatter_in_any_order()
    with pytest.raises(UserError, match="cuBLAS is not deterministic with CUBLAS_WORKSPACE_CONFIG="), strict_determinism(True):
        raise RuntimeError("Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or ...")
    with pytest.raises(RuntimeError, match="shape"), strict_determinism(True):
        raise RuntimeError("shape mismatch")
    assert states() == before


@pytest.mark.filterwarnings("ignore:put_ does not have a deterministic")
def test_train_and_eval_refuse_it_only_when_asked(tmp_path, capsys, scattering):
    config = write_config(tmp_path / "tiny.yaml", write_data(tmp_path), opt={"epochs": 1, "warmup_epochs": 0})
    folder = tmp_path / "ckpt" / "tiny_run"
    argv = ("train.py", str(config))
    assert "put_ has no deterministic kernel" in one_error(*run_script(capsys, train.main, *argv, "--deterministic")[::2])
    assert not list(folder.glob("epoch_*"))
    assert run_script(capsys, train.main, *argv)[0] == 0
    argv = ("eval.py", str(config), str(folder))
    assert "put_ has no deterministic kernel" in one_error(*run_script(capsys, eval_script.main, *argv, "--deterministic")[::2])
    assert not (folder / "eval").exists()
    assert run_script(capsys, eval_script.main, *argv)[0] == 0


def test_strict_and_default_runs_have_the_same_weights(tmp_path):
    data = write_data(tmp_path)
    weights = []
    for strict in (False, True):
        config = data_config(data, tmp_path, opt={"epochs": 1, "warmup_epochs": 0})
        fit(config, tmp_path / str(strict), CPU, FitOptions(deterministic=strict))
        weights.append(torch.load(tmp_path / str(strict) / "epoch_001.pth.tar", weights_only=True)["state_dict_ema"])
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
