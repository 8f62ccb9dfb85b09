"""The picture of predictions under the ground truth."""
from __future__ import annotations

import numpy as np

from libs.utils import timeline_image as module
from libs.utils.timeline_image import GUTTER, INK, LANE, MARGIN, MOST_CLASSES, TITLE, TRUTH, WIDTH, timeline_image

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)  # the first two of libs/utils/plotting.py
NOTHING = (np.empty((0, 2)), np.empty(0, int), np.empty(0))


def columns(picture: np.ndarray, row: int, colour) -> tuple[int, int]:
    """First and last column of a colour in a row, right of the names."""
    found = np.flatnonzero((picture[row, GUTTER:] == colour).all(axis=1))
    return GUTTER + found[0], GUTTER + found[-1]


def test_segments_lie_where_their_times_are():
    truth = (np.array([[2.0, 4.0]]), np.array([5]))
    found = (np.array([[6.0, 10.0], [1.0, 3.0]]), np.array([5, 5]), np.array([1.0, 0.0]))
    picture = timeline_image("v", truth, found, {5: "clap"})
    scale = (WIDTH - GUTTER - MARGIN) / 10
    assert np.allclose(columns(picture, TITLE + 3, INK), (GUTTER + 2 * scale, GUTTER + 4 * scale), atol=1)
    top, bottom = TITLE + TRUTH + 4 + 2, TITLE + TRUTH + 4 + LANE - 2  # score 1 above, score 0 below
    assert np.allclose(columns(picture, top, BLUE), (GUTTER + 6 * scale, GUTTER + 10 * scale), atol=1)
    assert np.allclose(columns(picture, bottom, BLUE), (GUTTER + scale, GUTTER + 3 * scale), atol=1)
    assert not (picture[top] == ORANGE).all(axis=1).any()


def test_classes_have_rows_of_their_own_those_of_the_ground_truth_first():
    one = timeline_image("v", (np.array([[0.0, 1.0]]), np.array([3])), NOTHING, {})
    both = timeline_image("v", (np.array([[0.0, 1.0]]), np.array([3])),
                          (np.array([[0.0, 1.0]]), np.array([1]), np.array([1.0])), {})
    row = module.TRUTH + 4 + LANE + module.GAP
    assert both.shape == (len(one) + row, WIDTH, 3)
    assert columns(both, TITLE + row + TRUTH + 4 + 2, ORANGE)[0] == GUTTER


def test_many_classes_and_nothing_at_all():
    labels = np.arange(30)
    many = timeline_image("v", NOTHING[:2], (np.tile([[0.0, 1.0]], (30, 1)), labels, labels / 30), {})
    most = timeline_image("v", NOTHING[:2], (np.tile([[0.0, 1.0]], (MOST_CLASSES, 1)), labels[:MOST_CLASSES],
                                             labels[:MOST_CLASSES] / 30), {})
    assert many.shape == most.shape
    assert (many[:TITLE] != most[:TITLE]).any(), "the title counts the others"
    empty = timeline_image("a\nb", NOTHING[:2], NOTHING, {})
    assert (empty.dtype, empty.shape[1:]) == (np.uint8, (WIDTH, 3))
