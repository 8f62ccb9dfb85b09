"""Saved candidates and the sweep over them: exactly what the network's own evaluation gives, for every setting."""
from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
import sweep_nms as sweep_script
import torch
from helpers import data_config, item, one_error, run_script, show_every_term, write_config, write_data
from networks import TRIDET

import eval as eval_script
from libs.core.config import with_overrides
from libs.core.errors import UserError
from libs.datasets.dataset import TalDataset
from libs.datasets.loading.padding import padding_of
from libs.engine.inference.candidates import CANDIDATES, CandidateCollector, find_candidates, load_candidates
from libs.engine.inference.nms_sweep import USUAL, Sweep, changes, parse_grid, set_line, settings_of, table
from libs.engine.inference.predict import Timeline, predict, score
from libs.engine.runs.checkpoint import save_checkpoint
from libs.modeling.decode import decode_batch
from libs.modeling.model import build_model

CPU = torch.device("cpu")
COLUMNS = ("video_id", "t_start", "t_end", "label", "score")
SETTINGS = ([], ["nms_sigma=0.2", "min_score=0.05"], ["nms_method=hard", "iou_threshold=0.3"], ["nms_method=none"],
            ["multiclass_nms=false"], ["multiclass_nms=false", "voting_iou_weight=false"],
            ["multiclass_voting=true", "voting_thresh=0.5"], ["max_seg_num=7"], ["pre_nms_topk=11"],
            ["pre_nms_thresh=0.3"], ["duration_thresh=5"], ["pre_nms_topk=5", "pre_nms_thresh=0.2", "duration_thresh=0"])


@pytest.fixture(scope="module", params=[{}, TRIDET], ids=["ActionFormer", "TriDet"])
def saved(request, tmp_path_factory):
    """(config, network, data set, file of its candidates)."""
    tmp = tmp_path_factory.mktemp("saved")
    config = data_config(write_data(tmp), tmp, model=request.param, test_cfg={"pre_nms_topk": 40, "batch_size": 2})
    torch.manual_seed(0)
    model = show_every_term(build_model(config))
    dataset = TalDataset(config, "training", training=False)
    collector = CandidateCollector(config.test_cfg)
    predict(model, dataset, config, CPU, collect=collector)
    collector.write(tmp / CANDIDATES, [v.id for v in dataset.videos], config, {"epoch": 3})
    return config, model, dataset, tmp / CANDIDATES


@pytest.mark.parametrize("overrides", SETTINGS, ids=" ".join)
def test_every_setting_gives_what_the_network_gives_with_it(saved, overrides):
    config, model, dataset, path = saved
    config = with_overrides(config, [f"test_cfg.{o}" for o in overrides])
    expected = predict(model, dataset, config, CPU)
    found = load_candidates(path).detections(config.test_cfg)
    assert len(found) > 20
    for column in COLUMNS:
        assert getattr(found, column).tolist() == getattr(expected, column).tolist(), column


def test_the_file_holds_all_candidates_with_their_level(saved):
    config, model, dataset, path = saved
    file = load_candidates(path)
    assert file.video_ids == [v.id for v in dataset.videos]
    assert (file.config, file.about) == (config, {"epoch": 3})
    sample = dataset.sample(2)
    assert file.videos[2] == Timeline.of(sample) == (dataset.videos[2].id, sample.grid, sample.duration_s)
    assert len(file.candidates.scores) == int(file.candidates.counts.sum()) == len(file.columns["levels"])
    assert set(file.columns["levels"].tolist()) == {0, 1, 2}
    ends = file.candidates.counts.cumsum(0).tolist()
    levels = file.columns["levels"][ends[0]:ends[1]]
    assert levels.tolist() == sorted(levels.tolist())
    for level in range(3):
        scores = file.candidates.scores[ends[0]:ends[1]][levels == level]
        assert (scores[:-1] >= scores[1:]).all()
        assert len(scores) <= 40
    sample = item(dataset, 1)
    with torch.no_grad():
        padded = padding_of(config).of_batch([23])
        feats = torch.zeros(1, padded, 6)
        feats[0, :23] = sample.feats
        alone = decode_batch(model.eval()(feats, torch.arange(padded)[None] < 23), config.test_cfg)
    assert torch.allclose(alone.scores, file.select(config.test_cfg).scores[ends[0]:][:len(alone.scores)], atol=1e-6)


