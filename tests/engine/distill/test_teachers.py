"""Teachers: what they read and say, online and from the cache; where both must agree, and that a student needs no flow."""
from __future__ import annotations

import shutil
from pathlib import Path

import distill_cases
import numpy as np
import pytest
import torch
from distill_cases import CPU, EVERY_TERM, RGB_ONLY, Setup, save_teacher, student, two_stream, weights_equal
from helpers import TRAINING, VALIDATION, Data, data_config, identical, merged
from resuming import unplaced
from steps import losses_of

from libs.core.config import dump_yaml
from libs.core.errors import UserError
from libs.datasets.dataset import TalDataset
from libs.datasets.loading.loader import batches, training_loader
from libs.engine.distill.streams import Columns
from libs.engine.distill.teacher_cache import CachedTeachers
from libs.engine.inference.predict import predict
from libs.engine.runs.checkpoint import load_checkpoint
from libs.engine.training.fit import FitOptions, fit
from libs.modeling.model import build_model

CROPS = {"crop_ratio": [0.6, 0.9], "crop_align": 4}
data, teacher, conv_teacher = distill_cases.data, distill_cases.teacher, distill_cases.conv_teacher


def both(data, folder, entries, **sections):
    """The same configuration with online and with cached teachers."""
    sections = {"model": RGB_ONLY, "dataset": {"crop_align": 4}, **sections}
    distill = EVERY_TERM | sections.pop("distill", {})
    return [Setup(student(data, folder, entries, distill={"outputs": outputs, **distill}, **sections))
            for outputs in ("online", "cache")]


# online against cached

def test_uncropped_samples_have_the_same_loss(data, teacher, conv_teacher, tmp_path):
    online, cached = both(data, tmp_path, [teacher, conv_teacher])
    assert cached.made == 2 * len(TRAINING)
    assert (online.batches[0].feats.shape[-1], cached.batches[0].feats.shape[-1]) == (6, 3)
    for a, b in zip(online.batches, cached.batches, strict=True):
        assert a.video_ids == b.video_ids
        losses = [losses_of(s.objective, batch) for s, batch in ((online, a), (cached, b))]
        terms = [{k: v.item() for k, v in x.terms.items()} for x in losses]
        assert len(terms[0]) == 3 + 2 * 5
        assert terms[0] == pytest.approx(terms[1], rel=1e-5, abs=1e-7)
        assert losses[0].final.item() == pytest.approx(losses[1].final.item(), rel=1e-5)


def test_every_speed_has_outputs_of_its_own(data, teacher, tmp_path):
    """Videos played at another speed are cached apart, and agree with the online teacher that hears the same features."""
    speeds = {"crop_align": 4, "speeds": [0.8, 1.0, 1.25], "max_seq_len": 96}
    online, cached = both(data, tmp_path, [teacher], dataset=speeds)
    assert cached.made == 3 * len(TRAINING)
    folder = cached.objective.teacher_outputs.cached[0].folder
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name, f"{folder.name}_x0.8", f"{folder.name}_x1.25"]
    seen = set()
    for a, b in zip(online.batches, cached.batches, strict=True):
        seen |= {sample.speed for sample in b.samples}
        finals = [losses_of(s.objective, batch).final.item() for s, batch in ((online, a), (cached, b))]
        assert finals[0] == pytest.approx(finals[1], rel=1e-5)
    assert len(seen) > 1
    assert Setup(student(data, tmp_path, [teacher], model=RGB_ONLY, dataset={**speeds, "speeds": [0.8, 2.0]},
                         distill={"outputs": "cache", **EVERY_TERM})).made == len(TRAINING)


