"""Golden fixtures: every number measured on the published program, and proof that a checker which passes can also fail."""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import check_golden
import numpy as np
import pytest
from helpers import one_error, run_script

GOLDEN = Path(__file__).parent / "golden"
ELSEWHERE = ("nms_", "eval_", "datasets_seed")  # tests/utils and tests/datasets run these
FIXTURES = sorted(p.name for p in GOLDEN.iterdir() if p.name.startswith(tuple(check_golden.CHECKS)))


def test_every_kind_of_fixture_is_here():
    kinds = {prefix for prefix in check_golden.CHECKS for name in FIXTURES if name.startswith(prefix)}
    assert kinds == set(check_golden.CHECKS)
    kinds = ("model_", "model_temporalmaxer_", "model_tridet_", "distill_model_", "distill_loss_")
    assert [sum(n.startswith(kind) for n in FIXTURES) for kind in kinds] == [24, 2, 6, 5, 4]


@pytest.mark.parametrize("name", [n for n in FIXTURES if not n.startswith(ELSEWHERE)])
def test_fixture(name: str):
    check = next(f for prefix, f in check_golden.CHECKS.items() if name.startswith(prefix))
    checks = check(GOLDEN / name)
    counted = [c for c in checks if not c.informational]
    assert len(counted) >= 4
    assert [(c.name, c.error) for c in counted if not c.passed] == []


def test_the_script_counts_and_shows_the_largest_error(capsys, tmp_path):
    for name in ("lr_seed0.npz", "labels_losses_seed0.npz"):
        shutil.copy(GOLDEN / name, tmp_path)
    (tmp_path / "another_kind_seed0.npz").write_bytes(b"")
    code, out, _ = run_script(capsys, check_golden.main, "check_golden.py", str(tmp_path))
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 4)
    assert lines[0].startswith("skip  another_kind_seed0.npz")
    assert all(line.startswith("ok    ") and "largest error" in line for line in lines[1:3])
    assert lines[3] == "2 passed, 0 failed, 1 skipped"


def shifted(values: np.ndarray, by: float) -> np.ndarray:
    """One entry changed, in the middle."""
    values = values.copy()
    values.reshape(-1)[values.size // 2] += by
    return values


def next_index(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[1:2], values[:1], values[2:]])


