"""Line charts: well-formed SVG whose points lie where the numbers say, inside the picture."""
from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from libs.utils.plotting import Line, Panel, line_chart, ticks

SVG = "{http://www.w3.org/2000/svg}"


def panels(count=4, lines=3):
    return [Panel(f"panel {p} <&>", tuple(Line(f"model {i}", (0, 1, 2, 5), (60 - i, 50.5 - p, 40, 7 + i), (1, 0, 2, 0.5))
                                          for i in range(lines))) for p in range(count)]


def absolute(root):
    """(kind, x, y) of every drawn point in picture coordinates."""
    out = []
    for group in root:
        dx, dy = map(float, re.fullmatch(r"translate\((\S+) (\S+)\)", group.get("transform")).groups()) if group.get(
            "transform") else (0, 0)
        for item in group.iter():
            if item.tag in (SVG + "polyline", SVG + "polygon"):
                out += [(item.tag, float(x) + dx, float(y) + dy) for x, y in (p.split(",") for p in item.get("points").split())]
            elif item.tag == SVG + "circle":
                out.append((item.tag, float(item.get("cx")) + dx, float(item.get("cy")) + dy))
            elif item.tag == SVG + "text":
                out.append((item.tag, float(item.get("x")) + dx, float(item.get("y")) + dy))
    return out


@pytest.mark.parametrize(("count", "lines", "columns"), [(1, 1, 3), (4, 3, 3), (5, 25, 2)])
def test_everything_lies_inside_the_picture(count, lines, columns):
    root = ElementTree.fromstring(line_chart(panels(count, lines), "a & b", "severity", "mAP", columns))
    left, top, width, height = map(float, root.get("viewBox").split())
    assert (left, top) == (0, 0)
    found = absolute(root)
    assert len([f for f in found if f[0] == SVG + "circle"]) == count * lines * 4
    assert all(0 <= x <= width and 0 <= y <= height for _, x, y in found)
    styles = {(p.get("stroke"), p.get("stroke-dasharray")) for p in root.iter(SVG + "polyline")}
    assert len(styles) == min(lines, 21)
    text = [t.text for t in root.iter(SVG + "text")]
    assert "a & b" in text
    assert "panel 0 <&>" in text
    assert text.count("model 0") == 1  # one legend for all panels


def test_the_picture_is_wide_enough_for_long_names():
    chart = line_chart([Panel("a", (Line("n" * 100, (0, 1), (1.0, 2.0)),))], "t", "x", "y")
    assert float(ElementTree.fromstring(chart).get("width")) > 100 * 6


def test_points_are_to_scale():
    """Equal steps of x and y are equal distances, y grows upwards, and panels share their axes."""
    chart = line_chart([Panel("a", (Line("m", (0, 1, 2, 4), (10.0, 20.0, 40.0, 0.0)),)),
                        Panel("b", (Line("m", (0, 4), (100.0, 50.0)),))], "t", "x", "y")
    first, second = ([tuple(map(float, p.split(","))) for p in line.get("points").split()]
                     for line in ElementTree.fromstring(chart).iter(SVG + "polyline"))
    x_unit, y_unit = first[1][0] - first[0][0], (first[0][1] - first[1][1]) / 10
    assert x_unit > 0
    assert y_unit > 0
    for (px, py), (x, y) in zip(first + second, [(0, 10), (1, 20), (2, 40), (4, 0), (0, 100), (4, 50)], strict=True):
        assert px == pytest.approx(x * x_unit, abs=0.03)
        assert py == pytest.approx((100 - y) * y_unit, abs=0.03)


def test_the_band_is_as_wide_as_the_spread():
    chart = line_chart([Panel("a", (Line("m", (0, 1), (10.0, 20.0), (2.0, 0.0)),))], "t", "x", "y")
    root = ElementTree.fromstring(chart)
    line = [float(p.split(",")[1]) for p in next(root.iter(SVG + "polyline")).get("points").split()]
    band = [float(p.split(",")[1]) for p in next(root.iter(SVG + "polygon")).get("points").split()]
    unit = (line[0] - line[1]) / 10
    assert band == pytest.approx([line[0] - 2 * unit, line[1], line[1], line[0] + 2 * unit], abs=0.03)
    flat = line_chart([Panel("a", (Line("m", (0, 1), (10.0, 20.0), (0.0, 0.0)),))], "t", "x", "y")
    assert "polygon" not in flat


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 100, [0, 20, 40, 60, 80, 100]), (3.1, 9.9, [2, 4, 6, 8, 10]), (-0.03, 0.05, [-0.04, -0.02, 0, 0.02, 0.04, 0.06]),
    (82.3, 84.9, [82, 83, 84, 85]), (50, 50, [40, 50]), (0, 0, [0, 0.2])])
def test_ticks_are_round_and_cover_the_range(low, high, expected):
    found = ticks(low, high)
    if low == high:
        assert found[0] <= low <= found[-1]
        assert len(found) >= 2
    else:
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(("lines", "fragment"), [
    ((), "at least one point"), ((Line("m", (), ()),), "at least one point"),
    ((Line("m", (0, 1), (1.0,)),), "differ in length"), ((Line("m", (0,), (1.0,), (1.0, 2.0)),), "differ in length"),
    ((Line("m", (0,), (float("nan"),)),), "not finite")])
def test_what_cannot_be_drawn_is_refused(lines, fragment):
    with pytest.raises(ValueError, match=fragment):
        line_chart([Panel("a", lines)], "t", "x", "y")


def test_a_single_point_is_drawn():
    root = ElementTree.fromstring(line_chart([Panel("a", (Line("m", (3,), (0.0,)),))], "t", "x", "y"))
    assert len(list(root.iter(SVG + "circle"))) == 1
