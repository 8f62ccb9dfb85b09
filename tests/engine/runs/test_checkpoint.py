"""Checkpoint files: what is read, what is refused, what survives a full disk, and what a wrong architecture is called."""
from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import resource
import warnings
import zipfile
from pathlib import Path

import check_golden
import numpy as np
import pytest
import torch
from helpers import tiny_config, without_permission
from networks import SGP, TRIDENT

from libs.core.config import to_dict
from libs.core.errors import UserError
from libs.engine.runs import checkpoint as ck
from libs.engine.runs import checkpoint_mismatch as ck_mismatch
from libs.engine.runs.checkpoint import (
    copy_matching,
    find_checkpoint,
    load_checkpoint,
    load_optimizer,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
)
from libs.engine.training.optim import make_optimizer
from libs.modeling.model import build_model

GOLDEN = Path(__file__).parents[2] / "golden" / "checkpoint_seed0.pth.tar"
TEMPORALMAXER = GOLDEN.with_name("checkpoint_temporalmaxer_seed0.pth.tar")


def model_of(**sections):
    torch.manual_seed(0)
    return build_model(tiny_config(**sections))


def save(path: Path, model, epoch=3, **more) -> Path:
    state = model.state_dict()
    ema = {k: v + 1 for k, v in state.items()}
    save_checkpoint(path, epoch, state, ema, more.get("optimizer", {}), {}, more.get("training"))
    return path


def test_round_trip_is_bit_identical(tmp_path):
    model = model_of()
    found = load_checkpoint(save(tmp_path / "epoch_003.pth.tar", model, training={"iteration": 5}))
    assert (found.epoch, found.training["iteration"], found.training["format_version"]) == (3, 5, ck.FORMAT_VERSION)
    other = model_of(init_rand_seed=9)
    for which, shift in (("raw", 0), ("ema", 1)):
        load_weights(other, found, which)
        assert all(torch.equal(v, model.state_dict()[k] + shift) for k, v in other.state_dict().items())


def test_files_do_not_depend_on_how_weights_lie_in_memory(tmp_path):
    model = model_of()
    assert not all(p.is_contiguous() for p in model.parameters())
    content = torch.load(save(tmp_path / "epoch_003.pth.tar", model), weights_only=True)
    assert all(v.is_contiguous() for part in ("state_dict", "state_dict_ema") for v in content[part].values())


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_restored_moments_belong_to_their_weights(kind):
    """The fused update walks through memory, so moments from a file must lie there as the weights do."""
    model, opt = model_of(), tiny_config(opt={"type": kind, "learning_rate": 0.1, "weight_decay": 0.0}).opt
    optimizer = make_optimizer(model, opt)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    for moments in state["state"].values():
        moments.update({k: v.clone(memory_format=torch.contiguous_format) for k, v in moments.items()})
    restored = make_optimizer(model, opt)
    load_optimizer(restored, state, Path("x"))
    for name, p in model.named_parameters():
        own = restored.state[p]
        p.grad = None if p.grad is None else p.grad * 0.5
        if kind == "SGD":
            expected[name] -= 0.1 * (0.9 * own["momentum_buffer"] + p.grad)
        else:
            first, second = 0.9 * own["exp_avg"] + 0.1 * p.grad, 0.999 * own["exp_avg_sq"] + 0.001 * p.grad**2
            expected[name] -= 0.1 * (first / (1 - 0.9**2)) / ((second / (1 - 0.999**2)).sqrt() + 1e-8)
    restored.step()
    assert all((p - expected[n]).abs().max() < 1e-5 for n, p in model.named_parameters())


def test_a_published_checkpoint_saves_again_bit_identically(tmp_path):
    found = load_checkpoint(GOLDEN)
    save_checkpoint(tmp_path / "again.pth.tar", found.epoch, found.weights, found.weights_ema, found.optimizer, found.scheduler,
                    None)
    ours, theirs = (torch.load(p, weights_only=True) for p in (tmp_path / "again.pth.tar", GOLDEN))
    for part in ("state_dict", "state_dict_ema"):
        assert list(ours[part]) == list(theirs[part])
        assert all(ours[part][k].numpy().tobytes() == v.numpy().tobytes() for k, v in theirs[part].items())
    moments = theirs["optimizer"]["state"]
    assert all(torch.equal(ours["optimizer"]["state"][i][k], v) for i, m in moments.items() for k, v in m.items())
    assert (ours["epoch"], ours["scheduler"]) == (theirs["epoch"], theirs["scheduler"])
    assert found.training is None


def test_numpy_numbers_in_a_published_scheduler_are_harmless(tmp_path):
    content = torch.load(GOLDEN, weights_only=True)
    content["scheduler"]["base_lrs"] = [np.float64(1e-4), np.float64(1e-4)]
    torch.save(content, tmp_path / "a.pth.tar")
    assert load_checkpoint(tmp_path / "a.pth.tar").scheduler["base_lrs"] == [1e-4, 1e-4]


