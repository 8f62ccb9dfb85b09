"""The published settings, value by value (SPEC items 9, 30, 51), and each configuration through training, evaluation and fusion.

The cheap version: real widths of features, strides, levels and classes, but narrow networks and two steps.  The whole runs are in
benchmarks/RESULTS.md.
"""
from __future__ import annotations

import json
from pathlib import Path

import evaluate as evaluate_script
import numpy as np
import pytest
import torch
from helpers import run_script

import eval as eval_script
import train
from libs.core.config import load_config
from libs.core.schema import AssignerConfig, Config
from libs.datasets.presets import get_preset
from libs.datasets.synthetic.planted_config import plant
from libs.modeling.model import build_model

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DOUBLED = [(0, 4), (2, 8), (4, 16), (8, 32), (16, 64)]  # regression ranges of epic and ego4d
SEVEN, EIGHT = [*DOUBLED, (32, 128), (64, 1e4)], [*DOUBLED, (32, 128), (64, 256), (128, 1e4)]
PLAIN = [(0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 1e4)]

# lr, epochs, batch, max_seq_len, window, loss norm, topk, segments, sigma, voting, classes, trunc, ranges
COLUMNS = ("opt.learning_rate", "opt.epochs", "loader.batch_size", "dataset.max_seq_len", "model.n_mha_win_size",
           "train_cfg.init_loss_norm", "test_cfg.pre_nms_topk", "test_cfg.max_seg_num", "test_cfg.nms_sigma",
           "test_cfg.voting_thresh", "dataset.num_classes", "dataset.trunc_thresh", "model.regression_range")
FAMILIES = {
    "thumos_i3d": (1e-4, 30, 2, 2304, 19, 100, 2000, 200, 0.5, 0.7, 20, 0.5, PLAIN),
    "anet": (1e-3, 10, 16, 192, (7, 7, 7, 7, 7, -1), 200, 2000, 100, 0.75, 0.9, 1, 0.5, PLAIN),
    "epic": (1e-4, 16, 2, 2304, 9, 250, 5000, 2000, 0.4, 0.75, None, 0.3, [*DOUBLED, (32, 1e4)]),
    "ego4d": (1e-4, 10, 2, 1024, 9, 100, 5000, 2000, 0.9, 0.95, 110, 0.3, None),
    "multithumos_i3d": (1e-4, 30, 2, 2304, 19, 100, 5000, 1000, 0.5, 0.7, 65, 0.5, PLAIN)}
# input_dim, stride, frames, fps, embd_dim, width, heads, levels, abs PE, dropout, label smoothing
SHAPE = ("dataset.input_dim", "dataset.feat_stride", "dataset.num_frames", "dataset.default_fps", "model.embd_dim",
         "model.fpn_dim", "model.n_head", "model.backbone_arch", "model.use_abs_pe", "train_cfg.dropout",
         "train_cfg.label_smoothing")
SHAPES = {
    "thumos_i3d": (2048, 4, 16, None, 512, 512, 4, (2, 2, 5), False, 0, 0),
    "multithumos_i3d": (2048, 4, 16, None, 512, 512, 4, (2, 2, 5), False, 0, 0),
    "anet_tsp": (512, 16, 16, 15, 256, 256, 4, (2, 2, 5), True, 0, 0.1),
    "anet_i3d": (2048, 16, 16, 25, 256, 256, 4, (2, 2, 5), True, 0, 0.1),
    "epic_slowfast_verb": (2304, 16, 32, 30, 512, 512, 4, (2, 2, 5), False, 0, 0),
    "epic_slowfast_noun": (2304, 16, 32, 30, 512, 512, 4, (2, 2, 5), False, 0, 0.1),
    "ego4d_slowfast": (2304, 16, 32, 30, 512, 512, 4, (2, 2, 6), True, 0.1, 0),
    "ego4d_omnivore": (1536, 16, 32, 30, 512, 512, 4, (2, 2, 7), True, 0.1, 0),
    "ego4d_egovlp": (256, 16, 16, 30, 384, 384, 4, (2, 2, 7), True, 0.1, 0),
    "ego4d_slowfast_egovlp": ((2304, 256), 16, 32, 30, (384, 384), 768, 12, (2, 2, 7), True, 0.1, 0),
    "ego4d_omnivore_egovlp": ((1536, 256), 16, 32, 30, (384, 384), 768, 12, (2, 2, 7), True, 0.1, 0),
    "ego4d_slowfast_omnivore_egovlp": ((2304, 1536, 256), 16, 32, 30, (256, 384, 384), 1024, 16, (2, 2, 7), True, 0.1, 0)}
