"""train_cfg.swap_actions: actions with the features of another action of their class; what students and teachers see."""
from __future__ import annotations

import dataclasses
import math

import distill_cases
import pytest
import torch
from distill_cases import EVERY_TERM, RGB_ONLY, Setup, student
from helpers import identical, tiny_config
from resuming import whole_and_resumed
from steps import losses_of

from libs.core.errors import UserError
from libs.datasets.grid import plan_grid
from libs.datasets.loading.batch import Batch
from libs.datasets.loading.mixing import swap_actions
from libs.datasets.sample import Sample
from libs.engine.training.cuda_graphs import graphs_hint

data, teacher = distill_cases.data, distill_cases.teacher
FIRST = [((10, 50), 1), ((100.5, 120.25), 2), ((200, 240), 3), ((300, 340), 4), ((320, 360), 5)]  # 4 and 5 overlap
SECOND = [((20, 60), 1), ((70, 80), 1), ((150, 180), 2), ((200, 210), 4), ((220, 230), 5)]
LENGTHS = 400, 300
GRID, _ = plan_grid(400, 30.0, 1e8, feat_stride=1, num_frames=1)


def make(*videos: list, lengths: tuple[int, ...] = LENGTHS) -> Batch:
    """Videos whose two features are the number of the video and of the step, so that they tell where a vector comes from."""
    B, T, N = len(videos), max(lengths), max(len(v) for v in videos)
    feats = torch.stack([torch.tensor([[float(b), float(t)] for t in range(T)]) for b in range(B)])
    mask = torch.arange(T) < torch.tensor(lengths[:B])[:, None]
    segments, labels, present = torch.zeros(B, N, 2), torch.zeros(B, N, dtype=torch.int64), torch.zeros(B, N, dtype=torch.bool)
    samples = []
    for b, actions in enumerate(videos):
        n = len(actions)
        segments[b, :n] = torch.tensor([s for s, _ in actions]).view(n, 2)
        labels[b, :n], present[b, :n] = torch.tensor([c for _, c in actions], dtype=torch.int64), True
        samples.append(Sample(b, f"v{b}", GRID, 1e8, lengths[b], lengths[b], segments[b, :n], labels[b, :n]))
    return Batch(torch.where(mask[..., None], feats, 0.0), mask, segments, labels, present, tuple(samples))


def sources(batch: Batch, video: int, segment: tuple[float, float]) -> tuple[set[float], torch.Tensor]:
    """Where the vectors inside a segment come from: the videos, and the steps."""
    start, end = segment
    inside = batch.feats[video, math.ceil(start):math.ceil(end)]
    return set(inside[:, 0].tolist()), inside[:, 1]


def test_actions_take_the_features_of_one_of_their_class_stretched_to_their_length():
    batch = make(FIRST, SECOND)
    before = batch.feats.clone()
    torch.manual_seed(0)
    got = swap_actions(batch, 1.0)
    videos, steps = sources(got, 0, (100.5, 120.25))  # class 2: steps 101 to 120 lie 0.5 to 19.5 of 19.75 inside
    assert videos == {1.0}
    want = 150 + (torch.arange(101, 121) - 100.5) / 19.75 * 30
    torch.testing.assert_close(steps, want, rtol=0, atol=1e-4)
    videos, steps = sources(got, 1, (20, 60))  # class 1, as long as what it takes
    assert videos == {0.0}
    torch.testing.assert_close(steps, torch.arange(10.0, 50.0), rtol=0, atol=1e-4)
    _, steps = sources(got, 1, (70, 80))  # shorter: every fourth step
    torch.testing.assert_close(steps, torch.arange(10.0, 50.0, 4.0), rtol=0, atol=1e-4)

    changed = torch.zeros_like(batch.mask)
    for video, first, end in ((0, 10, 50), (0, 101, 121), (1, 20, 60), (1, 70, 80), (1, 150, 180)):
        changed[video, first:end] = True
    assert torch.equal(got.feats[~changed], before[~changed])  # background, the class of one video, overlapping actions, padding
    assert torch.equal(batch.feats, before)
    for name in ("mask", "segments", "labels", "present", "samples"):
        assert getattr(got, name) is getattr(batch, name)


def test_a_step_between_two_actions_belongs_to_the_second():
    """So no step is written twice, whose value would depend on the order."""
    got = swap_actions(make([((10, 50), 1), ((50, 90), 2)], [((20, 60), 1), ((150, 190), 2)]), 1.0)
    torch.testing.assert_close(got.feats[0, 48:52, 1], torch.tensor([58.0, 59.0, 150.0, 151.0]), rtol=0, atol=1e-4)