@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])  # numpy since 2.0, and before
def test_the_published_bestmodel_holds_a_numpy_number(tmp_path, module):
    path = tmp_path / "bestmodel.pth.tar"
    with zipfile.ZipFile(TEMPORALMAXER) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            content = old.read(entry)
            assert b"numpy._core.multiarray" in content or not entry.filename.endswith("data.pkl")
            new.writestr(entry.filename, content.replace(b"numpy._core.multiarray", module))
    found = load_checkpoint(path)
    assert found.epoch == load_checkpoint(TEMPORALMAXER).epoch > 0
    with np.load(TEMPORALMAXER.with_name("train_steps_temporalmaxer_seed0.npz")) as steps:
        config = check_golden.model.model_config(json.loads(str(steps["config"])))
    model = build_model(config)
    load_weights(model, found, "ema")
    assert torch.equal(model.neck.fpn_norms[2].weight, found.weights_ema["neck.fpn_norms.0.weight"])


def test_prefix_or_not(tmp_path):
    model = model_of()
    for name, state in (("with", ck.add_prefix(model.state_dict())), ("without", model.state_dict())):
        torch.save({"epoch": 1, "state_dict": state}, tmp_path / name)
        found = load_checkpoint(tmp_path / name)
        load_weights(model, found, "raw")
        with pytest.raises(UserError, match=r"has no averaged weights \(state_dict_ema\); use --weights raw"):
            load_weights(model, found, "ema")


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("where", ["root", "state_dict", "optimizer", "training"])
@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path, where, writer):
    marker, path = tmp_path / "ran", tmp_path / "epoch_001.pth.tar"
    content = {"epoch": 1, "state_dict": ck.add_prefix(model_of().state_dict()), "optimizer": {}, "training": {}}
    if where == "root":
        content = Payload(marker)
    else:
        content[where] = {"x": Payload(marker)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "zip")
    with pytest.raises(UserError, match=r"epoch_001\.pth\.tar: not a checkpoint, or one that needs code"):
        load_checkpoint(path)
    assert not marker.exists()


