"""Golden fixtures of training: complete steps with AdamW, schedule and average; checkpoints; learning rates."""
from __future__ import annotations

import collections
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden import common
from golden.common import Check, agree, compare, load, text
from golden.model import batch_of, fixture_model, model_config, without_dropout
from libs.core.config import from_dict
from libs.datasets.loading.batch import Batch
from libs.engine.runs.checkpoint import HARMLESS, add_prefix, load_checkpoint, load_optimizer, load_weights, save_checkpoint
from libs.engine.training.objective import DetectionObjective
from libs.engine.training.optim import make_optimizer
from libs.engine.training.schedule import make_schedule
from libs.engine.training.trainer import Trainer
from libs.modeling.model import build_model
from libs.utils.files.torch_files import load_plain

# their gradient is zero but for rounding, which AdamW turns into full steps
NOISE = (".attn.key.bias", ".attn.key_norm.bias")


def opt_values(opt: dict[str, Any]) -> dict[str, Any]:
    """The fixture's optimiser section without the number of iterations."""
    return {k: v for k, v in opt.items() if k != "num_iters_per_epoch"}


def check_train_steps(path: Path) -> list[Check]:
    """The stored steps, through the trainer that train.py uses; then our own checkpoint of the result, read back."""
    data = load(path)
    opt = text(data["opt"])
    config = model_config(text(data["config"]), opt=opt_values(opt))
    model = fixture_model(config, data, "sd0/")
    without_dropout(model)
    count = len({k.split("/")[0] for k in data if k.startswith("batch")})
    trainer = Trainer(DetectionObjective(model, config).to(common.device), config, opt.get("num_iters_per_epoch", count))
    batches = [_batch(data, b, config.dataset.max_seq_len) for b in range(count)]
    got: dict[str, list[Any]] = {"lr": [], "losses": [], "grad_norm": [], "loss_normalizer": []}
    steps = len(data["lr"])
    for i in range(steps):
        result = trainer.step(batches[i % count])
        _average_shared_again(trainer)
        got["lr"].append(trainer.learning_rate)
        got["losses"].append([result[k].item() for k in ("cls_loss", "reg_loss", "final_loss")])
        got["grad_norm"].append(result["grad_norm"].item())
        got["loss_normalizer"].append(trainer.objective.criterion.normalizer.item())
    trainer.raise_if_not_finite()
    checks = [compare("learning rates", got["lr"], data["lr"], rtol=1e-12),
              compare("losses", got["losses"], data["losses"], rtol=1e-5, atol=1e-7),
              compare("gradient norms", got["grad_norm"], data["grad_norm"], rtol=1e-4),
              compare("loss normalizers", got["loss_normalizer"], data["loss_normalizer"], rtol=1e-6)]
    noise = NOISE + tuple(text(data["noise_names"]) if "noise_names" in data else ())
    for kind, state in (("sd", model.state_dict()), ("ema", trainer.ema.state_dict())):
        checks += _compare_weights(f"{kind} after {steps} steps", noise, state,
                                   {k.split("/", 1)[1]: v for k, v in data.items() if k.startswith(f"{kind}{steps}/")})
    return checks


@torch.no_grad()
def _average_shared_again(trainer: Trainer) -> None:
    """The published average takes a step for each name of a shared parameter (SPEC_FAMILY F31), ours takes one."""
    sources, average = trainer.model.state_dict(keep_vars=True), trainer.ema.state_dict()
    names = collections.Counter(id(parameter) for parameter in sources.values())
    for name, parameter in sources.items():
        for _ in range(names[id(parameter)] - 1):
            average[name].lerp_(parameter, 1 - trainer.ema.decay)


def _batch(data: dict[str, np.ndarray], b: int, length: int) -> Batch:
    videos = sorted({k.split("/")[1][len("feats"):] for k in data if k.startswith(f"batch{b}/feats")}, key=int)
    renamed = {f"{j}/{part}": data[f"batch{b}/{part}{j}"] for j in videos for part in ("feats", "segments", "labels")}
    return batch_of(renamed, videos, length)


