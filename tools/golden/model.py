"""Golden fixtures of whole networks: model_<variant>, init_stats, param_groups, labels_losses."""
from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from golden import common, temporalmaxer
from golden.common import Check, agree, compare, load, text
from libs.core.config import from_dict
from libs.core.schema import Config
from libs.datasets.grid import Grid
from libs.datasets.loading.batch import Batch
from libs.datasets.loading.padding import padding_of
from libs.engine.inference.predict import Timeline, detections_of_batch
from libs.engine.runs.checkpoint import strip_prefix
from libs.engine.training.objective import DetectionObjective, PreparedBatch
from libs.engine.training.optim import parameter_groups
from libs.modeling.blocks import layers
from libs.modeling.kernels.conv1d import plain_conv_time
from libs.modeling.losses.detection import Losses, diou_loss, focal_loss, giou_loss, iou_offsets
from libs.modeling.losses.targets import assign_targets
from libs.modeling.model import LevelOutputs, LocPointTransformer, build_model
from libs.modeling.points import make_points
from libs.modeling.trident import Boundaries, offsets_of_level, offsets_of_pairs
from libs.utils.evaluation.predictions import Detections

LOGITS = {"atol": 2e-5, "rtol": 1e-4}
LOSS = {"rtol": 1e-5}
MODEL_NAMES = {"boudary_kernel_size": "TriDet", "assigner": "TemporalMaxerArchitecture"}  # by a key that only its fixtures have
GRADIENT = {"rtol": 1e-4, "to_largest": True}


def model_config(fixture: dict[str, Any], **extra: Any) -> Config:
    """Our configuration of a fixture's flat keyword dict; `extra` holds further top-level sections."""
    values = {k: v for k, v in fixture.items() if k not in ("train_cfg", "test_cfg")}
    method = next((name for key, name in MODEL_NAMES.items() if key in fixture), "LocPointTransformer")
    extra.setdefault("model_name", method)
    dataset = {k: values.pop(k) for k in ("input_dim", "num_classes", "max_seq_len") if k in values}
    return from_dict({"dataset": dataset, "model": values, "train_cfg": fixture.get("train_cfg", {}),
                      "test_cfg": fixture.get("test_cfg", {}), **extra}, "fixture", check=False)


def fixture_model(config: Config, data: dict[str, np.ndarray], prefix: str) -> LocPointTransformer:
    """The network with the weights stored under `prefix` in a fixture."""
    model = build_model(config).to(common.device)
    weights = {k[len(prefix):]: torch.from_numpy(v) for k, v in data.items() if k.startswith(prefix)}
    model.load_state_dict(strip_prefix(weights))
    return model