OWN = {"epic_slowfast_verb": {"dataset.num_classes": 97}, "epic_slowfast_noun": {"dataset.num_classes": 300},
       **{name: {"model.regression_range": SEVEN if name == "ego4d_slowfast" else EIGHT} for name in SHAPES if "ego4d" in name},
       **{name: {"train_cfg.loss_weight": 2, "dataset.force_upsampling": True, "dataset.file_prefix": "v_",
                 "test_cfg.multiclass_nms": False, "test_cfg.duration_thresh": 0.001, "test_cfg.ext_score_file": None}
          for name in ("anet_tsp", "anet_i3d")}}
EVERYWHERE = {"dataset.crop_ratio": (0.9, 1.0), "opt.weight_decay": 0.05, "opt.warmup_epochs": 5, "opt.warmup": True,
              "train_cfg.clip_grad_l2norm": 1, "test_cfg.min_score": 0.001, "model.fpn_type": "identity",
              "train_cfg.center_sample": "radius", "train_cfg.center_sample_radius": 1.5, "train_cfg.droppath": 0.1,
              "test_cfg.nms_method": "soft", "test_cfg.pre_nms_thresh": 0.001, "opt.type": "AdamW", "test_cfg.weights": "ema"}
TIOUS = {"thumos": (0.3, 0.7, 5), "anet": (0.5, 0.95, 10), "epic": (0.1, 0.5, 5), "ego4d": (0.1, 0.5, 5),
         "multithumos": (0.1, 0.9, 9), "hacs": (0.5, 0.95, 10)}


def value(config: Config, dotted: str) -> object:
    section, name = dotted.split(".")
    return getattr(getattr(config, section), name)


@pytest.mark.parametrize("name", SHAPES)
def test_published_values(name: str):
    config = load_config(CONFIGS / f"{name}.yaml")
    family = FAMILIES[name] if name in FAMILIES else FAMILIES[name.split("_")[0]]
    want = {**EVERYWHERE, **dict(zip(COLUMNS, family, strict=True)), **dict(zip(SHAPE, SHAPES[name], strict=True))}
    want |= OWN.get(name, {})
    found = {key: value(config, key) for key in want}
    found["model.regression_range"] = list(found["model.regression_range"])
    assert found == want
    assert config.model.head_dim == config.model.fpn_dim
    assert config.dataset.file_ext == (".npz" if "epic" in name else ".npy")


# F36, F39: embedding convs, neck, epochs, loss norm, topk, segments, sigma, trunc, classes, channels, ranges, million parameters
TEMPORALMAXER = {
    "thumos_i3d": (2, "groupnorm", 60, 100, 2000, 200, 0.5, 0.5, 20, 2048, PLAIN, 7.118),
    "epic_verb": (2, "layernorm", 32, 250, 5000, 2000, 0.4, 0.3, 97, 2304, [*DOUBLED, (32, 1e4)], 7.630),
    "epic_noun": (2, "groupnorm", 32, 250, 5000, 2000, 0.4, 0.3, 300, 2304, [*DOUBLED, (32, 1e4)], 7.941),
    "multithumos_i3d": (3, "layernorm", 60, 100, 3000, 300, 0.5, 0.5, 65, 1024, PLAIN, 6.403)}


@pytest.mark.parametrize("name", TEMPORALMAXER)
def test_published_values_and_sizes_of_temporalmaxer(name: str):
    config = load_config(CONFIGS / f"temporalmaxer_{name}.yaml")
    model, train, test, data = config.model, config.train_cfg, config.test_cfg, config.dataset
    found = (model.backbone_arch[0], model.fpn_norm, config.opt.epochs, train.init_loss_norm, test.pre_nms_topk, test.max_seg_num,
             test.nms_sigma, data.trunc_thresh, data.num_classes, config.model_channels, list(model.regression_range))
    assert found == TEMPORALMAXER[name][:-1]
    assert model.backbone_arch[1:] == (0, 5)
    assert model.assigner == AssignerConfig("cost", 1.5, 2, 1, 1, 0)
    assert (config.opt.learning_rate, config.opt.weight_decay, config.opt.warmup_epochs) == (1e-4, 0.05, 5)
    assert (config.loader.batch_size, train.clip_grad_l2norm, train.label_smoothing) == (2, 1, 0)
    assert (data.max_seq_len, data.crop_ratio, test.min_score) == (2304, (0.9, 1.0), 0.001)
    assert (data.feat_stride, data.num_frames) == ((16, 32) if "epic" in name else (4, 16))
    with torch.device("meta"):
        millions = sum(p.numel() for p in build_model(config).parameters()) / 1e6
    assert millions == pytest.approx(TEMPORALMAXER[name][-1], abs=5e-4)


