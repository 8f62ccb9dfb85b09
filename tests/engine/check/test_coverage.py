"""Coverage of the pyramid against a slow twin of the assignment rule, and the grid guess against known grids."""
from __future__ import annotations

import numpy as np
import pytest
from helpers import tiny_config

from libs.datasets.grid import expected_length
from libs.engine.check import coverage
from libs.engine.check.coverage import segment_coverage, why_unmatched
from libs.engine.check.suggest import guess_grid


def twin(config, length, segments):
    """SPEC 31 in loops: points per segment and level, and whether a segment would have a point if it were alone."""
    radius = config.train_cfg.center_sample_radius
    strides = config.level_strides
    points, alone = np.zeros((len(segments), len(strides)), int), np.zeros(len(segments), bool)
    for level, (stride, (low, high)) in enumerate(zip(strides, config.model.regression_range, strict=True)):
        for t in range(0, length, stride):
            fitting = []
            for n, (start, end) in enumerate(segments):
                left, right = t - start, end - t
                centre = (start + end) / 2
                inside = t > start and t < end and (config.train_cfg.center_sample == "none" or abs(t - centre) < radius * stride)
                if inside and low <= max(left, right) <= high:
                    fitting.append((end - start, n))
                    alone[n] = True
            for span, n in fitting:
                points[n, level] += span <= min(fitting)[0] + 1e-3
    return points, alone


@pytest.mark.parametrize("center_sample", ["radius", "none"])
@pytest.mark.parametrize("chunk", [coverage.CHUNK, 7])
def test_agrees_with_the_slow_twin(center_sample, chunk, monkeypatch):
    monkeypatch.setattr(coverage, "CHUNK", chunk)
    config = tiny_config(train_cfg={"center_sample": center_sample})
    rng = np.random.default_rng(1)
    for length in (1, 13, 50):
        starts = rng.uniform(-2, length, 12)
        ends = starts + rng.choice([0.3, 1.5, 4.0, 9.0, 30.0], 12)
        segments = np.stack([starts, ends], 1).astype(np.float32).astype(np.float64)
        found = segment_coverage(config, length, segments)
        points, alone = twin(config, length, segments)
        assert np.array_equal(found.points_NL, points)
        assert np.array_equal(found.alone_N, alone)
    assert segment_coverage(config, 9, np.empty((0, 2))).points_NL.shape == (0, 3)


def test_reasons():
    config = tiny_config(model={"regression_range": [[0, 4], [4, 8], [8, 16]]})
    assert why_unmatched(config, 50, (5.2, 5.8), False) == "short"
    assert why_unmatched(config, 50, (0.5, 40.0), False) == "long"
    assert why_unmatched(config, 50, (49.5, 55.0), False) == "outside"
    assert why_unmatched(config, 50, (-3.0, -0.5), False) == "outside"
    assert why_unmatched(config, 50, (5.0, 9.0), True) == "taken"
    assert why_unmatched(config, 50, (5.0, 9.0), False) == "rule"


@pytest.mark.parametrize(("stride", "window"), [(25, 50), (4, 16), (8, 8), (16, 32), (1, 1), (5, 16)])
def test_guess_of_the_grid(stride, window):
    frames = np.random.default_rng(2).integers(200, 5000, 20)
    lengths = [expected_length(float(f), 1.0, stride, window) for f in frames]
    assert guess_grid(frames, np.array(lengths)) == (stride, window, 1.0)
    rough = guess_grid(frames + np.random.default_rng(3).uniform(-9, 9, 20), np.array(lengths))
    assert abs(rough.stride - stride) <= max(1, 0.1 * stride)


def test_guess_of_stretched_features_and_of_nothing():
    assert guess_grid(np.array([100.0, 300.0, 900.0]), np.array([128, 128, 128])).stride == -1
    assert guess_grid(np.empty(0), np.empty(0, int)) is None
