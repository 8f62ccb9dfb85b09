"""Reports of a training run: its first lines, scores of evaluations, pictures of detections."""
from __future__ import annotations

import numpy as np

from libs.core.errors import note
from libs.core.schema import Config
from libs.datasets.dataset import TalDataset
from libs.engine.runs.checkpoint import BEST
from libs.engine.runs.network import note_dead_blocks
from libs.engine.training.cuda_graphs import graphs_hint
from libs.engine.training.run import TrainingRun
from libs.engine.training.training_state import save_state
from libs.modeling.points import range_gaps
from libs.utils.evaluation.metrics import Scores
from libs.utils.evaluation.predictions import Detections, write_predictions_json
from libs.utils.plotting import pixels, video_timeline

PSEUDO_LABELS = "pseudo_labels.json"  # in the run's folder, for distill.pseudo_labels
SHOWN_VIDEOS = 3  # in TensorBoard


def announce(run: TrainingRun, resumed: bool) -> None:
    """Print a summary of the run, and write it to TensorBoard as a table."""
    trainer, config = run.trainer, run.trainer.config
    if (both := sorted(set(config.train_split) & set(config.val_split))) and trainer.world.is_main:
        note(f"warning: {config.source}: train_split and val_split both name {', '.join(both)}: the mAP is measured on videos "
             "that were trained on; name another subset in one of them")
    if trainer.world.is_main:
        note_dead_blocks(trainer.model, config.source)
        note_range_gaps(config)
    parts = [f"{run.log.folder}: {len(run.train_set)} videos", f"{trainer.iters_per_epoch} iterations per epoch",
             epochs_text(config), f"{_parameters(run) / 1e6:.2f} M parameters", str(trainer.device)]
    if run.teachers:
        parts.append(f"teachers: {', '.join(t.name for t in run.teachers)}")
    if len(made := run.train_set.pseudo_labels):
        parts.append(f"pseudo-labels: {len(made)} with scores from {made.score.min():.3f} on, in {PSEUDO_LABELS}")
        if trainer.world.is_main:
            write_predictions_json(run.log.folder / PSEUDO_LABELS, made, run.train_set.label_names)
    if trainer.videos_per_step != config.loader.batch_size:
        parts += [f"{trainer.world.size} process{'es' * (trainer.world.size > 1)}", f"{trainer.videos_per_step} videos per step",
                  f"base learning rate {trainer.schedule.base:g}"]
    if resumed:
        parts.append(f"resumed after epoch {trainer.epoch}" + (f" and {trainer.steps} iterations" if trainer.steps else ""))
    run.log.print(", ".join(parts))
    if trainer.world.is_main and (hint := graphs_hint(config, trainer.device, trainer.world.size)):
        note(hint)
    if trainer.epoch >= config.total_epochs:
        run.log.print(f"all {config.total_epochs} epochs are done; evaluate with eval.py, or raise opt.epochs")
    run.log.text("summary", _summary(run), trainer.iteration)


def note_range_gaps(config: Config) -> None:
    """One line if no level regresses some distances, so that segments may get few points or none."""
    if gaps := range_gaps(config.model.regression_range):
        shown = ", ".join(f"[{low:g}, {high:g}]" for low, high in gaps)
        note(f"warning: {config.source}: model.regression_range: no level takes a point whose farther boundary is {shown} "
             "feature steps away, so segments of such lengths are learned from few points or none; let the ranges begin at 0 and "
             "each where the one before ends, or earlier (tools/check_dataset.py counts the segments)")


def _summary(run: TrainingRun) -> str:
    """The run as a Markdown table."""
    trainer, config = run.trainer, run.trainer.config
    val = f"{len(run.val_set)} of {', '.join(config.val_split)}" if run.val_set is not None else "not evaluated"
    rows = {
        "configuration": config.source, "seed": config.init_rand_seed, "device": str(trainer.device),
        "dataset": f"{config.dataset_name}, {config.dataset.json_file}",
        "training videos": f"{len(run.train_set)} of {', '.join(config.train_split)}", "validation videos": val,
        "classes": len(run.train_set.label_names),
        "network": f"{config.model.backbone_type}, {_parameters(run) / 1e6:.2f} M parameters",
        "teachers": ", ".join(t.name for t in run.teachers) or "none",
        "length": f"{epochs_text(config)} of {trainer.iters_per_epoch} iterations, batch {config.loader.batch_size}",
        "optimizer": f"{config.opt.type}, learning rate {config.opt.learning_rate:g}, weight decay {config.opt.weight_decay:g}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | `{value}` |" for key, value in rows.items())])


def epochs_text(config: Config) -> str:
    """Such as '8 + 2 warm-up epochs': opt.epochs does not count the warm-up."""
    warmup = config.opt.warmup_epochs if config.opt.warmup else 0
    text = f"{config.opt.epochs} + {warmup} warm-up epochs" if warmup else f"{config.opt.epochs} epochs"
    stops = config.total_epochs < config.opt.epochs + warmup
    return f"{text} (stops after {config.total_epochs}: opt.early_stop_epochs)" if stops else text


def _parameters(run: TrainingRun) -> int:
    return sum(p.numel() for p in run.trainer.model.parameters())


def record_scores(run: TrainingRun, scores: Scores) -> None:
    """Log the scores of an evaluation and print the average mAP; saves the best checkpoint so far."""
    trainer, weights = run.trainer, run.trainer.config.test_cfg.weights
    values = {f"mAP@{t:.2f}": float(m) for t, m in zip(scores.tious, scores.mAP, strict=True)}
    values["average_mAP"] = float(scores.average_mAP)
    run.log.scalars({f"validation/{k}": 100 * v for k, v in values.items()}, trainer.iteration)
    run.log.log({"iteration": trainer.iteration, "epoch": trainer.epoch, "weights": weights, **values})
    run.log.flush()
    run.log.print(f"epoch {trainer.epoch:3d}  average mAP {100 * scores.average_mAP:.2f}  ({weights} weights)")
    if values["average_mAP"] > trainer.best.get("average_mAP", -1.0):
        if not trainer.best and "test" in trainer.config.val_split:
            note("warning: val_split is the test split: a checkpoint chosen by it is tuned on the test data; report the last "
                 "epoch instead")
        trainer.best = {"epoch": trainer.epoch, "average_mAP": values["average_mAP"]}
        save_state(trainer, run.log.folder / BEST)


def show_detections(run: TrainingRun, val_set: TalDataset, detections: Detections) -> None:
    """Pictures of detections and ground truth of SHOWN_VIDEOS videos in TensorBoard, the same ones at every evaluation."""
    annotated = [video for video in val_set.videos if len(video.segments)] or list(val_set.videos)
    for i in np.linspace(0, len(annotated) - 1, min(SHOWN_VIDEOS, len(annotated))).round().astype(int):
        video = annotated[i]
        found = detections.take(detections.video_id == video.id)
        figure = video_timeline(video.id, (video.segments, video.labels),
                                (np.stack([found.t_start, found.t_end], axis=1), found.label, found.score), val_set.label_names)
        run.log.image(f"predictions/{video.id}", pixels(figure), run.trainer.iteration)
