"""Frames are scaled and cropped as the libraries of networks do it; all by hand, without these libraries."""
from __future__ import annotations

import numpy as np
import pytest

from libs.datasets.video.extractors.rgb_clips import resized, scaled_size
from libs.datasets.video.extractors.torchvision_networks import Torchvision

ROW = np.array([0, 10, 40, 90, 100, 150, 200, 255])


def frame(row: np.ndarray) -> np.ndarray:
    """(4, W, 3) uint8 with that row in each channel, twice as bright in the last."""
    return np.repeat(np.stack([row // 2, row // 2, row], axis=1)[None], 4, axis=0).astype(np.uint8)


def test_the_longer_side_is_rounded_down():
    assert scaled_size(240, 321, 256) == (256, 342)  # 342.4
    assert scaled_size(61, 82, 40) == (40, 53)  # 53.8
    assert scaled_size(82, 61, 40) == (53, 40)
    assert scaled_size(50, 50, 7) == (7, 7)
    assert scaled_size(61, 82, (128, 171)) == (128, 171)
    assert scaled_size(61, 82, None) == (61, 82)


def test_without_antialiasing_four_pixels_make_one():
    """A quarter of the width: outputs lie at 1.5 and 5.5, halfway between two pixels."""
    small = resized(frame(ROW), (4, 2), "bilinear")
    assert small.dtype == np.uint8
    assert small[0, :, 2].tolist() == [25, 175]  # (10 + 40) / 2, (150 + 200) / 2
    assert resized(frame(ROW), (2, 8), "bilinear")[:, :, 2].tolist() == [ROW.tolist()] * 2
    wide = resized(frame(ROW[:2]), (4, 4), "bilinear")[0, :, 2]  # at -0.25, 0.25, 0.75, 1.25
    assert wide.tolist() == [0, 2, 8, 10]  # 2.5 and 7.5 to even


def test_antialiasing_is_a_triangle_over_the_shrunk_width():
    pixels = np.arange(8) + 0.5
    weights = np.maximum(1 - np.abs(pixels[None] - np.array([[2.0], [6.0]])) / 4, 0)
    expected = (weights * ROW).sum(1) / weights.sum(1)
    small = resized(frame(ROW), (4, 2), "antialiased-bilinear")[0, :, 2]
    assert np.abs(small - expected).max() <= 0.5
    assert resized(frame(ROW), (4, 2), "antialiased-bicubic")[0, :, 2].tolist() != small.tolist()


@pytest.mark.parametrize(("size", "crop", "corner"), [
    ((128, 171), 112, (8, 30)), ((128, 173), 112, (8, 30)), ((5, 8), 4, (0, 2))])
def test_torchvision_rounds_half_a_pixel_to_the_even_one(size, crop, corner):
    """29.5 and 30.5 are both 30, and 0.5 is 0."""
    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=2)
    cropped = Torchvision.cropped(None, places, crop)
    assert cropped.shape == (crop, crop, 2)
    assert tuple(cropped[0, 0]) == corner
