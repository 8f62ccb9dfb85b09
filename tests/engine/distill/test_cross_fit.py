"""Teachers with cross_fit: every video is taught by the network that has not seen it, and wrong networks are refused."""
from __future__ import annotations

import distill_cases
import pytest
import torch
from distill_cases import CPU, RGB_ONLY, Setup, save_teacher, student, two_stream
from helpers import TRAINING

from libs.core.errors import UserError
from libs.datasets.dataset import TalDataset
from libs.engine.distill.teachers import load_teachers, run_teacher
from libs.engine.training.fit import FitOptions, fit
from libs.modeling.losses.distillation import resolve

PARTS = 3
data = distill_cases.data


@pytest.fixture
def teachers(data, tmp_path):
    """An entry of distill.teachers whose three networks have random weights of their own."""
    for part in range(PARTS):
        write_part(data, tmp_path, part)
    return {"checkpoint": f"{tmp_path}/part{{part}}.pth.tar", "cross_fit": PARTS}


def write_part(data, tmp_path, part, leave_out=None, **sections):
    train_cfg = {"leave_out": [part, PARTS] if leave_out is None else leave_out}
    save_teacher(two_stream(data, tmp_path, train_cfg=train_cfg, **sections), tmp_path / f"part{part}.pth.tar", seed=part)


def taught(data, tmp_path, entry, **sections):
    distill = {"outputs": "cache", **sections.pop("distill", {})}
    return student(data, tmp_path, [entry], distill=distill, model=RGB_ONLY, dataset={"crop_align": 4}, **sections)


def single(network, feats, mask):
    return run_teacher(network, feats, mask, None).logits


def test_every_video_is_taught_by_the_network_that_has_not_seen_it(data, teachers, tmp_path):
    setup = Setup(taught(data, tmp_path, teachers))
    networks = setup.teachers[0].parts
    assert setup.made == len(TRAINING)
    used = set()
    for batch in setup.batches:
        said = setup.objective.teacher_outputs(batch)[0].logits
        for b, sample in enumerate(batch.samples):
            trained_on = [{v.id for v in TalDataset(n.config, n.config.train_split, True).videos} for n in networks]
            unseen, = (k for k, ids in enumerate(trained_on) if sample.video_id not in ids)
            used.add(unseen)
            whole = TalDataset(networks[0].config, ["training"], False)
            i = [v.id for v in whole.videos].index(sample.video_id)
            feats = torch.zeros(1, batch.mask.shape[1], 6)
            whole.read(whole.sample(i), feats[0, :sample.steps])
            mask = batch.mask[b:b + 1]
            with torch.no_grad():
                expected = [single(network, feats, mask)[0, :sample.steps] for network in networks]
            torch.testing.assert_close(said[b, :sample.steps], expected[unseen], rtol=1e-4, atol=1e-5)
            assert all((said[b, :sample.steps] - e).abs().max() > 1e-2 for k, e in enumerate(expected) if k != unseen)
    assert used == {0, 1, 2}


def test_a_video_that_none_has_seen_is_taught_by_the_mean(data, tmp_path):
    for part in range(2):
        config = two_stream(data, tmp_path, train_cfg={"leave_out": [part, 2], "labelled_share": 0.5})
        save_teacher(config, tmp_path / f"half{part}.pth.tar", seed=part)
    entry = {"checkpoint": f"{tmp_path}/half{{part}}.pth.tar", "cross_fit": 2}
    setup = Setup(taught(data, tmp_path, entry, train_cfg={"labelled_share": 0.5}))
    alone = [Setup(taught(data, tmp_path, {"checkpoint": str(tmp_path / f"half{part}.pth.tar")})) for part in range(2)]
    seen = setup.teachers[0].part_of
    assert len(seen) == 3
    for batches in zip(setup.batches, *(a.batches for a in alone), strict=True):
        said, first, second = (s.objective.teacher_outputs(b)[0] for s, b in zip([setup, *alone], batches, strict=True))
        for b, video in enumerate(batches[0].video_ids):
            for name in ("logits", "offsets"):
                ours, one, other = (getattr(x, name)[b] for x in (said, first, second))
                expected = (one, other)[seen[video]] if video in seen else (one + other) / 2
                torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_cache_belongs_to_all_networks(data, teachers, tmp_path):
    def made():
        setup = Setup(taught(data, tmp_path, teachers))
        return setup.made, setup.objective.teacher_outputs.cached[0].folder

    first = made()
    assert made() == (0, first[1])
    save_teacher(two_stream(data, tmp_path, train_cfg={"leave_out": [2, PARTS]}), tmp_path / "part2.pth.tar", seed=9)
    again = made()
    assert (again[0], again[1] != first[1]) == (len(TRAINING), True)


