"""The network of a configuration: one that is too large is an error before any memory is taken."""
from __future__ import annotations

import pytest
import torch
from helpers import tiny_config

from libs.core.config import to_dict
from libs.core.errors import UserError
from libs.engine.api import load_model
from libs.engine.runs.checkpoint import load_checkpoint, save_checkpoint
from libs.engine.runs.network import load_network, new_network
from libs.modeling.model import build_model


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a checkpoint of a tiny network whose own configuration has other sizes in it."""
    def write(**sections):
        torch.manual_seed(0)
        weights = build_model(tiny_config()).state_dict()
        path = tmp_path / "epoch_003.pth.tar"
        save_checkpoint(path, 3, weights, weights, {}, {}, {"config": to_dict(tiny_config(**sections))})
        return path
    return write


@pytest.mark.parametrize("classes", [10**9, 10**30])
def test_a_checkpoint_that_asks_for_more_classes_than_it_has_is_refused_by_its_shapes(checkpoint, classes):
    path = checkpoint(dataset={"num_classes": classes})
    with pytest.raises(UserError, match=r"epoch_003.pth.tar") as error:
        load_model(path, device="cpu")
    assert "num_classes" in str(error.value)
    assert "(3,)" in str(error.value) or classes == 10**30


@pytest.mark.parametrize("sizes", [{"dataset": {"num_classes": 10**9}},
                                   {"dataset": {"max_seq_len": 2**40}, "model": {"use_abs_pe": True}}])
def test_a_network_beyond_the_memory_is_refused(sizes):
    with pytest.raises(UserError, match=r"tiny.yaml: its network takes .* GiB, but .* lower dataset.num_classes"):
        new_network(tiny_config(**sizes))


def test_loading_gives_the_weights_of_the_file_and_draws_the_same_random_numbers(checkpoint):
    found = load_checkpoint(checkpoint())
    torch.manual_seed(5)
    plain, state = build_model(tiny_config()).state_dict(), torch.get_rng_state()
    torch.manual_seed(5)
    assert all(torch.equal(v, plain[k]) for k, v in new_network(tiny_config()).state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, found.weights[k]) for k, v in load_network(tiny_config(), found, "raw").state_dict().items())


def test_networks_whose_convolutions_are_zero_say_so(tmp_path, capsys):
    sgp = {"backbone_type": "SGP", "sgp_mlp_dim": 20}
    for init, lines in ((0.0, 1), (0.1, 0)):
        config = tiny_config(model={**sgp, "init_conv_vars": init})
        weights = build_model(config).state_dict()
        path = tmp_path / f"sgp{lines}.pth.tar"
        save_checkpoint(path, 3, weights, weights, {}, {}, {"config": to_dict(config)})
        load_network(config, load_checkpoint(path), "ema")
        notes = capsys.readouterr().err.splitlines()
        assert len(notes) == lines
        assert all(part in line for line in notes for part in (str(path), "3 SGP blocks", "model.init_conv_vars: 0.1"))
