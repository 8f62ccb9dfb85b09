"""Line charts as SVG text: self-contained, no plotting library, readable by every browser.

    text = line_chart([Panel("noise", (Line("teacher", (0, 1, 2), (60.0, 55.0, 40.0)),))], "Robustness", "severity", "mAP (%)")
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

# Okabe and Ito, "Color Universal Design" (2008): told apart with every kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("none", "6 3", "2 3")  # where there are more lines than colours
WIDTH, HEIGHT = 250, 180  # of the plotting area of one panel
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 30, 44  # around it
HEAD, ENTRY = 34, 20  # height of the title and of a row of the legend
LETTER = 7  # width of a letter at the legend's size, generously


@dataclass(frozen=True)
class Line:
    """Points (x, y) by rising x; `spread` (same length) is drawn as a band of y - spread to y + spread."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Panel:
    """One coordinate system; lines of the same name look the same in every panel."""

    title: str
    lines: tuple[Line, ...]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers at equal distances (1, 2 or 5 times a power of ten), the first <= low and the last >= high."""
    span = (high - low) or abs(high) or 1.0
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def line_chart(panels: Sequence[Panel], title: str, x_label: str, y_label: str, columns: int = 3) -> str:
    """An SVG document of all panels in rows of `columns`, with common axes and one legend.

    x ticks are the x values that occur.  Raises ValueError for no points, points that are not finite, or lists of unequal length.
    """
    lines = [line for panel in panels for line in panel.lines]
    _check(lines)
    xs = sorted({x for line in lines for x in line.x})
    around = [(y, s) for line in lines for y, s in zip(line.y, line.spread or (0.0,) * len(line.y), strict=True)]
    y_ticks = ticks(min(y - s for y, s in around), max(y + s for y, s in around))
    scale = _Scale(xs[0], xs[-1], y_ticks[0], y_ticks[-1])
    columns = min(columns, len(panels))
    cell_w, cell_h = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM
    names, rows = list(dict.fromkeys(line.name for line in lines)), -(-len(panels) // columns)
    width = max(columns * cell_w, LEFT + max(map(_entry_width, names)))
    styles = {name: (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]) for i, name in enumerate(names)}
    legend, legend_height = _legend(names, styles, width, HEAD + rows * cell_h)
    height = HEAD + rows * cell_h + legend_height
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           'font-family="Helvetica, Arial, sans-serif" font-size="11">',
           f'<rect width="{width}" height="{height}" fill="white"/>', _text(width / 2, 22, title, size=15)]
    for i, panel in enumerate(panels):
        x, y = i % columns * cell_w + LEFT, HEAD + i // columns * cell_h + TOP
        out += [f'<g transform="translate({x} {y})">', *_axes(scale, xs, y_ticks, panel.title, x_label, y_label)]
        out += [part for line in panel.lines for part in _line(scale, line, *styles[line.name])]
        out.append("</g>")
    return "\n".join([*out, *legend, "</svg>"]) + "\n"


@dataclass(frozen=True)
class _Scale:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        span = self.x_high - self.x_low
        return WIDTH * (value - self.x_low) / span if span else WIDTH / 2

    def y(self, value: float) -> float:
        return HEIGHT * (self.y_high - value) / (self.y_high - self.y_low)


def _check(lines: Sequence[Line]) -> None:
    if not any(line.x for line in lines):
        raise ValueError("a chart needs at least one point")
    for line in lines:
        if len(line.x) != len(line.y) or (line.spread is not None and len(line.spread) != len(line.y)):
            raise ValueError(f"line {line.name!r}: x, y and spread differ in length")
        if not all(map(math.isfinite, (*line.x, *line.y, *(line.spread or ())))):
            raise ValueError(f"line {line.name!r}: holds numbers that are not finite")


def _axes(scale: _Scale, xs: Sequence[float], y_ticks: Sequence[float], title: str, x_label: str, y_label: str) -> list[str]:
    out = [_text(WIDTH / 2, -10, title, size=13), _text(WIDTH / 2, HEIGHT + 34, x_label),
           _text(-38, HEIGHT / 2, y_label, extra=f' transform="rotate(-90 -38 {HEIGHT / 2:g})"')]
    for value in y_ticks:
        y = scale.y(value)
        out.append(f'<path d="M0 {y:.2f}H{WIDTH}" stroke="#dddddd"/>')
        out.append(_text(-6, y + 4, f"{value:g}", anchor="end"))
    for value in xs:
        x = scale.x(value)
        out.append(f'<path d="M{x:.2f} {HEIGHT}v4" stroke="black"/>')
        out.append(_text(x, HEIGHT + 17, f"{value:g}"))
    return [*out, f'<path d="M0 0V{HEIGHT}H{WIDTH}" fill="none" stroke="black"/>']


def _line(scale: _Scale, line: Line, colour: str, dash: str) -> list[str]:
    out = []
    if line.spread is not None and any(line.spread):
        band = list(zip(line.x, (y + s for y, s in zip(line.y, line.spread, strict=True)), strict=True))
        band += list(zip(line.x, (y - s for y, s in zip(line.y, line.spread, strict=True)), strict=True))[::-1]
        out.append(f'<polygon points="{_points(scale, band)}" fill="{colour}" fill-opacity="0.15"/>')
    points = list(zip(line.x, line.y, strict=True))
    out.append(f'<polyline points="{_points(scale, points)}" fill="none" stroke="{colour}" stroke-width="1.8" '
               f'stroke-dasharray="{dash}"><title>{escape(line.name)}</title></polyline>')
    out += [f'<circle cx="{scale.x(x):.2f}" cy="{scale.y(y):.2f}" r="2.4" fill="{colour}"/>' for x, y in points]
    return out


def _points(scale: _Scale, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{scale.x(x):.2f},{scale.y(y):.2f}" for x, y in points)


def _legend(names: Sequence[str], styles: dict[str, tuple[str, str]], width: float, top: float) -> tuple[list[str], float]:
    """Entries in as many rows as they need, and the height of all."""
    out, x, row = [], float(LEFT), 0
    for name in names:
        colour, dash = styles[name]
        need = _entry_width(name)
        if x > LEFT and x + need > width:
            x, row = float(LEFT), row + 1
        y = top + row * ENTRY + 10
        out.append(f'<path d="M{x:g} {y:g}h26" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"/>')
        out.append(_text(x + 32, y + 4, name, anchor="start"))
        x += need
    return out, (row + 1) * ENTRY + 8


def _entry_width(name: str) -> int:
    return 34 + LETTER * len(name) + 16


def _text(x: float, y: float, content: str, anchor: str = "middle", size: int = 11, extra: str = "") -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" font-size="{size}"{extra}>{escape(content)}</text>'
