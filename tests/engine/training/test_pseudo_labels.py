"""distill.pseudo_labels: videos without annotations are trained on the first teacher's best detections."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from distill_cases import MORE, RGB_ONLY, move_more, save_teacher, student, two_stream
from helpers import FPS, NUM_FRAMES, STRIDE, Data, identical, write_data
from resuming import unplaced

from libs.core.errors import UserError
from libs.datasets.dataset import TalDataset
from libs.engine.distill.streams import streams_to_read
from libs.engine.distill.teachers import load_teachers
from libs.engine.inference.predict import predict
from libs.engine.runs.checkpoint import load_checkpoint
from libs.engine.runs.network import load_network
from libs.engine.training.fit import FitOptions, fit
from libs.engine.training.pseudo_labels import annotate
from libs.modeling.losses.distillation import resolve
from libs.utils.evaluation.predictions import Detections, read_predictions

CPU = torch.device("cpu")
# MORE has 23 and 70 steps
WITH = {"t0": (40, 4), "t2": (31, 3), "t4": (12, 1), "t5": (33, 3)}  # labelled: steps, actions


def seconds(steps: int) -> float:
    """The time of the middle of the window after the last one, where the grid of so many steps ends."""
    return (steps * STRIDE + NUM_FRAMES / 2) / FPS


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    made = write_data(tmp_path_factory.mktemp("data"))
    made.edit(move_more)
    return made


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    return save_teacher(two_stream(data, folder, unlabelled_split=["more"]), folder / "teacher.pth.tar", seed=1)


def taught(data, folder, teachers, amount, **sections):
    distill = {"pseudo_labels": amount, **sections.pop("distill", {})}
    return student(data, folder, teachers, **{"model": RGB_ONLY, "unlabelled_split": ["more"], "distill": distill, **sections})


def annotated(config) -> TalDataset:
    teachers = load_teachers(config, resolve(config), CPU)
    dataset = TalDataset(config, config.train_split, True, streams_to_read(config, [t.config for t in teachers]))
    annotate(dataset, config, teachers, CPU)
    return dataset


def all_detections(data, folder, path) -> Detections:
    """What the teacher's averaged weights find in the two videos, by way of an evaluation of the subset."""
    data_of_both = write_data(folder / "both")
    data_of_both.edit(lambda document: [document["database"][v].update(subset="more") for v in MORE])
    paths = {"json_file": str(data_of_both.annotations), "feat_folder": str(data.features)}
    config = two_stream(data, folder, val_split=["more"], dataset=paths)
    model = load_network(config, load_checkpoint(path), "ema")
    return predict(model, TalDataset(config, ["more"], False), config, CPU)


@pytest.mark.parametrize("amount", [0.5, 1.0, 2.0])
def test_as_many_per_second_as_in_the_annotated_videos_and_the_best(data, teacher, tmp_path, amount):
    found = annotated(taught(data, tmp_path, [teacher], amount)).pseudo_labels
    rate = sum(n for _, n in WITH.values()) / sum(seconds(steps) for steps, _ in WITH.values())
    assert len(found) == round(amount * rate * (seconds(23) + seconds(70)))
    everything = all_detections(data, tmp_path, teacher)
    assert len(everything) > len(found) + 5
    rows = set(zip(*(getattr(everything, c).tolist() for c in ("video_id", "t_start", "t_end", "label", "score")), strict=True))
    chosen = set(zip(*(getattr(found, c).tolist() for c in ("video_id", "t_start", "t_end", "label", "score")), strict=True))
    assert chosen < rows
    assert found.score.min() >= max(row[-1] for row in rows - chosen)


def test_they_are_the_annotations_of_their_videos(data, teacher, tmp_path):
    dataset = annotated(taught(data, tmp_path, [teacher], 2.0))
    assert dataset.unlabelled_ids == frozenset()
    for i, video in enumerate(dataset.videos):
        sample = dataset.sample(i)
        assert sample.labelled
        if video.id in MORE:
            own = dataset.pseudo_labels.take(dataset.pseudo_labels.video_id == video.id)
            grid = (np.stack([own.t_start, own.t_end], 1) * FPS - NUM_FRAMES / 2) / STRIDE
            np.testing.assert_allclose(sample.segments.numpy(), grid, rtol=1e-5, atol=1e-5)
            assert sample.labels.tolist() == own.label.tolist()
        else:
            assert len(sample.segments) == WITH[video.id][1]


