"""Distillation in the training loop: what is minimised, what teachers may not touch, exact resume, initial weights, logs."""
from __future__ import annotations

import dataclasses
import json

import distill_cases
import pytest
import torch
from distill_cases import CPU, EVERY_TERM, RGB_ONLY, Setup, save_teacher, student, two_stream, weights_equal
from helpers import identical, run_script
from resuming import stop_in_epoch, unplaced
from steps import detection_losses, losses_of

import eval as eval_script
from libs.core.config import dump_yaml
from libs.core.errors import UserError
from libs.datasets.loading.mixing import blend
from libs.engine.runs.checkpoint import load_checkpoint, load_weights
from libs.engine.training import fit as fit_module
from libs.engine.training.fit import FitOptions, fit
from libs.modeling.losses.detection import DetectionLoss
from libs.modeling.model import build_model

NARROW = {"embd_dim": 6, "fpn_dim": 6, "head_dim": 6}  # than the teachers: projections are learned
NO_DROPS = {"dropout": 0.0, "droppath": 0.0, "input_dropout": 0.0}
data, teacher, conv_teacher = distill_cases.data, distill_cases.teacher, distill_cases.conv_teacher


def test_published_total_of_real_models(data, teacher, conv_teacher, tmp_path):
    """The multi-teacher stage: 0.4 L_det + 2.4 [5 MSE(x, x_M) + MSE(s, s_Q)
    + mean_l(0.2 MSE(o_l, o_Q) + 0.8 MSE(o_l, o_M)) + mean_l(0.2 KL_Q + 0.8 KL_M) / 10]."""
    model = {"backbone_type": "conv_dw", **RGB_ONLY}
    config = student(data, tmp_path, [teacher, conv_teacher], distill={"preset": "c2ms", "stage": "multi_teacher"}, model=model)
    setup = Setup(config)
    batch = setup.batches[0]
    assert batch.feats.shape == (2, 72, 6)  # padded to max_seq_len
    losses = losses_of(setup.objective, batch)
    with torch.no_grad():
        own, features = setup.model.trace(batch.feats[..., :3], batch.mask)
        (zM, oM, xM, _), (zQ, oQ, _, sQ) = (spoken(t.model, batch) for t in setup.teachers)
    detection = detection_losses(DetectionLoss(config), own, batch.segments, batch.labels, batch.present).final.item()

    def mse(a, b):
        return float((a.double() - b.double()).square().mean())

    levels = [slice(0, 72), slice(72, 108), slice(108, 126)]
    offsets = [sum(mse(own.offsets[:, s], o[:, s]) for s in levels) / 3 for o in (oM, oQ)]
    kl = [sum(kl_sum(own.logits[:, s], z[:, s]) / 2 for s in levels) / 3 for z in (zM, zQ)]
    expected = 0.4 * detection + 2.4 * (5 * mse(features.inputs, xM) + mse(features.stem, sQ) + 0.8 * offsets[0]
                                        + 0.2 * offsets[1] + (0.8 * kl[0] + 0.2 * kl[1]) / 10)
    assert losses.final.item() == pytest.approx(expected, rel=3e-6)
    assert losses.terms["det_loss"].item() == pytest.approx(detection, rel=1e-6)
    assert losses.terms["cls_teacher2"].item() == pytest.approx(kl[1], rel=3e-6)


def spoken(model, batch):
    """(logits, offsets, backbone input, stem) of a network for all channels."""
    outputs, features = model.trace(batch.feats, batch.mask)
    return outputs.logits, outputs.offsets, features.inputs, features.stem


def kl_sum(student_logits, teacher_logits):
    """Sum of KL(teacher || student) between softmaxes of logits / 2, in float64."""
    p, q = (torch.softmax(z.double() / 2, -1) for z in (teacher_logits, student_logits))
    return float((p * (p / q).log()).sum())


