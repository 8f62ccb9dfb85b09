"""A configuration that is already there, changed as --set changes a file's."""
from __future__ import annotations

import pytest
from helpers import TINY, tiny_config

from libs.core.config import config_diff, dump_yaml, load_config, with_overrides
from libs.core.errors import UserError


def test_the_same_as_set_on_the_file(tmp_path):
    overrides = ["opt.epochs=7", "model.n_mha_win_size=[5,5,-1]", "dataset.modalities={rgb: [0, 2], flow: [2, 6]}"]
    base = tiny_config("x.yaml")
    (tmp_path / "x.yaml").write_text(dump_yaml(base))
    changed = with_overrides(base, overrides)
    assert changed == load_config(tmp_path / "x.yaml", overrides)
    assert set(config_diff(base, changed)) == {"opt.epochs", "model.n_mha_win_size", "dataset.modalities"}
    assert (changed.source, base.opt.epochs) == ("x.yaml", TINY["opt"]["epochs"])
    assert with_overrides(base, []) == base


@pytest.mark.parametrize(("override", "told"), [("opt.epoch=1", "'epochs'"), ("opt.epochs=-1", "-1"),
                                                ("opt.epochs", "key=value"), ("model.n_mha_win_size=4", "3 or 5")])
def test_refused_as_there(override, told):
    with pytest.raises(UserError, match=r"x\.yaml|--set") as error:
        with_overrides(tiny_config("x.yaml"), [override])
    assert told in str(error.value)