def test_every_truncation_is_one_clear_error(tmp_path):
    whole = save(tmp_path / "whole.pth.tar", model_of()).read_bytes()
    path = tmp_path / "cut.pth.tar"
    for size in (0, 1, 3, 4, 100, *range(1000, len(whole), len(whole) // 12), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut\.pth\.tar: "):
            load_checkpoint(path)


def test_flipped_bytes_never_end_in_a_traceback(tmp_path):
    whole = bytearray(save(tmp_path / "whole.pth.tar", model_of()).read_bytes())
    path, rng, refused = tmp_path / "bad.pth.tar", np.random.default_rng(0), 0
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 20):
            damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_checkpoint(path)
        except UserError as error:
            refused += str(error).startswith(str(path))
    assert refused > 5


@pytest.mark.parametrize(("content", "fragment"), [
    ([1, 2], "state_dict: missing or not a dict of tensors (found: list)"),
    ({"epoch": 1, "model": {}}, "state_dict: missing or not a dict of tensors (found: epoch, model)"),
    ({"epoch": 1, "state_dict": {}}, "state_dict: missing"),
    ({"epoch": 1, "state_dict": {"a": 1}}, "state_dict: missing"),
    ({"epoch": "x", "state_dict": {"a": torch.zeros(1)}}, "epoch: 'x' is not a number"),
    ({"epoch": 1, "state_dict": {"a": torch.zeros(1)}, "training": {"format_version": 99}}, "format_version: 99 is newer"),
    ({"epoch": 1, "state_dict": {"a": torch.zeros(1)}, "training": {"format_version": "x"}}, "format_version: 'x'"),
])
def test_other_files_say_what_they_hold(tmp_path, content, fragment):
    torch.save(content, tmp_path / "a.pth.tar")
    with pytest.raises(UserError) as error:
        load_checkpoint(tmp_path / "a.pth.tar")
    assert str(error.value).startswith(f"{tmp_path / 'a.pth.tar'}: ")
    assert fragment in str(error.value)


def test_missing_files_and_text_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth\.tar: no such checkpoint"):
        load_checkpoint(tmp_path / "none.pth.tar")
    (tmp_path / "text.pth.tar").write_text("epoch: 1\n")
    with pytest.raises(UserError, match=r"text\.pth\.tar: "):
        load_checkpoint(tmp_path / "text.pth.tar")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = model_of()
    with torch.no_grad():
        model.reg_head.offset_head.conv.bias[1] = torch.nan
    found = load_checkpoint(save(tmp_path / "a.pth.tar", model))
    with pytest.raises(UserError, match=r"a\.pth\.tar: reg_head\.offset_head\.conv\.bias: holds NaN or infinite"):
        load_weights(model_of(), found, "raw")


def full_disk(*_args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    model = model_of()
    path = save(tmp_path / "epoch_003.pth.tar", model)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(UserError, match=r"epoch_003\.pth\.tar: cannot be written \(No space left on device\)"):
            save(path, model, epoch=4)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_size_limit_leaves_the_previous_checkpoint(tmp_path):
    model = model_of()
    path = save(tmp_path / "epoch_003.pth.tar", model)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        with pytest.raises(UserError, match=r"epoch_003\.pth\.tar: cannot be written \(File too large\)"):
            save(path, model, epoch=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert load_checkpoint(save(path, model, epoch=4)).epoch == 4


LIST_INPUT = {"dataset": {"input_dim": [2, 4]}, "model": {"embd_dim": [6, 10]}}


@pytest.mark.parametrize(("sections", "key"), [
    ({"model": {"embd_dim": 24, "fpn_dim": 24}}, "model.embd_dim"),
    ({"dataset": {"num_classes": 5}}, "dataset.num_classes"),
    ({"train_cfg": {"droppath": 0.0}}, "train_cfg.droppath"),
    ({"model": {"backbone_arch": [1, 1, 1], "regression_range": [[0, 4], [4, 10000]]}}, "model.backbone_arch[2]"),
    ({"model": {"backbone_arch": [2, 1, 2]}}, "model.backbone_arch[0]"),
    ({"model": {"backbone_arch": [1, 2, 2]}}, "model.backbone_arch[1]"),
    ({"model": {"fpn_type": "fpn"}}, "model.fpn_type"),
    ({"model": {"fpn_with_ln": False}}, "model.fpn_with_ln"),
    ({"model": {"head_with_ln": False}}, "model.head_with_ln"),
    ({"model": {"embd_with_ln": False}}, "model.embd_with_ln"),
    ({"model": {"use_rel_pe": True}}, "model.use_rel_pe"),
    ({"dataset": {"input_dim": 9}}, "dataset.input_dim"),
    (LIST_INPUT, "dataset.input_dim and model.embd_dim"),
    ({"model": {"backbone_type": "conv"}}, "model.backbone_type"),
    ({"model": {"head_num_layers": 4}}, "model.head_num_layers"),
    ({"model": {"head_dim": 24}}, "model.head_dim"),
    ({"model": {"head_kernel_size": 5}}, "model.head_kernel_size"),
    ({"model": {"embd_kernel_size": 5}}, "model.embd_kernel_size"),
    ({"model": {"fpn_start_level": 1, "regression_range": [[0, 8], [8, 10000]]}}, "model.fpn_start_level"),
], ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("turned", [False, True])
def test_another_architecture_names_the_config_key(tmp_path, sections, key, turned):
    first, second = ({}, sections) if not turned else (sections, {})
    found = load_checkpoint(save(tmp_path / "epoch_003.pth.tar", model_of(**first)))
    model = model_of(**second)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(model, found, "ema")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'epoch_003.pth.tar'}: is for another architecture")
    assert key in message.splitlines()[-1], message
    assert len(message.splitlines()) <= 6
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(("of_file", "of_config"), [("TemporalMaxer", "ActionFormer"), ("ActionFormer", "TemporalMaxer"),
                                                    ("TriDet", "ActionFormer"), ("ActionFormer", "TriDet"),
                                                    ("TriDet", "TemporalMaxer"), ("TemporalMaxer", "TriDet")])
def test_a_checkpoint_of_another_method_names_both(tmp_path, of_file, of_config):
    sections = {"ActionFormer": {}, "TriDet": {"backbone_type": "SGP", "sgp_mlp_dim": 16},
                "TemporalMaxer": {"backbone_type": "convPooler", "backbone_arch": [1, 0, 2], "n_mha_win_size": -1}}
    file = save(tmp_path / "epoch_003.pth.tar", model_of(model=sections[of_file]))
    with pytest.raises(UserError) as error:
        load_weights(model_of(model=sections[of_config]), load_checkpoint(file), "raw")
    said = f"the checkpoint is one of {of_file}, the configuration one of {of_config}: use a configuration of {of_file}, e.g. "
    assert f"{said}configs/{ck_mismatch.CONFIGS[of_file]}" in str(error.value)


def test_the_first_cause_is_the_right_one(tmp_path):
    found = load_checkpoint(save(tmp_path / "a.pth.tar", model_of()))
    for sections, last in (({"dataset": {"num_classes": 5}}, "dataset.num_classes"),
                           ({"train_cfg": {"droppath": 0.0}}, "train_cfg.droppath"),
                           ({"model": {"backbone_type": "conv"}}, "model.backbone_type")):
        with pytest.raises(UserError) as error:
            load_weights(model_of(**sections), found, "raw")
        assert str(error.value).splitlines()[-1].startswith(f"  likely config key: {last}")


def test_fine_tuning_copies_what_fits(tmp_path):
    source = model_of()
    found = load_checkpoint(save(tmp_path / "a.pth.tar", source))
    torch.manual_seed(5)
    model = build_model(tiny_config(dataset={"num_classes": 7}))
    fresh_head = model.cls_head.cls_head.conv.weight.clone()
    copied, fresh, unused = copy_matching(model, found)
    assert fresh == ["cls_head.cls_head.conv.weight", "cls_head.cls_head.conv.bias"]
    assert unused == []
    assert len(copied) == len(model.state_dict()) - 2
    assert torch.equal(model.cls_head.cls_head.conv.weight, fresh_head)
    assert all(torch.equal(model.state_dict()[k], source.state_dict()[k] + 1) for k in copied)  # the averaged weights


def test_fine_tuning_from_something_else_altogether(tmp_path):
    found = load_checkpoint(save(tmp_path / "a.pth.tar", model_of()))
    wide = model_of(dataset={"input_dim": 7, "num_classes": 4}, train_cfg={"droppath": 0}, model={
        "embd_dim": 24, "fpn_dim": 24, "head_dim": 24, "fpn_type": "fpn", "backbone_type": "conv"})
    with torch.no_grad():
        for p in wide.parameters():
            p.fill_(7)
    copied, _, unused = copy_matching(wide, found)
    assert set(copied) == {"reg_head.scale.0.scale", "reg_head.scale.1.scale", "reg_head.scale.2.scale",
                           "reg_head.offset_head.conv.bias"}
    assert len(unused) > 20
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "b.pth.tar")
    with pytest.raises(UserError, match=r"b\.pth\.tar: no weight fits"):
        copy_matching(wide, load_checkpoint(tmp_path / "b.pth.tar"))


def test_finding_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"holds no epoch_\*\.pth\.tar"):
        find_checkpoint(tmp_path)
    for epoch in (5, 35, 100, 1000):
        (tmp_path / ck.checkpoint_name(epoch)).touch()
    (tmp_path / "best.pth.tar").touch()
    (tmp_path / "epoch_x.pth.tar").touch()
    (tmp_path / "epoch_2000.pth.tar.tmp").touch()
    assert find_checkpoint(tmp_path).name == "epoch_1000.pth.tar"
    assert find_checkpoint(tmp_path, 35).name == "epoch_035.pth.tar"
    assert find_checkpoint(tmp_path / "best.pth.tar").name == "best.pth.tar"
    with pytest.raises(UserError, match=r"epoch_036\.pth\.tar: no such checkpoint; epochs in that folder: 5, 35, 100, 1000"):
        find_checkpoint(tmp_path, 36)
    with pytest.raises(UserError, match="-epoch 5 needs the folder of a run"):
        find_checkpoint(tmp_path / "best.pth.tar", 5)


def test_empty_classes_of_an_old_configuration_are_no_change(tmp_path):
    """Older versions wrote down in the configuration which classes had no annotations."""
    old = tiny_config(train_cfg={"head_empty_cls": [1]})
    found = load_checkpoint(save(tmp_path / "a.pth.tar", model_of(), training={"config": to_dict(old)}))
    assert ck.changed_settings(found, tiny_config()) == {}
    other = tiny_config(train_cfg={"head_empty_cls": [0]})
    assert list(ck.changed_settings(found, other)) == ["train_cfg.head_empty_cls"]


def test_an_unreadable_checkpoint_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    """--resume auto would go on from an older one, and overwrite it."""
    model = model_of()
    newest = save(tmp_path / "run" / "epoch_003.pth.tar", model)
    without_permission(monkeypatch, tmp_path / "run", calls=["open"])
    for call, argument in ((load_checkpoint, newest), (newest_checkpoint, tmp_path / "run")):
        with pytest.raises(UserError, match=r"epoch_003.*: cannot be read \(Permission denied\); check its permissions") as error:
            call(argument)
        assert not isinstance(error.value, ck.DamagedCheckpoint)


@pytest.mark.parametrize(("model", "training", "done"), [
    ({**SGP, **TRIDENT}, None, 35), ({**SGP, **TRIDENT}, {}, 34), ({}, None, 34)])
def test_published_epochs_of_tridet_count_from_0(tmp_path, model, training, done):
    weights = build_model(tiny_config(model=model)).state_dict()
    path = tmp_path / "epoch_034.pth.tar"
    save_checkpoint(path, 34, weights, weights, {}, {}, training)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.epoch, checkpoint.epochs_done, checkpoint.counted_from_0) == (34, done, done == 35)