def test_offsets_count_at_ground_truth_positives(data, teacher, tmp_path):
    """No score exceeds a threshold of 1, so only positives are left, weighted by the teacher's best score."""
    setup = Setup(student(data, tmp_path, [teacher], distill={"offsets": {"score_thresh": 1.0, "loss": "mse"}}))
    batch, criterion = setup.batches[0], DetectionLoss(setup.config)
    with torch.no_grad():
        own, its = setup.model(batch.feats, batch.mask), setup.teachers[0].model(batch.feats, batch.mask)
    targets = criterion.assign(own.points, batch.segments, batch.labels, batch.present).classes
    total = weights = 0.0
    for b, p in (targets.amax(-1) == 1).nonzero().tolist():
        if own.mask[b, p]:
            score = torch.sigmoid(its.logits[b, p].double()).max().item()
            total += score * (own.offsets[b, p] - its.offsets[b, p]).double().square().mean().item()
            weights += score
    assert weights > 1
    assert losses_of(setup.objective, batch).terms["offsets_teacher"].item() == pytest.approx(total / weights, rel=1e-5)


def test_teachers_are_out_of_reach(data, teacher, tmp_path):
    setup = Setup(student(data, tmp_path, [teacher], model=RGB_ONLY | NARROW, distill=EVERY_TERM))
    trainer, (its,) = setup.trainer, setup.teachers
    before = {k: v.clone() for k, v in its.model.state_dict().items()}
    for batch in setup.batches:
        trainer.step(batch)
    assert trainer.objective.training
    assert trainer.model.training
    assert not any(module.training for module in its.model.modules())
    parameters = list(its.model.parameters())
    assert not any(p.requires_grad for p in parameters)
    assert all(p.grad is None for p in parameters)
    assert weights_equal(before, its.model.state_dict())
    assert weights_equal(before, dict(load_checkpoint(teacher).weights_ema))
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    learned = list(trainer.model.parameters()) + list(trainer.objective.distillation.parameters())
    assert optimized == {id(p) for p in learned}
    assert len(learned) == len(list(trainer.model.parameters())) + 4  # stem and pyramid: weight and bias
    assert all(p.grad is not None for p in trainer.objective.distillation.parameters())
    assert {id(p) for p in trainer.objective.parameters()} == optimized
    assert list(trainer.ema.state_dict()) == list(build_model(setup.config).state_dict())
    assert len(trainer.optimizer.state) == len(learned)


def test_the_checkpoint_holds_the_student_alone(data, teacher, tmp_path, capsys):
    config = student(data, tmp_path, [teacher], model=RGB_ONLY | NARROW, distill=EVERY_TERM)
    fit(config, tmp_path / "run", CPU, FitOptions())
    content = torch.load(tmp_path / "run" / "epoch_001.pth.tar", weights_only=True)
    names = ["module." + n for n in build_model(config).state_dict()]
    assert list(content["state_dict"]) == list(content["state_dict_ema"]) == names
    kept = content["training"]["objective"]
    assert set(kept) == {"loss_normalizer", "projections"}
    shapes = {k: tuple(v.shape) for k, v in kept["projections"].items()}
    assert shapes == {f"projections.teacher_{t}.{p}": (8, 6) if p == "weight" else (8,) for t in ("stem", "pyramid")
                      for p in ("weight", "bias")}
    assert sum(len(g["params"]) for g in content["optimizer"]["param_groups"]) == len(content["optimizer"]["state"])
    load_weights(build_model(config), load_checkpoint(tmp_path / "run" / "epoch_001.pth.tar"), "ema")
    (tmp_path / "tiny.yaml").write_text(dump_yaml(config).replace(str(teacher), "gone.pth.tar"))
    code, out, err = run_script(capsys, eval_script.main, "eval.py", str(tmp_path / "tiny.yaml"), str(tmp_path / "run"))
    assert code == 0, err
    assert "average" in out.lower()


