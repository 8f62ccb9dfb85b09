"""Pictures: what is drawn lies where the numbers say, text is taken as it stands, and equal figures give equal files."""
from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection

from libs.utils.plotting import COLOURS, MOST_CLASSES, Line, Panel, line_chart, pixels, png, svg, video_timeline

NOTHING = (np.empty((0, 2)), np.empty(0, int), np.empty(0))


def chart(count=4, lines=3, columns=3):
    panels = [Panel(f"panel {p} <$&>", [Line(f"model {i}", (0, 1, 2, 5), (60 - i, 50.5 - p, 40, 7 + i), (1, 0, 2, 0.5))
                                        for i in range(lines)]) for p in range(count)]
    return line_chart(panels, "a & b", "severity", "mAP", columns)


def texts(document):
    return ["".join(item.itertext()) for item in ElementTree.fromstring(document).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize(("count", "lines", "columns"), [(1, 1, 3), (4, 3, 3), (5, 21, 2)])
def test_lines_go_through_their_points_and_look_the_same_in_every_panel(count, lines, columns):
    figure = chart(count, lines, columns)
    assert len(figure.axes) == count
    for p, ax in enumerate(figure.axes):
        drawn = ax.get_lines()
        assert [line.get_xydata().tolist() for line in drawn] == [[[0, 60 - i], [1, 50.5 - p], [2, 40], [5, 7 + i]]
                                                                  for i in range(lines)]
        styles = [(line.get_color(), line.get_linestyle()) for line in drawn]
        assert len(set(styles)) == lines
        assert styles == [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()]
        assert (ax.get_xlim(), ax.get_ylim()) == (figure.axes[0].get_xlim(), figure.axes[0].get_ylim())


def test_text_is_taken_as_it_stands_and_the_legend_names_each_line_once():
    found = texts(svg(chart()))
    assert {"a & b", "panel 0 <$&>", "severity", "mAP"} <= set(found)
    assert found.count("model 0") == 1


def test_the_band_is_as_wide_as_the_spread():
    (band,) = [c for c in chart(1, 1).axes[0].collections if isinstance(c, PolyCollection)]
    low, high = band.get_paths()[0].get_extents().get_points()[:, 1]
    assert (low, high) == (6.5, 61)
    flat = line_chart([Panel("a", [Line("m", (0, 1), (10.0, 20.0), (0.0, 0.0))])], "t", "x", "y")
    assert not flat.axes[0].collections


def test_equal_figures_give_equal_files():
    assert svg(chart()) == svg(chart())
    assert png(chart()) == png(chart())
    assert "date" not in svg(chart())


def bars(figure):
    """Per class, as (x0, x1): the bars of its ground truths, and as (x0, x1, y) the lines of its predictions."""
    collections = figure.axes[0].collections
    truth = [[tuple(path.get_extents().get_points()[:, 0]) for path in c.get_paths()]
             for c in collections if isinstance(c, PolyCollection)]
    found = [[(a[0], b[0], a[1]) for a, b in c.get_segments()] for c in collections if isinstance(c, LineCollection)]
    return truth, found


def test_segments_lie_where_their_times_are_and_better_ones_are_higher_and_drawn_last():
    ground_truth = (np.array([[2.0, 4.0], [5.0, 6.0]]), np.array([5, 3]))
    predictions = (np.array([[6.0, 10.0], [1.0, 3.0], [0.0, 1.0]]), np.array([5, 5, 1]), np.array([1.0, 0.0, 0.5]))
    figure = video_timeline("v", ground_truth, predictions, {5: "clap", 1: "a\nb $x$"})
    truth, found = bars(figure)
    assert truth == [[(2, 4)], [(5, 6)], []]
    assert [[(a, b) for a, b, _ in row] for row in found] == [[(1, 3), (6, 10)], [], [(0, 1)]]
    (_, _, low), (_, _, high) = found[0]
    assert high < low, "the y axis points down"
    assert figure.axes[0].get_xlim() == (0, 10)
    assert [t for t in texts(svg(figure)) if t in ("clap", "3", "a b $x$")][-3:] == ["clap", "3", "a b $x$"]


def test_a_timeline_shows_the_best_classes_and_counts_the_others():
    labels = np.arange(30)
    figure = video_timeline("v", NOTHING[:2], (np.tile([[0.0, 1.0]], (30, 1)), labels, labels / 30), {})
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [str(29 - k) for k in range(MOST_CLASSES)]
    assert "v   (22 more classes predicted)" in texts(svg(figure))


def test_pixels_of_a_timeline():
    picture = pixels(video_timeline("v", NOTHING[:2], (np.array([[0.0, 1.0]]), np.array([1]), np.array([1.0])), {}))
    assert (picture.dtype, picture.shape[1:]) == (np.uint8, (900, 3))
    colour = [int(COLOURS[0][i:i + 2], 16) for i in (1, 3, 5)]
    assert (picture == colour).all(axis=2).any()
    empty = pixels(video_timeline("\u6295\n", NOTHING[:2], NOTHING, {}))  # a letter that the font lacks
    assert empty.shape[1:] == (900, 3)