# F37: lr, eta_min, warm-up, epochs, weight decay, batch, clip, max_seq_len
TRIDET_TRAINING = {
    "thumos_i3d": (1e-4, 1e-8, 20, 20, 0.025, 2, 1, 2304), "epic_verb": (1e-4, 5e-5, 5, 22, 0.05, 2, 1, 2304),
    "epic_noun": (1e-4, 1e-8, 5, 14, 0.05, 2, 1, 2304), "anet_tsp": (1e-3, 5e-5, 10, 5, 0.04, 16, 0.4, 768),
    "hacs_slowfast": (1e-3, 5e-4, 7, 4, 0.03, 16, 0.5, 960), "hacs_i3d": (1e-3, 2e-4, 10, 3, 0.03, 16, 1, 512)}
# window, k, bins, IoU power, H, E, F, D, head kernels, abs PE, noise, init_conv_vars
TRIDET_MODEL = {
    "thumos_i3d": (1, 5, 16, 0.2, 768, 512, 512, 512, 3, 3, False, 0.0005, 0),
    "epic_verb": (5, 2, 16, 0.25, 1024, 512, 512, 512, 3, 3, False, 0, 0),
    "epic_noun": (1, 4, 16, 0.25, 1024, 512, 512, 512, 3, 3, False, 0, 0),
    "anet_tsp": (15, 1.3, 12, 1, 2048, 256, 256, 512, 3, 3, True, 0.5, 0.2),
    "hacs_slowfast": (3, 1.2, 14, 1, 1024, 1024, 1024, 1024, 5, 1, True, 0.2, 0.1),
    "hacs_i3d": (15, 1.2, 12, 1, 1024, 1024, 1024, 1024, 5, 1, True, 0, 0.1)}
# loss norm, smoothing, topk, segments, sigma, voting, duration, classes, ranges, channels, stride, frames, fps, trunc
TRIDET_DATA = {
    "thumos_i3d": (100, 0, 2000, 2000, 0.5, 0.7, 0.05, 20, PLAIN, 2048, 4, 16, None, 0.5),
    "epic_verb": (250, 0, 5000, 2000, 0.4, 0.75, 0.05, 97, [*DOUBLED, (32, 1e4)], 2304, 16, 32, 30, 0.3),
    "epic_noun": (250, 0.1, 5000, 2000, 0.4, 0.75, 0.05, 300, [*DOUBLED, (32, 1e4)], 2304, 16, 32, 30, 0.3),
    "anet_tsp": (400, 0.1, 2000, 200, 0.7, 0.95, 0.1, 1, PLAIN, 512, 16, 16, 15, 0.5),
    "hacs_slowfast": (400, 0.1, 2000, 250, 0.75, 0.95, 0.05, 200, PLAIN, 2304, 8, 32, 15, 0.5),
    "hacs_i3d": (400, 0.1, 2000, 250, 0.75, 0.95, 0.05, 200, [*PLAIN[:-1], (64, 128), (128, 1e4)], 2048, 1, 1, 2, 0.5)}
MILLIONS = {"thumos_i3d": 15.99, "epic_verb": 18.59, "epic_noun": 19.50, "anet_tsp": 12.81, "hacs_slowfast": 51.86,
            "hacs_i3d": 53.41}