TAMPERED: dict[str, tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = {
    "a logit": ("model_conv_seed0.npz", "eval0/cls_logits", lambda a: shifted(a, 1e-2)),
    "an offset": ("model_conv_seed0.npz", "eval1/offsets", lambda a: shifted(a, 1e-2)),
    "a mask": ("model_conv_seed0.npz", "eval0/mask", lambda a: ~a),
    "a weight": ("model_conv_seed0.npz", "sd/backbone.branch.0.conv1.conv.weight", lambda a: shifted(a, 1e-1)),
    "a gradient": ("model_conv_seed0.npz", "grad/cls_head.cls_head.conv.weight", lambda a: a * 1.001),
    "a loss": ("model_conv_seed0.npz", "train/losses", lambda a: shifted(a, 1e-3)),
    "a target": ("model_conv_seed0.npz", "train/gt_cls", lambda a: shifted(a, 1)),
    "a detection": ("model_conv_seed0.npz", "infer0/soft_multi_novote/segments", lambda a: shifted(a, 0.02)),
    "a detection's label": ("model_conv_seed0.npz", "infer0/hard_agn_novote/labels", lambda a: shifted(a, 1)),
    "a training weight": ("train_steps_seed0.npz", "sd12/cls_head.cls_head.conv.weight", lambda a: shifted(a, 1e-4)),
    "an average": ("train_steps_seed0.npz", "ema12/cls_head.cls_head.conv.weight", lambda a: shifted(a, 1e-4)),
    "a rate": ("lr_seed0.npz", "cfg0_cosine/lr", lambda a: a * (1 + 1e-9)),
    "an assignment": ("labels_losses_seed0.npz", "case0/integer/cls", lambda a: shifted(a, 1)),
    "an owner": ("temporalmaxer_assign_seed0.npz", "case0/nested/min_inds", lambda a: shifted(a, 1)),
    "a match": ("temporalmaxer_assign_seed0.npz", "case1/random/assign", lambda a: shifted(a, 1)),
    "a weight of a point": ("temporalmaxer_assign_seed0.npz", "case2/random/weights", lambda a: shifted(a, 0.01)),
    "an owner in training": ("model_temporalmaxer_keep_seed0.npz", "train/min_inds", lambda a: shifted(a, 1)),
    "an average of a shared norm": ("train_steps_temporalmaxer_seed0.npz", "ema12/neck.fpn_norms.1.weight",
                                    lambda a: shifted(a, 1e-4)),
    "a vote": ("voting_temporalmaxer_seed0.npz", "case0/voted", lambda a: shifted(a, 1e-2)),
    "a crop": ("trunc_temporalmaxer_seed0.npz", "trunc0/segments", lambda a: shifted(a, 1e-3)),
    "a distillation term": ("distill_loss_structure_teacher_seed0.npz", "kl_mean_over_levels", lambda a: a * 1.001),
    "a distillation loss": ("distill_loss_structure_teacher_seed0.npz", "total", lambda a: a * 1.001),
    "bins of a trident head": ("model_tridet_avg_seed0.npz", "eval1/offset_bins", lambda a: shifted(a, 1e-2)),
    "logits of starts": ("model_tridet_avg_seed0.npz", "eval1/start_logits", lambda a: shifted(a, 1e-2)),
    "distances of a class": ("model_tridet_avg_seed0.npz", "eval1/offsets", lambda a: shifted(a, 1e-2)),
    "a pair's IoU": ("model_tridet_avg_seed0.npz", "train/pair_iou", lambda a: shifted(a, 1e-2)),
    "a trident gradient": ("model_tridet_avg_seed0.npz", "grad/start_head.cls_head.conv.weight", lambda a: a * 1.001),
    "a living convolution": ("train_steps_tridet_seed0.npz", "sd12/backbone.stem.0.psi.weight", lambda a: shifted(a, 1e-4)),
    "an expectation": ("trident_decode_seed0.npz", "case2/offsets", lambda a: shifted(a, 1e-2)),
    "a vote by score": ("voting_tridet_seed0.npz", "case1/voted", lambda a: shifted(a, 1e-3)),
    "a channel of I3D": ("i3d_rgb_seed0.npz", "16x224x224/channel_mean/Mixed_4d", lambda a: shifted(a, 1e-3)),
    "a logit of I3D": ("i3d_flow_seed1.npz", "17x197x213/logits", lambda a: shifted(a, 1e-3)),
    "a weight of I3D": ("i3d_flow_seed1.npz", "parameter_first", lambda a: shifted(a, 1e-6)),
    "a byte of flow": ("preprocessing.npz", "flow/byte", lambda a: shifted(a, 1)),
    "a crop of ten": ("preprocessing.npz", "crops/225x226/224", lambda a: shifted(a, 1)),
    "a box of ten": ("preprocessing.npz", "crops_in_frame/225x226/224", lambda a: a[[0, 1, 2, 3, 4, 6, 5, 7, 8, 9]]),
    "a number of chunks": ("preprocessing.npz", "chunks/table", lambda a: shifted(a, 1)),
    "a histogram of a frame": ("descriptor.npz", "b/mbx_frame0", lambda a: shifted(a, 1e-4)),
    "a descriptor": ("descriptor.npz", "a/motion_power1", lambda a: shifted(a, 1e-4)),
    "a vote of a direction": ("descriptor.npz", "directions/hof", lambda a: shifted(a, 1e-4)),
    "an NMS index": ("nms_seed0.npz", "n40/op_nms_0.50", next_index),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_fixture_fails(capsys, tmp_path, what):
    name, key, change = TAMPERED[what]
    with np.load(GOLDEN / name, allow_pickle=False) as archive:
        arrays = {k: archive[k] for k in archive.files}
    arrays[key] = change(arrays[key])
    np.savez(tmp_path / name, **arrays)
    code, out, _ = run_script(capsys, check_golden.main, "check_golden.py", str(tmp_path))
    assert (code, out.splitlines()[-1]) == (1, "0 passed, 1 failed, 0 skipped"), out
    assert out.startswith(f"FAIL  {name}")


def test_a_tampered_parameter_group_fails(capsys, tmp_path):
    shutil.copy(GOLDEN / "model_conv_seed0.npz", tmp_path)
    groups = json.loads((GOLDEN / "param_groups_seed0.json").read_text())
    groups["conv"]["decay"][0], groups["conv"]["decay"][1] = groups["conv"]["decay"][1], groups["conv"]["decay"][0]
    (tmp_path / "param_groups_seed0.json").write_text(json.dumps(groups))
    code, out, _ = run_script(capsys, check_golden.main, "check_golden.py", str(tmp_path), "--only", "param")
    assert (code, "conv groups" in out) == (1, True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive"])
def test_a_damaged_fixture_fails(capsys, tmp_path, content):
    (tmp_path / "lr_seed0.npz").write_bytes(content)
    code, out, _ = run_script(capsys, check_golden.main, "check_golden.py", str(tmp_path))
    assert (code, out.splitlines()[-1]) == (1, "0 passed, 1 failed, 0 skipped")


def test_folders_without_fixtures_are_refused(capsys, tmp_path):
    assert "holds no known fixtures" in one_error(*run_script(capsys, check_golden.main, "check_golden.py", str(tmp_path))[::2])
    missing = str(tmp_path / "none")
    assert f"{missing}: no such folder" in one_error(*run_script(capsys, check_golden.main, "check_golden.py", missing)[::2])
