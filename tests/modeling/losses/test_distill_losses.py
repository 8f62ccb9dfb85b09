"""Distillation losses against the formulae of SPEC section 12, written out as loops over videos, steps and classes in float64."""
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import padded_batch, show_every_term, tiny_config

from libs.modeling.losses.distillation import DistillationLoss, TeacherOutputs, TeacherSpec, resolve, sigmoid_kl
from libs.modeling.model import Features, LevelOutputs, build_model
from libs.modeling.points import PointGrid

SIZES, K, WIDTH, CHANNELS, TAU = (8, 4, 2), 3, 4, 6, 2.0
TERMS = ("cls", "offsets", "stem", "pyramid", "inputs")
LEVELS = [range(8), range(8, 12), range(12, 14)]
RGB_ONLY = {"modalities": ["rgb"], "hallucinator": "rgb2flow", "hallucinated": ["flow"]}
STUDENT_READS = {"structure_teacher": {}, "cross_modal": RGB_ONLY, "cross_structure": RGB_ONLY, "multi_teacher": RGB_ONLY}


def config_of(distill, model=None, teachers=1):
    entries = [{"name": f"t{i}", "checkpoint": "x"} for i in range(teachers)]
    return tiny_config(dataset={"modalities": {"rgb": [0, 3], "flow": [3, 6]}}, model=RGB_ONLY if model is None else model,
                       distill={"teachers": entries, **distill})


def loss_of(config, stem=WIDTH, pyramid=WIDTH, widths=()):
    """The criterion, for teachers of the student's widths or of the given (stem, pyramid) ones."""
    settings = resolve(config)
    widths = widths or [(stem, pyramid)] * len(settings.teachers)
    specs = [TeacherSpec(t.name, t.terms, *w) for t, w in zip(settings.teachers, widths, strict=True)]
    return DistillationLoss(settings, specs, stem, pyramid)


def losses_of_terms(loss, outputs, features, mask_BT, positive_BP, teacher_outputs):
    """(total, {name: value}) of one batch that is a whole step."""
    grid = PointGrid(outputs.points, outputs.mask, outputs.level_sizes)
    denominators = loss.denominators(grid, mask_BT, positive_BP, teacher_outputs)
    return loss(outputs, features, mask_BT, positive_BP, teacher_outputs, denominators)