def test_every_term_is_logged(data, teacher, conv_teacher, tmp_path):
    entries = [{"name": "big", "checkpoint": str(teacher), "terms": {"cls": 1, "offsets": 1, "inputs": 1}},
               {"name": "small", "checkpoint": str(conv_teacher), "terms": {"cls": 0.5, "stem": 1, "pyramid": 1}}]
    fit(student(data, tmp_path, entries, model=RGB_ONLY, distill=EVERY_TERM), tmp_path / "run", CPU, FitOptions())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    terms = {"cls_big", "offsets_big", "inputs_big", "cls_small", "stem_small", "pyramid_small"}
    usual = {"iteration", "epoch", "lr", "cls_loss", "reg_loss", "det_loss", "final_loss", "grad_norm"}
    assert [set(row) for row in rows] == [terms | usual] * 3
    for row in rows:
        assert row["det_loss"] == pytest.approx(row["cls_loss"] + row["reg_loss"], rel=1e-6)
        weighted = (100 * (row["cls_big"] + 0.5 * row["cls_small"]) + row["offsets_big"] + row["inputs_big"] + row["stem_small"]
                    + row["pyramid_small"])
        assert row["final_loss"] == pytest.approx(row["det_loss"] + weighted, rel=1e-5)


@pytest.mark.parametrize("preset", ["corrected", "c2ms"])
@pytest.mark.parametrize("backbone", ["convTransformer", "conv_dw"])
def test_a_student_of_itself_starts_at_zero(data, tmp_path, preset, backbone):
    sections = {"model": RGB_ONLY | {"backbone_type": backbone}, "train_cfg": NO_DROPS}
    itself = save_teacher(two_stream(data, tmp_path, **sections), tmp_path / "itself.pth.tar", seed=4)
    config = student(data, tmp_path, [itself], distill={"preset": preset, "init_from": "teacher", **EVERY_TERM}, **sections)
    setup = Setup(config)
    load_weights(setup.model, load_checkpoint(itself), "ema")
    setup.objective.train()
    losses = losses_of(setup.objective, setup.batches[0])
    terms = {k: v.item() for k, v in losses.terms.items()}
    assert {k: terms.pop(f"{k}_teacher") for k in ("offsets", "stem", "pyramid", "inputs")} == {
        "offsets": 0, "stem": 0, "pyramid": 0, "inputs": 0}
    assert abs(terms["cls_teacher"]) < 1e-6
    factor = 1.0 if preset == "corrected" else 0.4
    assert losses.final.item() == pytest.approx(factor * terms["det_loss"], rel=1e-5)
    load_weights(setup.model, load_checkpoint(itself), "raw")  # other weights: not zero
    assert all(v.item() > 1e-3 for k, v in losses_of(setup.objective, setup.batches[0]).terms.items() if k.endswith("_teacher"))