@pytest.mark.parametrize("name", MILLIONS)
def test_published_values_and_sizes_of_tridet(name: str):
    config = load_config(CONFIGS / f"tridet_{name}.yaml")
    model, train, test, data, opt = config.model, config.train_cfg, config.test_cfg, config.dataset, config.opt
    assert (opt.learning_rate, opt.eta_min, opt.warmup_epochs, opt.epochs, opt.weight_decay, config.loader.batch_size,
            train.clip_grad_l2norm, data.max_seq_len) == TRIDET_TRAINING[name]
    assert (model.n_sgp_win_size, model.k, model.num_bins, model.iou_weight_power, model.sgp_mlp_dim, model.embd_dim,
            model.fpn_dim, model.head_dim, model.head_kernel_size, model.boudary_kernel_size, model.use_abs_pe, model.input_noise,
            model.init_conv_vars) == TRIDET_MODEL[name]
    assert (train.init_loss_norm, train.label_smoothing, test.pre_nms_topk, test.max_seg_num, test.nms_sigma, test.voting_thresh,
            test.duration_thresh, data.num_classes, list(model.regression_range), data.input_dim, data.feat_stride,
            data.num_frames, data.default_fps, data.trunc_thresh) == TRIDET_DATA[name]
    assert model.backbone_arch == (2, 2, 6 if name == "hacs_i3d" else 5)
    assert (model.backbone_type, model.use_trident_head, model.downsample_type, model.head_num_layers) == ("SGP", True, "max", 3)
    assert (model.embd_kernel_size, model.masked_stats, train.droppath, train.loss_weight) == (3, False, 0.1, 1)
    assert (test.voting_iou_weight, data.crop_offset, data.crop_ratio, data.force_upsampling) == (False, False, (0.9, 1), False)
    assert (test.multiclass_nms, data.file_prefix) == ((False, "v_") if name == "anet_tsp" else (True, None))
    assert (data.subset_folders, data.file_ext) == (
        "hacs" in name, ".npz" if "epic" in name else ".pkl" if name == "hacs_slowfast" else ".npy")
    assert (test.min_score, test.pre_nms_thresh, test.nms_method) == (0.001, 0.001, "soft")
    with torch.device("meta"):
        millions = sum(p.numel() for p in build_model(config).parameters()) / 1e6
    assert millions == pytest.approx(MILLIONS[name], abs=5e-3)


@pytest.mark.parametrize("name", TIOUS)
def test_thresholds(name: str):
    assert get_preset(name).tious == pytest.approx(np.linspace(*TIOUS[name]))


NARROW = {"pair": ["model.embd_dim=[12,12]", "model.fpn_dim=24", "model.head_dim=16"],
          "triple": ["model.embd_dim=[16,8,8]", "model.fpn_dim=32", "model.head_dim=16"],
          "other": ["model.embd_dim=16", "model.fpn_dim=16", "model.head_dim=16"]}


def narrow(name: str) -> list[str]:
    """Overrides: a narrow network, one epoch without warm-up, on the CPU; every score counts, since two steps teach little."""
    kind = {2: "pair", 3: "triple"}.get(len(np.atleast_1d(SHAPES.get(name, (0,))[0])), name.split("_")[0])
    return [*NARROW.get(kind, NARROW["other"]), "devices=[cpu]", "loader.num_workers=0", "loader.batch_size=2",
            "opt.warmup_epochs=0", "opt.epochs=1", "test_cfg.pre_nms_thresh=0", "test_cfg.min_score=0",
            "test_cfg.max_seg_num=50", "test_cfg.pre_nms_topk=200"]


@pytest.mark.parametrize("name", [*(name for name in SHAPES if name != "thumos_i3d"), "temporalmaxer_thumos_i3d",
                                  "temporalmaxer_epic_verb", "tridet_thumos_i3d", "tridet_anet_tsp", "tridet_hacs_slowfast"])
def test_one_epoch_and_evaluation(capsys, tmp_path, name: str):
    path = plant(load_config(CONFIGS / f"{name}.yaml"), tmp_path / "data", 4, 2, seconds=(20.0, 30.0))
    settings = [*narrow(name), f"output_folder={tmp_path}/ckpt"]
    code, _, err = run_script(capsys, train.main, "train.py", str(path), "--output", "a", "--set", *settings)
    assert code == 0, err
    run = tmp_path / f"ckpt/{name}_a"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    code, out, err = run_script(capsys, eval_script.main, "eval.py", str(path), str(run), "--set", *settings)
    assert code == 0, err
    result = json.loads((run / "eval/epoch_001_ema/results.json").read_text())
    assert result["tiou"] == pytest.approx(get_preset(load_config(path).dataset_name).tious)
    counts = result["counts"]
    assert 50 <= counts["predictions"] + counts["predictions_ignored"] <= 100  # up to 50 per video, most of classes not in it
    assert "average" in out