class Case:
    """Random outputs of a student and two teachers; nothing is zero at padded steps, so what is not masked shows."""

    def __init__(self, lengths, seed=0):
        g = torch.Generator().manual_seed(seed)

        def random(*shape):
            return torch.randn(*shape, generator=g)

        B, T, P = len(lengths), SIZES[0], sum(SIZES)
        self.mask_BT = torch.arange(T) < torch.tensor(lengths).unsqueeze(1)
        self.mask_BP = torch.cat([self.mask_BT[:, ::2 ** i] for i in range(3)], dim=1)
        self.positive_BP = torch.rand(B, P, generator=g) < 0.3
        levels = tuple(random(B, n, WIDTH) for n in SIZES)
        self.outputs = LevelOutputs(3 * random(B, P, K), 4 * torch.rand(B, P, 2, generator=g), self.mask_BP, torch.zeros(P, 4),
                                    SIZES)
        self.features = Features(random(B, T, CHANNELS), random(B, T, WIDTH), levels)
        self.teachers = [TeacherOutputs(3 * random(B, P, K) - 3, 4 * torch.rand(B, P, 2, generator=g), random(B, T, WIDTH),
                                        random(B, P, WIDTH), random(B, T, CHANNELS)) for _ in range(2)]

    def run(self, loss):
        """(total, {name: value}) as numbers."""
        total, values = losses_of_terms(loss, self.outputs, self.features, self.mask_BT, self.positive_BP,
                                        self.teachers[:len(loss.teachers)])
        return total.item(), {name: value.item() for name, value in values.items()}

    def student(self, name):
        own = {"cls": self.outputs.logits, "offsets": self.outputs.offsets, "stem": self.features.stem,
               "pyramid": torch.cat(self.features.levels, 1), "inputs": self.features.inputs}
        return own[name].double().numpy()

    def teacher(self, name, i=0):
        return getattr(self.teachers[i], "logits" if name == "cls" else name).double().numpy()

    def mse(self, name, i=0, mask=None):
        """Mean over every element of all, or of the valid, steps."""
        s, t = self.student(name), self.teacher(name, i)
        found = [(s[b, k, c] - t[b, k, c]) ** 2 for b, k, c in np.ndindex(s.shape) if mask is None or mask[b, k]]
        return sum(found) / len(found)

    def published_offsets(self, i=0):
        """mean_l MSE(o_l)."""
        s, t, means = self.student("offsets"), self.teacher("offsets", i), []
        for level in LEVELS:
            found = [(s[b, p, side] - t[b, p, side]) ** 2 for b in range(len(s)) for p in level for side in (0, 1)]
            means.append(sum(found) / len(found))
        return sum(means) / len(means)

    def published_kl(self, i=0):
        """mean_l (1/B) sum_{b,t,c} p_t log(p_t / p_S), p = softmax(z / tau)."""
        s, t, per_level = self.student("cls"), self.teacher("cls", i), []
        for level in LEVELS:
            total = 0.0
            for b in range(len(s)):
                for p in level:
                    q, r = softmax(t[b, p] / TAU), softmax(s[b, p] / TAU)
                    total += sum(q[c] * math.log(q[c] / r[c]) for c in range(K))
            per_level.append(total / len(s))
        return sum(per_level) / len(per_level)

    def cls(self, loss="sigmoid_kl", mask=True, reduction="points", temperature=1.0, focus=1.0):
        """The class term with any switch, point by point."""
        s, t = self.student("cls") / temperature, self.teacher("cls") / temperature
        total = count = 0.0
        for b, p in np.ndindex(s.shape[:2]):
            if mask and not self.mask_BP[b, p]:
                continue
            count += 1
            if loss == "softmax_kl":
                q, r = softmax(t[b, p]), softmax(s[b, p])
                total += sum(q[c] * math.log(q[c] / r[c]) for c in range(K))
            else:
                for c in range(K):
                    q, r = sigmoid(t[b, p, c]), sigmoid(s[b, p, c])
                    total += abs(q - r) ** focus * (q * math.log(q / r) + (1 - q) * math.log((1 - q) / (1 - r)))
        return total / (len(s) * len(SIZES)) if reduction == "levels" else total / count

    def offsets(self, loss="diou", points="confident", mask=True, reduction="points", score_thresh=0.1):
        """The offset term with any switch, point by point."""
        s, t, logits = self.student("offsets"), self.teacher("offsets"), self.teacher("cls")
        groups = LEVELS if reduction == "levels" else [range(sum(SIZES))]
        means = []
        for group in groups:
            total = weights = 0.0
            for b, p in itertools.product(range(len(s)), group):
                score = max(sigmoid(z) for z in logits[b, p])
                chosen = points == "all" or bool(self.positive_BP[b, p]) or score > score_thresh
                if not chosen or (mask and not self.mask_BP[b, p]):
                    continue
                weight = 1.0 if points == "all" else score
                weights += weight
                total += weight * (diou(s[b, p], t[b, p]) if loss == "diou" else ((s[b, p] - t[b, p]) ** 2).sum() / 2)
            means.append(total / weights if weights else 0.0)
        return sum(means) / len(means)


def softmax(z):
    e = [math.exp(v) for v in z]
    return [v / sum(e) for v in e]


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def diou(s, t):
    """1 - tIoU + (distance of centres / hull)^2 of two segments around 0, as start and end times."""
    (a, b), (c, d) = (-s[0], s[1]), (-t[0], t[1])
    inner, hull = min(b, d) - max(a, c), max(b, d) - min(a, c)
    iou = inner / ((b - a) + (d - c) - inner)
    return 1 - iou + (((a + b) / 2 - (c + d) / 2) / hull) ** 2