def test_an_overlapping_action_gives_no_features_either():
    """Class 4 of the second video stands alone, but what the first shows of it shows class 5, too."""
    batch = make(FIRST[3:], SECOND)
    assert torch.equal(swap_actions(batch, 1.0).feats, batch.feats)


def test_every_action_is_drawn_by_itself_and_so_is_what_it_takes():
    torch.manual_seed(1)
    batch = make([((10, 50), 1)], [((20, 60), 1), ((70, 80), 1)])
    taken = []
    for _ in range(400):
        videos, steps = sources(swap_actions(batch, 0.3), 0, (10, 50))
        taken.append(0 if videos == {0.0} else 1 if float(steps[0]) == 20 else 2)
    counts = torch.bincount(torch.tensor(taken), minlength=3)  # 280, 60 and 60 of 400 expected, standard deviations 9, 7 and 7
    assert abs(int(counts[0]) - 280) < 30
    assert all(abs(int(n) - 60) < 25 for n in counts[1:])


@pytest.mark.parametrize("videos", [[[], SECOND], [FIRST, []], [[], []], [[((5, 5), 1)], SECOND]], ids=str)
def test_videos_without_actions_are_left_alone(videos):
    batch = make(*videos)
    assert swap_actions(batch, 1.0) is batch


def test_segments_that_leave_the_video_read_no_padding():
    """A crop may cut an action: what lies outside is not there to be taken."""
    batch = make([((100, 140), 1)], [((270, 310), 1)])
    _, steps = sources(swap_actions(batch, 1.0), 0, (100, 140))
    torch.testing.assert_close(steps, torch.arange(270.0, 310.0).clamp(max=299), rtol=0, atol=1e-4)


def test_in_a_batch_of_one_actions_take_from_their_own_video():
    torch.manual_seed(0)
    batch = make(SECOND, lengths=(300,))
    taken = {float(sources(swap_actions(batch, 1.0), 0, (20, 60))[1][0]) for _ in range(20)}
    assert taken == {20.0, 70.0}


@pytest.mark.parametrize("training", [True, False])
def test_student_and_teachers_see_the_same_actions_in_training_only(data, teacher, tmp_path, monkeypatch, training):
    setup = Setup(student(data, tmp_path, [teacher], model=RGB_ONLY, train_cfg={"swap_actions": 1.0}))
    batch, seen, objective = setup.batches[0], {}, setup.objective.train(training)
    before, said, trace = batch.feats.clone(), objective.teacher_outputs, setup.model.trace
    objective.teacher_outputs = lambda b: [seen.setdefault("teachers", b.feats), said(b)][1]
    monkeypatch.setattr(setup.model, "trace", lambda feats, *grid: [seen.setdefault("student", feats), trace(feats, *grid)][1])
    losses_of(objective, batch)
    assert torch.equal(seen["student"], seen["teachers"][..., :3])
    assert torch.equal(seen["teachers"], before) is not training


def test_actions_are_swapped_before_videos_are_blended(data, teacher, tmp_path, monkeypatch):
    """A blend holds the swapped actions of both videos."""
    setup = Setup(student(data, tmp_path, [teacher], train_cfg={"swap_actions": 1.0}, distill={"mixup": 0.5}))
    batch, objective = setup.batches[0], setup.objective.train()
    torch.manual_seed(3)
    want = swap_actions(batch, 1.0)
    s = torch.rand(len(batch.feats), 1, 1) * 0.5
    torch.manual_seed(3)
    got = objective.prepare(batch).batch.feats
    blended = torch.where(batch.mask[..., None], (1 - s) * want.feats + s * want.feats.roll(1, 0), 0.0)
    torch.testing.assert_close(got, blended, rtol=0, atol=1e-6)
    assert not torch.equal(want.feats, batch.feats)


def test_stopped_and_resumed_equals_undisturbed(data, teacher, tmp_path, monkeypatch):
    config = student(data, tmp_path, [teacher], model=RGB_ONLY, train_cfg={"swap_actions": 0.5},
                     distill={**EVERY_TERM, "mixup": 0.3}, opt={"epochs": 3}, loader={"batch_size": 3})
    first, second = whole_and_resumed(config, tmp_path, monkeypatch, stop=2)
    assert identical(first, second) == []


def test_what_cannot_hold_swapped_actions_is_refused():
    with pytest.raises(UserError, match=r"train_cfg.cuda_graphs: true cannot record steps with train_cfg.swap_actions"):
        tiny_config(train_cfg={"cuda_graphs": True, "swap_actions": 0.5})
    plain = tiny_config()
    swapped = dataclasses.replace(plain, train_cfg=dataclasses.replace(plain.train_cfg, swap_actions=0.5))
    assert graphs_hint(swapped, torch.device("cuda"), 1) is None
    assert graphs_hint(plain, torch.device("cuda"), 1) is not None