def padded(feats_CT: np.ndarray, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (C, T) as a batch of one (1, length, C), and its mask."""
    steps = feats_CT.shape[1]
    feats = torch.zeros(1, length, feats_CT.shape[0])
    feats[0, :steps] = torch.from_numpy(feats_CT.T)
    return feats.to(common.device), (torch.arange(length, device=common.device) < steps).unsqueeze(0)


def check_model(path: Path) -> list[Check]:
    """Forward, inference, targets, losses and gradients of one variant."""
    data = load(path)
    config = model_config(text(data["config"]))
    model = fixture_model(config, data, "sd/")
    names = [agree("state dict names", list(model.state_dict()) == text(data["sd_keys"]))]
    start = config.model.fpn_start_level
    return names + _check_eval(data, config, model.eval(), start) + _check_train(data, config, model)


def _check_eval(data: dict[str, np.ndarray], config: Config, model: LocPointTransformer, start: int) -> list[Check]:
    checks = []
    finest = config.model.scale_factor ** start
    for i in range(int(data["num_videos"])):
        sizes = data[f"eval{i}/level_lens"]
        feats, mask = padded(data[f"video{i}/feats"], int(sizes[0]) * finest)
        with torch.no_grad():
            out = model(feats, mask)
        name = f"video{i}"
        published = padding_of(config).published(data[f"video{i}/feats"].shape[1])
        checks += [compare(f"{name} padded length", published, feats.shape[1]),
                   compare(f"{name} level sizes", np.array(out.level_sizes), sizes),
                   compare(f"{name} logits", out.logits[0], data[f"eval{i}/cls_logits"], **LOGITS),
                   compare(f"{name} offsets", out.all_offsets()[0], data[f"eval{i}/offsets"], **LOGITS),
                   compare(f"{name} mask", out.mask[0], data[f"eval{i}/mask"])]
        if out.boundaries is not None:
            parts = {"start_logits": out.boundaries.start, "end_logits": out.boundaries.end, "offset_bins": out.offsets}
            checks += [compare(f"{name} {key}", got[0], data[f"eval{i}/{key}"], **LOGITS) for key, got in parts.items()]
        checks += _check_inference(data, config, out, i)
    return checks


def _check_inference(data: dict[str, np.ndarray], config: Config, out: LevelOutputs, i: int) -> list[Check]:
    checks = []
    # twice: from the stored logits, where order counts, and from our own, where rounding may swap scores that nearly tie
    boundaries = None
    if out.boundaries is not None:
        boundaries = Boundaries(*(_stored(data[f"eval{i}/{side}_logits"]) for side in ("start", "end")))
    stored = out._replace(logits=_stored(data[f"eval{i}/cls_logits"]), boundaries=boundaries,
                          offsets=_stored(data[f"eval{i}/{'offsets' if boundaries is None else 'offset_bins'}"]))
    fps, duration, stride, frames = (float(x) for x in data[f"video{i}/meta"])
    grid = Grid(stride, frames, 0.5 * frames / stride, fps)
    kinds = sorted({k.split("/")[1] for k in data if k.startswith(f"infer{i}/")})
    for kind in kinds:
        key = f"infer{i}/{kind}"
        if not bool(data[f"{key}/stable"]):
            checks.append(Check(f"{key} (unstable under noise)", 0.0, informational=True))
            continue
        method, classes, vote = kind.split("_")
        test = dataclasses.replace(config.test_cfg, nms_method=method, multiclass_nms=classes == "multi",
                                   voting_thresh=config.test_cfg.voting_thresh if vote == "vote" else 0.0)
        segments = data[f"{key}/segments"]
        want = Detections(np.full(len(segments), "video"), segments[:, 0], segments[:, 1], data[f"{key}/labels"].astype(np.int64),
                          data[f"{key}/scores"])
        timelines = [Timeline("video", grid, duration)]
        given = detections_of_batch(stored, test, timelines)
        checks += [compare(f"{key} labels from stored logits", given.label, want.label),
                   compare(f"{key} segments from stored logits", _segments(given), segments, atol=1e-4, rtol=1e-6),
                   compare(f"{key} scores from stored logits", given.score, want.score, atol=1e-7, rtol=1e-5)]
        got = detections_of_batch(out, test, timelines)
        checks += [compare(f"{key} scores", got.score, want.score, atol=2e-5, rtol=1e-4),
                   Check(f"{key} segments and labels", _matching_error(got, want))]
    return checks


def _stored(outputs: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(outputs)[None].to(common.device)


def _segments(found: Detections) -> np.ndarray:
    return np.stack([found.t_start, found.t_end], axis=1)


def _matching_error(got: Detections, want: Detections) -> float:
    """Largest segment error over its tolerance when equal labels are paired in order, near ties of score in any order."""
    if len(got) != len(want):
        return float("inf")
    segments, free, worst = _segments(got), np.ones(len(got), dtype=bool), 0.0
    for segment, score, label in zip(_segments(want), want.score, want.label, strict=True):
        near = np.flatnonzero(free & (got.label == label) & (np.abs(got.score - score) <= 4e-5))
        if not len(near):
            return float("inf")
        errors = (np.abs(segments[near] - segment) / (2e-3 + 1e-4 * np.abs(segment))).max(axis=1)
        best = int(np.argmin(np.nan_to_num(errors, nan=np.inf)))
        worst = max(worst, float(np.nan_to_num(errors[best], nan=np.inf)))
        free[near[best]] = False
    return worst


def _check_train(data: dict[str, np.ndarray], config: Config, model: LocPointTransformer) -> list[Check]:
    model.train()
    without_dropout(model)
    batch = batch_of(data, [f"video{i}" for i in data["train/batch"]], config.dataset.max_seq_len)
    objective = DetectionObjective(model, config).to(common.device)
    losses, norms, checks = [], [float(objective.criterion.normalizer)], []
    if config.model.assigner.type == "cost":
        checks = temporalmaxer.check_train(data, config, objective, batch)
    for _ in range(2):
        part, result = _step(data, config, objective, batch)
        losses.append([x.item() for x in (result.terms["cls_loss"], result.terms["reg_loss"], result.final)])
        norms.append(float(objective.criterion.normalizer))
    targets, points = part.targets, part.grid.points
    positive = data["train/gt_cls"].any(-1)
    if config.model.assigner.type == "center":  # those of the cost assigner are in `checks`
        checks = [compare("offset targets", targets.offsets.cpu().numpy()[positive], data["train/gt_offsets"][positive],
                          atol=1e-6, rtol=1e-6)]
    checks += [compare("points", points, data["train/points"]),
              compare("class targets", targets.classes.to(torch.uint8), data["train/gt_cls"]),
              compare("losses", losses, data["train/losses"], **LOSS),
              compare("loss normalizer", norms, data["train/loss_normalizer"], **LOSS)]
    found = _check_gradients(data, config, model, batch)
    if not all(check.passed for check in found):  # within rounding of a ReLU's kink, the order of sums decides the gradient
        with mock.patch.object(layers, "conv_time", _published_conv):
            found = _check_gradients(data, config, model, batch)
    return checks + _check_pairs(data, config, part, model) + found


def _step(data: dict[str, np.ndarray], config: Config, objective: DetectionObjective,
          batch: Batch) -> tuple[PreparedBatch, Losses]:
    part = objective.prepare(batch)
    objective.update_normalizer(part.denominators)
    with _stored_noise(data, config):
        return part, objective(part, part.denominators)


def _check_gradients(data: dict[str, np.ndarray], config: Config, model: LocPointTransformer, batch: Batch) -> list[Check]:
    """The gradients of the first training step, and their norm."""
    model.zero_grad()
    _step(data, config, DetectionObjective(model, config).to(common.device), batch)[1].final.backward()
    gradients = {k: p.grad for k, p in model.named_parameters()}
    total = torch.sqrt(sum(g.double().square().sum() for g in gradients.values() if g is not None))
    return [compare("gradient norm", total, data["train/grad_norm"], rtol=1e-4),
            *(compare(f"gradient {k}", gradients[k], data[f"grad/{k}"], **GRADIENT) for k in text(data["grad_names"]))]


def _published_conv(x_BTC: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, groups: int = 1,
                    sizes: Sequence[int] = ()) -> Tensor:
    """The convolution of the layers, with sums in the order of the published program."""
    return plain_conv_time(x_BTC, weight, bias, stride, groups, tuple(sizes) or (x_BTC.shape[1],))


def _stored_noise(data: dict[str, np.ndarray], config: Config) -> contextlib.AbstractContextManager:
    """Let the network draw the noise that a fixture of model.input_noise was measured with."""
    if "train/noise" not in data:
        return contextlib.nullcontext()
    drawn = torch.from_numpy(data["train/noise"]) / config.model.input_noise
    return mock.patch.object(torch, "randn", lambda *shape, device: drawn.view(shape).to(device))


def _check_pairs(data: dict[str, np.ndarray], config: Config, part: PreparedBatch, model: LocPointTransformer) -> list[Check]:
    """Distances and IoU of the (positive point, class) pairs of a trident head."""
    if "train/pair_offsets" not in data or "train/noise" in data:  # the noise of the first forward pass counts there
        return []
    outputs = model(part.batch.feats, part.batch.mask, part.grid)
    pairs = (part.targets.classes > 0).nonzero().unbind(1)
    pred = outputs.offsets_of(*pairs)
    return [compare("pair offsets", pred, data["train/pair_offsets"], **LOGITS),
            compare("pair IoU", iou_offsets(pred, part.targets.offsets[pairs[:2]])[0], data["train/pair_iou"], **LOGITS)]


def check_trident_decode(path: Path) -> list[Check]:
    """Distances of every point and class, in both forms: of a whole level, and of pairs."""
    data, checks = load(path), []
    for case in sorted({key.split("/")[0] for key in data}):
        start, end, bins = (torch.from_numpy(data[f"{case}/{key}"])[None].to(common.device) for key in ("start", "end", "bins"))
        pairs = torch.ones(start.shape, device=common.device).nonzero().unbind(1)
        want = data[f"{case}/offsets"]
        some = offsets_of_pairs(Boundaries(start, end), bins, [start.shape[1]], *pairs)
        checks += [compare(f"{case} level", offsets_of_level(start, end, bins)[0], want, **LOGITS),
                   compare(f"{case} pairs", some.view(want.shape), want, **LOGITS)]
    return checks


def batch_of(data: dict[str, np.ndarray], names: list[str], length: int) -> Batch:
    """The batch of videos that a fixture stores as NAME/feats, NAME/segments and NAME/labels, padded to `length` steps."""
    feats, masks = zip(*(padded(data[f"{name}/feats"], length) for name in names), strict=True)
    most = max(len(data[f"{name}/labels"]) for name in names)
    segments, labels = torch.zeros(len(names), most, 2), torch.zeros(len(names), most, dtype=torch.int64)
    present = torch.zeros(len(names), most, dtype=torch.bool)
    for b, name in enumerate(names):
        n = len(data[f"{name}/labels"])
        segments[b, :n] = torch.from_numpy(data[f"{name}/segments"])
        labels[b, :n] = torch.from_numpy(data[f"{name}/labels"])
        present[b, :n] = True
    return Batch(torch.cat(feats), torch.cat(masks), segments, labels, present, samples=()).to(common.device)


def without_dropout(model: torch.nn.Module) -> None:
    """Switch off dropout and stochastic depth, which the fixtures were measured without."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0


def check_labels_losses(path: Path) -> list[Check]:
    """Label assignment on hand-made cases, and the losses with their gradients."""
    data, checks = load(path), []
    case = 0
    while f"case{case}/args" in data:
        args = text(data[f"case{case}/args"])
        points = make_points([args["T"] // s for s in args["fpn_strides"]], args["fpn_strides"], args["regression_range"])
        checks.append(compare(f"case{case} points", points, data[f"case{case}/points"]))
        for kind in args["sets"]:
            key = f"case{case}/{kind}"
            segments = torch.from_numpy(data[f"{key}/segments"]).reshape(1, -1, 2)
            labels = torch.from_numpy(data[f"{key}/labels"]).reshape(1, -1)
            got = assign_targets(points, segments, labels, torch.ones_like(labels, dtype=torch.bool), args["num_classes"],
                                 args["center_sample"], args["center_sample_radius"])
            positive = data[f"{key}/cls"].any(-1)
            checks += [compare(f"{key} classes", got.classes[0].numpy() > 0, data[f"{key}/cls"] > 0),
                       compare(f"{key} offsets", got.offsets[0].numpy()[positive], data[f"{key}/offsets"][positive],
                               atol=1e-6, rtol=1e-6)]
        case += 1
    for name, loss, first, second in (("focal", focal_loss, "logits", "targets"), ("diou", diou_loss, "pred", "gt"),
                                      ("giou", giou_loss, "pred", "gt")):
        x = torch.from_numpy(data[f"{name}/{first}"]).requires_grad_()
        each = loss(x, torch.from_numpy(data[f"{name}/{second}"]))
        each.sum().backward()
        # pred equal to target is a kink; which of its subgradients giou was measured with differs between fixture files
        kink = np.zeros(len(x), dtype=bool) if name != "giou" else (data["giou/pred"] == data["giou/gt"]).any(1)
        checks += [compare(f"{name} per entry", each.detach(), data[f"{name}/none"], atol=1e-7, rtol=1e-5),
                   compare(f"{name} sum", each.detach().sum(), data[f"{name}/loss"], **LOSS),
                   compare(f"{name} gradient", x.grad[~kink], data[f"{name}/grad"][~kink], **GRADIENT)]
        if kink.any():
            checks.append(compare(f"{name} gradient at kinks", x.grad[kink], data[f"{name}/grad"][kink], **GRADIENT,
                                  informational=True))
    return checks


def check_init_stats(path: Path) -> list[Check]:
    """Mean and spread of freshly initialised parameters, within 4 standard errors; constants exactly."""
    data = json.loads(path.read_text())
    config = model_config(data["config"])
    torch.manual_seed(0)
    model = build_model(config)
    parameters, checks = dict(model.named_parameters()), []
    checks.append(agree("parameter names", set(parameters) == set(data["stats"])))
    for name, want in data["stats"].items():
        value = parameters[name].detach().double()
        if want["std"] < 1e-12 or value.numel() == 1:
            checks += [compare(f"{name} {k}", getattr(value, k)(), want[k], rtol=1e-6) for k in ("mean", "min", "max")]
            continue
        if name.endswith("cls_head.conv.bias"):
            continue
        n, std = value.numel(), want["std"]
        # both sides are samples, so the difference of two means has twice the variance of one
        mean_error, std_error = std * (2 / n) ** 0.5, std * (1 / n) ** 0.5
        checks += [Check(f"{name} mean", abs(float(value.mean()) - want["mean"]) / (4 * mean_error)),
                   Check(f"{name} std", abs(float(value.std()) - std) / (4 * std_error)),
                   agree(f"{name} shape", list(value.shape) == want["shape"])]
    heads = {side: head for side in ("cls", "start", "end") if (head := getattr(model, f"{side}_head")) is not None}
    return checks + [compare(f"{side} bias", head.cls_head.bias.detach(), np.asarray(data[f"{side}_bias"], dtype=np.float32),
                             rtol=1e-6) for side, head in heads.items()]


def check_param_groups(path: Path) -> list[Check]:
    """Which parameters decay, in optimizer order, for every variant whose model fixture lies beside the file."""
    data, checks = json.loads(path.read_text()), []
    seed = path.stem.rsplit("_", 1)[1]
    for variant, want in data.items():
        fixture = path.with_name(f"model_{variant}_{seed}.npz")
        if not fixture.exists():
            checks.append(Check(f"{variant} (no {fixture.name} beside it: configuration unknown)", 0.0, informational=True))
            continue
        with np.load(fixture, allow_pickle=False) as archive:
            model = build_model(model_config(text(archive["config"])))
        decay, no_decay = ([name for name, _ in group] for group in parameter_groups(model))
        count = sum(p.numel() for p in model.parameters())
        checks += [agree(f"{variant} groups", decay == want["decay"] and no_decay == want["no_decay"]),
                   compare(f"{variant} parameters", count, want["n_params"])]
    return checks