def published_total(case, stage):
    """The distillation part of the published loss, without 0.4 L_det (SPEC section 12, table of stages)."""
    mse, offsets, kl = case.mse, case.published_offsets, case.published_kl
    if stage in ("structure_teacher", "cross_structure"):
        return 0.6 * (mse("stem") + offsets() + 4 * kl() / 100)
    if stage == "cross_modal":
        return 0.6 * (5 * mse("inputs") + offsets() + 4 * kl() / 10)
    modal, structure = 0, 1
    return 2.4 * (5 * mse("inputs", modal) + mse("stem", structure) + 0.2 * offsets(structure) + 0.8 * offsets(modal)
                  + (0.2 * kl(structure) + 0.8 * kl(modal)) / 10)


LOGGED = {"structure_teacher": {"cls_t0", "offsets_t0", "stem_t0"}, "cross_structure": {"cls_t0", "offsets_t0", "stem_t0"},
          "cross_modal": {"cls_t0", "offsets_t0", "inputs_t0"},
          "multi_teacher": {"cls_t0", "offsets_t0", "inputs_t0", "cls_t1", "offsets_t1", "stem_t1"}}


@pytest.mark.parametrize("lengths", [(8, 8), (5, 8, 1)], ids=["full", "padded"])
@pytest.mark.parametrize("stage", list(STUDENT_READS))
def test_published_loss_of_a_stage(stage, lengths):
    config = config_of({"preset": "c2ms", "stage": stage}, STUDENT_READS[stage], teachers=1 + (stage == "multi_teacher"))
    case, loss = Case(lengths), loss_of(config)
    total, values = case.run(loss)
    assert total == pytest.approx(published_total(case, stage), rel=2e-6)
    assert set(values) == LOGGED[stage]
    assert values["cls_t0"] == pytest.approx(case.published_kl(), rel=2e-6)
    assert values["offsets_t0"] == pytest.approx(case.published_offsets(), rel=2e-6)
    assert resolve(config).det_weight == 0.4
    assert list(loss.parameters()) == []


@pytest.mark.parametrize("lengths", [(8, 8), (5, 8, 1)], ids=["full", "padded"])
def test_corrected_terms_are_means_over_valid_points(lengths):
    case = Case(lengths)
    config = config_of({"stem": {"weight": 0.5}, "pyramid": {"weight": 0.25}, "inputs": {"weight": 2.0}, "cls": {"weight": 3.0},
                        "weight": 0.7})
    total, values = case.run(loss_of(config))
    expected = {"cls_t0": case.cls(), "offsets_t0": case.offsets(), "stem_t0": case.mse("stem", mask=case.mask_BT),
                "pyramid_t0": case.mse("pyramid", mask=case.mask_BP), "inputs_t0": case.mse("inputs", mask=case.mask_BT)}
    assert values == pytest.approx(expected, rel=2e-6)
    weights = {"cls_t0": 3.0, "offsets_t0": 1.0, "stem_t0": 0.5, "pyramid_t0": 0.25, "inputs_t0": 2.0}
    assert total == pytest.approx(0.7 * sum(weights[k] * expected[k] for k in weights), rel=2e-6)


@pytest.mark.parametrize("switch", [
    {"mask": False}, {"reduction": "levels"}, {"loss": "softmax_kl"}, {"temperature": 2.0}, {"temperature": 4.0},
    {"mask": False, "reduction": "levels"}, {"focus": 0.0}, {"focus": 0.5}, {"focus": 2.0, "temperature": 2.0},
    {"loss": "softmax_kl", "focus": 2.0}], ids=str)
def test_switches_of_the_class_term(switch):
    case = Case((5, 8, 1), seed=1)
    expected = case.cls(**switch)
    assert case.run(loss_of(config_of({"cls": switch})))[1]["cls_t0"] == pytest.approx(expected, rel=2e-6)
    assert abs(expected / case.cls() - 1) > 0.01  # the switch counts in this case


