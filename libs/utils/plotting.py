"""Figures, drawn with matplotlib: line charts, a timeline of one video, and conversion of figures to SVG, PNG and pixels.

    write_text_atomic("chart.svg", svg(line_chart([Panel("noise", (Line("teacher", (0, 1, 2), (60.0, 55.0, 40.0)),))],
                                                  "Robustness", "severity", "mAP (%)")))

Without pyplot there is no window system and no global state; equal figures give equal files.
"""
from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # importing matplotlib takes half a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008): distinguishable with all kinds of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":")  # where there are more lines than colours
DARK = "#1c2430"  # of ground truth
MOST_CLASSES = 8  # in `video_timeline`
DPI = 100


@dataclass(frozen=True)
class Line:
    """Points (x, y) by ascending x; `spread` (same length): a band from y - spread to y + spread."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None


@dataclass(frozen=True)
class Panel:
    """One plot; lines of the same name look the same in every panel."""

    title: str
    lines: Sequence[Line]


def subplots(rows: int, columns: int, width: float, height: float, share: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row, each about `width` x `height` inches; `share`: equal limits everywhere."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).flat)


def plain(text: str) -> str:
    """Text on one line with $ escaped, which starts a formula in matplotlib."""
    return " ".join(text.split()).replace("$", r"\$")


def line_chart(panels: Sequence[Panel], title: str, x_label: str, y_label: str, columns: int = 3) -> Figure:
    """All panels in rows of `columns`, with common axes and one legend; x ticks at the x values of the lines."""
    columns = min(columns, len(panels))
    figure, axes = subplots(-(-len(panels) // columns), columns, 3.4, 2.9, share=True)
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    for ax, panel in zip(axes, panels, strict=False):
        for line in panel.lines:
            k = names.index(line.name)
            colour, y = COLOURS[k % len(COLOURS)], np.asarray(line.y)
            ax.plot(line.x, y, color=colour, linestyle=DASHES[k // len(COLOURS) % len(DASHES)], marker="o", markersize=4,
                    label=plain(line.name))
            if line.spread is not None and any(line.spread):
                ax.fill_between(line.x, y - line.spread, y + line.spread, color=colour, alpha=0.15, linewidth=0)
        ax.set_title(plain(panel.title), fontsize="medium")
        ax.set_xlabel(x_label)
        ax.set_xticks(sorted({x for panel in panels for line in panel.lines for x in line.x}))
        ax.tick_params(labelbottom=True)
        ax.grid(axis="y", color="#dddddd")
    for ax in axes[len(panels):]:
        ax.remove()
    figure.suptitle(plain(title))
    figure.supylabel(y_label)
    legend_below(figure, axes)
    return figure


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all axes, each name once, in as many rows as needed."""
    entries = {name: handle for ax in axes for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    fitting = int(11 * figure.get_figwidth() / (max(map(len, entries), default=0) + 7))  # about 11 letters an inch
    columns = max(min(fitting, len(entries)), 1)
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


def video_timeline(title: str, ground_truth: tuple[np.ndarray, np.ndarray],
                   predictions: tuple[np.ndarray, np.ndarray, np.ndarray], label_names: Mapping[int, str]) -> Figure:
    """A row per class: a bar per ground truth, and below it a line per prediction at the height of its score.

    ground_truth: segments (N, 2) in seconds and labels (N,); predictions: segments (M, 2), labels (M,), scores (M,) in [0, 1].
    Shows at most `MOST_CLASSES`: those of the ground truth, then those of the best predictions; the title counts the others.
    """
    segments, labels = ground_truth
    found, found_labels, scores = predictions
    classes = list(dict.fromkeys([*labels.tolist(), *found_labels[np.argsort(-scores, kind="stable")].tolist()]))
    shown = classes[:MOST_CLASSES]
    figure, (ax,) = subplots(1, 1, 9, 0.7 + 0.66 * max(len(shown), 1))
    for row, label in enumerate(shown):
        bars = [(start, end - start) for start, end in segments[labels == label]]
        ax.broken_barh(bars, (row, 0.2), facecolor=DARK, edgecolor=DARK)
        best_last = np.argsort(scores, kind="stable")
        best_last = best_last[found_labels[best_last] == label]
        ax.hlines(row + 0.9 - 0.6 * scores[best_last].clip(0, 1), found[best_last, 0], found[best_last, 1],
                  color=COLOURS[row % len(COLOURS)], linewidth=3, capstyle="projecting")
        ax.axhspan(row + 0.27, row + 0.93, facecolor="#f3f5f7", zorder=0)
    more = f"   ({len(classes) - len(shown)} more classes predicted)" if len(classes) > len(shown) else ""
    ax.set_title(plain(title) + more, loc="left", fontsize="medium")
    ends = [*segments.reshape(-1, 2)[:, 1], *found.reshape(-1, 2)[:, 1]]
    ax.set(xlim=(0, max([*ends, 1e-3])), ylim=(max(len(shown), 1), -0.05), xlabel="seconds")
    ax.set_yticks([row + 0.45 for row in range(len(shown))], [plain(label_names.get(k, str(k)))[:20] for k in shown])
    ax.grid(axis="x", color="#d9dee5")
    ax.set_axisbelow(True)
    return figure


def svg(figure: Figure) -> str:
    """The figure as SVG, cropped to its contents; text stays text."""
    import matplotlib
    out = io.BytesIO()
    with _quiet(), matplotlib.rc_context({"svg.hashsalt": "libs", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().decode("utf-8").splitlines())


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as a PNG file."""
    out = io.BytesIO()
    with _quiet():
        figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def pixels(figure: Figure) -> np.ndarray:
    """The figure as (height, width, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    canvas = FigureCanvasAgg(figure)
    with _quiet():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings about characters that the font lacks, which are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield
