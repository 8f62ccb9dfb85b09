#!/usr/bin/env python3
"""The picture of docs/architecture.md: how data flows from files to losses and to mAP, and the floors of the code.

    python docs/figures/architecture.py            writes docs/figures/architecture.svg
"""
from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

DATA, MODEL, TRAIN, EVALUATE = "#dbe9f6", "#fde8cd", "#e3f1dc", "#ece2f3"
# name, x, y, colour, second line
BOXES = {
    "annotations": (0.0, 5.2, DATA, "JSON"), "features": (0.0, 4.0, DATA, "files (T, C)"), "raw video": (0.0, 2.8, DATA, "mp4"),
    "dataset": (2.3, 4.6, DATA, "windows on the grid"), "Batch": (4.6, 4.6, DATA, "padded (B, T, C), mask"),
    "model": (6.9, 4.6, MODEL, "backbone, neck, heads"), "LevelOutputs": (9.2, 4.6, MODEL, "logits, offsets of points"),
    "targets": (6.9, 5.8, TRAIN, "per point"), "losses": (11.5, 5.4, TRAIN, "detection, distillation"),
    "optimizer, EMA": (13.8, 5.4, TRAIN, "one training step"), "candidates": (11.5, 3.8, EVALUATE, "decode, then NMS"),
    "Detections": (13.8, 3.8, EVALUATE, "seconds, class, score"), "mAP": (13.8, 2.6, EVALUATE, "and diagnosis"),
}
ARROWS = [("annotations", "dataset"), ("features", "dataset"), ("raw video", "features"), ("dataset", "Batch"),
          ("Batch", "model"), ("Batch", "targets"), ("model", "LevelOutputs"), ("LevelOutputs", "losses"), ("targets", "losses"),
          ("losses", "optimizer, EMA"), ("LevelOutputs", "candidates"), ("candidates", "Detections"), ("Detections", "mAP")]
FLOORS = [
    ("5  train.py, eval.py, tools/", "parse arguments, call one function, print"),
    ("4  libs/engine/", "runtime < runs < distill, inference, check < training, deploy < experiments"),
    ("3  libs/modeling/", "kernels < blocks < backbones, necks, heads < model < losses, decode"),
    ("3  libs/datasets/", "annotations, grid < features < dataset < loading"),
    ("2  libs/utils/", "files < nms < evaluation < diagnosis"),
    ("1  libs/core/", "configuration, errors"),
]
WIDTH, HEIGHT = 1.9, 0.75


def data_flow(axes: Axes) -> None:
    """Boxes of BOXES, arrows of ARROWS."""
    for name, (x, y, colour, detail) in BOXES.items():
        axes.add_patch(FancyBboxPatch((x, y), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.12", fc=colour, ec="#56616d"))
        axes.text(x + WIDTH / 2, y + 0.5, name, ha="center", va="center", fontsize=9, fontweight="bold")
        axes.text(x + WIDTH / 2, y + 0.22, detail, ha="center", va="center", fontsize=6.5)
    for start, end in ARROWS:
        (x0, y0, *_), (x1, y1, *_) = BOXES[start], BOXES[end]
        if x0 == x1:  # straight down or up
            tail, head = (x0 + WIDTH / 2, y0 + HEIGHT * (y1 > y0)), (x1 + WIDTH / 2, y1 + HEIGHT * (y1 < y0))
        else:
            tail, head = (x0 + WIDTH, y0 + HEIGHT / 2), (x1, y1 + HEIGHT / 2)
        axes.annotate("", head, tail, arrowprops={"arrowstyle": "-|>", "color": "#56616d", "shrinkA": 0, "shrinkB": 0})
    axes.text(11.5, 6.3, "training", color="#4c7a34", fontsize=8, style="italic")
    axes.text(11.5, 3.55, "inference", color="#6d4c8d", fontsize=8, style="italic")


def floors(axes: Axes) -> None:
    """The rows of FLOORS, the ground floor at the bottom."""
    for i, (name, rooms) in enumerate(FLOORS):
        y = 1.75 - 0.36 * i
        axes.add_patch(FancyBboxPatch((0.0, y), 15.7, 0.3, boxstyle="square,pad=0", fc="#f3f4f6", ec="#c3c9d0", lw=0.6))
        axes.text(0.15, y + 0.15, name, va="center", fontsize=7.5, fontweight="bold")
        axes.text(4.0, y + 0.15, rooms, va="center", fontsize=7.5)
    axes.text(0.0, 2.2, "Imports go downwards only; < reads: may be imported by what follows.", fontsize=7.5, style="italic")


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "architecture", "svg.fonttype": "none"})  # the same small file on every run
    figure = Figure(figsize=(11, 4.9))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set(xlim=(-0.1, 15.9), ylim=(-0.2, 6.8))
    axes.axis("off")
    data_flow(axes)
    floors(axes)
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