@pytest.mark.parametrize("how", [{"outputs": "online"}, {"outputs": "cache"}, {"mixup": 0.5}], ids=str)
def test_stopped_and_resumed_equals_undisturbed(data, teacher, tmp_path, monkeypatch, how):
    def config(name):
        sections = {"dataset": {"crop_ratio": [0.6, 0.9], "crop_align": 4}, "opt": {"epochs": 3}, "loader": {"batch_size": 3},
                    "train_cfg": {"dropout": 0.2, "droppath": 0.3, "input_dropout": 0.1, "ema_warmup": True}}
        distill = {**how, **EVERY_TERM}
        made = student(data, tmp_path, [teacher], model=RGB_ONLY | NARROW, distill=distill, **sections)
        return made, tmp_path / name

    options = {"checkpoint_every": 1, "print_every": 1}
    made, whole = config("whole")
    fit(made, whole, CPU, FitOptions(**options))
    made, folder = config("run")
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            fit(made, folder, CPU, FitOptions(**options))
    assert [p.name for p in folder.glob("epoch_*")] == ["epoch_001.pth.tar"]
    torch.manual_seed(99)
    fit(made, folder, CPU, FitOptions(resume="auto", **options))
    contents = [[unplaced(torch.load(f / f"epoch_{i:03d}.pth.tar", weights_only=True)) for i in (1, 3)] for f in (whole, folder)]
    assert identical(contents[0], contents[1]) == []
    assert (whole / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()
    first, last = (c["training"]["objective"]["projections"] for c in contents[0])
    assert first.keys() == last.keys()
    assert not any(torch.equal(first[k], last[k]) for k in first)  # projections are learned


def test_other_projections_are_refused_on_resume(data, teacher, tmp_path, capsys):
    first = student(data, tmp_path, [teacher], model=RGB_ONLY | NARROW, distill={"pyramid": {"weight": 1}})
    fit(first, tmp_path / "run", CPU, FitOptions())
    config = student(data, tmp_path, [teacher], model=RGB_ONLY | NARROW, distill={"pyramid": {"weight": 0}}, opt={"epochs": 2})
    with pytest.raises(UserError, match=r"epoch_001\.pth\.tar: optimizer: holds \d+ parameters where this model has"):
        fit(config, tmp_path / "run", CPU, FitOptions(resume="auto"))


def test_projections_to_another_teacher_are_refused_on_resume(data, teacher, tmp_path):
    def config(name, epochs):
        sections = {"model": RGB_ONLY | NARROW, "distill": {"pyramid": {"weight": 1}}, "opt": {"epochs": epochs}}
        return student(data, tmp_path, [{"name": name, "checkpoint": str(teacher)}], **sections)

    fit(config("first", 1), tmp_path / "run", CPU, FitOptions())
    message = (r"tiny\.yaml: distill\.teachers: .* are \{'first_pyramid.weight': \[8, 6\].* "
               r"\{'second_pyramid.weight': \[8, 6\].*resume with")
    with pytest.raises(UserError, match=message):
        fit(config("second", 2), tmp_path / "run", CPU, FitOptions(resume="auto"))


def test_a_plain_run_goes_on_with_a_teacher_and_back(data, teacher, tmp_path, capsys):
    """Not exact, and said so."""
    plain = two_stream(data, tmp_path, model=RGB_ONLY)
    fit(plain, tmp_path / "run", CPU, FitOptions())
    fit(student(data, tmp_path, [teacher], model=RGB_ONLY, opt={"epochs": 2}), tmp_path / "run", CPU, FitOptions(resume="auto"))
    assert "the continuation is not exact" in capsys.readouterr().err
    fit(two_stream(data, tmp_path, model=RGB_ONLY, opt={"epochs": 3}), tmp_path / "run", CPU, FitOptions(resume="auto"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert ["cls_teacher" in row for row in rows] == [False] * 3 + [True] * 3 + [False] * 3


class Stop(Exception):
    """Raised where the training loop would begin."""


def at_start(config, monkeypatch, tmp_path):
    """(the model's initial weights, torch's random state) when fit() has set everything up."""
    seen = {}

    def stop(run, *_):
        trainer = run.trainer
        seen["weights"] = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        seen["random"] = torch.get_rng_state()
        raise Stop
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "train_epoch", stop)
        with pytest.raises(Stop):
            fit(config, tmp_path / "start", CPU, FitOptions())
    return seen["weights"], seen["random"]


@pytest.mark.parametrize("distill", [EVERY_TERM, {"outputs": "cache"}, {"teacher_droppath": True}], ids=str)
def test_teachers_do_not_change_the_initial_weights(data, teacher, conv_teacher, tmp_path, monkeypatch, distill):
    model = RGB_ONLY | NARROW
    alone = two_stream(data, tmp_path, model=model, dataset={"crop_align": 4})
    plain = at_start(alone, monkeypatch, tmp_path)
    taught = at_start(student(data, tmp_path, [teacher, conv_teacher], model=model, distill=distill, dataset={"crop_align": 4}),
                      monkeypatch, tmp_path)
    assert weights_equal(plain[0], taught[0])
    assert torch.equal(plain[1], taught[1])


def test_init_from_copies_the_averaged_weights_of_the_same_name_and_shape(data, conv_teacher, tmp_path, monkeypatch, capsys):
    model = {"backbone_type": "conv_dw", **RGB_ONLY}
    names = {"init_from": "q", "teachers": [{"name": "q", "checkpoint": str(conv_teacher)}]}
    fresh, _ = at_start(two_stream(data, tmp_path, model=model), monkeypatch, tmp_path)
    capsys.readouterr()
    weights, _ = at_start(student(data, tmp_path, [], model=model, distill=names), monkeypatch, tmp_path)
    out = capsys.readouterr().out
    averaged = load_checkpoint(conv_teacher).weights_ema
    same = [n for n in weights if n in averaged and averaged[n].shape == weights[n].shape]
    assert all(torch.equal(weights[n], averaged[n]) for n in same)
    assert all(torch.equal(weights[n], fresh[n]) for n in weights if n not in same)
    # SPEC section 12: of a conv teacher only embedding norms, neck and heads match a conv_dw student
    assert {n.split(".")[0] for n in same} == {"backbone", "neck", "cls_head", "reg_head"}
    assert {n for n in same if n.startswith("backbone.")} == {"backbone.embd_norm.0.weight", "backbone.embd_norm.0.bias"}
    assert all(n in same for n in weights if n.startswith(("neck.", "cls_head.", "reg_head.")))
    line = next(line for line in out.splitlines() if "copied" in line)
    fresh_names, unused = [n for n in weights if n not in same], [n for n in averaged if n not in weights]
    assert f"{conv_teacher} (ema weights): copied {len(same)} tensors; {len(fresh_names)} start anew (" in line
    assert fresh_names[0] in line
    assert f"{len(unused)} of the file have no place ({unused[0]}" in line


def test_init_from_follows_the_weights_of_the_teacher(data, conv_teacher, tmp_path, monkeypatch):
    entry = {"name": "q", "checkpoint": str(conv_teacher), "weights": "raw"}
    config = student(data, tmp_path, [entry], model={"backbone_type": "conv"}, distill={"init_from": "q"})
    weights, _ = at_start(config, monkeypatch, tmp_path)
    assert weights_equal(weights, load_checkpoint(conv_teacher).weights)


@pytest.mark.parametrize("drop", [False, True])
def test_teacher_droppath(data, teacher, tmp_path, drop):
    setup = Setup(student(data, tmp_path, [teacher], distill={"teacher_droppath": drop}))
    setup.objective.train()
    said = [setup.objective.teacher_outputs(setup.batches[0])[0].logits for _ in range(12)]
    assert all(torch.equal(said[0], other) for other in said) is not drop
    assert not setup.teachers[0].model.training
    assert sum(m.training for m in setup.teachers[0].model.modules()) == (6 if drop else 0)  # two per block


def test_a_run_without_teachers_stays_as_it_was(data, tmp_path):
    """The section alone, with weights in it, changes nothing: plain training."""
    runs = []
    for name, distill in (("a", {}), ("b", {"weight": 3.0, "cls": {"temperature": 5.0}})):
        fit(two_stream(data, tmp_path, distill=distill), tmp_path / name, CPU, FitOptions())
        runs.append(torch.load(tmp_path / name / "epoch_001.pth.tar", weights_only=True))
    assert identical(runs[0]["state_dict"], runs[1]["state_dict"]) == []
    assert set(runs[0]["training"]["objective"]) == {"loss_normalizer"}


def test_a_student_is_a_teacher_for_the_next_stage(data, teacher, tmp_path):
    """Its checkpoint alone is enough: the configuration inside names its own teacher, which may be gone."""
    first = student(data, tmp_path, [{"checkpoint": "{run}.pth.tar"}], model=RGB_ONLY)
    hidden = save_teacher(first, tmp_path / "first.pth.tar", seed=7)
    setup = Setup(student(data, tmp_path, [hidden], model={"backbone_type": "conv_dw", **RGB_ONLY}))
    assert setup.batches[0].feats.shape[-1] == 3  # neither of the two reads flow
    losses = losses_of(setup.objective, setup.batches[0])
    assert torch.isfinite(losses.final)
    assert "inputs_teacher" in losses.terms


# blended videos

def test_a_blend_is_a_part_of_another_video_at_valid_steps(data, teacher, tmp_path):
    """(1 - s) x + s x': one s per video, solved for from one number, explains all others; each video is part of one other."""
    batch = Setup(student(data, tmp_path, [teacher], loader={"batch_size": 5})).batches[0]
    torch.manual_seed(11)
    mixed, partners, shares = blend(batch, 0.4), [], []
    x, y = batch.feats.double(), mixed.feats.double()
    for b in range(5):
        steps = batch.mask[b]
        for other in set(range(5)) - {b}:
            s = ((y[b, 0, 0] - x[b, 0, 0]) / (x[other, 0, 0] - x[b, 0, 0])).item()
            if torch.allclose(y[b, steps], ((1 - s) * x[b] + s * x[other])[steps], atol=1e-5):
                partners.append(other)
                shares.append(s)
    assert sorted(partners) == [0, 1, 2, 3, 4]
    assert len({round(s, 4) for s in shares}) == 5
    assert all(0 <= s <= 0.4 for s in shares)
    assert not bool(batch.mask.all())
    assert bool((mixed.feats[~batch.mask] == 0).all())
    for name in ("mask", "segments", "labels", "present", "samples"):
        assert getattr(mixed, name) is getattr(batch, name)


def test_shares_of_blends_are_uniform(data, teacher, tmp_path):
    batch = Setup(student(data, tmp_path, [teacher])).batches[0]
    base = batch.feats.new_zeros(batch.feats.shape)
    base[0] = 1.0
    torch.manual_seed(5)
    batch = dataclasses.replace(batch, feats=base, mask=torch.ones_like(batch.mask))
    shares = torch.tensor([[1 - f[0, 0, 0], f[1, 0, 0]] for f in (blend(batch, 0.5).feats for _ in range(500))]).flatten()
    counts = torch.histc(shares, bins=5, min=0, max=0.5)  # 1000 draws: 200 each, standard deviation 13
    assert int(counts.sum()) == 1000
    assert bool(((counts - 200).abs() < 60).all())


@pytest.mark.parametrize("training", [True, False])
def test_student_and_teachers_see_the_same_blend_in_training_only(data, teacher, tmp_path, monkeypatch, training):
    """The detection loss is that of the blend against the ground truth of the video itself."""
    setup = Setup(student(data, tmp_path, [teacher], model=RGB_ONLY, distill={"mixup": 0.5}, train_cfg=NO_DROPS))
    batch, seen, objective = setup.batches[0], {}, setup.objective.train(training)
    before, said, trace = batch.feats.clone(), objective.teacher_outputs, setup.model.trace
    objective.teacher_outputs = lambda b: [seen.setdefault("teachers", b.feats), said(b)][1]
    monkeypatch.setattr(setup.model, "trace", lambda feats, *grid: [seen.setdefault("student", feats), trace(feats, *grid)][1])
    terms = losses_of(objective, batch).terms
    assert torch.equal(seen["student"], seen["teachers"][..., :3])
    assert torch.equal(seen["teachers"], before) is not training
    assert torch.equal(batch.feats, before)
    outputs = setup.model(seen["student"], batch.mask)
    expected = detection_losses(DetectionLoss(setup.config), outputs, batch.segments, batch.labels, batch.present)
    assert terms["det_loss"].item() == pytest.approx(expected.final.item(), rel=1e-6)