@pytest.mark.parametrize("name", ["ego4d_slowfast_omnivore_egovlp", "epic_slowfast_noun", "anet_i3d"])
def test_one_forward_of_the_real_network(name: str):
    """Full width, a short input: the number of points per level and of classes is that of the data set."""
    config = load_config(CONFIGS / f"{name}.yaml", ["devices=[cpu]"])
    torch.manual_seed(0)
    levels, steps = config.model.backbone_arch[2] + 1, 2 ** config.model.backbone_arch[2]
    with torch.inference_mode():
        out = build_model(config).eval()(torch.randn(1, steps, config.file_channels), torch.ones(1, steps, dtype=torch.bool))
    assert out.logits.shape == (1, 2 * steps - 1, config.dataset.num_classes)
    assert [int(n) for n in out.level_sizes] == [steps >> i for i in range(levels)]


def test_activitynet_from_proposals_to_classes(capsys, tmp_path):
    """eval.py without class scores says 'action'; with them the mAP is over classes, the same as tools/evaluate.py from files."""
    path = plant(load_config(CONFIGS / "anet_tsp.yaml"), tmp_path / "data", 4, 3, seconds=(20.0, 30.0))
    settings = [*narrow("anet_tsp"), f"output_folder={tmp_path}/ckpt"]
    assert run_script(capsys, train.main, "train.py", str(path), "--set", *settings)[0] == 0
    run, annotations = tmp_path / "ckpt/anet_tsp_run", tmp_path / "data/annotations.json"

    def evaluate(output: str, *more: str) -> tuple[dict, str]:
        code, _, err = run_script(capsys, eval_script.main, "eval.py", str(path), str(run), "--output", str(tmp_path / output),
                                  "--set", *settings, *more)
        assert code == 0, err
        return json.loads((tmp_path / output / "results.json").read_text()), err

    plain, _ = evaluate("plain")
    assert list(plain["per_class_AP"]) == ["action"]
    entries = json.loads((tmp_path / "plain/predictions.json").read_text())["results"]
    assert {e["label"] for found in entries.values() for e in found} == {"action"}

    database = json.loads(annotations.read_text())["database"]
    names = [f"class {i:03d}" for i in (3, 0, 4, 1, 2)]  # an order of its own
    rng, classes = np.random.default_rng(0), {}
    for video, entry in database.items():
        own = {a["label"] for a in entry["annotations"]}
        classes[video] = [0.5 + 0.5 * rng.random() if name in own else 0.1 * rng.random() for name in names]
    scores = tmp_path / "cuhk.json"
    scores.write_text(json.dumps({"results": classes, "class": names}))
    fused, _ = evaluate("fused", f"test_cfg.ext_score_file={scores}")
    assert len(fused["per_class_AP"]) > 1
    assert fused["counts"]["predictions"] == 2 * plain["counts"]["predictions"]

    def from_file(*more: str) -> dict:
        argv = [*more, "--tiou", *(str(t) for t in plain["tiou"]), "--json", str(tmp_path / "s.json")]
        code, _, err = run_script(capsys, lambda: evaluate_script.main(argv), "evaluate.py")
        assert code == 0, err
        return json.loads((tmp_path / "s.json").read_text())

    predictions = str(tmp_path / "plain/predictions.json")
    again = from_file(predictions, str(annotations), "--class-scores", str(scores))
    assert again["per_class_AP"] == fused["per_class_AP"]
    assert from_file(str(tmp_path / "fused/predictions.json"), str(annotations))["per_class_AP"] == fused["per_class_AP"]
    assert from_file(predictions, str(annotations), "--class-agnostic")["mAP"] == plain["mAP"]

    del classes["validation_0001"]
    scores.write_text(json.dumps({"results": classes, "class": names}))
    _, err = evaluate("less", f"test_cfg.ext_score_file={scores}")
    assert "1 of 3 videos have no external scores and are left out, since the model predicts no classes" in err
    assert set(json.loads((tmp_path / "less/predictions.json").read_text())["results"]) == {"validation_0000", "validation_0002"}