def test_what_the_file_lacks_is_refused(saved):
    config, _, _, path = saved
    file = load_candidates(path)
    for key, value in (("pre_nms_topk", 41), ("pre_nms_thresh", 0.0005)):
        wanted = dataclasses.replace(config.test_cfg, **{key: value})
        with pytest.raises(UserError, match=rf"candidates.npz: test_cfg.{key}: {value}.*--save-candidates"):
            file.select(wanted)
        with pytest.raises(UserError, match=key):
            Sweep(file, with_overrides(config, ["val_split=training"])).run([config.test_cfg, wanted])


def test_damaged_files(saved, tmp_path):
    path = saved[3]
    (tmp_path / "a.npz").write_bytes(path.read_bytes()[:2000])
    np.savez(tmp_path / "b.npz", scores=np.zeros(3))
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "c.npz", **{**arrays, "levels": arrays["levels"][1:]})
    for name, column in (("e.npz", "scores"), ("f.npz", "segments"), ("g.npz", "durations")):
        spoilt = arrays[column].copy()
        spoilt[2] = np.nan
        np.savez(tmp_path / name, **{**arrays, column: spoilt})
    for name, told in (("e.npz", f"1 of {len(arrays['scores'])} scores are not finite"), ("f.npz", "segments are not finite"),
                       ("g.npz", "durations are not finite"), ("a.npz", "cannot be read"), ("b.npz", "cannot be read"),
                       ("c.npz", "different lengths"), ("d.npz", "no such candidates file")):
        with pytest.raises(UserError, match=name) as error:
            load_candidates(tmp_path / name)
        assert told in str(error.value)


@pytest.mark.parametrize("sections", [{}, {"dataset_name": "anet", "dataset": {"num_classes": 1, "feat_stride": 5}},
                                      {"model": TRIDET, "test_cfg": {"multiclass_nms": False, "voting_iou_weight": False}}],
                         ids=str)
def test_the_configured_setting_scores_as_the_evaluation_does(tmp_path, sections):
    config = data_config(write_data(tmp_path), tmp_path, **sections)
    torch.manual_seed(0)
    model = show_every_term(build_model(config))
    dataset = TalDataset(config, "validation", training=False)
    collector = CandidateCollector(config.test_cfg)
    expected = score(predict(model, dataset, config, CPU, collect=collector), dataset)
    collector.write(tmp_path / "c.npz", [v.id for v in dataset.videos], config, {})
    trial = Sweep(load_candidates(tmp_path / "c.npz"), config).trial(config.test_cfg)
    assert trial.mAP == tuple(expected.mAP.tolist())
    assert trial.value == expected.average_mAP > 0
    at = float(dataset.tious[1])
    assert Sweep(load_candidates(tmp_path / "c.npz"), config, at).trial(config.test_cfg).value == trial.mAP[1]


def test_settings_without_effect_are_tried_once_and_keep_the_configured_values(saved):
    base = saved[0]
    plain = settings_of(base, {"nms_method": ["soft", "hard"], "nms_sigma": [0.5, 0.7], "iou_threshold": [0.1, 0.3]})
    assert [changes(c, base.test_cfg) for c in plain] == [{}, {"nms_sigma": 0.7}, {"nms_method": "hard"},
                                                          {"nms_method": "hard", "iou_threshold": 0.3}]
    voting = settings_of(base, {"voting_thresh": [0.0, 0.5]})
    assert [changes(c, base.test_cfg) for c in voting] == [{}, {"voting_thresh": 0.5, "multiclass_voting": True}]
    assert len(settings_of(base, {"nms_method": ["none"], "nms_sigma": [0.1, 0.2], "max_seg_num": [5, 6]})) == 2
    assert len(settings_of(base, USUAL)) == 45 - 1  # one of them is the configured one
    assert set_line(plain[3], base.test_cfg) == "--set test_cfg.nms_method=hard test_cfg.iou_threshold=0.3"
    agnostic = with_overrides(base, ["test_cfg.multiclass_nms=false"])
    assert len(settings_of(agnostic, {"voting_thresh": [0.0, 0.7, 0.9]})) == 3  # 0.7 is the configured one
    by_score = {"voting_iou_weight": [True, False]}  # has an effect with voting alone
    assert [len(settings_of(c, by_score)) for c in (base, agnostic)] == [1, 2]
    assert changes(settings_of(agnostic, by_score)[1], agnostic.test_cfg) == {"voting_iou_weight": False}
    with pytest.raises(UserError, match=r"test_cfg.nms_sigma"):
        settings_of(base, {"nms_sigma": [-1]})