def test_cached_outputs_are_those_of_the_valid_points(data, teacher, tmp_path):
    online, cached = both(data, tmp_path, [teacher])
    for a, b in zip(online.batches, cached.batches, strict=True):
        ours, theirs = online.objective.teacher_outputs(a)[0], cached.objective.teacher_outputs(b)[0]
        points = torch.cat([a.mask[:, ::s] for s in (1, 2, 4)], dim=1)
        for name, mask in (("logits", points), ("offsets", points), ("pyramid", points), ("stem", a.mask), ("inputs", a.mask)):
            x, y = getattr(ours, name), getattr(theirs, name)
            assert x.shape == y.shape
            torch.testing.assert_close(x[mask], y[mask], rtol=1e-5, atol=1e-5)
            assert bool((y[~mask] == 0).all())


def test_crops_agree_beyond_the_receptive_field_of_the_ends(data, conv_teacher, tmp_path):
    """Radius at the finest level, by hand: embedding 1, two convolutions of the one stem block 2, three of a head 3: 6 steps."""
    online, cached = both(data, tmp_path, [conv_teacher], dataset=CROPS)
    radius, near = 1 + 2 + 3, dict.fromkeys(range(6), 0.0)
    inner = 0
    for a, b in zip(online.batches, cached.batches, strict=True):
        ours, theirs = (s.objective.teacher_outputs(x)[0].logits for s, x in ((online, a), (cached, b)))
        for i, sample in enumerate(a.samples):
            steps, first, whole = int(a.mask[i].sum()), sample.start, sample.source_length
            assert first % 4 == 0
            difference = (ours[i, :steps] - theirs[i, :steps]).abs().amax(-1)
            low = radius if first > 0 else 0  # a crop's end that is the video's end hides nothing
            high = steps - radius if first + steps < whole else steps
            inner += max(high - low, 0)
            assert float(difference[low:high].max() if high > low else 0.0) < 1e-5
            for k in range(radius):
                if first > 0:
                    near[k] = max(near[k], float(difference[k]))
                if first + steps < whole:
                    near[k] = max(near[k], float(difference[steps - 1 - k]))
    assert inner > 60
    assert all(largest > 1e-3 for largest in near.values())  # every step inside the field sees the cut


