"""Evaluation of one checkpoint: load, predict, score, write."""
from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from libs.core.config import load_config, to_dict
from libs.core.errors import UserError, note
from libs.core.files import is_file
from libs.core.schema import Config
from libs.datasets.dataset import TalDataset
from libs.engine.inference.candidates import CANDIDATES, CandidateCollector
from libs.engine.inference.predict import predict, score
from libs.engine.runs.checkpoint import BEST, Checkpoint, changed_settings, check_label_ids, checkpoints_of
from libs.engine.runs.environment import NAME as ENVIRONMENT
from libs.engine.runs.environment import environment
from libs.engine.runs.network import load_network
from libs.engine.runtime.determinism import strict_determinism
from libs.engine.runtime.precision import check_precision
from libs.engine.runtime.world import ALONE, World
from libs.utils.evaluation.conditions import conditions, conditions_text
from libs.utils.evaluation.metrics import Scores
from libs.utils.evaluation.predictions import Detections, write_predictions_csv, write_predictions_json, write_predictions_pickle
from libs.utils.files.io import check_writable, remove, remove_leftovers, write_json_atomic
from libs.utils.progress import Progress, no_progress
from libs.utils.significance.bootstrap import confidence, confidence_line, video_codes

# keys that the weights do not reveal: with another value the same weights silently give wrong results
FUNCTION_KEYS = ("model.", "dataset.feat_stride", "dataset.num_frames", "dataset.downsample_rate", "dataset.default_fps",
                 "dataset.max_seq_len", "dataset.input_dim", "dataset.modalities", "dataset.force_upsampling")


EVALUATED = ("test_cfg.", "dataset.", "val_split", "model.")  # settings that change the results of an evaluation
IGNORED = ("devices", "output_folder", "loader.num_workers", "loader.cache", "test_cfg.batch_size",
           "distill.cache_folder", "dataset.extractor")  # change no number
WEIGHTS_KEY = "test_cfg.weights"  # shows in the name of the results' folder
RESULTS = "results.json"
PREDICTIONS = "eval_results.pkl"  # class ids, exact numbers: the fastest to read again
PRE_NMS = ("pre_nms_thresh", "pre_nms_topk", "duration_thresh")
NMS = ("nms_method", "iou_threshold", "nms_sigma", "min_score", "multiclass_nms", "voting_thresh", "voting_iou_weight",
       "multiclass_voting")


def evaluation_folder(checkpoint: Path, which: str, changed: Mapping[str, str] = MappingProxyType({})) -> Path:
    """The folder for the results of a checkpoint's `ema` or `raw` weights with its own settings, or with `changed` ones, as
    `other_settings` gives them."""
    name = f"{checkpoint.name.removesuffix('.pth.tar')}_{which}"
    return checkpoint.parent / "eval" / (f"{name}_{_suffix(changed)}" if changed else name)


def _suffix(changed: Mapping[str, str]) -> str:
    """The changed settings as a part of a name, e.g. max_seg_num=100, or, if that is long or has other characters, a hash."""
    values = [(key.rpartition(".")[2], line.rpartition(" -> ")[2]) for key, line in changed.items()]
    text = ",".join(f"{key}={re.sub('[][() ]|,[)]', '', value)}" for key, value in values).replace("'", "")
    if re.fullmatch(r"[\w.,=+-]{1,60}", text, re.ASCII):
        return text
    return hashlib.blake2b("; ".join(changed.values()).encode(), digest_size=4).hexdigest()


def other_settings(checkpoint: Checkpoint, config: Config) -> dict[str, str]:
    """Dotted key -> "key: old -> new" for each setting that changes results and is not the checkpoint's own.

    A checkpoint of another program holds no settings: those of the configuration file, without --set, count as its own.
    """
    known = "config" in (checkpoint.training or {})
    fold = () if config.fold is None else (f"fold={config.fold}",)
    base = load_config(config.source, fold) if not known and is_file(config.source) else None
    return {key: line for key, line in changed_settings(checkpoint, config, base).items()
            if key.startswith(EVALUATED) and key not in (*IGNORED, WEIGHTS_KEY)}


def refuse_other_fold(config: Config, checkpoint: Checkpoint) -> None:
    """UserError for a checkpoint of another fold than the configuration's: it may have seen the videos to evaluate on."""
    values = (checkpoint.training or {}).get("config")
    trained = values.get("fold") if isinstance(values, Mapping) else None
    if config.fold is not None and trained is not None and config.fold != trained:
        raise UserError(f"{config.source}: fold: {config.fold}, but {checkpoint.path} was trained on fold {trained} and may have "
                        f"seen these videos; use --set fold={trained}, or a checkpoint of fold {config.fold}")


def warn_of_drift(checkpoint: Checkpoint, changed: Mapping[str, str]) -> None:
    """Warn if `other_settings` of a checkpoint that holds its own change what the network computes."""
    drifted = [line for key, line in changed.items() if key.startswith(FUNCTION_KEYS)]
    if drifted and "config" in (checkpoint.training or {}):
        note(f"warning: {checkpoint.path}: was trained with another configuration: {'; '.join(drifted)}; the results are not "
             "those of the trained network")