def test_grids_on_the_command_line():
    assert parse_grid(["nms_sigma=0.4,1e-1", "test_cfg.multiclass_nms=true,false", "nms_method=soft"]) == {
        "nms_sigma": [0.4, 0.1], "multiclass_nms": [True, False], "nms_method": ["soft"]}
    for bad, told in (("nms_sgma=1", "did you mean 'nms_sigma'"), ("nms_sigma", "KEY=VALUE"), ("nms_sigma=", "KEY=VALUE"),
                      ("batch_size=2", "no setting")):
        with pytest.raises(UserError, match="--grid") as error:
            parse_grid([bad])
        assert told in str(error.value)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(folder, config file, results.json) of eval.py --save-candidates."""
    tmp = tmp_path_factory.mktemp("evaluated")
    config = write_config(tmp / "tiny.yaml", data := write_data(tmp))
    torch.manual_seed(0)
    model = show_every_term(build_model(data_config(data, tmp)))
    save_checkpoint(tmp / "epoch_001.pth.tar", 1, model.state_dict(), model.state_dict(), {}, {}, None)
    import sys
    before, sys.argv = sys.argv, ["eval.py", str(config), str(tmp), "--output", str(tmp / "e"), "--save-candidates"]
    try:
        eval_script.main()
    finally:
        sys.argv = before
    return tmp, config, json.loads((tmp / "e" / "results.json").read_text())


def run(capsys, *argv):
    return run_script(capsys, sweep_script.main, "sweep_nms.py", *map(str, argv))


def test_the_script_starts_from_evals_mAP_and_its_best_line_is_right(evaluated, capsys):
    tmp, config, results = evaluated
    for data in ([], [config], [tmp / "annotations.json"]):
        code, out, err = run(capsys, tmp / "e" / CANDIDATES, *data, "--grid", "nms_sigma=0.1,0.3,0.9", "max_seg_num=5,20",
                             "--json", tmp / "s.json", "--jobs", 2 if data == [config] else 1)
        assert code == 0
        assert "validation, so its mAP is no longer a fair estimate" in err
        written = json.loads((tmp / "s.json").read_text())
        assert written["trials"][0]["mAP"] == results["mAP"]
        assert len(written["trials"]) == 7
        best = max(written["trials"], key=lambda t: t["value"])
        assert written["best"]["gain"] == best["value"] - results["average_mAP"]
        last = out.splitlines()[-1]
        assert last.startswith("best: ")
        overrides = last.split("--set ")[1].split() if "--set" in last else []
        argv = [str(config), str(tmp), "--output", str(tmp / "again"), *(["--set", *overrides] if overrides else [])]
        assert run_script(capsys, eval_script.main, "eval.py", *argv)[0] == 0
        assert json.loads((tmp / "again" / "results.json").read_text())["average_mAP"] == best["value"]


@pytest.mark.parametrize("data", [[], ["tiny.yaml"], ["annotations.json"]], ids=str)
def test_the_baseline_with_overridden_keys(evaluated, capsys, data):
    tmp, config, _ = evaluated
    files = [config if name == "tiny.yaml" else tmp / name for name in data]
    code, _, _ = run(capsys, tmp / "e" / CANDIDATES, *files, "--grid", "nms_sigma=0.9", "--set", "test_cfg.max_seg_num=7",
                     "dataset.tiou_thresholds=[0.5]", "--json", tmp / "s.json")
    written = json.loads((tmp / "s.json").read_text())
    assert code == 0
    assert written["tiou"] == [0.5]
    assert [trial["test_cfg"]["max_seg_num"] for trial in written["trials"]] == [7, 7]


def test_a_folder_means_the_candidates_of_its_last_epoch(tmp_path):
    for name in ("epoch_001.pth.tar", "epoch_002.pth.tar"):
        (tmp_path / name).touch()
    own = tmp_path / "eval" / "epoch_002_raw" / CANDIDATES
    for file in (own, tmp_path / "eval" / "epoch_001_ema" / CANDIDATES, tmp_path / "eval" / "epoch_002_ema" / "results.json"):
        file.parent.mkdir(parents=True)
        file.touch()
    assert find_candidates(tmp_path) == find_candidates(own.parent) == find_candidates(own) == own
    (tmp_path / "eval" / "epoch_002_ema" / CANDIDATES).touch()
    with pytest.raises(UserError, match=r"epoch_002, has 2: .*epoch_002_ema/.*, .*epoch_002_raw/.*; name one"):
        find_candidates(tmp_path)
    (tmp_path / "epoch_003.pth.tar").touch()
    with pytest.raises(UserError, match=r"its last epoch, epoch_003, has no candidates.npz; .*eval.py .* --save-candidates"):
        find_candidates(tmp_path)


def test_the_table_lists_the_best_first(evaluated):
    tmp, _, results = evaluated
    candidates = load_candidates(tmp / "e" / CANDIDATES)
    sweep = Sweep(candidates, candidates.config)
    trials = sweep.run(settings_of(candidates.config, {"nms_sigma": [0.1, 0.9]}))
    lines = table(trials, candidates.config.test_cfg, sweep.tious, top=2).splitlines()
    assert len(lines) == 4
    assert float(lines[1].split()[1]) == pytest.approx(100 * results["average_mAP"], abs=0.006)
    assert float(lines[2].split()[1]) >= float(lines[3].split()[1])


@pytest.mark.slow
def test_a_killed_worker_ends_the_sweep_with_one_error(evaluated):
    class Dying(Sweep):
        def trial(self, config):
            os._exit(9)

    tmp, _, _ = evaluated
    candidates = load_candidates(tmp / "e" / CANDIDATES)
    with pytest.raises(UserError, match="--jobs 2: a process of the sweep was killed"):
        Dying(candidates, candidates.config).run(settings_of(candidates.config, {"nms_sigma": [0.1, 0.9]}), jobs=2)


@pytest.mark.parametrize(("argv", "told"), [
    (["gone.npz"], ["gone.npz", "--save-candidates"]), (["C", "gone.yaml"], ["gone.yaml"]), (["C", "gone.json"], ["gone.json"]),
    (["C", "OTHER"], ["other.json", "lacks 3 of the 3 videos"]), (["C", "--grid", "nms_sgma=1"], ["nms_sigma"]),
    (["C", "--set", "test_cfg.nms_sigm=1"], ["nms_sigma"]),
    (["C", "--set", "test_cfg.nms_sigma=0"], ["nms_sigma", "more than 0"]),
    (["C", "--at", "0.55"], ["--at 0.55", "0.3, 0.4"]), (["C", "--jobs", "0"], ["--jobs"]),
    (["C", "--grid", "pre_nms_topk=101"], ["pre_nms_topk", "101"]),
    (["C", "--json", "C/x.json"], ["x.json", "cannot be written"])], ids=str)
def test_one_clear_error(evaluated, capsys, tmp_path, argv, told):
    tmp, _, _ = evaluated
    entry = {"segment": [0, 1], "label": "class 0", "label_id": 0}
    other = {"v9": {"subset": "validation", "duration": 3, "annotations": [entry]}}
    (tmp_path / "other.json").write_text(json.dumps({"database": other}))
    file = str(tmp / "e" / CANDIDATES)
    places = {"C": file, "OTHER": str(tmp_path / "other.json"), "C/x.json": f"{file}/x.json"}
    error = one_error(*run(capsys, *(places.get(a, a) for a in argv))[::2])
    for part in told:
        assert part in error


def test_another_file_and_a_key_that_is_listed_twice_are_refused(tmp_path):
    (tmp_path / "predictions.json").write_text('{"results": {}}')
    with pytest.raises(UserError, match=r"predictions\.json: (?!.*unsafe).*another or a damaged"):
        load_candidates(tmp_path / "predictions.json")
    with pytest.raises(UserError, match="nms_sigma is listed before"):
        parse_grid(["nms_sigma=0.3", "test_cfg.nms_sigma=0.5"])