@pytest.mark.parametrize(("temperature", "focus"), [(1.0, 0.0), (1.0, 1.0), (2.0, 1.0), (2.0, 0.5)])
def test_the_gradient_takes_the_focus_factor_as_a_constant(temperature, focus):
    """d/dz of the divergence alone is (q_S - q_t) / tau; the last class is one on which both agree."""
    student = torch.tensor([[1.5, -2.0, 0.3, -1.0], [-4.0, 3.0, 0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[-0.5, 1.0, 2.3, -1.0], [-1.0, -2.0, 1.0, 2.0]], dtype=torch.float64)
    sigmoid_kl(student, teacher, temperature, focus).sum().backward()
    for p, c in np.ndindex(2, 4):
        apart = sigmoid(student[p, c].item() / temperature) - sigmoid(teacher[p, c].item() / temperature)
        assert student.grad[p, c].item() == pytest.approx(abs(apart) ** focus * apart / temperature, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("switch", [
    {"mask": False}, {"reduction": "levels"}, {"loss": "mse"}, {"points": "all"}, {"score_thresh": 0.6},
    {"points": "all", "loss": "mse", "mask": False}], ids=str)
def test_switches_of_the_offset_term(switch):
    case = Case((5, 8, 1), seed=4)
    expected = case.offsets(**switch)
    assert case.run(loss_of(config_of({"offsets": switch})))[1]["offsets_t0"] == pytest.approx(expected, rel=2e-6)
    assert abs(expected / case.offsets() - 1) > 0.01


@pytest.mark.parametrize("term", ["stem", "pyramid", "inputs"])
def test_mask_of_the_feature_terms(term):
    case = Case((5, 8, 1), seed=3)
    masked, whole = (case.run(loss_of(config_of({term: {"mask": m, "weight": 1.0}})))[1][f"{term}_t0"] for m in (True, False))
    assert masked == pytest.approx(case.mse(term, mask=case.mask_BP if term == "pyramid" else case.mask_BT), rel=2e-6)
    assert whole == pytest.approx(case.mse(term), rel=2e-6)
    assert abs(masked / whole - 1) > 0.01


def test_confident_points_are_positives_and_points_above_the_threshold():
    """Three points by hand: below the threshold, below it but positive, above it."""
    case, config = Case((8,)), config_of({"offsets": {"loss": "mse", "score_thresh": 0.5}})
    teacher = case.teachers[0]
    teacher.logits.fill_(-40)
    case.positive_BP.fill_(False)
    teacher.logits[0, :3, 1] = torch.tensor([-1.0, -1.0, 2.0])
    case.positive_BP[0, 1] = True
    case.outputs.offsets[0, :3] = torch.tensor([[1.0, 1.0], [1.0, 3.0], [2.0, 0.0]])
    teacher.offsets[0, :3] = torch.tensor([[9.0, 9.0], [2.0, 3.0], [2.0, 6.0]])
    low, high = sigmoid(-1), sigmoid(2)
    expected = (low * (1 + 0) / 2 + high * (0 + 36) / 2) / (low + high)
    assert case.run(loss_of(config))[1]["offsets_t0"] == pytest.approx(expected, rel=1e-6)


def test_without_a_confident_point_the_offset_term_is_zero_with_a_finite_gradient():
    case = Case((8, 8))
    case.teachers[0].logits.fill_(-40)
    case.positive_BP.fill_(False)
    offsets = case.outputs.offsets.requires_grad_()
    loss = loss_of(config_of({}))
    total, values = losses_of_terms(loss, case.outputs, case.features, case.mask_BT, case.positive_BP, case.teachers[:1])
    assert values["offsets_t0"].item() == 0
    total.backward()
    assert float(offsets.grad.abs().sum()) == 0


def test_unused_points_get_no_gradient():
    case = Case((5, 8))
    logits, offsets = case.outputs.logits.requires_grad_(), case.outputs.offsets.requires_grad_()
    loss = loss_of(config_of({}))
    total, _ = losses_of_terms(loss, case.outputs, case.features, case.mask_BT, case.positive_BP, case.teachers[:1])
    total.backward()
    assert bool((logits.grad[~case.mask_BP] == 0).all())
    assert bool((logits.grad[case.mask_BP] != 0).all())
    score = torch.sigmoid(case.teachers[0].logits).amax(-1)
    used = case.mask_BP & (case.positive_BP | (score > 0.1))
    assert bool((offsets.grad[~used] == 0).all())
    assert bool((offsets.grad[used].abs().sum(-1) > 0).all())
    assert 0 < int(used.sum()) < int(case.mask_BP.sum())


def test_segments_without_length_on_both_sides_agree():
    """ReLU gives offsets of exactly (0, 0); a student that says what its teacher says costs nothing there either."""
    case = Case((8, 8))
    case.outputs.offsets.copy_(case.teachers[0].offsets)
    for offsets in (case.outputs.offsets, case.teachers[0].offsets):
        offsets[:, ::2] = 0
    case.positive_BP.fill_(True)
    student = case.outputs.offsets.requires_grad_()
    loss = loss_of(config_of({}))
    total, values = losses_of_terms(loss, case.outputs, case.features, case.mask_BT, case.positive_BP, case.teachers[:1])
    assert values["offsets_t0"].item() == 0
    total.backward()
    assert bool((student.grad == 0).all())


def test_extreme_logits_keep_the_class_term_finite():
    case = Case((8,))
    case.outputs.logits.fill_(200.0)
    case.teachers[0].logits.fill_(-200.0)
    values = case.run(loss_of(config_of({"cls": {"temperature": 1.0}})))[1]
    assert values["cls_t0"] == pytest.approx(K * 200.0, rel=1e-6)  # p = 0: -log(1 - sigmoid(200)) = 200 per class


def test_half_precision_outputs_give_a_float32_loss():
    case = Case((5, 8))
    half = case.outputs._replace(logits=case.outputs.logits.half(), offsets=case.outputs.offsets.half())
    features = Features(*(x.half() for x in case.features[:2]), tuple(x.half() for x in case.features.levels))
    total, _ = losses_of_terms(loss_of(config_of({})), half, features, case.mask_BT, case.positive_BP, case.teachers[:1])
    assert total.dtype is torch.float32
    assert float(total) == pytest.approx(case.run(loss_of(config_of({})))[0], rel=5e-3)


@pytest.mark.parametrize("preset", ["corrected", "c2ms"])
def test_defaults_of_the_presets(preset):
    settings = resolve(config_of({"preset": preset}))
    switches = {name: getattr(settings, name) for name in TERMS}
    corrected = preset == "corrected"
    assert {name: t.mask for name, t in switches.items()} == dict.fromkeys(TERMS, corrected)
    cls = settings.cls
    assert (cls.loss, cls.temperature, cls.focus) == (("sigmoid_kl", 1.0, 1.0) if corrected else ("softmax_kl", TAU, 0.0))
    weights = (100.0, 1.0, 0.0, 0.0, 1.0) if corrected else (1.0, 1.0, 1.0, 0.0, 1.0)
    assert {name: t.weight for name, t in switches.items()} == dict(zip(TERMS, weights, strict=True))
    assert (settings.offsets.loss, settings.offsets.points) == (("diou", "confident") if corrected else ("mse", "all"))
    assert {settings.cls.reduction, settings.offsets.reduction} == {"points" if corrected else "levels"}
    assert (settings.det_weight, settings.weight) == ((1.0, 1.0) if corrected else (0.4, 0.6))


def test_what_the_configuration_says_wins_over_the_preset():
    config = config_of({"preset": "c2ms", "stage": "cross_modal", "weight": 0.0, "det_weight": 2.0, "cls": {"mask": True},
                        "teachers": [{"checkpoint": "x", "terms": {"cls": 0.3}}]})
    settings = resolve(config)
    assert (settings.weight, settings.det_weight, settings.cls.mask, settings.cls.loss) == (0.0, 2.0, True, "softmax_kl")
    assert settings.teachers[0].terms == dict.fromkeys(TERMS, 0.0) | {"cls": 0.3}
    assert Case((8,)).run(loss_of(config)) == (0.0, {})


def test_factors_of_teachers_multiply_the_weights():
    entries = [{"name": "a", "checkpoint": "x", "terms": {"cls": 0.25}},
               {"name": "b", "checkpoint": "x", "terms": {"cls": 2.0, "stem": 3.0}}]
    case = Case((5, 8))
    weights = {"cls": {"weight": 10}, "stem": {"weight": 0.5}, "weight": 2}
    total, values = case.run(loss_of(config_of({"teachers": entries, **weights})))
    assert set(values) == {"cls_a", "cls_b", "stem_b"}
    assert values["stem_b"] == pytest.approx(case.mse("stem", 1, case.mask_BT), rel=2e-6)
    expected = 2 * (10 * (0.25 * values["cls_a"] + 2 * values["cls_b"]) + 0.5 * 3 * values["stem_b"])
    assert total == pytest.approx(expected, rel=2e-6)


def test_a_student_that_hallucinates_nothing_has_no_input_term():
    settings = resolve(config_of({}, model={"modalities": ["rgb"]}))
    assert settings.inputs.weight == 0
    assert resolve(config_of({})).inputs.weight > 0


@pytest.mark.parametrize(("widths", "wanted"), [
    ([(4, 4), (4, 4)], {}), ([(4, 4), (7, 4)], {"t1_stem": (7, 4)}),
    ([(5, 6), (4, 4)], {"t0_stem": (5, 4), "t0_pyramid": (6, 4)})])
def test_projections_only_where_widths_differ(widths, wanted):
    loss = loss_of(config_of({"stem": {"weight": 1.0}, "pyramid": {"weight": 1.0}}, teachers=2), widths=widths)
    assert {n: tuple(p.weight.shape) for n, p in loss.projections.items()} == wanted
    assert {k.split(".")[0] for k in loss.state_dict()} == ({"projections"} if wanted else set())


def test_no_projection_for_a_term_without_weight():
    assert list(loss_of(config_of({}), widths=[(9, 9)]).parameters()) == []  # corrected: feature terms are off
    assert list(loss_of(config_of({"stem": {"weight": 1}}), widths=[(9, 9)]).projections) == ["t0_stem"]


def test_the_projected_student_is_compared():
    only = {term: {"weight": 0} for term in ("cls", "offsets", "inputs")} | {"pyramid": {"weight": 1}}
    case, loss = Case((5, 8)), loss_of(config_of(only), widths=[(WIDTH, 5)])
    P = sum(SIZES)
    wide = torch.randn(2, P, 5, generator=torch.Generator().manual_seed(5))
    case.teachers[0] = case.teachers[0]._replace(pyramid=wide)
    projection = loss.projections["t0_pyramid"]
    w, bias, x = projection.weight.detach().double().numpy(), projection.bias.detach().double().numpy(), case.student("pyramid")
    found = [(bias[o] + sum(w[o, c] * x[b, p, c] for c in range(WIDTH)) - float(wide[b, p, o])) ** 2
             for b, p, o in np.ndindex(2, P, 5) if case.mask_BP[b, p]]
    assert case.run(loss)[1] == pytest.approx({"pyramid_t0": sum(found) / len(found)}, rel=2e-6)


@pytest.mark.parametrize("preset", ["corrected", "c2ms"])
def test_padded_length_counts_only_in_the_published_preset(preset):
    """Two videos of 40 and 23 steps padded to 64 and to 128: real networks, all five terms."""
    width = {"embd_dim": 8, "fpn_dim": 8, "head_dim": 8}
    weights = {"stem": {"weight": 1.0}, "pyramid": {"weight": 1.0}}
    config = config_of({"preset": preset, **weights}, model=RGB_ONLY | width)
    teacher = show_every_term(build_model(config_of({}, model=width)), 1).eval()
    student = show_every_term(build_model(config), 2).eval()
    loss, totals = loss_of(config, 8, 8), []
    for padded in (64, 128):
        feats, mask = padded_batch([40, 23], padded)
        with torch.no_grad():
            own, features = student.trace(feats[..., :3], mask)
            its, seen = teacher.trace(feats, mask)
        said = TeacherOutputs(its.logits, its.offsets, seen.stem, torch.cat(seen.levels, 1), seen.inputs)
        total, values = losses_of_terms(loss, own, features, mask, torch.zeros_like(own.mask), [said])
        assert len(values) == 5
        totals.append(torch.stack([total, *values.values()]).double())
    relative = ((totals[0] - totals[1]) / totals[0]).abs()
    if preset == "corrected":
        assert float(relative.max()) < 1e-6
    else:
        assert all(float(r) > 0.01 for n, r in zip(("total", *values), relative, strict=True) if n != "cls_t0")
        assert float(relative[1]) < 1e-6  # a sum over points, and logits of padded points are 0 on both sides