def _compare_weights(name: str, noise: tuple[str, ...], got: dict[str, Tensor], want: dict[str, np.ndarray]) -> list[Check]:
    checks = [agree(f"{name}: names", set(got) == set(want))]
    return checks + [compare(f"{name}: {k}", got[k], v, atol=1e-5 if v.any() else 0.0, informational=k.endswith(noise))
                     for k, v in want.items()]


def check_checkpoint(path: Path) -> list[Check]:
    """Load a published checkpoint, save it again: same names, bit-identical tensors, weights and optimizer moments alike."""
    checkpoint = load_checkpoint(path)
    original = load_plain(path, types=HARMLESS)
    steps_file = path.with_name(path.name.replace("checkpoint_", "train_steps_").replace(".pth.tar", ".npz"))
    checks = []
    if steps_file.exists():
        data = load(steps_file)
        config = model_config(text(data["config"]), opt=opt_values(text(data["opt"])))
        model = build_model(config)
        optimizer = make_optimizer(model, config.opt)
        load_optimizer(optimizer, checkpoint.optimizer, path)
        moments = optimizer.state_dict()
        load_weights(model, checkpoint, "raw")
        weights = {k: v.clone() for k, v in model.state_dict().items()}
        load_weights(model, checkpoint, "ema")
        average = model.state_dict()
        for kind, state in (("sd", weights), ("ema", average)):
            steps = len(data["lr"])
            stored = {k.split("/", 1)[1]: v for k, v in data.items() if k.startswith(f"{kind}{steps}/")}
            checks += _compare_weights(f"{kind} against the training fixture", (), state, stored)
    else:
        moments, weights, average = checkpoint.optimizer, checkpoint.weights, checkpoint.weights_ema
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / "again.pth.tar"
        save_checkpoint(again, checkpoint.epoch, weights, average, moments, checkpoint.scheduler, None)
        saved = torch.load(again, map_location="cpu", weights_only=True)
    checks.append(agree("keys", set(saved) == set(original) - {"mAP"}))  # of the published bestmodel.pth.tar
    for part in ("state_dict", "state_dict_ema"):
        same = list(saved[part]) == list(original[part]) and all(_identical(saved[part][k], v) for k, v in original[part].items())
        checks.append(agree(f"{part} bit-identical", same))
    state, wanted = saved["optimizer"]["state"], original["optimizer"]["state"]
    same = set(state) == set(wanted) and all(_identical(state[i][k], v) for i, m in wanted.items() for k, v in m.items())
    checks.append(agree("optimizer moments bit-identical", same))
    groups, wanted = saved["optimizer"]["param_groups"], original["optimizer"]["param_groups"]
    same = [g["params"] for g in groups] == [g["params"] for g in wanted]
    return checks + [agree("optimizer groups", same),
                     agree("scheduler", saved["scheduler"] == original["scheduler"]),
                     agree("prefix", set(add_prefix(checkpoint.weights)) == set(original["state_dict"]))]


def _identical(a: Any, b: Any) -> bool:
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(b, Tensor) else a == b


def check_lr(path: Path) -> list[Check]:
    """Learning rate per iteration, past the end too; a warm-up of zero epochs is a documented bug of the reference."""
    data, checks = load(path), []
    for name in sorted({k.rsplit("/", 1)[0] for k in data}):
        opt = text(data[f"{name}/opt"])
        schedule = make_schedule(from_dict({"opt": opt_values(opt)}, "fixture", check=False).opt, opt["num_iters_per_epoch"])
        got = [schedule.at(i) for i in range(len(data[f"{name}/lr"]))]
        checks.append(compare(name, got, data[f"{name}/lr"], rtol=1e-12, atol=1e-18, informational="zerowarmup" in name))
    return checks