def conditions_of(config: Config, checkpoint: Checkpoint, dataset: TalDataset, scores: Scores) -> dict[str, Any]:
    """What the scores of a checkpoint on a dataset were measured under (libs/utils/evaluation/conditions.py)."""
    test, external = to_dict(config)["test_cfg"], config.test_cfg.ext_score_file
    trained = (checkpoint.training or {}).get("config") or {}
    best = checkpoint.path.name == BEST
    chosen_on = list(trained.get("val_split", ())) if best else []
    last = checkpoint.training is not None and checkpoint.epoch == config.total_epochs
    chosen = (f"best of the evaluations during training on {', '.join(chosen_on) or 'an unknown split'}" if best else
              "the last of its training" if last else "named, not the last of a training")
    return conditions("activitynet", config.dataset.json_file, config.val_split, len(dataset.annotated_ids), scores,
                      config.test_cfg.max_seg_num, {f"test_cfg.exclude: {config.test_cfg.exclude}": dataset.left_out_ids},
                      external, weights=config.test_cfg.weights, epoch=checkpoint.epoch, chosen=chosen, chosen_on=chosen_on,
                      without_features=len(dataset.missing_ids), pre_nms={key: test[key] for key in PRE_NMS},
                      nms={key: test[key] for key in NMS})


def evaluate_checkpoint(config: Config, checkpoint: Checkpoint, device: torch.device, save_only: bool = False,
                        output: Path | None = None, deterministic: bool = False,
                        progress: Callable[[int], Progress] = lambda total: no_progress,
                        save_candidates: bool = False, world: World = ALONE) -> Scores | None:
    """Evaluate a checkpoint on `val_split`, print the table and write the files named in eval.py.

    `world`: the processes that share the work; each calls this, process 0 writes the files and returns the scores.
    `progress(total)` makes the callback of the inference loop; `deterministic`: as in libs/engine/runtime/determinism.py.
    `save_candidates`: also write the candidates before NMS to candidates.npz, for tools/sweep_nms.py.
    Returns the scores, or None with `save_only`.  Raises UserError for every input that does not fit.
    """
    path, which = checkpoint.path, config.test_cfg.weights
    check_precision(config.test_cfg.precision, device, config.source, "test_cfg.precision")
    refuse_other_fold(config, checkpoint)
    model = load_network(config, checkpoint, which)
    changed = other_settings(checkpoint, config)
    warn_of_drift(checkpoint, changed)
    dataset = TalDataset(config, config.val_split, training=False)
    check_label_ids(checkpoint, dataset.label_names, config.dataset.json_file)
    if not save_only:
        dataset.ground_truth()  # before the work: UserError if there is nothing to score against
    folder = output or evaluation_folder(path, which, changed)
    if checkpoints_of(folder):
        raise UserError(f"{folder}: holds the checkpoints of a run, whose {ENVIRONMENT} would be replaced; choose another "
                        "--output")
    check_writable(folder / RESULTS)
    counted = " (counted from 0)" if checkpoint.counted_from_0 else ""
    print(f"{path}: epoch {checkpoint.epoch}{counted}, {which} weights, "
          f"{len(dataset)} videos of {', '.join(config.val_split)}, {device}"
          + (f"; other settings than the checkpoint's own: {'; '.join(changed.values())}" if changed else ""), flush=True)
    if save_candidates and world.size > 1:
        raise UserError("--save-candidates: the candidates lie in several processes here; run eval.py without torchrun")
    collector = CandidateCollector(config.test_cfg) if save_candidates else None
    started = time.perf_counter()
    with strict_determinism(deterministic):
        detections = predict(model.to(device), dataset, config, device, progress(len(dataset)), world, collector)
        about = environment(config, device)
    if not world.is_main:
        return None
    seconds = time.perf_counter() - started
    remove_leftovers(folder, older_than_s=3600.0)  # of killed evaluations; a more recent one may still be running
    write_json_atomic(folder / ENVIRONMENT, {**about, "checkpoint": str(path), "weights": which})
    remove(folder / RESULTS, folder / CANDIDATES)  # these are not written by every evaluation
    _write_predictions(folder, detections, dataset)
    if collector is not None:
        written = collector.write(folder / CANDIDATES, [v.id for v in dataset.videos], config,
                                  {"checkpoint": str(path), "epoch": checkpoint.epoch, "weights": which})
        print(f"{written} candidates before NMS written to {folder / CANDIDATES}", flush=True)
    print(f"{len(detections.score)} segments in {seconds:.1f} s, written to {folder}", flush=True)
    if save_only:
        return None
    scores = score(detections, dataset)
    sure = confidence(scores, detections, video_codes(dataset.annotated_ids))
    known = conditions_of(config, checkpoint, dataset, scores)
    write_json_atomic(folder / RESULTS, {"checkpoint": str(path), "epoch": checkpoint.epoch, "weights": which, **scores.as_dict(),
                                         "confidence": sure, "conditions": known, "config": to_dict(config)})
    print(f"{conditions_text(known)}\n{scores.table()}\n{confidence_line(sure)}", flush=True)
    return scores


def _write_predictions(folder: Path, detections: Detections, dataset: TalDataset) -> None:
    write_predictions_json(folder / "predictions.json", detections, dataset.label_names)
    write_predictions_csv(folder / "predictions.csv", detections, dataset.label_names)
    write_predictions_pickle(folder / PREDICTIONS, detections)
