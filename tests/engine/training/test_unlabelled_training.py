"""Training with videos whose annotations are not used: no detection loss from them, teachers' terms on them, nothing else."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from distill_cases import MORE, RGB_ONLY, move_more, save_teacher, student, two_stream
from helpers import Data, identical, show_every_term, write_data
from resuming import unplaced
from steps import detection_losses, losses_of

from libs.datasets.dataset import TalDataset
from libs.datasets.loading.batch import read_batch
from libs.engine.distill.streams import streams_to_read
from libs.engine.distill.teachers import load_teachers
from libs.engine.training.fit import FitOptions, fit
from libs.engine.training.objective import DistillationObjective
from libs.modeling.losses.detection import DetectionLoss
from libs.modeling.losses.distillation import resolve
from libs.modeling.model import build_model

CPU = torch.device("cpu")
STRIDES = (1, 2, 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    made = write_data(tmp_path_factory.mktemp("data"))
    made.edit(lambda document: move_more(document))
    return made


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    return save_teacher(two_stream(data, folder, unlabelled_split=["more"]), folder / "teacher.pth.tar", seed=1)


def taught(data, folder, teacher, **sections):
    return student(data, folder, [teacher], **{"model": RGB_ONLY, "unlabelled_split": ["more"], **sections})


class Setup:
    """The objective of a configuration, in evaluation mode, and batches of chosen videos padded to 72 steps."""

    def __init__(self, config):
        torch.manual_seed(0)
        settings = resolve(config)
        self.config, self.teachers = config, load_teachers(config, settings, CPU)
        read = streams_to_read(config, [t.config for t in self.teachers])
        self.dataset = TalDataset(config, config.train_split, True, read)
        self.model = show_every_term(build_model(config), 5)
        self.objective = DistillationObjective(self.model, config, settings, self.teachers, read).eval()

    def batch(self, *videos):
        ids = [v.id for v in self.dataset.videos]
        return read_batch(self.dataset, [self.dataset.sample(ids.index(v)) for v in videos], 72)

    def gradients(self, loss):
        return torch.autograd.grad(loss, list(self.model.parameters()), allow_unused=True, retain_graph=True)


def valid_points(batch):
    return torch.cat([batch.mask[:, ::s] for s in STRIDES], dim=1)


@pytest.mark.parametrize("loss_weight", [1.0, -1.0])
def test_the_detection_loss_is_that_of_the_labelled_videos_alone(data, teacher, tmp_path, loss_weight):
    """Values and gradients of a batch (labelled, unlabelled, labelled) are those of the two labelled ones but for the normaliser,
    which counts 3 / 2 of their positives, as if all three had annotations."""
    config = taught(data, tmp_path, teacher, distill={"weight": 0.0}, train_cfg={"loss_weight": loss_weight})
    setup = Setup(config)
    mixed, alone = setup.batch("t0", "t3", "t2"), setup.batch("t0", "t2")
    assert mixed.present.any(1).tolist() == [True, False, True]
    criterion = DetectionLoss(config)
    outputs = setup.model(alone.feats[..., :3], alone.mask)
    wanted = detection_losses(criterion, outputs, alone.segments, alone.labels, alone.present)
    positives = int(((criterion.assign(outputs.points, alone.segments, alone.labels, alone.present).classes.sum(-1) > 0)
                     & outputs.mask).sum())
    assert criterion.normalizer.item() == pytest.approx(0.9 * 20 + 0.1 * positives)
    found, normalizer = losses_of(setup.objective, mixed), 0.9 * 20 + 0.1 * positives * 3 / 2
    assert setup.objective.criterion.normalizer.item() == pytest.approx(normalizer)
    scale = (0.9 * 20 + 0.1 * positives) / normalizer
    assert scale < 0.98
    for name in ("cls_loss", "reg_loss"):
        assert found.terms[name].item() == pytest.approx(scale * wanted.terms[name].item(), rel=1e-5)
    assert found.terms["det_loss"].item() == pytest.approx(scale * wanted.final.item(), rel=1e-5)
    assert found.final.item() == found.terms["det_loss"].item()  # no other term has a weight
    for a, b in zip(setup.gradients(found.final), setup.gradients(wanted.final), strict=True):
        torch.testing.assert_close(a, scale * b, rtol=1e-4, atol=1e-6)
    outputs = setup.model(mixed.feats[..., :3], mixed.mask)
    background = detection_losses(DetectionLoss(config), outputs, mixed.segments, mixed.labels, mixed.present)
    assert background.terms["cls_loss"].item() > 1.1 * wanted.terms["cls_loss"].item()  # what it would cost as background


def test_an_unlabelled_video_gets_no_gradient_from_the_detection_loss(data, teacher, tmp_path):
    setup = Setup(taught(data, tmp_path, teacher, distill={"weight": 0.0}))
    batch = setup.batch("t0", "t3")
    batch.feats.requires_grad_()
    losses_of(setup.objective, batch).final.backward()
    assert bool((batch.feats.grad[1] == 0).all())
    assert float(batch.feats.grad[0].abs().max()) > 0


def test_a_batch_without_labels_has_no_detection_loss_and_leaves_the_normaliser(data, teacher, tmp_path):
    setup = Setup(taught(data, tmp_path, teacher))
    losses = losses_of(setup.objective, setup.batch("t1", "t3"))
    assert {k: losses.terms[k].item() for k in ("cls_loss", "reg_loss", "det_loss")} == {
        "cls_loss": 0, "reg_loss": 0, "det_loss": 0}
    assert setup.objective.criterion.normalizer.item() == 20
    losses.final.backward()
    gradients = [p.grad for p in setup.model.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    assert losses.final.item() > 0.1


def test_teachers_speak_about_all_videos(data, teacher, tmp_path):
    """The class term is the mean over the valid points of both videos, each point by hand in float64 (focus 1)."""
    setup = Setup(taught(data, tmp_path, teacher))
    batch = setup.batch("t0", "t3")
    with torch.no_grad():
        own = setup.model(batch.feats[..., :3], batch.mask).logits.double().sigmoid().numpy()
        its = setup.teachers[0].model(batch.feats, batch.mask).logits.double().sigmoid().numpy()
    costs = []
    for b, mask in enumerate(valid_points(batch).numpy()):
        points = [p for p in range(len(mask)) if mask[p]]
        costs.append([sum(abs(q - r) * (q * math.log(q / r) + (1 - q) * math.log((1 - q) / (1 - r)))
                          for q, r in zip(its[b, p], own[b, p], strict=True)) for p in points])
    assert [len(c) for c in costs] == [40 + 20 + 10, 70 + 35 + 18]
    terms = losses_of(setup.objective, batch).terms
    assert terms["cls_teacher"].item() == pytest.approx(np.mean(costs[0] + costs[1]), rel=1e-5)
    assert terms["cls_teacher"].item() != pytest.approx(np.mean(costs[0]), rel=1e-2)
    batch.feats.requires_grad_()
    losses_of(setup.objective, batch).terms["cls_teacher"].backward()
    assert all(float(g.abs().max()) > 0 for g in batch.feats.grad)


def test_only_confident_points_teach_offsets_on_an_unlabelled_video(data, teacher, tmp_path):
    """No score exceeds a threshold of 1, and without ground truth there are no positives; with it there are."""
    setup = Setup(taught(data, tmp_path, teacher, distill={"offsets": {"score_thresh": 1.0}}))
    assert losses_of(setup.objective, setup.batch("t1", "t3")).terms["offsets_teacher"].item() == 0
    assert losses_of(setup.objective, setup.batch("t0", "t3")).terms["offsets_teacher"].item() > 0
    setup = Setup(taught(data, tmp_path, teacher))
    assert losses_of(setup.objective, setup.batch("t1", "t3")).terms["offsets_teacher"].item() > 0


def weights_of(config, folder):
    fit(config, folder, CPU, FitOptions())
    content = unplaced(torch.load(folder / "epoch_001.pth.tar", weights_only=True))
    return {k: content[k] for k in ("state_dict", "state_dict_ema", "optimizer")}


@pytest.mark.parametrize("outputs", ["online", "cache"])
def test_their_annotations_change_nothing(tmp_path, capsys, outputs):
    """The same bits, whether the unlabelled subset is annotated or not."""
    found = []
    for annotated in (False, True):
        folder = tmp_path / str(annotated)
        made = write_data(folder)
        made.edit(lambda document, annotated=annotated: move_more(document, annotated))
        teacher = save_teacher(two_stream(made, folder), folder / "teacher.pth.tar", seed=1)
        sections = {"dataset": {"crop_ratio": [0.6, 0.9], "crop_align": 4}, "distill": {"outputs": outputs}}
        found.append(weights_of(taught(made, folder, teacher, **sections), folder / "run"))
        shown = capsys.readouterr().out
        assert "6 videos, 3 iterations per epoch" in shown
        assert ("computed the teacher outputs of 6 videos" in shown) is (outputs == "cache")
    assert identical(*found) == []


def test_plain_training_is_as_if_they_were_not_there(data, tmp_path, capsys):
    runs = [weights_of(two_stream(data, tmp_path, unlabelled_split=["more"]), tmp_path / "named")]
    assert "4 videos, 2 iterations per epoch" in capsys.readouterr().out
    removed = write_data(tmp_path / "removed")
    removed.edit(lambda document: [document["database"].pop(video) for video in MORE])
    runs.append(weights_of(two_stream(removed, tmp_path), tmp_path / "without"))
    assert identical(*runs) == []


def test_a_share_of_labels_in_training(tmp_path, capsys):
    """A student goes through all six videos, plain training through the three that are labelled."""
    made = write_data(tmp_path / "data")
    teacher = save_teacher(two_stream(made, tmp_path), tmp_path / "teacher.pth.tar", seed=1)
    share = {"train_cfg": {"labelled_share": 0.5}}
    fit(student(made, tmp_path, [teacher], model=RGB_ONLY, **share), tmp_path / "student", CPU, FitOptions())
    assert "6 videos, 3 iterations per epoch" in capsys.readouterr().out
    fit(two_stream(made, tmp_path, **share), tmp_path / "alone", CPU, FitOptions())
    assert "3 videos, 1 iterations per epoch" in capsys.readouterr().out


def test_another_annotation_file_of_the_teacher(data, teacher, tmp_path):
    """The student's file has videos without annotations, the teacher's is another one with the same classes."""
    theirs = write_data(tmp_path / "theirs")
    its = save_teacher(two_stream(theirs, tmp_path), tmp_path / "its.pth.tar", seed=3)
    setup = Setup(taught(data, tmp_path, its))
    assert torch.isfinite(losses_of(setup.objective, setup.batch("t0", "t3")).final)
