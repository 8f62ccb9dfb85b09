"""Time conversion and feature-grid arithmetic (SPEC 1, 7, 44)."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from libs.datasets.grid import (
    Grid,
    downsampled_length,
    expected_length,
    file_window,
    implausible_length,
    length_ratio,
    plan_grid,
    regular_grid,
)


@pytest.mark.parametrize(("stride", "frames", "offset"), [(4, 16, 2.0), (16, 32, 1.0), (16, 16, 0.5)])
def test_published_offsets(stride, frames, offset):
    assert regular_grid(stride, frames, 30.0).offset == offset


def test_seconds_to_grid_rounds_to_float32_after_every_step():
    grid, seconds = regular_grid(4, 16, 29.97), np.random.default_rng(0).uniform(0, 200, (500, 2))
    want = [[np.float32(np.float32(np.float32(np.float32(v) * np.float32(29.97)) / np.float32(4)) - np.float32(2)) for v in row]
            for row in seconds]
    got = grid.seconds_to_grid(seconds)
    assert got.dtype == np.float32
    assert np.array_equal(got, np.array(want))
    assert not np.array_equal(got, (seconds * 29.97 / 4 - 2).astype(np.float32))  # float64 arithmetic would differ


def test_times_before_the_first_centre_stay_negative():
    assert regular_grid(4, 16, 30.0).seconds_to_grid(np.array([0.0, 4 * 2 / 30])).tolist() == [-2.0, 0.0]


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_grid_to_seconds_is_the_inverse(make):
    grid, seconds = regular_grid(16, 32, 25.0, 2), np.linspace(0, 300, 40).reshape(20, 2)
    back = grid.grid_to_seconds(make(grid.seconds_to_grid(seconds)))
    assert type(back) is type(make(seconds))
    assert back.shape == seconds.shape
    assert np.abs(np.asarray(back) - seconds).max() < 1e-4


def test_the_centre_of_vector_t_is_half_a_window_after_its_first_frame():
    assert regular_grid(4, 16, 25.0).grid_to_seconds(np.array([3.0]))[0] == (3 * 4 + 8) / 25


def test_downsampling_scales_the_stride_only():
    assert regular_grid(4, 16, 24.0, 2) == Grid(stride=8, num_frames=16, offset=1.0, fps=24.0)


@pytest.mark.parametrize("field", ["stride", "num_frames", "fps"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_impossible_grids_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        Grid(**{"stride": 4, "num_frames": 16, "offset": 2.0, "fps": 30.0, field: value})


@pytest.mark.parametrize("rate", [1, 2, 3])
def test_windows_of_the_grid_are_rows_of_the_file(rate):
    for file_length in range(1, 12):
        rows = np.arange(file_length)[::rate]
        length = downsampled_length(file_length, rate)
        assert length == len(rows)
        for start in range(length):
            for stop in range(start + 1, length + 1):
                window = file_window(start, stop, file_length, rate)
                assert window.stop <= file_length
                assert np.array_equal(np.arange(file_length)[window], rows[start:stop])


def test_plan_grid_as_stored():
    assert plan_grid(41, 30.0, 99.0, feat_stride=4, num_frames=16, downsample_rate=2) == (regular_grid(8, 16, 30.0), 21)


def test_plan_grid_resized_spans_the_frames_of_the_file():
    grid, length = plan_grid(30, 15.0, 99.0, feat_stride=16, num_frames=16, max_seq_len=64, force_upsampling=True)
    assert (grid, length) == (Grid(7.5, 7.5, 0.5, 15.0), 64)
    grid, length = plan_grid(47, 15.0, 99.0, feat_stride=16, num_frames=8, max_seq_len=64, force_upsampling=True)
    assert grid.stride == (46 * 16 + 8) / 64


@pytest.mark.parametrize(("upsample", "length"), [(False, 40), (True, 48)])
def test_plan_grid_without_stride_spans_the_video(upsample, length):
    grid, got = plan_grid(40, 30.0, 20.0, feat_stride=-1, num_frames=-1, max_seq_len=48, force_upsampling=upsample)
    assert got == length
    assert grid == Grid(600 / length, 600 / length, 0.5, 30.0)
    assert grid.grid_to_seconds(np.array([-0.5, length - 0.5])) == pytest.approx([0.0, 20.0])


def test_expected_length_counts_whole_windows():
    for frames in range(1, 60):
        starts = [t for t in range(0, 60, 4) if t + 16 <= frames]
        assert expected_length(frames / 25, 25.0, 4, 16) == max(len(starts), 1), frames


@pytest.mark.parametrize(("file_length", "expected", "bad"), [
    (100, 100, False), (50, 100, False), (49, 100, True), (200, 100, False), (201, 100, True), (1, 3, False), (3, 1, False),
    (1, 4, True), (4, 1, True)])
def test_implausible_length(file_length, expected, bad):
    assert implausible_length(file_length, expected) is bad


@pytest.mark.parametrize(("lengths", "expected", "ratio"), [
    ([], [], None), ([100, 105, 95], [100, 100, 100], None), ([106, 106, 90], [100, 100, 100], 1.06),
    ([94, 94, 100], [100, 100, 100], 0.94), ([5, 6, 7], [3, 4, 5], None), ([5, 6, 7], [2, 3, 4], 2.0)])
def test_the_median_length_counts_beyond_5_percent_and_two_vectors(lengths, expected, ratio):
    assert length_ratio(lengths, expected) == ratio
