"""A run that is stopped and goes on ends exactly where an undisturbed one does."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import data_config, identical, write_data
from networks import TRIDET
from resuming import stop_in_epoch, unplaced

from libs.core.errors import UserError
from libs.engine.runs.checkpoint import add_prefix, load_checkpoint, save_checkpoint
from libs.engine.training.fit import FitOptions, fit

CPU = torch.device("cpu")
NOISY = {"train_cfg": {"dropout": 0.2, "droppath": 0.3, "input_dropout": 0.1, "ema_warmup": True,
                       "frame_drop": {"probability": 0.5}, "consistency": 1.0}}


def content(folder: Path, name: str = "epoch_004.pth.tar"):
    return torch.load(folder / name, weights_only=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """make(kind) -> folder of a whole run, made once per kind."""
    made = {}

    def make(kind):
        if kind not in made:
            config = data_config(data, tmp_path_factory.mktemp("whole"), opt={"type": kind}, **NOISY)
            made[kind] = Path(config.output_folder)
            fit(config, made[kind], CPU, FitOptions(checkpoint_every=1, print_every=1, eval_every=2))
        return made[kind]
    return make


@pytest.mark.parametrize(("kind", "workers", "epoch"), [("AdamW", 0, 3), ("AdamW", 2, 2), ("SGD", 0, 3)])
def test_stopped_and_resumed_equals_undisturbed(data, undisturbed, tmp_path, monkeypatch, kind, workers, epoch):
    whole = undisturbed(kind)
    config = data_config(data, tmp_path, opt={"type": kind}, loader={"num_workers": workers}, **NOISY)
    options = {"checkpoint_every": 1, "print_every": 1, "eval_every": 2}
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, epoch)
        with pytest.raises(KeyboardInterrupt):
            fit(config, folder, CPU, FitOptions(**options))
    assert sorted(p.name for p in folder.glob("epoch_*")) == [f"epoch_{i:03d}.pth.tar" for i in range(1, epoch)]
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(r["iteration"] for r in logged) == 3 * (epoch - 1) + 1  # one step more than the checkpoint knows
    torch.manual_seed(99)  # a new process has other random states
    fit(config, folder, CPU, FitOptions(resume="auto", **options))
    for name in [f"epoch_{i:03d}.pth.tar" for i in range(1, 5)] + ["best.pth.tar"]:
        assert identical(unplaced(content(whole, name)), unplaced(content(folder, name))) == [], name
    assert (folder / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_the_undisturbed_run_really_draws_random_numbers(data, undisturbed, tmp_path):
    whole = content(undisturbed("AdamW"))
    assert whole["training"]["iteration"] == 12
    assert whole["training"]["ema_updates"] == 12
    assert whole["training"]["objective"]["loss_normalizer"] != 20
    states = [content(undisturbed("AdamW"), f"epoch_{i:03d}.pth.tar")["training"]["random"]["torch"] for i in (1, 2)]
    assert not torch.equal(*states)
    config = data_config(data, tmp_path, init_rand_seed=4, **NOISY)
    fit(config, tmp_path / "run", CPU, FitOptions(checkpoint_every=4))
    assert identical(whole["state_dict"], content(tmp_path / "run")["state_dict"]) != []


def test_workers_log_lines_and_evaluation_do_not_change_training(data, undisturbed, tmp_path):
    config = data_config(data, tmp_path, loader={"num_workers": 2}, **NOISY)
    fit(config, tmp_path / "run", CPU, FitOptions(checkpoint_every=4, print_every=50))
    ours, other = unplaced(content(undisturbed("AdamW"))), unplaced(content(tmp_path / "run"))
    ours["training"]["best"] = other["training"]["best"] = {}
    assert identical(ours, other) == []


def test_a_named_checkpoint_of_another_folder(data, undisturbed, tmp_path):
    config = data_config(data, tmp_path, **NOISY)
    whole = undisturbed("AdamW")
    fit(config, tmp_path / "run", CPU, FitOptions(resume=str(whole / "epoch_002.pth.tar")))
    assert identical(unplaced(content(whole))["state_dict"], unplaced(content(tmp_path / "run"))["state_dict"]) == []
    assert (tmp_path / "run" / "metrics.jsonl").read_text().startswith('{"iteration": 7, "epoch": 3, ')


def test_auto_without_a_checkpoint_starts_anew(data, tmp_path):
    fit(data_config(data, tmp_path, opt={"epochs": 1}), tmp_path / "run", CPU, FitOptions(resume="auto"))
    assert (tmp_path / "run" / "epoch_002.pth.tar").exists()


def test_a_finished_run_says_so(data, undisturbed, capsys, tmp_path):
    whole = undisturbed("AdamW")
    before = (whole / "metrics.jsonl").read_text()
    config = data_config(data, tmp_path, **NOISY)
    capsys.readouterr()
    fit(config, whole, CPU, FitOptions(resume="auto"))
    assert "all 4 epochs are done" in capsys.readouterr().out
    assert (whole / "metrics.jsonl").read_text() == before


def test_a_finished_run_keeps_its_configuration(data, undisturbed, tmp_path):
    whole = undisturbed("AdamW")
    before = [(whole / name).read_text() for name in ("config.yaml", "config.txt")]
    changed = {**NOISY, "opt": {**NOISY.get("opt", {}), "weight_decay": 0.123}}
    fit(data_config(data, tmp_path, **changed), whole, CPU, FitOptions(resume="auto"))
    assert [(whole / name).read_text() for name in ("config.yaml", "config.txt")] == before


def test_a_changed_configuration_is_named(data, undisturbed, capsys, tmp_path):
    config = data_config(data, tmp_path, opt={"learning_rate": 0.001, "epochs": 4}, loader={"num_workers": 1}, test_cfg={
        "min_score": 0.1}, **NOISY)
    capsys.readouterr()
    fit(config, tmp_path / "run", CPU, FitOptions(resume=str(undisturbed("AdamW") / "epoch_004.pth.tar")))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "opt.epochs: 3 -> 4; opt.learning_rate: 0.003 -> 0.001; the continuation is not exact" in warnings[0]
    assert "min_score" not in warnings[0]
    assert "num_workers" not in warnings[0]


def test_the_same_configuration_gives_no_warning(data, undisturbed, capsys, tmp_path):
    capsys.readouterr()
    fit(data_config(data, tmp_path, **NOISY), tmp_path / "run", CPU, FitOptions(resume=str(undisturbed("AdamW"))))
    assert capsys.readouterr().err == ""


def test_another_batch_size_is_refused(data, undisturbed, tmp_path):
    config = data_config(data, tmp_path, loader={"batch_size": 3}, **NOISY)
    with pytest.raises(UserError, match=r"epoch_004\.pth\.tar: was trained with 3 iterations.*loader\.batch_size give 2"):
        fit(config, tmp_path / "run", CPU, FitOptions(resume=str(undisturbed("AdamW"))))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("ours", "theirs"), [("SGD", "AdamW"), ("AdamW", "SGD")])
def test_another_optimizer_is_refused(data, undisturbed, tmp_path, ours, theirs):
    config = data_config(data, tmp_path, opt={"type": ours}, **NOISY)
    with pytest.raises(UserError, match=rf"optimizer: is not the state of opt\.type {ours}; set opt\.type"):
        fit(config, tmp_path / "run", CPU, FitOptions(resume=str(undisturbed(theirs))))


def published(path: Path, target: Path, **changes) -> Path:
    """The same checkpoint as another program would have written it: without our entry."""
    found = load_checkpoint(path)
    save_checkpoint(target, found.epoch, found.weights, found.weights_ema, found.optimizer, found.scheduler, None)
    if changes:
        torch.save(torch.load(target, weights_only=True) | changes, target)
    return target


def test_a_published_checkpoint_resumes_with_one_warning(data, undisturbed, tmp_path, capsys):
    file = published(undisturbed("AdamW") / "epoch_003.pth.tar", tmp_path / "epoch_003.pth.tar")
    assert set(torch.load(file, weights_only=True)) == {"epoch", "state_dict", "state_dict_ema", "scheduler", "optimizer"}
    capsys.readouterr()
    fit(data_config(data, tmp_path, **NOISY), tmp_path / "run", CPU, FitOptions(resume=str(file)))
    out, err = capsys.readouterr()
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "no loss normaliser, random state or data order" in warnings[0]
    assert "resumed after epoch 3" in out
    ended = content(tmp_path / "run")
    assert ended["training"]["iteration"] == 12
    assert ended["scheduler"] == content(undisturbed("AdamW"))["scheduler"]


def test_a_published_checkpoint_of_tridet_resumes_after_the_epoch_that_it_counts_from_0(data, tmp_path, capsys):
    config = data_config(data, tmp_path, model=TRIDET, opt={"epochs": 2})
    fit(config, tmp_path / "whole", CPU, FitOptions(checkpoint_every=1))
    theirs = load_checkpoint(tmp_path / "whole" / "epoch_002.pth.tar")
    file = tmp_path / "epoch_001.pth.tar"  # two epochs are done
    save_checkpoint(file, 1, theirs.weights, theirs.weights_ema, theirs.optimizer, theirs.scheduler, None)
    capsys.readouterr()
    fit(config, tmp_path / "run", CPU, FitOptions(resume=str(file)))
    assert "resumed after epoch 2" in capsys.readouterr().out
    ended, whole = (content(tmp_path / name, "epoch_003.pth.tar") for name in ("run", "whole"))
    assert (ended["epoch"], ended["training"]["iteration"], ended["scheduler"]) == (3, 9, whole["scheduler"])


@pytest.mark.parametrize(("changes", "fragment"), [
    ({"optimizer": None}, "optimizer: missing"), ({"optimizer": {}}, "optimizer: missing or of another kind"),
    ({"optimizer": [1]}, "optimizer: missing or of another kind"), ({"scheduler": None}, None)])
def test_published_checkpoints_with_holes(data, undisturbed, tmp_path, changes, fragment):
    file = published(undisturbed("AdamW") / "epoch_003.pth.tar", tmp_path / "epoch_003.pth.tar", **changes)
    config = data_config(data, tmp_path, **NOISY)
    if fragment is None:
        fit(config, tmp_path / "run", CPU, FitOptions(resume=str(file)))
        assert content(tmp_path / "run")["training"]["iteration"] == 12
        return
    with pytest.raises(UserError, match=fragment):
        fit(config, tmp_path / "run", CPU, FitOptions(resume=str(file)))


def test_an_average_that_does_not_fit_is_refused(data, undisturbed, tmp_path):
    whole = content(undisturbed("AdamW"))
    ema = {k: v for k, v in whole["state_dict_ema"].items() if "reg_head.norm" not in k}
    torch.save(whole | {"state_dict_ema": ema}, tmp_path / "epoch_004.pth.tar")
    with pytest.raises(UserError, match=r"epoch_004\.pth\.tar: .*\n.*reg_head\.norm"):
        fit(data_config(data, tmp_path, opt={"epochs": 4}, **NOISY), tmp_path / "run", CPU,
            FitOptions(resume=str(tmp_path / "epoch_004.pth.tar")))


def test_a_training_entry_with_holes_is_refused(data, undisturbed, tmp_path):
    whole = content(undisturbed("AdamW"))
    del whole["training"]["random"]
    torch.save(whole, tmp_path / "epoch_004.pth.tar")
    with pytest.raises(UserError, match=r"epoch_004\.pth\.tar: training: lacks .*random"):
        fit(data_config(data, tmp_path, **NOISY), tmp_path / "run", CPU, FitOptions(resume=str(tmp_path / "epoch_004.pth.tar")))


def test_names_on_disk_have_the_published_prefix(undisturbed):
    whole = content(undisturbed("AdamW"))
    assert all(k.startswith("module.") for part in ("state_dict", "state_dict_ema") for k in whole[part])
    found = load_checkpoint(undisturbed("AdamW") / "epoch_004.pth.tar")
    assert identical(add_prefix(found.weights), dict(whole["state_dict"])) == []
    assert identical(whole["state_dict"], whole["state_dict_ema"]) != []