def test_crops_read_the_rows_of_their_window(data, teacher, tmp_path):
    """Cached rows of a crop are those of the whole video, on every level."""
    whole = Setup(student(data, tmp_path, [teacher], model=RGB_ONLY, dataset={"crop_align": 4}, distill={"outputs": "cache"}))
    cropped = Setup(student(data, tmp_path, [teacher], model=RGB_ONLY, dataset=CROPS, distill={"outputs": "cache"}))
    assert cropped.made == 0
    rows = {}
    for batch in whole.batches:
        said = whole.objective.teacher_outputs(batch)[0]
        T = batch.mask.shape[1]
        for i, video in enumerate(batch.video_ids):
            rows[video] = [part[i] for part in said.logits.split([T, T // 2, T // 4], dim=1)]
    moved = 0
    for batch in cropped.batches:
        said = cropped.objective.teacher_outputs(batch)[0]
        T = batch.mask.shape[1]
        for i, sample in enumerate(batch.samples):
            steps = int(batch.mask[i].sum())
            moved += sample.start > 0
            for level, part in enumerate(said.logits.split([T, T // 2, T // 4], dim=1)):
                count, first = -(-steps // 2 ** level), sample.start // 2 ** level
                assert torch.equal(part[i, :count], rows[sample.video_id][level][first:first + count])
    assert moved >= 3


# the cache's files

def test_the_cache_is_made_once_per_teacher_and_terms(data, teacher, conv_teacher, tmp_path):
    def made(entry, **distill):
        sections = {"model": RGB_ONLY, "dataset": {"crop_align": 4}}
        setup = Setup(student(data, tmp_path, [entry], distill={"outputs": "cache", **distill}, **sections))
        return setup.made, setup.objective.teacher_outputs.cached[0].folder

    count, first = made(teacher)
    assert (count, made(teacher)) == (6, (0, first))
    assert sorted(p.name for p in first.glob("*.npz")) == [f"{v}.npz" for v in sorted(TRAINING)]
    (first / "t2.npz").unlink()
    assert made(teacher) == (1, first)
    others = [made(conv_teacher), made({"checkpoint": str(teacher), "weights": "raw"}), made(teacher, **EVERY_TERM),
              made(teacher, inputs={"weight": 0})]
    assert [n for n, _ in others] == [6, 6, 6, 6]
    assert len({first, *(folder for _, folder in others)}) == 5
    copy = tmp_path / "elsewhere" / "same.pth.tar"
    copy.parent.mkdir()
    shutil.copy(teacher, copy)
    assert made(copy) == (0, first)  # the weights count, not the file's name


def test_a_stale_cache_is_refused(data, teacher, tmp_path):
    copy = Data(data.annotations, Path(shutil.copytree(data.features, tmp_path / "features")))
    config = student(copy, tmp_path, [teacher], model=RGB_ONLY, dataset={"crop_align": 4}, distill={"outputs": "cache"})
    fit(config, tmp_path / "run", CPU, FitOptions())
    path = copy.features / "t1.npy"
    np.save(path, np.load(path)[:-1])
    message = (r"t1\.npz: logits: has 41 rows, which do not fit a video of 22 feature vectors; "  # 23 + 12 + 6 points
               "the features have changed, remove the folder")
    with pytest.raises(UserError, match=message):
        fit(config, tmp_path / "other", CPU, FitOptions())


@pytest.mark.parametrize("sections", [({"dataset": {"max_seq_len": 32}}, {"dataset": {"max_seq_len": 64}}),
                                      ({"test_cfg": {"precision": "bf16"}}, {"test_cfg": {"precision": "fp32"}})], ids=str)
def test_settings_that_change_what_equal_weights_say(data, tmp_path, sections):
    """The length of the table of positions (long videos stretch it), the precision: other outputs, so other files."""
    made = []
    for different in sections:
        its = two_stream(data, tmp_path, **merged({"model": {"use_abs_pe": True}}, different))
        file = save_teacher(its, tmp_path / "teacher.pth.tar", seed=3)
        setup = Setup(student(data, tmp_path, [file], model=RGB_ONLY, dataset={"crop_align": 4}, distill={"outputs": "cache"}))
        made.append((setup.made, setup.objective.teacher_outputs.cached[0].folder))
    assert made[0] != made[1]
    assert [count for count, _ in made] == [6, 6]


def test_a_teacher_of_other_precision_is_cached_too(data, teacher, tmp_path):
    content = torch.load(teacher, weights_only=True)
    content["state_dict_ema"] = {k: v.bfloat16() for k, v in content["state_dict_ema"].items()}
    torch.save(content, tmp_path / "half.pth.tar")
    online, cached = both(data, tmp_path, [tmp_path / "half.pth.tar"])
    assert cached.made == 6
    for a, b in zip(online.batches, cached.batches, strict=True):
        assert losses_of(online.objective, a).final.item() == pytest.approx(losses_of(cached.objective, b).final.item(), rel=1e-5)


def test_a_video_that_the_teacher_cannot_see_stops_before_training(data, tmp_path):
    dataset = {"modalities": {"rgb": [0, 3], "flow": {"folder": str(tmp_path / "flow"), "dim": 3}}, "missing": "skip",
               "crop_align": 4}
    (tmp_path / "flow").mkdir()
    for video in TRAINING.keys() - {"t2", "t4"}:
        np.save(tmp_path / "flow" / f"{video}.npy", np.load(data.features / f"{video}.npy")[:, 3:])
    its = two_stream(data, tmp_path, dataset=dataset, model={"modalities": ["rgb", "flow"]})
    file = save_teacher(its, tmp_path / "teacher.pth.tar")
    config = student(data, tmp_path, [file], dataset=dataset, model=RGB_ONLY, distill={"outputs": "cache"})
    message = r"distill\.outputs: cache: teacher teacher has no features of t2 \(2 of the videos .*use outputs: online"
    with pytest.warns(UserWarning, match="2 of 6"), pytest.raises(UserError, match=message):
        Setup(config)
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_a_cache_file_that_goes_is_named(data, teacher, tmp_path):
    setup = Setup(student(data, tmp_path, [teacher], model=RGB_ONLY, dataset={"crop_align": 4}, distill={"outputs": "cache"}))
    (setup.objective.teacher_outputs.cached[0].folder / "t0.npz").unlink()
    with pytest.raises(UserError, match=r"t0\.npz: has been removed since training began; .*--resume auto"):
        [setup.objective.teacher_outputs(batch) for batch in setup.batches]


def test_a_damaged_cache_file_is_named(data, teacher, tmp_path):
    setup = Setup(student(data, tmp_path, [teacher], model=RGB_ONLY, dataset={"crop_align": 4}, distill={"outputs": "cache"}))
    folder = setup.objective.teacher_outputs.cached[0].folder
    for content in (b"", b"PK\x03\x04 broken", (folder / "t0.npz").read_bytes()[:300]):
        setup.objective.teacher_outputs._memory.clear()
        (folder / "t0.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"t0\.npz: cannot be read as cached teacher outputs .*remove the file"):
            [setup.objective.teacher_outputs(batch) for batch in setup.batches]


def test_files_are_read_again_when_memory_is_full(data, teacher, tmp_path, monkeypatch):
    config = student(data, tmp_path, [teacher], model=RGB_ONLY, dataset={"crop_align": 4}, distill={"outputs": "cache"})
    first = Setup(config)
    kept = [first.objective.teacher_outputs(batch)[0] for batch in first.batches]
    monkeypatch.setattr("libs.engine.distill.teacher_cache.MEMORY", 1)
    second = Setup(config)
    for batch, said in zip(second.batches, kept, strict=True):
        again = second.objective.teacher_outputs(batch)[0]
        assert torch.equal(said.logits, again.logits)
    assert second.objective.teacher_outputs._memory == {}
    assert len(first.objective.teacher_outputs._memory) == 6


# without flow

def damage(features, change):
    for path in features.glob("*.npy"):
        np.save(path, change(np.load(path)))


def with_nan(feats):
    feats[:, 3:] = np.nan
    return feats


DAMAGES = {"nan": with_nan, "absent": lambda feats: feats[:, :3]}


@pytest.mark.parametrize("kind", list(DAMAGES))
def test_the_student_never_reads_flow_channels(data, teacher, tmp_path, kind):
    """Training from a filled cache and evaluation give the same bits with the flow channels NaN or absent."""
    copy = Data(data.annotations, Path(shutil.copytree(data.features, tmp_path / "features")))
    sections = {"model": RGB_ONLY, "dataset": CROPS, "distill": {"outputs": "cache", **EVERY_TERM}}
    config = student(copy, tmp_path, [teacher], **sections)
    results = []
    for name in ("with", "without"):
        fit(config, tmp_path / name, CPU, FitOptions())
        content = unplaced(torch.load(tmp_path / name / "epoch_001.pth.tar", weights_only=True))
        results.append((content, detections(config, tmp_path / name / "epoch_001.pth.tar")))
        damage(copy.features, DAMAGES[kind])
    assert identical(results[0][0], results[1][0]) == []
    assert all(np.array_equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    assert len(results[0][1][0]) > 10
    with pytest.raises(UserError, match="NaN" if kind == "nan" else "6"):  # what an online teacher would need
        fit(student(copy, tmp_path, [teacher], model=RGB_ONLY), tmp_path / "online", CPU, FitOptions())


def detections(config, checkpoint):
    """Columns of the detections of the validation videos."""
    model = build_model(config)
    model.load_state_dict(load_checkpoint(checkpoint).select("ema"))
    found = predict(model, TalDataset(config, config.val_split, training=False), config, CPU)
    return [np.asarray(getattr(found, name)) for name in ("video_id", "t_start", "t_end", "label", "score")]


def test_a_flow_folder_may_go_once_the_cache_is_made(data, tmp_path):
    dataset = {"feat_folder": "", "modalities": {name: {"folder": str(tmp_path / name), "dim": 3} for name in ("rgb", "flow")},
               "crop_align": 4}
    for name, columns in (("rgb", slice(0, 3)), ("flow", slice(3, 6))):
        (tmp_path / name).mkdir()
        for video in (*TRAINING, *VALIDATION):
            np.save(tmp_path / name / f"{video}.npy", np.load(data.features / f"{video}.npy")[:, columns])
    its = two_stream(data, tmp_path, dataset=dataset, model={"modalities": ["rgb", "flow"]})
    file = save_teacher(its, tmp_path / "teacher.pth.tar", seed=5)
    config = student(data, tmp_path, [file], dataset=dataset, model=RGB_ONLY, distill={"outputs": "cache"})
    contents = []
    for name in ("with", "without"):
        fit(config, tmp_path / name, CPU, FitOptions())
        contents.append(unplaced(torch.load(tmp_path / name / "epoch_001.pth.tar", weights_only=True)))
        shutil.rmtree(tmp_path / "flow", ignore_errors=True)
    assert identical(*contents) == []


def test_an_online_teacher_of_the_same_streams_needs_no_flow(data, tmp_path):
    copy = Data(data.annotations, Path(shutil.copytree(data.features, tmp_path / "features")))
    its = save_teacher(two_stream(copy, tmp_path, model=RGB_ONLY), tmp_path / "teacher.pth.tar", seed=6)
    config = student(copy, tmp_path, [its], model={"backbone_type": "conv_dw", **RGB_ONLY})
    damage(copy.features, with_nan)
    fit(config, tmp_path / "run", CPU, FitOptions())


# what teachers read and say

def test_weights_are_chosen_by_name(data, teacher, tmp_path):
    for which in ("ema", "raw"):
        (its,) = Setup(student(data, tmp_path, [{"checkpoint": str(teacher), "weights": which}])).teachers
        assert weights_equal(its.model.state_dict(), load_checkpoint(teacher).select(which))


def test_a_folder_means_its_last_epoch(data, teacher, conv_teacher, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(teacher, tmp_path / "run" / "epoch_002.pth.tar")
    shutil.copy(conv_teacher, tmp_path / "run" / "epoch_010.pth.tar")
    (its,) = Setup(student(data, tmp_path, [tmp_path / "run"])).teachers
    assert its.config.model.backbone_type == "conv"


def test_a_configuration_file_wins_over_the_one_inside(data, teacher, tmp_path):
    path = tmp_path / "its.yaml"
    path.write_text(dump_yaml(two_stream(data, tmp_path, model={"n_mha_win_size": 9})))
    (its,) = Setup(student(data, tmp_path, [{"checkpoint": str(teacher), "config": str(path)}])).teachers
    assert its.config.model.n_mha_win_size == 9
    assert its.model.backbone.stem[0].attn.window == 9


def test_each_network_gets_its_own_streams_in_its_own_order(data, teacher, tmp_path):
    """A teacher that reads flow then RGB: outputs as alone; its input is compared in the student's order."""
    model = {"modalities": ["flow", "rgb"]}
    reversed_ = save_teacher(two_stream(data, tmp_path, model=model), tmp_path / "reversed.pth.tar", seed=8)
    setup = Setup(student(data, tmp_path, [reversed_, teacher], model=RGB_ONLY, distill=EVERY_TERM))
    assert setup.read == ("rgb", "flow")
    batch = setup.batches[0]
    rgb, flow = batch.feats[..., :3], batch.feats[..., 3:]
    first, second = setup.objective.teacher_outputs(batch)
    with torch.no_grad():  # as teachers run
        alone, _ = setup.teachers[0].model.trace(torch.cat([flow, rgb], -1), batch.mask)
        assert torch.equal(first.logits, alone.logits)
        assert torch.equal(second.logits, setup.teachers[1].model(batch.feats, batch.mask).logits)
    assert torch.equal(first.inputs, batch.feats)
    assert torch.equal(second.inputs, batch.feats)
    own = setup.objective.model.trace(rgb, batch.mask)[1].inputs
    expected = ((own - batch.feats)[batch.mask].double() ** 2).mean().item()
    terms = losses_of(setup.objective, batch).terms
    assert terms["inputs_teacher1"].item() == pytest.approx(expected, rel=1e-5)
    assert terms["inputs_teacher2"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("distill", [{"preset": "c2ms"}, {"outputs": "cache"}], ids=str)
def test_a_teacher_with_the_published_gate_is_padded_as_it_needs(data, tmp_path, distill):
    its = save_teacher(two_stream(data, tmp_path, model={"temporal_gate": "published"}), tmp_path / "gated.pth.tar")
    setup = Setup(student(data, tmp_path, [its], model=RGB_ONLY, dataset={"crop_align": 4}, distill=distill))
    batch = min(setup.batches, key=lambda b: b.mask.shape[1])
    assert batch.mask.shape[1] == 72 or setup.made == 6
    assert torch.isfinite(losses_of(setup.objective, batch).final)


def test_batches_are_padded_as_far_as_the_widest_network_needs(data, tmp_path):
    """The student's kernels of 3 would do with 4 more steps, the teacher's of 9 need 16: what it says is what it says alone,
    padded to max_seq_len as published."""
    wide = {"embd_kernel_size": 9, "head_kernel_size": 9}
    its = save_teacher(two_stream(data, tmp_path, model=wide), tmp_path / "wide.pth.tar", seed=9)
    config = student(data, tmp_path, [its], model=RGB_ONLY, dataset={"max_seq_len": 128})
    setup = Setup(config)
    short = list(batches(training_loader(TalDataset(config, config.train_split, True, setup.read), config)[0]))
    apart = 0.0
    for batch, bare in zip(setup.batches, short, strict=True):
        longest = int(batch.mask.sum(1).max())
        assert batch.mask.shape[1] == -(-(longest + 16) // 4) * 4
        assert bare.mask.shape[1] == -(-(longest + 4) // 4) * 4
        for b, steps in enumerate(batch.mask.sum(1).tolist()):
            feats, mask = torch.zeros(1, 128, 6), torch.zeros(1, 128, dtype=torch.bool)
            feats[0, :steps], mask[0, :steps] = batch.feats[b, :steps], True
            alone = valid_logits(setup.teachers[0].model(feats, mask).logits[0], mask[0])
            torch.testing.assert_close(valid_logits(setup.objective.teacher_outputs(batch)[0].logits[b], batch.mask[b]), alone)
            crowded = valid_logits(setup.objective.teacher_outputs(bare)[0].logits[b], bare.mask[b])
            apart = max(apart, float((crowded - alone).abs().max()))
    assert apart > 1e-3  # so the margin counts here


def valid_logits(logits, mask):
    """Logits of the valid points of a video, all levels."""
    return logits[torch.cat([mask[::s] for s in (1, 2, 4)])]


def test_columns_of_streams_side_by_side(data, tmp_path):
    config = data_config(data, tmp_path, dataset={"modalities": {"a": [0, 2], "b": [2, 5], "c": [5, 6]}})
    feats = torch.arange(6.0).expand(1, 2, 6)
    assert Columns(config, ("a", "b", "c"), ("c", "a"))(feats)[0, 0].tolist() == [5, 0, 1]
    assert Columns(config, ("c", "b"), ("b",))(feats[..., :4])[0, 0].tolist() == [1, 2, 3]
    assert Columns(config, ("b", "c", "a"), None)(feats)[0, 0].tolist() == [4, 5, 0, 1, 2, 3]  # all, in channel order
    assert Columns(config, None, None)(feats) is feats


def test_making_the_cache_runs_no_teacher_in_training_mode(data, teacher, tmp_path):
    setup = Setup(student(data, tmp_path, [teacher], model=RGB_ONLY, dataset=CROPS, distill={"outputs": "cache"}))
    assert isinstance(setup.objective.teacher_outputs, CachedTeachers)
    setup.objective.train()
    assert not any(m.training for m in setup.teachers[0].model.modules())
    assert not any(p.requires_grad for p in setup.teachers[0].model.parameters())