def test_a_student_trains_and_starts_from_the_first_network(data, teachers, tmp_path, capsys):
    config = taught(data, tmp_path, teachers, distill={"init_from": "teacher"})
    fit(config, tmp_path / "run", CPU, FitOptions())
    assert "part0.pth.tar (ema weights): copied" in capsys.readouterr().out
    assert (tmp_path / "run" / "epoch_001.pth.tar").is_file()


@pytest.mark.parametrize(("part", "changes", "fragments"), [
    (1, {"leave_out": [2, 3]}, ["part1.pth.tar", "leave_out: [2, 3]", "part 1 of cross_fit: 3", "leave_out: [1, 3]"]),
    (0, {"leave_out": [0, 4]}, ["part0.pth.tar", "leave_out: [0, 4]", "cross_fit: 3"]),
    (2, {"model": {"head_dim": 16}}, ["part2.pth.tar", "model.head_dim: 16", "part 0 with 8", "leave_out alone"]),
    (2, {"train_split": ["training", "more"]}, ["part2.pth.tar", "train_split", "leave_out alone"]),
], ids=["wrong part", "other number", "other network", "other split"])
def test_wrong_networks_are_refused(data, teachers, tmp_path, part, changes, fragments):
    write_part(data, tmp_path, part, **changes)
    config = taught(data, tmp_path, teachers)
    with pytest.raises(UserError) as error:
        load_teachers(config, resolve(config), CPU)
    for fragment in ["tiny.yaml: distill.teachers: teacher: checkpoint: ", *fragments]:
        assert fragment in str(error.value)


def test_networks_that_left_nothing_out_or_saw_other_videos_are_refused(data, teachers, tmp_path):
    config = taught(data, tmp_path, teachers)
    save_teacher(two_stream(data, tmp_path), tmp_path / "part1.pth.tar")
    with pytest.raises(UserError, match=r"part1\.pth\.tar: was trained with train_cfg\.leave_out: null, but stands for part 1"):
        load_teachers(config, resolve(config), CPU)
    for part in range(PARTS):
        config = two_stream(data, tmp_path, train_cfg={"leave_out": [part, PARTS], "labelled_share": 0.5})
        save_teacher(config, tmp_path / f"part{part}.pth.tar")
    config = taught(data, tmp_path, teachers)
    with pytest.raises(UserError, match=r"trained on other videos than the student: 3 are in no part .*labelled_share equal"):
        load_teachers(config, resolve(config), CPU)
    config = taught(data, tmp_path, teachers, train_cfg={"labelled_share": 0.5})
    assert len(load_teachers(config, resolve(config), CPU)[0].part_of) == 3


@pytest.mark.parametrize("term", ["stem", "pyramid"])
def test_features_of_several_networks_are_not_compared(data, teachers, tmp_path, term):
    with pytest.raises(UserError, match=rf"tiny\.yaml: distill\.{term}: .*cross_fit.*set the weight, or its factor, to 0"):
        Setup(taught(data, tmp_path, teachers, distill={term: {"weight": 1.0}}))