def test_a_video_without_any_stays_unlabelled(data, teacher, tmp_path):
    dataset = annotated(taught(data, tmp_path, [teacher], 0.07))
    assert len(dataset.pseudo_labels) == 1
    (named,) = dataset.pseudo_labels.video_id.tolist()
    assert dataset.unlabelled_ids == {*MORE} - {named}
    assert [s.labelled for s in map(dataset.sample, range(6))] == [v.id not in dataset.unlabelled_ids for v in dataset.videos]


def test_the_first_of_several_teachers_annotates(data, teacher, tmp_path):
    other = save_teacher(two_stream(data, tmp_path, unlabelled_split=["more"]), tmp_path / "other.pth.tar", seed=5)
    alone, first, second = (annotated(taught(data, tmp_path, teachers, 1.0)).pseudo_labels
                            for teachers in ([teacher], [teacher, other], [other, teacher]))
    assert alone.score.tolist() == first.score.tolist() != second.score.tolist()


@pytest.mark.parametrize("all_annotated", [False, True])
def test_nothing_is_done_where_nothing_is_asked_or_all_are_annotated(data, teacher, tmp_path, all_annotated, monkeypatch):
    monkeypatch.setattr("libs.engine.training.pseudo_labels.predict", None)
    config = taught(data, tmp_path, [teacher], 0.0)
    if all_annotated:
        config = taught(write_data(tmp_path / "data"), tmp_path, [teacher], 1.0, unlabelled_split=[])
    assert len(annotated(config).pseudo_labels) == 0


def test_videos_beyond_the_labelled_share(tmp_path):
    made = write_data(tmp_path / "data")
    its = save_teacher(two_stream(made, tmp_path), tmp_path / "teacher.pth.tar", seed=1)
    config = taught(made, tmp_path, [its], 1.0, unlabelled_split=[], train_cfg={"labelled_share": 0.5})
    dataset = annotated(config)
    own = TalDataset(config, config.train_split, True)
    assert len(own.unlabelled_ids) == 3
    assert set(dataset.pseudo_labels.video_id.tolist()) <= own.unlabelled_ids
    for a, b in zip(dataset.videos, own.videos, strict=True):
        if a.id not in own.unlabelled_ids:
            assert a.segments.tolist() == b.segments.tolist()


def test_without_an_annotated_action_it_is_unknown_how_many_to_take(teacher, tmp_path):
    made = write_data(tmp_path / "data")
    made.edit(lambda document: [v.update(subset="more") if name in MORE else v.update(annotations=[])
                                for name, v in document["database"].items() if name.startswith("t")])
    with pytest.raises(UserError, match=r"distill\.pseudo_labels: none of the annotated videos .* set it to 0, or annotate"):
        annotated(taught(made, tmp_path, [teacher], 1.0))


def weights_after(config, folder, **options):
    fit(config, folder, CPU, FitOptions(**options))
    content = unplaced(torch.load(folder / "epoch_002.pth.tar", weights_only=True))
    return {k: content[k] for k in ("state_dict", "state_dict_ema", "optimizer")}


@pytest.mark.parametrize("outputs", ["online", "cache"])
def test_training_with_them_writes_them_and_resumes_exactly(data, teacher, tmp_path, capsys, outputs):
    sections = {"dataset": {"crop_ratio": [0.6, 0.9], "crop_align": 4}, "distill": {"outputs": outputs}, "opt": {"epochs": 2}}
    config = taught(data, tmp_path, [teacher], 1.0, **sections)
    whole = weights_after(config, tmp_path / "whole", checkpoint_every=1)
    shown = capsys.readouterr().out
    written = read_predictions(tmp_path / "whole" / "pseudo_labels.json", {f"class {i}": i for i in range(3)})
    made = annotated(config).pseudo_labels
    assert (written.label.tolist(), written.t_start.tolist()) == (made.label.tolist(), pytest.approx(made.t_start.tolist()))
    assert f"pseudo-labels: {len(made)} with scores from {made.score.min():.3f} on, in pseudo_labels.json" in shown
    resumed = weights_after(config, tmp_path / "resumed", resume=str(tmp_path / "whole" / "epoch_001.pth.tar"))
    assert identical(whole, resumed) == []
    without = weights_after(taught(data, tmp_path, [teacher], 0.0, **sections), tmp_path / "without")
    assert identical(whole, without) != []


def test_a_teacher_that_drops_paths_goes_on_doing_so(data, teacher, tmp_path):
    config = taught(data, tmp_path, [teacher], 1.0, distill={"teacher_droppath": True})
    teachers = load_teachers(config, resolve(config), CPU)
    before = {name: module.training for name, module in teachers[0].model.named_modules()}
    annotate(TalDataset(config, config.train_split, True), config, teachers, CPU)
    assert {name: module.training for name, module in teachers[0].model.named_modules()} == before
    assert any(before.values())
