"""The figures of a diagnosis as PNG files, drawn with matplotlib.

    write_figures(content, Path("figures"))        content: libs/utils/diagnosis/report.py
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from libs.utils.files.io import write_bytes_atomic
from libs.utils.plotting import COLOURS, legend_below, plain, png, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUBJECT_COLOURS = ("#0072B2", "#333333")  # as on the page
KIND_COLOURS = ("#009E73", "#56B4E9", "#CC79A7", "#E69F00", "#D55E00", "#9AA3AE")
DPI = 120


def write_figures(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write map.png, classes.png, precision_recall.png, profile.png, gains.png, sensitivity.png and misses.png (rates are means
    over tIoUs unless a figure shows each).  UserError if the folder is not writable."""
    written = []
    for name, draw in (("map", _map), ("classes", _classes), ("precision_recall", _curves), ("profile", _profile),
                       ("gains", _gains), ("sensitivity", partial(_buckets, key="normalised_mAP", label="normalised mAP (%)")),
                       ("misses", partial(_buckets, key="missed", label="missed (%)"))):
        path = folder / f"{name}.png"
        write_bytes_atomic(path, png(draw(content), DPI))
        written.append(path)
    return written


def _map(content: Mapping[str, Any]) -> Figure:
    figure, (ax,) = subplots(1, 1, 5.5, 4)
    for one, colour in zip(content["predictions"], SUBJECT_COLOURS, strict=False):
        ax.plot(content["tiou"], 100 * np.array(one["mAP"]), "o-", color=colour,
                label=plain(f"{one['name']} (average {100 * one['average_mAP']:.2f})"))
    ax.set(xlabel="tIoU", ylabel="mAP (%)", title="mAP by tIoU", ylim=(0, None))
    ax.legend()
    return figure


def _classes(content: Mapping[str, Any]) -> Figure:
    order = np.argsort(np.mean(content["predictions"][0]["AP"], axis=0))
    figure, (ax,) = subplots(1, 1, 7, 1.5 + 0.24 * len(order))
    height = 0.8 / len(content["predictions"])
    for s, one in enumerate(content["predictions"]):
        ax.barh(np.arange(len(order)) - s * height, 100 * np.mean(one["AP"], axis=0)[order], height, color=SUBJECT_COLOURS[s],
                label=plain(one["name"]))
    ax.set_yticks(np.arange(len(order)), [plain(content["classes"][c]) for c in order])
    ax.set(xlabel="average precision, mean over tIoUs (%)", title="Classes", ylim=(-1, len(order)))
    ax.legend()
    return figure


def _curves(content: Mapping[str, Any]) -> Figure:
    figure, axes = subplots(1, len(content["predictions"]), 5.5, 4.5)
    for ax, one in zip(axes, content["predictions"], strict=True):
        for i, (tiou, curves) in enumerate(zip(content["tiou"], one["precision_recall"], strict=True)):
            ax.plot(100 * np.array(content["recall_levels"]), 100 * np.mean(curves, axis=0), color=COLOURS[i % len(COLOURS)],
                    label=f"tIoU {tiou:g} (mAP {100 * one['mAP'][i]:.1f})")
        ax.set(xlabel="recall (%)", ylabel="precision (%)", xlim=(0, 100), ylim=(0, 100), title=plain(one["name"]))
        ax.legend()
    return figure


def _profile(content: Mapping[str, Any]) -> Figure:
    figure, axes = subplots(1, len(content["predictions"]), 7, 4.5)
    for ax, one in zip(axes, content["predictions"], strict=True):
        counts = np.mean(one["profile"], axis=0)
        share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        below = np.cumsum(share, axis=1) - share
        labels = [f"{k}G" for k in content["profile_factors"]]
        for k, (kind, colour) in enumerate(zip(content["kinds"], KIND_COLOURS, strict=True)):
            ax.bar(labels, share[:, k], bottom=below[:, k], color=colour, label=kind)
        ax.set(xlabel="best predictions per class", ylabel="share of predictions (%)", title=plain(one["name"]))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _gains(content: Mapping[str, Any]) -> Figure:
    figure, axes = subplots(1, 2, 5.5, 4)
    kinds = content["kinds"][1:]
    for ax, how in zip(axes, ("removed", "repaired"), strict=True):
        _bars(ax, kinds, [[np.mean(one["gains"][how][kind]) for kind in kinds] for one in content["predictions"]], content)
        ax.set(ylabel="mAP gained (points)", title=f"errors {how}")
        ax.tick_params(axis="x", rotation=20)
    if len(content["predictions"]) > 1:
        legend_below(figure, axes)
    return figure


def _buckets(content: Mapping[str, Any], key: str, label: str) -> Figure:
    figure, axes = subplots(1, len(content["characteristics"]), 5, 4)
    for ax, group in zip(axes, content["characteristics"], strict=True):
        values = [np.mean([[np.nan if v is None else v for v in row] for row in one["sensitivity"][group["name"]][key]], axis=0)
                  for one in content["predictions"]]
        texts = [f"{text}\n(n={n})" for text, n in zip(group["labels"], group["ground_truth"], strict=True)]
        _bars(ax, texts, values, content)
        for one, colour in zip(content["predictions"], SUBJECT_COLOURS, strict=False):
            ax.axhline(100 * np.mean(one[key]), color=colour, linestyle="--", linewidth=1)
        ax.set(ylabel=label, title=f"{group['name']} ({group['unit']})")
        ax.tick_params(axis="x", labelsize=8)
    if len(content["predictions"]) > 1:
        legend_below(figure, axes)
    return figure


def _bars(ax: Axes, labels: Sequence[str], values: Sequence[Sequence[float]], content: Mapping[str, Any]) -> None:
    width = 0.8 / len(values)
    for s, (row, one) in enumerate(zip(values, content["predictions"], strict=True)):
        places = np.arange(len(labels)) + (s - (len(values) - 1) / 2) * width
        ax.bar(places, 100 * np.array(row, float), width, color=SUBJECT_COLOURS[s], label=plain(one["name"]))
    ax.set_xticks(np.arange(len(labels)), labels)
