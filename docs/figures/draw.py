#!/usr/bin/env python3
"""The figures of README.md and docs/faq.md that this project draws itself.

    python train.py configs/demo.yaml --output first
    python docs/figures/draw.py ckpt/demo_first

timeline.png: one validation video of the demo, predictions under their ground truth (what TensorBoard shows while training).
grid.svg: seconds against the feature grid, computed with libs/datasets/grid.py.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from libs.core.errors import run_main
from libs.datasets.annotations import load_annotations
from libs.datasets.grid import regular_grid
from libs.engine.api import load_model
from libs.utils.plotting import COLOURS, DARK, png, subplots, svg, video_timeline

HERE = Path(__file__).resolve().parent
FPS, STRIDE, WINDOW, VECTORS = 25.0, 8, 16, 7  # those of the demo
SEGMENT = (0.8, 2.0)  # seconds


def timeline(checkpoint: str, video: str, threshold: float) -> None:
    """Write timeline.png: the detections of one demo video with scores of at least `threshold`."""
    ground_truth = load_annotations("data/demo/annotations/demo.json")
    names = {i: name for name, i in ground_truth.label_ids.items()}
    entry = ground_truth.videos[video]
    found = load_model(checkpoint, device="cpu").predict(f"data/demo/features/{video}.npy", fps=entry.fps).above(threshold)
    segments = np.stack([found.t_start, found.t_end], axis=1)
    labels = np.array([ground_truth.label_ids[name] for name in found.label])
    title = f"{video}: ground truth (dark) over predictions (height: score, at least {threshold:g})"
    figure = video_timeline(title, (entry.segments, entry.labels), (segments, labels, found.score), names)
    (HERE / "timeline.png").write_bytes(png(figure))


def grid() -> None:
    """Write grid.svg: the windows of the first vectors, their centres, and one segment, in frames, seconds and grid units."""
    to = regular_grid(STRIDE, WINDOW, FPS)
    figure, (ax,) = subplots(1, 1, 9, 3.2)
    for t in range(VECTORS):
        ax.broken_barh([(t * STRIDE, WINDOW)], (t - 0.3, 0.6), facecolor="#9ec9e8", edgecolor="#0b4f8a")
        ax.plot(float(to.grid_to_seconds(np.float64(t))) * FPS, t, "o", color=COLOURS[1])
    start, end = SEGMENT
    units = " to ".join(f"{g:g}" for g in to.seconds_to_grid(np.array(SEGMENT)))
    ax.broken_barh([(start * FPS, (end - start) * FPS)], (VECTORS - 0.3, 0.6), facecolor=DARK)
    ax.text(start * FPS - 0.5, VECTORS, f"{start:g} to {end:g} s = grid {units}", ha="right", va="center")
    ax.set_yticks(range(VECTORS + 1), [*(f"vector {t}" for t in range(VECTORS)), "segment"])
    frames = range(0, (VECTORS - 1) * STRIDE + WINDOW + 1, STRIDE)
    ax.set(xlim=(frames[0], frames[-1]), ylim=(VECTORS + 0.6, -0.6), xticks=frames, xlabel="frame")
    ax.secondary_xaxis("top", functions=(lambda f: f / FPS, lambda s: s * FPS)).set(
        xticks=[f / FPS for f in frames], xlabel="seconds")
    ax.grid(axis="x", color="#d9dee5")
    ax.set_axisbelow(True)
    figure.supxlabel(f"feat_stride {STRIDE}, num_frames {WINDOW}, {FPS:g} frames per second; dots: centres, "
                     f"(t x {STRIDE} + {WINDOW} / 2) / {FPS:g} s", fontsize="medium")
    (HERE / "grid.svg").write_text(svg(figure), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="ckpt/demo_first", help="a run of configs/demo.yaml (ckpt/demo_first)")
    parser.add_argument("--video", default="demo_validation_003")
    parser.add_argument("--threshold", type=float, default=0.1, metavar="S", help="least score drawn (0.1)")
    args = parser.parse_args()
    timeline(args.checkpoint, args.video, args.threshold)
    grid()


if __name__ == "__main__":
    run_main(main)
